"""The drawings say what they are given, where it can be read: no words lie on each other or outside."""

from itertools import combinations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from lora_tutorial.pages import drawings, plots
from lora_tutorial.pages.style import ROLES, use_style

PLAIN = [(0, "attention", "Attention"), (1, "query", "Linear"), (1, "out", "Linear")]
ADAPTED = [PLAIN[0], (1, "query", "FastLoraLinear"), PLAIN[2]]
NAMES = {"ours": ["", "query", ".lora_A", ""], "PEFT's": ["base_model.", "query", ".lora_A", ".weight"]}
TOKENS = ["[CLS]", "which", "?", "[SEP]", "b", "starts", ".", "[SEP]"]
SCORES = [9.0, 0.0, 0.0, 0.0, 3.0, 1.0, -2.0, 0.0], [9.0, 0.0, 0.0, 0.0, 1.0, 2.0, -2.5, 9.5]
SHAPES = dict.fromkeys(["x", "Q", "K", "V", "scores", "weights", "mixed", "output"], "2 × 12 × 11 × 32")
SHAPES |= {"A": "384 → 8", "B": "8 → 384"}
CACHES = {"adapted": (0, 7, "its text"), "base": (7, 0, "its text"), "mixed": (6, 1, "another")}
DRAWN = {
    "architectures": plots.architectures,
    "attention": lambda: drawings.attention(SHAPES, ["query", "value"]),
    "cached_tokens": lambda: drawings.cached_tokens(CACHES),
    "copies_and_shards": drawings.copies_and_shards,
    "grouped_heads": plots.grouped_heads,
    "merged_layer": drawings.merged_layer,
    "module_trees": lambda: drawings.module_trees({"before": PLAIN, "after": ADAPTED}),
    "aligned_names": lambda: drawings.aligned_names(NAMES, learnt=[".lora_A"]),
    "quantized_layer": drawings.quantized_layer,
    "span_head": lambda: drawings.span_head(TOKENS, *SCORES),
    "three_products": drawings.three_products,
    "variant_schemes": drawings.variant_schemes,
}


@pytest.fixture(autouse=True)
def styled():
    with matplotlib.rc_context():
        use_style()
        yield
    plt.close("all")


def words(figure):
    hidden = {
        text for axis in figure.axes for side in (axis.xaxis, axis.yaxis) for text in side.findobj(Text)
    }
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text not in hidden]


def boxes(figure):
    figure.canvas.draw()
    drawn = figure.canvas.get_renderer()
    return {text: text.get_window_extent(drawn) for text in words(figure)}


@pytest.mark.parametrize("name", [*drawings.__all__, "architectures", "grouped_heads"])
def test_words_stand_apart_and_inside(name):
    figure = DRAWN[name]()
    found = boxes(figure)
    assert len(found) > 4
    for one, other in combinations(found, 2):
        assert not found[one].overlaps(found[other]), (one.get_text(), other.get_text())
    for text, box in found.items():
        assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, text.get_text()
        assert box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, text.get_text()


def test_a_tree_marks_what_was_swapped():
    figure = drawings.module_trees({"before": PLAIN, "after": ADAPTED})
    marked = {text.get_text() for text in words(figure) if to_hex(text.get_color()) == ROLES["lora"].lower()}
    assert marked == {"FastLoraLinear"}
    assert sum(text.get_text() == "Linear" for text in words(figure)) == 3


def test_a_tree_marks_the_rows_that_it_is_told():
    trees = {"ours": PLAIN, "PEFT's": PLAIN}
    figure = drawings.module_trees(trees, learnt={"ours": [], "PEFT's": [0, 2]})
    marked = [text for text in words(figure) if to_hex(text.get_color()) == ROLES["lora"].lower()]
    assert [text.get_text() for text in marked] == ["Attention", "Linear"]
    assert {text.axes.get_title(loc="left") for text in marked} == {"PEFT's"}


@pytest.mark.parametrize("adapted", [[], ["query"], ["query", "value"]])
def test_attention_has_a_path_beside_each_adapted_projection_and_no_other(adapted):
    figure = drawings.attention(SHAPES, adapted)
    colours = [to_hex(p.get_edgecolor()) for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    assert colours.count(ROLES["lora"].lower()) == 2 * len(adapted)
    assert colours.count(ROLES["full"].lower()) == 2  # scores and weights: tokens by tokens
    said = [text.get_text() for text in words(figure)]
    assert said.count("+") == said.count("$A$   384 → 8") == said.count("$B$   8 → 384") == len(adapted)


def test_equal_parts_of_names_stand_below_each_other():
    figure = drawings.aligned_names(NAMES, learnt=[".lora_A"])
    places = {}
    for text in words(figure):
        places.setdefault(text.get_text(), []).append(text.get_position()[0])
    assert len(places["query"]) == len(places[".lora_A"]) == 2 and len(places["base_model."]) == 1
    assert len(set(places["query"])) == 1 and len(set(places[".lora_A"])) == 1
    coloured = [patch for patch in figure.axes[0].patches if to_hex(patch.get_edgecolor()) != ROLES["frozen"]]
    assert len(coloured) == 2


def test_entries_of_base_and_adapter_are_counted_and_a_mixed_cache_stands_out():
    figure = drawings.cached_tokens(CACHES)
    colours = [to_hex(patch.get_edgecolor()) for patch in figure.axes[0].patches]
    assert colours.count(ROLES["frozen"]) == 7 + 6
    assert colours.count(ROLES["lora"].lower()) == 7 + 1
    assert [text.get_text() for text in words(figure) if text.get_weight() == "bold"] == ["another"]


def test_a_span_heads_best_scores_are_those_of_the_text():
    figure = drawings.span_head(TOKENS, *SCORES, hidden=12)
    said = [text.get_text() for text in words(figure)]
    assert "Linear(12, 2), the same for every token" in said and "12 each" in said
    framed = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)][-2:]
    inside = [
        text.get_text()
        for frame in framed
        for text in words(figure)
        if frame.contains_point(figure.axes[0].transData.transform(text.get_position()))
    ]
    assert inside == ["3.0", "2.0"]  # not the 9.0 and 9.5 of special tokens
