"""Questions that say what a wrong answer gets wrong, on a page and in a notebook."""

from __future__ import annotations

import hashlib
import html
import math
import re
from collections.abc import Mapping

from lora_tutorial.self_check_page import PAGE

__all__ = ["SelfCheck", "choice", "number"]


class SelfCheck:
    """A question as a form that can be operated by keyboard, or as plain text.

    Every explanation also stands in a folded list below the form, so nothing is lost without JavaScript and
    on paper. The same question always gives the same page: a stored output stops matching only if it changes.

    Attributes
    ----------
    text : str
        The question and its options, without the answer. It is also the plain-text form.
    """

    def __init__(self, text: str, page: str) -> None:
        self.text = text
        self._page = page

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self._page


def choice(question: str, options: Mapping[str, str], right: str) -> SelfCheck:
    """Ask a question with one right option.

    Parameters
    ----------
    question
        Plain text; words between backticks become code.
    options
        For each option, in the order of the page, what is said to whoever chooses it: why it is right, or
        which mistake leads to it.
    right
        The right option, one of the keys.

    Returns
    -------
    SelfCheck
        Make it the last expression of a cell.

    Raises
    ------
    TypeError
        If `options` is no mapping from text to text.
    ValueError
        If the question, an option or an explanation is empty, there are fewer than two options, or `right`
        is none of them.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f"options must map each option to its explanation; got {type(options).__name__}.")
    _check_texts({"question": question} | {f"option {key!r}": why for key, why in options.items()})
    if len(options) < 2 or not all(isinstance(key, str) and key.strip() for key in options):
        raise ValueError(f"options must be two texts or more, none of them empty; got {list(options)}.")
    if right not in options:
        raise ValueError(f"right must be one of the options {list(options)}; got {right!r}.")
    name = _name(question, *options)
    fields = "\n".join(
        f'<label><input type="radio" name="{name}" value="{place}"> <span>{_inline(option)}</span></label>'
        for place, option in enumerate(options)
    )
    whys = [_why(option, why, option == right, place) for place, (option, why) in enumerate(options.items())]
    text = "\n".join([f"Check yourself: {question}", *(f"  - {option}" for option in options)])
    return SelfCheck(text, _page("choice", question, fields, whys))


def number(
    question: str,
    answer: float,
    wrong: Mapping[float, str],
    why: str,
    hint: str,
    unit: str = "",
    tolerance: float = 0.0,
) -> SelfCheck:
    """Ask for a number, and name the mistake behind the wrong ones that one expects.

    Parameters
    ----------
    question
        Plain text; words between backticks become code.
    answer
        The right number. Let the cell compute it.
    wrong
        For wrong numbers, which mistake leads to each: a factor forgotten, a ratio upside down.
    why
        What is said to the right number.
    hint
        What is said to any other number.
    unit
        Of the number, shown beside the field.
    tolerance
        How far off, in the unit, a number still counts as `answer` or as one of `wrong`. Rounding in the
        seventh digit always counts.

    Returns
    -------
    SelfCheck
        Make it the last expression of a cell.

    Raises
    ------
    ValueError
        If a text is empty, a number is not finite, the tolerance is negative, or two of the numbers are so
        close that one input would mean both.
    """
    known = {float(value): said for value, said in wrong.items()}
    values = [float(answer), *known]
    _check_texts(
        {"question": question, "why": why, "hint": hint} | {f"wrong[{v:g}]": known[v] for v in known}
    )
    if not math.isfinite(tolerance) or tolerance < 0:
        raise ValueError(f"tolerance must be finite and not negative; got {tolerance!r}.")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"answer and wrong must be finite numbers; got {values}.")
    reach = [max(tolerance, 1e-6 * abs(value)) for value in values]
    for i, value in enumerate(values):
        for j in range(i):
            if abs(value - values[j]) <= reach[i] + reach[j]:
                raise ValueError(
                    f"{values[j]:g} and {value:g} cannot be told apart at a tolerance of {tolerance:g}. "
                    "Lower it or leave one out."
                )
    label = f"Your number ({_inline(unit)})" if unit else "Your number"
    name = _name(question, *map(_digits, values))
    fields = (
        f'<label>{label} <input type="text" inputmode="decimal" autocomplete="off" name="{name}"></label>'
    )
    shown = [f"{_digits(value)} {unit}".strip() for value in values]
    whys = [
        _why(text, said, place == 0, f"{value:.9g}", f' data-within="{within:.3g}"')
        for place, (text, said, value, within) in enumerate(
            zip(shown, [why, *known.values()], values, reach, strict=True)
        )
    ]
    whys.append(_why("Any other number", hint, False, "other"))
    return SelfCheck(
        f"Check yourself: {question}\n  (a number{f', {unit}' if unit else ''})",
        _page("number", question, fields, whys),
    )


def _check_texts(texts: Mapping[str, str]) -> None:
    """Refuse what is no text, or an empty one, by its name."""
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} needs a text that says something; got {text!r}.")


def _name(*parts: str) -> str:
    """A name that only these texts have, for what belongs together on a page."""
    return "check-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def _inline(text: str) -> str:
    """The text as HTML, with code between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _digits(value: float) -> str:
    # Twelve digits of a count are exact; the last digits of anything else may differ between machines.
    return f"{value:,.0f}" if value == int(value) else f"{value:.6g}"


def _why(option: str, why: str, right: bool, value: object, more: str = "") -> str:
    mark = " data-right" if right else ""
    note = " (right)" if right else ""
    return (
        f'<li data-value="{value}"{mark}{more}><strong>{_inline(option)}</strong>{note}: '
        f"<span>{_inline(why)}</span></li>"
    )


def _page(kind: str, question: str, fields: str, whys: list[str]) -> str:
    page = PAGE.replace("@KIND@", kind).replace("@WHYS@", "\n".join(whys))
    return page.replace("@FIELDS@", fields).replace("@QUESTION@", _inline(question))
