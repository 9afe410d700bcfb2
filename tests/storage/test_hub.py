"""The path most readers take, with the real clients against a stand-in of the hub on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_data import BAD, GOOD, glue, squad
from hub_server import LARGE, Hub, Repository
from tiny_checkpoint import make_checkpoint

pytestmark = pytest.mark.slow


#: What the child processes share: each step's outcome by name, an error as its type and sentence.
PRELUDE = """
import json, os, sys, time
from lora_tutorial.models.encoders import load_encoder, load_tokenizer
from lora_tutorial.data.sources import load_task

outcome = {"seconds": {}}

def step(name, action):
    begun = time.monotonic()
    try:
        outcome[name] = action()
    except Exception as error:
        outcome[name] = [type(error).__name__, str(error)]
    outcome["seconds"][name] = time.monotonic() - begun

def shape(name):
    data = load_task(name, "hub").data
    return {split: len(rows) for split, rows in data.items()}

def weights(name):
    from lora_tutorial.experiments.run import encoder_hash
    return encoder_hash(load_encoder(name).model)

def train():
    import tempfile
    from lora_tutorial.experiments.run import Experiment, run_experiment
    from lora_tutorial.training.recipes import load_recipe
    recipe = load_recipe("quick", epochs=1, batch_size=4)
    experiment = Experiment(recipe, "cola", "roberta-base", source="hub")
    finished = run_experiment(experiment, progress=False, cpu=True)
    return [finished.record.config["encoder"], finished.record.steps["loss"], finished.scores["trained"]]
"""
ONLINE = """
step("weights", lambda: weights("roberta-base"))
step("tokens", lambda: load_tokenizer("roberta-base")("The cat sat.")["input_ids"])
step("cola", lambda: shape("cola"))
step("squad", lambda: load_task("squad", "hub").data["validation"][0])
step("train", train)
step("no such model", lambda: weights("someone/absent"))
step("other bytes", lambda: weights("someone/other-bytes"))
step("cut short", lambda: weights("someone/cut-short"))
step("small file", lambda: weights("someone/small-file"))
step("parquet of other bytes", lambda: shape("mrpc"))
step("no such configuration", lambda: shape("wnli"))
step("no such data set", lambda: shape("squad_v2"))
step("not parquet", lambda: shape("rte"))
"""
LATER = """
step("weights", lambda: weights("roberta-base"))
step("cola", lambda: shape("cola"))
step("squad", lambda: load_task("squad", "hub").data["validation"][0])
step("train", train)
step("other model", lambda: weights("someone/never-seen"))
step("damaged before", lambda: weights("someone/other-bytes"))
step("other configuration", lambda: shape("qqp"))
step("other data set", lambda: shape("squad_v2"))
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    model = make_checkpoint(root / "model", GOOD + BAD)
    whole = (model / "model.safetensors").read_bytes()
    flipped = whole[:-4] + bytes(byte ^ 1 for byte in whole[-4:])
    config = (model / "config.json").read_bytes()
    assert len(config) < LARGE < len(whole)
    glue_folder = glue(root / "glue")
    file = "mrpc/train-00000-of-00001.parquet"
    parquet = (glue_folder / file).read_bytes()
    assert len(parquet) > LARGE
    changed = parquet.replace(b"mat", b"rat", 1)
    assert changed != parquet and len(changed) == len(parquet)
    return {
        ("models", "roberta-base"): Repository(model),
        ("models", "someone/other-bytes"): Repository(model, {"model.safetensors": flipped}),
        ("models", "someone/cut-short"): Repository(model, {"model.safetensors": whole[:-100]}),
        ("models", "someone/small-file"): Repository(model, {"config.json": config.replace(b"24", b"42")}),
        ("datasets", "nyu-mll/glue"): Repository(glue_folder, {file: changed}),
        ("datasets", "rajpurkar/squad"): Repository(squad(root / "squad")),
    }


#: One process imports everything; a fork of it finds the hub, and it itself goes on when the hub is gone.
ONE_AFTER_THE_OTHER = f"""
if os.fork() == 0:
    exec({ONLINE!r})
    print(json.dumps(outcome), flush=True)
    os._exit(0)
sys.stdin.readline()
exec({LATER.replace('step("train", train)', "")!r})
print(json.dumps(outcome))
"""


def child(script, address, home, **environment):
    """Start a script in a fresh Python that knows the hub by `address`."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LORA_TUTORIAL_DATA"))
    }
    clean |= {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "LORA_TUTORIAL_CACHE": str(home / "own"),
        **environment,
    }
    clean |= {"NO_PROXY": "127.0.0.1,localhost", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    command, pipe = [sys.executable, "-c", PRELUDE + script], subprocess.PIPE
    return subprocess.Popen(command, env=clean, stdin=pipe, stdout=pipe, text=True)


VISITS = ("online", "gone", "offline")


@pytest.fixture(scope="module")
def visits(repositories, tmp_path_factory):
    """One process with the hub, then one that finds nobody at the address and one offline, in one cache."""
    home = tmp_path_factory.mktemp("hf-home")
    hub = Hub(repositories)
    with child(ONE_AFTER_THE_OTHER, hub.address, home) as first:
        with hub:
            online = first.stdout.readline()
        gone, _ = first.communicate("the hub is gone\n", timeout=600)
    with child(LATER + "\nprint(json.dumps(outcome))", hub.address, home, HF_HUB_OFFLINE="1") as last:
        offline, _ = last.communicate(timeout=600)
    return {
        **{name: json.loads(said) for name, said in zip(VISITS, (online, gone, offline), strict=True)},
        "requests": hub.requests,
        "home": home,
    }


def sentence(found, error, *words):
    """One line that names the error's cause and what works without the hub."""
    assert found[0] == error, found
    assert "\n" not in found[1] and len(found[1]) < 600
    for word in words:
        assert word in found[1], found


def test_encoder_and_tasks_arrive_whole(visits, repositories):
    from lora_tutorial.experiments.run import encoder_hash
    from lora_tutorial.models.encoders import load_encoder

    online = visits["online"]
    source = repositories["models", "roberta-base"]
    cached = visits["home"] / "hub" / "models--roberta-base" / "snapshots" / source.revision
    assert online["weights"] == encoder_hash(load_encoder(cached).model)
    assert (cached / "model.safetensors").read_bytes() == source.files["model.safetensors"]
    assert online["tokens"][0] == 0 and online["tokens"][-1] == 2 and len(online["tokens"]) > 5
    assert online["cola"] == {"train": 16, "validation": 8}, "the test split has no labels"
    assert online["squad"]["answers"] == {"text": ["Ada Example"], "answer_start": [24]}


def test_what_is_fetched_is_pinned_to_the_revision(visits, repositories):
    asked = [request for request in visits["requests"] if "/resolve/" in request]
    model = repositories["models", "roberta-base"].revision
    assert f"HEAD /roberta-base/resolve/{model}/model.safetensors" in asked
    assert visits["requests"].count("GET /storage/models/roberta-base/-/model.safetensors") == 1
    glue_revision = repositories["datasets", "nyu-mll/glue"].revision
    assert any(f"/datasets/nyu-mll/glue/resolve/{glue_revision}/cola/train-" in request for request in asked)
    assert not any("roberta-base/resolve/main" in request for request in asked)
    assert not any("glue/resolve/main/" in request and "parquet" in request for request in asked)


def test_training_runs_on_what_came_from_the_hub(visits):
    encoder, losses, scores = visits["online"]["train"]
    assert encoder == "roberta-base" and len(losses) == 4 and set(scores) == {"matthews"}


@pytest.mark.parametrize("visit", ["offline", "gone"])
def test_after_one_visit_no_hub_is_needed(visits, visit):
    later = visits[visit]
    for name in {"weights", "cola", "squad", "train"} & set(later):
        assert later[name] == visits["online"][name]


@pytest.mark.parametrize("visit", ["offline", "gone"])
def test_what_was_never_fetched_is_one_sentence_with_what_to_do(visits, visit):
    later = visits[visit]
    sentence(later["other model"], "HubUnreachableError", "never-seen", "'minilm'", "weights='random'")
    sentence(later["damaged before"], "HubUnreachableError", "other-bytes", "'minilm'")
    sentence(later["other configuration"], "HubUnreachableError", "glue", "LORA_TUTORIAL_DATA", "'reviews'")
    sentence(later["other data set"], "HubUnreachableError", "squad_v2", "LORA_TUTORIAL_DATA")
    assert later["seconds"]["other data set"] < 60, "nobody waits for a hub that does not answer"


def test_what_the_hub_does_not_have_is_one_sentence(visits):
    online = visits["online"]
    sentence(online["no such model"], "ValueError", "no model 'someone/absent'", "'minilm'")
    sentence(
        online["no such data set"], "ValueError", "no dataset 'rajpurkar/squad_v2'", "LORA_TUTORIAL_DATA"
    )
    sentence(online["no such configuration"], "ValueError", "wnli", "LORA_TUTORIAL_DATA")


def test_a_damaged_file_is_refused_and_not_kept(visits):
    online, cache = visits["online"], visits["home"] / "hub"
    sentence(online["other bytes"], "ValueError", "model.safetensors", "other bytes", "'minilm'")
    sentence(online["small file"], "ValueError", "config.json", "other bytes", "'minilm'")
    sentence(online["cut short"], "HubUnreachableError", "cut-short", "'minilm'")
    sentence(
        online["parquet of other bytes"], "ValueError", "train-00000-of-00001.parquet", "LORA_TUTORIAL_DATA"
    )
    sentence(online["not parquet"], "ValueError", "'rte' cannot be read", "LORA_TUTORIAL_DATA")
    for name in ("other-bytes", "cut-short"):
        assert not list((cache / f"models--someone--{name}").rglob("model.safetensors"))
    assert Path(cache / "models--roberta-base").is_dir()
