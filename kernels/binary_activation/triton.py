"""binary_activation on the GPU: y = +1 where x >= 0, else -1 (NaN gives -1); one pass each way.

    dL/dx = dL/dy * 2 (1 - abs(x)) for abs(x) <= 1, else 0, formed in float32 (float64 for float64)
    and rounded once

Tensors of one shape, floating, dense in one memory order (see `op`).
"""

import torch
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.gpu import ceil_div, guard, tl, triton, widened
from mpt_fast.kernels.gpu.aot import CompileCase

BLOCK = 65_536 if interpreted() else 1024


@triton.jit
def _binary_activation_fwd_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    x = tl.load(x_ptr + index, mask=inside)
    tl.store(y_ptr + index, tl.where(x >= 0, 1.0, -1.0).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _binary_activation_bwd_kernel(
    grad_ptr, x_ptr, out_ptr, n, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    x = tl.load(x_ptr + index, mask=inside).to(WIDE)
    grad = tl.load(grad_ptr + index, mask=inside).to(WIDE)
    slope = tl.where(tl.abs(x) <= 1, 2 * (1 - tl.abs(x)), 0.0)
    # 0 * infinity and what follows from NaN are as in the reference.
    slope = tl.where(x == x, slope, x)
    tl.store(out_ptr + index, (grad * slope).to(out_ptr.dtype.element_ty), mask=inside)


def binary_activation_fwd(x: Tensor, out: Tensor) -> None:
    """Writes y of flat contiguous `x` to flat contiguous `out` of its dtype."""
    result = widened(out)
    if x.numel():
        with guard(x):
            _binary_activation_fwd_kernel[(ceil_div(x.numel(), BLOCK),)](
                widened(x), result, x.numel(), BLOCK=BLOCK
            )
    if result is not out:
        out.copy_(result)


def binary_activation_bwd(grad: Tensor, x: Tensor, out: Tensor) -> None:
    """Writes dL/dx to `out`; all flat, contiguous and of one dtype."""
    result = widened(out)
    if x.numel():
        with guard(x):
            _binary_activation_bwd_kernel[(ceil_div(x.numel(), BLOCK),)](
                widened(grad),
                widened(x),
                result,
                x.numel(),
                WIDE=tl.float64 if x.dtype == torch.float64 else tl.float32,
                BLOCK=BLOCK,
            )
    if result is not out:
        out.copy_(result)


def compile_cases() -> list[CompileCase]:
    """Every kernel at the configurations that are launched."""
    cases = []
    for kind in ("fp32", "fp16", "bf16", "fp64"):
        pointer = f"*{kind}"
        cases.append(
            CompileCase(
                _binary_activation_fwd_kernel,
                kind,
                {"x_ptr": pointer, "y_ptr": pointer, "n": "i64"},
                {"BLOCK": BLOCK},
                multiples=("n",),
            )
        )
        cases.append(
            CompileCase(
                _binary_activation_bwd_kernel,
                kind,
                {"grad_ptr": pointer, "x_ptr": pointer, "out_ptr": pointer, "n": "i64"},
                {"WIDE": tl.float64 if kind == "fp64" else tl.float32, "BLOCK": BLOCK},
                multiples=("n",),
            )
        )
    return cases
