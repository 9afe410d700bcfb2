"""What one process, two copies (DDP) and two shards (FSDP2) leave of the same runs, for two kinds of model.

Usage: sharded_runs.py FOLDER

The imports cost seconds and a run less than one, so all are forks of one process. Each leaves a file of
weights and a JSON file of what it said.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification
from two_processes import forked

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.inject import inject_lora
from lora_tutorial.training.recipes import Recipe
from lora_tutorial.training.trainer import train

torch.set_num_threads(1)
RECIPE = Recipe("test", epochs=2, batch_size=4, learning_rate=1e-2, warmup=0.25)
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = 40


class Rows(Dataset):
    """Token rows of several lengths, padded; a label each, or (for a language model) one a token."""

    def __init__(self, token_labels: bool, count: int = 16, length: int = 10) -> None:
        draw = torch.Generator().manual_seed(1)
        self.ids = torch.randint(4, WORDS, (count, length), generator=draw)
        self.mask = torch.arange(length) < torch.randint(3, length + 1, (count, 1), generator=draw)
        self.labels = torch.randint(2, (count,), generator=draw)
        if token_labels:
            self.labels = self.ids.where(self.mask, torch.tensor(-100))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self.ids[row],
            "attention_mask": self.mask[row].long(),
            "labels": self.labels[row],
        }


class Halves(nn.Module):
    """A model that reads a training batch as two processes would: half by half, losses by their tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch):
        if not self.training:
            return self.model(**batch)
        halves = [{name: value[half] for name, value in batch.items()} for half in (slice(2), slice(2, 4))]
        outputs = [self.model(**half) for half in halves]
        labels = [half["labels"] for half in halves]
        counts = [(some[:, 1:] != -100).sum() if some.ndim > 1 else len(some) for some in labels]
        outputs[0].loss = sum(o.loss * n for o, n in zip(outputs, counts, strict=True)) / sum(counts)
        return outputs[0]


def make(kind: str, dtype: torch.dtype, seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "encoder":
        config = RobertaConfig(vocab_size=WORDS, max_position_embeddings=16, type_vocab_size=1, **SHAPE)
        model, names = RobertaForSequenceClassification(config), ("query", "value")
        model.classifier.register_forward_pre_hook(lambda head, inputs: (inputs[0].float(),))
        lora = LoraConfig(r=3, lora_alpha=6, target_modules=names, modules_to_save=("classifier",))
    else:
        config = LlamaConfig(vocab_size=WORDS, num_key_value_heads=1, tie_word_embeddings=True, **SHAPE)
        config.initializer_range = 0.2
        model, names = LlamaForCausalLM(config), ("q_proj", "v_proj", "down_proj")
        lora = LoraConfig(r=3, lora_alpha=6, target_modules=names)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = dropout
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(model.config, name, dropout)
    model.to(dtype)
    inject_lora(model, lora)
    for value in model.parameters():
        if value.requires_grad:
            value.data = value.data.float()  # adapters and head in 4 bytes, whatever the base has
    return model


def run(
    kind: str, dtype: torch.dtype, folder: Path | None = None, model=None, limit: int | None = None, **options
):
    """Train; with ``limit``, until that many updates are made, as if stopped by Ctrl-C."""
    model = make(kind, dtype) if model is None else model
    loader = DataLoader(Rows(kind != "encoder"), RECIPE.batch_size, shuffle=True)
    stop = Stop(limit)
    handle = model.register_forward_pre_hook(stop)
    try:
        record = train(model, loader, None, None, RECIPE, folder, cpu=True, progress=False, **options)
    except KeyboardInterrupt:
        return None
    finally:
        handle.remove()
    return record


class Stop:
    """Interrupts the training step after the last that is wanted."""

    def __init__(self, limit: int | None) -> None:
        self.left = limit

    def __call__(self, module, inputs) -> None:
        if self.left is not None and module.training:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


def leave(folder: Path, name: str, model: nn.Module, **told) -> None:
    if PartialState().is_main_process:
        trained = {n.removeprefix("model.") if isinstance(model, Halves) else n: v.detach().contiguous()
                   for n, v in model.named_parameters() if v.requires_grad}  # fmt: skip
        save_file(trained, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(told))


KINDS = [(kind, dtype) for kind in ("encoder", "lm") for dtype in ("float32", "bfloat16")]


def alone(folder: Path) -> None:
    """One process, with whole batches and with halves; and a run that others go on with."""
    for kind, dtype in KINDS:
        name, type_ = f"{kind}-{dtype}", getattr(torch, dtype)
        for way in ("one", "halves"):
            model = make(kind, type_)
            model = Halves(model) if way == "halves" else model
            record = run(kind, type_, model=model)
            leave(folder, f"{name}-{way}", model, steps=record.steps)
    run("lm", torch.float32, folder / "begun-by-one", limit=5, checkpoint_every=3)


def later(folder: Path) -> None:
    model = make("lm", torch.float32)
    options = {"checkpoint_every": 3, "resume": True}
    record = run("lm", torch.float32, folder / "begun-by-two", model, **options)
    leave(folder, "resumed-by-one", model, steps=record.steps, processes=record.processes)


def sent() -> int:
    """Bytes that this process has written so far, to sockets too."""
    return int(next(line for line in open("/proc/self/io") if line.startswith("wchar")).split()[1])


def of_two(folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    rank = PartialState(cpu=True).process_index
    for kind, dtype in KINDS:
        type_ = getattr(torch, dtype)
        for way in ("copies", "shards"):
            model = make(kind, type_, seed=rank)  # the other process's weights must give way
            classes = [type(part) for part in model.modules()]
            originals = list(model.parameters())
            begun = sent()
            record = run(kind, type_, model=model, shard=way == "shards")
            bytes_ = sent() - begun
            same = all(a is b for a, b in zip(model.parameters(), originals, strict=True))
            whole = same and classes == [type(part) for part in model.modules()]
            hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
            model.eval()
            ids = Rows(False).ids[:2]
            with torch.no_grad():
                logits = model(input_ids=ids).logits.float().tolist()
            told = {"steps": record.steps, "whole": whole, "hooks": hooks, "bytes": bytes_, "logits": logits}
            leave(folder, f"{kind}-{dtype}-{way}", model, **told)
    begun = {"checkpoint_every": 3, "shard": True}
    run("lm", torch.float32, folder / "begun-by-two", limit=5, **begun)
    PartialState().wait_for_everyone()
    model = make("lm", torch.float32)
    record = run("lm", torch.float32, folder / "begun-by-one", model, resume=True, **begun)
    leave(folder, "resumed-by-two", model, steps=record.steps, processes=record.processes)
    scored(folder)
    refused(folder)
    PartialState().destroy_process_group()


def scored(folder: Path) -> None:
    """Held-out scores between the epochs, and the best epoch's weights at the end; then an unsharded run."""
    recipe = Recipe("test", epochs=2, batch_size=4, learning_rate=1e-2, keep_best=True)
    scores = iter((0.9, 0.1))
    kept: list = []

    def scorer(model, accelerator):
        model.eval()
        with torch.no_grad():
            model(input_ids=Rows(False).ids[:2])
        if not kept:
            parts = {n: v.detach().full_tensor() for n, v in whole_names(model) if v.requires_grad}
            kept.append(parts)
        return {"score": next(scores)}

    def whole_names(model):
        for part in model.modules():
            if hasattr(part, "reshard"):
                part.reshard()
        return model.named_parameters()

    model = make("lm", torch.float32)
    loader = DataLoader(Rows(True), 4, shuffle=True)
    train(model, loader, None, None, recipe, cpu=True, progress=False, shard=True, scorer=scorer)
    best = all(torch.equal(kept[0][n], v) for n, v in model.named_parameters() if v.requires_grad)
    told = gather_object([best])
    plain = make("lm", torch.float32)
    run("lm", torch.float32, model=plain)
    leave(folder, "after", plain, best=told)


def refused(folder: Path) -> None:
    told = []
    coded = make("lm", torch.float32)
    coded.codes = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    mixed = make("lm", torch.float32)
    mixed.other = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    for model in (coded, mixed):
        try:
            run("lm", torch.float32, model=model, shard=True)
        except ValueError as error:
            told.append(str(error))
    leave(folder, "refused", coded.lm_head, told=told)


def main(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    group |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    for children in (
        lambda: [forked(alone, folder)],
        lambda: [forked(of_two, folder, group | {"RANK": r, "LOCAL_RANK": r}) for r in ("0", "1")],
        lambda: [forked(later, folder)],
    ):
        if sum(os.waitpid(child, 0)[1] for child in children()):
            sys.exit(f"a process failed in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
