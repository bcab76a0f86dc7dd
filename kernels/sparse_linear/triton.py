"""sparse_linear on the GPU: the kernel of `sparse_conv2d` on images of one pixel."""

from torch import Tensor

from mpt_fast.kernels.geometry import make_geometry
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.sparse_conv2d import triton as conv
from mpt_fast.kernels.taps import Taps


def prepare(taps: Taps) -> conv.Prepared:
    """The layer's tap lists, validated and filled; waits for the device."""
    return conv.prepare(taps, (1, 1), make_geometry())


def run(x: Tensor, layer: conv.Prepared, bias: Tensor | None = None) -> Tensor:
    """out [N, O] of x [N, I]."""
    return conv.run(x[:, :, None, None], layer, bias)[:, :, 0, 0]


def compile_cases() -> list[CompileCase]:
    """Nothing beyond the cases of `sparse_conv2d`, whose kernel this is."""
    return []
