"""``lora-tutorial export-peft`` and ``import-peft``: carry an adapter to PEFT and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_tutorial.cli import checks
from lora_tutorial.cli.screen import console


def export_peft(
    adapter: Annotated[Path, typer.Argument(help="A folder that train (with --head roberta) has made.")],
    out: Annotated[Path, typer.Argument(help="Folder for PEFT's files, and the base where it is needed.")],
    licence: Annotated[str | None, typer.Option(help="The adapter's licence, for its card.")] = None,
    data: Annotated[str | None, typer.Option(help="What it was trained on, for its card.")] = None,
    data_licence: Annotated[str | None, typer.Option(help="The data's licence, for its card.")] = None,
    title: Annotated[str | None, typer.Option(help="The card's title.")] = None,
) -> None:
    """Write an adapter as PEFT writes it: same logits, bit for bit."""
    folder = checks.find_adapter(adapter)
    settings = checks.read_settings(folder)
    if settings["base"].get("wrapper", {}).get("head") == "tutorial":
        raise ValueError(
            f"{adapter} has the tutorial's head (LayerNorm, dropout, linear), for which PEFT has no place; "
            "train it with --head roberta."
        )
    checks.check_writable(out)
    checks.check_base(settings)

    from lora_tutorial.adapters.files import load_adapter
    from lora_tutorial.adapters.peft import export_peft as export
    from lora_tutorial.models.encoders import quiet

    said = {"licence": licence, "data": data, "data_licence": data_licence, "title": title}
    with quiet():
        model: Any = load_adapter(folder)
        about: dict[str, Any] = model.adapter_metadata | {k: v for k, v in said.items() if v is not None}
        export(model, out, metadata=about)
    console.print(f"PEFT adapter: {out} ({', '.join(sorted(path.name for path in out.iterdir()))})")


def import_peft(
    peft: Annotated[Path, typer.Argument(help="A folder with adapter_config.json.")],
    out: Annotated[Path, typer.Argument(help="Folder for our adapter.")],
    base: Annotated[str | None, typer.Option(help="Encoder or folder, instead of the one it names.")] = None,
) -> None:
    """Read an adapter that PEFT wrote and save it as ours."""
    checks.check_peft_folder(peft)
    checks.check_writable(out)
    if base is not None:
        checks.check_encoder(base)

    from lora_tutorial.adapters.files import save_adapter
    from lora_tutorial.adapters.peft import import_peft as read
    from lora_tutorial.models.encoders import quiet

    with quiet():
        save_adapter(read(peft, base), out, {"imported_from": "PEFT"})
    console.print(f"Adapter: {out}. Load it with lora_tutorial.load_adapter.")
