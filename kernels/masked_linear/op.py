"""masked_linear: y = x (g * sign(W) * M)^T, the fully connected layer of a ticket.

    x [..., I] floating; weight, scores [O, I] floating; code int8 = sign(W) * M [O, I] and gain
    0-dim (both from select_topk); y [..., O] in x's dtype.

Backward: x gets the usual gradient; the scores and, if it requires grad, the weight get those of
`mpt_fast.kernels.masked_weight`. Under autocast, x is cast as for an ordinary linear layer.
Backends: "reference" and "cpu", which forms the effective weight and the score gradient in C++ and
multiplies with PyTorch.
"""

from typing import Any

import torch
from torch import Tensor

from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.masked_linear import reference
from mpt_fast.kernels.masked_weight import (
    autocast,
    effective_weight,
    score_gradient,
    weight_gradient,
)

BACKENDS = ("cpu", "reference")


def masked_linear(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    power: float = 1.0,
    kept: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multiply x by gain * code; gradients reach x, scores and (fine-tuning) weight.

    Shapes in the module's docstring. power: p of the power-propagation, only in the gradient.
    kept: 0-dim count of the mask, needed only for the gradient to weight; None counts the non-zero
    codes.

    Raises ValueError for shapes that do not match and TypeError for an x that is not floating.
    """
    if not x.is_floating_point():
        raise TypeError(f"masked_linear: x must be floating, got {x.dtype}; call x.float()")
    if not weight.shape == scores.shape == code.shape or weight.dim() != 2:
        raise ValueError(
            "masked_linear: weight, scores and code must have one shape [O, I], got "
            f"{tuple(weight.shape)}, {tuple(scores.shape)} and {tuple(code.shape)}"
        )
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"masked_linear: x must be [..., {weight.shape[1]}], got {tuple(x.shape)}")
    x = autocast(x)
    return MaskedLinearFunction.apply(x, weight, scores, code, gain, kept, power, backend)


@torch.library.custom_op("mpt_fast::masked_linear", mutates_args=())
def _masked_linear(
    x: Tensor, code: Tensor, gain: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """(output, effective weight): the second is what the gradient to x is computed with."""
    if choose("masked_linear", backend, x.device.type, BACKENDS) == "reference":
        return reference.masked_linear(x, code, gain)
    effective = effective_weight(code, gain, x.dtype, "cpu")
    return torch.nn.functional.linear(x, effective), effective


@_masked_linear.register_fake
def _(x: Tensor, code: Tensor, gain: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor]:
    return reference.masked_linear(x, code, gain)


class MaskedLinearFunction(torch.autograd.Function):
    """The gradients of masked_linear."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scores: Tensor,
        code: Tensor,
        gain: Tensor,
        kept: Tensor | None,
        power: float,
        backend: str | None,
    ) -> Tensor:
        out, effective = _masked_linear(x, code, gain, backend)
        tuned = (code, gain, kept) if ctx.needs_input_grad[1] else (None, None, None)
        ctx.save_for_backward(x, effective, weight, scores, *tuned)
        ctx.power, ctx.backend = power, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, effective, weight, scores, code, gain, kept = ctx.saved_tensors
        need_x, need_weight, need_scores = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_scores = None
        if need_x:
            grad_x = grad @ effective
        if need_weight or need_scores:
            rows = grad.reshape(-1, effective.shape[0])
            grad_effective = rows.t() @ x.reshape(-1, effective.shape[1])
            if need_scores:
                grad_scores = score_gradient(grad_effective, weight, scores, ctx.power, ctx.backend)
            if need_weight:
                grad_weight = weight_gradient(grad_effective, weight, code, gain, kept)
        return grad_x, grad_weight, grad_scores, *[None] * 5
