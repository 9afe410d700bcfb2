"""The symptoms page: eighteen of them, each reproduced in a cell and cured in another."""

import re

import pytest
from rules import BOOK, read, text_of

CELLS = read(BOOK / "symptoms.ipynb")["cells"]
OPENING = text_of(CELLS[0]["source"])


def entries():
    """For each symptom, its heading and the cells under it."""
    found, heading = {}, None
    for cell in CELLS:
        text = text_of(cell["source"])
        if cell["cell_type"] == "markdown" and (title := re.match(r"## (.+)", text)):
            heading = title[1] if "**Symptom.**" in text else None
            if heading:
                found[heading] = []
        if heading:
            found[heading].append(cell)
    return found


def slug(heading):
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def test_there_are_as_many_symptoms_as_the_page_says():
    assert len(entries()) == 18
    assert "recognise eighteen things that go wrong" in OPENING


def test_the_table_leads_to_every_symptom():
    assert sorted(re.findall(r"\]\(#([a-z0-9-]+)\)", OPENING)) == sorted(map(slug, entries()))


@pytest.mark.parametrize("heading", list(entries()))
def test_a_symptom_is_reproduced_and_cured_in_cells(heading):
    cells = entries()[heading]
    texts = [text_of(cell["source"]) for cell in cells]
    cure = next(place for place, text in enumerate(texts) if "**Cure.**" in text)
    code = [place for place, cell in enumerate(cells) if cell["cell_type"] == "code"]
    assert any("**Cause.**" in text for text in texts)
    assert min(code) < cure < max(code)
    for part in (code_before := [p for p in code if p < cure]), [p for p in code if p > cure]:
        shown = [cells[place] for place in part]
        assert any(cell["outputs"] for cell in shown), code_before
    assert "assert" in "".join(texts[place] for place in code if place > cure) or "raises" in "".join(texts)
