"""The learning rate of each epoch."""

import math

from mpt_fast.training.recipe import Recipe

__all__ = ["learning_rate"]


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of `epoch`, in [0, recipe.epochs), constant within it.

    With w warm-up epochs of E: lr (e+1)/w while e < w; then lr times (1 + cos(pi (e-w)/(E-w))) / 2
    (cosine), gamma to the number of milestones <= e (multistep) or 1 (constant).
    """
    warmup = recipe.warmup_epochs
    if epoch < warmup:
        return recipe.lr * (epoch + 1) / warmup
    if recipe.schedule == "cosine":
        return (
            recipe.lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (recipe.epochs - warmup)))
        )
    if recipe.schedule == "multistep":
        return recipe.lr * recipe.gamma ** sum(epoch >= m for m in recipe.milestones)
    return recipe.lr
