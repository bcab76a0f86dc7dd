"""Small-Dense: the width at which a dense network is as large as a sparse one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class SmallDense(NamedTuple):
    """width: the factor on the channels. bits: that network's size, 32 per weight and bias."""

    width: float
    bits: int


def small_dense_width(
    build: Callable[[float], nn.Module], bits: float, *, tolerance: float = 1e-4
) -> SmallDense:
    """The width whose dense network is nearest to `bits` in size (`Cost.bits` of a sparse one).

    build(width) gives the network for a factor on its channels, such as
    `lambda w: mpt.models.imagenet_resnet50(config=None, width=w)`; it is called under
    torch.device("meta"), so that no weight takes memory. Sizes are compared, not entries, because a
    sparse network also stores its masks: that gives the widths of RigL's Small-Dense (.465, .34,
    .26 and .231 for ResNet-50 at 80, 90, 95 and 96.5 %). tolerance: on the width.

    Raises ValueError if no width in (0, 1] is that small or that large.
    """
    low, high = 0.0, 1.0
    if not 0 < bits <= _bits(build, high):
        raise ValueError(
            f"the full-width network has {_bits(build, high)} bits, and {bits:g} are wanted; "
            "give a size between 1 and that"
        )
    while high - low > tolerance:
        middle = (low + high) / 2
        if _bits(build, middle) < bits:
            low = middle
        else:
            high = middle
    width = min((w for w in (low, high) if w > 0), key=lambda w: abs(_bits(build, w) - bits))
    found = _bits(build, width)
    if found == 0:
        raise ValueError(f"no width gives a network of {bits:g} bits; ask for a larger one")
    return SmallDense(round(width, 4), found)


def _bits(build: Callable[[float], nn.Module], width: float) -> int:
    """Size of the dense network of a width; 0 where the width leaves a layer without channels."""
    try:
        with torch.device("meta"):
            model = build(width)
    except ValueError:
        return 0
    return 32 * sum(
        module.weight.numel() + module.weight.shape[0]
        for module in model.modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    )
