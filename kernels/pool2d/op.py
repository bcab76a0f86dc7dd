"""Contract of pool2d: pooling windows over values with images in the lanes.

    mode "max":  out[c, y, x, lane] = max of v over the window, the minimum in channels with flip
    mode "mean": the sum over the window / its divisor

Windows, ceil_mode, count_include_pad and divisor are those of `torch.nn.functional.max_pool2d` and
`avg_pool2d`: padding never wins a maximum. The maximum of int64 planes (`pack_bits`) is OR, the
minimum AND; only planes flip. A NaN wins. There is no gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels import costs
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.geometry import Pair, check_tensor, pair
from mpt_fast.kernels.pool2d import reference

BACKENDS = ("triton", "reference")
MODES = ("max", "mean")

_KINDS = {
    "max": (torch.int64, torch.int32, torch.float32, torch.float64),
    "mean": (torch.float32, torch.float64),
}


def _out_shape(
    x: Tensor,
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    flip: Tensor | None,
) -> tuple[int, ...]:
    """Shape of the result; ValueError names what does not fit."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    check_tensor(x, "x", _KINDS[mode], (None, None, None, None))
    if flip is not None:
        if x.dtype != torch.int64:
            raise ValueError(f"flip is for planes, not {x.dtype}")
        check_tensor(flip, "flip", torch.bool, (x.shape[0],), x.device)
    size = reference.out_size(
        (x.shape[1], x.shape[2]),
        pair(kernel, "kernel", 1),
        pair(stride, "stride", 1),
        pair(padding, "padding", 0),
        ceil_mode,
    )
    return x.shape[0], *size, x.shape[3]


@torch.library.custom_op("mpt_fast::pool2d", mutates_args=())
def _pool2d(
    x: Tensor,
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    flip: Tensor | None,
    count_include_pad: bool,
    divisor: int,
    backend: str | None = None,
) -> Tensor:
    shape = _out_shape(x, mode, kernel, stride, padding, ceil_mode, flip)
    case = costs.elements(costs.typed("pool2d", x.dtype), x.numel())
    chosen = choose("pool2d", backend, x.device.type, BACKENDS, case)
    windows = (pair(kernel, "kernel", 1), pair(stride, "stride", 1), pair(padding, "padding", 0))
    if chosen == "triton":
        from mpt_fast.kernels.pool2d import triton

        size = (shape[1], shape[2])
        return triton.run(x, mode, *windows, size, flip, count_include_pad, divisor)
    return reference.pool2d(
        x, mode, *windows, ceil_mode, flip, count_include_pad, divisor
    ).contiguous()


@_pool2d.register_fake
def _(
    x: Tensor,
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    flip: Tensor | None,
    count_include_pad: bool,
    divisor: int,
    backend: str | None = None,
) -> Tensor:
    return x.new_empty(_out_shape(x, mode, kernel, stride, padding, ceil_mode, flip))


def pool2d(
    x: Tensor,
    mode: str,
    kernel: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    flip: Tensor | None = None,
    count_include_pad: bool = True,
    divisor: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Maximum or mean over windows (see the module).

    Args:
        x: int64 planes [C, H, W, words], or int32, float32 or float64 [C, H, W, lanes]; a mean
            needs real values.
        mode: "max" or "mean".
        kernel, stride, padding: of the window, ints or (h, w); stride None: the kernel.
        flip: bool [C], for planes: the minimum in those channels.
        ceil_mode, count_include_pad, divisor (0: none): as in PyTorch.
        backend: None for automatic, or "triton" or "reference".

    Returns:
        [C, Ho, Wo, words or lanes] of the dtype of `x`.

    Raises:
        ValueError: operands or windows that do not fit.
        BackendError: an explicit backend that cannot run.
    """
    windows = (
        pair(kernel, "kernel", 1),
        pair(kernel if stride is None else stride, "stride", 1),
        pair(padding, "padding", 0),
    )
    return _pool2d(x, mode, *windows, ceil_mode, flip, count_include_pad, divisor, backend)
