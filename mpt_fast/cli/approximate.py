"""`mpt-fast approximate`: a trained network inside a random one."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mpt_fast.cli import runs
from mpt_fast.cli.options import DataRoot, Debug, Json, Threads, output
from mpt_fast.cli.output import Output, table
from mpt_fast.report import text

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from mpt_fast.data import Dataset
    from mpt_fast.random_binary import Approximation, Report
    from mpt_fast.random_binary.check import Observed

NAME = "approximate"
EXAMPLE = (
    "Example: [bold]mpt-fast train fc --data digits --dense --out runs/fc[/bold], then "
    "[bold]mpt-fast approximate runs/fc --epsilon 0.05 -o fc.mpt[/bold]"
)


def _positive(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a positive number")
    return value


def command(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A run's folder, or a checkpoint in it."),
    ],
    epsilon: Annotated[
        float,
        typer.Option(
            metavar="X",
            callback=_positive,
            help="How far the outputs may be from MODEL's: Euclidean distance of the logits.",
        ),
    ] = 0.05,
    radius: Annotated[
        float,
        typer.Option(
            metavar="X",
            callback=_positive,
            help="Greatest Euclidean norm of the inputs that the bound is for.",
        ),
    ] = 1.0,
    redundancy: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Neurons that carry one value. More make the network wider and success surer.",
            show_default="chosen from the network's shape",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the random network.")] = 0,
    file: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE.mpt", help="Where to save the seed and the mask."
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Test images on which the predictions are compared."),
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
        compared = _compare(found, target, dataset, images)
    size = found.save(file) if file is not None else None
    _show(out, found, observed, compared, seconds, file, size)


class _Compared(NamedTuple):
    """Predictions on test images: how many are the same, of how many; their greatest norm."""

    unchanged: int
    images: int
    norm: float


def _compare(found: Approximation, target: nn.Module, dataset: Dataset, images: int) -> _Compared:
    """The predictions of both networks on the first test images."""
    import torch

    same, total, norm = 0, 0, 0.0
    with torch.no_grad():
        for index in torch.arange(min(images, len(dataset.test))).split(128):
            x = dataset.normalize(dataset.test.batch(index))
            same += int((found.module(x).argmax(1) == target(x).argmax(1)).sum())
            total += len(x)
            norm = max(norm, float(x.flatten(1).norm(dim=1).max()))
    return _Compared(same, total, norm)


def _show(
    out: Output,
    found: Approximation,
    observed: Observed,
    compared: _Compared,
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
        "predictions_unchanged": compared.unchanged,
        "predictions_compared": compared.images,
        "largest_image_norm": compared.norm,
        "seconds": seconds,
        "file": None if file is None else str(file),
        "file_bytes": size,
    }
    theorem = report.theorem
    rows = [
        ["Depth", text.count(report.depth), f"layers; the theorem's: {text.count(theorem.depth)}"],
        ["Greatest width", text.count(report.width),
         f"neurons; the theorem's: {text.count(theorem.width)}"],
        ["Redundancy", text.count(report.redundancy),
         f"neurons carry one value; the theorem's: {theorem.redundancy}"],
        ["Bits per weight", text.count(report.bits),
         f"after its sign; the theorem's: {theorem.bits}"],
        ["Signs drawn", text.count(report.edges_drawn), f"seed {report.seed}"],
        ["Signs kept", text.count(report.edges_kept),
         f"{100 * report.edges_kept / report.edges_drawn:.3g} % of them"],
        ["Scale", f"2^{math.log2(report.scale):.6g}", "one factor for the whole network"],
        ["Error at most", f"{report.certificate:.4g}", f"for inputs of norm <= {report.radius:g}"],
        ["Largest error seen", f"{observed.largest:.4g}", "random points, vertices, ascent"],
    ]  # fmt: skip
    if compared.images:
        share = text.percent(compared.unchanged / compared.images, 2)
        norm = f"of {text.count(compared.images)} test images, of norm <= {compared.norm:.3g}"
        rows.append(["Predictions unchanged", share, norm])
    if file is not None and size is not None:
        rows.append(["File", text.size(size), str(file)])
    rows.append(["Time", text.duration(seconds), "to find the mask"])
    out.result(data, _layers(report), table(["", "", ""], rows, left=(0, 2)))


def _layers(report: Report) -> Table:
    """The random layers, those that compute one layer of MODEL in a row."""
    rows = []
    for name, group in itertools.groupby(report.layers, key=lambda layer: layer.name):
        layers = list(group)
        equal = itertools.groupby(text.count(layer.width) for layer in layers)
        counts = [(width, len(list(same))) for width, same in equal]
        widths = [f"{width} ×{count}" if count > 1 else width for width, count in counts]
        kept = sum(layer.kept for layer in layers)
        drawn = sum(layer.drawn for layer in layers)
        rows.append(
            [name, str(len(layers)), ", ".join(widths), text.count(drawn), text.count(kept)]
        )
    return table(["Computes", "Layers", "Widths", "Signs drawn", "Signs kept"], rows)
