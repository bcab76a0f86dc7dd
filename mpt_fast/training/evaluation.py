"""Accuracy and loss on a data set's test images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mpt_fast.data import Dataset, Loader
from mpt_fast.selection import update_masks
from mpt_fast.training.distributed import World

__all__ = ["Evaluation", "evaluate", "run_evaluation"]


@dataclass(frozen=True)
class Evaluation:
    """`loss`: mean cross-entropy; `accuracy`: correct / total, in [0, 1]."""

    loss: float
    accuracy: float
    correct: int
    total: int


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 512,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Loss and accuracy of `model` on the test images, in evaluation mode and the model's dtype.

    Masks are brought up to date first. The model is moved to `device` (None: where it is) and its
    training mode is left as it was.
    """
    first = next(model.parameters(), None)
    if device is None:
        device = first.device if first is not None else torch.device("cpu")
    model.to(device)
    loader = Loader(
        dataset.test,
        batch_size,
        mean=dataset.mean,
        std=dataset.std,
        train=False,
        device=device,
        dtype=first.dtype if first is not None else torch.float32,
    )
    return run_evaluation(model, loader, World())


def run_evaluation(model: nn.Module, loader: Loader, world: World) -> Evaluation:
    """Loss and accuracy over the loaders of all ranks together; every rank returns the same."""
    update_masks(model)
    training = model.training
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=loader.device)  # loss, correct, images
    try:
        with torch.no_grad():
            for images, labels in loader.epoch():
                logits = model(images)
                totals[0] += F.cross_entropy(logits.float(), labels, reduction="sum").double()
                totals[1] += (logits.argmax(1) == labels).sum()
                totals[2] += len(labels)
    finally:
        model.train(training)
    loss, correct, total = world.gather(totals).sum(0).tolist()
    return Evaluation(loss / total, correct / total, int(correct), int(total))
