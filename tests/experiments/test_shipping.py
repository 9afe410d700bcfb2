"""Which adapters are shipped, with which card, and where they are found again."""

import contextlib
import shutil
from pathlib import Path

import pytest
from bench_rows import BRIEF
from command_line import fails, run
from safetensors.torch import load_file, save_file

from lora_tutorial import load_adapter
from lora_tutorial.adapters.files import stored_adapter, stored_adapters
from lora_tutorial.data.tasks import DATA, TASKS
from lora_tutorial.experiments import ship as shipping
from lora_tutorial.experiments.bench import run_grid
from lora_tutorial.experiments.grid import Arm, Grid
from lora_tutorial.experiments.ship import ship_adapter
from lora_tutorial.models.encoders import ENCODERS
from lora_tutorial.storage import files
from lora_tutorial.training.records import load_record

pytest_plugins = ["bench_fixtures"]
NAME = "sst2-lora-seed0"


@pytest.fixture(scope="module")
def finished(data, encoder, tmp_path_factory):
    """A real run of the grid: its folder and its record."""
    folder = tmp_path_factory.mktemp("grid")
    with contextlib.chdir(Path(encoder).parent):  # a name that means nothing elsewhere, as one of the hub
        grid = Grid(("sst2",), (Arm("lora", "lora"),), (0,), "tiny", str(data), changes=BRIEF)
        run_grid(grid, folder / "results", folder / "work", say=str, progress=False, cpu=True)
    return folder / "work" / NAME, folder / "results" / f"{NAME}.json"


@pytest.fixture
def copy(finished, tmp_path):
    """The run and its record, to be changed: ``copy(record=..., tensors=...)`` takes functions that do."""

    def make(record=lambda r: None, tensors=lambda t: None):
        shutil.copytree(finished[0], tmp_path / NAME)
        found = load_record(finished[1])
        record(found)
        found.save(tmp_path / "record.json")
        weights = tmp_path / NAME / "adapter" / "adapter.safetensors"
        held = load_file(weights)
        tensors(held)
        save_file(held, weights, metadata={"format": "pt"})
        return tmp_path / NAME, tmp_path / "record.json"

    return make


def test_a_finished_run_is_shipped_with_its_card(finished, tmp_path, encoder, data):
    folder = ship_adapter(*finished, tmp_path / "adapters")
    assert folder == tmp_path / "adapters" / "sst2"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "adapter.json", "adapter.safetensors"]
    for name in ("adapter.json", "adapter.safetensors"):
        assert (folder / name).read_bytes() == (finished[0] / "adapter" / name).read_bytes()
    record, card = load_record(finished[1]), (folder / "README.md").read_text()
    assert f"accuracy {record.extra['scores']['trained']['accuracy']:.4f}" in card
    for part in (
        "# LoRA adapter for sst2",
        f"{DATA['sst2'].name} ({DATA['sst2'].licence})",
        "| Base | tiny |",
        "validation, 24 rows, after the last epoch",
        f"lora, {record.trainable_parameters:,} parameters",
        "r = 8, lora_alpha = 8 (scale lora_alpha / r)",
        f"learning_rate {record.recipe['learning_rate']}",
        "seed 0",
        "40 examples of the training split",
        f"benchmarks/results/{NAME}.json",
        "by its model card: not looked up for this base.",
        'load_adapter(stored_adapter("sst2"))',
        '`lora-tutorial predict sst2 "sentence"`',
        'license: "mit"',
    ):
        assert part in card, part
    assert "peft" not in card.lower() and str(data) not in card and encoder not in card
    assert ship_adapter(*finished, tmp_path / "adapters") == folder, "the same again replaces it"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record": lambda r: setattr(r, "status", "running")}, "record.json is running"),
        ({"record": lambda r: setattr(r, "status", "failed")}, "record.json is failed"),
        ({"record": lambda r: r.extra.update(sweep={})}, "record.json is a sweep's"),
        ({"record": lambda r: r.extra.pop("adapter_sha256")}, "record.json scored None"),
        ({"tensors": lambda t: next(iter(t.values())).add_(1)}, "is damaged"),
        (
            {"record": lambda r: r.extra.update(adapter_sha256="0" * 64)},
            "has SHA-256 .* record.json scored 000",
        ),
        ({"record": lambda r: r.extra["scores"]["trained"].update(accuracy=1.5)}, "record.json says.*1.5"),
        ({"record": lambda r: r.config.update(task="cola")}, "says task 'sst2', and record.json says 'cola'"),
        ({"record": lambda r: r.config.update(data_sha256="0")}, "says data_sha256"),
    ],
)
def test_what_the_record_does_not_vouch_for_is_not_shipped(copy, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        ship_adapter(*copy(**change), tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()


def test_size_base_and_origin_are_checked(finished, tmp_path, encoder, monkeypatch):
    size = sum(f.stat().st_size for f in ship_adapter(*finished, tmp_path / "a").iterdir())
    monkeypatch.setattr(shipping, "LIMIT", size)
    with pytest.raises(ValueError, match=f"has {size:,} bytes, not under {size:,}"):
        ship_adapter(*finished, tmp_path / "adapters")
    monkeypatch.setattr(shipping, "LIMIT", size + 1)
    ship_adapter(*finished, tmp_path / "a")
    monkeypatch.undo()
    assert shipping.LIMIT == 1_000_000
    monkeypatch.delitem(DATA, "sst2")
    with pytest.raises(ValueError, match="Say in data/tasks.py where the data of 'sst2' come from"):
        ship_adapter(*finished, tmp_path / "adapters")
    monkeypatch.undo()
    with contextlib.chdir(Path(encoder).parent), pytest.raises(ValueError, match="is a folder, tiny"):
        ship_adapter(*finished, tmp_path / "adapters")
    with pytest.raises(FileNotFoundError, match="adapter.json is missing"):
        ship_adapter(tmp_path, finished[1], tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()


@pytest.mark.parametrize("place", ["repository", "installed package"])
def test_adapters_are_found_in_the_repository_and_in_an_installed_package(
    finished, tmp_path, monkeypatch, capsys, encoder, place
):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "lora_tutorial" / "storage" / "files.py"))
    assert stored_adapters() == {}
    with pytest.raises(FileNotFoundError, match="no adapter folder 'sst2'.*are not installed"):
        stored_adapter("sst2")
    where = "benchmarks/adapters" if place == "repository" else "lora_tutorial/shipped"
    folder = ship_adapter(*finished, tmp_path / where)
    assert stored_adapters() == {"sst2": folder} and stored_adapter("sst2") == folder
    with pytest.raises(FileNotFoundError, match="no adapter folder 'cola'.*with the book are sst2"):
        stored_adapter("cola")
    monkeypatch.chdir(Path(encoder).parent)
    assert load_adapter(stored_adapter("sst2")).adapter_metadata["task"] == "sst2"
    lines = run("predict", "sst2", "a bright day", "a grey day").splitlines()
    assert len(lines) == 2 and "a grey day" in lines[1] and "tive 0." in lines[0]
    assert "no adapter folder 'cola'" in fails(monkeypatch, capsys, "predict", "cola", "a day")


def test_the_wheel_carries_the_adapters():
    import tomllib

    root = Path(__file__).resolve().parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == {f"lora_tutorial.{copy}": own for copy, own in files.FOLDERS.items()}
    assert set(settings["package-dir"]) < set(settings["packages"])
    top = root / settings["package-dir"]["lora_tutorial.shipped"]
    patterns = settings["package-data"]["lora_tutorial.shipped"]
    packed = {path for pattern in patterns for path in top.glob(pattern)}
    assert packed >= {file for folder in stored_adapters().values() for file in folder.iterdir()}
    assert all(folder.parent == top for folder in stored_adapters().values())


def test_every_task_says_where_its_data_come_from():
    known = {name for name in TASKS if not name.endswith("-rating")}
    assert known <= DATA.keys()
    for origin in (*DATA.values(), *ENCODERS.values()):
        assert all(isinstance(part, str) for part in origin) and origin.name and origin.licence
    listed = {task for task, origin in DATA.items() if "on the list" in origin.read_by_minilm}
    unlisted = {task for task, origin in DATA.items() if "not on the list" in origin.read_by_minilm}
    assert {"mnli", "qqp", "qnli", "squad", "squad_v2"} <= listed - unlisted
    assert {"cola", "sst2", "mrpc", "rte", "wnli"} <= unlisted


def test_the_overlaps_it_states_are_those_of_the_data(data_folder):
    import pyarrow.parquet

    for task, count in {"cola": 16, "stsb": 6, "sst2": 0, "mrpc": 0, "rte": 0, "wnli": 0}.items():
        columns = list(TASKS[task].columns)
        train, validation = (
            [
                tuple(row[c].lower().strip() for c in columns)
                for row in pyarrow.parquet.read_table(data_folder / task / f"{split}.parquet").to_pylist()
            ]
            for split in ("train", "validation")
        )
        known = set(train)
        assert sum(row in known for row in validation) == count
        assert DATA[task].overlap.startswith(f"{count} of the {len(validation):,}" if count else "")
        assert bool(DATA[task].overlap) == bool(count)
