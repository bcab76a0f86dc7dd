"""Effective weight, score gradient and fine-tuning gradient in plain PyTorch: the ground truth."""

import torch
from torch import Tensor


def effective_weight(code: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
    """gain * code in `dtype`."""
    return (code.to(gain.dtype) * gain).to(dtype)


def score_gradient(grad: Tensor, weight: Tensor, scores: Tensor, power: float) -> Tensor:
    """grad * weight * sign(scores) * power * abs(scores)**(power - 1), 0 where a score is 0."""
    slope = power * scores.abs().pow(power - 1) * scores.sign()
    return grad.to(scores.dtype) * weight * slope


def weight_gradient(
    grad: Tensor, weight: Tensor, code: Tensor, gain: Tensor, kept: Tensor
) -> Tensor:
    """M * (gain * grad * 1[abs(W) <= 1] + sum(grad * code) / kept * sign(W)), M = (code != 0)."""
    grad = grad.to(weight.dtype)
    through_sign = gain * grad * (weight.abs() <= 1)
    through_gain = (grad * code).sum() / kept
    return (code != 0) * (through_sign + through_gain * code)
