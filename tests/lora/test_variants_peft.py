"""Variants beside PEFT's: equal outputs, gradients and steps; what is saved, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft_models import base, logits, shake
from torch import nn

from lora_tutorial import (
    LoraConfig,
    count_parameters,
    load_adapter,
    lora_modules,
    merge_lora,
    save_adapter,
    unmerge_lora,
)
from lora_tutorial.adapters.peft import export_peft, import_peft
from lora_tutorial.adapters.peft_layout import NotExpressibleError
from lora_tutorial.lora.variants import inject_variant, loraplus_groups, pissa_to_lora, variant_of

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 6, bias=False), nn.Linear(6, 2))


PEFT = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


def pair(variant: str, shift: float = 0.2, dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """Our model and PEFT's with the same parameters, each set off its start by the same numbers."""
    options = {"r": 3, "lora_alpha": 7, "lora_dropout": dropout}
    ours = inject_variant(layers(), LoraConfig(target_modules=("0", "2"), **options), variant)
    config = peft.LoraConfig(target_modules=["0", "2"], **options, **PEFT.get(variant, {}))
    theirs = peft.get_peft_model(layers(), config)
    for mine, other in zip(parameters(ours), peft_parameters(theirs), strict=True):
        if variant != "pissa":
            other.data.copy_(mine)
        else:
            assert (mine - other).abs().max() < 1e-6  # both start from the same decomposition
        step = shift * torch.randn(mine.shape)
        mine.data += step
        other.data += step
    return ours.train(), theirs.train()


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return [f for _, m in lora_modules(model) for f in m.lora_factors()["weight"]]


def peft_parameters(model: nn.Module) -> list[nn.Parameter]:
    found = []
    for name in "02":
        layer = model.base_model.model.get_submodule(name)
        found += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        found += [v.weight for v in layer.lora_magnitude_vector.values()]
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("variant", PEFT)
def test_peft_gives_the_same_outputs_and_gradients(variant, dropout):
    if variant == "pissa" and dropout:
        pytest.skip("refused here")
    ours, theirs = pair(variant, dropout=dropout)
    x, base_output = torch.randn(5, 10), layers()(torch.zeros(1, 10))
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(3)  # the same inputs are dropped
        outputs.append(model(x))
        outputs[-1].square().mean().backward()
    assert outputs[0].shape == (5, 2) and not torch.allclose(outputs[0], base_output.expand(5, 2))
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-6
    for mine, other in zip(parameters(ours), peft_parameters(theirs), strict=True):
        assert mine.grad.any() and (mine.grad - other.grad).abs().max() <= 1e-6
    with torch.no_grad():
        merged = merge_lora(ours.eval())(x)
        assert (merged - theirs.merge_and_unload()(x)).abs().max() <= 1e-6


def test_loraplus_groups_hold_every_trainable_parameter_once():
    model = inject_variant(base(), LoraConfig(bias="all", modules_to_save=("classifier",)), "dora")
    groups = loraplus_groups(model, 1e-4, ratio=8, weight_decay=0.1)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}
    names = {id(p): n for n, p in model.named_parameters()}
    matrices, second, vectors = groups
    assert {names[id(p)].rpartition(".")[2] for p in second["params"]} == {"lora_B"}
    assert {p.ndim for p in vectors["params"]} == {1} and {p.ndim for p in matrices["params"]} == {2}
    assert [g["lr"] for g in groups] == [1e-4, 8e-4, 8e-4]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.1, 0.0]
    assert (
        len(loraplus_groups(inject_variant(layers(), LoraConfig(r=2, target_modules=("0",))), 1e-3)) == 2
    )  # no empty group


def test_pefts_loraplus_optimiser_takes_the_same_steps():
    from peft.optimizers import create_loraplus_optimizer

    ours, theirs = pair("lora")
    others = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=8, loraplus_weight_decay=0.1
    )
    mine = torch.optim.AdamW(loraplus_groups(ours, 1e-2, ratio=8, weight_decay=0.1))
    x, starts = torch.randn(5, 10), [p.detach().clone() for p in parameters(ours)]
    for _ in range(3):
        for model, optimizer in ((ours, mine), (theirs, others)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    moved = []
    for own, other, start in zip(parameters(ours), peft_parameters(theirs), starts, strict=True):
        assert (own - other).abs().max() <= 1e-6
        moved.append((own - start).abs().mean())
    assert min(moved[1], moved[3]) > 4 * max(moved[0], moved[2])  # B, and A beside it


# ---- saving ------------------------------------------------------------------------------------------------

TINY = LoraConfig(r=3, lora_alpha=7, modules_to_save=("classifier",))


def test_a_dora_adapter_comes_back_with_its_magnitudes(tmp_path: Path):
    model = shake(inject_variant(base(), TINY, "dora"))
    save_adapter(merge_lora(model), tmp_path / "a")
    again = load_adapter(tmp_path / "a", base=base())
    assert variant_of(again) == "dora" and torch.equal(logits(again), logits(unmerge_lora(model)))
    assert not torch.allclose(logits(again), logits(base()), atol=1e-2)
    assert count_parameters(again).trainable == count_parameters(model).trainable
    with pytest.raises(NotExpressibleError, match="DoraLinear"):
        export_peft(model, tmp_path / "peft")
    theirs = peft.get_peft_model(base(), peft.LoraConfig(task_type="SEQ_CLS", use_dora=True))
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(NotExpressibleError, match="use_dora=True"):
        import_peft(tmp_path / "theirs", base())


@pytest.mark.parametrize("rslora", [False, True])
def test_a_pissa_adapter_is_saved_as_plain_lora_of_twice_the_rank(rslora, tmp_path: Path):
    config = LoraConfig(
        r=3, lora_alpha=7, use_rslora=rslora, bias="lora_only", modules_to_save=("classifier",)
    )
    model = shake(inject_variant(base(), config, "pissa"))
    wanted = logits(model)
    assert not torch.allclose(wanted, logits(base()), atol=1e-2)
    with pytest.raises(ValueError, match="pissa_to_lora"):
        save_adapter(model, tmp_path / "a")
    with pytest.raises(NotExpressibleError, match="PissaLinear"):
        export_peft(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    plain = pissa_to_lora(merge_lora(model), base()).eval()
    assert plain.lora_config.r == 6 and plain.lora_config.scaling == pytest.approx(config.scaling)
    torch.testing.assert_close(logits(plain), wanted, rtol=1e-5, atol=1e-5)
    save_adapter(plain, tmp_path / "a")
    assert torch.equal(logits(load_adapter(tmp_path / "a", base=base())), logits(plain))
    export_peft(plain, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path / "peft")
    assert torch.equal(logits(theirs), logits(plain))


def test_conversion_refuses_another_base_and_other_adapters():
    model, other = inject_variant(base(), TINY, "pissa"), base()
    other.roberta.encoder.layer[1].attention.self.query.weight.data *= 1.01
    with pytest.raises(
        ValueError, match=r"another roberta\.encoder\.layer\.1\.attention\.self\.query\.weight"
    ):
        pissa_to_lora(model, other)
    with pytest.raises(ValueError, match="not PiSSA's"):
        pissa_to_lora(inject_variant(base(), TINY), base())
    wide, fresh = inject_variant(base(), LoraConfig(r=9), "pissa"), base()
    with pytest.raises(ValueError, match="r = 18 is above 16"):
        pissa_to_lora(wide, fresh)
    assert not list(lora_modules(other)) and not list(lora_modules(fresh))
