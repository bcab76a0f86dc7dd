"""Finding the mask: exact selection against a sort, and against one pass over the scores."""

import numpy as np
import pytest
import torch

from benchmarks.conftest import Measure
from mpt_fast.kernels import cpu
from mpt_fast.kernels.select_topk import select_topk

SCORES = 11_164_352  # ResNet-18


@pytest.fixture(scope="module")
def scores() -> torch.Tensor:
    return torch.randn(SCORES, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("baseline", ["torch.sort", "abs().sum()"])
def test_threshold(
    measured: Measure, scores: torch.Tensor, threads: int, sparsity: float, baseline: str
) -> None:
    kept = SCORES - int(sparsity * SCORES)
    magnitude = scores.abs()

    def select() -> tuple[float, int, bool]:
        return cpu.engine().kth_largest([scores.numpy()], kept, threads)

    def check() -> None:
        expected = np.partition(magnitude.numpy(), SCORES - kept)[SCORES - kept]
        assert select()[0] == expected

    calls = {
        "torch.sort": lambda: torch.sort(magnitude),
        "abs().sum()": lambda: scores.abs().sum(),
    }
    measured(
        "Exact threshold of 11 M scores",
        baseline,
        f"{sparsity:.0%}",
        select,
        calls[baseline],
        check=check,
        baseline_name=baseline,
        seconds=10,
    )


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95])
def test_threshold_codes_and_gain(measured: Measure, scores: torch.Tensor, sparsity: float) -> None:
    weights = scores.flip(0).contiguous()

    def by_sort() -> tuple[torch.Tensor, torch.Tensor]:
        # what a mask costs where it is made by sorting: order, mask, code and gain
        magnitude = scores.abs()
        order = torch.sort(magnitude).indices
        mask = torch.ones_like(magnitude)
        mask[order[: int(sparsity * SCORES)]] = 0
        return torch.sign(weights) * mask, (weights.abs() * mask).sum() / mask.sum()

    def check() -> None:
        ours = select_topk([weights], [scores], sparsity)
        code, gain = by_sort()
        assert torch.equal(ours.codes[0].float(), code)
        assert float(ours.abs_sums[0] / ours.kept[0]) == pytest.approx(float(gain), rel=1e-3)

    measured(
        "Threshold, codes and gain of 11 M weights",
        "sort, mask, sign, gain",
        f"{sparsity:.0%}",
        lambda: select_topk([weights], [scores], sparsity),
        by_sort,
        check=check,
        baseline_name="sort, mask, sign, gain in PyTorch",
        seconds=15,
    )
