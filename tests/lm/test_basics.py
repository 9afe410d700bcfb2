"""One answer to whether something is a language model, and one sentence where nothing can score it."""

import pytest
from transformers import LlamaForCausalLM, RobertaForMaskedLM

from lora_tutorial.lm.basics import is_language_model


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        (LlamaForCausalLM.__name__, True),
        (RobertaForMaskedLM.__name__, False),
        ("LoraWrapperRoberta", False),
        (None, False),
        (["LlamaForCausalLM"], False),
    ],
)
def test_the_class_tells_a_language_model(name, is_one):
    assert is_language_model(name) is is_one
