"""Variants beside PEFT's: LoRA+ takes the same steps, PiSSA is saved as plain LoRA, DoRA is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft_models import base, logits, shake
from torch import nn

from lora_tutorial import (
    LoraConfig,
    load_adapter,
    lora_modules,
    merge_lora,
    save_adapter,
)
from lora_tutorial.adapters.peft import export_peft
from lora_tutorial.adapters.peft_layout import NotExpressibleError
from lora_tutorial.lora.variants import inject_variant, loraplus_groups, pissa_to_lora

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 6, bias=False), nn.Linear(6, 2))


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return [f for _, m in lora_modules(model) for f in m.lora_factors()["weight"]]


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

    ours = shake(inject_variant(layers(), LoraConfig(r=3, lora_alpha=7, target_modules=("0", "2"))))
    theirs = peft.get_peft_model(layers(), peft.LoraConfig(r=3, lora_alpha=7, target_modules=["0", "2"]))
    found = [theirs.base_model.model.get_submodule(n) for n in "02"]
    others = [getattr(layer, f"lora_{x}")["default"].weight for layer in found for x in "AB"]
    for mine, other in zip(parameters(ours), others, strict=True):
        other.data.copy_(mine)
    their_optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=8, loraplus_weight_decay=0.1
    )
    optimizer = torch.optim.AdamW(loraplus_groups(ours, 1e-2, ratio=8, weight_decay=0.1))
    x, starts = torch.randn(5, 10), [p.detach().clone() for p in parameters(ours)]
    for _ in range(3):
        for model, steps in ((ours, optimizer), (theirs, their_optimizer)):
            steps.zero_grad()
            model(x).square().mean().backward()
            steps.step()
    moved = []
    for own, other, start in zip(parameters(ours), others, starts, strict=True):
        assert (own - other).abs().max() <= 1e-6
        moved.append((own - start).abs().mean())
    assert min(moved[1], moved[3]) > 4 * max(moved[0], moved[2])  # B, and A beside it


# ---- saving ------------------------------------------------------------------------------------------------

TINY = LoraConfig(r=3, lora_alpha=7, modules_to_save=("classifier",))


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
