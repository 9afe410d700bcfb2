"""Many adapters round one encoder: each as if it were alone, and nothing left of the one before."""

import itertools
import random
import shutil
import statistics
import time

import pytest
import torch
from adapter_folders import as_format_1, contents, moved
from safetensors.torch import load_file
from transformers import RobertaForSequenceClassification

from lora_tutorial import (
    AdapterShelf,
    LoraConfig,
    LoraWrapperRoberta,
    disable_lora,
    inject_lora,
    load_adapter,
    load_encoder,
    merge_lora,
    save_adapter,
    unload_lora,
    unmerge_lora,
)

IDS = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
NOTHING_BESIDE = {"train_biases": False, "train_layer_norms": False}
# Ranks, scales, heads, and what trains beside the adapter, all unlike.
SETTINGS = {
    "biases and norms": {"task_type": "glue", "num_classes": 3, "lora_rank": 3, "lora_alpha": 1},
    "factors alone": {"task_type": "glue", "num_classes": 1, "lora_rank": 2, **NOTHING_BESIDE},
    "spans": {"task_type": "squad_v1", "lora_rank": 4, "lora_alpha": 12, "train_layer_norms": False},
    "other head": {"task_type": "glue", "num_classes": 2, "head": "roberta", "train_biases": False},
    "embeddings": {"task_type": "squad_v2", "lora_rank": 3, "train_embedding": True},
}


def trained(encoder, settings, seed=0):
    """A wrapper as training leaves it: all that trains has moved."""
    torch.manual_seed(seed)
    return moved(LoraWrapperRoberta(model_id=encoder, **settings), seed=seed)


@pytest.fixture(scope="module")
def saved(tiny_roberta, tmp_path_factory):
    """The folder of every adapter in SETTINGS, by name."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(trained(tiny_roberta, settings, seed), folder / str(seed), {"task": name})
        for seed, (name, settings) in enumerate(SETTINGS.items())
    }


@pytest.fixture
def shelf(tiny_roberta, saved):
    shelf = AdapterShelf(tiny_roberta)
    for name, folder in saved.items():
        shelf.add(name, folder)
    return shelf


@pytest.fixture(scope="module")
def alone(saved):
    """Every adapter as `load_adapter` gives it."""
    return {name: load_adapter(folder) for name, folder in saved.items()}


def same(model, expected):
    """Outputs, parameters and what would train: all bit for bit."""
    theirs, ours = expected(IDS), model(IDS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    own = dict(model.named_parameters())
    assert own.keys() == dict(expected.named_parameters()).keys()
    for name, parameter in expected.named_parameters():
        assert torch.equal(own[name], parameter), name
        assert own[name].requires_grad == parameter.requires_grad, name
    assert not model.training and model.adapter_metadata == expected.adapter_metadata
    assert model.task_type == expected.task_type and model.init_args == expected.init_args


def test_each_is_what_it_is_alone_after_every_other(shelf, alone):
    assert shelf.names == list(SETTINGS) and shelf.current is None
    answers = [expected(IDS).to_tuple()[0] for expected in alone.values()]
    assert not any(
        a.shape == b.shape and torch.allclose(a, b, rtol=0.1) for a, b in itertools.combinations(answers, 2)
    ), "adapters that answer alike would prove nothing"
    orders = [*itertools.permutations(SETTINGS, 2), *((name, name) for name in SETTINGS)]
    random.Random(0).shuffle(orders)
    for name in itertools.chain(*orders):
        same(shelf.use(name), alone[name])
        assert shelf.current == name


def test_the_encoder_is_in_memory_once(tiny_roberta, saved):
    base = load_encoder(tiny_roberta).model
    before = {name: (value.data_ptr(), value.clone()) for name, value in base.state_dict().items()}
    shelf = AdapterShelf(base)
    for name, folder in saved.items():
        shelf.add(name, folder)
    for name, folder in saved.items():
        model = shelf.use(name)
        own = {key.removeprefix("model.") for key in load_file(folder / "adapter.safetensors")}
        for key, value in model.model.state_dict().items():
            assert (key in before and value.data_ptr() == before[key][0]) == (key not in own), key
    for name, value in base.state_dict().items():
        assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1])


def test_a_model_that_has_lost_the_encoder_says_so(shelf, alone, tmp_path):
    first = shelf.use("spans")
    shelf.use("factors alone")
    with pytest.raises(RuntimeError, match=r"call use\('spans'\)"):
        first(IDS)
    with pytest.raises(ValueError, match="no LoRA adapter"):
        save_adapter(first, tmp_path / "mixed")
    assert shelf.use("spans") is first
    same(first, alone["spans"])


def test_what_the_shelf_gives_out_saves_and_trains_as_any_model(shelf, saved, alone, tmp_path):
    for name, folder in saved.items():
        assert contents(save_adapter(shelf.use(name), tmp_path / "again", {"task": name})) == contents(folder)
    model = shelf.use("biases and norms").train()
    model.requires_grad_(True)  # of the base too: it must not stay so
    for _ in range(2):
        loss = model(IDS, labels=torch.tensor([0, 1, 2])).loss
        loss.backward()
    torch.optim.SGD([p for n, p in model.named_parameters() if "lora" in n], 0.1).step()
    assert not torch.equal(model.eval()(IDS).logits, alone["biases and norms"](IDS).logits)
    for name in SETTINGS.keys() - {"biases and norms"}:
        same(shelf.use(name), alone[name])


@pytest.mark.parametrize("change", ["merged", "switched off", "unloaded"])
def test_a_merged_encoder_is_not_handed_on(shelf, alone, saved, change):
    model = shelf.use("spans")
    if change == "merged":
        merge_lora(model)
    if change == "unloaded":
        unload_lora(model)
    with disable_lora(model) if change == "switched off" else torch.no_grad():
        for refused in (lambda: shelf.use("other head"), lambda: shelf.add("more", saved["spans"])):
            with pytest.raises(RuntimeError, match="'spans', is merged or switched off: call unmerge_lora"):
                refused()
    assert shelf.current == "spans" and "more" not in shelf.names
    model(IDS)  # it has kept its encoder
    if change != "unloaded":
        unmerge_lora(model)
        same(shelf.use("other head"), alone["other head"])
        same(shelf.use("spans"), alone["spans"])


QUERY_A = "model.encoder.layer.0.attention.self.lora_query_A"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: t.pop(QUERY_A), "missing.*lora_query_A"),
        (lambda s, t: t.pop("finetune_head_classifier.weight"), "missing.*finetune_head_classifier.weight"),
        (lambda s, t: t.update(extra=torch.zeros(1)), "unexpected.*extra"),
        (lambda s, t: t.update({QUERY_A: torch.zeros(1, 24)}), r"lora_query_A is \(1, 24\)"),
        (lambda s, t: t.update({QUERY_A: t[QUERY_A] / 0}), "infinity or NaN"),
        (
            lambda s, t: t.pop("model.encoder.layer.0.output.dense.bias"),
            "not trained on this shelf's encoder",
        ),
        (lambda s, t: s["metadata"].update(max_length=39), "max_length 39, and its encoder takes at most 38"),
        (lambda s, t: s["metadata"].update(labels=["one"]), "names 1 labels, and the head has 3"),
    ],
)
def test_a_damaged_adapter_changes_nothing(shelf, saved, alone, tmp_path, change, message):
    model = shelf.use("biases and norms")
    shutil.copytree(saved["biases and norms"], tmp_path / "bad")
    with pytest.raises(ValueError, match=message):
        shelf.add("bad", as_format_1(tmp_path / "bad", change))
    assert shelf.names == list(SETTINGS) and shelf.current == "biases and norms"
    same(model, alone["biases and norms"])


def test_other_bases_missing_names_and_no_adapters_are_refused(shelf, saved, tiny_roberta, alone, tmp_path):
    other = load_encoder(tiny_roberta).model
    with torch.no_grad():
        other.encoder.layer[1].output.dense.weight[0, 0] += 1e-6
    empty = AdapterShelf(other)
    for folder in saved.values():
        with pytest.raises(ValueError, match="not trained on this shelf's encoder.*Make a shelf of that one"):
            empty.add("a", folder)
    with pytest.raises(ValueError, match="no adapter 'a'; it has none"):
        empty.use("a")
    shelf.use("spans")
    with pytest.raises(ValueError, match="no adapter 'span'; it has biases and norms, factors alone, spans"):
        shelf.use("span")
    with pytest.raises(ValueError, match="an adapter 'spans' already"):
        shelf.add("spans", saved["other head"])
    with pytest.raises(FileNotFoundError, match="no adapter folder: adapter.json is missing"):
        shelf.add("new", tmp_path)
    same(shelf.use("spans"), alone["spans"])
    model = load_encoder(tiny_roberta, model_class=RobertaForSequenceClassification).model
    save_adapter(inject_lora(model, LoraConfig()), tmp_path / "a")
    with pytest.raises(ValueError, match="use load_adapter for it"):
        shelf.add("new", tmp_path / "a")


def test_only_a_whole_plain_encoder_makes_a_shelf(tiny_roberta):
    with pytest.raises(ValueError, match="device meta"):
        AdapterShelf(load_encoder(tiny_roberta, weights="meta").model)
    with pytest.raises(TypeError, match="got LoraWrapperRoberta"):
        AdapterShelf(LoraWrapperRoberta("glue", 2, model_id=tiny_roberta))
    with pytest.raises(TypeError, match="got one with adapters"):
        AdapterShelf(inject_lora(load_encoder(tiny_roberta).model, LoraConfig()))
    with pytest.raises(ValueError, match="give the name instead"):
        AdapterShelf(load_encoder(tiny_roberta, weights="random").model)


@pytest.mark.slow
def test_a_swap_of_minilm_takes_milliseconds(tmp_path):
    shelf, folders = AdapterShelf("minilm"), {}
    for name in ("biases and norms", "spans"):
        folders[name] = save_adapter(trained("minilm", SETTINGS[name]), tmp_path / name)
        shelf.add(name, folders[name])
    seconds = []
    for _ in range(20):
        for name in shelf.names:
            begin = time.perf_counter()
            shelf.use(name)
            seconds.append(time.perf_counter() - begin)
    print(f"median swap {1000 * statistics.median(seconds):.2f} ms, longest {1000 * max(seconds):.2f} ms")
    assert statistics.median(seconds) < 0.05
    for name, folder in folders.items():
        expected = load_adapter(folder)(IDS)
        assert all(torch.equal(value, expected[key]) for key, value in shelf.use(name)(IDS).items())
