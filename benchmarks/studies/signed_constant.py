"""Tickets of +-1 weights against tickets of Kaiming-normal ones, on the same recipes.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.signed_constant

trains tickets on Fashion-MNIST by the papers' recipes for float and for binary activations (those
of `mpt-fast train MODEL --data fashion-mnist`), at two sparsities, from three seeds, twice each:
once with frozen weights N(0, std^2), once with +-std. Everything else is the recipe's.
Writes signed_constant_results.json and .md beside this file. Killed at any moment, the same command
goes on where it stopped (its runs lie in --folder). `--quick` is a smaller run that writes nothing.
"""

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.studies.random_binary import note
from mpt_fast.data import Dataset, TensorSplit, load
from mpt_fast.measure.machine import machine
from mpt_fast.nn.init import weight_std
from mpt_fast.selection import set_sparsity, ticket_layers, update_masks
from mpt_fast.training import Cadence, Recipe, Trainer, recipe_for
from mpt_fast.training.distributed import World

HERE = Path(__file__).resolve().parent
COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.studies.signed_constant"
ACTIVATIONS = {"float": "relu", "binary": "binary"}
SPARSITIES = (0.5, 0.8)
INITS = ("kaiming_normal", "signed_constant")
SEEDS = (0, 1, 2)
# What is changed of the models' recipes, so that all runs fit a few minutes of one core: the factor
# on the channels, and the first so many training images instead of all.
MODELS = {"fc": {"width": 1.0, "images": 12_800}}
EPOCHS = 3


def first_images(dataset: Dataset, count: int) -> Dataset:
    """The data set with the first `count` training images and all test images."""
    index = torch.arange(count)
    classes = dataset.num_classes
    train = TensorSplit(dataset.train.batch(index), dataset.train.labels[:count], classes)
    return dataclasses.replace(dataset, train=train)


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The mask of every ticket layer."""
    return {name: layer.mask() for name, layer in ticket_layers(model).items()}


def study_run(chosen: Recipe, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Trains one ticket (or goes on with it, or reads it back) and says what its mask is like.

    magnitude: mean of abs(W)/std over the kept weights; gains: product over layers of gain/std;
    moved: share of the kept weights that the first scores would have pruned.
    """
    model = chosen.build(dataset.image_shape, dataset.num_classes)
    set_sparsity(model, chosen.sparsity)
    update_masks(model)
    before = masks(model)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        chosen.build(dataset.image_shape, dataset.num_classes),
        dataset,
        chosen,
        folder,
        device=torch.device("cpu"),
        world=World(),
        cadence=Cadence(seconds=10.0),
        quiet=True,
    )
    result = trainer.run(resume=True)
    layers = ticket_layers(result.model)
    after = masks(result.model)
    kept = sum(int(mask.sum()) for mask in after.values())
    sizes, gains = 0.0, 1.0
    for name, layer in layers.items():
        std = weight_std(layer.weight, layer.config)
        sizes += float(layer.weight.abs()[after[name]].double().sum()) / std
        gains *= float(layer.gain()) / std
    return {
        "seed": chosen.seed,
        "accuracy": result.accuracy,
        "kept": kept,
        "weights": sum(layer.weight.numel() for layer in layers.values()),
        "magnitude": sizes / kept,
        "gains": gains,
        "moved": sum(int((after[name] & ~before[name]).sum()) for name in after) / kept,
        "seconds": result.seconds,
    }


def difference(signed: list[float], normal: list[float]) -> tuple[float, float]:
    """Difference of the means and its standard error."""
    variance = sum(statistics.variance(values) / len(values) for values in (signed, normal))
    return statistics.mean(signed) - statistics.mean(normal), math.sqrt(variance)


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    facts = ", ".join(f"{k} {v}" for k, v in result["machine"].items() if not isinstance(v, list))
    models = "; ".join(
        f"{name} of width {changed['width']:g} ({result['weights'][name]:,} weights), the first "
        f"{changed['images']:,} training images"
        for name, changed in result["models"].items()
    )
    lines = [
        "# Tickets of ±1 weights against Kaiming-normal ones",
        "",
        f"`{COMMAND}` (seeds {', '.join(map(str, SEEDS))}; {facts})",
        "",
        "Fashion-MNIST by the recipes of `mpt-fast train MODEL --data fashion-mnist`: float "
        "activations (SGD) and, with `--activation binary`, binary ones (Adam). Changed for time: "
        f"{models}; {result['epochs']} epochs. All 10,000 test images. The two sides of a "
        "comparison differ in nothing but `weight_init`. Accuracies after the last epoch, in "
        "percent: mean ± sample standard deviation over the seeds; *difference*: signed_constant "
        "minus kaiming_normal, points ± standard error.",
        "",
        "| model | activations | sparsity | frozen weights | test accuracy | difference | "
        "magnitude kept | gains | mask moved |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    normal: list[float] = []  # of the row before: INITS begins with kaiming_normal
    for row in result["rows"]:
        runs = row["runs"]
        values = [100 * run["accuracy"] for run in runs]
        magnitude, gains, moved = (
            statistics.mean(run[key] for run in runs) for key in ("magnitude", "gains", "moved")
        )
        against = ""
        if row["weight_init"] == "signed_constant":
            against = "{:+.2f} ± {:.2f}".format(*difference(values, normal))
        normal = values
        lines.append(
            f"| {row['model']} | {row['activations']} | {row['sparsity']:g} | "
            f"{row['weight_init']} | {statistics.mean(values):.2f} ± "
            f"{statistics.stdev(values):.2f} | {against} | {magnitude:.3f} | {gains:.3f} | "
            f"{100 * moved:.1f} % |"
        )
    lines += [
        "",
        "*Magnitude kept*: mean of abs(W)/std over the kept weights; sqrt(2/pi) = 0.798 would be a "
        "choice that does not look at abs(W). *Gains*: product over the layers of gain/std, the "
        "factor on the logits of a network without batch norm. *Mask moved*: share of the kept "
        "weights that the first scores would have pruned.",
    ]
    return "\n".join(lines) + "\n"


def study(folder: Path, models: dict[str, dict[str, Any]], epochs: int) -> dict[str, Any]:
    """All runs, seed by seed."""
    dataset = load("fashion-mnist")
    rows: list[dict[str, Any]] = [
        {
            "model": model,
            "activations": activations,
            "sparsity": sparsity,
            "weight_init": init,
            "runs": [],
        }
        for model in models
        for activations in ACTIVATIONS
        for sparsity in SPARSITIES
        for init in INITS
    ]
    weights = {}
    for model, seed in itertools.product(models, SEEDS):
        part = first_images(dataset, models[model]["images"])
        for row in rows:
            if row["model"] != model:
                continue
            chosen = recipe_for(
                model,
                "fashion-mnist",
                activation=ACTIVATIONS[row["activations"]],
                width=models[model]["width"],
                epochs=epochs,
                sparsity=row["sparsity"],
                weight_init=row["weight_init"],
                seed=seed,
                amp="none",
                threads=1,
            )
            key = [str(row[name]) for name in ("model", "activations", "sparsity", "weight_init")]
            place = "-".join([*key, str(seed)])
            run = study_run(chosen, part, folder / place)
            weights[model] = run.pop("weights")
            note(f"{place}: {100 * run['accuracy']:.2f} %")
            row["runs"].append(run)
    return {
        "command": COMMAND,
        "machine": machine(),
        "models": models,
        "weights": weights,
        "epochs": epochs,
        "rows": rows,
    }


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, writes nothing")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/signed_constant"),
        help="where the runs lie (default: %(default)s)",
    )
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            small = {model: {**changed, "images": 1280} for model, changed in MODELS.items()}
            result = study(Path(folder), small, 2)
    else:
        result = study(options.folder, MODELS, EPOCHS)
    page = markdown(result)
    if not options.quick:
        (HERE / "signed_constant_results.json").write_text(json.dumps(result, indent=1) + "\n")
        (HERE / "signed_constant_results.md").write_text(page)
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
