"""`mpt-fast finetune`: train the weights of a found ticket, its mask fixed; one run or a sweep."""

from __future__ import annotations

import itertools
import json as jsonlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mpt_fast.cli import runs
from mpt_fast.cli.options import DataRoot, Debug, Json, Threads, output
from mpt_fast.cli.output import table
from mpt_fast.report import text, write_text

NAME = "finetune"
EXAMPLE = (
    "Examples: [bold]mpt-fast finetune runs/ticket --part last --lr 1e-3[/bold], or a sweep that "
    "goes on where it was stopped: [bold]mpt-fast finetune runs/ticket --table1 --resume[/bold]"
)
_TABLE1: dict[str, list[Any]] = {
    "part": ["first", "last", "all"],
    "optimizer": ["sgd", "adam"],
    "schedule": ["multistep", "cosine", "constant"],
    "lr": [0.1, 0.01, 0.001, 0.0001],
    "batch_size": [64, 128, 256, 512],
}


def command(
    context: typer.Context,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The ticket's run folder, or a checkpoint in it.")
    ],
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="first|last|all", help="Layers to train.", show_default="last"),
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(metavar="sgd|adam", help="Optimiser.", show_default="sgd"),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="cosine|multistep|constant",
            help="Course of the learning rate; multistep falls at a half and at three quarters.",
            show_default="cosine",
        ),
    ] = None,
    lr: Annotated[
        list[float] | None,
        typer.Option(metavar="X", help="Learning rate.", show_default="0.001"),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Images in a step.", show_default="256"),
    ] = None,
    table1: Annotated[
        bool,
        typer.Option("--table1", help="Sweep all that the paper's Table 1 lists (288 runs)."),
    ] = False,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Passes over the data.")] = 50,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Seed of the order.", show_default="the run's"),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Start from the best checkpoint, not the last.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the result.", show_default="RUN-finetuned"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what --out holds; finished runs stay.")
    ] = False,
    data_root: DataRoot = None,
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune the ticket in RUN: the mask stays, weights are trained through sign and gain.

    The result is a run like any other: eval, pack and bench take it. An option given several
    times makes a sweep over all combinations, each in a folder of its own under --out.
    """
    from mpt_fast.training import Recipe, finetune_run
    from mpt_fast.training.finetune import finetuning_recipe

    shown = output(context)
    folder, which = runs.locate(run, "best" if best else None)
    target = out or folder.with_name(f"{folder.name}-finetuned")
    given = {
        "part": part,
        "optimizer": optimizer,
        "schedule": schedule,
        "lr": lr,
        "batch_size": batch_size,
    }
    grid = _grid(given, table1)
    common: dict[str, Any] = {"epochs": epochs}
    common |= {"seed": seed} if seed is not None else {}
    common |= {"threads": threads} if threads is not None else {}
    settings = list(_settings(grid))
    sweep = len(settings) > 1
    if sweep and not resume and (target / "sweep.json").exists():
        raise ValueError(f"{target} holds a sweep; go on with --resume or name another --out")
    recipe = Recipe.load(folder / "recipe.yaml")
    for setting in settings:  # a wrong value is found before the first run, not after the tenth
        finetuning_recipe(recipe, setting["part"], common | _fields(setting, epochs))
    rows: list[dict[str, Any]] = []
    for setting in settings:
        place = target / _name(setting) if sweep else target
        done = _finished(place) if sweep and resume else None
        if done is None:
            result = finetune_run(
                folder,
                place,
                setting["part"],
                which=which,
                resume=resume,
                data_root=data_root,
                quiet=shown.json or sweep,
                **common,
                **_fields(setting, epochs),
            )
            done = {"accuracy": result.accuracy, "best_accuracy": result.best_accuracy}
        rows.append({**setting, **done, "out": str(place)})
        if sweep:
            write_text(target / "sweep.json", jsonlib.dumps({"runs": rows}, indent=1) + "\n")
            shown.note(f"{len(rows)} of {len(settings)}: {_name(setting)} {done['accuracy']:.2%}")
    before = _finished(folder)
    _show(context, folder, before["accuracy"] if before else None, rows)


def _show(
    context: typer.Context, folder: Path, before: float | None, rows: list[dict[str, Any]]
) -> None:
    ordered = sorted(rows, key=lambda row: -row["accuracy"])
    cells = [
        [
            row["part"],
            row["optimizer"],
            row["schedule"],
            f"{row['lr']:g}",
            str(row["batch_size"]),
            text.percent(row["accuracy"], 2),
            "" if before is None else f"{100 * (row['accuracy'] - before):+.2f}",
        ]
        for row in ordered
    ]
    header = ["layers", "optimiser", "schedule", "lr", "batch", "accuracy", "change"]
    output(context).result(
        {"run": str(folder), "before": before, "runs": rows},
        table(
            header,
            cells,
            title=f"{folder}: {text.percent(before, 2)} before fine-tuning",
            left=(0, 1, 2),
        ),
    )


def _grid(given: dict[str, list[Any] | None], table1: bool) -> dict[str, list[Any]]:
    default: dict[str, list[Any]] = {
        "part": ["last"],
        "optimizer": ["sgd"],
        "schedule": ["cosine"],
        "lr": [1e-3],
        "batch_size": [256],
    }
    return {key: values or (_TABLE1 if table1 else default)[key] for key, values in given.items()}


def _settings(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _fields(setting: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Recipe fields of a setting; multistep falls at a half and at three quarters."""
    fields = {key: value for key, value in setting.items() if key != "part"}
    if fields["schedule"] == "multistep":
        steps = {max(1, epochs // 2), max(1, 3 * epochs // 4)}
        fields["milestones"] = sorted(step for step in steps if step < epochs)
    return fields


def _name(setting: dict[str, Any]) -> str:
    lr, batch = f"lr{setting['lr']:g}", f"b{setting['batch_size']}"
    return "-".join([setting["part"], setting["optimizer"], setting["schedule"], lr, batch])


def _finished(folder: Path) -> dict[str, Any] | None:
    """What a finished run's result.json says; None where there is none."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    found = jsonlib.loads(path.read_text(encoding="utf-8"))
    return {"accuracy": found["accuracy"], "best_accuracy": found["best_accuracy"]}
