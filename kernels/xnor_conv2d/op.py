"""Contract of xnor_conv2d: popcount convolution with listed 3x3 kernels.

    S[n, o, y, x] = sum over the listed kernels k of output channel o of
                    2 * popcount(~(patch ^ sign) & mask & inside) - popcount(mask & inside)

`patch` holds the 9 input bits of the kernel's channel at (y, x), bit r*3+s for row r, column s;
`inside` marks the taps that lie inside the image, so a tap outside contributes nothing (the float
convolution's zero padding). Bits follow `pack_bits`: 1 stands for +1, 0 for -1. Kernels whose
weights are all pruned are not in the list and cost nothing. Exact; no gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels import costs, cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.geometry import (
    Geometry,
    Pair,
    check_tensor,
    conv2d_output_size,
    make_geometry,
)
from mpt_fast.kernels.interop import as_array, run_options
from mpt_fast.kernels.pack_bits.reference import word_count
from mpt_fast.kernels.taps import KernelList
from mpt_fast.kernels.xnor_conv2d import reference

BACKENDS = ("triton", "cpu", "reference")


def _check_operands(
    rows: Tensor, width: int, kernels: KernelList, geometry: Geometry
) -> tuple[int, int, int, int]:
    check_tensor(rows, "rows", torch.int64, (None, None, None, None))
    kernels.check(rows.device)
    N, C, H, words = rows.shape
    if width < 1 or word_count(width) != words:
        raise ValueError(f"width {width} does not fit rows of {words} words of 64 bits")
    out_channels = kernels.indptr.shape[0] - 1
    if C % geometry.groups or out_channels % geometry.groups:
        raise ValueError(
            f"{C} input and {out_channels} output channels do not divide into "
            f"{geometry.groups} groups"
        )
    return (N, out_channels, *conv2d_output_size((H, width), (3, 3), geometry))


@torch.library.custom_op("mpt_fast::xnor_conv2d", mutates_args=())
def _xnor_conv2d(
    rows: Tensor,
    width: int,
    indptr: Tensor,
    channel: Tensor,
    sign: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> Tensor:
    kernels = KernelList(indptr, channel, sign, mask)
    geometry = make_geometry(stride, padding, dilation, groups)
    N, outputs, Ho, Wo = _check_operands(rows, width, kernels, geometry)
    weight = (outputs, rows.shape[1] // groups, 3, 3)
    case = costs.product("xnor_conv2d", N * Ho * Wo, weight, kernels.channel.shape[0])
    chosen = choose("xnor_conv2d", backend, rows.device.type, BACKENDS, case)
    if chosen == "triton":
        from mpt_fast.kernels.xnor_conv2d import triton

        per_group = rows.shape[1] // groups
        return triton.run(
            rows, triton.prepare(kernels, per_group, (rows.shape[2], width), geometry)
        )
    if chosen == "cpu":
        sums = cpu.engine().xnor_conv2d(
            as_array(rows), width, *map(as_array, kernels), *geometry, **run_options()
        )
        return torch.from_numpy(sums)
    return reference.xnor_conv2d(rows, width, kernels, geometry)


@_xnor_conv2d.register_fake
def _(
    rows: Tensor,
    width: int,
    indptr: Tensor,
    channel: Tensor,
    sign: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> Tensor:
    kernels = KernelList(indptr, channel, sign, mask)
    geometry = make_geometry(stride, padding, dilation, groups)
    return rows.new_empty(_check_operands(rows, width, kernels, geometry), dtype=torch.int32)


def xnor_conv2d(
    rows: Tensor,
    width: int,
    kernels: KernelList,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """The sums S of a +1/-1 input with kept 3x3 kernels of +1/-1 (formula: see the module).

    Args:
        rows: int64 [N, C, H, ceil(W/64)], from `pack_bits(x, dim=-1)`.
        width: W; bits past it are ignored.
        kernels: from `KernelList.from_taps`, which refuses other kernel sizes.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`, ints or (h, w).
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        int32 [N, O, Ho, Wo].

    Raises:
        ValueError: operands that do not fit each other, or a malformed kernel list.
        BackendError: an explicit backend that cannot run.
    """
    geometry = make_geometry(stride, padding, dilation, groups)
    return _xnor_conv2d(rows, width, *kernels, *geometry, backend)
