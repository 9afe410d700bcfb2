"""A tiny RoBERTa as the hub has them: byte-level BPE, random weights, pad id 1, one token type."""

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

from lora_tutorial.models.encoders import quiet

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def make_checkpoint(folder, texts, seed=0, max_length=128):
    """Write the checkpoint with its tokenizer into `folder`; positions count from 2."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(list(texts) * 20, vocab_size=320, special_tokens=SPECIAL)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=max_length
    )
    shape = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 36}
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **shape,
    )
    torch.manual_seed(seed)
    with quiet():
        tokenizer.save_pretrained(folder)
        RobertaModel(config).save_pretrained(folder)
    return folder
