"""The page to print: numbers computed here, code that runs, one sheet of paper; and the book as a PDF."""

import contextlib
import io
import re
import shutil

import pdf
import pytest
import torch
from book_pages import listed_pages
from pypdf import PdfReader, PdfWriter
from reader import NAMES, find_browser
from rules import BOOK
from transformers import RobertaConfig, RobertaForSequenceClassification

from lora_tutorial import LoraConfig, inject_lora, merge_lora, save_adapter
from lora_tutorial.models.encoders import parameter_table

TEXT = (BOOK / "summary.md").read_text(encoding="utf8")
SETTINGS = {"8", "16", "768"}  # the rank, the scale's numerator, the width


def factors(**settings):
    """The numbers in LoRA's factors on a model of roberta-base's shape, which is never filled."""
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        model = RobertaForSequenceClassification(config)
        inject_lora(model, LoraConfig(r=8, **settings))
    return parameter_table(model)["LoRA"].trainable, config.num_hidden_layers


def bytes_trained():
    """Bytes that fp32 training with AdamW holds for one parameter: weight, gradient, state."""
    weight = torch.nn.Parameter(torch.zeros(100))
    optimiser = torch.optim.AdamW([weight])
    weight.grad = torch.ones(100)
    optimiser.step()
    state = [value for value in optimiser.state[weight].values() if value.numel() > 1]
    return sum(tensor.nbytes for tensor in (weight, weight.grad, *state)) // 100, weight.nbytes // 100


def test_every_number_on_the_page_is_computed():
    query_value, layers = factors()
    every, _ = factors(target_modules=r".*encoder\.layer\.\d+\..*(query|key|value|dense)")
    one, whole = 8 * (768 + 768), 768 * 768
    trained, frozen = bytes_trained()
    computed = [one, whole, whole // (768 + 768), query_value, every, layers, trained, frozen]
    known = SETTINGS | {f"{number:,}" for number in computed} | {f"{100 * one / whole:.1f}"}
    prose = re.sub(
        r"\{\w+\}`[^`]*`|b?f(?:loat|p)\d+|W_?0|4-bit|A4|\$?\\frac.*?\}|^\d\.", "", TEXT, flags=re.MULTILINE
    )
    found = set(re.findall(r"\d[\d,]*(?:\.\d+)?", prose))
    found = {number.rstrip(",") for number in found}
    assert found - known == set()
    assert {f"{number:,}" for number in computed} <= found


def test_the_code_on_the_page_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=50, hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32
        )
    )
    monkeypatch.chdir(tmp_path)
    names = {"inject_lora": inject_lora, "LoraConfig": LoraConfig}
    exec(code, names | {"save_adapter": save_adapter, "merge_lora": merge_lora, "model": model})
    assert (tmp_path / "adapter" / "adapter.safetensors").is_file()


@pytest.mark.slow
def test_the_page_prints_on_one_sheet_of_a4(browser, site):
    _, printed = pdf.printed(browser, f"{site}/book/summary.html")
    (sheet,) = PdfReader(io.BytesIO(printed)).pages
    assert [round(float(side) / 72 * 25.4) for side in (sheet.mediabox.width, sheet.mediabox.height)] == [
        210,
        297,
    ]
    text = sheet.extract_text()
    assert "LoRA on one page" in text and "check one batch by hand" in text and "1,327,104" in text


@pytest.mark.slow
def test_a_printed_chapter_shows_its_solutions_and_no_buttons(browser, site):
    title, printed = pdf.printed(browser, f"{site}/book/07_merging.html")
    text = " ".join(sheet.extract_text() for sheet in PdfReader(io.BytesIO(printed)).pages)
    assert "Merging" in title
    assert "Two QR decompositions" in text
    assert "Hardly: the rounding of the product is small" in " ".join(text.split())
    assert "Search" not in text and "repository" not in text.lower()


def test_pages_are_printed_in_the_books_order_with_bookmarks(monkeypatch, tmp_path):
    sheet = PdfWriter()
    sheet.add_blank_page(100, 100)
    blank = io.BytesIO()
    sheet.write(blank)
    asked = []

    def fake(browser, url):
        asked.append(url)
        return f"Title {len(asked)}", blank.getvalue()

    monkeypatch.setattr(pdf, "printed", fake)
    monkeypatch.setattr(pdf, "launched", contextlib.nullcontext)
    book = PdfReader(io.BytesIO(pdf.print_book(tmp_path, pdf.pages_in_order(), "")))
    assert [url.split("/", 3)[3] for url in asked] == [f"{name}.html" for name in listed_pages()]
    assert [item.title for item in book.outline] == [f"Title {n}" for n in range(1, len(asked) + 1)]


def test_without_a_browser_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(pdf, "find_browser", lambda: None)
    assert pdf.main() == 2
    said = capsys.readouterr().out
    assert "needs a browser" in said and NAMES[0] in said


def test_a_browser_is_found_by_its_names(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "google-chrome" else None)
    assert find_browser() == "/bin/google-chrome"
