"""The order of the products: counted alike by torch, by Python and in the page."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from touch_figures import call, said

from lora_tutorial import LoraConfig, order_flops, product_orders, sum_pays, whole_gradient_pays
from lora_tutorial.analysis.costs import fast_flops, materialised_flops
from lora_tutorial.lora.fast import FastLoraLinear
from lora_tutorial.lora.layers import LoraLinear

SHAPES = [
    (8, 16, 24, 4),
    (40, 16, 24, 4),
    (40, 24, 16, 2),
    (60, 16, 24, 4),
    (60, 16, 24, 12),
]  # tokens, in, out, r


class Formed(LoraLinear):
    """W + s B A in every forward pass, the rest left to autograd."""

    def forward(self, x):
        return F.linear(x, torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.scaling), self.bias)


def added_in_place(out, first, second, *rest, **more):
    """Operations of ``addmm_``, which torch's counter passes over."""
    return 2 * first[0] * first[1] * second[1]


def counted(kind, tokens, n_in, n_out, r):
    """Operations forward and backward as torch counts them."""
    layer = kind.from_linear(nn.Linear(n_in, n_out), LoraConfig(r=r)).train()
    x, found = torch.randn(tokens, n_in, requires_grad=True), []
    own = {torch.ops.aten.addmm_: added_in_place}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        y = layer(x)
        found.append(counter.get_total_flops())
        y.sum().backward()
        found.append(counter.get_total_flops() - found[0])
    return tuple(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_operations_are_those_that_torch_counts(shape):
    flops = order_flops(*shape)
    assert counted(LoraLinear, *shape) == flops["thin"]
    assert counted(Formed, *shape) == flops["formed"]
    assert counted(FastLoraLinear, *shape) == flops["fast"]


def test_the_shapes_lie_on_every_side_of_the_rule():
    sides = {
        tuple(sum_pays(torch.empty(n, width)) for width in (n_in, n_out)) for n, n_in, n_out, _ in SHAPES
    }
    assert sides == {(False, False), (True, False), (False, True), (True, True)}
    assert {whole_gradient_pays(torch.empty(n, n_in), n_out, r) for n, n_in, n_out, r in SHAPES} == {
        True,
        False,
    }


@pytest.mark.parametrize("tokens", [1, 128, 512, 1024, 2048, 8192])
@pytest.mark.parametrize(("n_in", "n_out"), [(384, 384), (384, 1536), (1536, 384), (768, 768), (576, 192)])
def test_the_whole_gradient_is_taken_where_it_needs_fewer_operations(tokens, n_in, n_out):
    x = torch.empty(1, 1).expand(tokens, n_in)
    sums = [sum_pays(torch.empty(1, 1).expand(tokens, width)) for width in (n_in, n_out)]
    for r in (1, 2, 4, 8, 16, 32, 64, 96, 128, 192):
        fewer = (
            materialised_flops(tokens, n_in, n_out, r, passes=True).total
            < fast_flops(tokens, n_in, n_out, r, *sums).total
        )
        assert whole_gradient_pays(x, n_out, r) == fewer
        assert not whole_gradient_pays(x.bfloat16(), n_out, r)  # there the sum would round an update away


@pytest.mark.slow
def test_the_page_counts_and_decides_as_the_package_does(page):
    for tokens in (1, 256, 257, 1536, 1537, 65_536):
        for n_in, n_out in ((128, 768), (768, 768), (11_008, 4096)):
            for r in (1, 64, 512):
                found = call(page, "product_orders", "orders", tokens, n_in, n_out, r)
                expected = order_flops(tokens, n_in, n_out, r)
                assert found == {name: list(flops) for name, flops in expected.items()}
            forms = sum_pays(torch.empty(1, 1).expand(tokens, n_in))
            assert call(page, "product_orders", "pays", tokens, n_in) == forms


@pytest.mark.slow
def test_a_reader_finds_the_rule_by_moving_the_tokens(page):
    tokens = page.locator("[data-kind=product_orders] [data-in=tokens]")
    tokens.fill("11")
    assert "2,048 > 2 × 768, so it forms the sum" in said(page, "product_orders")
    tokens.fill("10")
    assert "1,024 ≤ 2 × 768, so it takes the thin products" in said(page, "product_orders")
    tokens.fill("0")
    assert said(page, "product_orders").startswith("1 token, 768 to 768")
    assert said(page, "product_orders").endswith("fewest: thin and fast.")
    tokens.fill("12")
    rank = page.locator("[data-kind=product_orders] [data-in=r]")
    rank.fill("9")
    assert "rule: it forms the sum and takes its whole gradient." in said(page, "product_orders")
    assert said(page, "product_orders").endswith("fewest: formed and fast.")
    tokens.fill("0")
    page.locator("[data-kind=product_orders] [data-in=out]").fill("0")
    assert "768 to 128, r = 128." in said(page, "product_orders")  # no layer has a higher rank


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tokens": 1000}, "tokens must be one of"),
        ({"n_in": 100}, "in must be one of 128"),
        ({"n_out": 128, "r": 256}, "above 128"),
    ],
)
def test_a_start_where_no_slider_can_stand_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        product_orders(**sizes)
