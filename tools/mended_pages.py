"""A Sphinx extension: what a page's HTML gets wrong is mended before it is written.

Docutils gives the bibliography's entries the role doc-biblioentry, which ARIA has withdrawn; what has it is
no item of a list, and a screen reader does not count it. sphinx_exercise gives the body of every exercise on
a page the same id, and that of every solution. In the corner of a table pandas leaves a heading without text.
And a number stays on the line of its unit, and of its interval. Where
the rows of a table have a name, pandas gives it a line of its own; it moves up into the corner. A column of
words is set from the left. Pages without a number of
their own would count figures and exercises on from one to the next; each begins at one.
"""

from __future__ import annotations

import re
from typing import Any

MENDED = {
    ' role="doc-biblioentry"': ' role="listitem"',
    ' id="exercise-content"': "",
    ' id="solution-content"': "",
}
#: What is no text, and text that is shown as it was typed.
AS_IT_IS = re.compile(r"(<(pre|code|script|style|svg|math)\b.*?</\2>|<[^>]+>)", re.DOTALL)
UNIT = re.compile(
    r"(?<=\d) (?=(?:%|[kMGT]?i?B|ms|s|h|px|bits?|points?)(?!\w))|(?<=\d) (?=× ?\d)|(?<=\d ×) (?=\d)"
    r"|(?<=\b\w) (?== [−\d])|(?<=\b\w =) (?=[−\d])"
)
INTERVAL = re.compile(r"(?<=\d) (?=\[[−+-]?[\d.]+,)|(?<=,) (?=[−+-]?[\d.]+\])")
CAPTION = re.compile(r'(<span class="caption-number">(Figure|Exercise) )(\d+)(?= ?</span>)')
SOLUTION = re.compile(r"Solution to(<a [^>]*>) ")
NAMED = r'<span class="std std-(?:numref|ref)">|Solution to <a [^>]*>'
REFERENCE = re.compile(rf"((?:{NAMED})(Figure|Exercise) )(\d+)(?=[ <])")
TABLE = re.compile(r'(?<=class="dataframe">).*?(?=</table>)', re.DOTALL)
ROW = re.compile(r"<tr\b.*?</tr>", re.DOTALL)
CELL = re.compile(r"<(th|td)\b[^>]*>(.*?)</\1>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
#: A heading whose corner is empty, and below it a line with nothing but the name of the rows.
NAME_BELOW = re.compile(
    r"<th></th>(?P<heading>(?:\s*<th>[^<]*</th>)+\s*</tr>)\s*<tr>\s*<th>(?P<name>[^<]+)</th>"
    r"(?:\s*<th></th>)+\s*</tr>(?=\s*</thead>)"
)
EMPTY_HEADING = re.compile(r"<th((?: [^>]*)?)>\s*(?:<p>\s*</p>)?\s*</th>")


def with_units(body: str) -> str:
    """A page's body with spaces that do not break in 12 %, in 768 × 768 and in [0.1, 0.9]."""

    def held(text: str) -> str:
        return INTERVAL.sub("\u00a0", UNIT.sub("\u00a0", text))

    parts, end = [], 0
    for other in AS_IT_IS.finditer(body):
        parts += [held(body[end : other.start()]), other.group()]
        end = other.end()
    return "".join([*parts, held(body[end:])])


def numbered_anew(body: str) -> str:
    """Figures and exercises of a page counted from one, and what names them on the page with them."""
    kinds: dict[str, dict[str, int]] = {}
    for caption in CAPTION.finditer(body):
        numbers = kinds.setdefault(caption[2], {})
        numbers.setdefault(caption[3], len(numbers) + 1)

    def anew(found: re.Match[str]) -> str:
        return found[1] + str(kinds.get(found[2], {}).get(found[3], found[3]))

    return REFERENCE.sub(anew, CAPTION.sub(anew, body))


def with_words(table: str) -> str:
    """A table whose columns of words (after the first) and short cells are marked for the style sheet."""
    rows = [list(CELL.finditer(row)) for row in ROW.findall(table)]
    if len({len(row) for row in rows}) != 1 or "colspan" in table:
        return table
    body = [row for row in rows if row[-1][1] == "td"]
    texts = [[TAG.sub("", cell[2]).strip() for cell in column] for column in zip(*body, strict=True)]
    of_words = [sum(text[:1].isalpha() for text in column) * 2 > len(column) for column in texts]

    def marked(row: re.Match[str]) -> str:
        places = iter(range(len(of_words)))

        def cell(found: re.Match[str]) -> str:
            place = next(places)
            short = found[1] == "td" and len(TAG.sub("", found[2]).strip()) <= 24
            kind = "words" if place > 0 and of_words[place] else "short" if short else ""
            return found[0].replace(f"<{found[1]}", f'<{found[1]} class="{kind}"', 1) if kind else found[0]

        return CELL.sub(cell, row[0])

    return ROW.sub(marked, table)


def mended(body: str) -> str:
    """A page's body without what is named above."""
    for wrong, right in MENDED.items():
        body = body.replace(wrong, right)
    body = TABLE.sub(
        lambda found: with_words(NAME_BELOW.sub(r"<th>\g<name></th>\g<heading>", found[0])), body
    )
    body = EMPTY_HEADING.sub(r"<td\1></td>", body)
    return numbered_anew(with_units(SOLUTION.sub(r"Solution to \1", body)))


def mend(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Rewrite a page's body."""
    if "body" in context:
        context["body"] = mended(context["body"])


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
