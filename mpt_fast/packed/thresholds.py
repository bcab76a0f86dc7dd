"""Integer thresholds: where the eager float64 formula changes sign as the count S moves by one.

The decision f(S) >= 0 is monotone in the integer S, because each of its operations (times the
gain, plus the bias, batch norm, plus the residual) is, in floating point too. So one integer per
channel says it all, and bisection with the eager operations themselves finds it: the packed
network decides as the eager one does, to the last bit, ties included.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Formula = Callable[[Tensor], Tensor]


class Thresholds(NamedTuple):
    """bit = (S <= threshold) where flip, else (S >= threshold); int64 and bool [C].

    `hits_zero` [C] is True where some S gives exactly 0.
    """

    threshold: Tensor
    flip: Tensor
    hits_zero: Tensor


def falls(formula: Formula, limit: Tensor) -> Tensor:
    """bool [C]: f decreases over [-limit, limit] (a constant does not)."""
    return _at(formula, limit) < _at(formula, -limit)


def solve(formula: Formula, limit: Tensor, flip: Tensor) -> Thresholds:
    """Thresholds of `formula` (float64 [1, C, 1, 1] to the same) for |S| <= limit, int64 [C].

    `flip` says where the formula falls; a channel that never (or always) decides +1 gets a
    threshold just outside (or at the edge of) the range.
    """
    direction = torch.where(flip, -1, 1)
    low, high = -limit, limit + 1
    while bool((low < high).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        positive = _at(formula, direction * middle) >= 0
        high = torch.where(positive, torch.minimum(middle, high), high)
        low = torch.where(positive, low, torch.minimum(middle + 1, high))
    threshold = direction * high
    zero = (_at(formula, threshold) == 0) & (high <= limit)
    return Thresholds(threshold, flip, zero)


def _at(formula: Formula, count: Tensor) -> Tensor:
    return formula(count.double().view(1, -1, 1, 1)).reshape(-1)
