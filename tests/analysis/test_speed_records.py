"""The speed benchmark's command line, its settings, its sums and its records."""

import json
import math
from types import SimpleNamespace

import pytest
import speed
import speed_measure
import torch
from speed_settings import BATCHES, INFERENCE, TRAINING, Setting, grid, plan

from lora_tutorial.analysis.speed import speed_records


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_quick_writes_whole_records_once(tmp_path, threads, capsys):
    speed.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    layer, model = speed_records(folder=tmp_path)
    assert layer["setting"] == plan("quick")[0].to_dict() and model["setting"] == plan("quick")[1].to_dict()
    assert list(model["summary"]) == model["variants"] == list(TRAINING)
    assert set(TRAINING) - set(layer["variants"]) == {"head", "bitfit", "fused"}
    for record in (layer, model):
        assert record["hardware"]["threads"] == 1 and record["versions"]["loralib"] == "0.1.2"
        for variant, phases in record["seconds"].items():
            assert list(phases) == list(speed_measure.PHASES)
            assert all(len(v) == 2 and min(v) >= 0 for v in phases.values()), variant
        first = record["losses"]["full"]
        assert all(math.isclose(loss, first, rel_tol=1e-4) for loss in record["losses"].values())
        assert math.isclose(record["gradients"]["fast"], record["gradients"]["peft"], rel_tol=1e-3)
        assert record["gradients"]["fast"] > 0 and record["gradients"]["floor"] is None
        trained = record["trainable"]
        assert (
            trained["floor"] == 0 < trained["fast"] == trained["peft"] == trained["loralib"] < trained["full"]
        )
    (memory,) = speed_records("memory", folder=tmp_path, model="linear-96-64")
    assert memory["bytes"]["fast"]["gradients"] == 4 * layer["trainable"]["fast"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3
    capsys.readouterr()
    speed.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert capsys.readouterr().out.count("done before") == 3


def times(**totals):
    """Seconds as `measure` gives them, all of them spent in the forward pass but 1 in each other phase."""
    rounds = len(next(iter(totals.values())))
    other = {"backward": [1.0] * rounds, "optimizer": [1.0] * rounds}
    return {variant: {"forward": [v - 2 for v in values], **other} for variant, values in totals.items()}


def test_sums_are_quartiles_of_what_happened_within_a_round():
    # The second round was twice as slow for all: ratios within the round do not see it.
    summary = speed_measure.summarise(times(floor=[10, 20, 10], peft=[20, 40, 20], fast=[14, 28, 14]))
    assert summary["fast"]["seconds"]["total"] == [14, 14, 21]
    assert summary["fast"]["seconds"]["forward"] == [12, 12, 19]
    assert summary["fast"]["to_peft"] == [0.7, 0.7, 0.7] and summary["peft"]["to_peft"] == [1, 1, 1]
    assert summary["fast"]["own"] == [4, 4, 6] and summary["peft"]["own"] == [10, 10, 15]
    assert summary["fast"]["own_to_peft"] == [0.4, 0.4, 0.4]
    assert "own" not in summary["floor"]
    # One round in which PEFT happened to cost next to nothing: medians first, then their ratio.
    summary = speed_measure.summarise(times(floor=[10, 10, 10], peft=[20, 11, 30], fast=[14, 16, 15]))
    assert summary["fast"]["own_to_peft"][1] == 0.5


def test_the_optimizers_step_is_not_the_layers_own_cost_but_is_told():
    seconds = times(floor=[10, 10], peft=[20, 20], fast=[15, 15])
    seconds["floor"]["optimizer"] = [0.0, 0.0]
    summary = speed_measure.summarise(seconds)
    assert summary["fast"]["own"] == [5, 5, 5] and summary["fast"]["own_to_peft"] == [0.5, 0.5, 0.5]
    assert summary["fast"]["own_with_optimizer"] == [6, 6, 6]
    assert summary["fast"]["own_with_optimizer_to_peft"] == pytest.approx([6 / 11] * 3, rel=1e-5)


def test_sums_without_what_they_compare_with():
    noise = speed_measure.summarise(times(floor=[10, 12], peft=[9, 12], fast=[11, 11]))
    assert noise["fast"]["own_to_peft"] is None and noise["fast"]["own"] is not None
    assert set(speed_measure.summarise(times(fast=[11, 11]))["fast"]) == {"seconds"}
    inference = speed_measure.summarise({"base": {"forward": [2, 2]}, "fast": {"forward": [3, 3]}})
    assert inference["fast"]["own"] == [1, 1, 1]


def test_rounds_come_in_random_orders_and_stop_when_the_budget_is_spent(monkeypatch):
    calls = []

    class Fake:
        def __init__(self, bench, variant, clock):
            self.variant, self.parameters = variant, []

        def timed(self, steps):
            calls.append(self.variant)
            return {"forward": 1.0}

    monkeypatch.setattr(speed_measure, "Trainer", Fake)
    monkeypatch.setattr(speed_measure, "first_pass", lambda trainer: (1.0, 2.0))
    variants = list("abcd")
    trainers, first = speed_measure.prepare(SimpleNamespace(setting=Setting()), variants)
    assert first == {"losses": dict.fromkeys(variants, 1.0), "gradients": dict.fromkeys(variants, 2.0)}
    found = speed_measure.measure(trainers, rounds=20)
    rounds = [tuple(calls[i : i + 4]) for i in range(8, len(calls), 4)]  # the first 8 warm up
    assert len(rounds) == 20 and all(sorted(r) == variants for r in rounds) and len(set(rounds)) > 5
    assert found["steps"] == 1 and all(len(p["forward"]) == 20 for p in found["seconds"].values())
    for budget in (1e-9, 0.0):
        few = speed_measure.measure(trainers, rounds=20, budget=budget)
        assert all(len(p["forward"]) == 3 for p in few["seconds"].values())


@pytest.mark.parametrize(
    "losses", [{"a": 1.0, "b": 1.001}, {"a": 1.0, "b": math.nan}, {"a": math.nan, "b": 1.0}]
)
def test_variants_that_compute_something_else_are_refused(losses):
    speed.check_losses(Setting(), {"a": 1.0, "b": 1.00001}, {"a": 3.0, "b": None})
    with pytest.raises(RuntimeError, match="the loss of"):
        speed.check_losses(Setting(), losses, {})


def test_forms_of_lora_that_learn_something_else_are_refused():
    losses = {"full": 1.0, "teaching": 1.0, "peft": 1.0}
    speed.check_losses(Setting(), losses, {"full": 9.0, "teaching": 1.0, "peft": 1.0001})
    speed.check_losses(Setting(precision="bf16"), losses, {"full": 9.0, "teaching": 1.0, "peft": 1.02})
    for wrong in (1.02, math.nan):
        with pytest.raises(RuntimeError, match=r"the gradient of peft is \S+ long, not 1\.0"):
            speed.check_losses(Setting(), losses, {"full": 9.0, "teaching": 1.0, "peft": wrong})
    # On a packed base the floor has no adapters; everywhere else it computes what they do.
    away = {"floor": 2.0, "teaching": 1.0, "peft": 1.0}
    speed.check_losses(Setting(precision="nf4"), away, {})
    with pytest.raises(RuntimeError, match="the loss of teaching"):
        speed.check_losses(Setting(precision="bf16"), away, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "bert"}, "model must be roberta-base, minilm, smollm2 or linear-IN-OUT"),
        ({"model": "linear-768"}, "model must be"),
        ({"batch": 0}, "batch must be a positive integer; got 0"),
        ({"r": 2.5}, "r must be a positive integer"),
        ({"targets": "key"}, "targets must be query-value or all-linear"),
        ({"model": "linear-8-8"}, "targets must be all-linear for a single layer"),
        ({"precision": "fp16"}, "precision must be fp32, autocast, bf16, nf4"),
        ({"lora_dropout": 1.0}, r"lora_dropout must be in \[0, 1\)"),
        ({"length": 513}, "length must be at most 512"),
        ({"model": "smollm2", "length": 8193}, "length must be at most 8192"),
        ({"device": "tpu"}, "device must be cpu or cuda"),
    ],
)
def test_bad_settings_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        Setting(**values)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_plans_have_no_two_settings_of_one_name_and_cover_what_they_promise(device):
    full = plan("full", device)
    assert len({s.name for s in full}) == len(full) and {s.device for s in full} == {device}
    assert full[: len(plan("short", device))] == plan("short", device)
    assert {s.tokens for s in full} >= {b * n for b, n in BATCHES} == {128, 512, 2048, 8192}
    assert {s.r for s in full} == {1, 4, 8, 16, 64, 256} - {4}
    assert {s.targets for s in full if s.model == "roberta-base"} == {"query-value", "all-linear"}
    assert ("bf16" in {s.precision for s in full}) == (device == "cuda")
    with pytest.raises(ValueError, match="quick, short, gpu or full"):
        plan("long")


def test_which_variants_a_setting_has():
    assert Setting().variants == TRAINING and Setting(phase="infer").variants == INFERENCE
    layer = Setting(model="linear-8-6", targets="all-linear", lora_dropout=0.1)
    assert set(TRAINING) - set(layer.variants) == {"head", "bitfit", "materialised", "fused"}
    assert Setting(targets="all-linear").variants == TRAINING, "layers that share an input"
    assert set(INFERENCE) - set(Setting(targets="all-linear", phase="infer").variants) == {"fused"}
    assert set(TRAINING) - set(Setting(model="smollm2").variants) == {"head", "bitfit"}
    assert set(Setting(precision="bf16").variants) == {*TRAINING, "peft-half"}
    assert Setting(precision="nf4").variants == ("floor", "teaching", "peft", "peft-half")
    assert Setting(precision="nf4", phase="infer").variants == ("base", "teaching", "peft", "peft-half")
    (only,) = grid(model=["linear-8-6"], targets=["query-value", "all-linear"])
    assert only.targets == "all-linear"
    with pytest.raises(ValueError, match="No such setting: rank"):
        grid(rank=[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "16*128"], "'16*128' is not BATCHxLENGTH"),
        (["--rounds", "1"], "--rounds must be 2 or more"),
        (["--variants", "qlora"], "no variant qlora here; there are bitfit"),
        (["--model", "bert"], "model must be roberta-base"),
    ],
)
def test_a_bad_command_line_ends_at_once(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        speed.parse(words)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_what_counts_as_done(tmp_path):
    path, asked = tmp_path / "x.json", Setting()
    speed.save(path, "times", asked, {"variants": ["fast", "peft"], "rounds_wanted": 5})
    assert speed.is_done(path, "times", asked, ["fast"], 5)
    assert not speed.is_done(path, "times", asked, ["fast"], 6)
    assert not speed.is_done(path, "times", asked, ["fast", "full"], 5)
    assert not speed.is_done(path, "times", Setting(r=4), ["fast"], 5)
    assert not speed.is_done(tmp_path / "y.json", "times", asked, ["fast"], 5)
    with pytest.raises(ValueError, match="JSON"):
        speed.save(path, "times", asked, {"variants": [], "summary": math.nan})
    assert json.loads(path.read_text())["rounds_wanted"] == 5 and len(list(tmp_path.iterdir())) == 1


def test_records_are_found_by_setting_and_refused_in_another_format(tmp_path):
    for r in (4, 8):
        speed.save(tmp_path / f"r{r}.json", "times", Setting(r=r), {"variants": []})
    assert [r["setting"]["r"] for r in speed_records(folder=tmp_path)] == [4, 8]
    assert [r["setting"]["r"] for r in speed_records(folder=tmp_path, r=8, device="cpu")] == [8]
    (tmp_path / "earlier").mkdir()
    speed.save(tmp_path / "earlier" / "r2.json", "times", Setting(r=2), {"variants": []})
    assert [r["setting"]["r"] for r in speed_records(folder=tmp_path, sitting="earlier")] == [2]
    assert len(speed_records(folder=tmp_path)) == 2, "of another sitting only when asked"
    with pytest.raises(FileNotFoundError, match=r"memory for r=8"):
        speed_records("memory", tmp_path, r=8)
    (tmp_path / "r4.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match=r"r4\.json has format 0"):
        speed_records(folder=tmp_path)
