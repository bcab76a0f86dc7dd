"""The three products of a ticket's fully connected layer on the GPU, on `routes` of masked_conv2d.

Rows [..., I] and their gradients [..., O], weight, scores and code [O, I], gain 0-dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mpt_fast.kernels.masked_conv2d import routes
from mpt_fast.kernels.masked_conv2d.triton import FromScores
from mpt_fast.kernels.masked_linear import triton
from mpt_fast.kernels.masked_weight import Cut, effective_weight, score_gradient

OPERATION = "masked_linear"


def _operand(
    route: str, weight: Tensor, scores: Tensor, code: Tensor, cut: Cut | None
) -> Tensor | FromScores:
    if route == "codes" or cut is None:
        return code
    return FromScores(weight.detach(), scores.detach(), *cut)


def forward(
    x: Tensor, weight: Tensor, scores: Tensor, code: Tensor, gain: Tensor, cut: Cut | None
) -> Tensor:
    """y [..., O] in x's dtype."""
    route = routes.choose(OPERATION, "forward", x, weight, scores, cut)
    if route == "library":
        return F.linear(x, effective_weight(code, gain, x.dtype, "triton"))
    operand = _operand(route, weight, scores, code, cut)
    rows = triton.masked_linear_fwd(x.detach(), operand, gain.detach())
    return rows.view(*x.shape[:-1], code.shape[0])


def input_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    cut: Cut | None,
) -> Tensor:
    """dx of dy [..., O]; x gives only its shape and dtype."""
    route = routes.choose(OPERATION, "dgrad", x, weight, scores, cut)
    if route == "library":
        return (dy @ effective_weight(code, gain, x.dtype, "triton")).view(x.shape)
    operand = _operand(route, weight, scores, code, cut)
    return triton.masked_linear_bwd_x(dy, operand, gain.detach()).view(x.shape)


def weight_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    power: float,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """(dL/dw float32, dL/dscores in their dtype) as `needs` asks."""
    if routes.choose(OPERATION, "wgrad", x, weight, scores, None) != "library":
        return triton.masked_linear_bwd_weight(
            dy, x.detach(), weight.detach(), scores.detach(), power, needs
        )
    grad = dy.reshape(-1, weight.shape[0]).t() @ x.reshape(-1, weight.shape[1])
    return (
        grad.to(torch.float32) if needs[0] else None,
        score_gradient(grad, weight, scores, power, "triton") if needs[1] else None,
    )
