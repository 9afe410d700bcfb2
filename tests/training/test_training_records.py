"""What the loop records and shows, where it stops, and what it refuses."""

import json
import math
import sys

import pytest
import tiny
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler
from training_runs import run

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


# ---- what is refused ----


def refused(said, error=ValueError, **arguments):
    with pytest.raises(error, match=said):
        run(**arguments)


def test_what_cannot_work_is_refused_before_any_work(tmp_path):
    train_loader, held_out = tiny.loaders()
    frozen = tiny.model().requires_grad_(False)
    refused("no trainable parameter", model=frozen)
    refused("meta", model=tiny.model().to("meta"))
    refused("batches of 4, recipe 'test' of 8", loaders=(DataLoader(tiny.Points(9), 4), None))
    refused("yields no batch from 3", loaders=(DataLoader(tiny.Points(3), 8, drop_last=True), None))
    refused("at most 10 examples, given 64", recipe=tiny.recipe(max_examples=10))
    refused("checkpoint_every=0", checkpoint_every=0, output_dir=tmp_path)
    refused("needs an output_dir", checkpoint_every=2)
    refused("Tracker 'diary' is unknown or not installed", log_with=["diary"], output_dir=tmp_path)
    refused("need an output_dir", log_with=["tensorboard"])
    sampler = WeightedRandomSampler([1.0] * 64, 64)
    refused(
        "set_epoch",
        loaders=(DataLoader(train_loader.dataset, 8, sampler=sampler), held_out),
        output_dir=tmp_path,
    )
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_loss_is_told_what_the_batches_lack(tmp_path):
    def unlabelled(rows):
        return {"points": torch.stack([row["points"] for row in rows])}

    loader = DataLoader(tiny.Points(64), 8, collate_fn=unlabelled)
    refused("no loss: the batches need labels", loaders=(loader, None), output_dir=tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "failed"
