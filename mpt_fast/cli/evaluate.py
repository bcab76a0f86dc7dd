"""`mpt-fast eval`: test accuracy of a run or of a packed file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpt_fast.cli import runs
from mpt_fast.cli.options import DataRoot, Debug, Json, Threads, output
from mpt_fast.cli.output import table
from mpt_fast.report import text

if TYPE_CHECKING:
    from torch import nn

NAME = "eval"
EXAMPLE = (
    "Examples: [bold]mpt-fast eval runs/conv4-digits[/bold] or "
    "[bold]mpt-fast eval mpt-demo/binary.mpt[/bold]"
)


def command(
    context: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run's folder, a checkpoint in it, FILE.mpt or seed-only FILE.ticket.",
        ),
    ],
    best: Annotated[
        bool, typer.Option("--best", help="The best checkpoint of the run, not the last.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Data set.", show_default="the one it was trained on"),
    ] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the test accuracy of RUN: a finished or unfinished training run, or a packed file."""
    import mpt_fast as mpt
    from mpt_fast.data import load
    from mpt_fast.training import evaluate, load_run, load_seed_ticket

    out = output(context)
    runs.set_threads(threads)
    model: nn.Module
    if runs.is_packed(run):
        model = packed = mpt.load(run, threads=threads)
        trained_on, image_size = packed.metadata.get("data"), packed.input_shape[-1]
    elif run.suffix == ".ticket":
        model, recipe = load_seed_ticket(run)
        trained_on, image_size = recipe.data, recipe.image_size
    else:
        folder, which = runs.locate(run, "best" if best else None)
        model, recipe = load_run(folder, which)
        trained_on, image_size = recipe.data, recipe.image_size
    name = data or trained_on
    if name is None:
        raise ValueError(f"{run} does not say what data it is for; give --data")
    dataset = load(name, data_root, image_size=image_size)
    start = time.perf_counter()
    with out.busy(f"Testing on {name}"):
        result = evaluate(model, dataset)
    seconds = time.perf_counter() - start
    out.result(
        {
            "run": str(run),
            "data": name,
            "accuracy": result.accuracy,
            "correct": result.correct,
            "total": result.total,
            "loss": result.loss,
            "seconds": seconds,
        },
        table(
            ["", "accuracy", "correct", "loss", "time"],
            [
                [
                    f"{run} on {name}",
                    text.percent(result.accuracy, 2),
                    f"{result.correct} of {result.total}",
                    f"{result.loss:.4f}",
                    text.duration(seconds),
                ]
            ],
        ),
    )
