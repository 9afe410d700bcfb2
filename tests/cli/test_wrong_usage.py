"""The installed script, used wrongly: a sentence in a box, exit status 2, nothing printed or written."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from command_line import call, contents, ends, environment, installed_script, unboxed

from lora_tutorial.adapters.files import stored_adapter
from lora_tutorial.cli import checks

QUICK = ["train", "reviews"]  # embedded, so that only what follows can be wrong
CASES = {
    "no command": ([], "Missing command. See lora-tutorial --help."),
    "unknown command": (["tarin"], "No such command 'tarin'"),
    "unknown option": ([*QUICK, "--lr", "1"], "No such option: --lr"),
    "no number": ([*QUICK, "--rank", "big"], "Invalid value for '--rank'"),
    "missing argument": (["predict"], "Missing argument 'adapter'"),
    "not UTF-8": (["train", b"caf\xe9.csv"], "Argument 2 ('caf\ufffd.csv') is not UTF-8"),
    "unknown task": (["train", "sst3"], "There is no task 'sst3'; the tasks are reviews"),
    "two tasks": (["train", "cola", "--task", "rte"], "The task is named twice, 'cola' and 'rte'"),
    "unknown method": ([*QUICK, "--method", "lroa"], "method must be one of head, bitfit"),
    "unknown recipe": ([*QUICK, "--recipe", "fast"], "Unknown recipe 'fast'"),
    "recipe without a row": ([*QUICK, "--recipe", "paper"], "Recipe 'paper' has no row for task 'reviews'"),
    "unknown head": ([*QUICK, "--head", "odd"], "head must be one of tutorial, roberta; got 'odd'"),
    "no encoder folder": ([*QUICK, "--encoder", "./nowhere"], "There is no folder ./nowhere"),
    "encoder is a file": ([*QUICK, "--encoder", "notes.txt"], "There is no folder notes.txt"),
    "folder without a model": ([*QUICK, "--encoder", "empty"], "empty has no config.json"),
    "another architecture": ([*QUICK, "--encoder", "bert"], "bert holds a 'bert' checkpoint"),
    "encoder of a hub out of reach": ([*QUICK, "--encoder", "roberta-huge"], "'roberta-huge'"),
    "negative rank": ([*QUICK, "--rank", "-4"], "r must be the rank, a positive integer; got -4"),
    "rank too large": ([*QUICK, "--rank", "385"], "--rank 385 is more than the 384 rows of minilm's"),
    "alpha not a number": (
        [*QUICK, "--lora-alpha", "nan"],
        "lora_alpha must be positive and finite; got nan",
    ),
    "rate not a number": ([*QUICK, "--learning-rate", "nan"], "learning_rate=nan"),
    "rate beyond all bounds": ([*QUICK, "--learning-rate", "1e38"], "1e+38"),
    "rate above 1": ([*QUICK, "--learning-rate", "3"], "--learning-rate 3 is above 1"),
    "no epoch": ([*QUICK, "--epochs", "0"], "epochs=0: give a whole number of at least 1"),
    "one example": ([*QUICK, "--max-examples", "1"], "--max-examples 1 is too few for reviews"),
    "negative seed": ([*QUICK, "--seed", "-1"], "--seed -1 is not from 0 to 4294967295"),
    "no checkpoint interval": ([*QUICK, "--checkpoint-every", "0"], "--checkpoint-every 0 is not from 1"),
    "unknown tracker": ([*QUICK, "--log-with", "paper"], "Tracker 'paper' is unknown or not installed"),
    "task not embedded": (["train", "cola", "--source", "embedded"], "'cola' is not in source 'embedded'"),
    "no folder of data": (["train", "cola", "--source", "nowhere"], "nowhere/cola has no parquet file"),
    "out is a file": ([*QUICK, "--out", "notes.txt"], "notes.txt is a file, so"),
    "out is below a file": ([*QUICK, "--out", "notes.txt/run"], "notes.txt is a file, so"),
    "out holds a run": ([*QUICK, "--out", "run"], "run holds a run; add --resume"),
    "nothing to resume": ([*QUICK, "--out", "empty", "--resume"], "There is nothing to resume in empty"),
    "start is missing": (
        [*QUICK, "--start", "nowhere"],
        "nowhere is no adapter folder: adapter.json is missing",
    ),
    "start without adapters": ([*QUICK, "--start", "good", "--method", "full"], "--method full trains none"),
    "one process to share with": (
        [*QUICK, "--shard"],
        "over several processes, and here is one: start it as `torchrun --nproc-per-node 2 -m lora_tutorial",
    ),
    "no file": (["train", "none.csv"], "none.csv"),
    "spreadsheet": (["train", "--task", "table.xlsx"], "table.xlsx"),
    "file without labels": (["train", "unlabelled.csv"], "unlabelled.csv"),
    "no adapter folder": (["predict", "nowhere", "text"], "There is no adapter folder 'nowhere'"),
    "adapter is a file": (["predict", "notes.txt", "text"], "notes.txt is a file; give the folder"),
    "folder without an adapter": (["predict", "empty", "text"], "empty is no adapter folder"),
    "adapter is a list": (
        ["predict", "list", "text"],
        "list/adapter.json is damaged: it holds [], no object",
    ),
    "adapter is null": (
        ["predict", "null", "text"],
        "null/adapter.json is damaged: it holds null, no object",
    ),
    "adapter cut short": (["predict", "short", "text"], "short/adapter.json is damaged: it is no JSON"),
    "adapter without a base": (
        ["predict", "baseless", "text"],
        "baseless/adapter.json is damaged: it has no base",
    ),
    "adapter of another format": (["predict", "future", "text"], "future has adapter format 99"),
    "adapter without its task": (
        ["predict", "taskless", "text"],
        "taskless was not saved by `lora-tutorial train`",
    ),
    "too few labels": (["predict", "labels", "text"], "names 1 labels, and the head has 2 outputs"),
    "one text of a pair": (["predict", "mrpc", "a text"], "Task mrpc takes sentence1 and sentence2"),
    "no question": (["predict", "squad", "a text"], "Task squad takes a text and a question about it"),
    "empty text": (["predict", "sst2", " "], "Text 1 is empty"),
    "nothing to run": (["bench"], "Give a grid file (--grid FILE.toml) or tasks (--tasks cola,mrpc)"),
    "no grid": (["bench", "--grid", "nowhere.toml"], "nowhere.toml"),
    "what the grid decides": (
        ["bench", "--grid", "grid.toml", "--max-examples", "100"],
        "--max-examples has no effect beside --grid: grid.toml says what is run",
    ),
    "seeds that are no numbers": (["bench", "--tasks", "cola", "--seeds", "0,x"], "seeds='0,x'"),
    "unknown engine": (
        ["bench", "--tasks", "cola", "--engine", "pbs"],
        "--engine pbs is unknown; give local:N",
    ),
    "no number of workers": (
        ["bench", "--tasks", "cola", "--engine", "local:x"],
        "after local: give how many",
    ),
    "no worker": (["bench", "--tasks", "cola", "--engine", "local:0"], "as in local:4"),
    "half a setting": (
        ["bench", "--tasks", "cola", "--engine", "slurm:partition"],
        "'partition' is no setting; write name=value",
    ),
    "unknown method to compare": (["bench", "--tasks", "cola", "--methods", "lroa"], "method must be one of"),
    "params of nothing": (["params", "roberta-huge"], "'roberta-huge'"),
    "params of too large a rank": (
        ["params", "roberta-base", "--rank", "769"],
        "--rank 769 is more than the 768",
    ),
    "head of no class": (["params", "--num-classes", "0"], "--num-classes 0 is not from 1"),
    "export of the tutorial's head": (["export-peft", "mrpc", "out"], "train it with --head roberta"),
    "import of nothing": (["import-peft", "nowhere", "out"], "There is no folder nowhere"),
    "import of an empty folder": (["import-peft", "empty", "out"], "empty has no adapter_config.json"),
    "import onto a file": (["import-peft", "theirs", "notes.txt"], "notes.txt is a file, so"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with something wrong of every kind in it, and one good adapter."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "notes.txt").write_text("notes")
    (folder / "empty").mkdir()
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "codes").mkdir()
    codes = {"model_type": "roberta", "quantization_config": {"load_in_4bit": True}}
    (folder / "codes" / "config.json").write_text(json.dumps(codes))
    (folder / "codes" / "model.safetensors").write_bytes(b"")
    (folder / "run").mkdir()
    (folder / "run" / "record.json").write_text("{}")
    (folder / "table.xlsx").write_bytes(b"PK\x03\x04")
    (folder / "unlabelled.csv").write_text("text,kind\na,b\n" * 30)
    (folder / "theirs").mkdir()
    (folder / "theirs" / "adapter_config.json").write_text("{}")
    (folder / "theirs" / "adapter_model.safetensors").write_bytes(b"")
    good = json.loads((stored_adapter("sst2") / "adapter.json").read_text())
    few = good | {"metadata": good["metadata"] | {"labels": ["negative"]}}
    written = {
        "good": json.dumps(good),
        "list": "[]",
        "null": "null",
        "short": json.dumps(good)[:50],
        "baseless": json.dumps({key: value for key, value in good.items() if key != "base"}),
        "future": json.dumps(good | {"format": 99}),
        "taskless": json.dumps(good | {"metadata": {}}),
        "labels": json.dumps(few),
    }
    for name, text in written.items():
        shutil.copytree(stored_adapter("sst2"), folder / name)
        (folder / name / "adapter.json").write_text(text)
    return folder


#: Starting Python takes most of the time: every second mistake is made in what the script calls.
HERE = [case for case in list(CASES)[::2] if "roberta-huge" not in CASES[case][0]]  # which asks the hub


@pytest.mark.parametrize("case", [case for case in CASES if case not in HERE])
def test_a_mistake_is_one_sentence(place, case):
    arguments, words = CASES[case]
    before = contents(place)
    done = call(*arguments, cwd=place)
    told = done.stderr.decode()
    assert words in unboxed(told)
    assert "Traceback" not in told and told.startswith("╭─ Error") and told.rstrip().endswith("╯")
    assert (done.returncode, done.stdout) == (2, b"")
    assert contents(place) == before


@pytest.mark.parametrize("case", HERE)
def test_so_it_is_in_what_the_script_calls(place, case, monkeypatch, capsys):
    arguments, words = CASES[case]
    before = contents(place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("LORA_TUTORIAL_DATA", raising=False)
    printed, said = ends(monkeypatch, capsys, *arguments)
    assert words in said and printed == ""
    assert contents(place) == before
    assert len(CASES) - len(HERE) > 25


def test_no_mistake_costs_the_import_of_torch(place):
    """The slow part of every command; a list of all imports is on standard error."""
    for case in (
        "unknown task",
        "rank too large",
        "out holds a run",
        "adapter is null",
        "file without labels",
        "nothing to run",
    ):
        command = [sys.executable, "-X", "importtime", installed_script(), *CASES[case][0]]
        done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
        assert done.returncode == 2 and "typer" in imported
        assert not imported & {"torch", "transformers", "datasets", "accelerate", "pyarrow", "sklearn"}, case


@pytest.mark.parametrize(
    ("count", "arguments", "words"),
    [
        ("3", [], "3 processes cannot share a batch of 16 equally; start as many as divide 16."),
        ("2", ["--shard", "--encoder", "codes"], "those in codes are quantised: codes and scales belong"),
    ],
)
def test_what_several_processes_cannot_share_is_refused_too(
    place, count, arguments, words, monkeypatch, capsys
):
    monkeypatch.chdir(place)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", count)
    printed, said = ends(monkeypatch, capsys, *QUICK, *arguments)
    assert words in said and printed == ""


def seconds(*arguments, cwd):
    started = time.perf_counter()
    call(*arguments, cwd=cwd)
    return time.perf_counter() - started


@pytest.fixture(scope="module")
def seconds_of_help(place):
    return min(seconds("--help", cwd=place) for _ in range(3))


@pytest.mark.parametrize(
    "case",
    ["unknown task", "rank too large", "encoder of a hub out of reach", "adapter is null", "no question"],
)
def test_a_mistake_is_told_about_as_fast_as_help(place, seconds_of_help, case):
    """Importing torch alone takes more than five times as long; what else the machine does only adds."""
    assert any(seconds(*CASES[case][0], cwd=place) < 5 * seconds_of_help for _ in range(3))


def test_what_needs_no_torch_says_what_the_modules_with_torch_say():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    from lora_tutorial import load_encoder
    from lora_tutorial.adapters import files, peft
    from lora_tutorial.experiments.inputs import EVALUATION_BATCH
    from lora_tutorial.models.roberta import HEADS

    assert (checks.HEADS, checks.EVALUATION_BATCH) == (HEADS, EVALUATION_BATCH)
    assert set(checks.TRACKERS) == set(LOGGER_TYPE_TO_CLASS)
    for name in get_available_trackers():
        checks.check_trackers([name.value])
    for name, width in checks.WIDTHS.items():
        assert load_encoder(name, weights="meta").model.config.hidden_size == width
    assert (checks.SETTINGS, checks.TENSORS, checks.FORMATS[-1]) == (
        files.SETTINGS,
        files.TENSORS,
        files.FORMAT,
    )
    assert (checks.PEFT_SETTINGS, checks.PEFT_TENSORS) == (peft.SETTINGS, peft.TENSORS)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that not even root can write")
def test_a_folder_that_cannot_be_written_is_found_before_the_run():
    done = call(*QUICK, "--out", "/proc/run")
    assert "Nothing can be written into /proc" in unboxed(done.stderr.decode())
    assert (done.returncode, done.stdout) == (2, b"")
