"""The model of the page "Try it": MiniLM in 8 and 12 bits and the book's adapters, as scripts.

A page opened from a folder may load scripts and nothing else, so the numbers travel as text inside scripts:
15 bits in each character of UTF-16. They come in parts of two megabytes, which a progress bar can count.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_tutorial.adapters.files import stored_adapter
from lora_tutorial.data.tasks import get_task
from lora_tutorial.models.encoders import load_tokenizer
from lora_tutorial.models.minilm import CONFIG, minilm_folder, target_folder
from lora_tutorial.quant import int8
from lora_tutorial.quant.int8 import QuantizedInt8, dequantize_int8, quantize_int8
from lora_tutorial.quant.nf4 import nf4_levels, pack_codes
from lora_tutorial.storage.files import atomic_write_bytes, atomic_write_json, sha256_of

__all__ = [
    "TASKS",
    "FineInt8",
    "describe",
    "made_from",
    "pack",
    "restored",
    "sorted_factors",
    "stored",
    "write_live",
]

#: The tasks of the page, in the order of its buttons.
TASKS = ("sst2", "cola", "mrpc", "rte", "stsb", "squad")
PART_BYTES = 15 * 2**17  # 15 bytes become 8 characters
FIRST_CHARACTER = 0x3400  # 32,768 code units from here on: no quotes, no line ends, no surrogates
NF4_BLOCK = 64
STAMP = "stamp.json"


def sorted_factors(lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
    """Other factors of the same product; their first k directions are its best approximation of rank k.

    With the singular value decomposition ``B A = U S V'`` they are ``sqrt(S) V'`` and ``U sqrt(S)``: to cut
    the rank is to take fewer rows of one and columns of the other (Eckart and Young 1936).

    Parameters
    ----------
    lora_A, lora_B
        (r, in) and (out, r).

    Returns
    -------
    tuple of Tensor
        In the same shapes, float32.
    """
    # B A = Q_B (R_B R_A') Q_A', so the decomposition of a small (r, r) matrix is enough.
    q_b, r_b = torch.linalg.qr(lora_B.double())
    q_a, r_a = torch.linalg.qr(lora_A.double().T)
    U, S, Vh = torch.linalg.svd(r_b @ r_a.T)
    root = S.sqrt()
    return (root[:, None] * (Vh @ q_a.T)).float(), ((q_b @ U) * root).float()


def write_live(folder: Path) -> dict[str, Any]:
    """Write the page's scripts into ``folder``, unless those that are there are made from the same things.

    Parameters
    ----------
    folder
        Made if it does not exist. It gets ``meta.js`` (names, shapes, vocabulary), ``base-00.js`` and so on,
        ``adapters.js`` and a stamp.

    Returns
    -------
    dict
        ``key``, what the files were made from; ``files``, their sizes in bytes by name.

    Raises
    ------
    AssetError
        If MiniLM is not in the cache and cannot be fetched.
    """
    key = made_from()
    if (known := _stamp(folder)) and known["key"] == key:
        return known
    found = {"base": _serialise(_base_tensors()), "adapters": _serialise(_adapter_tensors())}
    meta = _meta() | {
        name: {
            "bytes": len(data),
            "parts": -(-len(data) // PART_BYTES),
            "partBytes": PART_BYTES,
            "tensors": table,
        }
        for name, (data, table) in found.items()
    }
    files = {"meta.js": f"liveData.meta({json.dumps(meta, separators=(',', ':'))});\n".encode()}
    for name, (data, _) in found.items():
        for part, start in enumerate(range(0, len(data), PART_BYTES)):
            text = pack(data[start : start + PART_BYTES])
            # The mark of byte order says UTF-16, whatever a server says about the file.
            script = f'\ufeffliveData.part("{name}",{part},"{text}");\n'
            files[f"{name}-{part:02}.js"] = script.encode("utf-16-le")
    for name, content in files.items():
        atomic_write_bytes(folder / name, content)
    made = {"key": key, "files": {name: len(content) for name, content in files.items()}}
    atomic_write_json(folder / STAMP, made)
    return made


def pack(data: bytes) -> str:
    """Bytes as characters of 15 bits each, the highest bit first; zeros fill the last."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    groups = np.pad(bits, (0, -len(bits) % 15)).reshape(-1, 15)  # (8 n,) -> (characters, 15)
    values = groups @ (1 << np.arange(14, -1, -1))
    return (values + FIRST_CHARACTER).astype("<u2").tobytes().decode("utf-16-le")


def made_from() -> str:
    """A digest of all that decides what is in the files."""
    parts = [target_folder().name, str(nf4_levels().tolist()), version("tokenizers")]
    parts += [sha256_of(Path(source)) for source in (__file__, int8.__file__)]
    for task in TASKS:
        parts += [sha256_of(path) for path in sorted(stored_adapter(task).glob("adapter.*"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamp(folder: Path) -> dict[str, Any] | None:
    """What the folder's stamp says, if the files it names are there in full."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in stamp["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stamp if sizes == stamp["files"] else None


class FineInt8(NamedTuple):
    """A weight in 12 bits: 8-bit codes, and for each four bits more, which a base in 8 bits leaves out.

    Attributes
    ----------
    coarse
        Codes and scales as `quantize_int8` gives them.
    steps
        int8, -8 to 7, in the codes' shape: how many sixteenths of a scale to add.
    """

    coarse: QuantizedInt8
    steps: Tensor


def stored(name: str, tensor: Tensor) -> Tensor | QuantizedInt8 | FineInt8:
    """A tensor of the encoder as the page gets it: linear layers in 12 bits, embeddings in 8, else float32.

    In 8 bits one answer of SQuAD in fifty was another. The two vectors of the token types are left alone: one
    of them is added to every token.
    """
    if tensor.ndim < 2 or len(tensor) == 2:
        return tensor
    coarse = quantize_int8(tensor)
    if not name.startswith("encoder."):
        return coarse
    rest = (tensor - dequantize_int8(coarse)).reshape(-1, coarse.block_size)
    steps = torch.round(16 * rest / torch.where(coarse.scales > 0, coarse.scales, 1)[:, None])
    return FineInt8(coarse, steps.clamp(-8, 7).to(torch.int8).reshape(tensor.shape))


def restored(kept: Tensor | QuantizedInt8 | FineInt8) -> Tensor:
    """The float32 tensor that the page computes with."""
    if isinstance(kept, FineInt8):
        fine = 16 * kept.coarse.codes.to(torch.int16) + kept.steps
        scales = kept.coarse.scales[:, None] / 16
        return (fine.float().reshape(-1, kept.coarse.block_size) * scales).reshape(fine.shape)
    return dequantize_int8(kept) if isinstance(kept, QuantizedInt8) else kept


def _base_tensors() -> dict[str, Tensor | QuantizedInt8 | FineInt8]:
    """The encoder without its pooler, which nothing reads."""
    tensors = load_file(minilm_folder() / "model.safetensors")
    return {name: stored(name, tensors[name]) for name in sorted(tensors) if not name.startswith("pooler.")}


def _adapter_tensors() -> dict[str, Tensor]:
    """What was trained for each task, ``task/name``; the factors sorted by singular value."""
    found: dict[str, Tensor] = {}
    for task in TASKS:
        tensors = load_file(stored_adapter(task) / "adapter.safetensors")
        for name in sorted(tensors):
            if name.endswith("_A"):
                name_B = name.removesuffix("_A") + "_B"
                tensors[name], tensors[name_B] = sorted_factors(tensors[name], tensors[name_B])
        found |= {f"{task}/{name.removeprefix('model.')}": tensors[name] for name in sorted(tensors)}
    return found


def _serialise(tensors: dict[str, Any]) -> tuple[bytes, list[dict[str, Any]]]:
    """All tensors in one piece, the widest numbers first, and a table of where each begins, in bytes."""
    table: list[dict[str, Any]] = []
    parts = {"floats": bytearray(), "codes": bytearray(), "steps": bytearray()}

    def put(kind: str, values: Tensor) -> int:
        at = len(parts[kind])
        parts[kind] += values.contiguous().numpy().tobytes()
        return at

    for name, tensor in tensors.items():
        coarse = tensor.coarse if isinstance(tensor, FineInt8) else tensor
        if isinstance(coarse, QuantizedInt8):
            row: dict[str, Any] = {
                "name": name,
                "shape": list(coarse.codes.shape),
                "block": coarse.block_size,
            }
            row |= {"scales": put("floats", coarse.scales), "codes": put("codes", coarse.codes)}
            if isinstance(tensor, FineInt8):
                row["steps"] = put("steps", pack_codes((tensor.steps + 8).to(torch.uint8).flatten()))
        else:
            row = {"name": name, "shape": list(tensor.shape), "floats": put("floats", tensor)}
        table.append(row)
    before = {"codes": len(parts["floats"]), "steps": len(parts["floats"]) + len(parts["codes"])}
    for row in table:
        row |= {kind: row[kind] + start for kind, start in before.items() if kind in row}
    return b"".join(parts.values()), table


def _meta() -> dict[str, Any]:
    """Whatever is not a weight: the encoder's sizes, the vocabulary, the NF4 levels, the tasks."""
    tokenizer = json.loads((minilm_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    return {
        "layers": CONFIG["num_hidden_layers"],
        "heads": CONFIG["num_attention_heads"],
        "hidden": CONFIG["hidden_size"],
        "inner": CONFIG["intermediate_size"],
        "eps": CONFIG["layer_norm_eps"],
        "firstPosition": CONFIG["pad_token_id"] + 1,
        "vocabulary": sorted(vocabulary, key=vocabulary.__getitem__),
        "special": [token["content"] for token in tokenizer["added_tokens"]],
        "longestWord": tokenizer["model"]["max_input_chars_per_word"],
        "classes": _classes(),
        "nf4": {"levels": nf4_levels().tolist(), "block": NF4_BLOCK},
        "tasks": {task: describe(task) for task in TASKS},
    }


@functools.cache
def _classes() -> dict[str, list[list[int]]]:
    """What the tokenizer does with each character, as ranges of code points, both ends included.

    Asked of the tokenizer itself: its tables are of an older Unicode than a browser's. Characters that vanish
    (controls, accents), those that are spaces, those that stand alone (Han), and punctuation.
    """
    backend = load_tokenizer("minilm").backend_tokenizer
    normalise, split = backend.normalizer.normalize_str, backend.pre_tokenizer.pre_tokenize_str
    found: dict[str, list[list[int]]] = {"vanish": [], "space": [], "alone": [], "punctuation": []}
    for point in range(sys.maxunicode + 1):
        if 0xD800 <= point < 0xE000:  # halves of a pair, no characters
            continue
        character = chr(point)
        after = normalise(character)
        if after == character and not character.isalnum() and len(split(f"a{character}b")) == 3:
            kind = "punctuation"
        elif not after.strip():
            kind = "space" if after else "vanish"
        elif after[0] == " ":
            kind = "alone"
        else:
            continue
        ranges = found[kind]
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return found


def describe(name: str) -> dict[str, Any]:
    """What the page must know of a task's adapter to run it and to say how good it is.

    Raises
    ------
    ValueError
        If its model has a head that the page cannot compute.
    """
    settings = json.loads((stored_adapter(name) / "adapter.json").read_text(encoding="utf-8"))
    wrapper, about, task = settings["base"]["wrapper"], settings["metadata"], get_task(name)
    if wrapper["head"] != "tutorial":
        raise ValueError(f"The page computes the tutorial's head; adapter {name!r} has {wrapper['head']!r}.")
    rank = wrapper["lora_rank"]
    return {
        "columns": about["columns"],
        "labels": about["labels"],
        "range": task.label_range,
        "spans": task.extractive,
        "maxLength": about["max_length"],
        "pooling": wrapper.get("pooling", "first"),
        "rank": rank,
        "scaling": (wrapper["lora_alpha"] or rank) / rank,
        "scores": about["scores"],
        "scoredOn": about["scored_on"],
        "alsoTrained": wrapper["train_biases"] or wrapper["train_layer_norms"],
    }
