"""The trial of LoRA on every linear layer: what trains, and that nothing runs twice."""

import places
import pytest

from lora_tutorial.training.records import load_record

pytest_plugins = ["bench_fixtures"]

# MiniLM's six layers: four maps of attention are 384 x 384, the MLP's two are 384 x 1536.
FACTORS = 6 * 8 * (4 * (384 + 384) + 2 * (384 + 1536))
HEAD = 2 * 384 + 2 * 384 + 2  # LayerNorm, then the classifier


def test_all_linear_layers_and_the_head_train_and_a_second_call_reads_the_record(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_TUTORIAL_DATA", str(data))
    order = ["sst2", "--max-examples", "16", "--epochs", "1", "--rates", "1e-3", "--out", str(tmp_path)]
    places.main(order)
    (path,) = tmp_path.iterdir()
    record = load_record(path)
    assert path.name == "sst2-minilm-lora-all-linear-lr0.001-seed0.json"
    assert record.trainable_parameters == FACTORS + HEAD
    assert record.status == "finished" and record.last["step"] == 1
    assert record.config["lora"]["target_modules"] == "all-linear" and record.recipe["name"] == "cpu"

    monkeypatch.setattr(places, "train", lambda *_, **__: pytest.fail("trained again"))
    places.main(order)
    path.rename(tmp_path / "sst2-minilm-lora-all-linear-lr0.002-seed0.json")
    with pytest.raises(SystemExit, match="record of another run"):
        places.main([*order[:6], "2e-3", *order[7:]])
