"""bitsliced_linear on the GPU: the kernel of `bitsliced_conv2d` on images of one pixel.

A tile is then as much of one row of words as a program holds, and the counters are the same.
"""

from torch import Tensor

from mpt_fast.kernels import costs
from mpt_fast.kernels.bitsliced_conv2d import triton as conv
from mpt_fast.kernels.geometry import make_geometry
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.taps import Taps


def prepare(taps: Taps) -> conv.Prepared:
    """The layer's tap lists, validated and sorted; waits for the device."""
    return conv.prepare(taps, (1, 1), make_geometry())


def run(
    planes: Tensor,
    layer: conv.Prepared,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
) -> Tensor:
    """Sums int32 [O, words * 64] of planes [I, words], or, with `threshold`, planes [O, words]."""
    if residual is not None:
        residual = residual[:, None, None, :]
    out = conv.run(planes[:, None, None, :], layer, threshold, flip, residual, residual_threshold)
    return out[:, 0, 0, :]


def apply(
    case: costs.Case,
    planes: Tensor,
    taps: Taps,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
) -> Tensor:
    """`bitsliced_conv2d`'s `convolve` on images of one pixel; shapes as for `run`."""
    if residual is not None:
        residual = residual[:, None, None, :]
    decided = (threshold, flip, residual, residual_threshold)
    return conv.convolve(case, planes[:, None, None, :], taps, make_geometry(), *decided)[:, 0, 0]


def compile_cases() -> list[CompileCase]:
    """The kernel of `bitsliced_conv2d` on a map of one pixel: a classifier's hidden layer."""
    return conv.layer_cases("1024", 1, 1024, 600, 0)
