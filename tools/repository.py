"""Set the repository's address in `_config.yml`, where it lives, and wherever it is derived from there.

`python tools/repository.py https://github.com/OWNER/NAME`, or `make repository URL=https://github.com/OWNER/NAME`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import yaml
from rules import ROOT, code_cells, text_of

from lora_tutorial.storage.files import atomic_write_bytes

#: What may name the address. A test sees to it that nothing else does.
PLACES = (
    "_config.yml",
    "*.md",
    "CITATION.cff",
    "pyproject.toml",
    "book/*.ipynb",
    "book/*.md",
    "lora_tutorial/cli/main.py",
    ".github/**/*.yml",
    ".github/**/*.md",
)
ADDRESS = re.compile(r"https://github\.com/([A-Za-z\d](?:[A-Za-z\d]|-(?=[A-Za-z\d])){0,38}/[\w.-]{1,100})")


def slug_of(url: str) -> str:
    """OWNER/NAME of an address.

    Raises
    ------
    ValueError
        If `url` is no plain address of a repository on GitHub: Colab opens chapters from there only.
    """
    match = ADDRESS.fullmatch(url)
    if not match or match[1].endswith((".git", "/.", "/..")):
        raise ValueError(
            f"URL={url!r} is no repository's address: write https://github.com/OWNER/NAME, "
            "without a slash or .git at its end (Colab opens chapters from GitHub only)"
        )
    return match[1]


def current(root: Path) -> str:
    """The address in `_config.yml`."""
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf8"))["repository"]["url"]


def places(root: Path) -> list[Path]:
    """The files that may name the address."""
    return sorted({path for pattern in PLACES for path in root.glob(pattern) if path.is_file()})


def move(root: Path, url: str) -> list[Path]:
    """Write the address `url` in place of the one in `_config.yml`; the files that changed.

    Every new text is made and checked before the first file is written.

    Raises
    ------
    ValueError
        If `url` is no address, or if a chapter's first cell names another repository than `_config.yml` does.
    """
    new, old = slug_of(url), slug_of(current(root))
    named = re.compile(rf"(github\.com/|google\.com/github/){re.escape(old)}(?![\w-])")
    texts = {}
    for path in places(root):
        before = path.read_bytes().decode("utf8")
        after = named.sub(rf"\g<1>{new}", before)
        if path.suffix == ".ipynb" and f'REPOSITORY = "{url}"' not in text_of(
            code_cells(json.loads(after))[0]["source"]
        ):
            raise ValueError(
                f"{path.name}: its first cell does not name {current(root)}, as _config.yml does. "
                "Copy the first cell of book/_template.ipynb into it"
            )
        if after != before:
            texts[path] = after
    for path, text in texts.items():
        atomic_write_bytes(path, text.encode("utf8"))
    return list(texts)


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Move the address and say what changed."""
    if len(arguments) != 1 or not arguments[0]:
        print(
            f"The address is {current(root)}. To change it: make repository URL=https://github.com/OWNER/NAME"
        )
        return 2
    try:
        changed = move(root, arguments[0])
    except ValueError as error:
        print(error)
        return 2
    for path in changed:
        print(path.relative_to(root))
    print(f"{len(changed)} files changed: the address is {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
