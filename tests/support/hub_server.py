"""A stand-in of the hub on 127.0.0.1: model and data set information, file trees, files with their hashes.

Whoever sends `TOKEN` may also make repositories of models and commit files to them.

Files above a limit are served as the hub serves large ones, under their SHA-256 and by way of a redirect to
another host; the rest under git's hash. A repository is a folder of files at one revision.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 2000  # bytes
#: The paths that an upload posts to.
WRITES = (
    r"/api/(?:(?P<action>repos/create|validate-yaml)|models/(?P<name>.+?)/(?P<kind>preupload|commit)/main)"
)
TOKEN = "hf_of_somebody_who_may_write"


class Repository:
    """Files at one revision. `damage` maps a file's name to what is sent instead of its bytes."""

    def __init__(self, folder=None, damage=None):
        found = sorted(Path(folder).rglob("*")) if folder is not None else []
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in found if path.is_file()
        }
        self.damage = damage or {}
        self.commit({})

    def commit(self, files):
        self.files |= files
        self.revision = hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()
        return self.revision

    def entry(self, name):
        """The file's row in a tree, as the hub's interface describes it."""
        data = self.files[name]
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        row = {"type": "file", "path": name, "size": len(data), "oid": git}
        if len(data) > LARGE:
            row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return row

    def tree(self, below, recursive):
        files = [name for name in self.files if name.startswith(f"{below}/" if below else "")]
        rest = {name: name[len(below) + 1 if below else 0 :] for name in files}
        rows = [self.entry(name) for name in files if recursive or "/" not in rest[name]]
        tops = sorted(
            {f"{below}/{path}".lstrip("/") for path in (r.split("/")[0] for r in rest.values() if "/" in r)}
        )
        return [{"type": "directory", "path": top, "size": 0, "oid": "0" * 40} for top in tops] + rows


class Hub:
    """The server; `repositories` maps ("models" or "datasets", name) to a `Repository`."""

    def __init__(self, repositories):
        self.repositories, self.requests, self.visibility = repositories, [], {}
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.elsewhere = f"http://localhost:{self.server.server_port}"  # another host to the client
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.command == "POST" and (found := re.fullmatch(WRITES, path)):
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.send(401, b"")
            return self.write(found["kind"] or found["action"], found["name"])
        if found := re.fullmatch(r"/storage/(models|datasets)/(.+?)/-/(.+)", path):
            kind, name, file = found.groups()
            repository = self.hub.repositories[kind, name]
            return self.send(200, repository.damage.get(file, repository.files[file]))
        if found := re.fullmatch(
            r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        ):
            return self.information(*found.groups())
        if found := re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path):
            kind, *rest = found.groups()
            return self.file("datasets" if kind else "models", *rest)
        return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def write(self, action, name):
        """What an upload asks for: the repository, whether its card is good, how to send files, a commit."""
        if action == "repos/create":
            asked = json.loads(self.body)
            name = f"{asked['organization']}/{asked['name']}"
            known = ("models", name) in self.hub.repositories
            self.hub.repositories.setdefault(("models", name), Repository())
            self.hub.visibility[name] = asked.get("visibility", self.hub.visibility.get(name, "public"))
            return self.json({"url": f"{self.hub.address}/{name}"}, 409 if known else 200)
        if action == "validate-yaml":
            good = json.loads(self.body)["content"].startswith("---\n")
            return self.json(
                {"errors": [] if good else [{"message": "no head"}], "warnings": []}, 400 - 200 * good
            )
        if action == "preupload":
            files = [file["path"] for file in json.loads(self.body)["files"]]
            return self.json(
                {"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        repository = self.hub.repositories["models", name]
        lines = [json.loads(line)["value"] for line in self.body.splitlines() if b'"key": "file"' in line]
        oid = repository.commit({file["path"]: base64.b64decode(file["content"]) for file in lines})
        return self.json({"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid})

    def repository(self, kind, name, revision):
        """The repository at a revision; sends the hub's refusal and returns None where there is none."""
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", repository.revision):
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository

    def information(self, kind, name, what, revision, below):
        repository = self.repository(kind, name, revision)
        if repository is None:
            return None
        if what == "tree":
            rows = repository.tree(
                below or "", "recursive=True" in self.path or "recursive=true" in self.path
            )
            missing = below and not rows
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}) if missing else self.json(rows)
        if what == "paths-info":
            wanted = json.loads(self.body)["paths"]
            rows = [repository.entry(path) for path in wanted if path in repository.files]
            rows += [
                {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
                for path in wanted
                if any(name.startswith(f"{path}/") for name in repository.files)
            ]
            return self.json(rows)
        siblings = [{"rfilename": file} for file in repository.files]
        about = {"id": name, "sha": repository.revision, "siblings": siblings, "private": False, "tags": []}
        return self.json(about | {"_id": "0", "downloads": 0, "likes": 0, "gated": False, "disabled": False})

    def file(self, kind, name, revision, file):
        repository = self.repository(kind, name, revision)
        if repository is None:
            return None
        commit = {"X-Repo-Commit": repository.revision}
        if file not in repository.files:
            return self.send(404, b"", commit | {"X-Error-Code": "EntryNotFound"})
        row = repository.entry(file)
        if "lfs" in row:  # the hub keeps large files elsewhere
            storage = f"{self.hub.elsewhere}/storage/{kind}/{name}/-/{file}"
            linked = {"X-Linked-Etag": f'"{row["lfs"]["oid"]}"', "X-Linked-Size": str(row["size"])}
            return self.send(302, b"", commit | linked | {"Location": storage})
        return self.send(
            200, repository.damage.get(file, repository.files[file]), commit | {"ETag": f'"{row["oid"]}"'}
        )

    def json(self, value, status=200):
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status, data, headers=None):
        headers = headers or {}
        if status == 200 and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            first, last = int(found[1]), int(found[2] or len(data) - 1)
            headers = headers | {"Content-Range": f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"}
            status, data = 206, data[first : last + 1]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
