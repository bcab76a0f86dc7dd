"""`mpt-fast train`: find a ticket, or train its dense twin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpt_fast.cli.options import DataRoot, Debug, Json, output
from mpt_fast.cli.output import table
from mpt_fast.report import text

if TYPE_CHECKING:
    from mpt_fast.training import Recipe

NAME = "train"
EXAMPLE = (
    "Example: [bold]mpt-fast train conv4 --data digits --sparsity 0.5 "
    "--activation binary[/bold]\n\n"
    "A recipe is a YAML file of the same settings: write one with --dump, use it with --recipe."
)
_NETWORK, _OPTIMISER, _FILES = "Network and ticket", "Training", "Files"


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
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Passes over the data.", rich_help_panel=_OPTIMISER),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="sgd|adam",
            help="Optimiser.",
            show_default="sgd for float, adam for binary activations",
            rich_help_panel=_OPTIMISER,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Learning rate.",
            show_default="0.1 for tickets",
            rich_help_panel=_OPTIMISER,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="cosine|multistep|constant",
            help="Course of the learning rate.",
            rich_help_panel=_OPTIMISER,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Images in a step.", rich_help_panel=_OPTIMISER)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Seed of weights, scores and data order.", rich_help_panel=_OPTIMISER
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads.", rich_help_panel=_OPTIMISER)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:1, ...", show_default="cuda if any", rich_help_panel=_OPTIMISER
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other setting that --dump shows; may be repeated.",
            rich_help_panel=_OPTIMISER,
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
    overrides |= _settings(settings or [])
    if recipe is None and resume and out is not None and (out / "recipe.yaml").is_file():
        recipe = str(out / "recipe.yaml")
    if recipe is None and "model" not in overrides:
        raise typer.BadParameter("name a model or a --recipe", param_hint="'MODEL'")
    resolved = _resolve(recipe, overrides)
    shown = output(context)
    if dump:
        shown.result({"recipe": resolved.to_dict()}, resolved.dump().rstrip("\n"))
        return
    _train(context, resolved, out or _folder(resolved), resume, data_root, device)


def _settings(items: list[str]) -> dict[str, Any]:
    """KEY=VALUE texts as a dict; values are read as YAML (0.5, true, [30, 60], null)."""
    import yaml

    values: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE", param_hint="'--set'")
        try:
            values[key.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"{item!r}: value is not YAML", param_hint="'--set'") from None
    return values


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
