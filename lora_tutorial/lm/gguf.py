"""Read the GGUF files of llama.cpp: their settings, and weights in blocks of 4 and 8 bits.

The layout is that of GGUF version 3, as docs/gguf.md in the repository ggml-org/ggml has it. Every block
holds 32 weights of a row. ``Q8_0`` is absmax quantisation, as in LLM.int8: a scale and 32 whole numbers.
``Q4_1`` spends four bits a weight on evenly spaced levels between a block's least and largest weight; NF4
spends them on the quantiles of a normal distribution instead.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 32
MAGIC, VERSION = b"GGUF", 3
# Settings of the kinds that struct knows, by the number that the file gives them; 8 is text, 9 a list.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


def dequantize_q8_0(blocks: Tensor) -> Tensor:
    """Weights from blocks of eight bits: ``scale * q``.

    Parameters
    ----------
    blocks
        ``(n, 34)`` bytes: the scale in half precision, then 32 signed bytes.

    Returns
    -------
    Tensor
        ``(n, 32)``, float32.
    """
    scale = blocks[:, :2].contiguous().view(torch.float16).float()  # (n, 1)
    return scale * blocks[:, 2:].contiguous().view(torch.int8).float()  # (n, 32)


def dequantize_q4_1(blocks: Tensor) -> Tensor:
    """Weights from blocks of four bits: ``scale * q + minimum``, with q from 0 to 15.

    Parameters
    ----------
    blocks
        ``(n, 20)`` bytes: scale and minimum in half precision, then 16 bytes. The low halves of these are the
        first 16 weights, the high halves the other 16.

    Returns
    -------
    Tensor
        ``(n, 32)``, float32.
    """
    scale, minimum = blocks[:, :4].contiguous().view(torch.float16).float().split(1, dim=1)  # (n, 1) each
    codes = blocks[:, 4:]  # (n, 16)
    return scale * torch.cat([codes & 15, codes >> 4], dim=1).float() + minimum  # (n, 32)


class _Kind(NamedTuple):
    """How a tensor is stored: weights and bytes of a block, and what makes floats of blocks."""

    name: str
    weights: int
    size: int
    decode: Callable[[Tensor], Tensor]


_KINDS = {
    0: _Kind("F32", 1, 4, lambda blocks: blocks.view(torch.float32)),
    1: _Kind("F16", 1, 2, lambda blocks: blocks.view(torch.float16).float()),
    3: _Kind("Q4_1", BLOCK, 20, dequantize_q4_1),
    8: _Kind("Q8_0", BLOCK, 34, dequantize_q8_0),
}


class StoredTensor(NamedTuple):
    """A tensor in the file.

    Attributes
    ----------
    kind
        ``"F32"``, ``"F16"``, ``"Q4_1"`` or ``"Q8_0"``.
    shape
        As torch has it, the rows first.
    blocks
        ``(n, bytes)``, uint8; a view of the file.
    """

    kind: str
    shape: tuple[int, ...]
    blocks: Tensor

    def dequantize(self) -> Tensor:
        """The weights, float32."""
        decode = next(kind.decode for kind in _KINDS.values() if kind.name == self.kind)
        return decode(self.blocks).reshape(self.shape)


class Gguf(NamedTuple):
    """What `read_gguf` finds: settings and tensors, by name."""

    settings: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_gguf(path: str | os.PathLike[str]) -> Gguf:
    """Read a GGUF file's settings, and where its tensors are; nothing is dequantised yet.

    Raises
    ------
    ValueError
        If the file is no GGUF of version 3, ends too early, or holds a tensor of another kind than F32, F16,
        Q4_1 and Q8_0.
    """
    path = Path(path)
    data = bytearray(path.read_bytes())
    if data[:4] != MAGIC or len(data) < 24 or struct.unpack_from("<I", data, 4)[0] != VERSION:
        raise ValueError(f"{path} is no GGUF file of version {VERSION}.")
    try:
        return _parse(path, data)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again.") from error


def _parse(path: Path, data: bytearray) -> Gguf:
    cursor = _Cursor(data, 8)
    tensor_count, setting_count = cursor.scalar("Q"), cursor.scalar("Q")
    settings = {cursor.text(): cursor.value(cursor.scalar("I")) for _ in range(setting_count)}
    places: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name, dimensions = cursor.text(), cursor.scalar("I")
        shape = tuple(reversed([cursor.scalar("Q") for _ in range(dimensions)]))  # the file has columns first
        places[name] = shape, cursor.scalar("I"), cursor.scalar("Q")
    alignment = settings.get("general.alignment", 32)
    start = -(-cursor.at // alignment) * alignment
    stored = torch.frombuffer(data, dtype=torch.uint8)
    tensors = {}
    for name, (shape, number, offset) in places.items():
        if number not in _KINDS:
            known = ", ".join(kind.name for kind in _KINDS.values())
            raise ValueError(f"{path}: {name} is of GGUF's kind {number}; read are {known}.")
        kind = _KINDS[number]
        weights = 1
        for side in shape:
            weights *= side
        size = weights // kind.weights * kind.size
        block_bytes = stored[start + offset : start + offset + size]
        if len(block_bytes) != size:
            raise ValueError(f"{path} is damaged: it ends before the last weight of {name}; fetch it again.")
        tensors[name] = StoredTensor(kind.name, shape, block_bytes.view(-1, kind.size))
    return Gguf(settings, tensors)


class _Cursor:
    """Takes one value after the other off little-endian bytes."""

    def __init__(self, data: bytearray, at: int) -> None:
        self.data, self.at = data, at

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        if self.at + length > len(self.data):
            raise IndexError("a text runs past the end")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            inner, length = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(length)]
        if kind not in _SCALARS:
            raise IndexError(f"a setting of unknown kind {kind}")
        return self.scalar(_SCALARS[kind])
