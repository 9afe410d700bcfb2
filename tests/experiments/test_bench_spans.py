"""The grid runner on questions: windows, articles held out, the adapter kept, and a score made again."""

import json

import pytest
from bench_rows import BRIEF, write
from squad_rows import row
from tiny_checkpoint import make_checkpoint
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention

from lora_tutorial.adapters.files import load_adapter, read_adapter
from lora_tutorial.data import tasks as task_registry
from lora_tutorial.data.sources import load_task
from lora_tutorial.experiments import run as experiments
from lora_tutorial.experiments.evaluate import answers_hash, make_reading, tokenize_rows
from lora_tutorial.experiments.grid import Grid, held_out_split
from lora_tutorial.experiments.run import Experiment, run_experiment
from lora_tutorial.models.encoders import load_tokenizer
from lora_tutorial.squad.evaluator import SquadScorer
from lora_tutorial.training.recipes import load_recipe
from lora_tutorial.training.records import load_record

pytest_plugins = ["bench_fixtures"]
TITLES = ("Rain", "Snow", "Wind", "Sun", "Fog", "Hail")
CHANGES = {**BRIEF, "learning_rate": 1e-3, "max_length": 384}


def article(title, number, unanswered):
    """Questions on one article; every third has no answer in v2."""
    rows = []
    for i in range(number):
        context = f"People like {title.lower()} very much in place {i}. " + "It is so. " * (
            70 if i == 0 else 3
        )
        answer = None if unanswered and i % 3 == 2 else f"place {i}"
        rows.append(row(context, answer, f"{title}{i}", f"Where do people like {title}?", title=title))
    return rows


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad-data")
    write(folder / "squad", "train", [r for title in TITLES for r in article(title, 6, False)])
    write(folder / "squad", "validation", article("Ice", 8, False))
    write(folder / "squad_v2", "validation", [r for title in TITLES for r in article(title, 6, True)])
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    texts = [r["context"] + r["question"] for title in (*TITLES, "Ice") for r in article(title, 2, False)]
    return str(make_checkpoint(tmp_path_factory.mktemp("encoder") / "tiny", texts, max_length=384))


@pytest.fixture
def articles(monkeypatch):
    """The article-wise task with articles of our own."""
    own = task_registry.replace(
        task_registry.TASKS["squad_v2-articles"], train_articles=frozenset(TITLES[:4])
    )
    monkeypatch.setitem(task_registry.TASKS, "squad_v2-articles", own)


def test_a_grid_of_questions_trains_scores_and_keeps_an_adapter(source, tiny, articles, go, tmp_path):
    grid = Grid(("squad", "squad_v2-articles"), ("lora", "head"), (0,), tiny, str(source), changes=CHANGES)
    go(grid)
    for task, scores in (("squad", {"exact_match", "f1"}), ("squad_v2-articles", {"f1", "threshold"})):
        name = f"{task}-tiny-lora-cpu-seed0"
        record = load_record(tmp_path / "results" / f"{name}.json")
        assert record.status == "finished", record.error
        assert record.main_score == "f1" and scores <= set(record.last["scores"])
        split = record.extra["splits"]["validation"]
        assert split["scores"] == record.last["scores"]
        adapter = tmp_path / "work" / name / "adapter"
        assert read_adapter(adapter)[0]["metadata"]["task"] == task
        recipe, loaded = grid.recipe_for(task), load_task(task, source)
        tokenizer = load_tokenizer(tiny)
        tokens = tokenize_rows(loaded, tokenizer, recipe)
        reading = make_reading(loaded, tokenizer, recipe, 0, tokens)
        again = reading.score(load_adapter(adapter), "validation")
        assert again == json.loads(json.dumps(split)), "the adapter gives the record's answers"


def test_what_training_ended_with_is_read_once(source, tiny, monkeypatch):
    calls = []
    original = SquadScorer._score
    monkeypatch.setattr(SquadScorer, "_score", lambda *a: calls.append(a) or original(*a))
    experiment = Experiment(load_recipe("cpu", "squad", epochs=2), "squad", tiny, "lora", str(source))
    done = run_experiment(experiment, progress=False, cpu=True)
    assert len(calls) == 2, "once an epoch"
    split = done.record.extra["splits"]["validation"]
    loaded, tokenizer = done.loaded, load_tokenizer(tiny)
    tokens = tokenize_rows(loaded, tokenizer, experiment.recipe)
    reading = make_reading(loaded, tokenizer, experiment.recipe, 0, tokens)
    assert reading.score(done.model, "validation", split["scores"]) == split and len(calls) == 3


def test_the_recipes_attention_dropout_reaches_each_layer(source, tiny, monkeypatch):
    seen = []

    def look(model, *rest, **options):
        seen.extend(m.dropout.p for m in model.modules() if isinstance(m, RobertaSelfAttention))
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "train", look)
    for dropout in (0.0, 0.3, None):
        recipe = load_recipe("cpu", "squad", attention_dropout=dropout)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(Experiment(recipe, "squad", tiny, "lora", str(source)))
    assert seen == [0.0, 0.0, 0.3, 0.3, 0.1, 0.1], "two layers; the encoder's own is 0.1"


def test_an_untrained_adapter_gives_other_answers_than_the_records(source, tiny, go, tmp_path):
    """Else the test above would prove nothing."""
    grid = Grid(("squad",), ("lora",), (0, 1), tiny, str(source), changes=CHANGES | {"learning_rate": 1e-2})
    go(grid)
    hashes = {
        load_record(path).extra["splits"]["validation"]["predictions_sha256"]
        for path in (tmp_path / "results").glob("*.json")
    }
    assert len(hashes) == 2


def test_v2_is_parted_by_article_and_its_threshold_has_articles_of_its_own(source, tiny, articles):
    loaded = load_task("squad_v2-articles", source)
    assert set(loaded.data["train"]["title"]) == set(TITLES[:4])
    assert set(loaded.data["validation"]["title"]) == set(TITLES[4:])
    recipe = load_recipe("cpu", "squad_v2-articles", max_examples=10)
    assert recipe.max_length == 384
    tokens = tokenize_rows(loaded, load_tokenizer(tiny), recipe)
    assert len(tokens["train"]) == 10, "windows count against max_examples"
    assert len(set(tokens["threshold"]["title"])) == 1
    held = held_out_split(loaded, load_recipe("cpu", "squad"))
    assert not set(held.data["train"]["title"]) & set(held.data["validation"]["title"])
    assert set(held.data["train"]["title"]) | set(held.data["validation"]["title"]) == set(TITLES[:4])


def test_a_development_set_without_the_articles_is_refused(source):
    with pytest.raises(ValueError, match="whole development set.*19 are not there, such as 'Amazon_rain"):
        load_task("squad_v2-articles", source)


def test_the_hash_of_answers_depends_on_each_and_on_their_order():
    first = answers_hash(["Köln", ""])
    assert first != answers_hash(["", "Köln"]) and first != answers_hash(["Koln", ""])
    assert first == answers_hash(("Köln", ""))


def test_the_real_partition_has_the_published_counts(data_folder):
    rows = load_task("squad_v2-articles", data_folder).data
    assert (len(rows["train"]), len(rows["validation"])) == (5795, 6078)
    assert sum(not answer["text"] for answer in rows["validation"]["answers"]) == 3168
