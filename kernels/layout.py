"""Memory formats of weight-shaped tensors that go to the C++ engine element by element."""

import torch
from torch import Tensor


def is_channels_last(tensor: Tensor) -> bool:
    """True for a dense [O, I, H, W] whose memory order is O, H, W, I and not also O, I, H, W."""
    return (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def layout_of(tensor: Tensor) -> torch.memory_format:
    """The memory format for results that belong to `tensor`: channels_last if it is, else rows."""
    return torch.channels_last if is_channels_last(tensor) else torch.contiguous_format


def in_memory_order_of(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Contiguous tensors with elements in the memory order of `like`; all have its shape.

    `like` is channels_last or counts as contiguous. Tensors that lie in memory as it does come back
    as views, the others as copies.
    """
    detached = [tensor.detach() for tensor in tensors]
    if is_channels_last(like):
        detached = [tensor.permute(0, 2, 3, 1) for tensor in detached]
    return [tensor.contiguous() for tensor in detached]
