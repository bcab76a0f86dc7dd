"""What masked_conv2d and masked_linear share: the effective weight and its gradients."""

from mpt_fast.kernels.masked_weight.op import (
    Cut,
    autocast,
    check_ticket,
    effective_weight,
    score_gradient,
    weight_gradient,
)

__all__ = [
    "Cut",
    "autocast",
    "check_ticket",
    "effective_weight",
    "score_gradient",
    "weight_gradient",
]
