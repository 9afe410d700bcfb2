"""All figures to touch on one page in a browser."""

import pytest
from touch_figures import FIGURES


@pytest.fixture(scope="module")
def page(browser):
    """A page with every figure, in Chromium. A script that fails on it fails the test module."""
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    body = "".join(figure.data for figure in FIGURES.values())
    page.set_content(
        f'<!doctype html><html lang="en"><title>Figures</title><main><article>{body}</article></main>'
    )
    yield page
    assert errors == []
    page.close()
