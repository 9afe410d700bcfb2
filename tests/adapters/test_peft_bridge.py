"""The bridge to PEFT against PEFT itself: equal bit for bit both ways, and every way to be wrong is seen."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft_folders import QUERY, SETTINGS, TENSORS, change_settings, change_tensors, into_peft, peft_config
from peft_models import ARTICLE, CONFIGS, adapted, base, batch, logits, shake
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import RobertaForMaskedLM, RobertaForQuestionAnswering, RobertaModel

from lora_tutorial import LoraConfig, inject_lora, merge_lora
from lora_tutorial.adapters.peft import export_peft, import_peft
from lora_tutorial.lora.parameters import count_parameters

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")


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

    from lora_tutorial.quant.linear4bit import inject_lora_4bit, keep_codes

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
