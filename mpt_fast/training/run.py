"""Runs as people start and use them: a recipe in, a folder out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mpt_fast import data
from mpt_fast.training import checkpoint
from mpt_fast.training.distributed import World, processes
from mpt_fast.training.evaluation import Evaluation, evaluate
from mpt_fast.training.recipe import Recipe, RecipeError
from mpt_fast.training.snapshot import assume_sparsity, load_model
from mpt_fast.training.trainer import Cadence, Result, Trainer

__all__ = ["evaluate_run", "load_run", "train"]


def train(
    recipe: Recipe,
    out_dir: str | Path,
    resume: bool = False,
    *,
    data_root: str | Path | None = None,
    device: str | torch.device | None = None,
    quiet: bool = False,
    checkpoint_steps: int = 0,
    checkpoint_seconds: float = 300.0,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    make_trainer: Callable[..., Trainer] = Trainer,
    model: nn.Module | None = None,
) -> Result:
    """Train by a recipe into a folder, alone or in each process that torchrun started.

    The folder gets recipe.yaml, metrics.jsonl and metrics.csv (a row per epoch), last.safetensors,
    best.safetensors (highest test accuracy) and, at the end, result.json. Killed at any moment, the
    run resumes from its last complete checkpoint; on a CPU it then ends with the very bits of a run
    that was never stopped.

    Args:
        recipe: what to train and how.
        out_dir: the run's folder; made if it is not there.
        resume: go on from the folder's checkpoint if it has one. False refuses a folder with one.
        data_root: where the data set lies; see `mpt_fast.data.load`.
        device: None takes the GPU if there is one.
        quiet: show nothing; only rank 0 ever shows anything (on standard error).
        checkpoint_steps, checkpoint_seconds: checkpoints within an epoch, see `Cadence`.
        on_epoch: called on rank 0 with each epoch's row.
        make_trainer: a Trainer, or what builds one from the same arguments.
        model: the network to begin with, of the recipe's shapes; None draws the recipe's own. What
            requires a gradient in it is trained.

    Raises:
        RecipeError, DataError, CheckpointError (all ValueError), TrainingError (RuntimeError).
    """
    if recipe.finetune != "none" and model is None:
        raise RecipeError(
            f"finetune: {recipe.finetune} needs the ticket that it starts from; use "
            "mpt-fast finetune RUN (finetune_run), with --resume to go on"
        )
    place = _device(device)
    folder = Path(out_dir)
    cadence = Cadence(checkpoint_steps, checkpoint_seconds)
    with processes(place.type) as world:
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", world.local_rank)
        dataset = data.load(recipe.data, data_root, image_size=recipe.image_size)
        dataset = dataset.first(recipe.train_images)
        _prepare(folder, recipe, resume, world)
        trainer = make_trainer(
            model or recipe.build(dataset.image_shape, dataset.num_classes),
            dataset,
            recipe,
            folder,
            device=place,
            world=world,
            cadence=cadence,
            quiet=quiet,
            on_epoch=on_epoch,
        )
        return trainer.run(resume)


def load_run(
    out_dir: str | Path, which: Literal["last", "best"] = "last"
) -> tuple[nn.Module, Recipe]:
    """The network of a run's checkpoint, in evaluation mode on the CPU, and the run's recipe.

    Raises CheckpointError if there is no such checkpoint or it is damaged.
    """
    if which not in ("last", "best"):
        raise ValueError(f"which must be 'last' or 'best', got {which!r}")
    path = Path(out_dir) / f"{which}.safetensors"
    found = checkpoint.read(path)
    recipe = Recipe.from_dict(found.state["recipe"])
    channels, height, width = found.state["input_shape"]
    model = recipe.build((channels, height, width), found.state["num_classes"])
    assume_sparsity(model, found.state["sparsity"])  # not yet the recipe's early in its schedule
    load_model(model, found, path)
    return model.eval(), recipe


def evaluate_run(
    out_dir: str | Path,
    which: Literal["last", "best"] = "last",
    *,
    data_root: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Evaluation:
    """Loss and accuracy of a run's checkpoint on its data set's test images."""
    model, recipe = load_run(out_dir, which)
    dataset = data.load(recipe.data, data_root, image_size=recipe.image_size)
    return evaluate(model, dataset, device=_device(device))


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {str(device)!r}; use cpu, cuda or cuda:N") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {place} is not available here; use cpu")
    return place


def _prepare(folder: Path, recipe: Recipe, resume: bool, world: World) -> None:
    """Make the folder ready; refuse one that holds a run which is not to be resumed."""
    held = (folder / "last.safetensors").exists()
    world.wait()  # every rank has looked before rank 0 writes
    if held and not resume:
        raise RecipeError(
            f"{folder}: already holds a run; resume it (resume=True, --resume) or name another "
            "folder"
        )
    if not world.first or held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.remove_leftovers(folder)
    checkpoint.atomic_write(folder / "recipe.yaml", recipe.dump().encode())
