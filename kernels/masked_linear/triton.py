"""masked_linear on the GPU: the convolution kernels on images of one pixel.

    y = g * x code^T,   dx = g * dy code,   dw = dy^T x, and the scores' gradient behind it

A row of x [..., I] is an image of one pixel with I channels, the weight [O, I] has 1x1 kernels; at
these constants the kernels of `masked_conv2d` are plain matrix products with one loop over depth.
Sums are formed and rounded as there. x, dy: float32, float16 or bfloat16.
"""

from dataclasses import replace

import torch
from torch import Tensor

from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.masked_conv2d import triton as products


def _layer(weight: Tensor) -> products.Layer:
    outputs, inputs = weight.shape
    return products.Layer(1, 1, 1, 1, inputs, outputs, 1, 1, 1, 1, 0, 0, 1, 1, 1)


def _precision(x: Tensor) -> str:
    return products.precision_of(x.dtype, torch.backends.cuda.matmul.allow_tf32)


def _pixels(rows: Tensor) -> Tensor:
    """[..., I] as [N, 1, 1, I]."""
    return rows.contiguous().view(rows.shape[:-1].numel(), 1, 1, rows.shape[-1])


def _kernels(weight: Tensor) -> Tensor:
    """[O, I] as [O, 1, 1, I]."""
    return weight.contiguous().view(weight.shape[0], 1, 1, weight.shape[1])


def _operand(
    weight: Tensor | products.FromScores,
) -> tuple[Tensor | products.FromScores, products.Layer]:
    """(the weight as the kernels read it, its layer)."""
    if isinstance(weight, products.FromScores):
        formed = replace(weight, weight=_kernels(weight.weight), scores=_kernels(weight.scores))
        return formed, _layer(weight.weight)
    return _kernels(weight), _layer(weight)


def masked_linear_fwd(x: Tensor, weight: Tensor | products.FromScores, gain: Tensor) -> Tensor:
    """y [N, O] of x [..., I] with N rows; weight: int8 code [O, I] or FromScores of that shape."""
    operand, layer = _operand(weight)
    out = products.masked_conv2d_fwd(_pixels(x), operand, gain, layer, _precision(x))
    return out.view(out.shape[0], layer.O)


def masked_linear_bwd_x(dy: Tensor, weight: Tensor | products.FromScores, gain: Tensor) -> Tensor:
    """dx [N, I] of dy [..., O] with N rows."""
    operand, layer = _operand(weight)
    out = products.masked_conv2d_bwd_x(_pixels(dy), operand, gain, layer, _precision(dy))
    return out.view(out.shape[0], layer.C)


def masked_linear_bwd_weight(
    dy: Tensor, x: Tensor, weight: Tensor, scores: Tensor, power: float, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """(dL/dw float32 or None, dL/dscores or None), [O, I], as `needs` asks."""
    grads = products.masked_conv2d_bwd_weight(
        _pixels(dy),
        _pixels(x),
        _kernels(weight),
        _kernels(scores),
        _layer(weight),
        power,
        needs,
        _precision(dy),
    )
    to_weight, to_scores = (None if grad is None else grad.view(weight.shape) for grad in grads)
    return to_weight, to_scores


def compile_cases() -> list[CompileCase]:
    """The products at the sizes of a classifier's hidden layer."""
    layer = products.Layer(1, 1, 1, 1, 1024, 1024, 1, 1, 1, 1, 0, 0, 1, 1, 1)
    return products.layer_cases("1024-1024", layer, products.FORMS)
