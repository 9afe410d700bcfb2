"""The laws of an adapted model, each written once, for every kind of adapter in every architecture.

A new kind is one row of KINDS: how it is injected, its class, and its adapted weight by the paper's formula,
written out here apart from the package. Every law then holds it on every architecture that the row names. A
new architecture is one row of ARCHITECTURES. `parametrize_with_laws` makes a test of each pair.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft_models import TINY, base, batch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from lora_tutorial import (
    VARIANTS,
    DoraLinear,
    FastLoraLinear,
    LoraConfig,
    LoraLinear,
    LoraLinear4bit,
    LoraRobertaSelfAttention,
    LoraWrapperRoberta,
    PissaLinear,
    count_parameters,
    dequantize_linears,
    disable_lora,
    freeze_parameters_except_lora_and_bias,
    inject_lora,
    inject_lora_4bit,
    inject_variant,
    keep_codes,
    load_adapter,
    lora_modules,
    merge_lora,
    parameters_hash,
    save_adapter,
    unload_lora,
    unmerge_lora,
    use_fast_attention,
)
from lora_tutorial.adapters.peft import export_peft, import_peft
from lora_tutorial.adapters.peft_layout import NotExpressibleError
from lora_tutorial.lora.merge import factor_names
from lora_tutorial.models.fast_roberta import FastLoraRobertaSelfAttention
from lora_tutorial.quant.linear4bit import quantize_linears

# ---- the architectures: tiny, random, never square where that can be ---------------------------------------

TEXT = {"vocab_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZE = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4}
SPREAD = {"initializer_range": 0.2}


class Layers(nn.Module):
    """Two layers, one without a bias, and a head; float64 and 4 bits are cheap to try in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 20, bias=False))
        self.classifier = nn.Linear(20, 3)
        self.recomputing: dict[str, bool] | None = None

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict[str, bool]) -> None:
        self.recomputing = activation_checkpointing_kwargs

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        y = self.body(x) if self.recomputing is None else checkpoint(self.body, x, **self.recomputing)
        logits = self.classifier(y).mean(1)  # (rows, tokens, 3) -> (rows, 3)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def llama(**changes: Any) -> nn.Module:
    sizes = SIZE | {"num_key_value_heads": 2, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(**TEXT, **sizes, **SPREAD, **changes))


def t5() -> nn.Module:
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**TEXT, **sizes, decoder_start_token_id=0))


def vit() -> nn.Module:
    return ViTForImageClassification(ViTConfig(**SIZE, **SPREAD, image_size=16, patch_size=4, num_labels=5))


def neox() -> nn.Module:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**TEXT, **SIZE, **SPREAD, max_position_embeddings=32))


@functools.cache
def _encoder_folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    base().roberta.save_pretrained(folder.name)
    return folder


def wrapper() -> nn.Module:
    options = {"head": "roberta", "train_biases": False, "train_layer_norms": False}
    return LoraWrapperRoberta("glue", 3, model_id=_encoder_folder().name, lora_rank=None, **options)


class Architecture(NamedTuple):
    """A model, what all-linear selects in it (ending to count), and what trains whole."""

    build: Callable[[], nn.Module]
    linear: dict[str, int]
    head: tuple[str, ...] = ()


_LLAMA = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 2)
ARCHITECTURES = {
    "layers": Architecture(Layers, {"0": 1, "2": 1}, ("classifier",)),
    "roberta": Architecture(base, {"query": 2, "key": 2, "value": 2, "dense": 6}, ("classifier",)),
    "wrapper": Architecture(wrapper, {}, ("finetune_head_classifier",)),
    "llama": Architecture(llama, _LLAMA),
    "llama, tied": Architecture(lambda: llama(tie_word_embeddings=True), _LLAMA),
    "t5": Architecture(t5, dict.fromkeys("qkvo", 6) | {"wi": 4, "wo": 4}),
    "vit": Architecture(
        vit, dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"), 2), ("classifier",)
    ),
    "neox": Architecture(
        neox, dict.fromkeys(("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"), 2)
    ),
}
ENCODERS, DECODERS = ("layers", "roberta"), ("llama", "llama, tied", "t5", "vit", "neox")

# ---- the kinds ---------------------------------------------------------------------------------------------


def low_rank(W: Tensor, config: LoraConfig, A: Tensor, B: Tensor) -> Tensor:
    return W + config.lora_alpha / config.r ** (0.5 if config.use_rslora else 1) * B @ A


def dora(W: Tensor, config: LoraConfig, A: Tensor, B: Tensor, magnitude: Tensor) -> Tensor:
    V = low_rank(W, config, A, B)
    return magnitude[:, None] * V / V.norm(dim=1, keepdim=True).detach()


def pissa(W: Tensor, config: LoraConfig, A: Tensor, B: Tensor) -> Tensor:
    U, S, Vh = torch.linalg.svd(W)
    return low_rank(W - U[:, : config.r] * S[: config.r] @ Vh[: config.r], config, A, B)


def by_hand(model: nn.Module, config: LoraConfig) -> nn.Module:
    LoraWrapperRoberta.replace_self_attention(model.model, config.r, config.lora_alpha)
    freeze_parameters_except_lora_and_bias(model.model, "none")
    model.init_args |= {"lora_rank": config.r, "lora_alpha": config.lora_alpha}
    return model


def in_4_bits(model: nn.Module) -> nn.Module:
    for child in model.children():
        if not isinstance(child, nn.Linear) and "Head" not in type(child).__name__:
            quantize_linears(child)
    return keep_codes(model)


@dataclass(frozen=True)
class Kind:
    """One row: how an adapter is put in, its class, its adapted weight by the formula, and what it cannot."""

    inject: Callable[[nn.Module, LoraConfig], nn.Module]
    layer: type[nn.Module] = LoraLinear
    weight: Callable[..., Tensor] = low_rank
    settings: dict[str, Any] = field(default_factory=dict)
    on: tuple[str, ...] = ENCODERS
    peft: dict[str, Any] = field(default_factory=dict)  # what PEFT's configuration says for it
    prepare: Callable[[nn.Module], nn.Module] = nn.Module.eval
    exact: bool = True  # starts as the base bit for bit; PiSSA does up to rounding
    loads_as: type[nn.Module] | None = None
    refuses: dict[str, str] = field(default_factory=dict)  # "merge", "save", "export": what is said
    rate: float = 1e-2


def variant(name: str) -> Callable[[nn.Module, LoraConfig], nn.Module]:
    return lambda model, config: inject_variant(model, config, name)


def made_by(layer: type[LoraLinear]) -> Callable[[nn.Module, LoraConfig], nn.Module]:
    return lambda model, config: inject_lora(model, config, make=layer.from_linear)


ALL = ENCODERS + DECODERS
KINDS = {
    "lora": Kind(inject_lora, on=ALL),
    "dropout": Kind(inject_lora, settings={"lora_dropout": 0.3, "init": "gaussian"}),
    "fast": Kind(made_by(FastLoraLinear), FastLoraLinear, on=ALL, loads_as=LoraLinear),
    "rslora": Kind(variant("rslora"), settings={"use_rslora": True}, peft={"use_rslora": True}),
    "loraplus": Kind(variant("loraplus"), rate=1e-3),
    "dora": Kind(
        variant("dora"), DoraLinear, dora, on=ALL, peft={"use_dora": True}, refuses={"export": "DoraLinear"}
    ),
    "pissa": Kind(
        variant("pissa"),
        PissaLinear,
        pissa,
        peft={"init_lora_weights": "pissa"},
        exact=False,
        refuses={"save": "pissa_to_lora", "export": "PissaLinear"},
    ),
    "4-bit": Kind(
        inject_lora_4bit,
        LoraLinear4bit,
        on=("layers", "roberta", "llama"),
        prepare=in_4_bits,
        refuses={"merge": "4 bits.*dequantize_linears"},
    ),
    "attention": Kind(by_hand, LoraRobertaSelfAttention, on=("wrapper",)),
    "fast attention": Kind(
        lambda model, config: use_fast_attention(by_hand(model, config)),
        FastLoraRobertaSelfAttention,
        on=("wrapper",),
        loads_as=LoraRobertaSelfAttention,
    ),
}


class Case(NamedTuple):
    """A kind on an architecture. The base and the adapted model are the same at every call."""

    kind: Kind
    architecture: str

    @property
    def config(self) -> LoraConfig:
        head = ARCHITECTURES[self.architecture].head
        settings = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "modules_to_save": head}
        return LoraConfig(**settings | self.kind.settings)

    def base(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.kind.prepare(ARCHITECTURES[self.architecture].build().eval())

    def fresh(self, base: nn.Module | None = None) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.kind.inject(self.base() if base is None else base, self.config)

    def moved(self, base: nn.Module | None = None, head: bool = True) -> nn.Module:
        """As after training: every factor, and the head, off its start."""
        model, generator = self.fresh(base), torch.Generator().manual_seed(2)
        factors = factor_names(model)
        for name, p in model.named_parameters():
            if p.requires_grad and (head or name in factors):
                p.data += 0.15 * torch.randn(p.shape, generator=generator).to(p.dtype)
        return model

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(3)
        if self.architecture == "layers":
            x = torch.randn(2, 5, 32, generator=generator).to(dtype)
            return {"x": x, "labels": torch.tensor([0, 2])}
        if self.architecture == "vit":
            images = torch.randn(2, 3, 16, 16, generator=generator).to(dtype)
            return {"pixel_values": images, "labels": torch.tensor([1, 4])}
        if self.architecture in ("roberta", "wrapper"):
            return batch() | {"labels": torch.tensor([0, 2])}
        ids = torch.randint(3, 48, (2, 7), generator=generator)
        return {"input_ids": ids, "labels": ids}

    @torch.no_grad()
    def logits(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
        return model.eval()(**self.inputs(dtype)).logits


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


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


# ---- the laws ----------------------------------------------------------------------------------------------


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
    import peft

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
    import peft

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
    """Every law for every kind in every architecture of its row: arguments ``case`` and ``law``."""
    rows = [
        pytest.param(Case(kind, place), law, id=f"{name}-{place}-{law.__name__}")
        for name, kind in kinds.items()
        for place in kind.on
        for law in LAWS
    ]
    return pytest.mark.parametrize(("case", "law"), rows)
