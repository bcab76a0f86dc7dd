"""Shared checks of the operations: convolution geometry, dtypes and shapes."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from mpt_fast.kernels.geometry import (
    check_channels,
    check_tensor,
    conv2d_output_size,
    make_geometry,
    pair,
)


def test_pair() -> None:
    assert pair(2, "stride", 1) == (2, 2)
    assert pair([1, 3], "stride", 1) == (1, 3)
    for bad in (0, (1, 0), (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match="stride must be one or two integers >= 1"):
            pair(bad, "stride", 1)


def test_output_size_is_that_of_pytorch() -> None:
    for size, kernel, stride, padding, dilation in itertools.product(
        (1, 2, 5, 8), (1, 2, 3), (1, 2, 3), (0, 1, 4), (1, 2)
    ):
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        geometry = make_geometry((stride, 1), (padding, 0), (dilation, 1))
        out = F.conv2d(
            torch.zeros(1, 1, size, 3),
            torch.zeros(1, 1, kernel, 2),
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
        )
        assert conv2d_output_size((size, 3), (kernel, 2), geometry) == tuple(out.shape[2:])


@pytest.mark.parametrize(
    ("size", "kernel", "padding"), [((2, 5), (3, 3), 0), ((5, 2), (1, 3), 0), ((0, 5), (1, 1), 3)]
)
def test_a_kernel_that_does_not_fit(
    size: tuple[int, int], kernel: tuple[int, int], padding: int
) -> None:
    with pytest.raises(ValueError, match="enlarge the image or the padding"):
        conv2d_output_size(size, kernel, make_geometry(padding=padding))


def test_check_channels() -> None:
    check_channels(6, 4, 3, make_geometry(groups=2))
    with pytest.raises(ValueError, match=r"5 channels, but the weight expects .* = 6"):
        check_channels(5, 4, 3, make_geometry(groups=2))
    with pytest.raises(ValueError, match="3 output channels do not divide into 2 groups"):
        check_channels(6, 3, 3, make_geometry(groups=2))
    with pytest.raises(ValueError, match="groups must be >= 1, got 0"):
        make_geometry(groups=0)


def test_check_tensor() -> None:
    x = torch.zeros(2, 3)
    check_tensor(x, "x", torch.float32)
    check_tensor(x, "x", (torch.int8, torch.float32), (2, None), torch.device("cpu"))
    with pytest.raises(ValueError, match="x must be int8 or int32, got float32"):
        check_tensor(x, "x", (torch.int8, torch.int32))
    with pytest.raises(ValueError, match=r"x must have shape \(\*, 4\), got \(2, 3\)"):
        check_tensor(x, "x", torch.float32, (None, 4))
    with pytest.raises(ValueError, match=r"x must have shape \(\*\)"):
        check_tensor(x, "x", torch.float32, (None,))
    with pytest.raises(ValueError, match="x is on cpu, but the input is on meta; move it"):
        check_tensor(x, "x", torch.float32, device=torch.device("meta"))
