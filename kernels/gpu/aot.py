"""Kernels at their shipped configurations, for compiling ahead of time without a GPU.

Each `kernels/<op>/triton.py` lists its own in `compile_cases()`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WARPS_OF_NO_DOT = 4


@dataclass(frozen=True)
class CompileCase:
    """One kernel at one configuration.

    kernel: the jitted function. name: what the report calls the configuration.
    signature: Triton type of every run-time argument ("*fp32", "i32", ...).
    constants: every constexpr argument. unaligned: pointers that may lie anywhere; all other
    pointers are multiples of 16 bytes, as PyTorch allocates them.
    multiples: integer arguments that are multiples of 16.
    tensor_core: the product runs on tensor cores (checked in SASS).
    """

    kernel: Any
    name: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = WARPS_OF_NO_DOT
    num_stages: int = 2
    unaligned: tuple[str, ...] = ()
    multiples: tuple[str, ...] = ()
    tensor_core: bool = False
    checks: Mapping[str, Any] = field(default_factory=dict)
