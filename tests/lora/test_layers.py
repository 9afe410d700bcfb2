"""What is the plain layer's own, beside the laws (tests/test_laws.py): its start, dropout, and refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lora_tutorial import LoraConfig, LoraLinear, lora_delta


def test_subtracting_would_not_give_the_weight_back():
    torch.manual_seed(0)
    layer = LoraLinear(64, 48, config=LoraConfig(r=4, lora_alpha=16))
    nn.init.normal_(layer.lora_B)
    delta = layer.lora_delta()
    assert not torch.equal((layer.weight + delta) - delta, layer.weight)


class Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen |= {
            tuple(t.shape) for t in (out if isinstance(out, (tuple, list)) else [out]) if torch.is_tensor(t)
        }
        return out


def test_the_product_is_never_formed_while_training():
    layer = LoraLinear(6, 5, config=LoraConfig(r=2))
    with Shapes() as shapes:
        layer(torch.randn(3, 6)).sum().backward()
    assert {(3, 2), (3, 5), (2, 6), (5, 2)} <= shapes.seen
    assert (5, 6) not in shapes.seen
    with Shapes() as shapes:
        layer.lora_delta()
    assert (5, 6) in shapes.seen


def test_dropout_acts_on_the_low_rank_path_only_and_only_in_training():
    torch.manual_seed(0)
    layer = LoraLinear(32, 16, config=LoraConfig(r=4, lora_dropout=0.5)).train()
    x = torch.randn(8, 32)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))  # B = 0: dropout changes nothing
    nn.init.normal_(layer.lora_B)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_kaiming_and_gaussian_have_the_spread_they_name():
    torch.manual_seed(0)
    a = LoraLinear(768, 768, config=LoraConfig(r=8)).lora_A
    assert a.abs().max() <= 768**-0.5 and abs(a.std() * 768**0.5 - 3**-0.5) < 0.02
    assert abs(LoraLinear(768, 768, config=LoraConfig(r=8, init="gaussian")).lora_A.std() * 8 - 1) < 0.05


def test_bad_ranks_and_shapes():
    with pytest.raises(ValueError, match="r = 5 is above 4"):
        LoraLinear(4, 9, config=LoraConfig(r=5))
    with pytest.raises(ValueError, match="lora_A must be"):
        lora_delta(torch.zeros(2, 3), torch.zeros(4, 3), 1.0)


def test_1024_square_at_rank_4_has_0_78_percent():
    layer = LoraLinear(1024, 1024, config=LoraConfig(r=4), device="meta")
    trainable = sum(p.numel() for p in layer.parameters() if p.requires_grad)
    assert trainable == 8192 and layer.weight.numel() == 1_048_576
    assert f"{100 * trainable / layer.weight.numel():.2f}" == "0.78"
