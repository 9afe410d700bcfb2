"""MiniLM's weights in RoBERTa's class: a real encoder that needs no hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig

from lora_tutorial.storage import downloads, files

# MiniLM-L6-H384 in RobertaConfig's terms: the vocabulary, [PAD], [CLS] and [SEP] are BERT's. One position
# more than BERT has, because RoBERTa counts positions from pad_token_id + 1.
CONFIG: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 513,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "bos_token_id": 101,
    "eos_token_id": 102,
}
#: Raise it when the conversion changes: a folder that an older one made is then not used.
CONVERSION = 1


def minilm_folder() -> Path:
    """Return a RoBERTa checkpoint folder with MiniLM's weights, made in the cache on first use.

    The weights are those of sentence-transformers/all-MiniLM-L6-v2, a BERT of six layers. BERT and RoBERTa
    compute the same function of the same parameters, but BERT numbers positions from 0 and RoBERTa from
    ``pad_token_id + 1``. So rows of zeros go in front of the position table, one for each number that
    RoBERTa never gives to a real token; hidden states on real tokens are then those of BERT bit for bit.
    The folder's name holds the digest of the source weights. Any RoBERTa class reads it with
    ``from_pretrained``.

    Raises
    ------
    AssetError
        If the weights are not in the cache and cannot be fetched.
    """
    folder = target_folder()
    if not folder.is_dir():
        source = downloads.fetch("minilm")
        downloads.make_once(folder, lambda new: _convert(source, new))
    return folder


def target_folder() -> Path:
    """The folder that ``minilm_folder`` fills, whether or not it exists yet."""
    members = downloads.ASSETS["minilm"].members
    digest = next(digest for path, digest in members.items() if path.endswith("model.safetensors"))
    return downloads.cache_folder() / "encoders" / f"minilm-{digest[:12]}-v{CONVERSION}"


def _convert(source: Path, target: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    del tensors["embeddings.position_ids"]  # a buffer, 0 to 511, which RobertaModel makes itself
    table = tensors["embeddings.position_embeddings.weight"]  # (512, 384)
    shift = torch.zeros(CONFIG["pad_token_id"] + 1, table.shape[1])  # (1, 384)
    tensors["embeddings.position_embeddings.weight"] = torch.cat([shift, table])  # (513, 384)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # save_file makes 0600, which a colleague could not read
    RobertaConfig(**CONFIG, architectures=["RobertaModel"]).save_pretrained(target)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer |= {"truncation": None, "padding": None}  # the makers fixed both at 128 tokens
    files.atomic_write_json(target / "tokenizer.json", tokenizer)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    files.atomic_write_json(target / "tokenizer_config.json", settings)
