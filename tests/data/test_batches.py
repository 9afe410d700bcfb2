"""From texts to batches: nothing lost, padding per batch, and the same order for the same seed."""

import shutil

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict

from lora_tutorial.data.batches import GroupedBatches, count_cut, make_loader, tokenize
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import TASKS, LoadedTask, get_task


def pairs(**columns):
    rows = {"sentence1": ["one", "a longer first text"], "sentence2": ["two", "b"], "label": [1, 0]}
    return LoadedTask(TASKS["rte"], DatasetDict(validation=Dataset.from_dict(rows | columns)))


def ids(loader):
    return [row for batch in loader for row in batch["input_ids"].tolist()]


@pytest.fixture(scope="module")
def products(minilm):
    return tokenize(load_task("products"), minilm.tokenizer, max_length=32)


def test_tokens_are_the_tokenizers_own_and_rows_keep_their_order(minilm, products):
    loaded = load_task("products")
    rows, texts = products["validation"], loaded.data["validation"]["text"]
    assert set(rows.column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert list(rows["labels"]) == list(loaded.data["validation"]["label"])
    for index in (0, 7, len(rows) - 1):
        assert (
            rows[index]["input_ids"]
            == minilm.tokenizer(texts[index], truncation=True, max_length=32)["input_ids"]
        )
    assert max(map(len, rows["input_ids"])) == 32, "long texts are cut, short ones not padded"
    assert min(map(len, rows["input_ids"])) < 10


def test_pairs_go_in_together_with_segment_ids(minilm):
    row = tokenize(pairs(), minilm.tokenizer)["validation"][0]
    assert row["input_ids"] == minilm.tokenizer("one", "two")["input_ids"]
    assert row["token_type_ids"] == [0, 0, 0, 1, 1]


def test_labels_of_a_regression_are_floats_and_of_classes_whole_numbers(minilm, products):
    rating = tokenize(load_task("products-rating"), minilm.tokenizer)["test"]
    batch = next(iter(make_loader(rating, minilm.tokenizer, 4)))
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (4,)
    assert next(iter(make_loader(products["test"], minilm.tokenizer, 4)))["labels"].dtype == torch.int64


def test_a_batch_is_padded_to_its_own_longest_row(minilm, products):
    rows = products["validation"]
    loader = make_loader(rows, minilm.tokenizer, 16)
    start = 0
    for batch in loader:
        lengths = [len(row) for row in rows[start : start + 16]["input_ids"]]
        start += 16
        assert batch["input_ids"].shape == (len(lengths), max(lengths))
        assert batch["attention_mask"].sum(1).tolist() == lengths
        assert not batch["input_ids"][batch["attention_mask"] == 0].any(), "MiniLM pads with id 0"
    assert len(loader) == -(-len(rows) // 16)


def test_the_seed_alone_decides_the_order(minilm, products):
    def order(seed, noise):
        torch.manual_seed(noise)
        loader = make_loader(products["test"], minilm.tokenizer, 16, shuffle=True, seed=seed)
        return ids(loader), ids(loader), loader

    first, second, loader = order(5, noise=1)
    assert (first, second) == order(5, noise=2)[:2]
    assert first != order(6, noise=1)[0]
    assert first != second and len(first) == len(second), "each pass has an order of its own"
    loader.generator.manual_seed(5)
    assert ids(loader) == first


def test_sorting_by_length_pads_less_and_loses_nothing(minilm, products):
    rows = products["validation"]
    plain, sorted_ = (make_loader(rows, minilm.tokenizer, 16, sort_by_length=s) for s in (False, True))

    def content(loader):
        return sorted(
            (tuple(row[: mask.sum()].tolist()), label.item())
            for batch in loader
            for row, mask, label in zip(
                batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
            )
        )

    assert content(plain) == content(sorted_)
    assert sum(b["input_ids"].numel() for b in sorted_) < 0.8 * sum(b["input_ids"].numel() for b in plain)


def test_grouping_by_length_halves_the_padding_and_still_shuffles(minilm, products):
    rows = products["train"]
    plain = make_loader(rows, minilm.tokenizer, 16, shuffle=True)
    grouped = make_loader(rows, minilm.tokenizer, 16, shuffle=True, seed=3, group_by_length=True)
    tokens = sum(len(row) for row in rows["input_ids"])
    wasted = [sum(batch["input_ids"].numel() for batch in loader) - tokens for loader in (plain, grouped)]
    assert wasted[1] < 0.5 * wasted[0]
    lengths = [batch["input_ids"].shape[1] for batch in grouped]
    assert lengths[:-1] != sorted(lengths[:-1]) and lengths[:-1] != sorted(lengths[:-1], reverse=True)


@pytest.mark.parametrize(("rows", "size"), [(1, 4), (16, 4), (17, 4), (1000, 16), (5, 8)])
def test_grouped_batches_hold_every_row_once_in_an_order_of_the_epochs_own(rows, size):
    def batches(seed, epoch):
        made = GroupedBatches([7 * i % 40 + 1 for i in range(rows)], size, seed)
        made.set_epoch(epoch)
        return list(made), len(made)

    first, count = batches(0, 0)
    assert count == len(first) == -(-rows // size)
    assert sorted(row for batch in first for row in batch) == list(range(rows))
    assert all(len(batch) == size for batch in first[:-1]), "a short batch comes last"
    assert GroupedBatches([1], size).drop_last is False, "accelerate asks"
    assert batches(0, 0)[0] == first
    if rows > 16:
        assert first != batches(0, 1)[0] and first != batches(1, 0)[0]


def test_a_run_over_grouped_batches_resumes_to_the_bit(minilm, products, tmp_path):
    from lora_tutorial.experiments.run import build_model
    from lora_tutorial.training.recipes import load_recipe
    from lora_tutorial.training.trainer import train

    tokens = products["train"].select(range(50))
    recipe = load_recipe("cpu", epochs=2, batch_size=8)

    def run(folder, **options):
        model = build_model(get_task("products"), "head", weights="random", seed=1)
        loader = make_loader(tokens, minilm.tokenizer, 8, shuffle=True, group_by_length=True)
        record = train(model, loader, None, None, recipe, folder, progress=False, **options)
        return record.steps["loss"], model.finetune_head_classifier.weight

    whole, weight = run(tmp_path / "whole", checkpoint_every=3)
    assert len(whole) == 14
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "record.json").unlink()
    for folder in (tmp_path / "cut" / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > 12:
            shutil.rmtree(folder)
    again, same = run(tmp_path / "cut", resume=True)
    assert again == whole and torch.equal(weight, same)


def test_tokenising_writes_nothing_and_restores_progress_bars(minilm, capfd):
    before = datasets.are_progress_bars_disabled()
    try:
        for set_ in (datasets.disable_progress_bars, datasets.enable_progress_bars):
            set_()
            shown = datasets.are_progress_bars_disabled()
            tokenize(pairs(), minilm.tokenizer)
            assert capfd.readouterr() == ("", "")
            assert datasets.are_progress_bars_disabled() == shown
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


@pytest.mark.parametrize("length", [4, 7, 8, 9, 40])
def test_cut_rows_are_counted(tokenizer, length, capfd):
    words = ["a b", "a b c d", "a b c d e", "a " * 5000, "é" * 30, "naïve 東京 🙂🙂", "x" * 5]
    rows = Dataset.from_dict({"text": words, "label": [0] * len(words)})
    loaded = LoadedTask(TASKS["reviews"], DatasetDict(train=rows, test=rows.select([0])))
    lengths = [len(tokenizer(text, verbose=False)["input_ids"]) for text in words]
    assert count_cut(loaded, tokenizer, length) == {
        "train": sum(n > length for n in lengths),
        "test": int(lengths[0] > length),
    }
    assert capfd.readouterr() == ("", ""), "no word of a tokenizer on lengths"


def test_both_texts_of_a_cut_pair_count(minilm):
    together = len(minilm.tokenizer("one", "two")["input_ids"])
    for length, cut in ((together - 1, 2), (together, 1)):
        assert count_cut(pairs(), minilm.tokenizer, length) == {"validation": cut}


def test_what_cannot_be_tokenised_or_loaded_is_refused(minilm, products):
    with pytest.raises(ValueError, match="'squad' needs windows"):
        tokenize(LoadedTask(TASKS["squad"], DatasetDict()), minilm.tokenizer)
    with pytest.raises(TypeError, match="tokenizer is None"):
        tokenize(pairs(), None)
    for length in (3, 513):
        with pytest.raises(ValueError, match=f"max_length={length} is not from 4 to 512"):
            tokenize(pairs(), minilm.tokenizer, max_length=length)
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"batch_size={size} is not a positive whole number"):
            make_loader(products["test"], minilm.tokenizer, size)
    with pytest.raises(ValueError, match="choose one"):
        make_loader(products["test"], minilm.tokenizer, 4, shuffle=True, sort_by_length=True)
    with pytest.raises(ValueError, match="add shuffle=True"):
        make_loader(products["test"], minilm.tokenizer, 4, group_by_length=True)
    for rows in (products["test"].select([]), pairs().data["validation"]):
        with pytest.raises(ValueError, match="nothing to load"):
            make_loader(rows, minilm.tokenizer, 4)
