"""What the Triton kernels share: the language, launching, widening for the interpreter.

Importing this package imports Triton and nothing else of a GPU: no driver, no context.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
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

__all__ = [
    "RegisterLimit",
    "ceil_div",
    "guard",
    "power_of_two",
    "register_limit",
    "tl",
    "triton",
    "widened",
]


@dataclass(frozen=True)
class RegisterLimit:
    """Registers of a thread that NVIDIA's assembler may use; AMD's backend has no such option.

    majors: by major compute capability. others: on capabilities not among them; None leaves the
    number to the assembler.
    """

    others: int | None = None
    majors: Mapping[int, int] = field(default_factory=dict)

    def options(self, major: int | None) -> dict[str, int]:
        """Launch options for that major compute capability; None: no NVIDIA device."""
        limit = None if major is None else self.majors.get(major, self.others)
        return {} if limit is None else {"maxnreg": limit}


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


def register_limit(limit: RegisterLimit, tensor: Tensor) -> dict[str, int]:
    """Launch options that hold a kernel on the device of `tensor` to `limit`."""
    nvidia = tensor.is_cuda and not torch.version.hip
    return limit.options(torch.cuda.get_device_capability(tensor.device)[0] if nvidia else None)
