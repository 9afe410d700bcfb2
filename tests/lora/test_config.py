"""Every bad setting is refused by its name, before any work."""

import math

import pytest

from lora_tutorial import LoraConfig

BAD = [
    ("r", 0),
    ("r", -1),
    ("r", 2.0),
    ("r", True),
    ("r", "8"),
    ("lora_alpha", 0),
    ("lora_alpha", -8),
    ("lora_alpha", math.nan),
    ("lora_alpha", math.inf),
    ("lora_alpha", "8"),
    ("lora_dropout", -0.1),
    ("lora_dropout", 1.0),
    ("lora_dropout", math.nan),
    ("lora_dropout", None),
    ("target_modules", []),
    ("target_modules", ""),
    ("target_modules", "layer.(query"),
    ("target_modules", [""]),
    ("target_modules", [3]),
    ("target_modules", None),
    ("bias", "some"),
    ("bias", True),
    ("modules_to_save", "classifier"),
    ("modules_to_save", [None]),
    ("use_rslora", 1),
    ("init", "zeros"),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        LoraConfig(**{field: value})


@pytest.mark.parametrize(
    ("r", "alpha", "rslora", "scaling"),
    [(2, 8, False, 4.0), (8, 8, False, 1.0), (16, 8, True, 2.0), (4, 1, True, 0.5)],
)
def test_scaling(r, alpha, rslora, scaling):
    assert LoraConfig(r=r, lora_alpha=alpha, use_rslora=rslora).scaling == scaling


def test_round_trip_through_json_types():
    config = LoraConfig(
        r=3, target_modules=["a", "b.c"], modules_to_save=["head"], bias="all", use_rslora=True
    )
    assert LoraConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="rank"):
        LoraConfig.from_dict({"rank": 8})


def test_a_configuration_cannot_be_changed_behind_a_models_back():
    with pytest.raises(AttributeError):
        LoraConfig().r = 4
