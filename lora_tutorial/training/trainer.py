"""One training loop on accelerate: CPU, CUDA or MPS, one process or several, resumable to the bit on the CPU.

:mod:`lora_tutorial.training.trainer` prepares, saves and restores; what is learnt, and how, is here.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lora_tutorial.lora.parameters import parameters_hash
from lora_tutorial.training import checkpoints, checks
from lora_tutorial.training.recipes import Recipe
from lora_tutorial.training.records import RunRecord, describe_hardware, load_record


class Sitting:
    """What `train` works with: model, optimiser, schedule, data and record."""

    def __init__(
        self,
        model: nn.Module,
        train_loader: DataLoader,
        eval_loader: DataLoader | None,
        recipe: Recipe,
        output_dir: str | os.PathLike[str] | None,
        seed: int,
        checkpoint_every: int | None,
        log_with: Sequence[str],
        cpu: bool,
    ) -> None:
        checks.check_inputs(model, train_loader, recipe, output_dir, checkpoint_every, log_with)
        self.model, self.recipe, self.seed, self.checkpoint_every = model, recipe, seed, checkpoint_every
        self.folder = Path(output_dir) if output_dir is not None else None
        self.accelerator = checks.make_accelerator(recipe, seed, self.folder, log_with, cpu)
        checks.check_split(self.accelerator.num_processes, train_loader, eval_loader)
        set_seed(checks.stream_seed(seed, "training"), device_specific=True)
        groups = checks.parameter_groups(model, recipe.weight_decay)
        betas = (0.9, recipe.adam_beta2)
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, eps=recipe.adam_epsilon)
        self.steps_per_epoch = len(train_loader)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.examples = len(train_loader.dataset)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: recipe.factor(step, self.total_steps)
        )
        self._own_forward = "forward" in vars(model)
        self.wrapped, self.optimizer, self.scheduler, self.train_loader = self.accelerator.prepare(
            model, optimizer, scheduler, train_loader
        )
        self.eval_loader = self.accelerator.prepare(eval_loader) if eval_loader is not None else None
        self.step, self.record, self.last_checkpoint = 0, None, None
        self.best_tensors: dict[str, Tensor] = {}  # of the best epoch, where the recipe keeps them
        self._random: tuple[Any, Any] | None = None  # generators to put back before the next batch

    # ---- beginning ---------------------------------------------------------------------------------------

    def begin(self, config: dict[str, Any], resume: bool) -> None:
        """Refuse a folder that does not fit, restore the last checkpoint if there is one, start the clock."""
        record = self._new_record(config)
        saved = None
        if self.folder is not None:
            path = self.folder / "record.json"
            if not resume and (path.exists() or any(self.folder.glob("checkpoints/step-*"))):
                raise FileExistsError(f"{self.folder} holds a run: resume it, or choose another folder.")
            saved = checkpoints.latest_checkpoint(self.folder / "checkpoints")
            if saved is not None:
                found = RunRecord.from_dict(saved.values["record"])
                checks.check_identity(found, record, saved.folder)
                record = found
                self._restore(saved)
            if path.exists():
                on_disk = load_record(path)
                checks.check_identity(on_disk, record, path)
                if on_disk.status == "finished" and record.status == "finished":
                    record = on_disk  # it may have been added to since
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        self._earlier, self._started = record.wall_seconds, time.monotonic()
        self.record = record
        if self.accelerator.is_main_process and self.folder is not None:
            checkpoints.remove_leftovers(self.folder / "checkpoints")
            if record.status != "finished":
                record.save(self.folder / "record.json")
        known = {key: value for key, value in self.recipe.to_dict().items() if value is not None}
        self.accelerator.init_trackers("lora-tutorial", config={**known, "seed": self.seed})

    def _new_record(self, config: dict[str, Any]) -> RunRecord:
        trainable = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        shapes = [(name, *value.shape) for name, value in trainable.items()]
        accelerator = self.accelerator
        identity = {
            "examples": self.examples,
            "steps_per_epoch": self.steps_per_epoch,
            "processes": accelerator.num_processes,
            "trainable_shapes_sha256": sha256(str(shapes).encode()).hexdigest(),
            "frozen_sha256": parameters_hash(self.model, without=trainable),
        }
        name = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else None
        return RunRecord(
            config=config,
            recipe=self.recipe.to_dict(),
            seed=self.seed,
            identity=identity,
            trainable_parameters=sum(value.numel() for value in trainable.values()),
            total_parameters=sum(value.numel() for value in self.model.parameters()),
            device=str(accelerator.device),
            processes=accelerator.num_processes,
            mixed_precision=self.recipe.mixed_precision,
            hardware=describe_hardware(torch.get_num_threads(), name),
        )

    def _restore(self, saved: checkpoints.Checkpoint) -> None:
        checkpoints.restore_model(self.model, saved.tensors)
        checkpoints.restore_optimizer(self.model, self.optimizer, saved.tensors)
        self.scheduler.load_state_dict(saved.values["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate  # the scheduler's own state does not reach the optimiser
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved.values["scaler"])
        process = self.accelerator.process_index
        self._random = checkpoints.random_part(saved.tensors, process), saved.values["random"][process]
        self.step, self.last_checkpoint = saved.step, saved.folder
        self.best_tensors = {n: v for n, v in saved.tensors.items() if n.startswith("best.")}

    # ---- going on ----------------------------------------------------------------------------------------

    def batches(self, epoch: int) -> Iterator[Mapping[str, torch.Tensor]]:
        """The batches of ``epoch`` that are still to do, in an order that depends on seed and epoch only."""
        self.train_loader.set_epoch(epoch)
        sampler = self.train_loader.batch_sampler
        while sampler is not None:  # accelerate does not reach a sampler below its own wrapper
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
        done = self.step - epoch * self.steps_per_epoch
        # Beginning an epoch draws a random number too: a checkpoint inside the epoch was made after it.
        if done == 0:
            self._put_random_back()
        loader = self.accelerator.skip_first_batches(self.train_loader, done) if done else self.train_loader
        for batch in loader:
            self._put_random_back()
            yield batch

    def _put_random_back(self) -> None:
        if self._random is not None:
            checkpoints.restore_random(*self._random)
            self._random = None

    def end_step(self, loss: float, learning_rate: float, grad_norm: float | None) -> None:
        """Count, record and, where it is due, save one step (an epoch's last is saved with its scores)."""
        self.step += 1
        self.record.add_step(loss, learning_rate, grad_norm)
        logged = {"train/loss": loss, "train/learning_rate": learning_rate, "train/grad_norm": grad_norm}
        self.accelerator.log({k: v for k, v in logged.items() if v is not None}, step=self.step)
        if (
            self.checkpoint_every
            and self.step % self.checkpoint_every == 0
            and self.step % self.steps_per_epoch
        ):
            self.save()

    def end_epoch(self, epoch: int, scorer: Callable[..., dict[str, float]] | None) -> None:
        """Score, record and save. The scorer's random draws leave those of training alone."""
        with torch.random.fork_rng(devices=[]):
            scores = dict(scorer(self.model, self.accelerator)) if scorer is not None else {}
        if scores:
            self.record.main_score = getattr(scorer, "main_score", None) or next(iter(scores))
        losses = self.record.steps["loss"][-self.steps_per_epoch :]
        self._tick()
        self.record.epochs.append(
            {
                "epoch": epoch + 1,
                "step": self.step,
                "train_loss": sum(losses) / len(losses),
                "scores": scores,
                "seconds": self.record.wall_seconds - sum(item["seconds"] for item in self.record.epochs),
            }
        )
        self.accelerator.log({f"eval/{name}": value for name, value in scores.items()}, step=self.step)
        self.record.check()
        best = self.record.best
        if self.recipe.keep_best and best["epoch"] == epoch + 1:
            tensors = checkpoints.model_tensors(self.model)
            self.best_tensors = {f"best.{n}": v.detach().cpu().clone() for n, v in tensors.items()}
        patience = self.recipe.patience
        if self.step == self.total_steps or (patience and epoch + 1 - best["epoch"] >= patience):
            self.record.status = "finished"
        self.save()

    def save(self) -> None:
        """Write a checkpoint, then the record; the main process writes for all."""
        self._tick()
        states = gather_object([checkpoints.random_state()])
        if self.folder is not None and self.accelerator.is_main_process:
            tensors = checkpoints.model_tensors(self.model) | self.best_tensors
            tensors |= checkpoints.optimizer_tensors(self.model, self.optimizer)
            for process, (generators, _) in enumerate(states):
                tensors |= {f"random.{process}.{name}": value for name, value in generators.items()}
            values = {
                "record": self.record.to_dict(),
                "random": [rest for _, rest in states],
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.accelerator.scaler.state_dict()
                if self.accelerator.scaler is not None
                else None,
            }
            parent = self.folder / "checkpoints"
            self.last_checkpoint = checkpoints.save_checkpoint(parent, self.step, tensors, values)
            self.record.save(self.folder / "record.json")
        self.accelerator.wait_for_everyone()

    def _tick(self) -> None:
        self.record.wall_seconds = self._earlier + time.monotonic() - self._started
        self.record.peak_memory_bytes = checks.peak_memory(self.accelerator.device)

    # ---- ending ------------------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """Put the reason in the record on disk; after Ctrl-C or a kill it still says ``running``."""
        if self.record is None:
            return  # refused before it began: whatever is in the folder stays as it is
        self.record.status, self.record.error = "failed", f"{type(error).__name__}: {error}"
        if self.folder is not None and self.accelerator.is_main_process:
            self.record.save(self.folder / "record.json")

    def close(self) -> None:
        """Give the caller's model back without accelerate's wrappers, and close the trackers."""
        self.model.eval()
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        if not self._own_forward:
            vars(self.model).pop("forward", None)  # mixed precision leaves one bound to the instance
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.free_memory()


Scorer = Callable[[nn.Module, Accelerator], dict[str, float]]


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Call it *before* a model gets its adapters and head: they are drawn at random, and a seed set only when
    training starts would leave the starting point to chance. ``train`` seeds its own draws (order of the
    data, dropout) from ``seed`` again, in streams of their own, so that they depend on nothing drawn before.
    """
    set_seed(seed)


def predictions_and_references(outputs: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The model's answers and the gold ones, both of shape (batch,).

    Logits (batch, classes) give the largest class; (batch, 1) is a regression and gives the value itself.
    """
    logits = outputs.logits
    answers = logits.squeeze(-1).float() if logits.shape[-1] == 1 else logits.argmax(-1)
    return answers, batch["labels"]


def evaluate_model(
    model: nn.Module, loader: DataLoader, metric: Any, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """Score a model on a loader, without gradients and in eval mode, over all processes together.

    Parameters
    ----------
    model
        Its ``forward(**batch)`` returns ``logits``. It is left in eval mode.
    loader
        Batches with ``labels``; already prepared if an ``accelerator`` is given.
    metric
        An ``evaluate.Metric``, such as :func:`lora_tutorial.data.metrics.load_metric` returns.
    accelerator
        The run's; a new one by default.

    Returns
    -------
    dict
        The metric's scores. Examples that only even out the processes' shares are not counted.
    """
    if accelerator is None:
        accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
        model, loader = model.to(accelerator.device), accelerator.prepare(loader)
    model.eval()
    with torch.no_grad():
        for batch in loader:
            answers, gold = accelerator.gather_for_metrics(predictions_and_references(model(**batch), batch))
            metric.add_batch(predictions=answers.cpu().numpy(), references=gold.cpu().numpy())
    return metric.compute()


def train(
    model: nn.Module,
    train_loader: DataLoader,
    eval_loader: DataLoader | None,
    metric: Any,
    recipe: Recipe,
    output_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
    *,
    config: Mapping[str, Any] | None = None,
    scorer: Scorer | None = None,
    checkpoint_every: int | None = None,
    log_with: Sequence[str] = (),
    cpu: bool = False,
) -> RunRecord:
    """Train the trainable parameters of ``model`` in place and return the run's record.

    Run the same script under ``torchrun`` or ``accelerate launch`` to spread it over processes: each global
    batch is split between them. A last batch that is too small to split is filled up from the epoch's
    beginning; pass ``drop_last=True`` to the loader for the same steps on any number of processes.

    Parameters
    ----------
    model
        ``forward(**batch)`` returns ``loss`` and ``logits``. It is left on the device and in eval mode.
    train_loader
        Its batch size is ``recipe.batch_size``. ``shuffle=True`` is drawn anew each epoch, from ``seed`` and
        the epoch alone. Another random sampler must have ``set_epoch``. Neither data set nor collator may
        draw random numbers, or resuming is not exact.
    eval_loader, metric
        Scored after each epoch by :func:`evaluate_model`; ``eval_loader=None`` for no scores.
    recipe
        The numbers of the run.
    output_dir
        Folder for ``record.json`` and ``checkpoints/``; ``None`` keeps nothing.
    seed
        Decides the order of the data and dropout. Call :func:`seed_everything` before making the model.
    resume
        Go on from the last complete checkpoint in ``output_dir``, or start where there is none.
    progress
        Show a bar when standard error is a terminal.
    config
        What else identifies the run (model, task, method); part of the record, and must agree on resuming.
    scorer
        ``scorer(model, accelerator)`` instead of ``eval_loader`` and ``metric``, for scores that need more
        than a label for each example.
    checkpoint_every
        Steps between checkpoints, beside the one at each epoch's end.
    log_with
        Trackers of accelerate, such as ``["tensorboard"]``; files go to ``output_dir/logs``.
    cpu
        Stay on the CPU even where there is a GPU.

    Returns
    -------
    RunRecord
        With ``last`` and ``best`` scores.

    Raises
    ------
    ValueError
        For loaders, a model, a folder or a checkpoint that do not fit, before any work.
    FileExistsError
        If ``output_dir`` holds a run and ``resume`` is false.
    NonFiniteLossError
        When the loss or gradient is not finite; the last complete checkpoint stays.
    """
    run = Sitting(model, train_loader, eval_loader, recipe, output_dir, seed, checkpoint_every, log_with, cpu)
    if scorer is None and eval_loader is not None:
        scorer = _Scorer(run.eval_loader, metric)
    if scorer is None and (recipe.patience is not None or recipe.keep_best):
        raise ValueError(
            "patience and keep_best need held-out scores: give eval_loader and metric, or scorer."
        )
    try:
        run.begin(dict(config or {}), resume)
        hidden = None if progress and run.accelerator.is_main_process else True  # None: hidden off a terminal
        with tqdm(total=run.total_steps, initial=run.step, unit="step", disable=hidden) as bar:
            for epoch in range(run.step // run.steps_per_epoch, recipe.epochs):
                if run.record.status == "finished":
                    break
                run.wrapped.train()
                for batch in run.batches(epoch):
                    loss = _update(run, batch)
                    bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", refresh=False)
                    bar.update()
                run.end_epoch(epoch, scorer)
        if run.best_tensors:
            best = {name.removeprefix("best."): value for name, value in run.best_tensors.items()}
            checkpoints.restore_model(model, best)
    except Exception as error:
        run.fail(error)
        raise
    finally:
        run.close()
    return run.record


class _Scorer:
    """``evaluate_model`` on one loader and metric, in the form ``train`` takes."""

    def __init__(self, loader: DataLoader, metric: Any) -> None:
        self.loader, self.metric = loader, metric
        self.main_score = getattr(metric, "main_score", None)

    def __call__(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        return evaluate_model(model, self.loader, self.metric, accelerator)


def _update(run: Sitting, batch: Mapping[str, Tensor]) -> float:
    """One optimiser step on one batch; returns the loss, the mean over all processes."""
    accelerator, optimizer = run.accelerator, run.optimizer
    loss = run.wrapped(**batch).loss
    if loss is None:
        raise ValueError("The model returned no loss: the batches need labels (or start and end positions).")
    value = accelerator.reduce(loss.detach().float(), "mean").item()
    if not math.isfinite(value):
        raise _stopped(run, f"The loss is {value}")
    accelerator.backward(loss)
    # An infinite limit clips nothing and still returns the norm.
    limit = run.recipe.max_grad_norm or math.inf
    norm = float(accelerator.clip_grad_norm_([p for p in run.model.parameters() if p.requires_grad], limit))
    if not math.isfinite(norm):
        if accelerator.scaler is None:
            raise _stopped(run, f"The norm of the gradient is {norm}")
        norm = None  # fp16 overflowed: the scaler skips this step and lowers its scale
    rate = run.scheduler.get_last_lr()[0]
    optimizer.step()
    run.scheduler.step()
    optimizer.zero_grad()
    run.end_step(value, rate, norm)
    return value


def _stopped(run: Sitting, finding: str) -> NonFiniteLossError:
    rate = run.scheduler.get_last_lr()[0]
    return NonFiniteLossError(
        f"{finding} at step {run.step + 1} of {run.total_steps}, at a learning rate of {rate:.2g}. "
        f"Lower the learning rate or look for broken examples. "
        f"Last complete checkpoint: {run.last_checkpoint or 'none yet'}."
    )
