"""Kernels at their shipped configurations, for compiling ahead of time without a GPU.

Each `kernels/<op>/triton.py` lists its own in `compile_cases()`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpt_fast.kernels.gpu import RegisterLimit

WARPS_OF_NO_DOT = 4


@dataclass(frozen=True)
class CompileCase:
    """One kernel at one configuration.

    kernel: the jitted function. name: what the report calls the configuration.
    signature: Triton type of every run-time argument ("*fp32", "i32", ...).
    constants: every constexpr argument. unaligned: pointers that may lie anywhere; all other
    pointers are multiples of 16 bytes, as PyTorch allocates them.
    multiples: integer arguments that are multiples of 16.
    registers: limit given to NVIDIA's assembler.
    fp_fusion: products may fuse with sums.
    tensor_core: the product runs on tensor cores (checked in SASS).
    asynchronous: its operands can be copied asynchronously, in pieces of 4 bytes or more; False
    for three channels.
    checks: what the inner loop must be: "bitsliced": tap-words of a thread in a turn of the adder
    loop; "popcount" and "loads": words and loads of a thread in a turn of the popcount loop.
    """

    kernel: Any
    name: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = WARPS_OF_NO_DOT
    num_stages: int = 2
    unaligned: tuple[str, ...] = ()
    multiples: tuple[str, ...] = ()
    registers: RegisterLimit = field(default_factory=RegisterLimit)
    fp_fusion: bool = True
    tensor_core: bool = False
    asynchronous: bool = True
    checks: Mapping[str, int] = field(default_factory=dict)
