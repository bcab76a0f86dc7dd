"""What commands know about runs and packed files on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mpt_fast.data import Dataset
    from mpt_fast.training import Recipe

Which = Literal["last", "best"]
CHECKPOINTS: tuple[Which, ...] = ("last", "best")


def locate(path: Path, which: Which | None = None) -> tuple[Path, Which]:
    """The run folder and checkpoint that `path` names: a run, or a checkpoint file inside one.

    Raises ValueError with the remedy when it is neither.
    """
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise ValueError(f"{path} holds no run (no recipe.yaml); give what `train --out` wrote")
        return path, which or "last"
    if not path.exists():
        raise FileNotFoundError(2, "No such run or file", str(path))
    if path.suffix == ".safetensors" and path.stem in CHECKPOINTS:
        return locate(path.parent, path.stem)
    raise ValueError(f"{path} is neither a run folder nor a checkpoint last|best.safetensors")


def is_packed(path: Path) -> bool:
    """Whether `path` names a packed file rather than a run or a model."""
    return path.suffix == ".mpt"


def metadata(recipe: Recipe, dataset: Dataset, accuracy: float | None) -> dict[str, Any]:
    """What a packed file remembers for `mpt-fast run`, `eval` and `bench`."""
    from mpt_fast import __version__

    return {
        "classes": [str(name) for name in dataset.classes],
        "mean": [float(value) for value in dataset.mean],
        "std": [float(value) for value in dataset.std],
        "model": recipe.model,
        "data": recipe.data,
        "activation": recipe.activation,
        "width": recipe.width,
        "sparsity": recipe.sparsity,
        "accuracy": accuracy,
        "version": __version__,
    }


def set_threads(threads: int | None) -> int:
    """Set PyTorch's threads where a number is given; returns the number in force."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def command_line() -> str:
    """The command as typed, for reports."""
    return " ".join(["mpt-fast", *sys.argv[1:]])
