"""select_topk in plain PyTorch: concatenate, sort, keep. The papers' baseline and the ground truth.

All functions see tensors by logical index, whatever their strides. Scores are finite (checked by
the caller).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Rows = tuple[list[Tensor], list[float], list[int], list[float], list[int]]
"""(codes, thresholds, tie_limits, abs_sums, kept), one entry per tensor."""


def select_topk(weights: Sequence[Tensor], scores: Sequence[Tensor], kept_total: int) -> Rows:
    """Keep the `kept_total` largest abs(score) of the whole list, ties to the lower flat index."""
    if not scores:
        return [], [], [], [], []
    importance = torch.cat([score.detach().abs().reshape(-1) for score in scores])
    values, order = torch.sort(importance, descending=True, stable=True)
    threshold = values[kept_total - 1].item() if kept_total else float("inf")
    keep = torch.zeros_like(importance, dtype=torch.bool)
    keep[order[:kept_total]] = True

    rows: Rows = ([], [], [], [], [])
    start = 0
    for weight, score in zip(weights, scores, strict=True):
        stop = start + score.numel()
        mask = keep[start:stop]
        kept_ties = torch.nonzero(mask & (importance[start:stop] == threshold))
        tie_limit = int(kept_ties.max()) + 1 if kept_ties.numel() else 0
        _append(rows, weight, mask.view(score.shape), threshold, tie_limit)
        start = stop
    return rows


def apply_threshold(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    thresholds: Sequence[float],
    tie_limits: Sequence[int],
) -> Rows:
    """Keep abs(s) > threshold, and abs(s) == threshold where the flat index is below tie_limit."""
    rows: Rows = ([], [], [], [], [])
    for weight, score, threshold, tie_limit in zip(
        weights, scores, thresholds, tie_limits, strict=True
    ):
        importance = score.detach().abs().double()
        index = torch.arange(score.numel(), device=score.device).view(score.shape)
        tied = (importance == threshold) & (index < tie_limit)
        _append(rows, weight, (importance > threshold) | tied, threshold, tie_limit)
    return rows


def _append(rows: Rows, weight: Tensor, mask: Tensor, threshold: float, tie_limit: int) -> None:
    codes, thresholds, tie_limits, abs_sums, kept = rows
    weight = weight.detach()
    codes.append(torch.where(mask, weight.sign(), 0).to(torch.int8))
    thresholds.append(threshold)
    tie_limits.append(tie_limit)
    abs_sums.append(weight[mask].abs().sum(dtype=torch.float64).item())
    kept.append(int(mask.sum()))


def kth_largest(scores: Sequence[Tensor], rank: int) -> float:
    """The `rank`-th largest abs(score) of the whole list; rank counts from 1."""
    importance = torch.cat([score.detach().abs().reshape(-1) for score in scores])
    return torch.sort(importance, descending=True).values[rank - 1].item()
