"""The figures on costs draw what the records say: each bar and mark is found again in the figure."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from lora_tutorial.pages import cost_plots
from lora_tutorial.pages.plots import PARTS, memory_bars


def row(forward, backward, optimizer, own=None):
    """A summary's row, in seconds, with quartiles a tenth below and above the median."""
    phases = {"forward": forward, "backward": backward, "optimizer": optimizer}
    phases["total"] = sum(phases.values())
    found = {"seconds": {name: [0.9 * v, v, 1.1 * v] for name, v in phases.items()}}
    return found | ({"own_to_peft": own} if own else {})


SECONDS = {
    "floor": {"forward": [1.0, 2.0, 4.0], "backward": [1.0, 1.0, 1.0]},
    "teaching": {"forward": [1.5, 3.0, 6.0], "backward": [2.0, 2.0, 2.0]},
    "fast": {"forward": [1.25, 4.0, 4.8], "backward": [1.0, 1.0, 1.0]},
}
TIMES = {
    "setting": {"batch": 4, "length": 32},
    "summary": {
        "full": row(0.1, 0.2, 0.05),
        "floor": row(0.1, 0.1, 0.0),
        "teaching": row(0.12, 0.13, 0.001, own=[0.9, 1.0, 1.2]),
        "fast": row(0.11, 0.12, 0.001, own=[0.3, 0.4, 0.6]),
        "peft": row(0.12, 0.13, 0.001, own=[1.0, 1.0, 1.0]),
        "loralib": {"seconds": row(0.12, 0.12, 0.001)["seconds"], "own_to_peft": None},  # lost in noise
    },
    "seconds": SECONDS,
}
MEMORY = {
    "bytes": {
        "full": {"weights": 10e6, "gradients": 11e6, "optimizer": 20e6, "saved": 7e6, "peak": 60e6},
        "fast": {"weights": 12e6, "gradients": 1e6, "optimizer": 2e6, "saved": 5e6, "peak": 33e6},
    }
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def bars(axis):
    """(left, width) of each bar, rounded."""
    return [(round(p.get_x(), 6), round(p.get_width(), 6)) for p in axis.patches]


def lines(axis):
    """(x values, y values) of each line and mark, rounded."""
    return [tuple([round(float(v), 6) for v in d] for d in line.get_data()) for line in axis.lines]


def names(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_step_bars_stack_medians_and_span_the_quartiles_of_the_step():
    fig = cost_plots.step_bars({"one": TIMES, "two": TIMES})
    axis = fig.axes[0]
    assert [a.get_title(loc="left") for a in fig.axes] == ["one", "two"]
    assert names(axis) == list(TIMES["summary"]) and axis.yaxis_inverted()
    assert bars(axis)[:3] == [(0, 100), (100, 200), (300, 50)]  # milliseconds
    assert lines(axis)[0] == ([315, 385], [0, 0])
    assert axis.texts[0].get_text().strip() == "350"
    assert legend(fig) == ["forward", "backward", "optimiser"]


def test_a_forward_pass_alone_is_a_bar_too():
    fig = cost_plots.step_bars({"infer": {"summary": {"base": {"seconds": {
        "forward": [0.9, 1.0, 1.1], "total": [0.9, 1.0, 1.1]}}}}})  # fmt: skip
    assert [width for _, width in bars(fig.axes[0])] == [1000, 0, 0]


def test_memory_is_split_into_four_and_the_peak_is_marked():
    fig = cost_plots.memory_split({"model": MEMORY})
    (axis,) = fig.axes
    assert bars(axis)[:4] == [(0, 10), (10, 11), (21, 20), (41, 7)]
    assert lines(axis) == [([60], [0]), ([33], [1])]
    assert legend(fig) == [*PARTS, "peak of the process"]
    colours = [matplotlib.colors.to_hex(p.get_facecolor()).upper() for p in axis.patches[:4]]
    assert colours == [c.upper() for c in PARTS.values()]


def test_shares_draw_prediction_and_measurement_of_each_row():
    panels = {t: {"floor": (0.5, [0.4, 0.6, 0.7]), "fast": (0.6, [0.6, 0.65, 0.8])} for t in "abc"}
    panels["b"]["fast"] = (0.6, [0.6, 1.0, 1.5])  # further right than anything in the first panel
    fig = cost_plots.shares(panels, "share of full")
    assert [a.get_title(loc="left") for a in fig.axes] == ["a", "b", "c", ""]
    predicted, spread, measured = lines(fig.axes[2])[3:]
    assert predicted[0] == [0.6, 0.6] and spread == ([0.6, 0.8], [1, 1]) and measured == ([0.65], [1])
    low, high = fig.axes[1].get_xlim()
    assert low == 0 and high > 1.5
    assert not fig.axes[3].axison and fig.axes[2].get_xlabel() == "share of full"


def test_own_costs_leave_out_peft_itself_and_what_was_lost_in_noise():
    fig = cost_plots.own_costs({"a": TIMES, "b": TIMES})
    (axis,) = fig.axes
    assert names(axis) == ["a", "b"]
    marks = [x[0] for x, _ in lines(axis) if len(x) == 1]
    assert marks == [1.0, 0.4, 1.0, 0.4]  # teaching and fast, in both rows
    assert [x for x, _ in lines(axis)][1:4:2] == [[1.0], [0.4]]
    assert "peft" not in legend(fig)
    assert legend(cost_plots.own_costs({"a": TIMES}, ["fast"])) == ["fast"]


def test_phase_costs_are_shares_of_the_frozen_pass_within_the_round():
    curves = {"forward": {"teaching": [0.1, 0.2]}, "backward": {}}
    fig = cost_plots.phase_costs([TIMES], ("teaching", "fast"), curves, [64, 128])
    forward, backward = (lines(axis) for axis in fig.axes)
    assert forward[0] == ([64, 128], [10, 20])
    assert [(x[0], y[0]) for x, y in forward[1:] if len(x) == 1] == [(128, 50), (128, 25)]
    assert [(x[0], y[0]) for x, y in backward if len(x) == 1] == [(128, 100)]  # fast adds nothing there
    assert legend(fig) == ["teaching", "fast", "arithmetic alone"]


def test_the_memory_legend_names_only_what_some_bar_holds():
    held = {"weights": 4e9, "gradients": 4e9}
    assert legend(memory_bars({"model": {"full": held}})) == [*held]
    with_more = {"full": held, "LoRA": {"weights": 4e9, "activations": 1e9}}
    assert legend(memory_bars({"model": with_more})) == [*held, "activations"]
