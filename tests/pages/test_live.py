"""The files of the page "Try it": what they hold, when they are made anew, what is said without MiniLM."""

import json
import re

import live_page
import numpy as np
import pytest
import torch
from live_agreement import agreement, first_rows

from lora_tutorial.adapters.files import stored_adapter
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import get_task
from lora_tutorial.pages import live
from lora_tutorial.quant.nf4 import nf4_levels
from lora_tutorial.storage import downloads


def unpack(text, size):
    """The page's own way from characters to bytes, in Python."""
    values = np.array([ord(c) - live.FIRST_CHARACTER for c in text])
    bits = (values[:, None] >> np.arange(14, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).ravel()).tobytes()[:size]


@pytest.mark.parametrize("size", [1, 14, 15, 16, 1000])
def test_packed_bytes_come_back_and_are_safe_in_a_script(size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    text = live.pack(data)
    assert unpack(text, size) == data
    assert len(text) == -(-8 * size // 15)
    assert all("\u3400" <= character <= "\ub3ff" for character in text)


def test_sorted_factors_have_the_same_product_and_cut_to_the_best_of_each_rank():
    torch.manual_seed(0)
    lora_A, lora_B = torch.randn(8, 40), torch.randn(30, 8)
    A, B = live.sorted_factors(lora_A, lora_B)
    assert A.shape == lora_A.shape and B.shape == lora_B.shape
    U, S, Vh = torch.linalg.svd(lora_B @ lora_A)
    for rank in range(1, 9):
        best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
        torch.testing.assert_close(B[:, :rank] @ A[:rank], best, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    return folder, live.write_live(folder)


def meta_of(folder):
    return json.loads(re.fullmatch(r"liveData\.meta\((.*)\);\n", (folder / "meta.js").read_text())[1])


def test_the_download_is_as_small_as_eight_bits_allow(written):
    folder, made = written
    assert sum(path.stat().st_size for path in folder.glob("*.js")) == sum(made["files"].values())
    assert sum(made["files"].values()) < 35e6
    assert max(made["files"].values()) < 2.2e6  # small parts, so that a progress bar moves


def test_tables_levels_and_tasks_come_from_the_package(written):
    meta = meta_of(written[0])
    assert meta["nf4"]["levels"] == nf4_levels().tolist()
    assert len(meta["vocabulary"]) == 30522 and meta["vocabulary"][102] == "[SEP]"
    assert list(meta["tasks"]) == list(live.TASKS)
    for name, task in meta["tasks"].items():
        settings = json.loads((stored_adapter(name) / "adapter.json").read_text())
        assert task["labels"] == settings["metadata"]["labels"]
        assert task["scores"] == settings["metadata"]["scores"]
        assert task["spans"] == get_task(name).extractive


def test_files_are_made_again_only_if_something_has_changed(written, monkeypatch):
    folder, made = written
    first = (folder / "meta.js").stat().st_mtime_ns
    assert live.write_live(folder) == made
    assert (folder / "meta.js").stat().st_mtime_ns == first
    (folder / "base-03.js").write_bytes(b"cut short")
    assert live.write_live(folder) == made
    assert (folder / "base-03.js").stat().st_size == made["files"]["base-03.js"]
    monkeypatch.setattr(live, "TASKS", ("sst2",))
    assert live.made_from() != made["key"]


def test_a_head_that_the_page_cannot_compute_is_refused(tmp_path, monkeypatch):
    settings = json.loads((stored_adapter("sst2") / "adapter.json").read_text())
    settings["base"]["wrapper"]["head"] = "roberta"
    (tmp_path / "adapter.json").write_text(json.dumps(settings))
    monkeypatch.setattr(live, "stored_adapter", lambda name: tmp_path)
    with pytest.raises(ValueError, match="'sst2' has 'roberta'"):
        live.describe("sst2")


def test_without_minilm_the_page_is_built_and_says_why(tmp_path, monkeypatch):
    def refuse(folder):
        raise downloads.AssetError('Could not download <it>: say "pip".')

    monkeypatch.setattr(live, "write_live", refuse)
    marks = live_page.write(tmp_path)
    assert marks["@MISSING@"] == "Could not download &lt;it&gt;: say &quot;pip&quot;."
    assert (tmp_path / "live.js").is_file() and not (tmp_path / "data").exists()


def test_the_script_asks_nothing_of_the_network_and_holds_every_module():
    script = live_page.bundle()
    assert not re.search(r"https?:|//cdn|\bfetch\(|XMLHttpRequest|importScripts|WebAssembly|\beval\(", script)
    names = {path.stem for path in live_page.SOURCES.glob("*.js")}
    assert names == {*live_page.IN_WORKER, *live_page.IN_PAGE}
    assert len(script.encode()) < 60_000


def test_what_the_commoner_answer_alone_would_score_is_so(data_folder):
    words = (live_page.SOURCES / "examples.js").read_text(encoding="utf8")
    always = re.findall(r'  (\w+): {\n(?:    .*\n)*?    always: \["([\w ]+)", (\d+)\]', words)
    assert [name for name, *_ in always] == ["sst2", "mrpc", "rte"]
    for name, answer, of100 in always:
        about = live.describe(name)
        rows = np.array(load_task(name, data_folder).data[about["scoredOn"]]["label"])
        counts = np.bincount(rows, minlength=2)
        assert round(100 * counts.max() / counts.sum()) == int(of100)
        assert f'{about["labels"][counts.argmax()]}: "{answer}"' in words


@pytest.mark.slow
@pytest.mark.parametrize("task", live.TASKS)
def test_the_page_answers_as_the_model_in_full_precision(task, data_folder, seeded_on_one_thread):
    # A span has many near rivals, so rounding changes more of them; of 30, one more or less weighs a lot.
    # RTE's rows are all read: two of its 277 change sides, and a sample may hold both.
    most, least = {"squad": 30, "rte": 277}.get(task, 100), 0.95 if task == "squad" else 0.99
    rows = first_rows(task, data_folder, most)
    assert agreement(task, rows, get_task(task).columns) >= least


@pytest.mark.slow
def test_the_page_answers_as_the_model_in_full_precision_on_reviews(seeded_on_one_thread):
    rows = first_rows("reviews", "auto", 200)
    assert agreement("sst2", rows, ["text"]) >= 0.99
