"""What several test files share."""

import pytest
import torch
from transformers import RobertaConfig, RobertaModel


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory):
    """The folder of a tiny RoBERTa checkpoint with random weights (no tokenizer)."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=60,
        hidden_size=24,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=36,
        max_position_embeddings=40,
        type_vocab_size=1,
    )
    folder = tmp_path_factory.mktemp("tiny-roberta")
    RobertaModel(config).save_pretrained(folder)
    return str(folder)
