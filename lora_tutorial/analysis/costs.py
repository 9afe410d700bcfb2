"""What one training step costs, from sizes alone: multiplications, and what the backward pass keeps.

The encoder is RoBERTa's, without dropout, with one linear classifier behind tanh on the first token. A
multiplication with its addition counts as two operations (FLOPs). Knows nothing but arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

#: ``floor`` is a frozen base that passes gradients on as deep as adapters need them, and trains nothing.
METHODS = ("full", "floor", "bitfit", "head", "lora", "materialised")
QUERY_VALUE = ("query", "value")
EVERY_LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


@dataclass(frozen=True)
class EncoderSize:
    """The sizes that costs depend on; the defaults are roberta-base's."""

    hidden: int = 768
    intermediate: int = 3072
    layers: int = 12
    heads: int = 12
    labels: int = 2

    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer in one encoder layer, in the order of computation."""
        d, f = self.hidden, self.intermediate
        return dict(zip(EVERY_LINEAR, [(d, d)] * 4 + [(d, f), (f, d)], strict=True))


class Flops(NamedTuple):
    """Operations of one step."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:  # type: ignore[override]
        return Flops(self.forward + other.forward, self.backward + other.backward)


def linear_flops(tokens: int, n_in: int, n_out: int, trains: bool, passes: bool) -> Flops:
    """One linear layer: y = x W'; backward g W where a gradient passes on, g' x where the weight trains.

    Each of the three products takes 2 tokens in out operations. So a frozen layer through which a gradient
    passes costs two thirds of a trained one, however few numbers its adapter has.
    """
    product = 2 * tokens * n_in * n_out
    return Flops(product, product * (trains + passes))


def lora_flops(tokens: int, n_in: int, n_out: int, r: int, passes: bool) -> Flops:
    """The low-rank path alone: two thin products forward; backward three, and one more to pass on a gradient.

    `FastLoraLinear` takes fewer with many tokens, where it forms the sum of weight and update.
    """
    by_A, by_B = 2 * tokens * r * n_in, 2 * tokens * r * n_out
    return Flops(by_A + by_B, 2 * by_B + by_A * (1 + passes))


def materialised_flops(tokens: int, n_in: int, n_out: int, r: int, passes: bool) -> Flops:
    """An adapted layer whose weight W + B A is formed first; so is the weight's whole gradient."""
    delta = 2 * r * n_in * n_out
    return linear_flops(tokens, n_in, n_out, True, passes) + Flops(delta, 2 * delta)


def fast_flops(tokens: int, n_in: int, n_out: int, r: int, forward: bool, backward: bool) -> Flops:
    """An adapted layer as `FastLoraLinear` computes it, which forms W + s B A in the passes that say so.

    A pass that forms the sum multiplies by it once and throws it away; one that does not adds a thin product
    to each token's output or gradient. A's and B's gradients come from thin products either way. The layer
    passes a gradient on.
    """
    product, by_A, by_B = (2 * tokens * size for size in (n_in * n_out, r * n_in, r * n_out))
    delta = 2 * r * n_in * n_out
    return Flops(
        product + by_A + (delta if forward else by_B),
        product + by_B + (delta if backward else by_A) + by_A + by_B,
    )


def attention_flops(size: EncoderSize, batch: int, length: int) -> Flops:
    """Scores and mixtures: two products forward; backward four, and the scores once more."""
    product = 2 * batch * length * length * size.hidden * size.layers
    return Flops(2 * product, 5 * product)


def step_flops(
    size: EncoderSize,
    batch: int,
    length: int,
    method: str,
    r: int = 8,
    adapted: tuple[str, ...] = QUERY_VALUE,
) -> Flops:
    """Operations of one training step, optimiser and elementwise work left out.

    Parameters
    ----------
    size, batch, length
        The encoder, sequences in a batch, tokens in each.
    method
        One of `METHODS`. The classifier trains with ``"full"`` and ``"head"``.
    r, adapted
        Rank, and which of `EVERY_LINEAR` carry an adapter.

    Raises
    ------
    ValueError
        If ``method`` or a name in ``adapted`` is unknown.
    """
    tokens = batch * length
    total = attention_flops(size, batch, length)
    if method == "head":
        total = Flops(total.forward, 0)
    for layer in _walk(size, method, adapted):
        shape = (tokens, layer.n_in, layer.n_out)
        if layer.adapted and method == "materialised":
            total += materialised_flops(*shape, r, layer.passes)
            continue
        total += linear_flops(*shape, method == "full", layer.passes)
        if layer.adapted and method == "lora":
            total += lora_flops(*shape, r, layer.passes)
    trains, d = method in ("full", "head"), size.hidden
    total += linear_flops(batch, d, d, trains, passes=method != "head")
    return total + linear_flops(batch, d, size.labels, trains, passes=True)


def saved_numbers(
    size: EncoderSize,
    batch: int,
    length: int,
    method: str,
    r: int = 8,
    adapted: tuple[str, ...] = QUERY_VALUE,
) -> int:
    """How many numbers the forward pass keeps for the backward pass; 4 bytes each in float32.

    A linear layer keeps its input only if its weight (or an adapter on it) trains. Attention keeps query,
    key, value, its output and one number a head and token; LayerNorm its input and two numbers a token; GELU
    its input. Parameters are not counted, nor the few numbers a sequence that the classifier keeps.
    Arguments and errors as for `step_flops`.
    """
    tokens, d, f = batch * length, size.hidden, size.intermediate
    kept = tokens * (d + 2) * (method in ("full", "bitfit"))  # the LayerNorm of the embeddings
    inputs: set[tuple[int, str]] = set()
    for layer in _walk(size, method, adapted):
        if method == "full" or layer.adapted:
            shared = "query" if layer.name in ("key", "value") else layer.name  # all three read one input
            inputs.add((layer.number, shared))
        if layer.adapted and method == "lora":
            kept += tokens * r
        if layer.adapted and method == "materialised" and layer.passes:
            kept += layer.n_in * layer.n_out  # the formed weight, for g W
        if layer.name == "value" and layer.attends:
            kept += tokens * (3 * d + size.heads)
        if layer.name == "attention.output.dense":
            kept += tokens * d * (layer.passes or (layer.number, layer.name) in inputs)  # attention's output
            kept += tokens * (d + 2) * layer.reaches
        if layer.name == "intermediate.dense":
            kept += tokens * f * layer.reaches
        if layer.name == "output.dense":
            kept += tokens * (d + 2) * layer.reaches
    sizes = {"query": d, "intermediate.dense": d, "output.dense": f, "attention.output.dense": 0}
    kept += sum(tokens * sizes[name] for _, name in inputs)
    return kept + tokens * d * (method in ("full", "head"))  # a view of the last state, kept whole


class _Linear(NamedTuple):
    """A linear layer on the way through the encoder, and which gradients exist there."""

    number: int
    name: str
    n_in: int
    n_out: int
    adapted: bool
    passes: bool  # its input needs a gradient
    attends: bool  # attention in this layer needs one
    reaches: bool  # what comes out of it (and its residual) needs one


def _walk(size: EncoderSize, method: str, adapted: tuple[str, ...]) -> Iterator[_Linear]:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if unknown := sorted(set(adapted) - set(EVERY_LINEAR)):
        raise ValueError(f"No linear layer {', '.join(unknown)}; there are {', '.join(EVERY_LINEAR)}.")
    places = adapted if method in ("floor", "lora", "materialised") else ()
    flows = method in ("full", "bitfit")  # something below the first layer trains
    for number in range(size.layers):
        attends = flows or any(name in places for name in ("query", "key", "value"))
        for name, (n_in, n_out) in size.linears().items():
            passes = attends if name == "attention.output.dense" else flows
            reaches = flows or passes or name in places
            yield _Linear(
                number, name, n_in, n_out, name in places and method != "floor", passes, attends, reaches
            )
            flows = flows if name in ("query", "key", "value") else reaches
