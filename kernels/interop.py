"""How the operations call the C++ engine: tensors as NumPy views, results as tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpt_fast.kernels.taps import Taps

ISA = "auto"
"""Instruction set asked of the engine; the tests force each one, everybody else leaves it."""


def as_array(tensor: Tensor) -> np.ndarray:
    """C-contiguous NumPy view of a CPU tensor, copied only where its strides demand it."""
    return tensor.detach().contiguous().numpy()


def optional_array(tensor: Tensor | None) -> np.ndarray | None:
    """`as_array`, or None for None."""
    return None if tensor is None else as_array(tensor)


def tap_arrays(taps: Taps) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """(indptr, index, value, shape), in the order of the engine's arguments."""
    return as_array(taps.indptr), as_array(taps.index), as_array(taps.value), taps.shape


def run_options() -> dict[str, Any]:
    """The engine's instruction set and thread count: as many threads as PyTorch uses."""
    return {"isa": ISA, "threads": torch.get_num_threads()}
