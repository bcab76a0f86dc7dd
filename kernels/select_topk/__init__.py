"""Which weights a ticket keeps: the largest abs(score), exactly, or those above a threshold."""

from mpt_fast.kernels.select_topk.op import (
    EmptiedLayerError,
    Selection,
    apply_threshold,
    kept_count,
    layer_gains,
    select_topk,
    threshold_from_quantile,
)

__all__ = [
    "EmptiedLayerError",
    "Selection",
    "apply_threshold",
    "kept_count",
    "layer_gains",
    "select_topk",
    "threshold_from_quantile",
]
