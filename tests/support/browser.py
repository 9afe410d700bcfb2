"""A page of the built book as a reader's browser has it: what it asks for, says, shows and lets one do."""

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SCHEMES = ("light", "dark")
WIDTHS = (1280, 390)
VIEWS = [(scheme, width) for width in WIDTHS for scheme in SCHEMES]
#: What axe-core looks at, and at what: barriers but for contrast do not depend on the view.
AUDITED = {("dark", 390): {}, ("light", 1280): {"runOnly": ["color-contrast"]}}

#: Where a page is wider than the window: what the window would scroll by, and what is cut off unseen.
SIDEWAYS = """() => {
  const width = document.documentElement.clientWidth, found = [];
  const more = document.documentElement.scrollWidth - width;
  if (more > 0) found.push(`the page scrolls sideways by ${more} px`);
  for (const el of document.querySelectorAll("article *")) {
    if (el.getClientRects().length === 0 || el.getBoundingClientRect().right <= width + 1) continue;
    let up = el.parentElement;
    while (up && !["auto", "scroll"].includes(getComputedStyle(up).overflowX) && up.tagName !== "svg")
      up = up.parentElement;
    if (!up && !el.closest("mjx-assistive-mml, .visually-hidden, .headerlink"))
      found.push(`${el.outerHTML.slice(0, 80)} ends at ${el.getBoundingClientRect().right} px`);
  }
  for (const formula of document.querySelectorAll("article div.math")) {
    const drawn = formula.querySelector("svg, mjx-math").getBoundingClientRect();
    const left = formula.getBoundingClientRect().left;
    if (drawn.left < left - 1 || drawn.right - left > formula.scrollWidth + 1)
      found.push(`${formula.textContent.slice(0, 40)}: an end of the formula is out of reach`);
  }
  return found.slice(0, 5);
}"""
#: What a sheet of paper would cut off: an element wider than its box, which does not scroll there.
CUT_OFF = """() => [...document.querySelectorAll("article, article *")].flatMap(el => {
  if (el.closest("mjx-container, svg, .visually-hidden")) return [];
  const end = element => element.getBoundingClientRect().right, page = document.querySelector("article");
  const hidden = getComputedStyle(el).overflowX !== "visible" && el.scrollWidth > el.clientWidth + 1;
  const outside = ["TABLE", "PRE", "IMG"].includes(el.tagName) && end(el) > end(page) + 1;
  return hidden || outside ? [`${el.outerHTML.slice(0, 80)} needs ${el.scrollWidth} px`] : [];
}).slice(0, 5)"""
SHEET = {"width": 680, "height": 960}  # A4 without its margins, in CSS pixels
PICTURES = """() => [...document.querySelectorAll("article img, article svg[role=img]")].map(el => ({
  name: el.getAttribute("alt") ?? el.getAttribute("aria-label") ?? "",
  loaded: el.tagName !== "IMG" || el.naturalWidth > 0,
}))"""
AXE = """([context, options]) => axe.run(context, {preload: false, resultTypes: ["violations"], ...options})
  .then(result => result.violations.flatMap(v => v.nodes.slice(0, 3).map(
    n => `${v.id}: ${n.target} ${n.html.slice(0, 90)} ${n.any[0]?.message ?? ""}`)))"""
#: A picture that waits to be seen is loaded now.
SEEN = """() => Promise.all([...document.images].map(image => {
  image.loading = "eager";
  return image.decode().catch(() => null);
}))"""
#: Mathematics is MathJax's to render.
PROSE = {"exclude": [["mjx-container"]]}
#: Thousands of coloured tokens would make axe-core slow; their colours are judged once for all pages.
SLIM = """() => {
  for (const code of document.querySelectorAll("pre")) code.textContent = code.textContent;
  for (const formula of document.querySelectorAll("mjx-container")) formula.replaceChildren();
}"""


def axe_script():
    """The source of axe-core, which a package from the Python index carries."""
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf8")


def audit(page, context=PROSE, **options):
    """What axe-core finds wrong on `page`, a line for each element."""
    return page.evaluate(AXE, [context, options])


@contextmanager
def opened(browser, site, name, scheme="light"):
    """A new tab on page `name`, with its console's errors and the requests that would leave `site`.

    All tabs share one context, so that scripts and fonts are loaded once.
    """
    context = browser.contexts[0] if browser.contexts else browser.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, errors, outside = context.new_page(), [], []
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))

    def guard(route):
        outside.append(route.request.url)
        route.abort()

    page.route(lambda url: not url.startswith((f"{site}/", "data:", "blob:")), guard)
    page.goto(f"{site}/{name}", wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.add_style_tag(content="* { transition: none !important }")  # no colour is caught on its way
    page.evaluate(SEEN)
    yield page, errors, outside
    page.close()


@dataclass
class Visit:
    """What one visit to a page found. Lists of sentences are empty on a page that is right."""

    errors: list = field(default_factory=list)
    outside: list = field(default_factory=list)
    sideways: dict = field(default_factory=dict)
    cut_off: list = field(default_factory=list)
    barriers: dict = field(default_factory=dict)
    pictures: list = field(default_factory=list)
    stuck: list = field(default_factory=list)
    boxes: int = 0
    predictions: int = 0
    copies: list = field(default_factory=list)
    sliders: list = field(default_factory=list)


def visit(browser, site, name, axe):
    """Read the page, work every part of it by keyboard, look at it in both schemes and widths."""
    found = Visit()
    with opened(browser, site, f"{name}.html") as (page, errors, outside):
        found.pictures = page.evaluate(PICTURES)
        found.predictions = predict_all(page)
        found.boxes, found.stuck = open_boxes(page)
        found.copies = list(copies(page))
        found.sliders = list(sliders(page))
        for scheme, width in VIEWS:
            show(page, scheme, width)
            found.sideways[scheme, width] = page.evaluate(SIDEWAYS)
        found.cut_off = on_paper(page)
        page.evaluate(SLIM)
        page.evaluate(axe)
        for (scheme, width), options in AUDITED.items():
            show(page, scheme, width)
            found.barriers[scheme, width] = audit(page, **options)
        found.errors, found.outside = list(errors), list(outside)
    return found


def show(page, scheme, width):
    """Give the window a width and the page a colour scheme."""
    if page.viewport_size["width"] != width:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(400)  # the theme makes what scrolls reachable by Tab, 300 ms after a change
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)


def on_paper(page):
    """What of the page a printed sheet would not show."""
    page.set_viewport_size(SHEET)
    page.emulate_media(media="print")
    found = page.evaluate(CUT_OFF)
    page.emulate_media(media="screen")
    return found


def predict_all(page):
    """Skip each prediction with the keyboard, so that what is folded behind it shows: how many there were."""
    buttons = page.query_selector_all(".prediction button[type=button]")
    for button in buttons:
        if button.is_visible():  # a page that was here before remembers
            button.focus()
            page.keyboard.press("Enter")
    return len(buttons)


def open_boxes(page):
    """Open each folded box with the keyboard: how many there are, and those that stayed shut."""
    stuck, handles = [], page.query_selector_all("article :is(.toggle-button, details > summary)")
    for handle in handles:
        before = handle.evaluate(SHOWN)
        handle.focus()
        page.keyboard.press("Enter")
        if before or not handle.evaluate(SHOWN):
            stuck.append(f"{'open at first' if before else 'stays shut'}: {handle.evaluate(TITLE)}")
    return len(handles), stuck


SHOWN = """el => el.tagName === "SUMMARY" ? el.parentElement.open
  : !el.closest(".toggle").classList.contains("toggle-hidden")"""
TITLE = """el => el.closest("details, .toggle").textContent.trim().slice(0, 60)"""


def copies(page):
    """Press the last copy button: (what the clipboard has, the code beside the button)."""
    for button in page.query_selector_all("article button.copybtn")[-1:]:
        code = button.evaluate("el => el.closest('.highlight').querySelector('pre').textContent")
        page.evaluate("navigator.clipboard.writeText('')")
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_function("navigator.clipboard.readText().then(text => text !== '')")
        yield page.evaluate("navigator.clipboard.readText()").strip(), code.strip()


def sliders(page):
    """Move each slider one step with the keyboard: what its figure said before and what it says after."""
    for slider in page.query_selector_all("article input[type=range]"):
        said = "el => (el.closest('figure') ?? el.parentElement).querySelector('output').textContent"
        before = slider.evaluate(said)
        slider.focus()
        page.keyboard.press("ArrowRight")
        yield before, slider.evaluate(said)


def code_classes(html):
    """The classes of tokens in a page's code blocks."""
    blocks = re.findall(r'<div class="highlight">.*?</div>', html, flags=re.DOTALL)
    return {name for block in blocks for name in re.findall(r'<span class="(\w+)">', block)}


def browser_is_promised():
    """Whether a run must not skip the tests in a browser."""
    return bool(os.environ.get("LORA_TUTORIAL_REQUIRE_BROWSER"))
