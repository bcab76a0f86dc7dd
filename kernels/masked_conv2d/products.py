"""The three products of a ticket convolution on the GPU, each on the route of `routes`.

Images and their gradients [N, C, H, W], weight, scores and code [O, C/groups, kh, kw], gain 0-dim.
"""

import torch
from torch import Tensor

from mpt_fast.kernels.geometry import Geometry
from mpt_fast.kernels.layout import layout_of
from mpt_fast.kernels.masked_conv2d import routes, triton
from mpt_fast.kernels.masked_weight import Cut, effective_weight, score_gradient

OPERATION = "masked_conv2d"


def _precision(x: Tensor) -> str:
    return triton.precision_of(x.dtype, torch.backends.cudnn.allow_tf32)


def _layer(x: Tensor, code: Tensor, geometry: Geometry) -> triton.Layer:
    return triton.Layer.of((x.shape[2], x.shape[3]), tuple(code.shape), geometry)


def _operand(
    route: str, weight: Tensor, scores: Tensor, code: Tensor, cut: Cut | None
) -> Tensor | triton.FromScores:
    """The weight as the kernels of that route read it."""
    if route == "codes" or cut is None:
        return triton.nhwc(code)
    return triton.FromScores(triton.nhwc(weight), triton.nhwc(scores), *cut)


def forward(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    cut: Cut | None,
    geometry: Geometry,
) -> Tensor:
    """y [N, O, Ho, Wo] in x's dtype and memory format."""
    route = routes.choose(OPERATION, "forward", x, weight, scores, cut)
    if route == "library":
        dense = effective_weight(code, gain, x.dtype, "triton")
        return torch.conv2d(x, dense, None, *geometry).contiguous(memory_format=layout_of(x))
    operand = _operand(route, weight, scores, code, cut)
    layer = _layer(x, code, geometry)
    out = triton.masked_conv2d_fwd(triton.nhwc(x), operand, gain.detach(), layer, _precision(x))
    return triton.nchw(out, layout_of(x))


def input_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    cut: Cut | None,
    geometry: Geometry,
) -> Tensor:
    """dx of dy [N, O, Ho, Wo]; x gives only its shape, dtype and memory format."""
    route = routes.choose(OPERATION, "dgrad", x, weight, scores, cut)
    if route == "library":
        dense = effective_weight(code, gain, x.dtype, "triton")
        return _library_gradient(dy, x, dense, geometry, 0).contiguous(memory_format=layout_of(x))
    operand = _operand(route, weight, scores, code, cut)
    layer = _layer(x, code, geometry)
    dx = triton.masked_conv2d_bwd_x(triton.nhwc(dy), operand, gain.detach(), layer, _precision(x))
    return triton.nchw(dx, layout_of(x))


def weight_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    geometry: Geometry,
    power: float,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """(dL/dw float32, dL/dscores in their dtype) as `needs` asks, each laid out as its tensor."""
    if routes.choose(OPERATION, "wgrad", x, weight, scores, None) == "library":
        shape_alone = torch.empty_like(weight, dtype=x.dtype)
        grad = _library_gradient(dy, x, shape_alone, geometry, 1)
        grad_weight = grad.to(torch.float32) if needs[0] else None
        grad_scores = score_gradient(grad, weight, scores, power, "triton") if needs[1] else None
    else:
        grad_weight, grad_scores = triton.masked_conv2d_bwd_weight(
            triton.nhwc(dy),
            triton.nhwc(x),
            triton.nhwc(weight),
            triton.nhwc(scores),
            _layer(x, weight, geometry),
            power,
            needs,
            _precision(x),
        )
        grad_weight, grad_scores = (
            None if g is None else g.permute(0, 3, 1, 2) for g in (grad_weight, grad_scores)
        )
    return (
        None if grad_weight is None else grad_weight.contiguous(memory_format=layout_of(weight)),
        None if grad_scores is None else grad_scores.contiguous(memory_format=layout_of(scores)),
    )


def _library_gradient(
    dy: Tensor, x: Tensor, dense: Tensor, geometry: Geometry, which: int
) -> Tensor:
    """PyTorch's gradient to the input (0) or to the weight (1)."""
    stride, padding, dilation, groups = geometry
    asked = [which == 0, which == 1, False]
    grads: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        dy, x, dense, None, stride, padding, dilation, False, [0, 0], groups, asked
    )
    return grads[which]
