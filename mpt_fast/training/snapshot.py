"""What a checkpoint holds of a run: tensors of model and optimiser by name, and whose run it is."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpt_fast.data import Dataset
from mpt_fast.selection import ticket_layers
from mpt_fast.training.checkpoint import Checkpoint, CheckpointError
from mpt_fast.training.distributed import World
from mpt_fast.training.recipe import Recipe, RecipeError

__all__ = [
    "assume_sparsity",
    "check_same_run",
    "fingerprint",
    "load_model",
    "model_tensors",
    "optimizer_tensors",
    "restore_optimizer",
]

_MODEL = "model/"
_OPTIMIZER = "optimizer/"


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict under names that nothing else in a checkpoint has."""
    return {f"{_MODEL}{name}": value for name, value in model.state_dict().items()}


def assume_sparsity(model: nn.Module, sparsity: float) -> None:
    """Give every ticket layer this sparsity without selecting: a checkpoint's masks come next."""
    for layer in ticket_layers(model).values():
        layer.config = dataclasses.replace(layer.config, sparsity=sparsity)


def load_model(model: nn.Module, found: Checkpoint, path: Path) -> None:
    """Load a checkpoint's model tensors; CheckpointError if they are not those of this model."""
    tensors = {
        name.removeprefix(_MODEL): value
        for name, value in found.tensors.items()
        if name.startswith(_MODEL)
    }
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not fit the recipe's network ({reason})") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `optimizer/<parameter number>/<name>`."""
    return {
        f"{_OPTIMIZER}{index}/{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, each tensor in its parameter's memory format."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, key = name.removeprefix(_OPTIMIZER).split("/")
            entries.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(value)


def fingerprint(dataset: Dataset) -> str:
    """A digest of the labels and shapes: enough to notice that it is not the same data set."""
    digest = hashlib.sha256(repr((dataset.image_shape, dataset.classes)).encode())
    for split in (dataset.train, dataset.test):
        digest.update(split.labels.cpu().numpy().tobytes())
    return digest.hexdigest()


def check_same_run(
    state: Mapping[str, Any], recipe: Recipe, dataset: Dataset, world: World, folder: Path
) -> None:
    """Raise RecipeError naming what differs between a checkpoint's run and this one."""
    then = Recipe.from_dict(state["recipe"])
    for name in recipe.differences(then):
        raise RecipeError(
            f"{folder}: cannot resume: {name} is {getattr(recipe, name)!r} here and "
            f"{getattr(then, name)!r} in the run; use the run's value or another folder"
        )
    if state["world_size"] != world.size:
        raise RecipeError(
            f"{folder}: cannot resume: the run has {state['world_size']} processes and this is "
            f"{world.size}; start as many"
        )
    if state["data"] != fingerprint(dataset):
        raise RecipeError(
            f"{folder}: cannot resume: {dataset.name} is not the data set the run began with; "
            "name its folder with --data-root"
        )
