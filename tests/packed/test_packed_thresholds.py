"""Integer thresholds against a search through every sum."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from mpt_fast.packed.thresholds import falls, solve


def exhaustive(formula: object, limit: int, flip: bool) -> list[bool]:
    assert callable(formula)
    counts = torch.arange(-limit, limit + 1).double().view(-1, 1, 1, 1)
    return [bool(formula(count.view(1, 1, 1, 1)) >= 0) for count in counts]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    limit=st.integers(0, 20),
    gain=st.floats(2**-6, 4.0, width=32),
    mean=st.floats(-8, 8, width=16),
    slope=st.one_of(st.sampled_from([0.0, -0.0]), st.floats(-2, 2, width=32)),
    shift=st.floats(-4, 4, width=16),
    residual=st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_every_sum_decides_as_the_formula(
    limit: int, gain: float, mean: float, slope: float, shift: float, residual: float
) -> None:
    parameters = [torch.tensor([v], dtype=torch.float64) for v in (mean, 1.0, slope, shift)]

    def formula(count: Tensor) -> Tensor:
        return F.batch_norm(count * gain, *parameters, False, 0.0, 1e-5) + residual

    limits = torch.tensor([limit])
    flip = falls(formula, limits)
    found = solve(formula, limits, flip)
    threshold = int(found.threshold)
    counts = range(-limit, limit + 1)
    decided = [s <= threshold if bool(flip) else s >= threshold for s in counts]
    assert decided == exhaustive(formula, limit, bool(flip))
    zeros = [bool(formula(torch.full((1, 1, 1, 1), float(s)).double()) == 0) for s in counts]
    assert bool(found.hits_zero) == any(zeros)
    assert abs(threshold) <= limit + 1


def test_channels_are_independent() -> None:
    scale = torch.tensor([1.0, -1.0, 0.0, 0.0, 2.0], dtype=torch.float64).view(1, -1, 1, 1)
    shift = torch.tensor([-2.5, 2.0, 1.0, -1.0, 100.0], dtype=torch.float64).view(1, -1, 1, 1)

    def formula(count: Tensor) -> Tensor:
        return count * scale + shift

    limit = torch.tensor([10, 10, 10, 10, 10])
    found = solve(formula, limit, falls(formula, limit))
    assert found.threshold.tolist() == [3, 2, -10, 11, -10]
    assert found.flip.tolist() == [False, True, False, False, False]
    assert found.hits_zero.tolist() == [False, True, False, False, False]
