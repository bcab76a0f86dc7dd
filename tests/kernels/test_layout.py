"""Memory formats: what counts as channels_last, and views in another tensor's memory order."""

import pytest
import torch

from mpt_fast.kernels.layout import in_memory_order_of, is_channels_last, layout_of


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(2, 3, 4, 5), False),
        (torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), True),
        (torch.zeros(2, 3, 1, 1).contiguous(memory_format=torch.channels_last), False),
        (torch.zeros(2, 3, 4, 5).transpose(0, 1), False),
        (torch.zeros(2, 3, 4, 5)[:, ::2], False),
        (torch.zeros(6, 4), False),
        (torch.zeros(0, 3, 4, 5), False),
    ],
)
def test_channels_last(tensor: torch.Tensor, expected: bool) -> None:
    assert is_channels_last(tensor) == expected
    wanted = torch.channels_last if expected else torch.contiguous_format
    assert layout_of(tensor) == wanted


@pytest.mark.parametrize("like_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("other_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_one_order_for_all(
    like_format: torch.memory_format, other_format: torch.memory_format
) -> None:
    numbers = torch.arange(120).view(2, 3, 4, 5)
    like = numbers.contiguous(memory_format=like_format)
    other = numbers.contiguous(memory_format=other_format)
    first, second = in_memory_order_of(like, like, other)
    assert torch.equal(first.flatten(), second.flatten())
    assert first.is_contiguous()
    assert second.is_contiguous()
    assert first.data_ptr() == like.data_ptr()
    assert (second.data_ptr() == other.data_ptr()) == (like_format == other_format)


def test_parameters_come_back_detached() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    (view,) = in_memory_order_of(parameter, parameter)
    assert not view.requires_grad
    assert view.data_ptr() == parameter.data_ptr()
