"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mpt_fast.cli.output import Output


def output(context: typer.Context) -> Output:
    """The output settings of this invocation."""
    return context.ensure_object(Output)


def _set_json(context: typer.Context, value: bool) -> bool:
    output(context).json |= value
    return value


def _set_debug(context: typer.Context, value: bool) -> bool:
    output(context).debug |= value
    return value


TRAINING = "Training"
"""The panel of the options that decide how a network is trained, in every command's help."""

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object on standard output and nothing else there.",
        callback=_set_json,
        is_eager=True,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of an error.",
        callback=_set_debug,
        is_eager=True,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="CPU threads.", show_default="as PyTorch chooses"),
]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, help="Seed of weights, scores and data order.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Folder in which to look for the data set.",
        show_default="the usual places",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(metavar="N", help="Passes over the data.", rich_help_panel=TRAINING),
]
RecipeSeed = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Seed of weights, scores, masks and data order.", rich_help_panel=TRAINING
    ),
]
RecipeThreads = Annotated[
    int | None, typer.Option(metavar="N", help="CPU threads.", rich_help_panel=TRAINING)
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, ...", show_default="cuda if any", rich_help_panel=TRAINING
    ),
]


def setting_values(items: list[str]) -> dict[str, Any]:
    """KEY=VALUE texts as a dict; values are read as YAML (0.5, true, [30, 60], null)."""
    import yaml

    values: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE", param_hint="'--set'")
        try:
            values[key.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"{item!r}: value is not YAML", param_hint="'--set'") from None
    return values
