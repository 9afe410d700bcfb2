"""The bridge to PEFT against PEFT itself: equal bit for bit both ways, and every way to be wrong is seen."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft_models import ARTICLE, CONFIGS, HEAD, adapted, base, batch, logits, shake
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import RobertaForMaskedLM, RobertaForQuestionAnswering, RobertaModel

from lora_tutorial import LoraConfig, LoraLinear, LoraWrapperRoberta, inject_lora, merge_lora
from lora_tutorial.counting import count_parameters
from lora_tutorial.peft_bridge import export_peft, import_peft
from lora_tutorial.peft_layout import NotExpressibleError

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")

TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
QUERY = "base_model.model.roberta.encoder.layer.0.attention.self.query"


@pytest.fixture(autouse=True)
def _seeded_on_one_thread() -> Iterator[None]:
    """Matrices this small take longer to hand out than to multiply."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def into_peft(model: nn.Module, folder: Path, **options: object) -> nn.Module:
    """Load a folder in PEFT; what it says when a tensor is missing is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing.*"
        )  # PEFT's use of transformers
        return peft.PeftModel.from_pretrained(model, str(folder), **options).eval()


def peft_config(config: LoraConfig) -> peft.LoraConfig:
    values = config.to_dict()
    values["init_lora_weights"] = True if values.pop("init") == "kaiming" else "gaussian"
    return peft.LoraConfig(task_type="SEQ_CLS", **values)


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_computes_what_we_exported(name: str, tmp_path: Path) -> None:
    model = adapted(CONFIGS[name])
    folder = export_peft(model, tmp_path / "adapter")
    theirs = into_peft(base(), folder)
    ours = logits(model)
    assert not torch.allclose(ours, logits(base()), atol=1e-3)  # or the rest would prove nothing
    assert torch.equal(logits(theirs), ours)
    merged = logits(theirs.merge_and_unload())
    assert (merged - ours).abs().max() <= 1e-6
    assert (logits(merge_lora(model)) - ours).abs().max() <= 1e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_we_compute_what_peft_saved(name: str, tmp_path: Path) -> None:
    theirs = shake(peft.get_peft_model(base(), peft_config(CONFIGS[name])))
    theirs.save_pretrained(tmp_path)
    ours = import_peft(tmp_path, base())
    assert not torch.allclose(logits(theirs), logits(base()), atol=1e-3)
    assert torch.equal(logits(ours), logits(theirs))
    assert count_parameters(ours).trainable == count_parameters(theirs).trainable
    assert (logits(merge_lora(ours)) - logits(theirs)).abs().max() <= 1e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_changes_no_bit(name: str, tmp_path: Path) -> None:
    model = adapted(CONFIGS[name])
    export_peft(model, tmp_path / "one")
    again = import_peft(tmp_path / "one", base())
    export_peft(again, tmp_path / "two")
    assert torch.equal(logits(again), logits(model))
    for file in (TENSORS, SETTINGS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_names_format_and_settings_are_pefts(tmp_path: Path) -> None:
    folder = export_peft(adapted(ARTICLE), tmp_path / "ours")
    theirs = peft.get_peft_model(base(), peft_config(ARTICLE))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, saved = load_file(folder / TENSORS), load_file(tmp_path / "theirs" / TENSORS)
    extra = {
        n for n in saved if ".modules_to_save." in n or ".original_module." in n
    }  # PEFT's own repetitions
    assert ours.keys() == saved.keys() - extra
    assert {n: t.shape for n, t in ours.items()} == {n: saved[n].shape for n in ours}
    assert ours[f"{QUERY}.lora_A.weight"].shape == (2, 16)
    assert ours["base_model.model.roberta.encoder.layer.0.intermediate.dense.lora_B.weight"].shape == (28, 2)
    assert f"{QUERY}.base_layer.bias" in ours
    assert "base_model.model.classifier.out_proj.weight" in ours
    with safe_open(folder / TENSORS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    mine, other = (json.loads((f / SETTINGS).read_text()) for f in (folder, tmp_path / "theirs"))
    assert mine["task_type"] == "SEQ_CLS" and mine["peft_type"] == "LORA"
    for key in mine.keys() - {"target_modules", "modules_to_save"}:
        assert mine[key] == other[key], key
    assert set(mine["target_modules"]) == set(other["target_modules"])
    assert set(mine["modules_to_save"]) == {"LayerNorm", "classifier"}


# What a file can have wrong that PEFT loads all the same.


def change_settings(folder: Path, **changes: object) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | changes))


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    save_file(change(load_file(folder / TENSORS)), folder / TENSORS, metadata={"format": "pt"})


def without_prefix(folder: Path) -> None:
    change_tensors(
        folder, lambda t: {n.removeprefix("base_model.") if "lora" in n else n: v for n, v in t.items()}
    )


def half_the_layers(folder: Path) -> None:
    change_tensors(folder, lambda t: {n: v for n, v in t.items() if ".layer.1." not in n})


def one_factor_transposed(folder: Path) -> None:
    def transpose(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # (r, in) and (out, r) read in the other order: the same numbers, the same shapes
        return {n: v.t().contiguous().reshape(v.shape) if "lora_A" in n else v for n, v in tensors.items()}

    change_tensors(folder, transpose)


def no_head(folder: Path) -> None:
    change_tensors(folder, lambda t: {n: v for n, v in t.items() if ".classifier." not in n})
    change_settings(folder, task_type=None, modules_to_save=None)


WRONG = {
    "alpha": lambda folder: change_settings(folder, lora_alpha=3),
    "rsLoRA": lambda folder: change_settings(folder, use_rslora=True),
    "prefix": without_prefix,
    "transposition": one_factor_transposed,
    "subset of targets": half_the_layers,
    "fewer targets named": lambda folder: change_settings(folder, target_modules=["query"]),
    "dropped head": no_head,
}
STRICT = {"prefix", "subset of targets", "fewer targets named", "dropped head"}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_loads_in_peft_and_computes_something_else(name: str, tmp_path: Path) -> None:
    """The control of the tests above: each mistake gets past PEFT, and comparing logits sees it."""
    model = adapted(CONFIGS["query and value"])
    folder = export_peft(model, tmp_path / "adapter")
    WRONG[name](folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(base(), str(folder))
    assert not torch.equal(logits(theirs), logits(model))
    assert (logits(theirs) - logits(model)).abs().max() > 1e-3
    if name in STRICT:  # a file that contradicts itself does not get past us
        with pytest.raises(ValueError, match="does not fit its settings"):
            import_peft(folder, base())
    else:
        assert torch.equal(logits(import_peft(folder, base())), logits(theirs))


def test_merged_and_half_precision_bases_export_the_same_adapter(tmp_path: Path) -> None:
    config = CONFIGS["query and value"]
    model = adapted(config)
    export_peft(model, tmp_path / "plain")
    export_peft(merge_lora(model), tmp_path / "merged")
    assert (tmp_path / "plain" / TENSORS).read_bytes() == (tmp_path / "merged" / TENSORS).read_bytes()
    half = shake(inject_lora(base().to(torch.bfloat16), config))
    folder = export_peft(half, tmp_path / "half")
    assert load_file(folder / TENSORS)[f"{QUERY}.lora_A.weight"].dtype == torch.float32
    assert torch.equal(logits(into_peft(base().to(torch.bfloat16), folder)), logits(half))


def test_any_model_with_linear_layers(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(3)
        return nn.ModuleDict({"net": nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))})

    config = LoraConfig(r=2, lora_alpha=3, target_modules=("net.0", "net.2"), bias="lora_only")
    model = shake(inject_lora(fresh(), config))
    folder = export_peft(model, tmp_path / "adapter")
    theirs, x = into_peft(fresh(), folder), torch.randn(4, 5)
    assert not torch.allclose(model["net"](x), fresh()["net"](x), atol=1e-2)
    assert torch.equal(theirs.base_model.model["net"](x), model["net"](x))
    assert torch.equal(import_peft(folder, fresh())["net"](x), model["net"](x))


def test_a_base_in_four_bits(tmp_path: Path) -> None:
    pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not installed: pip install 'lora-tutorial[quant]'"
    )
    from bitsandbytes.nn import Linear4bit

    from lora_tutorial.quantized_layers import inject_lora_4bit, keep_codes

    def fresh() -> nn.Module:
        torch.manual_seed(3)
        layer = Linear4bit(128, 64, compute_dtype=torch.float32, quant_type="nf4")
        model = nn.ModuleDict({"net": nn.Sequential(layer, nn.Tanh(), nn.Linear(64, 3))}).to("cpu")
        model.is_loaded_in_4bit = True
        return keep_codes(model)  # or bitsandbytes rounds the scales on some CPUs, whoever calls it

    config = LoraConfig(r=3, lora_alpha=7, target_modules=("net.0",))
    model, x = shake(inject_lora_4bit(fresh(), config)), torch.randn(4, 128)
    folder = export_peft(model, tmp_path / "adapter")
    theirs = into_peft(fresh(), folder)
    assert not torch.allclose(model["net"](x), fresh()["net"](x), atol=1e-2)
    assert torch.equal(theirs.base_model.model["net"](x), model["net"](x))
    again = import_peft(folder, fresh())
    assert torch.equal(again["net"](x), model["net"](x))


@pytest.mark.parametrize("model_class", [RobertaForQuestionAnswering, RobertaModel, RobertaForMaskedLM])
def test_other_classes(model_class: type, tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return base(model_class, num_labels=2)

    def answer(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(**batch())[0]

    head = ("qa_outputs",) if model_class is RobertaForQuestionAnswering else ()
    model = shake(inject_lora(fresh(), LoraConfig(r=3, lora_alpha=7, modules_to_save=head)))
    folder = export_peft(model, tmp_path / "adapter")
    assert not torch.allclose(answer(model), answer(fresh()), atol=1e-2)
    assert torch.equal(answer(into_peft(fresh(), folder)), answer(model))
    assert torch.equal(answer(import_peft(folder, fresh())), answer(model))


# The tutorial's wrapper, whose attention is written by hand.


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A checkpoint folder of a tiny encoder, without a head, with a tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "encoder"
    base().roberta.save_pretrained(folder)
    words = {f"w{i}": i for i in range(60)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")), pad_token="w1"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["glue", "squad_v1"])
@pytest.mark.parametrize("rest", [True, False])
def test_the_wrapper_both_ways(task: str, rest: bool, tiny_folder: Path, tmp_path: Path) -> None:
    def wrapper(train: bool) -> LoraWrapperRoberta:
        outputs = 3 if task == "glue" else None
        return LoraWrapperRoberta(
            task, outputs, model_id=str(tiny_folder), lora_rank=3, lora_alpha=7, head="roberta",
            train_biases=train, train_layer_norms=train,
        )  # fmt: skip

    model = shake(wrapper(rest))
    folder = export_peft(model, tmp_path / "adapter")
    theirs = (
        peft.AutoPeftModelForSequenceClassification
        if task == "glue"
        else peft.AutoPeftModelForQuestionAnswering
    )
    loaded = theirs.from_pretrained(str(folder)).eval()
    assert torch.equal(logits(loaded), logits(model))
    other = wrapper(not rest)
    assert not torch.allclose(logits(other), logits(model), atol=1e-2)
    assert torch.equal(logits(import_peft(folder, other)), logits(model))
    assert torch.equal(logits(import_peft(folder)), logits(model))  # LoraLinear on the folder's own base
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "pooler" not in n}
    assert {n for n, p in other.named_parameters() if p.requires_grad and "pooler" not in n} == trained


def test_the_wrapper_says_which_rank_and_scale_it_needs(tiny_folder: Path, tmp_path: Path) -> None:
    folder = export_peft(adapted(CONFIGS["query and value"]), tmp_path / "adapter")
    wrapper = LoraWrapperRoberta("glue", 3, model_id=str(tiny_folder), lora_rank=3, head="roberta")
    with pytest.raises(ValueError, match="lora_rank=3, lora_alpha=7"):
        import_peft(folder, wrapper)


def test_the_tutorials_own_head_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = shake(LoraWrapperRoberta("glue", 3, model_id=str(tiny_folder)))
    with pytest.raises(NotExpressibleError, match=r'head="roberta".*modules_to_save=\["classifier"\]'):
        export_peft(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(ValueError, match="head must be one of tutorial, roberta"):
        LoraWrapperRoberta("glue", 3, model_id=str(tiny_folder), head="bert")


# What has no place in PEFT's format.


class Doubled(LoraLinear):
    """A variant that PEFT's plain LoRA does not compute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def a_variant() -> nn.Module:
    return inject_lora(base(), LoraConfig(), make=Doubled.from_linear)


def one_bias() -> nn.Module:
    model = inject_lora(base(), LoraConfig(modules_to_save=HEAD))
    model.roberta.encoder.layer[0].output.dense.bias.requires_grad_(True)
    return model


def one_frozen_weight() -> nn.Module:
    model = inject_lora(base(), LoraConfig(modules_to_save=HEAD))
    model.roberta.encoder.layer[0].attention.self.query.weight.requires_grad_(True)
    return model


def adapted_head() -> nn.Module:
    return inject_lora(base(), LoraConfig(r=2, target_modules=("query", "classifier.dense")))


def two_ranks() -> nn.Module:
    model = inject_lora(base(), LoraConfig(modules_to_save=HEAD))
    attention = model.roberta.encoder.layer[0].attention.self
    attention.query = LoraLinear.from_linear(attention.query.plain(), LoraConfig(r=2))
    return model


def shared_layer() -> nn.Module:
    layer = nn.Linear(6, 5)
    return inject_lora(nn.ModuleDict({"a": layer, "b": layer}), LoraConfig(r=2, target_modules=("a", "b")))


def tied_embedding() -> nn.Module:
    config = LoraConfig(r=2, modules_to_save=("word_embeddings",))
    return inject_lora(base(RobertaForMaskedLM, tie_word_embeddings=True), config)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (a_variant, "Doubled"),
        (one_bias, "output.dense.bias trains"),
        (one_frozen_weight, "query.weight trains"),
        (adapted_head, "modules_to_save naming that head"),
        (two_ranks, "differ in r"),
        (shared_layer, "under 2 names"),
        (tied_embedding, "shares a weight"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    build: Callable[[], nn.Module], says: str, tmp_path: Path
) -> None:
    model = build()
    with pytest.raises(NotExpressibleError, match=says):
        export_peft(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_export_refuses_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no LoRA adapter"):
        export_peft(base(), tmp_path / "adapter")
    model = adapted(CONFIGS["query and value"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        export_peft(model, tmp_path / "full")
    model.classifier.out_proj.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"classifier\.out_proj\.bias"):
        export_peft(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_is_not_the_one_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = adapted(CONFIGS["query and value"])
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight[5] += 1e-3
    with pytest.raises(ValueError, match=r"word_embeddings.*another base"):
        export_peft(model, tmp_path / "adapter", base=tiny_folder)
    with pytest.raises(
        ValueError, match="draw one at random"
    ):  # RobertaModel's folder has no language model's head
        export_peft(
            inject_lora(base(RobertaForMaskedLM), LoraConfig()), tmp_path / "adapter", base=tiny_folder
        )


# Import.


def test_qa_outputs_listed_for_a_classifier_is_dropped_with_a_note(tmp_path: Path) -> None:
    """The article lists it; PEFT ignores what it does not find."""
    config = peft_config(ARTICLE)
    config.modules_to_save = ["LayerNorm", "classifier", "qa_outputs"]
    theirs = shake(peft.get_peft_model(base(), config))
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="qa_outputs"):
        ours = import_peft(tmp_path, base())
    assert torch.equal(logits(ours), logits(theirs))


def test_a_renamed_adapter_of_peft(tmp_path: Path) -> None:
    theirs = shake(peft.get_peft_model(base(), peft_config(ARTICLE), adapter_name="mine"))
    theirs.save_pretrained(tmp_path)
    assert torch.equal(logits(import_peft(tmp_path / "mine", base())), logits(theirs))


def wrong_shape(folder: Path) -> None:
    change_tensors(folder, lambda t: {n: v.t().contiguous() if "lora_A" in n else v for n, v in t.items()})


def not_finite(folder: Path) -> None:
    change_tensors(folder, lambda t: {n: v / 0 if "lora_A" in n else v for n, v in t.items()})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / TENSORS), folder / "adapter_model.bin")
    (folder / TENSORS).unlink()


def cut_short(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-100])


def one_more(folder: Path) -> None:
    change_tensors(folder, lambda t: t | {f"{QUERY}.lora_C.weight": torch.ones(2, 2)})


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (wrong_shape, ValueError, r"\(16, 3\) in the file, \(3, 16\)"),
        (not_finite, ValueError, "infinity"),
        (pickled, FileNotFoundError, "pickled"),
        (cut_short, ValueError, "damaged"),
        (one_more, ValueError, r"1 unexpected.*lora_C"),
        (lambda f: (f / SETTINGS).unlink(), FileNotFoundError, "adapter_config.json is missing"),
        (lambda f: (f / SETTINGS).write_text("[]"), ValueError, "only 'LORA'"),
        (lambda f: change_settings(f, peft_type="IA3"), ValueError, "only 'LORA'"),
        (lambda f: change_settings(f, use_dora=True), NotExpressibleError, "use_dora"),
        (lambda f: change_settings(f, rank_pattern={"query": 4}), NotExpressibleError, "rank_pattern"),
        (lambda f: change_settings(f, init_lora_weights="pissa"), NotExpressibleError, "pissa"),
        (lambda f: change_settings(f, r=5), ValueError, "needed"),
        (lambda f: change_settings(f, target_modules=["quary"]), ValueError, "quary"),
        (lambda f: change_settings(f, lora_alpha=-1), ValueError, "lora_alpha"),
    ],
)
def test_import_refuses_and_leaves_the_base_alone(
    damage: Callable[[Path], object], error: type[Exception], says: str, tmp_path: Path
) -> None:
    folder = export_peft(adapted(CONFIGS["query and value"]), tmp_path / "adapter")
    damage(folder)
    model = base()
    with pytest.raises(error, match=says):
        import_peft(folder, model)
    assert not any(isinstance(m, LoraLinear) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model), logits(base()))


def test_import_needs_to_know_the_base(tmp_path: Path) -> None:
    folder = export_peft(adapted(CONFIGS["query and value"]), tmp_path / "adapter")
    with pytest.raises(ValueError, match="pass base="):
        import_peft(folder)


def test_a_moved_export_still_finds_its_base(tiny_folder: Path, tmp_path: Path) -> None:
    model = adapted(CONFIGS["query and value"])
    before, names = logits(model), ["no", "maybe", "yes"]
    merge_lora(model)  # the base is then the weights from before
    folder = export_peft(model, tmp_path / "adapter", base=tiny_folder, metadata={"labels": names})
    shutil.move(folder, tmp_path / "elsewhere")
    again = import_peft(tmp_path / "elsewhere")
    assert torch.equal(logits(again), before)
    assert again.config.id2label == dict(enumerate(names))
    with pytest.raises(ValueError, match="2 labels; the model has 3 outputs"):
        export_peft(model, tmp_path / "other", base=tiny_folder, metadata={"labels": ["no", "yes"]})


# One layer against PEFT's.


@pytest.mark.parametrize("use_rslora", [False, True])
def test_one_layer_learns_as_pefts_does(use_rslora: bool) -> None:
    torch.manual_seed(4)
    plain = nn.Sequential(nn.Linear(20, 12))
    state = plain.state_dict()
    config = LoraConfig(r=3, lora_alpha=7, target_modules=("0",), use_rslora=use_rslora)
    ours = inject_lora(plain, config)
    theirs = nn.Sequential(nn.Linear(20, 12))
    theirs.load_state_dict(state)
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(r=3, lora_alpha=7, target_modules=["0"], use_rslora=use_rslora)
    )
    layer = theirs.base_model.model[0]
    pairs = [
        (ours[0].lora_A, layer.lora_A["default"].weight),
        (ours[0].lora_B, layer.lora_B["default"].weight),
    ]
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine.normal_())
    optimizers = [torch.optim.AdamW([p[i] for p in pairs], lr=0.05) for i in (0, 1)]
    x, y = torch.randn(8, 20), torch.randn(8, 12)
    start = ours[0].lora_B.detach().clone()
    for _ in range(3):
        losses = []
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            losses.append(loss)
        assert torch.allclose(ours(x), theirs(x), rtol=0, atol=1e-6)
        for mine, other in pairs:
            assert torch.allclose(mine.grad, other.grad, rtol=0, atol=1e-6) and mine.grad.abs().max() > 1e-3
        for optimizer in optimizers:
            optimizer.step()
        for mine, other in pairs:
            assert torch.allclose(mine, other, rtol=0, atol=1e-6)
    assert (ours[0].lora_B - start).abs().max() > 0.1
    assert not torch.allclose(ours(x), nn.functional.linear(x, state["0.weight"], state["0.bias"]), atol=0.1)
