"""What the Triton kernels share: the language, launching, widening for the interpreter.

Importing this package imports Triton and nothing else of a GPU: no driver, no context.
"""

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpt_fast.kernels import backend

if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    triton = backend.triton()
    tl = triton.language

__all__ = ["ceil_div", "guard", "power_of_two", "tl", "triton", "widened"]


def guard(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the device of `tensor` current, as launches need; nothing on the CPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def widened(tensor: Tensor) -> Tensor:
    """`tensor`, or its float32 copy where the interpreter would meet bfloat16, which it lacks."""
    if backend.interpreted() and tensor.dtype == torch.bfloat16:
        return tensor.float()
    return tensor


def ceil_div(numerator: int, denominator: int) -> int:
    """numerator / denominator, rounded up."""
    return -(-numerator // denominator)


def power_of_two(value: int, least: int = 1, most: int = 1 << 30) -> int:
    """The least power of two that is not below `value`, held within [least, most]."""
    return max(least, min(most, 1 << max(0, value - 1).bit_length()))
