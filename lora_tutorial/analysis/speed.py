"""The stored measurements of time and memory, for the chapters that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_tutorial.storage.files import bundled_folder

FORMAT = 1


def speed_records(
    kind: str = "times", folder: str | Path | None = None, sitting: str = "", **wanted: object
) -> list[dict[str, Any]]:
    """The records that ``benchmarks/speed`` has stored, in order of file name.

    Parameters
    ----------
    kind
        ``"times"`` or ``"memory"`` of a step, or ``"whole-run"``.
    folder
        Where to look; by default ``benchmarks/results/speed`` of the repository, or the copy that an
        installed package carries.
    sitting
        A folder inside it: ``"first-sitting"`` has what was timed once more later.
    **wanted
        What the setting must be: ``model="minilm", r=8``.

    Raises
    ------
    FileNotFoundError
        If there is no such record.
    ValueError
        If a file is of another format.
    """
    folder = (Path(folder) if folder else bundled_folder("records") / "speed") / sitting
    found = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise ValueError(f"{path.name} has format {record.get('format')!r}; this version reads {FORMAT}.")
        if record["kind"] == kind and all(record["setting"].get(k) == v for k, v in wanted.items()):
            found.append(record)
    if not found:
        given = ", ".join(f"{key}={value!r}" for key, value in wanted.items()) or "any setting"
        raise FileNotFoundError(
            f"No stored record of {kind} for {given}; the scripts in benchmarks/speed make them."
        )
    return found


#: The forms of a training step as `speed_table` calls them, by the name that records have.
FORMS = {
    "full": "full fine-tuning",
    "floor": "frozen floor",
    "teaching": "LoRA, plain",
    "fast": "LoRA, fast",
    "peft": "PEFT",
    "peft-half": "PEFT, bf16 factors",
}


def speed_table(records: list[dict[str, Any]]) -> str:
    """Training steps beside PEFT's, from the records of ``benchmarks/speed/speed.py --plan gpu``.

    Parameters
    ----------
    records
        Records of times in which the floor and PEFT were timed too. Forms that are not in `FORMS` are left
        out.

    Returns
    -------
    str
        For each record a heading and a line for each form: the median time of a step in milliseconds; its
        rate, in PEFT's steps; the same for what the adapters alone cost, forward and backward, above the
        frozen floor; and the peak of memory in MiB. Rates are medians over rounds, and above 1 is faster than
        PEFT. ``-`` stands where there is nothing to compare, ``lost`` where the difference is smaller than
        the noise.
    """
    lines: list[str] = []
    for record in records:
        if lines:
            lines.append("")
        lines += [_heading(record), f"  {'':20}{'step':>10}{'rate':>8}{'own rate':>10}{'peak':>12}"]
        for form, label in FORMS.items():
            if form not in record["summary"]:
                continue
            row = record["summary"][form]
            peak = record.get("bytes", {}).get(form, {}).get("peak")
            cells = [
                f"{1000 * row['seconds']['total'][1]:.2f} ms",
                f"{1 / row['to_peft'][1]:.2f}" if "to_peft" in row else "-",
                _own_rate(form, row),
                f"{peak / 2**20:,.0f} MiB" if peak else "-",
            ]
            widths = (10, 8, 10, 12)
            lines.append(f"  {label:20}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def _heading(record: dict[str, Any]) -> str:
    setting, hardware = record["setting"], record["hardware"]
    parts = [setting["model"], f"{setting['batch']} × {setting['length']}", f"r = {setting['r']}"]
    parts += [setting["targets"], setting["precision"]]
    parts += [extra for extra in ("checkpointing", "compiled") if setting[extra]]
    return f"{', '.join(parts)} ({hardware['accelerator'] or setting['device']})"


def _own_rate(form: str, row: dict[str, Any]) -> str:
    """How often the adapters' own work would be done while PEFT's is done once."""
    if form in ("full", "floor") or "own_to_peft" not in row:
        return "-"
    ratio = row["own_to_peft"]
    return f"{1 / ratio[1]:.2f}" if ratio and ratio[1] > 0 else "lost"
