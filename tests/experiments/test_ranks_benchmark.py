"""The runs on rank, scale and placement: what is matched is matched, and what is done is not done twice."""

from collections import defaultdict

import pytest
import ranks
from ranks import EPOCHS, MATCHED, RANKS, SEEDS, Run

from lora_tutorial.lora.parameters import count_parameters
from lora_tutorial.training.records import load_record, stored_records


def test_the_scale_is_the_same_whatever_the_rule_and_the_rank():
    configs = [Run("lora", 1e-3, r=r, rule=rule).lora() for r in RANKS for rule in ("plain", "rslora")]
    assert {round(config.scaling, 12) for config in configs} == {2.0}
    assert {
        Run("lora", 1e-3, r=r, rule=rule).lora().scaling for r in (8, 64) for rule in ("plain", "rslora")
    } == {2}
    assert Run("full", 1e-4).lora() is None


@pytest.mark.slow
def test_placements_train_the_same_count_within_three_per_cent():
    built = {place: ranks.build(Run("lora", 1e-3, r=r, place=place)) for place, r in MATCHED.items()}
    counts = {place: count_parameters(model).trainable for place, model in built.items()}
    assert counts["query+value"] == counts["attention"] == counts["all-linear"] == 165_888 + 1538
    assert counts["mlp"] == pytest.approx(counts["attention"], rel=0.03)


def test_the_plan_names_every_run_once_and_takes_about_as_many_steps():
    runs = ranks.plan(3e-3, 1e-4)
    assert len({run.name for run in runs}) == len(runs)
    for seed in SEEDS:
        assert {run.r for run in runs if run.seed == seed and run.rows == 1000} >= set(RANKS)
        little = {(run.method, run.rows) for run in runs if run.seed == seed}
        assert little >= {(method, rows) for method in ("lora", "full") for rows in EPOCHS}
    steps = [epochs * -(-rows // 16) for rows, epochs in EPOCHS.items()]
    assert min(steps) == 126 and max(steps) == 188


def test_the_best_rate_is_the_lower_one_of_equals():
    def record(rate, score):
        extra = {"scores": {"validation": {"accuracy": score}}}
        return type("Record", (), {"config": {"rate": rate}, "extra": extra})

    assert ranks.best_rate([record(1e-4, 0.7), record(3e-4, 0.8), record(1e-3, 0.8)]) == 3e-4


def test_stored_runs_of_one_scale_ended_in_the_same_weights():
    hashes = defaultdict(set)
    for run in stored_records("ranks/*.json"):
        if run.config.get("method") == "lora" and run.seed == 0 and run.config["rows"] == 1000:
            key = tuple(run.config[name] for name in ("r", "scale", "rate", "place"))
            hashes[key].add((run.config["rule"], run.extra["trained_sha256"]))
    both = [found for found in hashes.values() if len({rule for rule, _ in found}) == 2]
    assert len(both) == 2  # r = 8 and r = 64
    assert all(len({digest for _, digest in found}) == 1 for found in both)


@pytest.mark.slow
def test_the_quick_path_leaves_records_and_does_nothing_twice(tmp_path, monkeypatch):
    arguments = ["--quick", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    chosen = [Run("lora", 1e-3), Run("lora", 1e-3, r=8, rule="rslora"), Run("lora", 1e-3, r=1)]
    monkeypatch.setattr(ranks, "plan", lambda lora, full: chosen)
    ranks.main(arguments)
    names = sorted(path.stem for path in (tmp_path / "out").iterdir())
    assert names == sorted([*(run.name for run in chosen), Run("full", 1e-4).name])
    records = {run: load_record(tmp_path / "out" / f"{run.name}.json") for run in chosen}
    plain, root, one = records.values()
    assert plain.extra["trained_sha256"] == root.extra["trained_sha256"] != one.extra["trained_sha256"]
    assert set(plain.extra["scores"]) == {"validation", "train"} and set(one.extra["scores"]) == {
        "validation"
    }
    assert plain.config["data_sha256"] == one.config["data_sha256"] and len(plain.steps["loss"]) == 2

    monkeypatch.setattr(ranks, "train", lambda *_, **__: pytest.fail("trained again"))
    ranks.main(arguments)
    (tmp_path / "out" / f"{chosen[2].name}.json").write_bytes(
        (tmp_path / "out" / f"{chosen[0].name}.json").read_bytes()
    )
    with pytest.raises(SystemExit, match="record of another run"):
        ranks.main(arguments)
