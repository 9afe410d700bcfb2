"""A Sphinx extension: the bibliography's keys are authors and year, as its citations in the text are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style as UnsrtStyle
from pybtex.style.labels import BaseLabelStyle

NAME = "author_year"


def label(entry: Any) -> str:
    """The key of one entry: "Hu et al., 2022", or "Ba and Frey, 2014"."""
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [str(Text.from_latex(" ".join(person.prelast_names + person.last_names))) for person in people]
    if "others" in names or len(names) > 2:
        who = f"{names[0]} et al."
    else:
        who = " and ".join(names) or str(Text.from_latex(entry.fields["title"]))
    return ", ".join(part for part in (who, entry.fields.get("year")) if part)


class AuthorYearLabels(BaseLabelStyle):
    """Keys of authors and year; a letter follows where two entries would have the same one."""

    def format_labels(self, sorted_entries: list[Any]) -> Iterator[str]:
        """A key for each entry, in their order."""
        labels = [label(entry) for entry in sorted_entries]
        times, seen = Counter(labels), Counter[str]()
        for name in labels:
            seen[name] += 1
            yield name + ("abcdefghijklmnopqrstuvwxyz"[seen[name] - 1] if times[name] > 1 else "")


class AuthorYearStyle(UnsrtStyle):
    """Entries by author, year and title, under such keys."""

    default_label_style = AuthorYearLabels
    default_sorting_style = "author_year_title"


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    register_plugin("pybtex.style.formatting", NAME, AuthorYearStyle)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
