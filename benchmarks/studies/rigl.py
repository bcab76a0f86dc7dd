"""RigL and its baselines on Fashion-MNIST: three seeds, three or four sparsities, two networks.

    python -m benchmarks.studies.rigl lenet
    python -m benchmarks.studies.rigl wrn

trains every case that has no result yet and writes rigl_results.json beside this file after each;
`python -m benchmarks.studies.rigl_report` makes the tables and curves of it. `--minutes N` stops
after the epoch that passes N minutes, and the next call goes on from the checkpoint in --work.

lenet: LeNet-300-100, 5 epochs of batch 128, SGD with Nesterov momentum 0.9, lr 0.1 cosine, decay
1e-4. wrn: WRN-10-1 on 12,000 of the images averaged to 14 x 14, 5 epochs, decay 5e-4: what
ten minutes of one core allow; the paper's WRN-22-2 takes 250 epochs of 50,000.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from mpt_fast.data import Dataset, load
from mpt_fast.data.dataset import TensorSplit
from mpt_fast.measure.machine import machine
from mpt_fast.sparse import SparseConfig, SparseTrainer, cost
from mpt_fast.training import Cadence, Recipe, Trainer
from mpt_fast.training.checkpoint import atomic_write
from mpt_fast.training.distributed import World

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "rigl_results.json"
SPARSITIES = (0.8, 0.9, 0.95)
SEEDS = (0, 1, 2)
# Label: method and distribution.
CASES = {
    "static (ERK)": ("static", "erk"),
    "SET (ERK)": ("set", "erk"),
    "RigL (ERK)": ("rigl", "erk"),
    "static (uniform)": ("static", "uniform"),
    "SET (uniform)": ("set", "uniform"),
    "RigL (uniform)": ("rigl", "uniform"),
}


@dataclass(frozen=True)
class Study:
    """A network with its recipe.

    pool: factor by which the images are averaged down. images: how many are trained on; 0: all.
    sparsities: what is pruned.
    """

    recipe: dict[str, Any]
    delta_t: int
    pool: int = 1
    images: int = 0
    sparsities: tuple[float, ...] = SPARSITIES


STUDIES = {
    "lenet": Study(
        {"model": "lenet_300_100", "epochs": 5, "lr": 0.1, "weight_decay": 1e-4},
        delta_t=50,
        sparsities=(*SPARSITIES, 0.98),  # where the methods might part
    ),
    "wrn": Study(
        {"model": "wrn10_1", "epochs": 5, "lr": 0.1, "weight_decay": 5e-4},
        delta_t=20,
        pool=2,
        images=12_000,
    ),
}


def pooled(dataset: Dataset, factor: int) -> Dataset:
    """The images averaged over squares of `factor` pixels."""
    if factor == 1:
        return dataset

    def smaller(split: TensorSplit) -> TensorSplit:
        images = F.avg_pool2d(split.images.float(), factor).round().to(torch.uint8)
        return TensorSplit(images, split.labels, split.classes)

    train, test = dataset.train, dataset.test
    assert isinstance(train, TensorSplit)
    assert isinstance(test, TensorSplit)
    return Dataset(
        dataset.name, smaller(train), smaller(test), dataset.classes, dataset.mean, dataset.std
    )


class OutOfTimeError(Exception):
    """The minutes are over; what is done lies in a checkpoint."""


def stop_at(end: float, row: Mapping[str, Any]) -> None:
    """For a trainer's `on_epoch`: OutOfTimeError once the clock has passed `end`."""
    if time.monotonic() > end:
        raise OutOfTimeError(f"after epoch {row['epoch']}")


def train(
    study: Study,
    dataset: Dataset,
    seed: int,
    config: SparseConfig | None,
    folder: Path,
    end: float,
) -> tuple[Trainer, dict[str, Any]]:
    """One run, resumed if `folder` holds a part of it. config None: the dense network."""
    recipe = Recipe.from_dict(
        {
            "data": dataset.name,
            "dense": True,
            "nesterov": True,
            "batch_size": 128,
            "amp": "none",
            "threads": 1,
            "seed": seed,
            **study.recipe,
        }
    )
    model = recipe.build(dataset.image_shape, dataset.num_classes)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "device": torch.device("cpu"),
        "world": World(),
        "cadence": Cadence(),
        "quiet": True,
        "on_epoch": functools.partial(stop_at, end),
    }
    trainer: Trainer
    if config is None:
        trainer = Trainer(model, dataset, recipe, folder, **options)
    else:
        trainer = SparseTrainer(model, dataset, recipe, folder, config=config, **options)
    result = trainer.run(resume=True)
    history = [
        {key: row[key] for key in ("epoch", "train_loss", "test_loss", "test_accuracy")}
        for row in result.history
    ]
    return trainer, {
        "accuracy": result.accuracy,
        "train_loss": history[-1]["train_loss"],
        "history": history,
        "seconds": round(result.seconds, 1),
        "steps": result.steps,
    }


def run(name: str, work: Path, minutes: float) -> bool:
    """Train what is missing; True when nothing is."""
    study = STUDIES[name]
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": {}}
    dataset = pooled(load("fashion-mnist"), study.pool).first(study.images)
    end = time.monotonic() + 60 * minutes
    cases: list[tuple[str, float | None, int]] = [("dense", None, seed) for seed in SEEDS]
    # All of one sparsity before the next: a study that is cut short has whole comparisons.
    cases += [
        (label, sparsity, seed)
        for sparsity, seed, label in product(reversed(study.sparsities), SEEDS, CASES)
    ]
    for label, sparsity, seed in cases:
        key = f"{name}/{label}/{sparsity if sparsity is not None else 0}/{seed}"
        if key in results["runs"]:
            continue
        if time.monotonic() > end:
            return False
        config = None
        if sparsity is not None:
            method, distribution = CASES[label]
            config = SparseConfig(method, sparsity, distribution, delta_t=study.delta_t, seed=seed)
        try:
            trainer, found = train(study, dataset, seed, config, work / key.replace("/", "-"), end)
        except OutOfTimeError:
            return False
        found |= {"study": name, "case": label, "sparsity": sparsity or 0.0, "seed": seed}
        if isinstance(trainer, SparseTrainer):
            counted = cost(trainer.model, dataset.image_shape, kept=trainer.sparse.kept)
            found["inference_ratio"] = counted.inference_ratio
            found["training_ratio"] = counted.training_ratio(
                trainer.config.method, delta_t=study.delta_t
            )
        results["runs"][key] = found
        results["machine"] = machine()
        atomic_write(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
        sys.stderr.write(f"{key}: {found['accuracy']:.2%} in {found['seconds']:.0f} s\n")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("--work", type=Path, default=Path("runs/rigl-study"))
    parser.add_argument("--minutes", type=float, default=1e9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not run(arguments.study, arguments.work, arguments.minutes):
        sys.exit(3)


if __name__ == "__main__":
    main()
