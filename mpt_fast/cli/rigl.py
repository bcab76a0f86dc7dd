"""`mpt-fast rigl`: train a network's weights sparsely, by RigL or one of its baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpt_fast.cli.options import (
    TRAINING,
    DataRoot,
    Debug,
    Device,
    Epochs,
    Json,
    RecipeSeed,
    RecipeThreads,
    output,
    setting_values,
)
from mpt_fast.cli.output import table
from mpt_fast.report import text

if TYPE_CHECKING:
    from mpt_fast.sparse import Cost, SparseConfig
    from mpt_fast.training import Recipe, Result

NAME = "rigl"
EXAMPLE = (
    "Example: [bold]mpt-fast rigl lenet_300_100 --data fashion-mnist --sparsity 0.95 "
    "--epochs 5[/bold]\n\n"
    "The run is a folder like that of `train`: eval, pack and bench take it."
)
_SPARSE, _FILES = "Sparse training", "Files"


def command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="lenet_300_100, wrn22_2, conv4, imagenet_resnet50, mobilenet_v1, ...",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, mnist, cifar10, cifar100 or imagefolder.",
            show_default="digits",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="rigl, set, snfs, static, snip, pruning, dnw; or ticket: a RigL-driven ticket, "
            "whose weights are never trained.",
            show_default="rigl",
            rich_help_panel=_SPARSE,
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Share of the weights to prune.",
            show_default="0.9",
            rich_help_panel=_SPARSE,
        ),
    ] = None,
    distribution: Annotated[
        str | None,
        typer.Option(
            metavar="uniform|er|erk",
            help="How it is spread over the layers.",
            show_default="erk",
            rich_help_panel=_SPARSE,
        ),
    ] = None,
    delta_t: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Steps between updates of the masks (ticket: between gradients of all scores).",
            show_default="100; 4 for ticket",
            rich_help_panel=_SPARSE,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Share of the kept weights that the first update moves.",
            show_default="0.3",
            rich_help_panel=_SPARSE,
        ),
    ] = None,
    stop: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Share of the run after which the masks stay.",
            show_default="0.75",
            rich_help_panel=_SPARSE,
        ),
    ] = None,
    epochs: Epochs = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="X", help="Learning rate.", rich_help_panel=TRAINING),
    ] = None,
    seed: RecipeSeed = None,
    threads: RecipeThreads = None,
    device: Device = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other setting of the recipe (`train --dump`) or of "
            "mpt_fast.sparse.SparseConfig; may be repeated.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the run.",
            show_default="runs/MODEL-DATA-METHOD",
            rich_help_panel=_FILES,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the last complete checkpoint in --out; give the same options.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    data_root: DataRoot = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train MODEL's weights with most of them pruned from the first step on.

    RigL drops the smallest weights and grows where the gradient is largest; the other methods are
    what it is compared with. Prints accuracy, counted FLOPs and size against the dense network.
    """
    if model is None:
        raise typer.BadParameter("name a model", param_hint="'MODEL'")
    values = setting_values(settings or [])
    given = {
        "method": method,
        "sparsity": sparsity,
        "distribution": distribution,
        "delta_t": delta_t,
        "alpha": alpha,
        "stop": stop,
        "epochs": epochs,
        "lr": lr,
        "seed": seed,
        "threads": threads,
        "data": data,
    }
    values |= {key: value for key, value in given.items() if value is not None}
    if values.get("method") == "ticket":
        _ticket(context, model, values, out, resume, data_root, device)
    else:
        _weights(context, model, values, out, resume, data_root, device)


def _weights(
    context: typer.Context,
    model: str,
    values: dict[str, Any],
    folder: Path | None,
    resume: bool,
    data_root: Path | None,
    device: str | None,
) -> None:
    import dataclasses

    from mpt_fast.sparse import SparseConfig, cost, train
    from mpt_fast.training import recipe_for

    names = {field.name for field in dataclasses.fields(SparseConfig)}
    config = SparseConfig(**{k: v for k, v in values.items() if k in names})
    # The seed draws both; the sparsity stands in the recipe for those who read the run's folder.
    shared = ("seed", "sparsity")
    rest = {k: v for k, v in values.items() if k not in names or k in shared}
    plain = rest.get("optimizer", "sgd") == "sgd" and rest.get("momentum", 0.9) > 0
    rest.setdefault("nesterov", plain)
    rest["sparsity"] = config.sparsity
    recipe = recipe_for(model, rest.pop("data", "digits"), dense=True, **rest)
    folder = folder or Path("runs") / "-".join([model, recipe.data, config.method])
    result = train(
        recipe,
        config,
        folder,
        resume,
        data_root=data_root,
        device=device,
        quiet=output(context).json,
    )
    counted = cost(result.model.cpu(), _shape(folder), kept=_kept(result))
    _answer(context, folder, recipe, result, counted, _training_ratio(counted, config, result))


def _kept(result: Result) -> dict[str, int]:
    """The entries that the run's masks keep, by layer."""
    from mpt_fast.training import checkpoint

    prefix = "sparse/mask/"
    tensors = checkpoint.read(result.out_dir / "last.safetensors").tensors
    return {
        name.removeprefix(prefix): int(mask.sum())
        for name, mask in tensors.items()
        if name.startswith(prefix)
    }


def _training_ratio(counted: Cost, config: SparseConfig, result: Result) -> float:
    start, stop = config.window
    return counted.training_ratio(
        config.method,  # type: ignore[arg-type]  # SparseConfig has checked it
        delta_t=config.delta_t,
        steps=result.steps,
        t_start=round(start * result.steps),
        t_end=round(stop * result.steps),
        frequency=config.frequency,
    )


def _ticket(
    context: typer.Context,
    model: str,
    values: dict[str, Any],
    folder: Path | None,
    resume: bool,
    data_root: Path | None,
    device: str | None,
) -> None:
    from mpt_fast.sparse import ticket_cost, train_ticket
    from mpt_fast.training import recipe_for

    del values["method"]
    delta_t, select_t = values.pop("delta_t", 4), values.pop("select_t", 1)
    for name in ("distribution", "alpha", "stop"):
        if name in values:
            raise typer.BadParameter(f"{name} has no meaning for --method ticket")
    values = {"sparsity": 0.9, "scope": "layer", **values}
    recipe = recipe_for(model, values.pop("data", "digits"), **values)
    folder = folder or Path("runs") / "-".join([model, recipe.data, "rigl-ticket"])
    result = train_ticket(
        recipe,
        delta_t,
        folder,
        resume,
        select_t=select_t,
        data_root=data_root,
        device=device,
        quiet=output(context).json,
    )
    counted = ticket_cost(result.model.cpu(), _shape(folder))
    ratio = counted.training_ratio("rigl-ticket", delta_t=delta_t)
    _answer(context, folder, recipe, result, counted, ratio)


def _shape(folder: Path) -> tuple[int, ...]:
    from mpt_fast.training import checkpoint

    return tuple(checkpoint.read(folder / "last.safetensors").state["input_shape"])


def _answer(
    context: typer.Context,
    folder: Path,
    recipe: Recipe,
    result: Result,
    counted: Cost,
    training_ratio: float,
) -> None:
    size = sum(layer.size for layer in counted.layers)
    dense_bytes = 4 * sum(layer.size + layer.shape[0] for layer in counted.layers)
    data = {
        "out": str(folder),
        "accuracy": result.accuracy,
        "best_accuracy": result.best_accuracy,
        "epochs": recipe.epochs,
        "steps": result.steps,
        "seconds": result.seconds,
        "kept": counted.kept,
        "weights": size,
        "inference_flops": counted.sparse_flops,
        "inference_ratio": counted.inference_ratio,
        "training_ratio": training_ratio,
        "size_bytes": counted.size_bytes,
        "dense_bytes": dense_bytes,
        "recipe": recipe.to_dict(),
    }
    share = text.percent(counted.kept / size)
    rows = [
        ["Test accuracy", text.percent(result.accuracy, 2)],
        ["Weights kept", f"{text.count(counted.kept)} of {text.count(size)}, {share}"],
        ["FLOPs of inference, of dense", text.percent(counted.inference_ratio)],
        ["FLOPs of training, of dense", text.percent(training_ratio)],
        [
            "Size, of dense fp32",
            text.percent(counted.size_bytes / dense_bytes),
        ],
        ["Time", text.duration(result.seconds)],
    ]
    out = output(context)
    out.result(data, table(["", ""], rows))
    out.say(f"Next: mpt-fast pack {folder} -o {folder.name}.mpt")
