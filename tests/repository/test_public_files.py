"""What the outside reads beside the book: the citation, the public workflow, the templates, the hooks."""

import re
import subprocess
import tomllib

import pytest
import sizes
import yaml
from book_pages import run
from rules import ROOT


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


def test_public_workflow_runs_the_same_script_with_pinned_actions():
    workflow = load(".github/workflows/ci.yml")
    (job,) = workflow["jobs"].values()
    assert {"run": "bash .ci/run"} in job["steps"]
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in used)
    assert workflow["permissions"] == {"contents": "read"}


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


def test_spelling_is_checked(tmp_path):
    misspelt = "".join(["sep", "erate"])
    (tmp_path / "page.md").write_text(f"A {misspelt} word.\n")
    result = run("codespell", "page.md", cwd=tmp_path)
    assert result.returncode != 0
    assert "separate" in result.stdout
