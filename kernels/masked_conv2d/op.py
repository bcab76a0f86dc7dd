"""masked_conv2d: y = conv2d(x, g * sign(W) * M), the layer of a ticket.

    x [N, C, H, W] floating; weight, scores [O, C/groups, kh, kw] floating; code int8 = sign(W) * M
    of that shape and gain 0-dim (both from select_topk); y [N, O, Ho, Wo] in x's dtype and memory
    format. Zero padding.

Backward: x gets the usual gradient; the scores and, if it requires grad, the weight get those of
`mpt_fast.kernels.masked_weight`. Under autocast, x is cast as for an ordinary convolution.
Backends: "reference"; "cpu", which forms the effective weight and the score gradient in C++ and
convolves with PyTorch; "triton", which forms the weight inside the products and the score gradient
behind them, in NHWC, and saves no effective weight (float32, float16 and bfloat16; float64 runs the
reference). Its products come in several forms, of which `routes` chooses for each shape. Its
float32 products are tf32 where `torch.backends.cudnn.allow_tf32`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpt_fast.kernels import costs
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.geometry import (
    Geometry,
    Pair,
    check_channels,
    conv2d_output_size,
    make_geometry,
)
from mpt_fast.kernels.layout import layout_of
from mpt_fast.kernels.masked_conv2d import reference
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


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    power: float = 1.0,
    kept: Tensor | None = None,
    backend: str | None = None,
    cut: Cut | None = None,
) -> Tensor:
    """Convolve x with gain * code; gradients reach x, scores and (fine-tuning) weight.

    Shapes in the module's docstring; x may be [C, H, W] too. stride, padding, dilation: an int or
    two. power: p of the power-propagation, only in the gradient. kept: 0-dim count of the mask,
    needed only for the gradient to weight; None counts the non-zero codes. cut: the threshold that
    gives `code` from weight and scores as they are now, with which Triton may form it itself.

    Raises ValueError for shapes, dtypes or devices that do not match (all tensors live where x
    does) and TypeError for an x that is not floating.
    """
    geometry = make_geometry(stride, padding, dilation, groups)
    check_ticket("masked_conv2d", x, weight, scores, code, gain, kept, cut)
    _check(x, weight, scores, code, geometry)
    x = autocast(x)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    out = MaskedConv2dFunction.apply(
        batched,
        weight,
        scores,
        code,
        gain,
        kept,
        *(cut or (None, None)),
        *geometry,
        power,
        backend,
    )
    return out if x.dim() == 4 else out.squeeze(0)


@torch.library.custom_op("mpt_fast::masked_conv2d", mutates_args=())
def _masked_conv2d(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    threshold: Tensor | None,
    tie_limit: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(output, effective weight): the second is what the gradient to x is computed with.

    The Triton kernels need none and return it empty.
    """
    chosen = _choose(x, code, backend)
    if chosen == "triton":
        from mpt_fast.kernels.masked_conv2d import products

        geometry = make_geometry(stride, padding, dilation, groups)
        cut = _cut(threshold, tie_limit)
        out = products.forward(x.detach(), weight, scores, code, gain, cut, geometry)
        return out, x.new_empty(0)
    if chosen == "reference":
        return reference.masked_conv2d(x, code, gain, stride, padding, dilation, groups)
    effective = effective_weight(code, gain, x.dtype, "cpu")
    return torch.conv2d(x, effective, None, stride, padding, dilation, groups), effective


@_masked_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    threshold: Tensor | None,
    tie_limit: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    if _choose(x, code, backend) == "triton":
        geometry = make_geometry(stride, padding, dilation, groups)
        size = conv2d_output_size(
            (x.shape[2], x.shape[3]), (code.shape[2], code.shape[3]), geometry
        )
        shape = (x.shape[0], code.shape[0], *size)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))
        return out, x.new_empty(0)
    return reference.masked_conv2d(x, code, gain, stride, padding, dilation, groups)


@torch.library.custom_op("mpt_fast::masked_conv2d_backward", mutates_args=())
def _masked_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    threshold: Tensor | None,
    tie_limit: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    power: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to (x, effective weight, scores) by the Triton kernels, empty where not needed."""
    from mpt_fast.kernels.masked_conv2d import products

    geometry = make_geometry(stride, padding, dilation, groups)
    dy, x = grad.to(x.dtype), x.detach()
    grad_x, grad_effective, grad_scores = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if needs[0]:
        cut = _cut(threshold, tie_limit)
        grad_x = products.input_gradient(dy, x, weight, scores, code, gain, cut, geometry)
    if needs[1] or needs[2]:
        wanted = (needs[1], needs[2])
        to_weight, to_scores = products.weight_gradients(
            dy, x, weight, scores, geometry, power, wanted
        )
        grad_effective = grad_effective if to_weight is None else to_weight
        grad_scores = grad_scores if to_scores is None else to_scores
    return grad_x, grad_effective, grad_scores


@_masked_conv2d_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    threshold: Tensor | None,
    tie_limit: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    power: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    def like(tensor: Tensor, dtype: torch.dtype, needed: bool) -> Tensor:
        if not needed:
            return x.new_empty(0)
        return torch.empty(
            tensor.shape, dtype=dtype, device=x.device, memory_format=layout_of(tensor)
        )

    return (
        like(x, x.dtype, needs[0]),
        like(weight, torch.float32, needs[1]),
        like(scores, scores.dtype, needs[2]),
    )


class MaskedConv2dFunction(torch.autograd.Function):
    """The gradients of masked_conv2d."""

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
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        power: float,
        backend: str | None,
    ) -> Tensor:
        out, effective = _masked_conv2d(
            x,
            weight,
            scores,
            code,
            gain,
            threshold,
            tie_limit,
            stride,
            padding,
            dilation,
            groups,
            backend,
        )
        ctx.save_for_backward(x, effective, weight, scores, code, gain, kept, threshold, tie_limit)
        ctx.geometry = (stride, padding, dilation, groups)
        ctx.power, ctx.backend = power, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, effective, weight, scores, code, gain, kept, *cut = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        need_x, need_weight, need_scores = ctx.needs_input_grad[:3]
        if effective.numel() != code.numel():  # the forward ran in Triton
            grad_x, grad_effective, grad_scores = _masked_conv2d_backward(
                grad,
                x,
                weight,
                scores,
                code,
                gain,
                *cut,
                *ctx.geometry,
                ctx.power,
                [need_x, need_weight, need_scores],
            )
            return (
                grad_x if need_x else None,
                weight_gradient(grad_effective, weight, code, gain, kept) if need_weight else None,
                grad_scores if need_scores else None,
                *[None] * 11,
            )
        grad_x, grad_effective, _ = torch.ops.aten.convolution_backward(
            grad,
            x,
            effective,
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [need_x, need_weight or need_scores, False],
        )
        return (
            grad_x,
            weight_gradient(grad_effective, weight, code, gain, kept) if need_weight else None,
            score_gradient(grad_effective, weight, scores, ctx.power, ctx.backend)
            if need_scores
            else None,
            *[None] * 11,
        )


def _cut(threshold: Tensor | None, tie_limit: Tensor | None) -> Cut | None:
    return None if threshold is None or tie_limit is None else Cut(threshold, tie_limit)


def _choose(x: Tensor, code: Tensor, backend: str | None) -> str:
    # Input pixels: near enough to tell sizes apart, and the same in the forward and its fake.
    case = costs.product(costs.typed("masked_conv2d", x.dtype), x.numel() // x.shape[1], code.shape)
    chosen = choose("masked_conv2d", backend, x.device.type, BACKENDS, case)
    return "reference" if chosen == "triton" and x.dtype not in _TRITON_DTYPES else chosen


def _check(x: Tensor, weight: Tensor, scores: Tensor, code: Tensor, geometry: Geometry) -> None:
    if not weight.shape == scores.shape == code.shape or weight.dim() != 4:
        raise ValueError(
            "masked_conv2d: weight, scores and code must have one shape [O, C/groups, kh, kw], got "
            f"{tuple(weight.shape)}, {tuple(scores.shape)} and {tuple(code.shape)}"
        )
    if x.dim() not in (3, 4):
        raise ValueError(
            f"masked_conv2d: x must be [N, C, H, W] or [C, H, W], got {tuple(x.shape)}"
        )
    check_channels(x.shape[-3], weight.shape[0], weight.shape[1], geometry)
