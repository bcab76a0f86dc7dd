"""MaxPool2d: PyTorch's results, by another way."""

from typing import Any

import pytest
import torch
from torch import nn

from mpt_fast.nn import MaxPool2d

CASES: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "dilation": (1, 2), "ceil_mode": True},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_are_pytorchs(
    options: dict[str, Any], layout: torch.memory_format
) -> None:
    draw = torch.Generator().manual_seed(0)
    # Rounded and cut off at 0, so that windows have ties.
    images = torch.randn(3, 5, 9, 8, generator=draw).mul(2).round().relu()
    images = images.contiguous(memory_format=layout)
    results = []
    for layer in (MaxPool2d(**options), nn.MaxPool2d(**options)):
        x = images.clone(memory_format=torch.preserve_format).requires_grad_()
        out = layer(x)
        out.square().sum().backward()
        results.append((out, x.grad))
    (ours, gradient), (theirs, expected) = results
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient, expected)
    assert ours.is_contiguous(memory_format=layout)


def test_it_can_be_differentiated_twice() -> None:
    x = torch.randperm(2 * 6 * 6).double().view(1, 2, 6, 6).requires_grad_()
    assert torch.autograd.gradgradcheck(MaxPool2d(2), x)


def test_other_inputs_are_pytorchs() -> None:
    x = torch.randn(2, 4, 4, requires_grad=True)
    assert torch.equal(MaxPool2d(2)(x), nn.MaxPool2d(2)(x))
    out, index = MaxPool2d(2, return_indices=True)(x[None])
    assert index.dtype == torch.int64
    assert torch.equal(out[0], nn.MaxPool2d(2)(x))
