"""``lora-tutorial predict``, ``generate``, ``chat`` and ``params``: use an adapter, count parameters."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lora_tutorial.cli import checks
from lora_tutorial.cli.screen import console, remark, say


def predict(
    adapter: Annotated[
        Path, typer.Argument(help="A folder that train has made, or mrpc and the like: one that comes along.")
    ],
    texts: Annotated[
        list[str],
        typer.Argument(help="One text each; for pairs, two in turn; for squad, a text and a question."),
    ],
) -> None:
    """Load an adapter and label texts with it, or answer questions about them."""
    folder = checks.find_adapter(adapter)
    settings = checks.read_trained_settings(folder)
    about = settings["metadata"]
    spans, width = "context" in about["columns"], len(about["columns"])
    if len(texts) % width:
        kind = "a text and a question about it" if spans else " and ".join(about["columns"])
        raise ValueError(f"Task {about['task']} takes {kind}: give two texts in turn; got {len(texts)}.")
    for place, text in enumerate(texts, start=1):
        if not text.strip():
            raise ValueError(f"Text {place} is empty; write one, or leave it out.")
    checks.check_base(settings)

    from lora_tutorial.adapters.files import base_of, load_adapter
    from lora_tutorial.models.encoders import load_tokenizer, quiet

    with quiet():
        model, tokenizer = load_adapter(folder), load_tokenizer(base_of(folder, settings))
        answer = _answer_questions if spans else _label
        lines = answer(model, tokenizer, about, [texts[place::width] for place in range(width)])
    for line in lines:
        say(line)


def _label(model: Any, tokenizer: Any, about: dict[str, Any], columns: list[list[str]]) -> list[str]:
    """A line for each row: the class and its probability, or the number, before the text."""
    import torch

    longest = about["max_length"]
    for row, ids in enumerate(tokenizer(*columns)["input_ids"], start=1):
        if len(ids) > longest:
            what = "Text" if len(columns) == 1 else "Pair"
            remark(f"{what} {row} has {len(ids):,} tokens and was cut: the first {longest} were read.")
    batch = tokenizer(*columns, truncation=True, max_length=longest, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits  # (texts, classes), or (texts, 1) for a regression
    lines = []
    for row, text in zip(logits, zip(*columns, strict=True), strict=True):
        if about["labels"]:
            probability, best = row.softmax(-1).max(-1)
            answer = f"{about['labels'][best]:>12} {probability:.3f}"
        else:
            answer = f"{row.item():+.2f}"
        lines.append(f"{answer}  {' | '.join(text)}")
    return lines


def _answer_questions(
    model: Any, tokenizer: Any, about: dict[str, Any], columns: list[list[str]]
) -> list[str]:
    """A line for each question: the answer and its place, or that the text has none."""
    from datasets import Dataset

    from lora_tutorial.squad.evaluator import Reader

    contexts, questions = columns
    ids = [str(row) for row in range(1, len(questions) + 1)]
    rows = Dataset.from_dict({"id": ids, "question": questions, "context": contexts})
    threshold = about.get("scores", {}).get("threshold", float("inf"))
    lines = []
    for answer in Reader(rows, tokenizer, about["max_length"])(model):
        span = answer.spans[0]
        if answer.text(threshold):
            lines.append(f"{span.text}  (characters {span.start} to {span.end} of the text)")
        else:
            lines.append(f"no answer in the text  (the best guess was {span.text!r})")
    return lines


Adapter = Annotated[
    Path, typer.Argument(help="A folder that train or import-peft made of a language model's.")
]
Longest = Annotated[int, typer.Option("--max-new-tokens", help="Where to cut an answer that does not end.")]
Heat = Annotated[float, typer.Option("--temperature", help="0 for the likeliest token, above it for draws.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the draws.")]
Bare = Annotated[bool, typer.Option("--base-only", help="Without the adapter, to compare.")]


def generate(
    adapter: Adapter,
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    max_new_tokens: Longest = 128,
    temperature: Heat = 0.0,
    seed: Seed = 0,
    base_only: Bare = False,
) -> None:
    """Let a language model with an adapter answer, word by word."""
    folder, settings = _check_writer(adapter, max_new_tokens, temperature, seed)
    asked = sys.stdin.read() if prompt == "-" else prompt
    if not asked.strip():
        raise ValueError("The prompt is empty; write what the model is to answer.")
    loaded = _load_writer(folder, settings, base_only)
    messages = [{"role": "user", "content": asked}]
    _show(_pieces(*loaded, messages, max_new_tokens, temperature, seed))


def chat(
    adapter: Adapter,
    max_new_tokens: Longest = 256,
    temperature: Heat = 0.0,
    seed: Seed = 0,
    base_only: Bare = False,
) -> None:
    """Talk with a language model that has an adapter; it remembers what was said. Ctrl-D ends."""
    folder, settings = _check_writer(adapter, max_new_tokens, temperature, seed)
    loaded = _load_writer(folder, settings, base_only)
    messages: list[dict[str, str]] = []
    while (line := _next_line()) is not None:
        if line.strip():
            messages.append({"role": "user", "content": line})
            answer = _show(_pieces(*loaded, messages, max_new_tokens, temperature, seed))
            messages.append({"role": "assistant", "content": answer})


def _check_writer(
    adapter: Path, max_new_tokens: int, temperature: float, seed: int
) -> tuple[Path, dict[str, Any]]:
    """The adapter's folder and settings, if it is a language model's and the options can be used."""
    checks.check_number("--max-new-tokens", max_new_tokens, 1, 10**6)
    checks.check_number("--seed", seed, 0, 2**32 - 1)
    if not 0 <= temperature <= 100:
        raise ValueError(f"--temperature {temperature} is not from 0 to 100; the usual is 0 to 1.")
    folder = checks.find_adapter(adapter)
    return folder, checks.read_lm_settings(folder)


def _load_writer(folder: Path, settings: dict[str, Any], base_only: bool) -> tuple[Any, Any]:
    """The model, with its adapter or without, and its tokenizer."""
    from lora_tutorial.adapters.files import base_of, load_adapter
    from lora_tutorial.lm.models import load_lm, load_lm_tokenizer
    from lora_tutorial.models.encoders import quiet

    with quiet():
        base = base_of(folder, settings)
        return tuple(load_lm(base)) if base_only else (load_adapter(folder), load_lm_tokenizer(base))


def _pieces(
    model: Any, tokenizer: Any, messages: list[dict[str, str]], longest: int, temperature: float, seed: int
) -> Generator[str, None, str]:
    """An answer's pieces, and at the end what to say if it was cut.

    The oldest exchanges are forgotten where the model has no place for all.
    """
    from lora_tutorial.lm.chat import template_ids
    from lora_tutorial.lm.generate import stream

    most = model.config.max_position_embeddings
    while (length := len(template_ids(messages, tokenizer, answer=True))) + longest > most and messages[2:]:
        remark("The conversation is longer than the model can read; its beginning is forgotten.")
        del messages[:2]
    if length >= most:
        raise ValueError(f"The prompt has {length:,} tokens, and the model reads {most:,}; shorten it.")
    allowed = min(longest, most - length)
    reply = yield from stream(model, tokenizer, messages, allowed, temperature, seed)
    if reply.stopped:
        return ""
    if allowed < longest:
        return f"The answer was cut: with its prompt it fills the {most:,} tokens that the model reads."
    return f"The answer was cut after {reply.tokens:,} tokens; a larger --max-new-tokens lets it go on."


def _show(pieces: Generator[str, None, str]) -> str:
    """Print pieces as they come, then the remark that may follow; return the pieces in one."""
    said = []
    while True:
        try:
            said.append(next(pieces))
        except StopIteration as end:
            print(flush=True)
            if end.value:
                remark(end.value)
            return "".join(said)
        print(said[-1], end="", flush=True)


def _next_line() -> str | None:
    """What the user says next; ``None`` at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def params(
    encoder: Annotated[
        str, typer.Argument(help="Such as roberta-base; no weights are needed.")
    ] = "roberta-base",
    rank: Annotated[int, typer.Option(help="The rank r of the update.")] = 8,
    num_classes: Annotated[int, typer.Option(help="Outputs of the head.")] = 2,
) -> None:
    """Print where an encoder's parameters are, and which of them the tutorial trains."""
    checks.check_number("--num-classes", num_classes, 1, 10**6)
    checks.check_rank(rank, None, encoder)
    checks.check_encoder(encoder, weights=False)

    from lora_tutorial.models.encoders import parameter_table
    from lora_tutorial.models.roberta import LoraWrapperRoberta

    model = LoraWrapperRoberta("glue", num_classes, model_id=encoder, lora_rank=rank, weights="meta")
    table = Table("part", title=f"{encoder}, LoRA r = {rank} on query and value", title_justify="left")
    for column in ("parameters", "trainable", "trainable MB (fp32)"):
        table.add_column(column, justify="right")
    rows = parameter_table(model)
    for part, count in rows.items():
        table.add_row(part, f"{count.total:,}", f"{count.trainable:,}", f"{4 * count.trainable / 1e6:.2f}")
    table.columns[0].footer = "all"
    console.print(table)
    console.print(f"{rows['all'].percent:.2f} % of all parameters train.")
