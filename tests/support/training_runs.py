"""A short run of a tiny model, for the tests of the loop."""

import tiny

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.training.trainer import train


def run(model=None, loaders=None, **arguments):
    model = model if model is not None else tiny.model()
    recipe = arguments.pop("recipe", tiny.recipe())
    metric = arguments.pop("metric", load_metric("accuracy"))
    return train(model, *(loaders or tiny.loaders()), metric, recipe, **arguments), model
