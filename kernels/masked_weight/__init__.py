"""What masked_conv2d and masked_linear share: the effective weight and its gradients."""

from mpt_fast.kernels.masked_weight.op import (
    autocast,
    effective_weight,
    score_gradient,
    weight_gradient,
)

__all__ = ["autocast", "effective_weight", "score_gradient", "weight_gradient"]
