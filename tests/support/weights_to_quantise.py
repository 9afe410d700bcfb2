"""Tables of four-bit levels, and weights of every kind to quantise with them."""

from __future__ import annotations

import torch

from lora_tutorial.quant.nf4 import fp4_levels, int4_levels, nf4_levels

TABLES = {"nf4": nf4_levels, "fp4": fp4_levels, "int4": int4_levels}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ties(n: int = 64) -> torch.Tensor:
    """A block whose absolute maximum is 1 and that holds every midpoint between neighbouring levels."""
    block = torch.zeros(n)
    block[0] = 1
    block[1:16] = (nf4_levels()[:-1] + nf4_levels()[1:]) / 2
    return block


def near_ties(n: int) -> torch.Tensor:
    """Midpoints times 1.3 and the floats beside them: the last bit of a division decides their codes."""
    block = ties(n) * 1.3
    middle = block[1:16].clone()
    block[16:31] = torch.nextafter(middle, torch.tensor(2.0))
    block[31:46] = torch.nextafter(middle, torch.tensor(-2.0))
    return block


INPUTS = {
    "random": gaussian(96, 128),
    "wide range": gaussian(64, 64, seed=1) * torch.logspace(-6, 6, 64)[:, None],
    "heavy tails": gaussian(128, 64, seed=2) ** 5,
    "uniform": torch.linspace(-1, 1, 4096),
    "constant": torch.full((64, 64), 0.37),
    "constant negative": torch.full((64, 64), -2.5),
    "zero": torch.zeros(32, 64),
    "some zero blocks": gaussian(32, 64, seed=3) * (torch.arange(32) % 2)[:, None],
    "one zero": torch.zeros(2),
    "tiny": gaussian(32, 64, seed=4) * 1e-30,
    "subnormal": gaussian(32, 64, seed=5) * 1e-39,
    "huge": gaussian(32, 64, seed=6) * 1e30,
    "largest float": torch.full((2, 64), torch.finfo(torch.float32).max),
    "odd length": gaussian(1001, seed=7),
    "odd rows and columns": gaussian(33, 35, seed=8),
    "short last block": gaussian(1000, seed=9),
    "zeros in the short last block": torch.cat([gaussian(64, seed=10), torch.zeros(7)]),
    "one block and one weight": gaussian(65, seed=11),
    "three": torch.tensor([0.5, -1.5, 0.2]),
    "ties": ties(),
    "ties in a short block": ties(48),
    "near ties": torch.cat([near_ties(64), near_ties(64) * -0.7]),
    "near ties in a short block": near_ties(48),
    "float16": gaussian(64, 64, seed=12).half(),
    "bfloat16": gaussian(64, 64, seed=13).bfloat16(),
    "float16, odd length": gaussian(777, seed=14).half(),
    "not contiguous": gaussian(64, 96, seed=15).t(),
    "three dimensions": gaussian(4, 8, 66, seed=16),
}
