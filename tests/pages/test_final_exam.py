"""The final exam: its numbers and claims are those of the package, and it keeps a reader's score."""

import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from rules import BOOK, code_cells, read, text_of
from torch import nn

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.layers import LoraLinear
from lora_tutorial.quant.nf4 import dequantize_4bit, quantize_nf4

CELLS = {
    cell["id"]: cell
    for cell in code_cells(read(BOOK / "final_exam.ipynb"))
    if cell["id"].startswith("exam-q")
}


def question(number):
    """The stored page of a question."""
    (output,) = CELLS[f"exam-q{number:02}"]["outputs"]
    return BeautifulSoup(text_of(output["data"]["text/html"]), "html.parser")


def right(number):
    """What stands as the right answer: a number, or the option's words."""
    page = question(number)
    (found,) = page.select("li[data-right]")
    kind = page.select_one(".self-check")["data-kind"]
    return float(found["data-value"]) if kind == "number" else found.find("strong").get_text()


def test_there_are_twenty_questions_and_every_wrong_option_names_its_mistake():
    assert len(CELLS) == 20
    for number in range(1, 21):
        items = question(number).select("li")
        assert len(items) >= 4, number
        said = [item.select_one("span").get_text() for item in items]
        assert len(set(said)) == len(said) and all(len(words) > 25 for words in said)


def test_the_right_option_stands_in_every_place():
    places = [
        [bool(item.has_attr("data-right")) for item in question(n).select("li")].index(True)
        for n in range(1, 21)
        if question(n).select_one("[data-kind=choice]")
    ]
    assert len(places) >= 10 and set(places) == {0, 1, 2, 3}
    assert max(places.count(place) for place in places) <= len(places) / 2


def bits_of_a_weight():
    weight = torch.randn(64, 64)
    return 8 * quantize_nf4(weight).nbytes / weight.numel()


def bytes_held():
    """In GB: a model of two tensors in which one trains, with the optimiser's state, times a million."""
    base, adapters = nn.Parameter(torch.zeros(100), requires_grad=False), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([adapters])
    adapters.sum().backward()
    optimizer.step()
    state = [value for value in optimizer.state[adapters].values() if value.ndim]
    held = [base, adapters, adapters.grad, *state]
    return sum(tensor.numel() * tensor.element_size() for tensor in held) * 1e6 / 1e9


def trained_parameters():
    layer = LoraLinear(4096, 1024, config=LoraConfig(r=16))
    return sum(p.numel() for p in layer.parameters() if p.requires_grad)


def error_of_a_score():
    scores = np.random.default_rng(0).binomial(277, 0.8, size=200_000) / 277
    return 100 * scores.std()


NUMBERS = {
    1: (trained_parameters, 0),
    3: (bytes_held, 1e-9),
    10: (lambda: LoraConfig(r=4, lora_alpha=16).scaling, 0),
    12: (bits_of_a_weight, 0),
    15: (error_of_a_score, 0.02),
    19: (lambda: 100 * sum(1 + (layer >= 4) for layer in range(6)) / (3 * 6), 1e-6),
}


@pytest.mark.parametrize("number", list(NUMBERS))
def test_a_number_is_what_the_package_or_a_simulation_gives(number):
    compute, within = NUMBERS[number]
    assert right(number) == pytest.approx(compute(), abs=within)


def test_every_number_that_is_asked_for_is_checked():
    assert {n for n in range(1, 21) if question(n).select_one("[data-kind=number]")} == NUMBERS.keys()


def test_two_zeros_train_nothing():
    layer = LoraLinear(8, 8, config=LoraConfig(r=2))
    nn.init.zeros_(layer.lora_A)
    layer(torch.randn(3, 8)).square().sum().backward()
    assert layer.lora_A.grad.abs().max() == layer.lora_B.grad.abs().max() == 0
    usual = LoraLinear(8, 8, config=LoraConfig(r=2))
    usual(torch.randn(3, 8)).square().sum().backward()
    assert usual.lora_A.grad.abs().max() == 0 < usual.lora_B.grad.abs().max()
    assert right(4) == "1: B at zero; 2: both at zero; 3: neither"


def fall_of_a_step(r, alpha):
    """How far AdamW's first step lowers a loss that is linear in the weight, in some unit."""
    torch.manual_seed(0)
    layer, gradient = LoraLinear(256, 256, config=LoraConfig(r=r, lora_alpha=alpha)), torch.randn(256, 256)
    s, A = layer.scaling, layer.lora_A.detach()
    step = -torch.sign(s * gradient @ A.T)
    return float(-(gradient * (s * step @ A)).sum())


def test_a_step_is_the_same_at_another_rank_if_alpha_stays():
    tuned = fall_of_a_step(8, 16)
    assert fall_of_a_step(32, 16) == pytest.approx(tuned, rel=0.1)
    assert fall_of_a_step(32, 64) > 3 * tuned  # at one scale
    assert 1.5 < fall_of_a_step(32, 32) / tuned < 3  # at the scale of rsLoRA
    assert fall_of_a_step(32, 4) < tuned / 3
    assert right(5) == "Leave it at 16"


def test_the_best_of_eight_equal_models_is_lucky():
    scores = np.random.default_rng(0).binomial(120, 0.82, size=(20_000, 8)) / 120
    assert f"about {100 * scores.std():.1f} points" in question(18).get_text()
    assert scores.max(axis=1).mean() > 0.85
    assert right(18) == "The test rows have chosen the rate"


def test_the_identity_is_far_from_rank_eight():
    values = torch.linalg.svdvals(torch.eye(768))
    missed = float(values[8:].norm() / values.norm())
    assert right(6) == "Adding the identity"
    assert f"{missed:.1%} of its norm" in question(6).get_text()


def test_an_outlier_takes_its_block():
    torch.manual_seed(0)
    block = torch.randn(1, 64).clamp(-2, 2)
    block[0, 0] = 100.0
    restored = dequantize_4bit(quantize_nf4(block))
    assert (restored[0, 1:] == 0).float().mean() > 0.9
    assert right(13) == "Nearly all of them become zero"


def test_the_broadcast_loss_is_least_at_the_mean():
    labels = torch.randn(16)
    guess = torch.zeros(16, 1, requires_grad=True)
    loss = (guess - labels).square().mean()
    loss.backward()
    assert (guess - labels).shape == (16, 16)
    assert torch.allclose(guess.detach() - 16 / 2 * guess.grad, labels.mean().expand(16, 1), atol=1e-6)
    assert right(17) == "To give the mean of the labels for every row"


# --- in a browser


def answer(page, place, value):
    """Type or choose an answer to the question at `place`, and check it."""
    check = page.query_selector_all(".self-check")[place]
    if check.get_attribute("data-kind") == "number":
        check.query_selector("input").fill(str(value))
    else:
        check.query_selector(f"input[value='{value}']").check()
    check.query_selector("button").click()


@pytest.mark.slow
def test_the_score_is_kept_in_a_page_opened_from_the_folder(browser, html_folder):
    context = browser.new_context()
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((html_folder / "book" / "final_exam.html").as_uri())
    said = page.query_selector(".exam-score p")
    assert said.inner_text().startswith("20 questions")
    answer(page, 0, 16 * 4096)  # wrong, then right: the first one counts
    answer(page, 0, 16 * (4096 + 1024))
    answer(page, 1, 1)
    page.wait_for_function("document.querySelector('.exam-score p').textContent.includes('1 of 2')")
    assert said.inner_text() == "1 of 2 right at the first try, 2 by now. 18 to go."
    page.reload()
    assert page.query_selector(".exam-score p").inner_text().startswith("1 of 2 right at the first try")
    marks = [link.get_attribute("aria-label") for link in page.query_selector_all(".exam-score a")]
    assert marks[:3] == [
        "Question 1: right by now",
        "Question 2: right at the first try",
        "Question 3: not answered",
    ]
    page.query_selector_all(".exam-score a")[9].click()
    assert page.url.endswith("#question-10")
    page.query_selector(".exam-score button").click()
    page.reload()
    assert page.query_selector(".exam-score p").inner_text().startswith("20 questions")
    assert errors == []
    context.close()


@pytest.mark.slow
def test_all_right_is_twenty_of_twenty(browser, site):
    page = browser.new_context().new_page()
    page.goto(f"{site}/book/final_exam.html")
    for place in range(20):
        (item,) = question(place + 1).select("li[data-right]")
        answer(page, place, item["data-value"])
    page.wait_for_function("document.querySelector('.exam-score p').textContent.includes('20 of 20')")
    assert re.search(r"That is your score: 20 of 20", page.query_selector(".exam-score p").inner_text())
    page.context.close()
