"""Shared suite of pool2d, on every backend."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, backend_fixture
from torch import Tensor

from mpt_fast.kernels.pack_bits.reference import pack_bits, unpack_bits
from mpt_fast.kernels.pool2d import op, pool2d

backend = backend_fixture(op.BACKENDS)

WINDOWS: dict[str, dict[str, Any]] = {
    "2x2": {"kernel": 2},
    "3x3 padded": {"kernel": 3, "stride": 2, "padding": 1},
    "ceil": {"kernel": (3, 2), "stride": (2, 3), "padding": (1, 0), "ceil_mode": True},
    "overlapping": {"kernel": (2, 3), "stride": 1},
    "stride past the window": {"kernel": 1, "stride": (3, 2)},
    "whole image": {"kernel": (7, 5)},
}
CHANNELS, IMAGE = 3, (7, 5)


def lanes_first(x: Tensor, **window: Any) -> tuple[Tensor, tuple[Any, ...]]:
    """[lanes, C, H, W] and PyTorch's arguments."""
    kernel = window["kernel"]
    stride, padding = window.get("stride", kernel), window.get("padding", 0)
    return x.movedim(-1, 0), (kernel, stride, padding)


@pytest.mark.parametrize("with_flip", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_planes(backend: str, name: str, with_flip: bool) -> None:
    window = WINDOWS[name]
    signs = torch.randn(CHANNELS, *IMAGE, 130).sign()
    flip = torch.tensor([True, False, True]) if with_flip else None
    out = pool2d(pack_bits(signs, -1), "max", **window, flip=flip, backend=backend)
    wide = unpack_bits(pack_bits(signs, -1), 192, -1, torch.float32)  # lanes past the batch too
    images, arguments = lanes_first(wide, **window)
    ceil = window.get("ceil_mode", False)
    most = F.max_pool2d(images, *arguments, 1, ceil)
    if flip is not None:
        least = -F.max_pool2d(-images, *arguments, 1, ceil)
        most = torch.where(flip.view(1, -1, 1, 1), least, most)
    assert_close(out, pack_bits(most.movedim(0, -1), -1))
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_maximum(backend: str, name: str, dtype: torch.dtype) -> None:
    window = WINDOWS[name]
    x = (100 * torch.randn(CHANNELS, *IMAGE, 5) - 50).to(dtype)
    images, arguments = lanes_first(x.double(), **window)
    want = F.max_pool2d(images, *arguments, 1, window.get("ceil_mode", False))
    out = pool2d(x, "max", **window, backend=backend)
    assert_close(out, want.movedim(0, -1).to(dtype))


@pytest.mark.parametrize("divisor", [0, 5])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_mean(backend: str, name: str, dtype: torch.dtype, include: bool, divisor: int) -> None:
    window = WINDOWS[name]
    x = torch.randn(CHANNELS, *IMAGE, 33, dtype=dtype)
    images, arguments = lanes_first(x, **window)
    ceil = window.get("ceil_mode", False)
    want = F.avg_pool2d(images, *arguments, ceil, include, divisor or None)
    out = pool2d(x, "mean", **window, count_include_pad=include, divisor=divisor, backend=backend)
    assert_close(out, want.movedim(0, -1))


def test_nan_wins_and_infinity_counts(backend: str) -> None:
    x = torch.tensor([[1.0, float("nan")], [float("-inf"), 2.0]]).view(1, 2, 2, 1)
    assert bool(pool2d(x, "max", 2, backend=backend).isnan())
    low = torch.full((1, 2, 2, 1), float("-inf"))
    assert pool2d(low, "max", 2, backend=backend).tolist() == [[[[float("-inf")]]]]


@pytest.mark.parametrize("lanes", [0, 1, 600])
def test_any_number_of_lanes_and_strides(backend: str, lanes: int) -> None:
    x = torch.randn(lanes, CHANNELS, *IMAGE).movedim(0, -1)
    out = pool2d(x, "mean", 2, backend=backend)
    want = torch.stack([x[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2, 4) for j in (0, 2)])
    assert_close(out, want.view(3, 2, CHANNELS, lanes).permute(2, 0, 1, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "median"}, "mode must be"),
        ({"x": torch.zeros(3, 7, 5)}, "x must have shape"),
        ({"mode": "mean", "x": torch.zeros(3, 7, 5, 1, dtype=torch.int64)}, "x must be"),
        ({"flip": torch.zeros(3, dtype=torch.bool)}, "flip is for planes"),
        (
            {
                "x": torch.zeros(3, 7, 5, 1, dtype=torch.int64),
                "flip": torch.zeros(2, dtype=torch.bool),
            },
            "flip must have shape",
        ),
        ({"kernel": 0}, "kernel must be"),
        ({"stride": 0}, "stride must be"),
        ({"padding": 2}, "window"),
        ({"kernel": 9}, "window"),
    ],
)
def test_bad_operands(backend: str, changes: dict[str, Any], message: str) -> None:
    operands: dict[str, Any] = {"x": torch.zeros(3, 7, 5, 1), "mode": "max", "kernel": 2}
    with pytest.raises(ValueError, match=message):
        pool2d(**{**operands, **changes}, backend=backend)


def test_opcheck(backend: str) -> None:
    planes = pack_bits(torch.randn(3, 7, 5, 3), -1)
    flip = torch.tensor([True, False, True])
    windows = ([2, 2], [2, 1], [1, 0])
    torch.library.opcheck(
        torch.ops.mpt_fast.pool2d.default,
        (planes, "max", *windows, False, flip, True, 0, backend),
    )
    torch.library.opcheck(
        torch.ops.mpt_fast.pool2d.default,
        (torch.randn(3, 7, 5, 3), "mean", *windows, True, None, True, 0, backend),
    )
