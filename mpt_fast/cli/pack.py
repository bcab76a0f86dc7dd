"""`mpt-fast pack`: a trained run becomes one small file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpt_fast.cli import runs
from mpt_fast.cli.options import DataRoot, Debug, Json, Threads, output
from mpt_fast.cli.output import table
from mpt_fast.report import text

NAME = "pack"
EXAMPLE = "Example: [bold]mpt-fast pack runs/conv4-digits -o ticket.mpt[/bold]"


def command(
    context: typer.Context,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or a checkpoint in it.")
    ],
    file: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE.mpt", help="The packed file to write."),
    ],
    best: Annotated[
        bool, typer.Option("--best", help="The best checkpoint of the run, not the last.")
    ] = False,
    data_root: DataRoot = None,
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Pack RUN into FILE.mpt: kept signs, masks and a program that runs without PyTorch.

    Prints the file's size against fp32 and against the entropy bound, and how every layer will
    run. The packed network is tested before it is written, and the file is read back.
    """
    import torch

    import mpt_fast as mpt
    from mpt_fast import runtime
    from mpt_fast.data import load
    from mpt_fast.training import evaluate, load_run

    out = output(context)
    runs.set_threads(threads)
    folder, which = runs.locate(run, "best" if best else None)
    model, recipe = load_run(folder, which)
    dataset = load(recipe.data, data_root, image_size=recipe.image_size)
    with out.busy("Packing and testing"):
        packed = mpt.pack(model, torch.zeros(1, *dataset.image_shape), threads=threads)
        accuracy = evaluate(packed, dataset).accuracy
    packed.save(file, metadata=runs.metadata(recipe, dataset, accuracy))
    report = runtime.size_report(runtime.read_program(file))
    size = file.stat().st_size
    against_bound = f"the file is {text.ratio(size / report.bound_bytes)} the bound"
    share = text.percent(report.kept / report.weights)
    rows = [
        ["File", text.size(size), str(file)],
        [
            "In fp32",
            text.size(report.fp32_bytes),
            f"{text.ratio(report.fp32_bytes / size)} the file",
        ],
        ["Entropy bound", text.size(report.bound_bytes), against_bound],
        ["Weights kept", text.count(report.kept), f"{share} of {text.count(report.weights)}"],
        ["Test accuracy", text.percent(accuracy, 2), f"packed, on {recipe.data}"],
    ]
    out.result(
        {
            "file": str(file),
            **report.to_dict(),
            "accuracy": accuracy,
            "plan": packed.plan().to_dicts(),
        },
        str(packed.plan()),
        table(["", "", ""], rows, left=(0, 2)),
    )
    out.say(f"Run it: mpt-fast run {file} IMAGES...")
