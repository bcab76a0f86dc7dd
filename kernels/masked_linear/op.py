"""masked_linear: y = x (g * sign(W) * M)^T, the fully connected layer of a ticket.

    x [..., I] floating; weight, scores [O, I] floating; code int8 = sign(W) * M [O, I] and gain
    0-dim (both from select_topk); y [..., O] in x's dtype.

Backward: x gets the usual gradient; the scores and, if it requires grad, the weight get those of
`mpt_fast.kernels.masked_weight`. Under autocast, x is cast as for an ordinary linear layer.
Backends: "reference"; "cpu", which forms the effective weight and the score gradient in C++ and
multiplies with PyTorch; "triton", which forms the weight inside the products and the score gradient
behind them, and saves no effective weight (float32, float16 and bfloat16; float64 runs the
reference). Its products come in several forms, of which `masked_conv2d.routes` chooses for each
shape. Its float32 products are tf32 where `torch.backends.cuda.matmul.allow_tf32`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpt_fast.kernels import costs
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.masked_linear import reference
from mpt_fast.kernels.masked_weight import (
    Cut,
    autocast,
    check_ticket,
    effective_weight,
    score_gradient,
    weight_gradient,
)

BACKENDS = ("triton", "cpu", "reference")
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    power: float = 1.0,
    kept: Tensor | None = None,
    backend: str | None = None,
    cut: Cut | None = None,
) -> Tensor:
    """Multiply x by gain * code; gradients reach x, scores and (fine-tuning) weight.

    Shapes in the module's docstring. power: p of the power-propagation, only in the gradient.
    kept: 0-dim count of the mask, needed only for the gradient to weight; None counts the non-zero
    codes. cut: the threshold that gives `code` from weight and scores as they are now, with which
    Triton may form it itself.

    Raises ValueError for shapes, dtypes or devices that do not match (all tensors live where x
    does) and TypeError for an x that is not floating.
    """
    check_ticket("masked_linear", x, weight, scores, code, gain, kept, cut)
    if not weight.shape == scores.shape == code.shape or weight.dim() != 2:
        raise ValueError(
            "masked_linear: weight, scores and code must have one shape [O, I], got "
            f"{tuple(weight.shape)}, {tuple(scores.shape)} and {tuple(code.shape)}"
        )
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"masked_linear: x must be [..., {weight.shape[1]}], got {tuple(x.shape)}")
    x = autocast(x)
    limits = cut or (None, None)
    return MaskedLinearFunction.apply(x, weight, scores, code, gain, kept, *limits, power, backend)


@torch.library.custom_op("mpt_fast::masked_linear", mutates_args=())
def _masked_linear(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    threshold: Tensor | None = None,
    tie_limit: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(output, effective weight): the second is what the gradient to x is computed with.

    The Triton kernels need none and return it empty.
    """
    chosen = _choose(x, code, backend)
    if chosen == "triton":
        from mpt_fast.kernels.masked_linear import products

        cut = _cut(threshold, tie_limit)
        return products.forward(x.detach(), weight, scores, code, gain, cut), x.new_empty(0)
    if chosen == "reference":
        return reference.masked_linear(x, code, gain)
    effective = effective_weight(code, gain, x.dtype, "cpu")
    return torch.nn.functional.linear(x, effective), effective


@_masked_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    threshold: Tensor | None = None,
    tie_limit: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    if _choose(x, code, backend) == "triton":
        return x.new_empty((*x.shape[:-1], code.shape[0])), x.new_empty(0)
    return reference.masked_linear(x, code, gain)


@torch.library.custom_op("mpt_fast::masked_linear_backward", mutates_args=())
def _masked_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    threshold: Tensor | None,
    tie_limit: Tensor | None,
    power: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to (x, effective weight, scores) by the Triton kernels, empty where not needed."""
    from mpt_fast.kernels.masked_linear import products

    dy, x = grad.to(x.dtype), x.detach()
    grad_x, grad_effective, grad_scores = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if needs[0]:
        cut = _cut(threshold, tie_limit)
        grad_x = products.input_gradient(dy, x, weight, scores, code, gain, cut)
    if needs[1] or needs[2]:
        wanted = (needs[1], needs[2])
        to_weight, to_scores = products.weight_gradients(dy, x, weight, scores, power, wanted)
        grad_effective = grad_effective if to_weight is None else to_weight
        grad_scores = grad_scores if to_scores is None else to_scores
    return grad_x, grad_effective, grad_scores


@_masked_linear_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    threshold: Tensor | None,
    tie_limit: Tensor | None,
    power: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if needs[0] else 0),
        x.new_empty(weight.shape, dtype=torch.float32) if needs[1] else x.new_empty(0),
        x.new_empty(scores.shape, dtype=scores.dtype) if needs[2] else x.new_empty(0),
    )


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
        threshold: Tensor | None,
        tie_limit: Tensor | None,
        power: float,
        backend: str | None,
    ) -> Tensor:
        out, effective = _masked_linear(
            x, weight, scores, code, gain, threshold, tie_limit, backend
        )
        ctx.save_for_backward(x, effective, weight, scores, code, gain, kept, threshold, tie_limit)
        ctx.power, ctx.backend = power, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, effective, weight, scores, code, gain, kept, *cut = ctx.saved_tensors
        need_x, need_weight, need_scores = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_scores = None
        if effective.numel() != code.numel():  # the forward ran in Triton
            grad_x, grad_effective, grad_scores = _masked_linear_backward(
                grad,
                x,
                weight,
                scores,
                code,
                gain,
                *cut,
                ctx.power,
                [need_x, need_weight, need_scores],
            )
            if need_weight:
                grad_weight = weight_gradient(grad_effective, weight, code, gain, kept)
            return (
                grad_x if need_x else None,
                grad_weight,
                grad_scores if need_scores else None,
                *[None] * 7,
            )
        if need_x:
            grad_x = grad @ effective
        if need_weight or need_scores:
            rows = grad.reshape(-1, effective.shape[0])
            grad_effective = rows.t() @ x.reshape(-1, effective.shape[1])
            if need_scores:
                grad_scores = score_gradient(grad_effective, weight, scores, ctx.power, ctx.backend)
            if need_weight:
                grad_weight = weight_gradient(grad_effective, weight, code, gain, kept)
        return grad_x, grad_weight, grad_scores, *[None] * 7


def _cut(threshold: Tensor | None, tie_limit: Tensor | None) -> Cut | None:
    return None if threshold is None or tie_limit is None else Cut(threshold, tie_limit)


def _choose(x: Tensor, code: Tensor, backend: str | None) -> str:
    case = costs.product(
        costs.typed("masked_linear", x.dtype), x.numel() // x.shape[-1], code.shape
    )
    chosen = choose("masked_linear", backend, x.device.type, BACKENDS, case)
    return "reference" if chosen == "triton" and x.dtype not in _TRITON_DTYPES else chosen
