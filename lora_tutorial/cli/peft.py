"""``lora-tutorial export-peft``, ``import-peft``, ``export-merged`` and ``diagnose``: adapters as folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_tutorial.cli import checks
from lora_tutorial.cli.screen import console, say

Licence = Annotated[str | None, typer.Option("--licence", help="The adapter's licence, for its card.")]
Data = Annotated[str | None, typer.Option("--data", help="What it was trained on, for its card.")]
DataLicence = Annotated[str | None, typer.Option("--data-licence", help="The data's licence, for its card.")]
Title = Annotated[str | None, typer.Option("--title", help="The card's title.")]


def export_peft(
    adapter: Annotated[
        Path, typer.Argument(help="A folder that train has made; of an encoder with --head roberta.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for PEFT's files, and the base where it is needed.")],
    licence: Licence = None,
    data: Data = None,
    data_licence: DataLicence = None,
    title: Title = None,
) -> None:
    """Write an adapter as PEFT writes it: same logits, bit for bit."""
    folder = _check_export(adapter, out)

    from lora_tutorial.adapters.peft import export_peft as export

    _export(export, folder, out, _said(licence, data, data_licence, title), "PEFT adapter")


def export_merged(
    adapter: Annotated[
        Path, typer.Argument(help="A folder that train has made; of an encoder with --head roberta.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the whole model, as large as its base.")],
    licence: Licence = None,
    data: Data = None,
    data_licence: DataLicence = None,
    title: Title = None,
) -> None:
    """Write the whole model with the adapter in its weights: transformers alone loads it."""
    folder = _check_export(adapter, out)

    from lora_tutorial.adapters.sharing import export_merged as export

    _export(export, folder, out, _said(licence, data, data_licence, title), "Merged model")


def _check_export(adapter: Path, out: Path) -> Path:
    """The adapter's folder, if it can be written elsewhere and there is room to write."""
    folder = checks.find_adapter(adapter)
    checks.check_exportable(adapter, folder)
    checks.check_writable(out)
    return folder


def _export(export: Callable[..., Path], folder: Path, out: Path, said: dict[str, str], what: str) -> None:
    from lora_tutorial.adapters.files import load_adapter
    from lora_tutorial.models.encoders import quiet

    with quiet():
        model: Any = load_adapter(folder)
        export(model, out, metadata=model.adapter_metadata | said)
    console.print(f"{what}: {out} ({', '.join(sorted(path.name for path in out.iterdir()))})")


def _said(
    licence: str | None, data: str | None, data_licence: str | None, title: str | None
) -> dict[str, str]:
    """What the command was told for the card."""
    said = {"licence": licence, "data": data, "data_licence": data_licence, "title": title}
    return {key: value for key, value in said.items() if value is not None}


def import_peft(
    peft: Annotated[Path, typer.Argument(help="A folder with adapter_config.json.")],
    out: Annotated[Path, typer.Argument(help="Folder for our adapter.")],
    base: Annotated[str | None, typer.Option(help="Base or folder, instead of the one it names.")] = None,
) -> None:
    """Read an adapter that PEFT wrote and save it as ours."""
    causal = checks.check_peft_folder(peft).get("task_type") == "CAUSAL_LM"
    checks.check_writable(out)
    if base is not None:
        (checks.check_lm if causal else checks.check_encoder)(base)

    from lora_tutorial.adapters.files import save_adapter
    from lora_tutorial.adapters.peft import import_peft as read
    from lora_tutorial.models.encoders import quiet

    with quiet():
        save_adapter(read(peft, base), out, {"imported_from": "PEFT"})
    use = (
        f'Try it: lora-tutorial generate {out} "a request"'
        if causal
        else "Load it with lora_tutorial.load_adapter."
    )
    say(f"Adapter: {out}. {use}")


def diagnose(
    adapter: Annotated[Path, typer.Argument(help="A folder with an adapter, ours or PEFT's.")],
    base: Annotated[
        str | None, typer.Option(help="Its base: a name or folder. Then the adapter is loaded too.")
    ] = None,
) -> None:
    """Look for what makes an adapter do nothing, or something else than it was trained for.

    Exits with 1 where something was found.
    """
    folder = checks.find_any_adapter(adapter)

    from lora_tutorial.adapters.diagnose import diagnose as look

    findings = look(folder, base)
    for finding in findings:
        say(f"- {finding}")
    if findings:
        raise typer.Exit(1)
    seen = "files, settings and tensors" if base is None else "files, settings, tensors and base"
    say(f"Nothing was found wrong with {folder}: {seen}.")
