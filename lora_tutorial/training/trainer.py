"""The training loop on accelerate: CPU, CUDA or MPS, one process or several, resumable to the bit on the CPU.

Read `train` first: it is the loop. `Trainer` holds what the loop works with, in the order of a run.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lora_tutorial.storage.files import FolderInUseError, folder_lock
from lora_tutorial.training import checkpoints, setup
from lora_tutorial.training.processes import Sharded, token_weight, whole
from lora_tutorial.training.recipes import Recipe, RunOptions
from lora_tutorial.training.records import RunRecord, read_back


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Call it *before* a model gets its adapters and head: they are drawn at random, and a seed set only when
    training starts would leave the starting point to chance. ``train`` seeds its own draws (order of the
    data, dropout) from ``seed`` again, in streams of their own, so that they depend on nothing drawn before.
    """
    set_seed(seed)


def evaluate_model(
    model: nn.Module, loader: DataLoader, metric: Any, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """Score a model on a loader, without gradients and in eval mode, over all processes together.

    Parameters
    ----------
    model
        Its ``forward(**batch)`` returns ``logits``: of (batch, classes) the largest is the prediction, of
        (batch, 1), a regression, the value itself. It is left in eval mode.
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
    for predicted, gold in predict(model, loader, accelerator):
        metric.add_batch(predictions=predicted.numpy(), references=gold.numpy())
    return metric.compute()


@torch.no_grad()
def predict(
    model: nn.Module, loader: DataLoader, accelerator: Accelerator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch's predictions and labels, (batch,) on the CPU; parameters as for `evaluate_model`."""
    if accelerator is None:
        accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
        model, loader = model.to(accelerator.device), accelerator.prepare(loader)
    model.eval()
    for batch in loader:
        logits = model(**batch).logits
        predicted = logits.squeeze(-1).float() if logits.shape[-1] == 1 else logits.argmax(-1)
        predicted, gold = accelerator.gather_for_metrics((predicted, batch["labels"]))
        yield predicted.cpu(), gold.cpu()


def train(
    model: nn.Module,
    train_loader: DataLoader,
    eval_loader: DataLoader | None,
    metric: Any,
    recipe: Recipe,
    output_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> RunRecord:
    """Train the trainable parameters of ``model`` in place and return the run's record.

    Run the same script under ``torchrun`` or ``accelerate launch`` to spread it over processes: each global
    batch is split between them. A last batch that is too small to split is filled up from the epoch's
    beginning; pass ``drop_last=True`` to the loader for the same steps on any number of processes. Another
    number of processes may resume a run than began it.

    Parameters
    ----------
    model
        ``forward(**batch)`` returns ``loss`` and ``logits``. It is left on the device (on the CPU, if the run
        was sharded) and in eval mode.
    train_loader
        Its batch size is ``recipe.batch_size``. ``shuffle=True`` is drawn anew each epoch, from ``seed`` and
        the epoch alone. Another random sampler must have ``set_epoch``. Neither data set nor collator may
        draw random numbers, or resuming is not exact.
    eval_loader, metric
        Scored after each epoch by :func:`evaluate_model`; ``eval_loader=None`` for no scores.
    recipe
        The numbers of the run.
    output_dir
        Folder for ``record.json`` and ``checkpoints/``, held against a second process while the run lasts;
        ``None`` keeps nothing.
    seed
        Decides the order of the data and dropout. Call :func:`seed_everything` before making the model.
    **options
        Fields of `RunOptions`: ``config``, ``scorer``, ``resume``, ``progress``, ``checkpoint_every``,
        ``log_with``, ``cpu``, ``shard``.

    Returns
    -------
    RunRecord
        With ``last`` and ``best`` scores.

    Raises
    ------
    TypeError, ValueError
        For options, loaders, a model, a folder or a checkpoint that do not fit, before any work.
    FileExistsError
        If ``output_dir`` holds a run and ``resume`` is false.
    FolderInUseError
        If another process is training in ``output_dir``.
    NonFiniteLossError
        When the loss or gradient is not finite; the last complete checkpoint stays.
    CheckpointError
        When a checkpoint or the record cannot be written, as on a full disk; likewise.
    """
    chosen = RunOptions(**options)
    trainer = Trainer(model, train_loader, eval_loader, metric, recipe, output_dir, seed, chosen)
    with trainer.running() as progress:
        for epoch in trainer.epochs():
            trainer.wrapped.train()
            for batch in trainer.batches(epoch):
                loss = trainer.update(batch)
                progress.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", refresh=False)
                progress.update()
            trainer.end_epoch(epoch)
    return trainer.record


class Trainer:
    """What `train` works with: model, optimiser, schedule, data and record."""

    def __init__(
        self,
        model: nn.Module,
        train_loader: DataLoader,
        eval_loader: DataLoader | None,
        metric: Any,
        recipe: Recipe,
        output_dir: str | os.PathLike[str] | None,
        seed: int,
        options: RunOptions,
    ) -> None:
        setup.check_model(model)
        setup.check_loaders(train_loader, eval_loader, recipe)
        setup.check_held_out(recipe, options.scorer is not None or eval_loader is not None)
        setup.check_folder(output_dir, train_loader, options)
        self.model, self.recipe, self.seed, self.options = model, recipe, seed, options
        self.folder = Path(output_dir) if output_dir is not None else None
        self.accelerator = setup.make_accelerator(recipe, seed, self.folder, options)
        setup.check_split(self.accelerator.num_processes, train_loader, eval_loader)
        set_seed(setup.stream_seed(seed, "training"), device_specific=True)

        self.examples, self.steps_per_epoch = len(cast(Sized, train_loader.dataset)), len(train_loader)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        groups = setup.parameter_groups(model, recipe.weight_decay)
        optimizer = torch.optim.AdamW(
            groups if options.groups is None else options.groups(model, recipe.learning_rate),
            lr=recipe.learning_rate,
            betas=(0.9, recipe.adam_beta2),
            eps=recipe.adam_epsilon,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: recipe.factor(step, self.total_steps)
        )
        self._own_forward = "forward" in vars(model)
        self.sharded: Sharded | None = None
        if options.shard and self.accelerator.num_processes > 1:
            self.sharded = Sharded(model, self.accelerator)
        record = self._new_record() if self.sharded else None  # while the model's weights can be read
        self.wrapped, self.optimizer, self.scheduler, self.train_loader = self.accelerator.prepare(
            model, optimizer, scheduler, train_loader
        )
        if self.sharded:
            self.sharded.free()
        self.scorer, self.main_score = options.scorer, getattr(options.scorer or metric, "main_score", None)
        if self.scorer is None and eval_loader is not None:
            held_out = self.accelerator.prepare(eval_loader)
            self.scorer = lambda model, accelerator: evaluate_model(model, held_out, metric, accelerator)

        self.step, self.record = 0, record or self._new_record()
        self.last_checkpoint: Path | None = None
        self._begun, self._started, self._earlier = False, 0.0, 0.0
        self.best_weights: dict[str, Tensor] = {}  # of the best epoch so far, where the recipe keeps them
        self._generators: tuple[Any, Any] | None = None  # to put back before the next batch

    # ---- beginning and end -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self) -> Iterator[tqdm]:
        """Hold the folder, find where to begin, give a progress bar to the loop, and leave all in order."""
        with contextlib.ExitStack() as held:
            try:
                self._hold_folder(held)
                self._begin()
                shown = self.options.progress and self.accelerator.is_main_process
                hidden = None if shown else True  # None: tqdm hides it off a terminal
                with tqdm(total=self.total_steps, initial=self.step, unit="step", disable=hidden) as bar:
                    yield bar
                if self.best_weights:
                    checkpoints.restore_model(self.model, self.best_weights, "best")
                if self.sharded:
                    self.sharded.restore()
            except Exception as error:
                self._fail(error)
                raise
            finally:
                self._close()

    def _hold_folder(self, held: contextlib.ExitStack) -> None:
        """The main process locks the folder for all; when it cannot, all stop."""
        refusal = None
        if self.folder is not None and self.accelerator.is_main_process:
            try:
                held.enter_context(folder_lock(self.folder, "the run"))
            except FolderInUseError as error:
                refusal = str(error)
        [refusal] = broadcast_object_list([refusal])
        if refusal is not None:
            raise FolderInUseError(refusal)

    def _begin(self) -> None:
        """Refuse a folder that does not fit, restore the last checkpoint if there is one, start the clock."""
        record, stored = self._find_record(self.record)
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        self._earlier, self._started = record.wall_seconds, time.monotonic()
        self.record, self._begun = record, True
        if self.folder is not None and self.accelerator.is_main_process:
            checkpoints.remove_leftovers(self.folder / "checkpoints")
            if not (stored and record.status == "finished"):
                with checkpoints.explained("The record", self.folder, self.last_checkpoint):
                    record.save(self.folder / "record.json")
        known = {key: value for key, value in self.recipe.to_dict().items() if value is not None}
        self.accelerator.init_trackers("lora-tutorial", config={**known, "seed": self.seed})

    def _find_record(self, fresh: RunRecord) -> tuple[RunRecord, bool]:
        """The record to go on with, its checkpoint restored, else ``fresh``; and whether it is on disk."""
        if self.folder is None:
            return fresh, False
        path = self.folder / "record.json"
        if not self.options.resume and (path.exists() or any(self.folder.glob("checkpoints/step-*"))):
            raise FileExistsError(f"{self.folder} holds a run: resume it, or choose another folder.")
        saved = checkpoints.latest_checkpoint(self.folder / "checkpoints")
        stored = read_back(path, replaceable=saved is not None)
        if saved is None:
            if stored is not None:
                setup.check_identity(stored, fresh, path)
            return fresh, False
        record = RunRecord.from_dict(saved.values["record"])
        setup.check_identity(record, fresh, saved.folder)
        if stored is not None:
            setup.check_identity(stored, fresh, path)
        parts = (self.accelerator, self.model, self.optimizer, self.scheduler)
        self._generators = checkpoints.restore_run(saved, *parts)
        self.best_weights = {name: value for name, value in saved.tensors.items() if name.startswith("best.")}
        self.step, self.last_checkpoint = saved.step, saved.folder
        record.processes = self.accelerator.num_processes
        if stored is not None and stored.status == record.status == "finished":
            return stored, True  # it may have been added to since
        return record, False

    def _new_record(self) -> RunRecord:
        data = {"examples": self.examples, "steps_per_epoch": self.steps_per_epoch}
        config = self.options.config
        return setup.new_record(self.model, self.accelerator, self.recipe, self.seed, config, data)

    def _fail(self, error: Exception) -> None:
        """Put the reason in the record on disk; after Ctrl-C or a kill it still says ``running``."""
        if not self._begun:
            return  # refused before it began: whatever is in the folder stays as it is
        self.record.status, self.record.error = "failed", f"{type(error).__name__}: {error}"
        if self.folder is not None and self.accelerator.is_main_process:
            with contextlib.suppress(OSError):  # a full disk; the error itself is what the user must see
                self.record.save(self.folder / "record.json")

    def _close(self) -> None:
        """Give the caller's model back without accelerate's wrappers, and close the trackers."""
        self.model.eval()
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        if not self._own_forward:
            vars(self.model).pop("forward", None)  # mixed precision leaves one bound to the instance
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.free_memory()
        if self.sharded:
            self.sharded.close()

    # ---- the loop's parts --------------------------------------------------------------------------------

    def epochs(self) -> Iterator[int]:
        """The epochs (from 0) still to do, or none once the score has not risen for long enough."""
        for epoch in range(self.step // self.steps_per_epoch, self.recipe.epochs):
            if self.record.status == "finished":
                return
            yield epoch

    def batches(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
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
            self._put_generators_back()
        loader = self.accelerator.skip_first_batches(self.train_loader, done) if done else self.train_loader
        for batch in loader:
            self._put_generators_back()
            yield batch

    def _put_generators_back(self) -> None:
        if self._generators is not None:
            checkpoints.restore_random(*self._generators)
            self._generators = None

    def update(self, batch: Mapping[str, Tensor]) -> float:
        """One optimiser step on one batch; returns the loss, the mean over all processes."""
        loss = self.wrapped(**batch).loss
        if loss is None:
            raise ValueError(
                "The model returned no loss: the batches need labels (or start and end positions)."
            )
        loss = loss * token_weight(batch, self.accelerator)
        value = self.accelerator.reduce(loss.detach().float(), "mean").item()
        if not math.isfinite(value):
            raise self._stopped(f"The loss is {value}")
        self.accelerator.backward(loss)
        # An infinite limit clips nothing and still returns the norm.
        limit, trained = self.recipe.max_grad_norm or math.inf, setup.trainable(self.model)
        norm = float(whole(self.accelerator.clip_grad_norm_(trained, limit)))
        overflow = not math.isfinite(norm)  # in fp16 the scaler skips such a step and lowers its scale
        if overflow and self.accelerator.scaler is None:
            raise self._stopped(f"The norm of the gradient is {norm}")
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self._end_step(value, rate, None if overflow else norm)
        return value

    def _stopped(self, finding: str) -> NonFiniteLossError:
        rate = self.scheduler.get_last_lr()[0]
        at = f"step {self.step + 1} of {self.total_steps}, at a learning rate of {rate:.2g}"
        late = "Lower the learning rate or look for broken examples."
        early = "No update was made yet, so look at the examples and at the weights the run began with."
        return NonFiniteLossError(
            f"{finding} at {at}. {late if self.step else early} "
            f"Last complete checkpoint: {self.last_checkpoint or 'none yet'}."
        )

    def _end_step(self, loss: float, learning_rate: float, grad_norm: float | None) -> None:
        """Count, record and, where it is due, save one step (an epoch's last is saved with its scores)."""
        self.step += 1
        self.record.add_step(loss, learning_rate, grad_norm)
        logged = {"train/loss": loss, "train/learning_rate": learning_rate, "train/grad_norm": grad_norm}
        self.accelerator.log({k: v for k, v in logged.items() if v is not None}, step=self.step)
        every = self.options.checkpoint_every
        if every and self.step % every == 0 and self.step % self.steps_per_epoch:
            self._save()

    def end_epoch(self, epoch: int) -> None:
        """Score, record, decide whether to go on, and save."""
        scores = self._score()
        losses = [loss for loss in self.record.steps["loss"][-self.steps_per_epoch :] if loss is not None]
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
        best, patience = self.record.best["epoch"] if self.record.best else 0, self.recipe.patience
        if self.recipe.keep_best and best == epoch + 1:
            tensors = checkpoints.model_tensors(self.model, "best")
            self.best_weights = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        if self.step == self.total_steps or (patience and epoch + 1 - best >= patience):
            self.record.status = "finished"
        self._save()

    def _score(self) -> dict[str, float]:
        """The scorer's scores, the same on every process. What it draws leaves training's draws alone."""
        if self.scorer is None:
            return {}
        generators = checkpoints.random_state()
        scores = dict(broadcast_object_list([self.scorer(self.model, self.accelerator)])[0])
        if self.sharded:
            self.sharded.reshard()
        checkpoints.restore_random(*generators)
        setup.check_scores(scores, self.recipe, self.step)
        if scores:
            self.record.main_score = self.main_score or next(iter(scores))
        return scores

    def _save(self) -> None:
        """Write a checkpoint, then the record; the main process writes for all."""
        self._tick()
        parts = (self.accelerator, self.model, self.optimizer, self.scheduler)
        tensors, values = checkpoints.run_state(*parts)
        if self.folder is not None and self.accelerator.is_main_process:
            tensors, values["record"] = tensors | self.best_weights, self.record.to_dict()
            with checkpoints.explained(f"Step {self.step}", self.folder, self.last_checkpoint):
                parent = self.folder / "checkpoints"
                self.last_checkpoint = checkpoints.save_checkpoint(parent, self.step, tensors, values)
            with checkpoints.explained("The record", self.folder, self.last_checkpoint):
                self.record.save(self.folder / "record.json")
        self.accelerator.wait_for_everyone()

    def _tick(self) -> None:
        self.record.wall_seconds = self._earlier + time.monotonic() - self._started
        self.record.peak_memory_bytes = setup.peak_memory(self.accelerator.device)
