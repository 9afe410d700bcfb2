"""What several test files share."""

import os
from pathlib import Path

# Before torch is imported: threads that wait are not to spin, nor are those of the programs started here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from transformers import RobertaConfig, RobertaModel


def pytest_collection_modifyitems(items):
    """Long files first, so that no process is left alone with one at the end.

    The first of all builds the book; what else needs its pages comes last, when they are there.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    pages = {item.path for item in items if "html_folder" in getattr(item, "fixturenames", ())}

    def place(item):
        builds = item.path.name == "test_book_build.py"
        return 0 if builds else 3 if item.path in pages else 1 if item.path in slow else 2

    items.sort(key=place)


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real GLUE and SQuAD files; without one the test is skipped, unless it was promised."""
    folder = os.environ.get("LORA_TUTORIAL_DATA")
    if not folder and os.environ.get("LORA_TUTORIAL_REQUIRE_DATA"):
        pytest.fail("LORA_TUTORIAL_REQUIRE_DATA is set and LORA_TUTORIAL_DATA is not")
    if not folder:
        pytest.skip("LORA_TUTORIAL_DATA names no folder of GLUE and SQuAD files")
    return Path(folder)


@pytest.fixture
def seeded_on_one_thread():
    """Matrices this small take longer to hand out than to multiply."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def minilm():
    """The encoder that needs no hub: (model, tokenizer). Read only: do not train it or change it."""
    from lora_tutorial.models.encoders import load_encoder

    return load_encoder("minilm")


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory):
    """The folder of a tiny RoBERTa checkpoint with random weights (no tokenizer)."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=60,
        hidden_size=24,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=36,
        max_position_embeddings=40,
        type_vocab_size=1,
    )
    folder = tmp_path_factory.mktemp("tiny-roberta")
    RobertaModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory):
    """A tiny random RoBERTa as the hub has them: byte-level BPE trained here, pad id 1, one token type."""
    from tiny_checkpoint import make_checkpoint

    texts = [
        "A film I love.",
        "What a wonderful, long and winding road it was, honestly!",
        "Segment two, a much longer second segment than the first one, by far?",
        "émigré ½ naïve",
    ]
    return make_checkpoint(tmp_path_factory.mktemp("byte-level"), texts, max_length=62)


@pytest.fixture
def tiny_folder(tmp_path):
    """A checkpoint folder of a tiny encoder, without a head, with a tokenizer."""
    from peft_models import base
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "encoder"
    base().roberta.save_pretrained(folder)
    words = {f"w{i}": i for i in range(60)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")), pad_token="w1"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wordpiece():
    """The tokenizer of the encoder that needs no hub."""
    from lora_tutorial.models.encoders import load_tokenizer

    return load_tokenizer("minilm")


@pytest.fixture(scope="module", params=["wordpiece", "byte-level"])
def tokenizer(request, byte_level):
    """Both kinds of tokenizer, one after the other."""
    from lora_tutorial.models.encoders import load_tokenizer

    return load_tokenizer("minilm" if request.param == "wordpiece" else byte_level)


@pytest.fixture(scope="session")
def html_folder(tmp_path_factory):
    """The folder of the book's pages, built once for all tests, a warning being an error.

    Where tests run in several processes the first that needs the pages builds them, and the others wait.
    """
    from book_pages import build
    from filelock import FileLock
    from rules import ROOT

    out = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        out = out.parent  # what the processes of one run share
    out, said = out / "book", out / "book.txt"
    with FileLock(out.with_suffix(".lock")):
        out.mkdir(exist_ok=True)
        if not said.is_file():
            result = build(ROOT, out)
            said.write_text(f"{result.returncode}\n{result.stdout[-6000:]}", encoding="utf8")
    code, _, words = said.read_text(encoding="utf8").partition("\n")
    assert code == "0", words
    return out / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    """A Chromium or Chrome that is installed here; without one a test is skipped, unless it was promised."""
    from browser import browser_is_promised
    from reader import NAMES, find_browser, launched

    path = find_browser()
    if not path and browser_is_promised():
        pytest.fail(f"LORA_TUTORIAL_REQUIRE_BROWSER is set and no {', '.join(NAMES)} is installed")
    if not path:
        pytest.skip(f"no browser is installed: one of {', '.join(NAMES)}")
    with launched(path) as instance:
        yield instance


@pytest.fixture(scope="session")
def site(browser, html_folder):
    """The address at which the built book is served on loopback."""
    from reader import served

    with served(html_folder) as address:
        yield address
