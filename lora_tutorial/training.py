"""One training loop on accelerate: CPU, CUDA or MPS, one process or several, resumable to the bit on the CPU.

:mod:`lora_tutorial.sitting` prepares, saves and restores; what is learnt, and how, is here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lora_tutorial.recipes import Recipe
from lora_tutorial.results import RunRecord
from lora_tutorial.sitting import Sitting

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
        An ``evaluate.Metric``, such as :func:`lora_tutorial.metrics.load_metric` returns.
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
    try:
        run.begin(dict(config or {}), resume)
        hidden = None if progress and run.accelerator.is_main_process else True  # None: hidden off a terminal
        with tqdm(total=run.total_steps, initial=run.step, unit="step", disable=hidden) as bar:
            for epoch in range(run.step // run.steps_per_epoch, recipe.epochs):
                run.wrapped.train()
                for batch in run.batches(epoch):
                    loss = _update(run, batch)
                    bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", refresh=False)
                    bar.update()
                run.end_epoch(epoch, scorer)
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
