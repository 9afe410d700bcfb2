"""A conversation token by token: the means are those of the package's loss, with the mask and without."""

import re

import numpy as np
import pytest
import torch
from touch_figures import IDS, LABELS, LOSSES, PIECES, call, said

from lora_tutorial import loss_by_token, token_losses

FIGURE = "[data-kind=loss_by_token]"


def press(page, name):
    page.get_by_role("button", name=name, exact=True).focus()
    page.keyboard.press("Enter")


def package_mean(losses, labels):
    """The mean over the labels that count, by `token_losses` on logits that give these losses."""
    logits = torch.zeros(1, len(labels), 12)  # 12 tokens in all
    for place, (loss, number) in enumerate(zip(losses, IDS[1:], strict=True)):
        share = np.exp(-loss)
        logits[0, place] = np.log((1 - share) / 11)
        logits[0, place, number] = -loss
    counted = torch.tensor([labels])
    return (token_losses(logits, counted).sum() / (counted[:, 1:] != -100).sum()).item()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("masked", "labels"), [(True, LABELS), (False, IDS)])
def test_the_mean_in_the_page_is_the_packages_loss(page, name, masked, labels):
    found = call(page, "loss_by_token", "mean", name, masked)
    assert found["mean"] == pytest.approx(package_mean(LOSSES[name], labels), rel=1e-5)
    assert found["count"] == (3 if masked else 5)


@pytest.mark.slow
def test_both_switches_work_by_keyboard_and_change_the_mean(page):
    press(page, "before")
    assert said(page, "loss_by_token") == "Before: 3 of 6 tokens count in the loss, and their mean is 3.00."
    press(page, "after")
    assert said(page, "loss_by_token") == "After: 3 of 6 tokens count in the loss, and their mean is 2.00."
    press(page, "Mask the prompt")
    assert "all 5 tokens after the first count in the loss, and their mean is 2.60" in said(
        page, "loss_by_token"
    )
    assert "make up 60 % of them" in said(page, "loss_by_token")
    assert page.get_by_role("button", name="Mask the prompt").get_attribute("aria-pressed") == "false"
    press(page, "Mask the prompt")
    press(page, "before")


@pytest.mark.slow
def test_a_token_tells_its_number_label_and_loss(page):
    tokens = page.query_selector_all(f"{FIGURE} [role=option]")
    assert [token.inner_text() for token in tokens] == [
        piece.replace("\n", "\u21b5").replace(" ", "\u00b7") for piece in PIECES
    ]
    page.locator(f"{FIGURE} [tabindex='0']").focus()
    page.keyboard.press("Home")
    detail = page.locator(f"{FIGURE} .touch-token")
    assert detail.inner_text().endswith("id 1, label \u2212100, no loss: nothing comes before it.")
    page.keyboard.press("ArrowRight")
    label = "id 7, label \u2212100, loss 4.00 before, 4.00 after, which does not count."
    assert detail.inner_text().endswith(label)
    page.keyboard.press("End")
    assert detail.inner_text().endswith("id 2, label 2, loss 0.75 before, 0.25 after.")
    tokens[4].hover()
    assert detail.inner_text().endswith("id 11, label 11, loss 6.00 before, 5.50 after.")
    assert tokens[4].get_attribute("aria-label") == detail.inner_text()
    assert len(page.query_selector_all(f"{FIGURE} [tabindex='0']")) == 1  # one stop for Tab


def test_the_sentence_without_scripts_has_all_four_means():
    found = repr(loss_by_token(PIECES, IDS, LABELS, LOSSES))
    assert found.startswith("3 of 6 tokens count in the loss.")
    assert re.findall(r"\d\.\d\d", found) == ["3.00", "3.30", "2.00", "2.60"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pieces": PIECES[:-1]}, "a text, a number and a label"),
        ({"losses": {"one": [1.0] * 6}}, "for each but the first"),
        ({"losses": {}}, "for each but the first"),
        ({"labels": [1] + [-100] * 5}, "needs a token that counts in the loss"),
        ({"losses": {"one": [np.inf] * 5}}, "finite"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    given = {"pieces": PIECES, "ids": IDS, "labels": LABELS, "losses": LOSSES} | change
    with pytest.raises(ValueError, match=message):
        loss_by_token(**given)
