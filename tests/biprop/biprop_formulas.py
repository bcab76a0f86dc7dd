"""biprop's layers written from its formulas, sums in float64; for comparison only."""

import torch
import torch.nn.functional as F
from torch import Tensor


def layerwise_mask(scores: Tensor, k: float) -> Tensor:
    """SubnetConv: sort abs(S) ascending, prune the first int((1 - k) n)."""
    flat = scores.abs().flatten()
    pruned = torch.sort(flat).indices[: int((1 - k) * flat.numel())]
    mask = torch.ones_like(flat)
    mask[pruned] = 0
    return mask.view_as(scores)


def layerwise_gain(weight: Tensor, mask: Tensor, k: float) -> Tensor:
    """sum(abs(W) M) / int(k n), rounded once."""
    return ((weight.abs().double() * mask).sum() / int(k * weight.numel())).float()


def global_masks(scores: list[Tensor], k: float) -> list[Tensor]:
    """GlobalSubnetConv: M = 1[abs(S) > tau], tau = z[int((1 - k) n) - 1] of the sorted z."""
    z = torch.sort(torch.cat([s.abs().flatten() for s in scores])).values
    tau = z[int((1 - k) * len(z)) - 1]
    return [(s.abs() > tau).float() for s in scores]


def global_gain(weight: Tensor, mask: Tensor) -> Tensor:
    """sum(abs(W) M) / sum(M), rounded once."""
    return ((weight.abs().double() * mask).sum() / mask.double().sum()).float()


class _StraightThrough(torch.autograd.Function):
    """Forward M * gain; backward g * abs(W) to the importance, unmasked and without the gain."""

    @staticmethod
    def forward(ctx, importance: Tensor, weight: Tensor, mask: Tensor, gain: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.save_for_backward(weight)
        return gain * mask

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def,override]
        (weight,) = ctx.saved_tensors
        return grad * weight.abs(), None, None, None


def effective_weight(scores: Tensor, weight: Tensor, mask: Tensor, gain: Tensor) -> Tensor:
    """sign(W) and abs(S) stand outside the custom function, so autograd adds their factors."""
    return torch.sign(weight) * _StraightThrough.apply(scores.abs(), weight, mask, gain)


def conv(x: Tensor, effective: Tensor, stride: int, padding: int) -> Tensor:
    return F.conv2d(x, effective, None, stride, padding)


class Sign(torch.autograd.Function):
    """BinAct: torch.sign; backward g 2 (1 - abs(clamp(x, -1, 1)))."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        (x,) = ctx.saved_tensors
        return grad * 2 * (1 - x.clamp(-1, 1).abs())
