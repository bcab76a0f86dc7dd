"""`mpt-fast bench`: a packed ticket against its dense twin; `bench cpu`: the whole comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpt_fast.cli import bench_cpu, runs
from mpt_fast.cli.options import Debug, Json, Seed, Threads, output
from mpt_fast.cli.output import Output, table
from mpt_fast.report import text

if TYPE_CHECKING:
    from torch import nn

    from mpt_fast.packed import PackedModel

NAME = "bench"
EXAMPLE = (
    "Examples: [bold]mpt-fast bench mpt-demo/binary.mpt[/bold] or "
    "[bold]mpt-fast bench vgg_small --sparsity 0.95 --batch 64 --batch 1[/bold] or "
    "[bold]mpt-fast bench cpu --mode quick[/bold]"
)


def command(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE.mpt|RUN|MODEL|cpu",
            help="A packed file; a run's folder, for its skip report (all-zero kernels per layer, "
            "counted and measured acceleration); a model to make a random ticket of; or the word "
            "cpu.",
        ),
    ],
    batch: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Images per call; may be repeated.",
            show_default="512; of cpu by mode",
        ),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X",
            help="Of MODEL's random ticket; of cpu it may be repeated.",
            show_default="0.9; of cpu by mode",
        ),
    ] = None,
    activation: Annotated[str, typer.Option(metavar="relu|binary", help="Of MODEL.")] = "binary",
    image: Annotated[str, typer.Option(metavar="CxHxW", help="Input of MODEL.")] = "3x32x32",
    seconds: Annotated[
        float, typer.Option(metavar="S", min=0.1, help="Time to spend on each batch size.")
    ] = 5.0,
    mode: Annotated[
        str,
        typer.Option(
            metavar="quick|standard|full", help="How much of cpu is measured, and for how long."
        ),
    ] = "standard",
    seed: Seed = 0,
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time a packed ticket and its dense twin in eager PyTorch at the twin's best setting.

    Both alternate in one process with equal threads; medians and their spread are printed. Nothing
    is timed before the packed network has given the answers of its float64 reference.

    `bench cpu` does so for single layers and whole networks, binary and float, at several batch
    sizes and sparsities, on one thread unless --threads says otherwise, and times other engines
    (torch bf16, torch.compile, ONNX Runtime) beside them where they are installed.
    """
    out = output(context)
    if target == "cpu":
        bench_cpu.run(out, mode, threads or 1, batch, sparsity)
        return
    number = runs.set_threads(threads)
    amounts = sparsity or [0.9]
    if len(amounts) > 1:
        raise typer.BadParameter("repeated only for cpu", param_hint="'--sparsity'")
    if Path(target).is_dir():
        _skip(out, Path(target), batch or [512], seconds, number)
        return
    if runs.is_packed(Path(target)):
        packed, twin, title = _from_file(Path(target), number)
    else:
        packed, twin, title = _from_model(
            target, amounts[0], activation, _shape(image), seed, number
        )
    _verify(packed, seed)
    rows = []
    with out.progress() as progress:
        for size in progress.track(batch or [512], description="Timing"):
            rows += _rows(packed, twin, size, seconds)
    out.result(
        {"target": target, "network": title, "threads": number, "results": rows},
        table(
            ["batch", "network", "how", "median", "20th to 80th percentile", "images/s", "ratio"],
            [
                [
                    str(row["batch"]),
                    row["network"],
                    row["setting"],
                    text.duration(row["median"]),
                    f"{text.duration(row['p20'])} to {text.duration(row['p80'])}",
                    text.count(row["images_per_second"]),
                    text.ratio(row["ratio"]),
                ]
                for row in rows
            ],
            title=f"{title}, {text.threads(number)}",
            left=(1, 2),
        ),
    )


def _skip(out: Output, run: Path, batches: list[int], seconds: float, threads: int) -> None:
    """The structured skip report of a run's ticket."""
    from mpt_fast.data import shape_of
    from mpt_fast.measure import skip_report
    from mpt_fast.training import load_run

    folder, which = runs.locate(run)
    model, recipe = load_run(folder, which)
    if recipe.dense:
        raise ValueError(f"{run} is a dense run; the skip report is of a ticket")
    shape, classes = shape_of(recipe.data, recipe.image_size)
    twin = recipe.replace(dense=True, compat="none").build(shape, classes).eval()
    with out.busy("Counting and timing"):
        report = skip_report(model, twin, shape, batches=batches, threads=threads, seconds=seconds)
    out.result({"run": str(run), **report.to_dict()}, str(report))


def _shape(image: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in image.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(f"{image!r} is not CxHxW", param_hint="'--image'") from None
    if min(channels, height, width) < 1 or height != width:
        raise typer.BadParameter("want a square image of at least 1x1x1", param_hint="'--image'")
    return channels, height, width


def _from_file(file: Path, threads: int) -> tuple[PackedModel, nn.Module, str]:
    """The packed network, an untrained twin of the same layers, and what they are called."""
    import mpt_fast as mpt

    packed = mpt.load(file, threads=threads)
    about = packed.metadata
    if "model" not in about:
        raise ValueError(
            f"{file} does not say which model it was made of, so it has no twin to compare with; "
            "pack it with mpt-fast pack"
        )
    channels, *size = packed.input_shape
    twin = mpt.models.dense_twin(
        about["model"],
        num_classes=packed.output_shape[-1],
        in_channels=channels,
        activation=about["activation"],
        width=about["width"],
        image_size=tuple(size),
    )
    return packed, twin.eval(), f"{about['model']}, {about['activation']}, {file.name}"


def _from_model(
    name: str,
    sparsity: float,
    activation: str,
    shape: tuple[int, int, int],
    seed: int,
    threads: int,
) -> tuple[PackedModel, nn.Module, str]:
    """A random ticket of the model, packed, and its twin: speed does not depend on training."""
    import torch

    import mpt_fast as mpt

    options: dict[str, Any] = {
        "in_channels": shape[0],
        "activation": activation,
        "image_size": shape[1],
    }
    torch.manual_seed(seed)
    config = mpt.TicketConfig(sparsity=sparsity, scope="layer")
    ticket = mpt.models.build(name, config=config, **options).eval()
    twin = mpt.models.dense_twin(name, **options).eval()
    packed = mpt.pack(ticket, torch.zeros(1, *shape), threads=threads)
    return packed, twin, f"{name}, {activation}, {text.percent(sparsity, 0)} pruned, {shape}"


def _verify(packed: PackedModel, seed: int) -> None:
    """RuntimeError unless the network answers like its float64 reference on random images."""
    import torch

    from mpt_fast.packed import run_reference

    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(70, *packed.input_shape, generator=generator)
    expected = run_reference(packed.program, images.reshape(70, *packed.program.input))
    answers = packed(images).reshape(70, -1)
    if not torch.allclose(answers, expected.reshape(70, -1).float(), rtol=1e-5, atol=1e-6):
        raise RuntimeError("the packed network differs from its reference; it is not timed")


def _rows(packed: PackedModel, twin: nn.Module, batch: int, seconds: float) -> list[dict[str, Any]]:
    """Packed and twin at one batch size, the twin at its best setting."""
    import torch

    from mpt_fast.measure import baselines, compare

    images = torch.randn(batch, *packed.input_shape)
    best = baselines(twin, images, seconds=seconds / 3).best
    timed = compare(lambda: packed(images), best, repeats=200, seconds=2 * seconds / 3)
    return [
        {
            "batch": batch,
            "network": network,
            "setting": setting,
            "median": timing.median,
            "p20": timing.p20,
            "p80": timing.p80,
            "images_per_second": batch / timing.median,
            "ratio": ratio,
        }
        for network, setting, timing, ratio in (
            ("packed", str(packed.backend), timed.candidate, timed.ratio),
            ("dense twin", f"eager, {best.setting}", timed.baseline, 1.0),
        )
    ]
