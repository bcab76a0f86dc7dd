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
    from mpt_fast.training import Result

NAME = "rigl"
EXAMPLE = (
    "Example: [bold]mpt-fast rigl lenet_300_100 --data fashion-mnist --sparsity 0.95 "
    "--epochs 5[/bold]\n\n"
    "The run is a folder like that of `train`: eval, pack and bench take it."
)
_SPARSE, _FILES = "Sparse training", "Files"
_TICKET, _LOTTERY, _SMALL = "ticket", "lottery", "small-dense"
_MOVING = ("rigl", "set", "snfs")
_MEANING = {
    "distribution": (*_MOVING, "static", "snip", "pruning", "dnw", _SMALL, _LOTTERY),
    "delta_t": (*_MOVING, _TICKET),
    "alpha": _MOVING,
    "decay": _MOVING,
    "power": (*_MOVING, _TICKET),  # of the decay; of a ticket's scores
    "grad_accumulation": ("rigl",),
    "start": (*_MOVING, "pruning"),
    "stop": (*_MOVING, "pruning"),
    "frequency": ("pruning",),
    "select_t": (_TICKET,),
}
"""Settings that mean nothing to other methods."""
_OWN = ("sparsity", "distribution", "custom", "dense_first")
"""Settings that the masks of a lottery restart decide."""


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
            help="rigl, set, snfs, static, snip, pruning, dnw; small-dense: a dense network, "
            "narrowed to the size of the sparse one; lottery: the masks of --from over the weights "
            "it began with; ticket: a RigL-driven ticket, whose weights are never trained.",
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
    masks_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin with the masks of this run of `rigl`, of the same model and seed (for "
            "lottery, whose masks stay, and for rigl, set and snfs).",
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
    if masks_from is not None:
        values["masks_from"] = str(masks_from)
    chosen = values.setdefault("method", "rigl")
    _refuse_idle(values)
    if chosen == _TICKET:
        _ticket(context, model, values, out, resume, data_root, device)
    else:
        _weights(context, model, values, out, resume, data_root, device)


def _refuse_idle(values: dict[str, Any]) -> None:
    """RecipeError for an unknown method, BadParameter for a setting it would not look at."""
    from mpt_fast.sparse import KINDS
    from mpt_fast.training import RecipeError

    method, known = values["method"], (*KINDS, _LOTTERY, _TICKET)
    given = "masks_from" in values
    if method not in known:
        raise RecipeError(f"method must be one of {', '.join(known)}, got {method!r}")
    if method == _LOTTERY and not given:
        raise typer.BadParameter("--method lottery needs --from RUN, whose masks it begins with")
    if given and method not in (_LOTTERY, "static", *_MOVING):
        raise typer.BadParameter(f"--from has no meaning for --method {method}")
    for name in values:
        if method not in _MEANING.get(name, known):
            raise typer.BadParameter(f"{name} has no meaning for --method {method}")
        if given and name in _OWN:
            raise typer.BadParameter(f"{name} has no meaning with --from: its masks decide it")


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

    from mpt_fast.sparse import SparseConfig, cost, run_masks, train
    from mpt_fast.training import recipe_for

    name = values["method"]
    if name == _LOTTERY:
        values["method"] = "static"
    if "masks_from" in values:
        values["sparsity"] = _sparsity_of(values["masks_from"])
    names = {field.name for field in dataclasses.fields(SparseConfig)}
    config = SparseConfig(**{k: v for k, v in values.items() if k in names})
    # The seed draws both; the sparsity stands in the recipe for those who read the run's folder.
    shared = ("seed", "sparsity")
    rest = {k: v for k, v in values.items() if k not in names or k in shared}
    plain = rest.get("optimizer", "sgd") == "sgd" and rest.get("momentum", 0.9) > 0
    rest.setdefault("nesterov", plain)
    rest["sparsity"] = config.sparsity
    recipe = recipe_for(model, rest.pop("data", "digits"), dense=True, **rest)
    folder = folder or Path("runs") / "-".join([model, recipe.data, name])
    result = train(
        recipe,
        config,
        folder,
        resume,
        data_root=data_root,
        device=device,
        quiet=output(context).json,
    )
    shape, network = _shape(folder), result.model.cpu()
    if name == _SMALL:
        counted = cost(network, shape)
        whole = cost(recipe.build(shape, _classes(folder)), shape)
        ratio = counted.training_flops("small-dense") / whole.training_flops("dense")
        return _answer(context, folder, result, counted, whole, ratio)
    kept = {layer: int(mask.sum()) for layer, mask in run_masks(folder).items()}
    counted = cost(network, shape, kept=kept)
    ratio = _training_ratio(counted, config, result)
    return _answer(context, folder, result, counted, counted, ratio)


def _sparsity_of(folder: str) -> float:
    """The fraction that the masks of a run prune, all layers together."""
    from mpt_fast.sparse import run_masks

    masks = run_masks(folder).values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


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
    _answer(context, folder, result, counted, counted, ratio)


def _shape(folder: Path) -> tuple[int, int, int]:
    from mpt_fast.training import checkpoint

    channels, height, width = checkpoint.read(folder / "last.safetensors").state["input_shape"]
    return channels, height, width


def _classes(folder: Path) -> int:
    from mpt_fast.training import checkpoint

    return int(checkpoint.read(folder / "last.safetensors").state["num_classes"])


def _answer(
    context: typer.Context,
    folder: Path,
    result: Result,
    counted: Cost,
    whole: Cost,
    training_ratio: float,
) -> None:
    """What the run's network costs (`counted`) against the dense network `whole`."""
    recipe = result.recipe
    size = sum(layer.size for layer in whole.layers)
    dense_bytes = 4 * sum(layer.size + layer.shape[0] for layer in whole.layers)
    inference_ratio = counted.sparse_flops / whole.dense_flops
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
        "inference_ratio": inference_ratio,
        "training_ratio": training_ratio,
        "size_bytes": counted.size_bytes,
        "dense_bytes": dense_bytes,
        "recipe": recipe.to_dict(),
    }
    share = text.percent(counted.kept / size)
    rows = [
        ["Test accuracy", text.percent(result.accuracy, 2)],
        ["Weights kept", f"{text.count(counted.kept)} of {text.count(size)}, {share}"],
        ["FLOPs of inference, of dense", text.percent(inference_ratio)],
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
