"""Every figure to touch, as a chapter would make it, and how a test calls the functions inside one."""

import base64
import re
from xml.etree import ElementTree

import numpy as np

from lora_tutorial import (
    adapter_arithmetic,
    draw_seeds,
    four_bits,
    loss_by_token,
    memory_bill,
    merge_rounding,
    product_orders,
    rank_slider,
    rate_transfer,
    variant_ellipses,
)

NUMBERS = np.random.default_rng(0)
WEIGHTS = NUMBERS.normal(size=64).astype(np.float32) * 0.05
UPDATES = NUMBERS.normal(size=64).astype(np.float32)
MATRIX = np.random.default_rng(1).normal(size=(384, 384))
SIZES = {"small": 124_647_170, "large": 6_738_415_616}
SQUARE = [[2, -1, 0, 1], [0, 1, -2, 1], [1, 0, 1, -1], [-1, 2, 0, 1]]
FACTORS = [[1, 0, -1, 2], [0, 1, 1, 0]], [[0.5, 0], [0, 1], [-0.5, 0.5], [0, -1]]
TWO, DIRECTION = [[1.5, 0.6], [0.2, 0.8]], [[0.6, -0.8]]
MEASURED = {"a task": ([52.3, 52.0, 49.1], 277), "another": ([80.1, 80.3, 80.2], None)}
PIECES, IDS = ["<|im_start|>", "Two", "?\n", " two", "<b>", "<|im_end|>"], [1, 7, 9, 5, 11, 2]
LABELS = [-100, -100, -100, 5, 11, 2]
LOSSES = {"before": [4.0, 3.5, 2.25, 6.0, 0.75], "after": [4.0, 3.0, 0.25, 5.5, 0.25]}
SEARCHES = {
    1: {1.25e-4: 70.2, 2.5e-4: 74.0, 5e-4: 75.5, 1e-3: 71.0},
    8: {2.5e-4: 74.0, 5e-4: 78.0, 1e-3: 77.0, 2e-3: 70.0},
    64: {5e-4: 76.0, 1e-3: 80.0, 2e-3: 79.5, 4e-3: 72.0},
}
FIGURES = {
    "memory_bill": memory_bill(SIZES),
    "four_bits": four_bits(WEIGHTS, "64 weights"),
    "merge_rounding": merge_rounding(WEIGHTS, UPDATES, "64 weights"),
    "adapter_arithmetic": adapter_arithmetic(SQUARE, *FACTORS),
    "draw_seeds": draw_seeds(MEASURED),
    "product_orders": product_orders(),
    "variant_ellipses": variant_ellipses(TWO, DIRECTION),
    "loss_by_token": loss_by_token(PIECES, IDS, LABELS, LOSSES),
    "rank_slider": rank_slider(MATRIX, "a matrix", r=5),
    "rate_transfer": rate_transfer(SEARCHES, slack=1.5, power=-0.2),
}


def call(page, kind, function, *arguments):
    """What a function of a figure gives in the browser."""
    script = f"args => document.querySelector('[data-kind={kind}]').{function}(...args)"
    return page.evaluate(script, list(arguments))


def said(page, kind):
    """The sentence under a figure."""
    return page.inner_text(f"[data-kind={kind}] output")


def picture(kind):
    """The elements of a figure's picture that stand for its numbers: (part, element) in their order."""
    svg = base64.b64decode(re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', FIGURES[kind].data)[1])
    marks = ElementTree.fromstring(svg).iter()
    return [(mark.get("data-part"), mark) for mark in marks if mark.get("data-part")]
