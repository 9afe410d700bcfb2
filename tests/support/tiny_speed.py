"""The models and the plan of the speed benchmark, made small enough for a test."""

import speed_settings
import speed_variants

from lora_tutorial.analysis import costs
from lora_tutorial.models.encoders import load_encoder

SIZE = costs.EncoderSize(hidden=24, intermediate=40, layers=3, heads=4)
LLAMA = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
}


def shrink(monkeypatch):
    """Three layers, 24 wide (the encoders) and 32 (the language model); batches of the GPU plan to match."""
    small = {
        "num_hidden_layers": SIZE.layers,
        "hidden_size": SIZE.hidden,
        "intermediate_size": SIZE.intermediate,
        "num_attention_heads": SIZE.heads,
        "vocab_size": 300,
        "initializer_range": 0.2,
    }
    monkeypatch.setattr(speed_variants, "load_encoder", lambda *a, **k: load_encoder(*a, **(k | small)))
    monkeypatch.setattr(speed_variants, "SMOLLM2", speed_variants.SMOLLM2 | LLAMA)
    batches = dict.fromkeys(speed_settings.GPU_BATCHES, ((2, 16), (1, 8)))
    monkeypatch.setattr(speed_settings, "GPU_BATCHES", batches)
