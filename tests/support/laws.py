"""The laws of an adapted model, each written once; `parametrize_with_laws` holds every kind to every law.

What they are held for stands in adapted_models.py, where a row more is all that a new variant needs.
"""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import pytest
import torch
from adapted_models import ARCHITECTURES, KINDS, Case, Kind
from layer_checks import relative
from peft_models import TINY
from torch import Tensor, nn
from torch.func import functional_call

from lora_tutorial import (
    VARIANTS,
    count_parameters,
    dequantize_linears,
    disable_lora,
    freeze_parameters_except_lora_and_bias,
    load_adapter,
    lora_modules,
    merge_lora,
    parameters_hash,
    save_adapter,
    unload_lora,
    unmerge_lora,
)
from lora_tutorial.adapters.peft import export_peft, import_peft
from lora_tutorial.adapters.peft_layout import NotExpressibleError
from lora_tutorial.lora.merge import factor_names


def same(a: Tensor, b: Tensor, exact: bool = True, near: float = 1e-5) -> bool:
    return torch.equal(a, b) if exact else relative(a, b) < near


def factors_of(model: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """Every adapted weight by its full name, with its factors."""
    return {f"{n}.{w}": f for n, m in lora_modules(model) for w, f in m.lora_factors().items()}


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(4)  # what dropout draws
    model(**inputs).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def starts_as_the_base(case: Case, tmp_path: Path) -> None:
    model, before = case.fresh(), case.logits(case.base())
    assert same(case.logits(model), before, case.kind.exact)
    assert {type(m) for _, m in lora_modules(model)} == {case.kind.layer}
    endings = [n.rpartition(".")[2] for n, _ in lora_modules(model)]
    selected = ARCHITECTURES[case.architecture].linear or {"self": TINY["num_hidden_layers"]}
    assert {ending: endings.count(ending) for ending in endings} == selected
    assert not same(case.logits(case.moved()), before, exact=False, near=1e-2)


def trains_what_it_says(case: Case, tmp_path: Path) -> None:
    base, model = case.base(), case.fresh()
    heads = ARCHITECTURES[case.architecture].head
    head = {n for n, _ in base.named_parameters() if n.partition(".")[0] in heads}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == factor_names(model) | head
    numbers = 0
    for name, factors in factors_of(model).items():
        layer = base.get_submodule(name.rpartition(".")[0])
        numbers += 3 * (layer.in_features + layer.out_features) + layer.out_features * (len(factors) > 2)
    whole = sum(p.numel() for n, p in base.named_parameters() if n in head)
    assert count_parameters(model) == (numbers + whole, count_parameters(base).total + numbers)
    freeze_parameters_except_lora_and_bias(model, "none")  # freezing again forgets no factor
    assert {n for n, p in model.named_parameters() if p.requires_grad} == factor_names(model)


def takes_over_what_was_there(case: Case, tmp_path: Path) -> None:
    for mode in (True, False):
        base = case.base().train(mode)
        weights, seen = dict(base.named_parameters()), []
        first = next(iter(factors_of(case.fresh()))).rpartition(".")[0]
        owner = first if case.architecture != "wrapper" else first.rpartition(".")[0]
        handle = base.get_submodule(owner).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        model = case.fresh(base)
        assert all(m.training == mode for m in model.modules())
        own = dict(model.named_parameters())
        assert all(own[n] is p for n, p in weights.items() if case.kind.exact)
        case.logits(model)
        if "merge" not in case.kind.refuses:
            case.logits(unload_lora(model))
        assert len(seen) == (1 if "merge" in case.kind.refuses else 2)
        handle.remove()
        case.logits(model)
        assert len(seen) < 3


def computes_the_formula(case: Case, tmp_path: Path) -> None:
    """Output and gradients are those of the base with the adapted weight that the paper gives."""
    model = case.moved().eval()
    found = gradients(model, case.inputs())
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == trainable.keys()
    base = dequantize_linears(case.base()) if "4" in case.kind.layer.__name__ else case.base()
    copies = {n: p.detach().clone().requires_grad_() for n, p in trainable.items()}
    names = {id(p): n for n, p in trainable.items()}
    factors = {w: [copies[names[id(f)]] for f in fs] for w, fs in factors_of(model).items()}
    weights = {w: case.kind.weight(base.get_parameter(w), case.config, *fs) for w, fs in factors.items()}
    heads = {n: p for n, p in copies.items() if n not in factor_names(model)}
    out = functional_call(base, weights | heads, kwargs=case.inputs())
    out.loss.backward()
    assert relative(case.logits(model), out.logits.detach()) < 1e-5
    for name, copied in copies.items():
        assert copied.grad.any() and relative(found[name], copied.grad) < 1e-4, name
    if "merge" not in case.kind.refuses:
        for name, module in lora_modules(model):
            for weight in module.lora_factors():
                full = f"{name}.{weight}"
                now = module.get_parameter(weight) + module.lora_delta(weight)
                assert relative(now, weights[full]) < 1e-5


def training_moves_nothing_else(case: Case, tmp_path: Path) -> None:
    model, losses = case.fresh().train(), []
    start = {n: p.clone() for n, p in model.named_parameters()}
    name = next((n for n, kind in KINDS.items() if kind == case.kind and n in VARIANTS), "lora")
    optimizer = torch.optim.AdamW(VARIANTS[name].groups(model, case.kind.rate))
    for _ in range(4):
        optimizer.zero_grad()
        torch.manual_seed(4)
        loss = model(**case.inputs()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}


def merges_and_unmerges(case: Case, tmp_path: Path) -> None:
    model = case.moved()
    before, state = case.logits(model), {n: p.clone() for n, p in model.named_parameters()}
    if "merge" in case.kind.refuses:
        for act in (merge_lora, unload_lora):
            with pytest.raises(ValueError, match=case.kind.refuses["merge"]):
                act(model)
    else:
        digest, once = parameters_hash(model), case.logits(merge_lora(model))
        assert same(once, before, exact=False) and not any(m.lora_active for _, m in lora_modules(model))
        assert torch.equal(case.logits(merge_lora(model.train())), once)  # again, and in either mode
        assert parameters_hash(model) == digest
        with pytest.raises(RuntimeError, match="unmerge_lora"), disable_lora(model):
            pass
        with pytest.raises(ValueError, match="unmerge_lora"):
            case.fresh().load_state_dict(model.state_dict(), strict=False)
        unmerge_lora(unmerge_lora(model))
    assert torch.equal(case.logits(model), before)
    assert all(torch.equal(p, state[n]) for n, p in model.named_parameters())
    if "merge" not in case.kind.refuses:
        plain = unload_lora(model)
        assert torch.equal(case.logits(plain), once) and not list(lora_modules(plain))
        assert [type(m) for m in plain.modules()] == [type(m) for m in case.base().modules()]
        assert list(plain.state_dict()) == list(case.base().state_dict())


def switches_off(case: Case, tmp_path: Path) -> None:
    model, bare = case.moved(head=False), case.logits(case.base())
    before = case.logits(model)
    assert not same(before, bare, exact=False, near=1e-2)
    with disable_lora(model):
        with disable_lora(model):
            assert same(case.logits(model), bare, case.kind.exact)
        assert same(case.logits(model), bare, case.kind.exact)
    assert torch.equal(case.logits(model), before)


def is_saved_and_loads(case: Case, tmp_path: Path) -> None:
    model, folder = case.moved(), tmp_path / "adapter"
    if "save" in case.kind.refuses:
        with pytest.raises(ValueError, match=case.kind.refuses["save"]):
            save_adapter(model, folder)
        assert not folder.exists()
        return
    before = case.logits(model)
    given = {} if case.architecture == "wrapper" else {"base": case.base()}
    save_adapter(model if "merge" in case.kind.refuses else merge_lora(model), folder)
    again = load_adapter(folder, **given)
    assert same(case.logits(again), before, case.kind.loads_as is None)
    assert {type(m) for _, m in lora_modules(again)} == {case.kind.loads_as or case.kind.layer}
    flags = [(n, p.requires_grad) for n, p in again.named_parameters()]
    assert flags == [(n, p.requires_grad) for n, p in model.named_parameters()]


def reads_a_plain_checkpoint(case: Case, tmp_path: Path) -> None:
    if "4" in case.kind.layer.__name__:
        pytest.skip("bitsandbytes loads its codes from a checkpoint, never from a state")
    model, other = case.fresh(), case.fresh()
    found = model.load_state_dict(case.base().state_dict(), strict=False)
    assert set(found.missing_keys) == factor_names(model) and not found.unexpected_keys
    other.load_state_dict(case.moved().state_dict())
    if case.kind.exact:  # PiSSA's residual is its own
        assert torch.equal(case.logits(other), case.logits(case.moved()))


def equals_peft(case: Case, tmp_path: Path) -> None:
    """Output and gradients are those of PEFT's layers with the same factors, dropout drawn the same."""
    ours, theirs, config = case.moved(), case.base(), case.config
    targets = [w.removesuffix(".weight") for w in factors_of(ours)]
    theirs.is_loaded_in_4bit = "4" in case.kind.layer.__name__
    options = {"r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
    theirs = peft.inject_adapter_in_model(
        peft.LoraConfig(target_modules=targets, **options, **case.kind.peft), theirs
    )
    pairs = []
    for weight, factors in factors_of(ours).items():
        layer = theirs.get_submodule(weight.removesuffix(".weight"))
        own = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        own += [vector.weight for vector in layer.lora_magnitude_vector.values()]
        pairs += zip(own, factors, strict=True)
    for other, mine in pairs:
        other.data.copy_(mine)
    own = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        if p.requires_grad and name in own:
            own[name].data.copy_(p)
    outputs = []
    for model in (ours, theirs):
        model.train(bool(config.lora_dropout))
        gradients(model, case.inputs())
        outputs.append(case.logits(model))
    assert relative(*outputs) < 1e-5
    for other, mine in pairs:
        assert mine.grad.any() and relative(mine.grad, other.grad) < 1e-4


def goes_to_peft_and_back(case: Case, tmp_path: Path) -> None:
    if case.architecture in ("layers", "wrapper") or "4" in case.kind.layer.__name__:
        pytest.skip("PEFT's files name a transformers class; see tests/adapters")
    model = case.moved()
    if "export" in case.kind.refuses:
        with pytest.raises(NotExpressibleError, match=case.kind.refuses["export"]):
            export_peft(model, tmp_path / "peft")
        assert not (tmp_path / "peft").exists()
        return
    before, exact = case.logits(model), case.kind.loads_as is None
    export_peft(model, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(case.base(), tmp_path / "peft")
    assert same(case.logits(theirs), before, exact)
    assert same(case.logits(import_peft(tmp_path / "peft", case.base())), before, exact)
    assert relative(case.logits(theirs.merge_and_unload()), case.logits(merge_lora(model))) < 1e-5


def keeps_to_the_types(case: Case, tmp_path: Path) -> None:
    """Factors are float32, and float64 on a float64 base; outputs and weights have the base's type."""
    if "4" in case.kind.layer.__name__:
        assert {f.dtype for fs in factors_of(case.fresh()).values() for f in fs} == {torch.float32}
        return
    for dtype, kept, near in ((torch.bfloat16, torch.float32, 0.1), (torch.float64, torch.float64, 1e-6)):
        fresh, model = case.fresh(case.base().to(dtype)), case.moved(case.base().to(dtype))
        bare, before = case.logits(case.base().to(dtype), dtype), case.logits(model, dtype)
        assert same(case.logits(fresh, dtype), bare, case.kind.exact, near)
        assert before.dtype == bare.dtype and not same(before, bare, exact=False, near=1e-2)
        assert {f.dtype for fs in factors_of(model).values() for f in fs} == {kept}
        assert same(case.logits(merge_lora(model), dtype), before, exact=False, near=near)
        assert all(model.get_parameter(w).dtype == dtype for w in factors_of(model))


def is_copied_whole(case: Case, tmp_path: Path) -> None:
    model = case.moved()
    before, twin = case.logits(model), copy.deepcopy(model)
    assert torch.equal(case.logits(twin), before)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert not shared
    if "merge" not in case.kind.refuses:
        twin = copy.deepcopy(merge_lora(model))
        unmerge_lora(model)
        assert all(m.merged for _, m in lora_modules(twin))
        assert torch.equal(case.logits(unmerge_lora(twin)), before)


def computes_activations_again(case: Case, tmp_path: Path) -> None:
    expected = gradients(case.moved().train(), case.inputs())
    for reentrant in (False, True):
        model, inputs = case.moved().train(), case.inputs()
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
        for value in inputs.values():
            value.requires_grad_(value.is_floating_point())  # or a reentrant pass gives no gradient
        calls = []
        next(lora_modules(model))[1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found = gradients(model, inputs)
        assert len(calls) == 2 and found.keys() == expected.keys()
        assert all(same(found[n], g, exact=False) for n, g in expected.items())


LAWS = (
    starts_as_the_base,
    trains_what_it_says,
    takes_over_what_was_there,
    computes_the_formula,
    training_moves_nothing_else,
    merges_and_unmerges,
    switches_off,
    is_saved_and_loads,
    reads_a_plain_checkpoint,
    equals_peft,
    goes_to_peft_and_back,
    keeps_to_the_types,
    is_copied_whole,
    computes_activations_again,
)


def parametrize_with_laws(kinds: dict[str, Kind]) -> pytest.MarkDecorator:
    """Every law for every kind in every architecture of its row: arguments ``case`` and ``law``.

    A kind's lines are counted on its first architecture: to count doubles the time, and adds none on others.
    """
    rows = [
        pytest.param(
            Case(kind, place),
            law,
            id=f"{name}-{place}-{law.__name__}",
            marks=() if place == kind.on[0] else pytest.mark.no_cover,
        )
        for name, kind in kinds.items()
        for place in kind.on
        for law in LAWS
    ]
    return pytest.mark.parametrize(("case", "law"), rows)
