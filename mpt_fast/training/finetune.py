"""Fine-tuning of a found ticket: the masks stay, weights are trained through sign and gain.

A weight W is trained by the gradient of `mpt_fast.kernels.masked_weight.weight_gradient`: the
clipped identity through the sign plus the path through the gain, which every forward pass takes
anew from the present weights. What runs is still g * sign(W) * M, so a fine-tuned ticket packs and
runs as before.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mpt_fast.selection import finetune, ticket_layers
from mpt_fast.training.recipe import FINETUNED, Recipe, RecipeError
from mpt_fast.training.run import load_run, train
from mpt_fast.training.trainer import Result

__all__ = ["finetune_run", "finetuning_recipe", "prepare_finetuning"]

PARTS = FINETUNED[1:]


def finetune_run(
    run: str | Path,
    out_dir: str | Path,
    part: str = "last",
    *,
    which: Literal["last", "best"] = "last",
    resume: bool = False,
    data_root: str | Path | None = None,
    device: str | torch.device | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Result:
    """Fine-tune the ticket of the folder `run` into the folder `out_dir`; see `train` for folders.

    Args:
        run: a finished run's folder; it is not changed.
        part: "first" or "last" ticket layer, or "all" of them; "all" trains an affine batch norm
            too where the run did. Everything else stays, running statistics follow.
        which: the run's checkpoint to start from.
        resume: go on from `out_dir`'s own checkpoint if it has one.
        changes: recipe fields of the fine-tuning (optimizer, lr, schedule, batch_size, epochs,
            ...); the others are the run's.

    Raises as `train` does; RecipeError for a dense run and for fields that fine-tuning cannot have.
    """
    model, recipe = load_run(run, which)
    tuned = finetuning_recipe(recipe, part, changes)
    prepare_finetuning(model, part, norm="norm" in recipe.trains)
    return train(
        tuned,
        out_dir,
        resume=resume,
        data_root=data_root,
        device=device,
        quiet=quiet,
        model=model,
    )


def finetuning_recipe(recipe: Recipe, part: str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of fine-tuning `part` of a run of `recipe`, with these fields changed."""
    if part not in PARTS:
        raise RecipeError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    if recipe.dense:
        raise RecipeError("fine-tuning needs a ticket; this run trained a dense network")
    fixed = ("model", "options", "sparsity", "scope", "selection", "power", "layer_power", "dense")
    for name in fixed:
        if name in changes:
            raise RecipeError(f"{name} belongs to the ticket and cannot change in fine-tuning")
    values: dict[str, Any] = {"finetune": part, "progressive_epochs": 0, "warmup_epochs": 0}
    if changes.get("schedule", recipe.schedule) != "multistep":
        values["milestones"] = ()
    if changes.get("optimizer", recipe.optimizer) != "sgd":
        values["nesterov"] = False
    return recipe.replace(**{**values, **changes})


def prepare_finetuning(model: nn.Module, part: str, norm: bool = True) -> None:
    """Fix the masks and leave gradients to the weights of `part` only ("all": and norms)."""
    finetune(model)
    layers = list(ticket_layers(model).values())
    chosen = {"first": layers[:1], "last": layers[-1:], "all": layers}[part]
    trained = {id(layer.weight) for layer in chosen}
    own = {id(layer.weight) for layer in layers}
    for parameter in model.parameters():
        if id(parameter) in own:
            parameter.requires_grad_(id(parameter) in trained)
        else:
            parameter.requires_grad_(parameter.requires_grad and part == "all" and norm)
