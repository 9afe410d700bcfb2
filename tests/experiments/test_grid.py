"""What a grid calls for next, from its records alone; and grids in TOML files, good and bad."""

from pathlib import Path

import pytest

from lora_tutorial.experiments.grid import Arm, Grid, Search, parse_list, plan, read_grid
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.training.records import RunRecord

ROOT = Path(__file__).resolve().parents[2]
WORK = Path("work")


def record(score):
    """A record that knows its held-out score; ``None`` for a run that diverged."""
    if score is None:
        return RunRecord({}, {}, 0, status="failed", error="NonFiniteLossError: The loss is nan")
    splits = {"held_out": {"scores": {"accuracy": score}}, "validation": {"scores": {"accuracy": 1 - score}}}
    return RunRecord({}, {}, 0, status="finished", main_score="accuracy", extra={"splits": splits})


def follow(grid, scores):
    """Play a grid with a score for each rate; the names of its runs in the order of their making."""
    records, done = {}, []
    while todo := [job for job in plan(grid, WORK, records) if job.name not in records]:
        job = todo[0]
        records[job.name] = record(scores(job))
        done.append(job.name)
    return done


def searching(rates=(1e-3, 2e-3), seeds=(0, 1), **search):
    return Grid(("rte",), (Arm("a", "lora", rates=rates),), seeds, search=Search(**search))


@pytest.mark.parametrize(
    ("best", "runs"),
    [
        (2e-3, ["0.001", "0.002", "0.004"]),  # widened once: 0.004 is worse
        (4e-3, ["0.001", "0.002", "0.004", "0.008"]),
        (2.5e-4, ["0.001", "0.002", "0.0005", "0.00025", "0.000125"]),
    ],
)
def test_a_search_is_widened_until_the_best_rate_lies_inside(best, runs):
    names = follow(searching(), lambda job: -abs(job.rate - best))
    assert names == [f"rte-a-lr{rate}-seed0" for rate in runs] + [f"rte-a-lr{best:g}-seed1"]


def test_it_tries_no_more_rates_than_allowed_and_then_takes_the_best():
    names = follow(searching(most=4), lambda job: job.rate)
    assert len(names) == 5 and names[-1] == "rte-a-lr0.008-seed1"


def test_a_rate_that_diverges_is_the_worst_and_one_that_all_do_ends_the_arm():
    names = follow(searching(), lambda job: None if job.rate > 1e-3 else job.rate)
    assert names == [
        f"rte-a-lr{rate}" for rate in ("0.001-seed0", "0.002-seed0", "0.0005-seed0", "0.001-seed1")
    ]
    assert follow(searching(), lambda job: None) == ["rte-a-lr0.001-seed0", "rte-a-lr0.002-seed0"]


def test_a_run_that_begins_with_another_waits_for_it_and_for_its_best_rate():
    arms = (Arm("a", "lora", rates=(1e-3, 2e-3, 4e-3)), Arm("p", "probe"))
    begun = Grid(
        ("mnli-premises", "rte"),
        arms,
        (0,),
        search=Search(),
        of_task={"rte": {"start_from": "mnli-premises"}},
    )
    first = [job.name for job in plan(begun, WORK, {})]
    assert first == [
        *(f"mnli-premises-a-lr{r}-seed0" for r in ("0.001", "0.002", "0.004")),
        "mnli-premises-p-seed0",
        "rte-p-seed0",
    ]
    records = {name: record({"0.002": 0.9}.get(name.split("-lr")[-1].split("-")[0], 0.1)) for name in first}
    later = [job for job in plan(begun, WORK, records) if job.name.startswith("rte-from-mnli-premises-a")]
    assert len(later) == 3
    for job in later:
        assert job.start.name == "mnli-premises-a-lr0.002-seed0"
        assert job.experiment.start == WORK / job.start.name
        assert job.experiment.recipe.start_from == "mnli-premises"


def test_seeds_and_recipe_of_a_task_and_changes_of_an_arm():
    arms = (Arm("a", "lora"), Arm("b", "full", changes={"batch_size": 32}))
    grid = Grid(
        ("rte", "mrpc"), arms, (0,), changes={"epochs": 4}, of_task={"mrpc": {"seeds": (0, 1), "epochs": 5}}
    )
    jobs = {job.name: job.experiment for job in plan(grid, WORK, {})}
    assert set(jobs) == {
        "rte-a-seed0",
        "rte-b-seed0",
        "mrpc-a-seed0",
        "mrpc-a-seed1",
        "mrpc-b-seed0",
        "mrpc-b-seed1",
    }
    assert jobs["rte-a-seed0"].recipe.epochs == 4 and jobs["mrpc-b-seed1"].recipe.epochs == 5
    assert jobs["rte-b-seed0"].recipe.batch_size == 32 != jobs["rte-a-seed0"].recipe.batch_size
    assert jobs["rte-a-seed0"].held_out == 0 and jobs["rte-a-seed0"].arm == "a"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"tasks": ("sst3",)}, "no task 'sst3'"),
        ({"tasks": ()}, r"tasks=\(\): give at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"recipe": "fast"}, "Unknown recipe 'fast'"),
        ({"changes": {"epochs": 0}}, "epochs=0"),
        ({"of_task": {"cola": {}}}, "of_task names 'cola'"),
        ({"changes": {"start_from": "mnli"}}, "rte starts from mnli, which is not before it"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        Grid(**{"tasks": ("rte",), **parts})


def test_arms_searches_and_lists_that_cannot_be_are_refused():
    for arm, words in (
        ({"method": "lroa"}, "method must be one of head"),
        ({"method": "lora", "rates": (1e-3, 1e-3)}, "each once"),
        ({"method": "lora", "rates": (0.0,)}, "above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            Arm("a", **arm)
    for search in ({"held_out": 1.0}, {"factor": 1.0}, {"most": 0}):
        with pytest.raises(ValueError, match="search: "):
            Search(**search)
    with pytest.raises(ValueError, match="seeds='0,one': give int values"):
        parse_list("seeds", "0,one", int)


GRID = """
tasks = ["rte"]
seeds = [3]
[recipe]
name = "quick"
epochs = 2
[search]
most = 3
[of_task.rte]
max_examples = 50
[[arm]]
name = "all-4"
method = "lora"
rates = [1e-3]
lora = {r = 4, target_modules = "all-linear", use_rslora = true}
[[arm]]
name = "some"
method = "full"
only = ["query"]
"""


def test_a_file_says_the_same(tmp_path):
    (tmp_path / "g.toml").write_text(GRID)
    grid = read_grid(tmp_path / "g.toml")
    lora = LoraConfig(r=4, target_modules="all-linear", use_rslora=True)
    assert grid == Grid(
        ("rte",),
        (Arm("all-4", "lora", lora, rates=(1e-3,)), Arm("some", "full", only=("query",))),
        (3,),
        recipe="quick",
        changes={"epochs": 2},
        search=Search(most=3),
        of_task={"rte": {"max_examples": 50}},
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tasks", "task", "grid has no entry task; it has tasks, arms"),
        ('tasks = ["rte"]', "", "grid lacks tasks"),
        ("most", "mots", "search has no entry mots"),
        ("method", "methode", "arm 'all-4' has no entry methode"),
        ('method = "lora"', "", "arm 'all-4' lacks method"),
        ("r = 4", "rank = 4", "Unknown LoRA settings: rank"),
        ("r = 4", "r = 0", "r must be the rank"),
        ("epochs", "epoch", "no field epoch"),
        ("[[arm]]", "[[arm]", "is not TOML"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_name(tmp_path, old, new, words):
    path = tmp_path / "g.toml"
    path.write_text(GRID.replace(old, new))
    with pytest.raises(ValueError, match=words) as refused:
        read_grid(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no grid file"):
        read_grid(tmp_path / "absent.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "grids").glob("*.toml")), ids=lambda p: p.stem)
def test_the_committed_grids_can_be_read_and_search_alike(path):
    grid = read_grid(path)
    counts = {len(arm.rates) for arm in grid.arms if arm.method != "probe"}
    assert len(counts) == 1, "each arm begins with as many rates"
    assert len({arm.pooling for arm in grid.arms}) == 1 or path.stem == "pooling"


def test_the_fair_grid_has_the_protocols_arms_and_rates():
    grid, protocol = (
        read_grid(ROOT / "benchmarks/grids/glue.toml"),
        (ROOT / "benchmarks/PROTOCOL.md").read_text(),
    )
    for arm in grid.arms:
        assert f"| `{arm.name}` |" in protocol
        if arm.method == "lora":
            assert arm.lora.lora_alpha == 32 and min(arm.rates) == 1.25e-4 and max(arm.rates) == 2e-3
    assert grid.seeds_of("rte") == grid.seeds_of("mrpc") == (0, 1, 2, 3, 4) and grid.seeds_of("cola") == (
        0,
        1,
        2,
    )
    recipe = grid.recipe_for("cola", grid.arms[1])
    assert (recipe.patience, recipe.keep_best, recipe.schedule, recipe.epochs) == (2, True, "constant", 8)
    assert recipe.weight_decay == 0 and recipe.batch_size == 16 and grid.search == Search(0.2, 2.0, 9)
    assert {grid.recipe_for(task, arm).max_examples for task in grid.tasks for arm in grid.arms} == {2500}
