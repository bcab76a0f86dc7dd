"""Checks shared by the operations: the geometry of a 2-D convolution, and dtypes and shapes.

Nothing here reads a tensor's values, so every check also runs on fake tensors, that is when
`torch.compile` traces an operation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Pair = int | Sequence[int]


class Geometry(NamedTuple):
    """Stride, padding and dilation as (height, width), and groups; as in `torch.nn.Conv2d`."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def pair(value: Pair, name: str, minimum: int) -> tuple[int, int]:
    """`value` as (height, width); an int stands for both. ValueError below `minimum`."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or both[0] < minimum or both[1] < minimum:
        raise ValueError(f"{name} must be one or two integers >= {minimum}, got {value}")
    return both[0], both[1]


def make_geometry(
    stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1
) -> Geometry:
    """The checked Geometry of a convolution's keyword arguments; ValueError names a bad one."""
    if groups < 1:
        raise ValueError(f"groups must be >= 1, got {groups}")
    return Geometry(
        stride=pair(stride, "stride", 1),
        padding=pair(padding, "padding", 0),
        dilation=pair(dilation, "dilation", 1),
        groups=groups,
    )


def conv2d_output_size(
    size: tuple[int, int], kernel: tuple[int, int], geometry: Geometry
) -> tuple[int, int]:
    """(Ho, Wo) of a convolution over an image of `size` (H, W).

    Ho = floor((H + 2*padding - dilation*(kernel - 1) - 1) / stride) + 1, likewise Wo.
    Raises ValueError where the kernel does not fit into the padded image.
    """
    stride, padding, dilation, _ = geometry
    spans = [size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1 for i in (0, 1)]
    if min(size) < 1 or min(spans) < 0:
        raise ValueError(
            f"kernel {tuple(kernel)} with dilation {dilation} does not fit into an image of "
            f"{tuple(size)} padded by {padding}; enlarge the image or the padding"
        )
    return spans[0] // stride[0] + 1, spans[1] // stride[1] + 1


def check_channels(
    channels: int, out_channels: int, channels_per_group: int, geometry: Geometry
) -> None:
    """ValueError unless the input's channels, the weight's and the groups belong together."""
    groups = geometry.groups
    if channels != channels_per_group * groups:
        raise ValueError(
            f"the input has {channels} channels, but the weight expects "
            f"{channels_per_group} per group * {groups} groups = {channels_per_group * groups}"
        )
    if out_channels % groups:
        raise ValueError(f"{out_channels} output channels do not divide into {groups} groups")


def check_tensor(
    tensor: Tensor,
    name: str,
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    shape: tuple[int | None, ...] | None = None,
    device: torch.device | None = None,
) -> None:
    """ValueError unless `tensor` has one of `dtypes`, `shape` (None: any size) and `device`."""
    allowed = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if tensor.dtype not in allowed:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{name} must be {wanted}, got {str(tensor.dtype).removeprefix('torch.')}")
    if shape is not None:
        got = tuple(tensor.shape)
        fits = len(got) == len(shape) and all(
            want is None or have == want for have, want in zip(got, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("*" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} must have shape ({wanted}), got {got}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but the input is on {device}; move it")
