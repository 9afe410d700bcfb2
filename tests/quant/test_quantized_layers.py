"""LoRA on 4-bit layers: equal to PEFT and to the dequantised layer, never merged in place, saved safely."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import BitsAndBytesConfig, RobertaConfig, RobertaForSequenceClassification

from lora_tutorial.adapters.files import load_adapter, save_adapter
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.fast import FastLoraLinear
from lora_tutorial.lora.inject import inject_lora
from lora_tutorial.lora.merge import lora_modules, unload_lora
from lora_tutorial.lora.parameters import parameters_hash
from lora_tutorial.quant.linear4bit import LoraLinear4bit, dequantize_linears, inject_lora_4bit

IN, OUT = 128, 192
LORA = LoraConfig(r=4, lora_alpha=12, target_modules=("up", "down"))


class Layers(nn.Module):
    """Two layers to quantise and a head that stays."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(IN, OUT, bias), nn.Linear(OUT, IN, bias)
        self.head = nn.Linear(IN, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(torch.tanh(self.up(x))))


def quantised(bias: bool = True, scale: float = 1.0, double: bool = True, seed: int = 0) -> Layers:
    torch.manual_seed(seed)
    model = Layers(bias)
    for name in ("up", "down"):
        linear = getattr(model, name)
        layer = Linear4bit(
            linear.in_features, linear.out_features, bias, torch.float32, double, quant_type="nf4"
        )
        layer.load_state_dict({k: v * scale for k, v in linear.state_dict().items()})
        setattr(model, name, layer.to("cpu"))  # quantised by the move
    return model


def adapted(config: LoraConfig = LORA, **options: object) -> Layers:
    model = inject_lora_4bit(quantised(**options), config)
    draw(model)
    return model


def draw(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for _, module in lora_modules(model):
        for factor in (module.lora_A, module.lora_B):
            factor.data.normal_(std=0.1, generator=generator)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, IN, generator=torch.Generator().manual_seed(2))


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    model.train()(x).square().sum().backward()
    return {"x": x.grad} | {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def test_codes_are_taken_over_and_the_old_layer_can_go():
    base = quantised()
    weight = base.up.weight
    layer = LoraLinear4bit.from_linear(base.up, LORA)
    assert layer.weight is weight and weight.module is layer
    assert layer.weight.dtype == torch.uint8 and layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    assert sorted(n for n, p in layer.named_parameters() if p.requires_grad) == ["lora_A", "lora_B"]


def test_each_layer_gets_the_kind_it_needs():
    config = LoraConfig(r=3, target_modules=("up", "head"))
    model = adapted(config)
    assert type(model.up) is LoraLinear4bit and type(model.head) is FastLoraLinear
    assert type(model.down) is Linear4bit


def test_dequantised_model_computes_the_same_and_merges(x):
    model = adapted(LoraConfig(r=4, lora_alpha=12, target_modules=("up", "down"), bias="lora_only"))
    with torch.no_grad():
        before = model(x)
    factors = {n: p for n, p in model.named_parameters() if "lora_" in n}
    dequantize_linears(model)
    assert type(model.up) is FastLoraLinear and model.up.weight.dtype == torch.float32
    assert all(dict(model.named_parameters())[n] is p for n, p in factors.items())
    assert model.up.bias.requires_grad and not model.up.weight.requires_grad
    assert torch.allclose(model(x), before, atol=1e-6)
    unload_lora(model)
    assert type(model.up) is type(model.down) is nn.Linear
    assert torch.allclose(model(x), before, atol=1e-5)
    with pytest.raises(ValueError, match="nothing to dequantise"):
        dequantize_linears(model)


def test_plain_gives_the_4bit_layer_back(x):
    model = adapted()
    plain = model.up.plain()
    assert type(plain) is Linear4bit and plain.weight is model.up.weight
    assert torch.equal(plain(x), Linear4bit.forward(model.up, x))


def test_evaluation_leaves_codes_and_gradients_alone(x):
    """Where the processor has AVX-512 BF16, bitsandbytes alone fails this."""
    model = adapted(bias=False)
    digest, before = parameters_hash(model), gradients(model, x)
    with torch.no_grad():
        model.eval()(x)
    assert parameters_hash(model) == digest
    after = gradients(model, x)
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert not any(m.support_avx512bf16_for_cpu for m in model.modules() if isinstance(m, Linear4bit))


@pytest.mark.parametrize(
    ("prepare", "config", "message"),
    [
        (
            lambda m: m.up.weight.quant_state.__setattr__("packing_format_for_cpu", True),
            LORA,
            "up was evaluated",
        ),
        (lambda m: setattr(m, "down", Linear4bit(OUT, IN)), LORA, "down is not quantised yet"),
        (
            lambda m: None,
            LoraConfig(target_modules=("up",), modules_to_save=("down",)),
            "down is a 4-bit layer",
        ),
    ],
)
def test_what_cannot_train_is_refused_before_any_change(prepare, config, message):
    model = quantised()
    prepare(model)
    with pytest.raises(ValueError, match=message):
        inject_lora_4bit(model, config)
    assert not any(True for _ in lora_modules(model))


def test_the_wrong_maker_and_the_wrong_layer_are_refused():
    with pytest.raises(TypeError, match="inject_lora_4bit"):
        inject_lora(quantised(), LORA)
    with pytest.raises(TypeError, match="Linear4bit; got Linear"):
        LoraLinear4bit.from_linear(nn.Linear(4, 4), LORA)
    with pytest.raises(TypeError, match="from_linear"):
        LoraLinear4bit(4, 4)


def test_adapter_comes_back_onto_the_same_codes_and_scales_only(x, tmp_path):
    model = adapted().eval()
    save_adapter(model, tmp_path / "a")
    again = load_adapter(tmp_path / "a", base=quantised())
    assert type(again.up) is LoraLinear4bit and torch.equal(again(x), model(x))
    # Twice the weights, or the same with 32-bit scales: the codes are equal, the model is another one.
    for other in (quantised(scale=2.0), quantised(double=False)):
        assert torch.equal(other.up.weight, model.up.weight)
        with pytest.raises(ValueError, match="not the one"):
            load_adapter(tmp_path / "a", base=other)
    for other in (Layers(), quantised(seed=3)):
        with pytest.raises(ValueError, match="not the one"):
            load_adapter(tmp_path / "a", base=other)


def test_a_transformers_model_leaves_4_bits_without_a_trace(tmp_path):
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    sizes |= {"vocab_size": 50, "max_position_embeddings": 20, "type_vocab_size": 1, "initializer_range": 0.2}
    torch.manual_seed(0)
    config = RobertaConfig(**sizes)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["classifier"]
    )
    load = RobertaForSequenceClassification.from_pretrained
    model = load(tmp_path / "base", quantization_config=nf4)
    inject_lora_4bit(model, LoraConfig(r=4, lora_alpha=12, modules_to_save=("classifier",)))
    draw(model)
    ids = torch.arange(5, 15).view(2, 5)
    with torch.no_grad():
        before = model.eval()(ids).logits
        unload_lora(dequantize_linears(model)).save_pretrained(tmp_path / "merged")
        plain = load(tmp_path / "merged")
        assert not hasattr(plain.config, "quantization_config")
        assert {p.dtype for p in plain.parameters()} == {torch.float32}
        assert torch.allclose(plain(ids).logits, before, atol=1e-5)
        assert not torch.allclose(load(tmp_path / "base")(ids).logits, before, atol=1e-2)
