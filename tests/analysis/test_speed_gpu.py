"""The plan for a GPU, run on the CPU with tiny models: order, time limit, records, refusals, table."""

import io
import json
from contextlib import redirect_stdout

import pytest
import speed
import speed_measure
import speed_memory
import speed_variants
import tiny_speed
import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from speed_settings import GPU_VARIANTS, LORA, Setting, plan

from lora_tutorial.analysis.speed import speed_records, speed_table
from lora_tutorial.quant.linear4bit import LoraLinear4bit

WORDS = ["--plan", "gpu", "--device", "cpu", "--rounds", "2", "--shortest", "0", "--threads", "1", "--out"]


@pytest.fixture
def tiny(monkeypatch, seeded_on_one_thread):
    tiny_speed.shrink(monkeypatch)
    monkeypatch.setattr(speed_variants, "BACKEND", "aot_eager")  # traced as for inductor, but not built


@pytest.fixture(scope="module")
def two_calls(tmp_path_factory):
    """The folder of records, what the first call left in it, and what the calls printed.

    The clock of the first call tells how many records there are, and its time is over after the fourth.
    """
    folder, said = tmp_path_factory.mktemp("speed"), [io.StringIO(), io.StringIO()]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        tiny_speed.shrink(patch)
        patch.setattr(speed_variants, "BACKEND", "eager")  # traced, and run as it was traced
        words = [*WORDS, str(folder)]
        with redirect_stdout(said[0]):
            assert speed.main([*words, "--total", "3.5"], now=lambda: len(list(folder.iterdir()))) == 0
        first = {path.name: path.read_bytes() for path in folder.iterdir()}
        with redirect_stdout(said[1]):
            assert speed.main([*words, "--total", "1000"]) == 0
        names = [setting.name for setting in plan("gpu", "cpu")]
    torch.set_num_threads(threads)
    return folder, names, first, [text.getvalue().splitlines() for text in said]


@pytest.mark.slow
def test_a_plan_cut_short_leaves_whole_records_and_the_next_call_goes_on(two_calls):
    folder, names, first, (said, said_then) = two_calls
    assert sorted(first) == sorted(f"{name}.json" for name in names[:4])
    assert said[4] == f"{names[4]}: the time is over; the same command goes on from here"
    assert "\n".join(said[5:]).count("step") == 4  # the table of what is there
    assert said_then[:4] == [f"{name}: done before" for name in names[:4]]
    for line, name in zip(said_then[4:12], names[4:], strict=True):
        assert line.startswith(f"{name}: full ")
    assert {path.name for path in folder.iterdir()} == {f"{name}.json" for name in names}
    assert all((folder / name).read_bytes() == content for name, content in first.items())


@pytest.mark.slow
def test_a_record_of_the_plan_has_times_losses_gradients_and_memory(two_calls):
    folder, names, *_ = two_calls
    for name in names:
        record = json.loads((folder / f"{name}.json").read_text())
        setting = Setting(**record["setting"])
        forms = [v for v in setting.variants if v in GPU_VARIANTS]
        assert record["variants"] == forms and setting.name == name
        for field in ("losses", "gradients", "trainable", "seconds", "summary", "bytes"):
            assert list(record[field]) == forms, field
        lora = [form for form in forms if form in LORA]
        assert len({record["trainable"][form] for form in lora}) == 1 and record["trainable"]["floor"] == 0
        assert record["gradients"]["floor"] is None
        first = record["gradients"]["teaching"]
        assert all(record["gradients"][form] == pytest.approx(first, rel=0.05) for form in lora) and first > 0
        for form in forms:
            assert record["losses"][form] == pytest.approx(record["losses"]["teaching"], rel=0.02) or (
                form == "floor" and setting.precision == "nf4"
            )
            assert [len(times) for times in record["seconds"][form].values()] == [2, 2, 2]
            parts = record["bytes"][form]
            assert parts["peak"] == parts["weights"] + parts["optimizer"] + parts["above"]
        moments = 2 * record["trainable"]["fast" if "fast" in forms else "teaching"]
        size = 2 if setting.precision in ("bf16", "nf4") else 4
        assert record["bytes"]["teaching"]["optimizer"] > 4 * moments
        assert 0 < record["bytes"]["peft-half" if size == 2 else "peft"]["optimizer"] - size * moments < 2000
        assert record["clock"] == "wall" and record["rounds_wanted"] == 2
        assert {"torch", "peft"} <= set(record["versions"]) and record["hardware"]["threads"] == 1


@pytest.mark.slow
def test_the_table_has_a_line_for_each_form_of_each_record(two_calls):
    folder, names, _, (_, said_then) = two_calls
    table = speed_table(speed_records(folder=folder, device="cpu", precision="nf4"))
    assert table.count("frozen floor") == 2 and table.count("LoRA, plain") == 2
    assert "LoRA, fast" not in table and "smollm2, 2 × 16, r = 16, all-linear, nf4 (cpu)" in table
    records = [json.loads((folder / f"{name}.json").read_text()) for name in names]
    assert "\n".join(said_then[12:]) == speed_table(records)


def test_the_order_is_the_most_informative_first():
    settings = plan("gpu", "cuda")
    assert len({setting.name for setting in settings}) == len(settings) == 12
    kinds = [(s.model, s.precision, s.checkpointing, s.compiled) for s in settings[:8:2]]
    assert kinds == [
        ("roberta-base", "bf16", False, False),
        ("roberta-base", "nf4", False, False),
        ("roberta-base", "bf16", True, False),
        ("roberta-base", "bf16", False, True),
    ]
    assert all(b.model == "smollm2" for b in settings[1::2])
    assert {(s.r, s.targets, s.device) for s in settings} == {(16, "all-linear", "cuda")}


def test_what_the_table_says():
    def row(total, to_peft, own):
        return {"seconds": {"total": [total] * 3}, "to_peft": [to_peft] * 3, "own_to_peft": own}

    record = {
        "setting": Setting(r=16, precision="bf16", device="cuda", compiled=True).to_dict(),
        "hardware": {"accelerator": "NVIDIA X"},
        "bytes": {"fast": {"peak": 3 * 2**30}},
        "summary": {
            "full": row(0.060, 1.2, [2.0] * 3),
            "floor": {"seconds": {"total": [0.04] * 3}, "to_peft": [0.8] * 3},
            "fast": row(0.045, 0.9, [0.4, 0.5, 0.6]),
            "teaching": row(0.045, 0.9, None),
            "peft-half": row(0.04, 0.8, [-0.1, 0.0, 0.1]),
            "loralib": row(1.0, 1.0, None),
        },
    }
    heading, _, *lines = speed_table([record]).splitlines()
    assert heading == "roberta-base, 16 × 128, r = 16, query-value, bf16, compiled (NVIDIA X)"
    assert [line.split() for line in lines] == [
        ["full", "fine-tuning", "60.00", "ms", "0.83", "-", "-"],
        ["frozen", "floor", "40.00", "ms", "1.25", "-", "-"],
        ["LoRA,", "plain", "45.00", "ms", "1.11", "lost", "-"],
        ["LoRA,", "fast", "45.00", "ms", "1.11", "2.00", "3,072", "MiB"],
        ["PEFT,", "bf16", "factors", "40.00", "ms", "1.25", "lost", "-"],
    ]
    assert speed_table([record, record]).count("\n\nroberta-base") == 1 and speed_table([]) == ""


@pytest.mark.parametrize("words", [["--plan", "gpu"], ["--plan", "short", "--device", "cuda"]])
def test_without_a_gpu_it_is_refused_before_any_work(words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        speed.main(words)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert "torch sees none here: run this on a machine with an NVIDIA GPU" in said


def test_with_a_gpu_the_plan_has_settings_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = speed.parse(["--plan", "gpu"])
    assert (asked.device, asked.total, asked.rounds, asked.shortest) == ("cuda", 380, 11, 0.1)
    assert {setting.device for setting in asked.settings} == {"cuda"}
    assert asked.variants == list(GPU_VARIANTS)
    other = speed.parse(["--plan", "gpu", "--rounds", "3", "--total", "60", "--variants", "fast", "peft"])
    assert (other.total, other.rounds, other.variants) == (60, 3, ["fast", "peft"])
    plain = speed.parse([])
    assert (plain.device, plain.total, plain.rounds, plain.shortest) == ("cpu", None, 15, 0.05)


def test_one_setting_that_fails_does_not_cost_the_others(monkeypatch, tmp_path, capsys):
    seen = []

    def run(setting, arguments, deadline, to_come):
        seen.append(to_come)
        if len(seen) == 1:
            raise torch.OutOfMemoryError("too large")
        return f"{setting.name}: fine"

    monkeypatch.setattr(speed, "run_times", run)
    assert speed.main(["--model", "linear-8-6", "linear-6-8", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert seen == [2, 1] and "OutOfMemoryError: too large" in said.err
    first, second = said.out.splitlines()
    assert first.endswith("failed, and nothing was written") and second.endswith(": fine")


def test_a_deadline_ends_between_the_forms_and_shares_what_is_left(monkeypatch):
    made, moment = [], iter(range(100))

    class Fake:
        def __init__(self, bench, variant, clock):
            made.append(variant)

        def timed(self, steps):
            pass

    monkeypatch.setattr(speed_measure, "Trainer", Fake)
    monkeypatch.setattr(speed_measure, "first_pass", lambda trainer: (1.0, None))
    deadline = speed_measure.Deadline(3, now=lambda: next(moment))  # 0: the end is at 3
    bench = type("Bench", (), {"setting": Setting()})
    with pytest.raises(speed_measure.OutOfTimeError):
        speed_measure.prepare(bench, list("abcd"), "wall", deadline)  # 1, 2, and over at 3
    assert made == ["a", "b"]
    assert speed_measure.Deadline(60, now=lambda: 0).share(4) == 15
    assert speed_measure.Deadline(-1, now=lambda: 0).share(4) == 0


def test_on_a_packed_base_each_form_has_its_own_layers(tiny):
    bench = speed_variants.make_bench(Setting("smollm2", 1, 4, r=4, targets="all-linear", precision="nf4"))
    name = bench.names[0]
    base = bench.base.get_submodule(name)
    layers = {v: speed_variants.build(bench, v).get_submodule(name) for v in bench.setting.variants}
    assert type(base) is Linear4bit and base.weight.quant_type == "nf4"
    kinds = {v: type(layer) for v, layer in layers.items()}
    assert kinds == {
        "floor": speed_variants.FloorLinear4bit,
        "teaching": LoraLinear4bit,
        "peft": PeftLinear4bit,
        "peft-half": PeftLinear4bit,
    }
    for variant, layer in layers.items():
        packed = layer.base_layer if variant.startswith("peft") else layer
        assert packed.weight.data_ptr() == base.weight.data_ptr()  # one copy of the codes for all
        assert packed.compute_dtype == torch.bfloat16
    factors = {v: layers[v].lora_A["default"].weight.dtype for v in ("peft", "peft-half")}
    assert factors == {"peft": torch.float32, "peft-half": torch.bfloat16}
    assert layers["teaching"].lora_A.dtype == torch.float32


@pytest.mark.slow
def test_a_compiled_layer_is_one_graph_for_all_layers_of_the_stack(tiny):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    asked = Setting("smollm2", 2, 16, r=4, targets="all-linear", precision="bf16", compiled=True)
    trainers, _ = speed_measure.prepare(speed_variants.make_bench(asked), ["teaching", "fast", "peft"])
    assert not counters["graph_break"], dict(counters["graph_break"])
    # layer 0, whose input needs no gradient, and all others; in three forms
    assert counters["stats"]["unique_graphs"] == 6
    torch._dynamo.reset()
    assert set(trainers) == {"teaching", "fast", "peft"}


class Event:
    """A mark on a GPU's time line that moves on by one millisecond a mark."""

    now = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 1
        self.at = Event.now

    def elapsed_time(self, later):
        return later.at - self.at


def test_on_a_gpu_events_are_read_once_for_all_steps(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    watch = speed_measure.Stopwatch("cuda")
    for _ in range(2):
        watch.start()
        watch.mark()
        watch.mark()
    assert not waited
    assert watch.seconds() == [[0.001, 0.001], [0.001, 0.001]]
    assert len(waited) == 1 and watch.seconds() == []


def test_on_a_gpu_peaks_are_torchs_own_account(monkeypatch, tiny):
    held = {"now": 1000, "peak": 1000}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(peak=held["now"]))
    bench = speed_variants.make_bench(Setting("linear-8-6", 1, 4, r=2, targets="all-linear"))
    trainers, _ = speed_measure.prepare(bench, ["fast", "floor"])
    for trainer, more in zip(trainers.values(), (500, 300), strict=True):
        trainer.setting = Setting("linear-8-6", targets="all-linear", device="cuda")
        step = trainer.step
        trainer.step = lambda step=step, more=more: (step(), held.update(peak=held["now"] + more))
    found = speed_memory.step_peaks(trainers)
    factors, weight = 2 * (8 + 6), 8 * 6 + 6
    assert found["fast"] == {
        "weights": 4 * (weight + factors),
        "optimizer": 2 * 4 * factors + 2 * 4,
        "above": 500,
        "peak": 4 * (weight + factors) + 2 * 4 * factors + 8 + 500,
    }
    assert found["floor"]["peak"] == 4 * weight + 300


def test_a_record_from_a_gpu_names_it_and_its_cuda(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    speed.save(tmp_path / "x.json", "times", Setting(device="cuda"), {"variants": []})
    (record,) = speed_records(folder=tmp_path, device="cuda")
    assert record["hardware"]["accelerator"] == "NVIDIA X" and "cuda" in record["versions"]
