"""`mpt-fast approximate`: a trained network inside a random one."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpt_fast.cli import runs
from mpt_fast.cli.options import DataRoot, Debug, Json, Threads, output
from mpt_fast.cli.output import Output, table
from mpt_fast.report import text

if TYPE_CHECKING:
    from torch import nn

    from mpt_fast.data import Dataset
    from mpt_fast.random_binary import Approximation
    from mpt_fast.random_binary.check import Observed

NAME = "approximate"
EXAMPLE = (
    "Example: [bold]mpt-fast train fc --data digits --dense --out runs/fc[/bold], then "
    "[bold]mpt-fast approximate runs/fc --epsilon 0.05 -o fc.mpt[/bold]"
)


def command(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A run's folder, or a checkpoint in it."),
    ],
    epsilon: Annotated[
        float, typer.Option(min=0.0, help="Allowed Euclidean distance of the outputs.")
    ] = 0.05,
    radius: Annotated[
        float, typer.Option(min=0.0, help="Greatest norm of the inputs that the bound is for.")
    ] = 1.0,
    redundancy: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Neurons that carry one value.",
            show_default="chosen from the network's shape",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random network.")] = 0,
    file: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE.mpt", help="Where to save the seed and the mask."
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(min=0, help="Test images on which the predictions are compared."),
    ] = 500,
    best: Annotated[
        bool, typer.Option("--best", help="The best checkpoint of the run, not the last.")
    ] = False,
    data_root: DataRoot = None,
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Approximate MODEL by deleting weights of a random network of +1 and -1.

    The random network is drawn from the seed before MODEL is read. What is kept of it computes
    MODEL's outputs, up to one factor, within epsilon for every input of norm at most the radius:
    a bound from MODEL's weights alone. Then looks for the largest error that really occurs.
    """
    from mpt_fast import random_binary
    from mpt_fast.data import load
    from mpt_fast.random_binary.check import observe
    from mpt_fast.training import load_run

    out = output(context)
    runs.set_threads(threads)
    folder, which = runs.locate(model, "best" if best else None)
    target, recipe = load_run(folder, which)
    dataset = load(recipe.data, data_root, image_size=recipe.image_size)
    start = time.perf_counter()
    with out.progress() as display:
        task = display.add_task("random network", total=None)

        def progress(done: int, total: int, what: str) -> None:
            display.update(task, completed=done, total=total, description=what)

        found = random_binary.approximate(
            target,
            epsilon,
            redundancy,
            seed,
            input_shape=dataset.image_shape,
            radius=radius,
            progress=progress,
        )
        seconds = time.perf_counter() - start
        display.update(task, total=None, description="looking for the largest error")
        observed = observe(found, target, points=128, steps=5, vertices=256)
        unchanged = _unchanged(found, target, dataset, images)
    size = found.save(file) if file is not None else None
    _show(out, found, observed, unchanged, seconds, file, size)


def _unchanged(
    found: Approximation, target: nn.Module, dataset: Dataset, images: int
) -> tuple[int, int]:
    """How many of the first test images keep their prediction, and how many were tried."""
    import torch

    same = total = 0
    with torch.no_grad():
        for index in torch.arange(min(images, len(dataset.test))).split(128):
            x = dataset.normalize(dataset.test.batch(index))
            same += int((found.module(x).argmax(1) == target(x).argmax(1)).sum())
            total += len(x)
    return same, total


def _show(
    out: Output,
    found: Approximation,
    observed: Observed,
    unchanged: tuple[int, int],
    seconds: float,
    file: Path | None,
    size: int | None,
) -> None:
    report = found.report
    data: dict[str, Any] = {
        **report.to_dict(),
        "widths": [layer.width for layer in report.layers],
        "observed_error": observed.largest,
        "observed": {
            "random": observed.random,
            "vertices": observed.vertices,
            "ascent": observed.ascent,
        },
        "predictions_unchanged": unchanged[0],
        "predictions_compared": unchanged[1],
        "seconds": seconds,
        "file": None if file is None else str(file),
        "file_bytes": size,
    }
    theorem = report.theorem
    rows = [
        ["Depth", text.count(report.depth), f"theorem: {text.count(theorem.depth)}"],
        ["Greatest width", text.count(report.width), f"theorem: {text.count(theorem.width)}"],
        ["Redundancy", text.count(report.redundancy), f"theorem: {theorem.redundancy}"],
        ["Bits per weight", text.count(report.bits), f"theorem: {theorem.bits}"],
        ["Signs drawn", text.count(report.edges_drawn), f"seed {report.seed}"],
        ["Signs kept", text.count(report.edges_kept),
         f"{100 * report.edges_kept / report.edges_drawn:.3g} % of them"],
        ["Scale", f"2^{math.log2(report.scale):.6g}", "one factor for the whole network"],
        ["Error at most", f"{report.certificate:.4g}", f"for inputs of norm <= {report.radius:g}"],
        ["Largest error seen", f"{observed.largest:.4g}", "random points, vertices, ascent"],
    ]  # fmt: skip
    if unchanged[1]:
        share = text.percent(unchanged[0] / unchanged[1], 2)
        rows.append(["Predictions unchanged", share, f"of {text.count(unchanged[1])} test images"])
    if file is not None and size is not None:
        rows.append(["File", text.size(size), str(file)])
    rows.append(["Time", text.duration(seconds), "to find the mask"])
    out.result(data, table(["", "", ""], rows))
