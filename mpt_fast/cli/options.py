"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
