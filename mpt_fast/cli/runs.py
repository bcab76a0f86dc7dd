"""What commands know about runs and packed files on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpt_fast.cli.output import Output
    from mpt_fast.data import Dataset
    from mpt_fast.runtime import Model
    from mpt_fast.training import Recipe

    Packed: TypeAlias = "Model | ThroughPyTorch"

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
        "model": recipe.model,
        "data": recipe.data,
        "activation": recipe.activation,
        "width": recipe.width,
        "sparsity": recipe.sparsity,
        "accuracy": accuracy,
        "version": __version__,
    }


class ThroughPyTorch:
    """A packed file run by its PyTorch reference, with the face of `runtime.Model`."""

    def __init__(self, file: Path) -> None:
        import mpt_fast as mpt

        self._packed = mpt.load(file, backend="reference")
        self.input_shape = self._packed.input_shape
        self.metadata = self._packed.metadata
        self.pixels = self._packed.pixels
        self.size_report = self._packed.size_report

    def __call__(self, images: NDArray[Any]) -> NDArray[Any]:
        import torch

        return self._packed(torch.from_numpy(images)).numpy()


def load_packed(file: Path, threads: int | None, out: Output) -> Packed:
    """A packed file, ready for NumPy arrays: on the engine, without PyTorch, where it is built.

    Without the engine it runs through PyTorch, and a note says so.
    """
    from mpt_fast import runtime
    from mpt_fast.kernels import cpu

    if cpu.available():
        return runtime.load(file, threads=threads)
    out.note(f"slow path through PyTorch: {cpu.missing_reason()}")
    return ThroughPyTorch(file)


def set_threads(threads: int | None) -> int:
    """Set PyTorch's threads where a number is given; returns the number in force."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def command_line() -> str:
    """The command as typed, for reports."""
    return " ".join(["mpt-fast", *sys.argv[1:]])
