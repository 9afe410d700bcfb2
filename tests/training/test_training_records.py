"""What the loop records and shows, and where it stops."""

import math
import sys

import pytest
import tiny
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from interrupted_runs import assert_same_end
from training_runs import run

from lora_tutorial.training import setup
from lora_tutorial.training.checkpoints import latest_checkpoint
from lora_tutorial.training.records import load_record
from lora_tutorial.training.trainer import NonFiniteLossError


def test_the_record_on_disk_tells_the_whole_run(tmp_path):
    record, _ = run(output_dir=tmp_path, config={"task": "points"}, checkpoint_every=3)
    assert load_record(tmp_path / "record.json") == record
    assert {len(series) for series in record.steps.values()} == {24}
    assert [(epoch["epoch"], epoch["step"]) for epoch in record.epochs] == [(1, 8), (2, 16), (3, 24)]
    assert record.epochs[1]["train_loss"] == pytest.approx(sum(record.steps["loss"][8:16]) / 8)
    assert record.wall_seconds == pytest.approx(sum(epoch["seconds"] for epoch in record.epochs), rel=0.5)
    assert record.peak_memory_bytes > 50e6 and record.config == {"task": "points"}
    assert (record.trainable_parameters, record.total_parameters) == (45, 45 + 72)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000021", "step-00000024"]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_tracker_receives_losses_and_scores(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record, _ = run(output_dir=tmp_path, log_with=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "logs" / "lora-tutorial"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(record.steps["loss"])
    assert [event.step for event in events.Scalars("eval/accuracy")] == [8, 16, 24]


def test_nothing_is_printed_off_a_terminal(capfd):
    run(progress=True)
    assert capfd.readouterr() == ("", "")


def test_the_bar_shows_on_a_terminal_and_not_when_switched_off(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(progress=False)
    assert capfd.readouterr() == ("", "")
    run(progress=True)
    assert "24/24" in capfd.readouterr().err


class Diverging(tiny.Tiny):
    """Its loss is not finite from a given call on."""

    def __init__(self, at, value=math.nan):
        super().__init__()
        self.left, self.value = at, value

    def forward(self, points, labels=None):
        outputs = super().forward(points, labels)
        if self.training:
            self.left -= 1
            if self.left < 0:
                outputs["loss"] = outputs.loss * self.value
        return outputs


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, value):
    model = Diverging(13, value)
    with pytest.raises(
        NonFiniteLossError, match=r"The loss is (nan|inf) at step 14 of 24.*step-00000012"
    ) as stop:
        run(model, output_dir=tmp_path, checkpoint_every=4)
    assert "learning rate" in str(stop.value)
    record = load_record(tmp_path / "record.json")
    assert record.status == "failed" and "step 14" in record.error and len(record.steps["loss"]) == 13
    assert (tmp_path / "checkpoints" / "step-00000012" / "manifest.json").exists()
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights():
    model = tiny.model()
    model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLossError, match=r"The norm of the gradient is (inf|nan) at step 1 of 24"):
        run(model)
    assert torch.isfinite(model.head.weight).all()


def test_at_the_first_step_no_learning_rate_is_blamed():
    with pytest.raises(NonFiniteLossError, match=r"step 1 of 24.*No update was made yet") as stop:
        run(Diverging(0))
    assert "Lower" not in str(stop.value)


@pytest.fixture
def in_fp16(monkeypatch):
    """Let the loop run in fp16 on the CPU, whose scaler works as a GPU's does."""

    def make(recipe, seed, folder, options):
        accelerator = Accelerator(
            cpu=True,
            mixed_precision="fp16",
            dataloader_config=DataLoaderConfiguration(
                split_batches=True, use_seedable_sampler=True, data_seed=setup.stream_seed(seed, "order")
            ),
        )
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return accelerator

    setup.AcceleratorState._reset_state()
    monkeypatch.setattr(setup, "make_accelerator", make)
    yield
    setup.AcceleratorState._reset_state()


class Overflowing(tiny.Interrupted):
    """Its gradient overflows at one training batch, as fp16's do when the scale is too high."""

    left = 99

    def __init__(self, at):
        super().__init__()
        self.calls, self.kept = at, None
        self.head.weight.register_hook(lambda gradient: gradient * math.inf if self.calls == 0 else gradient)

    def forward(self, points, labels=None):
        if self.training:
            self.calls -= 1
            if self.calls == 0:
                self.kept = self.head.weight.detach().clone()
            elif self.calls == -1:
                assert torch.equal(self.head.weight, self.kept), "a step that overflowed is skipped"
        return super().forward(points, labels)


def test_an_overflow_in_fp16_is_skipped_recorded_and_survives_an_interruption(tmp_path, in_fp16):
    def go(name, model, resume=False):
        recipe = tiny.recipe(mixed_precision="fp16")
        record, _ = run(
            model, None, recipe=recipe, output_dir=tmp_path / name, resume=resume, checkpoint_every=3
        )
        return record, latest_checkpoint(tmp_path / name / "checkpoints"), model

    torch.manual_seed(0)
    record, saved, model = go("whole", Overflowing(5))
    assert [step for step, norm in enumerate(record.steps["grad_norm"], 1) if norm is None] == [5]
    assert saved.values["scaler"]["scale"] == 2.0**9 and record.status == "finished"
    torch.manual_seed(0)
    broken = Overflowing(5)
    broken.left = 14
    with pytest.raises(KeyboardInterrupt):
        go("part", broken)
    torch.manual_seed(0)
    again, resumed, other = go("part", Overflowing(99), resume=True)
    assert resumed.values["scaler"] == saved.values["scaler"]
    assert_same_end((again, resumed.tensors, other), (record, saved.tensors, model))
