"""Import of folders that PEFT or an export wrote: what it takes, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft_folders import QUERY, SETTINGS, TENSORS, change_settings, change_tensors, peft_config
from peft_models import ARTICLE, CONFIGS, adapted, base, logits, shake
from safetensors.torch import load_file

from lora_tutorial import LoraLinear, merge_lora
from lora_tutorial.adapters.peft import export_peft, import_peft
from lora_tutorial.adapters.peft_layout import NotExpressibleError

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")


def test_qa_outputs_listed_for_a_classifier_is_dropped_with_a_note(tmp_path: Path) -> None:
    """The article lists it; PEFT ignores what it does not find."""
    config = peft_config(ARTICLE)
    config.modules_to_save = ["LayerNorm", "classifier", "qa_outputs"]
    theirs = shake(peft.get_peft_model(base(), config))
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="qa_outputs"):
        ours = import_peft(tmp_path, base())
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.filterwarnings("error:modules_to_save")
def test_heads_that_peft_adds_unasked_are_no_cause_for_a_note(tmp_path: Path) -> None:
    """PEFT lists `classifier` and `score` for every classifier, and a base has one of the two."""
    model = adapted(CONFIGS["query and value"])
    folder = export_peft(model, tmp_path / "adapter")
    change_settings(folder, modules_to_save=["classifier", "score"])
    assert torch.equal(logits(import_peft(folder, base())), logits(model))
    change_settings(folder, modules_to_save=None)
    assert torch.equal(logits(import_peft(folder, base())), logits(model))


def test_a_renamed_adapter_of_peft(tmp_path: Path) -> None:
    theirs = shake(peft.get_peft_model(base(), peft_config(ARTICLE), adapter_name="mine"))
    theirs.save_pretrained(tmp_path)
    assert torch.equal(logits(import_peft(tmp_path / "mine", base())), logits(theirs))


def test_an_adapter_that_peft_saved_in_half_precision(tmp_path: Path) -> None:
    model = adapted(CONFIGS["query and value"])
    folder = export_peft(model, tmp_path / "adapter")
    change_tensors(folder, lambda t: {n: v.bfloat16() for n, v in t.items()})
    ours = import_peft(folder, base())
    assert all(p.dtype == torch.float32 for p in ours.parameters())
    assert torch.allclose(logits(ours), logits(model), atol=0.02)
    assert not torch.equal(logits(ours), logits(model))


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
        (wrong_shape, ValueError, r"\(16, 3\) in the adapter but \(3, 16\)"),
        (not_finite, ValueError, "infinity"),
        (pickled, FileNotFoundError, "pickled"),
        (cut_short, ValueError, "damaged"),
        (one_more, ValueError, r"1 unexpected.*lora_C"),
        (lambda f: (f / SETTINGS).unlink(), FileNotFoundError, "adapter_config.json is missing"),
        (
            lambda f: (f / SETTINGS).write_text("[]"),
            ValueError,
            "adapter_config.json is damaged: it holds a list",
        ),
        (lambda f: change_settings(f, peft_type="IA3"), ValueError, "only 'LORA'"),
        (lambda f: change_settings(f, use_dora=True), NotExpressibleError, "use_dora"),
        (lambda f: change_settings(f, rank_pattern={"query": 4}), NotExpressibleError, "rank_pattern"),
        (lambda f: change_settings(f, init_lora_weights="pissa"), NotExpressibleError, "pissa"),
        (lambda f: change_settings(f, r=5), ValueError, "in the adapter but .*5"),
        (lambda f: change_settings(f, r="3"), ValueError, "its r is '3'"),
        (lambda f: change_settings(f, modules_to_save="classifier"), ValueError, "its modules_to_save is"),
        (lambda f: change_settings(f, target_modules=7), ValueError, "its target_modules is 7"),
        (lambda f: (f / SETTINGS).write_text("{"), ValueError, "is damaged: it is not JSON"),
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
