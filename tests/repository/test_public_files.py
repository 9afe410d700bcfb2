"""What the outside reads beside the book: the citation, the public workflow, the templates, the hooks."""

import re
import subprocess
import tomllib

import pytest
import sizes
import yaml
from book_pages import run
from rules import ROOT, chapters, code_cells, read, text_of

from lora_tutorial.experiments import ship


def load(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf8"))


def test_citation_names_the_version_and_the_address_of_the_project():
    citation, project = load("CITATION.cff"), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = load("_config.yml")["repository"]["url"]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["authors"] == [{"name": load("_config.yml")["author"]}]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["repository-code"] == citation["url"] == address


WORKFLOWS = sorted(path.name for path in (ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_long_job_runs_the_same_script_as_everywhere():
    jobs = load(".github/workflows/ci.yml")["jobs"]
    assert {"run": "bash .ci/run"} in jobs["test"]["steps"]
    assert {"run": "make lint"} in jobs["lint"]["steps"]
    assert jobs["elsewhere"]["strategy"]["matrix"]["system"] == ["windows-latest", "macos-latest"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_pin_their_actions_and_ask_for_nothing_but_to_read(name):
    workflow = load(f".github/workflows/{name}")
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        more = set(job.get("permissions", ())) - {"contents"}
        assert not more or "environment" in job  # what publishes can be held by a person


@pytest.mark.parametrize("name", [*(f"workflows/{name}" for name in WORKFLOWS), "dependabot.yml"])
def test_workflows_keep_their_schema(name):
    schema = "vendor.dependabot" if name == "dependabot.yml" else "vendor.github-workflows"
    result = run("check-jsonschema", "--builtin-schema", schema, ROOT / ".github" / name)
    assert result.returncode == 0, result.stdout


def test_a_workflow_that_breaks_its_schema_is_seen(tmp_path):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf8")
    (tmp_path / "bad.yml").write_text(text.replace("runs-on:", "run-on:"), encoding="utf8")
    result = run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", tmp_path / "bad.yml")
    assert result.returncode != 0
    assert "run-on" in result.stdout


def test_paths_that_workflows_name_are_there():
    for name in WORKFLOWS:
        text = (ROOT / ".github" / "workflows" / name).read_text(encoding="utf8")
        named = re.findall(r"(?<![\w/])(?:tests|tools|\.ci)/\w+(?:\.\w+)?", text)
        assert all((ROOT / path).exists() for path in named), name
    assert len(WORKFLOWS) == 4


@pytest.mark.parametrize("name", ["bug", "wrong"])
def test_issue_forms_ask_for_something(name):
    form = load(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    names = [part["id"] for part in form["body"]]
    assert len(names) == len(set(names))
    assert any(part.get("validations", {}).get("required") for part in form["body"])
    assert {part["type"] for part in form["body"]} <= {"input", "textarea"}


def test_every_hook_runs_a_program_of_the_project():
    (repo,) = load(".pre-commit-config.yaml")["repos"]
    pins = (ROOT / "requirements.txt").read_text()
    for hook in repo["hooks"]:
        program, *arguments = hook["entry"].split()
        tool = program.removeprefix(".venv/bin/")
        assert (ROOT / arguments[0]).is_file() if tool == "python" else f"\n{tool}==" in pins


def test_no_committed_file_is_above_the_limit(tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert sizes.too_large([ROOT / name for name in listed.stdout.splitlines()]) == []
    (tmp_path / "big").write_bytes(bytes(sizes.LIMIT + 1))
    (tmp_path / "small").write_bytes(bytes(sizes.LIMIT))
    (problem,) = sizes.too_large([tmp_path / "big", tmp_path / "small"])
    assert "1,000,001 bytes" in problem
    assert (sizes.LIMIT, *sizes.LARGER.values()) == (ship.LIMIT, ship.LM_LIMIT)


def test_spelling_is_checked(tmp_path):
    misspelt = "".join(["sep", "erate"])
    (tmp_path / "page.md").write_text(f"A {misspelt} word.\n")
    result = run("codespell", "page.md", cwd=tmp_path)
    assert result.returncode != 0
    assert "separate" in result.stdout


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_page_names_the_chapters_that_read_records(page):
    """What a reader computes and what a chapter reads from a stored run are told apart."""
    reads = re.compile(r"\b(stored_records|speed_records)\(")
    found = {
        int(path.stem[:2])
        for path in chapters()
        if path.stem[:2].isdigit()
        and any(reads.search(text_of(cell["source"])) for cell in code_cells(read(path)))
    }
    (named,) = re.findall(
        r"[Cc]hapters ([\d, and]+) (?:also )?read", (ROOT / page).read_text(encoding="utf8")
    )
    assert {int(number) for number in re.findall(r"\d+", named)} == found
