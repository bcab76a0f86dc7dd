"""`mpt-fast pack`: a trained run becomes one small file."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mpt_fast.cli import runs
from mpt_fast.cli.options import DataRoot, Debug, Json, Threads, output
from mpt_fast.cli.output import Output, table
from mpt_fast.report import text

if TYPE_CHECKING:
    from torch import Tensor

    from mpt_fast.data import Dataset

_CALIBRATION_IMAGES = 256

NAME = "pack"
EXAMPLE = (
    "Examples: [bold]mpt-fast pack runs/conv4-digits -o ticket.mpt[/bold] or "
    "[bold]mpt-fast pack runs/conv4-digits --seed-only -o conv4.ticket[/bold]"
)


def command(
    context: typer.Context,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or a checkpoint in it.")
    ],
    file: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE.mpt", help="The file to write."),
    ],
    best: Annotated[
        bool, typer.Option("--best", help="The best checkpoint of the run, not the last.")
    ] = False,
    seed_only: Annotated[
        bool,
        typer.Option(
            "--seed-only",
            help="Write the weights' seed and the masks, no signs: smaller, needs PyTorch to run.",
        ),
    ] = False,
    activations: Annotated[
        Literal["float", "int8"],
        typer.Option(
            help="int8: activations of a float network as 8-bit integers, calibrated on training "
            "images; faster at large batches, an approximation whose accuracy is printed.",
        ),
    ] = "float",
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
    if seed_only and activations != "float":
        raise typer.BadParameter("not with --seed-only", param_hint="'--activations'")
    if seed_only:
        _seed_only(out, folder, which, file)
        return
    model, recipe = load_run(folder, which)
    dataset = load(recipe.data, data_root, image_size=recipe.image_size)
    pack = partial(
        mpt.pack,
        model,
        torch.zeros(1, *dataset.image_shape),
        threads=threads,
        pixels=(dataset.mean, dataset.std),
    )
    with out.busy("Packing and testing"):
        if activations == "int8":
            packed = pack(activations="int8", calibration=_calibration(dataset))
            in_float = evaluate(pack(), dataset).accuracy
        else:
            packed, in_float = pack(), None
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
    compared = {}
    if in_float is not None:
        compared = {"accuracy_float": in_float, "accuracy_difference": accuracy - in_float}
        rows += [
            ["With float activations", text.percent(in_float, 2), f"on {recipe.data}"],
            ["Difference", f"{100 * (accuracy - in_float):+.2f} points", "8-bit minus float"],
        ]
    out.result(
        {
            "file": str(file),
            **report.to_dict(),
            "accuracy": accuracy,
            **compared,
            "plan": packed.plan().to_dicts(),
        },
        str(packed.plan()),
        table(["", "", ""], rows, left=(0, 2)),
    )
    out.say(f"Run it: mpt-fast run {file} IMAGES...")


def _calibration(dataset: Dataset) -> list[Tensor]:
    """Training images as the network takes them, spread evenly over the set."""
    import torch

    count = min(_CALIBRATION_IMAGES, len(dataset.train))
    chosen = torch.linspace(0, len(dataset.train) - 1, count, dtype=torch.float64).long()
    return [dataset.train.batch(part) for part in chosen.split(64)]


def _seed_only(out: Output, folder: Path, which: runs.Which, file: Path) -> None:
    from mpt_fast.training import load_seed_ticket, save_seed_ticket

    with out.busy("Writing and reading back"):
        size = save_seed_ticket(folder, file, which)
        load_seed_ticket(file)
    rows = [
        ["File", text.size(size.file_bytes), str(file)],
        ["In fp32", text.size(size.fp32_bytes), text.ratio(size.fp32_bytes / size.file_bytes)],
        ["Entropy of the masks", text.size(size.bound_bytes), "no file of masks can be smaller"],
        ["Weights kept", text.count(size.kept), f"of {text.count(size.weights)}, signs by seed"],
    ]
    out.result(
        {"file": str(file), **dataclasses.asdict(size)}, table(["", "", ""], rows, left=(0, 2))
    )
    out.say(f"Test it: mpt-fast eval {file}")
