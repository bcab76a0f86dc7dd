"""A convolution of a packed program on the GPU: weights laid out once, then launches alone."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mpt_fast.kernels.bitsliced_conv2d import triton as adders
from mpt_fast.kernels.bitsliced_conv2d import triton_int8
from mpt_fast.kernels.combine import triton as combine
from mpt_fast.kernels.geometry import Geometry, make_geometry
from mpt_fast.kernels.sparse_conv2d import triton as sparse
from mpt_fast.kernels.taps import KernelList, Taps
from mpt_fast.kernels.xnor_conv2d import triton as xnor
from mpt_fast.runtime.program import Conv, ConvAffine, ConvSign, Value

# (source, residual or None, number of images) -> result; shapes: see the package.
Launch = Callable[[Tensor, Tensor | None, int], Tensor]


def device_taps(step: Conv | ConvSign | ConvAffine, device: torch.device) -> Taps:
    """The step's taps on `device`."""
    taps = step.taps
    indptr, index, value = (
        torch.as_tensor(array).to(device) for array in (taps.indptr, taps.index, taps.value)
    )
    return Taps(indptr, index, value, taps.shape)


def geometry_of(step: Conv | ConvSign | ConvAffine) -> Geometry:
    """Stride, padding, dilation and groups."""
    return make_geometry(step.stride, step.padding, step.dilation, step.groups)


def bit_launch(route: str, step: Conv | ConvSign, source: Value, device: torch.device) -> Launch:
    """Planes to sums, int32 [O, Ho, Wo, lanes], or for a ConvSign to planes."""
    taps, geometry = device_taps(step, device), geometry_of(step)
    image = (source.height, source.width)
    if route == "popcount":
        return _popcount(step, taps, image, geometry, device)
    module = triton_int8 if route == "int8" else adders
    layer = module.prepare(taps, image, geometry)
    limits = _limits(step, device) if isinstance(step, ConvSign) else None

    def launch(planes: Tensor, residual: Tensor | None, images: int) -> Tensor:
        if limits is None:
            return module.run(planes, layer)
        threshold, flip, other = limits
        return module.run(planes, layer, threshold, flip, residual, other)

    return launch


def _limits(step: ConvSign, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    threshold = torch.as_tensor(step.threshold).to(device)
    flip = torch.as_tensor(step.flip).to(device, torch.int8)
    other = step.residual_threshold
    return threshold, flip, None if other is None else torch.as_tensor(other).to(device)


def _popcount(
    step: Conv | ConvSign,
    taps: Taps,
    image: tuple[int, int],
    geometry: Geometry,
    device: torch.device,
) -> Launch:
    layer = xnor.prepare(KernelList.from_taps(taps), taps.shape[1], image, geometry)
    scales: list[Tensor] = []
    shifts: list[Tensor] = []
    if isinstance(step, ConvSign):
        scales, shifts = sign_vectors(step, device)

    def launch(planes: Tensor, residual: Tensor | None, images: int) -> Tensor:
        sums = xnor.run(planes, layer, images).permute(1, 2, 3, 0)
        if not scales:
            return sums
        sources = [sums] if residual is None else [sums, residual]
        return combine.run(sources, scales, shifts, "sign", images)

    return launch


def sign_vectors(step: ConvSign, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Scales and shifts with which `combine` decides as the step does: exact in float64.

    S >= t is S - t >= 0, S <= t is t - S >= 0; with a residual r, t = mean + r * half.
    """
    threshold = torch.as_tensor(step.threshold).double()
    direction = 1 - 2 * torch.as_tensor(step.flip).double()
    if step.residual_threshold is None:
        scales, shifts = [direction], [-direction * threshold]
    else:
        other = torch.as_tensor(step.residual_threshold).double()
        scales = [direction, -direction * (other - threshold) / 2]
        shifts = [-direction * (other + threshold) / 2, torch.zeros_like(threshold)]
    return [v.to(device) for v in scales], [v.to(device) for v in shifts]


def real_launch(
    route: str, step: Conv | ConvAffine, source: Value, dtype: torch.dtype, device: torch.device
) -> Launch:
    """[C, H, W, images] of `dtype` to [O, Ho, Wo, images], without scale, shift or activation."""
    taps = device_taps(step, device)
    if not step.taps.binary:
        taps = taps._replace(value=taps.value.to(dtype))
    if route == "sparse":
        layer = sparse.prepare(taps, (source.height, source.width), geometry_of(step))
        return lambda x, residual, images: sparse.run_lanes(x, layer)
    weight = taps.to_dense(dtype)
    geometry = geometry_of(step)

    def launch(x: Tensor, residual: Tensor | None, images: int) -> Tensor:
        # tf32 would decide otherwise; and nothing may be tuned while a graph is captured.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            y = F.conv2d(x.permute(3, 0, 1, 2).contiguous(), weight, None, *geometry)
        return y.permute(1, 2, 3, 0)

    return launch
