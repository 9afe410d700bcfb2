"""The page "Try it" alone, without the rest of the book: its raw HTML, its look, its script, its model."""

import re
import shutil

import live_page
from rules import BOOK, ROOT

SHELL = """<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Try it</title>
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="custom.css">
<link rel="stylesheet" href="live.css"><style>body {{ margin: 1rem auto; max-width: 46rem;
  padding: 0 1rem; background: var(--pst-color-background); color: var(--lora-ink);
  font-family: var(--pst-font-family-base); }}
.visually-hidden {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }}
* {{ box-sizing: border-box; }}</style>
<script>document.documentElement.dataset.theme =
  matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";</script></head>
<body><main><article class="bd-article"><h1>Try it</h1>{body}</article></main>
<script src="live.js"></script></body></html>"""


def make_site(folder, marks=None):
    """Write the page into `folder` as `index.html`; with `marks` as they are, or as the build sets them."""
    marks = live_page.write(folder) if marks is None else marks
    if not (folder / "live.js").is_file():
        (folder / "live.js").write_text(live_page.bundle(), encoding="utf8")
    source = (BOOK / "try_it.md").read_text(encoding="utf8")
    body = "".join(re.findall(r"```\{raw\} html\n(.*?)```", source, flags=re.DOTALL))
    for mark, value in marks.items():
        body = body.replace(mark, value)
    (folder / "index.html").write_text(SHELL.format(body=body), encoding="utf8")
    for style in (ROOT / "book/_static/custom.css", live_page.SOURCES / "live.css"):
        shutil.copy(style, folder)
    return folder
