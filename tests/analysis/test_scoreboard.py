"""Records side by side: cells, means, gaps and the published figures beside them; and their two figures."""

import matplotlib
import pytest

from lora_tutorial.analysis.scoreboard import beside_published, collect, gap, shared_facts
from lora_tutorial.training.records import RunRecord

matplotlib.use("agg")


def run(task="mrpc", method="lora", seed=0, scores=(0.6, 0.8, 0.7), **changes):
    main = {"cola": "matthews", "stsb": "pearson"}.get(task, "accuracy")
    made = RunRecord(
        config={"task": task, "method": method, "encoder": "minilm", "lora_rank": 8, "data_sha256": "d"},
        recipe={"epochs": 3, "batch_size": 16, "max_examples": 8000, "max_length": 128, "learning_rate": 0.1},
        seed=seed,
        identity={"examples": 3668},
        status="finished",
        main_score=main,
        trainable_parameters={"head": 1_538, "lora": 75_266, "full": 22_567_298}[method],
        total_parameters=22_788_866,
        hardware={"cpu": "a processor", "cores": 2, "threads": 1},
    )
    for number, score in enumerate(scores, start=1):
        epoch = {"epoch": number, "step": number, "train_loss": 0.5, "seconds": 1.0}
        made.epochs.append({**epoch, "scores": {main: score, "f1": score + 0.1}})
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def board():
    return collect(
        [
            run(seed=2, scores=(0.5, 0.9, 0.8)),
            run(method="full", scores=(0.7, 0.7, 0.75)),
            run(method="head", scores=(0.5, 0.5, 0.5)),
            run(seed=0),
            run("rte", "lora", scores=(0.5, 0.55, 0.6)),
            run("rte", "head", scores=(0.5, 0.5, 0.5)),
            run("reviews"),
            run("cola", status="failed"),
        ],
        ["cola", "rte", "mrpc"],
    )


def test_cells_are_in_order_and_unfinished_or_foreign_runs_are_left_out(board):
    assert list(board) == ["rte", "mrpc"]
    assert list(board["mrpc"]) == ["head", "lora", "full"]
    assert board["mrpc"]["lora"].seeds == (0, 2)


def test_a_cell_says_mean_spread_and_course(board):
    cell = board["mrpc"]["lora"]
    assert cell.scores() == [0.7, 0.8] and cell.mean() == pytest.approx(0.75)
    assert cell.mean("best") == pytest.approx(0.85) and cell.mean(name="f1") == pytest.approx(0.85)
    assert cell.spread() == pytest.approx(0.1) and board["mrpc"]["head"].spread() == 0
    assert cell.curve() == [(1, [0.6, 0.5]), (2, [0.8, 0.9]), (3, [0.7, 0.8])]
    assert cell.trainable == 75_266


def test_gap_is_in_points_and_needs_both_methods(board):
    assert gap(board, "lora", "head") == pytest.approx({"rte": 10, "mrpc": 25})
    assert gap(board, "lora", "full") == pytest.approx({"mrpc": 0})
    assert gap(board, "lora", "head", leave_out=["rte"]) == pytest.approx({"mrpc": 25})


def test_published_figures_stand_beside_ours(board):
    rte, mrpc = beside_published(board)
    assert mrpc["lora"] == pytest.approx(75) and mrpc["full"] == pytest.approx(75)
    assert (mrpc["rows"], mrpc["seeds"], mrpc["score"]) == (3668, 1, "accuracy")
    assert (mrpc["paper LoRA"], mrpc["paper full*"], mrpc["tutorial"]) == (89.7, 90.2, 88.48)
    assert rte["full"] is None and rte["tutorial"] == 74.01
    wnli = beside_published(collect([run("wnli")], ["wnli"]))[0]
    assert wnli["paper LoRA"] is None and wnli["tutorial"] == 43.66


def test_facts_name_every_value_that_occurs(board):
    facts = shared_facts(board)
    assert facts["seeds"] == "0, 2" and facts["encoder"] == "minilm"
    assert facts["device"] == "cpu, 1 of 2 cores" and facts["parameters in all (M)"] == "22.8"


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([run(), run(seed=1, config={**run().config, "data_sha256": "other"})], "different configurations"),
        ([run(), run(seed=1, recipe={**run().recipe, "epochs": 10})], "different configurations"),
        ([run(), run()], "same seed"),
        ([run("cola")], "No finished run of mrpc"),
        ([run(status="failed")], "No finished run of mrpc"),
    ],
)
def test_records_that_do_not_belong_together_are_refused(records, said):
    with pytest.raises(ValueError, match=said):
        collect(records, ["mrpc"])


def test_labels_keep_their_distance_and_their_order():
    from lora_tutorial.pages.benchmark_plots import spread_apart

    assert spread_apart([50, 10, 30], 5) == [50, 10, 30]
    assert spread_apart([30, 30], 4) == [28, 32]
    placed = spread_apart([84, 86, 80, 20], 5)
    assert placed[3] == 20 and sum(placed[:3]) == pytest.approx(250)
    assert sorted(placed) == [placed[3], placed[2], placed[0], placed[1]]
    assert min(b - a for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False)) >= 5 - 1e-9


def test_both_figures_show_what_the_board_holds(board):
    from lora_tutorial.pages.benchmark_plots import learning_curves, score_against_parameters

    (axis,) = score_against_parameters(board, {"mrpc": "MRPC"}).axes
    marks = [line for line in axis.lines if line.get_marker() == "o"]
    assert [tuple(mark.get_xydata()[0]) for mark in marks] == [(75_266, 60), (75_266, 75)]
    assert {text.get_text() for text in axis.texts} == {"MRPC", "rte"} and axis.get_xscale() == "log"

    rte, mrpc = learning_curves(board, {"mrpc": "MRPC"}).axes
    assert (rte.get_title(loc="left"), mrpc.get_title(loc="left")) == ("rte, 1 seed", "MRPC, 2 seeds")
    lora = next(line for line in mrpc.lines if line.get_linestyle() == "-")
    assert list(lora.get_ydata()) == pytest.approx([55, 85, 75])
    band = mrpc.collections[1].get_paths()[0].vertices  # head, lora, full
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((50, 90))


def test_each_run_is_a_line_with_its_name():
    from lora_tutorial.pages.benchmark_plots import run_curves

    one, other = run("cola", scores=(0, 0.1, 0.2)), run("cola", "full", seed=1, scores=(0.1, 0.1, 0.2))
    (axis,) = run_curves([one, other]).axes
    assert [list(line.get_ydata()) for line in axis.lines[:2]] == [[0, 10, 20], [10, 10, 20]]
    assert [text.get_text() for text in axis.texts] == ["lora, 0.1, seed 0", "full, 0.1, seed 1"]
    heights = [text.xyann[1] for text in axis.texts]
    assert heights[0] != heights[1] and sum(heights) == pytest.approx(40)


def test_a_recipe_field_that_an_older_record_lacks_is_as_none():
    newer = run(seed=1, recipe={**run().recipe, "attention_dropout": None})
    other = run(seed=1, recipe={**run().recipe, "attention_dropout": 0.0})
    assert len(collect([run(), newer], ["mrpc"])["mrpc"]["lora"].records) == 2
    with pytest.raises(ValueError, match="different configurations"):
        collect([run(), other], ["mrpc"])
