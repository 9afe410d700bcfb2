"""The comparison of variants: its quick path runs, its records say what was run, and nothing runs twice."""

import pytest
import variants

from lora_tutorial.training.records import load_record


def test_scales_are_matched_at_rank_8_and_alpha_at_64():
    configs = {name: arm.config() for name, arm in variants.ARMS.items()}
    assert {config.scaling for name, config in configs.items() if name.endswith("-8")} == {2.0}
    assert configs["lora-64"].scaling == 0.25
    assert configs["rslora-64"].scaling == pytest.approx(8**-0.5 * 2)  # 2 at rank 8
    assert variants.Arm("rslora", 8).config().scaling == pytest.approx(2.0)


def test_the_quick_path_leaves_records_and_does_nothing_twice(tmp_path, monkeypatch, capsys):
    arms = ["loraplus-8", "dora-8"]
    variants.main(["--quick", "--out", str(tmp_path), "--arms", *arms])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"{arm}-{what}.json" for arm in arms for what in ("seed0", "sweep-lr1e-03"))
    record = load_record(tmp_path / "dora-8-seed0.json")
    assert record.config["variant"] == "dora" and record.status == "finished"
    assert set(record.extra["scores"]) == {"validation", "test"} and len(record.steps["loss"]) == 4
    assert record.recipe["learning_rate"] == 1e-3
    plus = load_record(tmp_path / "loraplus-8-seed0.json")
    assert record.trainable_parameters - plus.trainable_parameters == 12 * 384  # DoRA's magnitudes
    assert record.config["data_sha256"] == plus.config["data_sha256"]
    sweep = load_record(tmp_path / "dora-8-sweep-lr1e-03.json")
    assert (
        set(sweep.extra["scores"]) == {"validation"}
        and sweep.config["data_sha256"] != record.config["data_sha256"]
    )

    monkeypatch.setattr(variants, "train", lambda *_: pytest.fail("trained again"))
    variants.main(["--quick", "--out", str(tmp_path), "--arms", *arms])
    (tmp_path / "dora-8-seed0.json").write_bytes((tmp_path / "loraplus-8-seed0.json").read_bytes())
    with pytest.raises(SystemExit, match="record of another run"):
        variants.main(["--quick", "--out", str(tmp_path), "--arms", "dora-8"])


def test_the_grid_grows_where_its_end_is_best(tmp_path, monkeypatch):
    tried, ideal = [], [0.0]

    def pretend(path, name, loaded, recipe, seed, scored):
        tried.append(recipe.learning_rate)
        scores = {"validation": {"accuracy": -abs(recipe.learning_rate - ideal[0])}}
        return type("Record", (), {"extra": {"scores": scores}, "main_score": "accuracy"})

    monkeypatch.setattr(variants, "run", pretend)
    monkeypatch.setattr(variants, "held_out", lambda loaded: loaded)
    recipe = variants.load_recipe("quick")
    for best, chosen, extra in ((1e-3, 1e-3, []), (9e-3, 9e-3, [9e-3, 3e-2]), (1e-9, 3e-5, [1e-4, 3e-5])):
        tried.clear()
        ideal[0] = best
        assert variants.choose_rate("lora-8", None, recipe, variants.RATES, tmp_path) == pytest.approx(chosen)
        assert tried[3:] == pytest.approx(extra)
