"""Questions that say what a wrong answer gets wrong, on a page and in a notebook."""

from __future__ import annotations

import hashlib
import html
import math
import re
from collections.abc import Mapping

PAGE = """<div class="self-check" data-kind="@KIND@">
<style>
.self-check { margin: 1rem 0; max-width: 44rem; padding: 0.8rem 1rem; color: inherit;
  border: 1px solid #8a8f98; border-left: 4px solid #7a7f87; border-radius: 6px; }
.self-check[data-state="right"] { border-left-color: #009e73; }
.self-check[data-state="wrong"] { border-left-color: #d55e00; }
.self-check fieldset { border: 0; margin: 0; padding: 0; min-width: 0; }
.self-check legend { float: none; width: auto; margin: 0 0 0.5rem; padding: 0; border: 0; color: inherit;
  font-size: 1em; font-weight: 600; line-height: inherit; }
.self-check label { display: flex; gap: 0.6rem; align-items: baseline; margin: 0; padding: 0.25rem 0; }
.self-check label > span { min-width: 0; overflow-wrap: anywhere; }
.self-check[data-kind="number"] label { flex-wrap: wrap; }
.self-check :is(input[type="text"], button) { padding: 0.3rem 0.8rem; font: inherit; color: inherit;
  background: transparent; border: 1px solid #7a7f87; border-radius: 4px; max-width: 100%; }
.self-check :is(button, p, details) { margin: 0.5rem 0 0; }
.self-check p { min-height: 1.6em; }
.self-check :is(button, summary) { cursor: pointer; }
.self-check [hidden] { display: none; }
</style>
<fieldset><legend>@QUESTION@</legend>
@FIELDS@
</fieldset>
<button type="button" hidden>Check</button>
<p role="status" hidden></p>
<details><summary>Every answer explained</summary>
<ul>
@WHYS@
</ul></details>
</div>
<script>
for (const root of document.querySelectorAll(".self-check:not([data-ready])")) {
  const button = root.querySelector("button"), said = root.querySelector("[role=status]");
  const inputs = [...root.querySelectorAll("input")], whys = [...root.querySelectorAll("li")];
  const answer = text => {
    text = text.replace(/\\s|\\u2009/g, "").replace("\\u2212", "-");
    text = /^-?\\d{1,3}(,\\d{3})+(\\.\\d*)?$/.test(text) ? text.replaceAll(",", "") : text.replace(",", ".");
    return text === "" ? NaN : Number(text);
  };
  const near = (value, why) => Math.abs(value - Number(why.dataset.value)) <= Number(why.dataset.within);
  const find = () => {
    if (root.dataset.kind === "choice") {
      const chosen = inputs.find(input => input.checked);
      return chosen ? whys.find(why => why.dataset.value === chosen.value) : "Choose an answer first.";
    }
    const value = answer(inputs[0].value);
    if (!Number.isFinite(value)) return "Type a number first, in digits: 1200 or 0.5.";
    return whys.find(why => "within" in why.dataset && near(value, why)) ?? whys.at(-1);
  };
  const check = () => {
    const why = find(), right = why.dataset && "right" in why.dataset;
    const verdict = document.createElement("strong");
    verdict.textContent = right ? "Right. " : "Not yet. ";
    const words = why.dataset ? [verdict, ...why.lastElementChild.cloneNode(true).childNodes] : [why];
    said.replaceChildren(...words);
    root.dataset.state = why.dataset ? (right ? "right" : "wrong") : "";
  };
  root.dataset.ready = "";
  button.hidden = said.hidden = false;
  button.addEventListener("click", check);
  root.addEventListener("input", () => { said.replaceChildren(); root.dataset.state = ""; });
  root.addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault();
    check();
  });
}
</script>"""


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
        If ``options`` is no mapping from text to text.
    ValueError
        If the question, an option or an explanation is empty, there are fewer than two options, or ``right``
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
        How far off, in the unit, a number still counts as ``answer`` or as one of ``wrong``. Rounding in the
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
