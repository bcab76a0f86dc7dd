"""`mpt-fast demo`: two tickets and their dense twin, found, packed, run and reported."""

from __future__ import annotations

import json as json_text
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpt_fast.cli import runs
from mpt_fast.cli.options import DataRoot, Debug, Json, Seed, output
from mpt_fast.cli.output import Output, table
from mpt_fast.report import text, write_text

if TYPE_CHECKING:
    from mpt_fast.report.demo import Demo

NAME = "demo"
EXAMPLE = "Example: [bold]mpt-fast demo --sparsity 0.95 --out my-demo[/bold]"


def command(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the report, the runs and the files.")
    ] = Path("mpt-demo"),
    model: Annotated[str, typer.Option(help="Network, as for mpt-fast train.")] = "conv4",
    data: Annotated[str, typer.Option(help="Data set; digits is built in.")] = "digits",
    sparsity: Annotated[
        float, typer.Option(metavar="X", help="Share of the weights to prune.")
    ] = 0.9,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Passes over the data.")] = 20,
    batch: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images per batch when timing.")
    ] = 512,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=0.1, help="Time to spend on timing.")
    ] = 10.0,
    seed: Seed = 0,
    data_root: DataRoot = None,
    threads: Annotated[
        int, typer.Option(metavar="N", min=1, help="CPU threads for training and for timing.")
    ] = 1,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find, pack and run tickets on real images and write a report: a minute, no data needed.

    Trains a float ticket, a ticket with binary activations and their dense twins on handwritten
    digits, packs and reloads the tickets, times all side by side, and writes one HTML page.
    """
    from mpt_fast.cli import demo_steps as steps
    from mpt_fast.data import load
    from mpt_fast.measure import machine
    from mpt_fast.report import demo as page

    shown = output(context)
    start = time.perf_counter()
    number = runs.set_threads(threads)
    dataset = load(data, data_root)
    recipes = steps.recipes(model, data, sparsity, epochs, seed)
    shown.say(
        f"{model} on {dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test "
        f"images, {text.percent(sparsity, 0)} of the weights pruned, {text.threads(number)}"
    )
    results = steps.train(recipes, out, data_root, shown)
    shown.say("Packing, saving, reloading, comparing with eager PyTorch in float64 ...")
    with shown.busy("Packing"):
        tickets = {
            role: steps.pack(
                recipes[role], results[role], dataset, out / f"{role}.mpt", number, shown
            )
            for role in page.TICKETS
        }
    shown.say("Timing all four, alternating in one process ...")
    with shown.busy("Timing"):
        speeds = steps.speeds(results, tickets, dataset, batch, seconds)
    layer, kernels = steps.kernels(results["binary"].model)
    demo = page.Demo(
        model=model,
        dataset=dataset.name,
        train_images=len(dataset.train),
        test_images=len(dataset.test),
        image_shape=dataset.image_shape,
        sparsity=sparsity,
        batch=batch,
        threads=number,
        seconds=time.perf_counter() - start,
        command=runs.command_line(),
        machine=steps.described(machine()),
        networks=[
            steps.network(role, results[role], tickets.get(role), speeds[role], dataset)
            for role in page.ROLES
        ],
        kernels=kernels,
        kernels_layer=layer,
        examples=steps.examples(tickets["binary"].model, dataset, out / "images"),
    )
    report = write_text(out / "report.html", page.document(demo).html())
    data_json = demo.to_json()
    write_text(out / "report.json", json_text.dumps(data_json, indent=1) + "\n")
    _show(shown, demo, data_json, report)


def _show(shown: Output, demo: Demo, data: dict[str, Any], report: Path) -> None:
    from mpt_fast.report.demo import table as comparison

    compared = comparison(demo)
    header = ["\n".join(name.rsplit(" ", 1)) for name in compared.header]  # fits 80 columns
    shown.result(
        {**data, "report": str(report)},
        "",
        f"[bold]{compared.caption}[/bold]",
        table(header, compared.rows, strong=compared.strong),
    )
    folder = report.parent
    shown.say(f"Took {text.duration(demo.seconds)}. The report: {report}")
    shown.say("Next:")
    shown.say(f"  mpt-fast run {folder}/binary.mpt {folder}/images/*.png")
    shown.say("  mpt-fast train conv4 --data fashion-mnist --sparsity 0.5 --activation binary")
