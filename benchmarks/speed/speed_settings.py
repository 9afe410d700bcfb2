"""What the speed benchmark can be asked to measure: one setting, its name, and lists of settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

#: Models, and how many positions each has.
POSITIONS = {"roberta-base": 512, "minilm": 512, "smollm2": 8192}
TARGETS = ("query-value", "all-linear")
PRECISIONS = ("fp32", "autocast", "bf16", "nf4")
#: Reference points first, then LoRA in the orders in which it is usually met.
TRAINING = (
    "full", "floor", "head", "bitfit", "materialised", "teaching", "fast", "fused", "peft", "loralib",
)  # fmt: skip
INFERENCE = ("base", "merged", "materialised", "teaching", "fast", "fused", "peft", "loralib")
#: In bf16 and nf4 PEFT is there twice: with float32 factors, as ours and its own default, and with bfloat16.
HALF = "peft-half"
#: These train the same numbers, so their gradients must agree too.
LORA = ("materialised", "teaching", "fast", "fused", "peft", HALF, "loralib")
#: Where the base is packed, only these can be made: nothing is added to its weights, and none of them trains.
PACKED = ("base", "floor", "teaching", "peft", HALF)


@dataclass(frozen=True)
class Setting:
    """One thing to measure.

    Parameters
    ----------
    model
        ``"roberta-base"``, ``"minilm"`` or ``"smollm2"`` (SmolLM2-135M, a language model) with random
        weights, or ``"linear-IN-OUT"``: one linear layer in the middle of a network, so with a gradient for
        its input.
    batch, length
        Sequences in a batch and tokens in each. A single layer sees their product.
    r, lora_dropout
        Of the adapters; ``lora_alpha`` is 2 r. The model itself has no dropout.
    targets
        ``"query-value"`` or ``"all-linear"``, the latter only for a single layer.
    phase
        ``"train"`` (forward, backward, optimiser) or ``"infer"`` (forward without gradients).
    device, precision
        ``"cpu"`` or ``"cuda"``; ``"fp32"``, ``"autocast"`` (bfloat16 products, float32 weights), ``"bf16"``
        (bfloat16 weights) or ``"nf4"`` (as bf16, but linear weights in NF4). Factors are float32 in all.
    checkpointing, compiled
        Whether layers are computed twice to save memory, and whether ``torch.compile`` is used, on each
        layer of the stack.

    Raises
    ------
    ValueError
        If a value is none of the above.
    """

    model: str = "roberta-base"
    batch: int = 16
    length: int = 128
    r: int = 8
    targets: str = "query-value"
    phase: str = "train"
    device: str = "cpu"
    precision: str = "fp32"
    lora_dropout: float = 0.0
    checkpointing: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        def require(field: str, good: bool, accepted: str) -> None:
            if not good:
                raise ValueError(f"{field} must be {accepted}; got {getattr(self, field)!r}.")

        single = self.model.startswith("linear-")
        named = self.layer_sizes is not None if single else self.model in POSITIONS
        require("model", named, f"{', '.join(POSITIONS)} or linear-IN-OUT, as in linear-768-3072")
        for field in ("batch", "length", "r"):
            value = getattr(self, field)
            require(field, type(value) is int and value > 0, "a positive integer")
        require("targets", self.targets in TARGETS, " or ".join(TARGETS))
        require("targets", not single or self.targets == "all-linear", "all-linear for a single layer")
        require("checkpointing", not (single and self.checkpointing), "off for a single layer")
        require("phase", self.phase in ("train", "infer"), "train or infer")
        require("device", self.device in ("cpu", "cuda"), "cpu or cuda")
        require("precision", self.precision in PRECISIONS, ", ".join(PRECISIONS))
        require("lora_dropout", 0 <= self.lora_dropout < 1, "in [0, 1)")
        most = POSITIONS.get(self.model, self.length)
        require("length", self.length <= most, f"at most {most}, the positions that this model has")

    @property
    def layer_sizes(self) -> tuple[int, int] | None:
        """(in, out) of a single layer, ``None`` for a whole model."""
        parts = self.model.split("-")
        if len(parts) == 3 and parts[0] == "linear" and all(p.isdigit() and int(p) > 0 for p in parts[1:]):
            return int(parts[1]), int(parts[2])
        return None

    @property
    def tokens(self) -> int:
        """Tokens in a batch."""
        return self.batch * self.length

    @property
    def name(self) -> str:
        """The stem of the record's file: what differs from the plain case is spelled out."""
        parts = [self.model, f"{self.batch}x{self.length}", f"r{self.r}", self.targets]
        parts += [self.device] if self.device != "cpu" else []
        parts += [self.precision] if self.precision != "fp32" else []
        parts += [f"dropout{self.lora_dropout:g}"] if self.lora_dropout else []
        parts += ["checkpointing"] * self.checkpointing + ["compiled"] * self.compiled
        return "-".join(parts + (["infer"] if self.phase == "infer" else []))

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that make sense here, in the order of reports."""
        names = TRAINING if self.phase == "train" else INFERENCE
        # A single layer has no head, and a language model's is its embedding; its layers have no biases.
        left_out = {"head", "bitfit"} if self.layer_sizes or self.model == "smollm2" else set()
        if self.lora_dropout and self.phase == "train":
            left_out |= {"materialised", "fused"}  # which know no dropout
        by_hand = self.targets == "query-value" and self.model != "smollm2"
        if self.layer_sizes or (self.phase == "infer" and not by_hand):
            left_out.add("fused")  # layers that share an input; without gradients they are called one by one
        if self.precision == "nf4":
            left_out |= set(names) - set(PACKED)
        half = (HALF,) if self.precision in ("bf16", "nf4") else ()
        return (*(name for name in names if name not in left_out), *half)

    def to_dict(self) -> dict[str, Any]:
        """The setting as JSON has it."""
        return asdict(self)


def grid(**values: Iterable[Any]) -> list[Setting]:
    """Every combination; ``tokens`` takes pairs (batch, length). A single layer is always ``all-linear``."""
    known = {field.name for field in fields(Setting)} | {"tokens"}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"No such setting: {', '.join(unknown)}.")
    found: dict[Setting, None] = {}
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        if "tokens" in chosen:
            chosen["batch"], chosen["length"] = chosen.pop("tokens")
        if chosen.get("model", "").startswith("linear-"):
            chosen["targets"] = "all-linear"
        found[Setting(**chosen)] = None
    return list(found)


# 128 to 8,192 tokens a batch.
BATCHES = ((1, 128), (4, 128), (16, 128), (64, 128))
LAYERS = ("linear-768-768", "linear-768-3072", "linear-3072-768")
#: For a GPU: a batch that keeps it busy, and one that waits for Python.
GPU_BATCHES = {"roberta-base": ((64, 256), (8, 128)), "smollm2": ((16, 512), (2, 256))}
GPU_VARIANTS = ("full", "floor", "teaching", "fast", "peft", HALF)


def plan(name: str, device: str = "cpu") -> list[Setting]:
    """The settings of a plan: ``"quick"`` takes seconds, ``"short"`` and ``"gpu"`` minutes, ``"full"`` hours.

    Ordered so that what matters most is there first when a run is cut short.
    """
    if name == "gpu":
        return _gpu(device)
    common = {"device": [device]}
    if name == "quick":
        return [
            *grid(model=["linear-96-64"], tokens=[(2, 16)], r=[4], **common),
            *grid(model=["minilm"], tokens=[(1, 8)], r=[4], **common),
        ]
    short = [
        *grid(model=["roberta-base"], tokens=[(16, 128)], r=[8], targets=["query-value"], **common),
        *grid(model=["roberta-base"], tokens=[(8, 128)], r=[16], targets=["all-linear"], **common),
        *grid(model=LAYERS[:2], tokens=[(1, 128), (16, 128)], r=[8, 64], **common),
        *grid(model=["minilm"], tokens=[(16, 64)], r=[8], targets=TARGETS, **common),
        *grid(model=["roberta-base"], tokens=[(8, 128)], phase=["infer"], targets=["all-linear"], **common),
    ]
    if name == "short":
        return short
    if name != "full":
        raise ValueError(f"plan must be quick, short, gpu or full; got {name!r}.")
    more = [
        *grid(model=LAYERS, tokens=BATCHES, r=[1, 8, 16, 64, 256], **common),
        *grid(model=["roberta-base", "minilm"], tokens=BATCHES[:3], r=[8, 64], targets=TARGETS, **common),
        *grid(model=["roberta-base"], tokens=[(4, 128)], r=[1, 16, 256], targets=TARGETS, **common),
        *grid(model=["roberta-base", "minilm"], tokens=[(64, 128)], r=[8], targets=TARGETS, **common),
        *grid(model=["minilm"], tokens=[(16, 64)], phase=["infer"], targets=TARGETS, **common),
        *grid(model=LAYERS[:1], tokens=[(16, 128)], lora_dropout=[0.1], **common),
        *grid(model=["minilm"], tokens=[(16, 64)], targets=TARGETS, checkpointing=[True], **common),
        *grid(model=["smollm2"], tokens=[(4, 256)], r=[8, 64], targets=["all-linear"], **common),
        *grid(model=["smollm2"], tokens=[(4, 256)], targets=["all-linear"], checkpointing=[True], **common),
    ]
    if device == "cuda":
        same = {"model": ["roberta-base"], "tokens": [(16, 128), (64, 128)], "targets": TARGETS, **common}
        more += grid(precision=["autocast", "bf16"], r=[8, 64], **same)
        more += grid(precision=["autocast"], checkpointing=[True], **same)
        more += grid(precision=["autocast"], compiled=[True], **same)
    return list(dict.fromkeys([*short, *more]))


def _gpu(device: str) -> list[Setting]:
    """Both models, rank 16 on every linear layer: bfloat16, NF4, checkpointing, compiled, small batches."""
    kinds: list[tuple[int, dict[str, Any]]] = [
        (0, {"precision": "bf16"}),
        (0, {"precision": "nf4"}),
        (0, {"precision": "bf16", "checkpointing": True}),
        (0, {"precision": "bf16", "compiled": True}),
        (1, {"precision": "bf16"}),
        (0, {"precision": "autocast"}),
    ]
    return [
        Setting(model, *batches[i], r=16, targets="all-linear", device=device, **kind)
        for i, kind in kinds
        for model, batches in GPU_BATCHES.items()
    ]
