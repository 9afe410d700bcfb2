"""A conversation token by token: what counts in the loss, and what each guess costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_tutorial.explorables.frame import touch
from lora_tutorial.explorables.picture import FROZEN, GREY, INK, ORANGE, Picture, cell, drawing, mark, words

if TYPE_CHECKING:
    from IPython.display import HTML

__all__ = ["loss_by_token"]


def loss_by_token(
    pieces: Sequence[str], ids: Sequence[int], labels: Sequence[int], losses: Mapping[str, Sequence[float]]
) -> HTML:
    """Show the tokens of one text, its prompt masked or not, with the loss of each under one or more models.

    Parameters
    ----------
    pieces, ids, labels
        For each token its text, its number, and its label: the number again, or below 0 (-100, which
        cross-entropy leaves out) where the mask is.
    losses
        Model's name -> the loss in nats of each token but the first, masked or not, as
        ``token_losses(logits, input_ids)`` gives it.

    Raises
    ------
    ValueError
        If the lengths do not fit together, no token counts in the loss, or a loss is not finite.
    """
    lengths = {"pieces": len(pieces), "ids": len(ids), "labels": len(labels)}
    lengths |= {name: len(values) + 1 for name, values in losses.items()}
    if not losses or len(set(lengths.values())) > 1:
        raise ValueError(
            f"loss_by_token needs a text, a number and a label for each token, and a loss for each but the "
            f"first; got {lengths}, a loss counted with the first."
        )
    learnt = [place for place, label in enumerate(labels) if place and label >= 0]
    if not learnt or not all(np.isfinite(values).all() for values in losses.values()):
        raise ValueError(
            "loss_by_token needs a token that counts in the loss, after the first, and finite losses."
        )
    means = {
        name: (np.take(values, np.array(learnt) - 1), np.array(values)) for name, values in losses.items()
    }
    static = f"{len(learnt)} of {len(ids)} tokens count in the loss. Mean loss " + "; ".join(
        f"{name}: {masked.mean():.2f} with the prompt masked, {whole.mean():.2f} without"
        for name, (masked, whole) in means.items()
    )
    data = {
        "pieces": list(pieces),
        "ids": [int(number) for number in ids],
        "labels": [int(label) for label in labels],
        "losses": {name: [round(float(loss), 4) for loss in values] for name, values in losses.items()},
    }
    return touch("loss_by_token", data, _tokens_picture(data), f"{static}.")


def _tokens_picture(data: dict[str, Any]) -> Picture:
    """The tokens in lines: grey where the mask is, else the deeper the larger the first model's loss."""
    name, losses = next(iter(data["losses"].items()))
    x, y, marks, letter = 1.0, 1, [], 7.2
    for place, piece in enumerate(data["pieces"]):
        told = piece.replace("\n", "\u21b5").replace(" ", "\u00b7")
        width = letter * len(told) + 4
        if x > 1 and x + width > 420:
            x, y = 1.0, y + 22
        counts = place > 0 and data["labels"][place] >= 0
        deep = min(1, (losses[place - 1] / 16) ** 0.5) if counts else 0
        colour, share = (ORANGE, 0.08 + 0.5 * deep) if counts else (FROZEN, 0.22)
        box = {"x": x, "y": y, "width": width, "height": 20, "rx": 3, "fill": cell(colour, share)}
        marks.append(mark("rect", **box, stroke=GREY, stroke_opacity=0.33))
        fitted = {"textLength": letter * len(told), "lengthAdjust": "spacingAndGlyphs"}
        marks.append(words(x + 2, y + 14, told, data_part=f"{share:.3f}", **fitted))
        x += width + 3
        if "\n" in piece:
            x, y = 1.0, y + 22
    svg = drawing(424, y + 22, mark("g", "".join(marks), font_family="monospace", font_size=12, fill=INK))
    return Picture(svg, f"The tokens in boxes: grey where the prompt is masked, orange by their loss {name}.")
