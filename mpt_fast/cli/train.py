"""`mpt-fast train`: find a ticket, or train its dense twin."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    from mpt_fast.biprop import KeyLine
    from mpt_fast.training import Recipe

NAME = "train"
EXAMPLE = (
    "Example: [bold]mpt-fast train conv4 --data digits --sparsity 0.5 "
    "--activation binary[/bold]\n\n"
    "A recipe is a YAML file of the same settings: write one with --dump, use it with --recipe."
)
_NETWORK, _FILES = "Network and ticket", "Files"


def command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="conv4, vgg_small, resnet18, ...", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, mnist, cifar10, cifar100 or imagefolder.",
            show_default="digits",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(metavar="X", help="Share of the weights to prune.", rich_help_panel=_NETWORK),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(metavar="relu|binary", help="Activations.", rich_help_panel=_NETWORK),
    ] = None,
    dense: Annotated[
        bool | None,
        typer.Option(
            "--dense/--ticket",
            help="Train the weights of the dense twin instead of finding a ticket.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Factor on the number of channels.", rich_help_panel=_NETWORK
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            metavar="global|layer",
            help="One threshold for all layers, or one for each.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    power: Annotated[
        float | None,
        typer.Option(metavar="X", help="Power-propagation; 1 is none.", rich_help_panel=_NETWORK),
    ] = None,
    epochs: Epochs = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="sgd|adam",
            help="Optimiser.",
            show_default="sgd for float, adam for binary activations",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Learning rate.",
            show_default="0.1 for tickets",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="cosine|multistep|constant",
            help="Course of the learning rate.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Images in a step.", rich_help_panel=TRAINING)
    ] = None,
    seed: RecipeSeed = None,
    threads: RecipeThreads = None,
    device: Device = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other setting that --dump shows; may be repeated.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.yaml|NAME",
            help="Start from this recipe; other options override it.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    biprop_config: Annotated[
        Path | None,
        typer.Option(
            "--biprop-config",
            metavar="FILE.yml",
            help="Start from a recipe file of biprop; says what became of every key.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    prune_rate: Annotated[
        float | None,
        typer.Option(
            "--prune-rate",
            metavar="K",
            help="With --biprop-config: fraction of the weights KEPT.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Build the network, print recipe and weight counts, and stop. Needs no data.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    dump: Annotated[
        bool,
        typer.Option(
            "--dump",
            help="Print the resolved recipe as YAML, all defaults included, and stop.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the run: recipe, metrics, checkpoints.",
            show_default="runs/MODEL-DATA...",
            rich_help_panel=_FILES,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the last complete checkpoint in --out; start if there is none.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    data_root: DataRoot = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find a ticket in MODEL: train scores on frozen random weights, keep the best.

    The weights never change. Precedence: options, then --recipe, then defaults.
    """
    given = {
        "model": model,
        "data": data,
        "sparsity": sparsity,
        "activation": activation,
        "dense": dense,
        "width": width,
        "scope": scope,
        "power": power,
        "epochs": epochs,
        "optimizer": optimizer,
        "lr": lr,
        "schedule": schedule,
        "batch_size": batch_size,
        "seed": seed,
        "threads": threads,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    overrides |= setting_values(settings or [])
    if recipe is None and resume and out is not None and (out / "recipe.yaml").is_file():
        recipe = str(out / "recipe.yaml")
    shown = output(context)
    lines: list[KeyLine] = []
    if biprop_config is not None:
        if recipe is not None and not resume:
            raise typer.BadParameter("give it or --recipe, not both", param_hint="'--recipe'")
        from mpt_fast.biprop import read_config

        config = read_config(biprop_config, prune_rate, **overrides)
        resolved, lines = config.recipe, list(config.lines)
        data_root = data_root or config.data_root
        if not dump and not dry_run:
            for line in lines:
                shown.say(str(line))
    elif prune_rate is not None:
        raise typer.BadParameter(
            "is biprop's word for the fraction kept and needs --biprop-config; use --sparsity, "
            "the fraction pruned",
            param_hint="'--prune-rate'",
        )
    elif recipe is None and "model" not in overrides:
        raise typer.BadParameter("name a model or a --recipe", param_hint="'MODEL'")
    else:
        resolved = _resolve(recipe, overrides)
    if dry_run:
        _dry_run(context, resolved, lines)
        return
    if dump:
        shown.result({"recipe": resolved.to_dict()}, resolved.dump().rstrip("\n"))
        return
    _train(context, resolved, out or _folder(resolved), resume, data_root, device)


def _dry_run(context: typer.Context, recipe: Recipe, lines: Sequence[KeyLine]) -> None:
    """Builds the network on the CPU and prints what would be trained."""
    from mpt_fast.data import shape_of
    from mpt_fast.kernels.select_topk.op import kept_count
    from mpt_fast.selection import realised_sparsity, ticket_layers

    shape, classes = shape_of(recipe.data, recipe.image_size)
    model = recipe.build(shape, classes)
    sizes = [layer.weight.numel() for layer in ticket_layers(model).values()]
    parts = [sum(sizes)] if recipe.scope == "global" else sizes
    kept = sum(kept_count(size, recipe.sparsity) for size in parts) if sizes else None
    start = realised_sparsity(model).kept if sizes else None
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(sizes) or sum(p.numel() for p in model.parameters() if p.dim() > 1)
    rows = [
        ["Network", f"{recipe.model}, {recipe.activation}, images {shape}, {classes} classes"],
        ["Weights", text.count(weights)],
        ["Kept at the end", text.count(kept)],
        ["Kept at the start", text.count(start)],
        ["Values trained", text.count(trained)],
    ]
    output(context).result(
        {
            "mapping": [dataclasses.asdict(line) for line in lines],
            "recipe": recipe.to_dict(),
            "input_shape": list(shape),
            "classes": classes,
            "weights": weights,
            "kept": kept,
            "kept_at_start": start,
            "trained": trained,
        },
        *([table(["key", "value", "became"], _cells(lines), left=(0, 1, 2))] if lines else []),
        recipe.dump().rstrip("\n"),
        table(["", ""], rows, left=(0, 1)),
    )


def _cells(lines: Sequence[KeyLine]) -> list[list[str]]:
    return [[line.key, str(line.value), line.became] for line in lines]


def _resolve(recipe: str | None, overrides: dict[str, Any]) -> Recipe:
    """Overrides over the recipe over the defaults for that kind of network."""
    import yaml

    from mpt_fast.training import Recipe, recipe_for

    values = dict(overrides)
    if recipe is not None:
        whole = Recipe.load(recipe)
        if Path(recipe).suffix not in (".yaml", ".yml"):
            return whole.replace(**overrides)
        # Only what the file says overrides the defaults, which depend on model and activation.
        values = (yaml.safe_load(Path(recipe).read_text(encoding="utf-8")) or {}) | overrides
    return recipe_for(values.pop("model", "conv4"), values.pop("data", "digits"), **values)


def _folder(recipe: Recipe) -> Path:
    kind = ["dense"] if recipe.dense else []
    kind += ["binary"] if recipe.activation == "binary" else []
    return Path("runs") / "-".join([recipe.model, recipe.data, *kind])


def _train(
    context: typer.Context,
    recipe: Recipe,
    folder: Path,
    resume: bool,
    data_root: Path | None,
    device: str | None,
) -> None:
    from mpt_fast.selection import realised_sparsity
    from mpt_fast.training import train

    out = output(context)
    result = train(
        recipe, folder, resume=resume, data_root=data_root, device=device, quiet=out.json
    )
    data: dict[str, Any] = {
        "out": str(folder),
        "accuracy": result.accuracy,
        "best_accuracy": result.best_accuracy,
        "epochs": recipe.epochs,
        "steps": result.steps,
        "seconds": result.seconds,
        "recipe": recipe.to_dict(),
    }
    rows = [
        ["Test accuracy", text.percent(result.accuracy, 2)],
        ["Best epoch's", text.percent(result.best_accuracy, 2)],
    ]
    if not recipe.dense:
        kept = realised_sparsity(result.model)
        data |= {"kept": kept.kept, "weights": kept.size, "sparsity": kept.total}
        share = text.percent(kept.kept / kept.size)
        rows.append(
            ["Weights kept", f"{text.count(kept.kept)} of {text.count(kept.size)}, {share}"]
        )
    rows.append(["Time", text.duration(result.seconds)])
    out.result(data, table(["", ""], rows))
    if not recipe.dense:
        out.say(f"Next: mpt-fast pack {folder} -o {folder.name}.mpt")
