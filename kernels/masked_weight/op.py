"""The effective weight g * sign(W) * M of a ticket layer and what flows back through it.

With dL/dw the gradient to the effective weight w, code = sign(W) * M and gain
g = sum(abs(W) * M) / kept:

    scores:  dL/ds = dL/dw * W * sign(s) * p * abs(s)**(p - 1), for pruned entries too; 0 at s = 0
    weights (fine-tuning, mask fixed): dL/dW = M * (g * dL/dw * 1[abs(W) <= 1]
             + (sum(dL/dw * sign(W) * M) / kept) * sign(W)),
             the clipped identity through the sign plus the path through the gain

No gradient reaches the scores through the gain. Backends: "reference" and "cpu" (C++, one pass, in
float32; the effective weight of another dtype is formed in it by PyTorch, the score gradient of
scores of another dtype is the reference's).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mpt_fast.kernels import costs, cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.geometry import check_tensor
from mpt_fast.kernels.layout import in_memory_order_of, layout_of
from mpt_fast.kernels.masked_weight import reference

BACKENDS = ("triton", "cpu", "reference")
_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Cut(NamedTuple):
    """What `code` is read from, where that is still to hand: code = sign(W) * M for these scores.

    threshold (floating) and tie_limit (int64) are 0-dim and describe the mask M as in
    `select_topk`. It holds as long as neither scores nor W have changed since the code was formed.
    """

    threshold: Tensor
    tie_limit: Tensor


def check_ticket(
    operation: str,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    code: Tensor,
    gain: Tensor,
    kept: Tensor | None,
    cut: Cut | None,
) -> None:
    """Errors of a ticket layer's operands beside their shapes: see `masked_conv2d`."""
    if not x.is_floating_point():
        raise TypeError(f"{operation}: x must be floating, got {x.dtype}; call x.float()")
    try:
        for tensor, name in ((weight, "weight"), (scores, "scores")):
            check_tensor(tensor, name, _FLOATING, None, x.device)
        check_tensor(code, "code", torch.int8, None, x.device)
        check_tensor(gain, "gain", _FLOATING, (), x.device)
        if kept is not None:
            check_tensor(kept, "kept", (torch.int64, torch.int32), (), x.device)
        if cut is not None:
            check_tensor(cut.threshold, "cut.threshold", _FLOATING, (), x.device)
            check_tensor(cut.tie_limit, "cut.tie_limit", torch.int64, (), x.device)
    except ValueError as error:
        raise ValueError(f"{operation}: {error}") from None


def effective_weight(
    code: Tensor, gain: Tensor, dtype: torch.dtype, backend: str | None = None
) -> Tensor:
    """gain * code in `dtype`, channels_last where `code` is; code int8, gain 0-dim on its device.

    Raises ValueError otherwise.
    """
    check_tensor(code, "code", torch.int8)
    check_tensor(gain, "gain", _FLOATING, (), code.device)
    chosen = choose(
        "effective_weight",
        backend,
        code.device.type,
        BACKENDS,
        costs.elements(costs.typed("effective_weight", dtype), code.numel()),
    )
    if chosen == "reference" or (chosen == "triton" and dtype == torch.float64):
        return reference.effective_weight(code, gain, dtype)
    if chosen == "triton":
        from mpt_fast.kernels.masked_weight import triton

        out = torch.empty_like(code, dtype=dtype, memory_format=layout_of(code))
        codes, result = in_memory_order_of(out, code, out)
        triton.effective_weight(codes, gain, result)
        return out
    if dtype == torch.float32:
        out = torch.empty_like(code, dtype=dtype, memory_format=layout_of(code))
        codes, result = in_memory_order_of(out, code, out)
        cpu.engine().effective_weight(
            codes.numpy(), gain.item(), result.numpy(), torch.get_num_threads()
        )
        return out
    return code.to(dtype).mul_(gain)  # +-1 and 0 are exact in every dtype: one rounding, no float32


def score_gradient(
    grad: Tensor, weight: Tensor, scores: Tensor, power: float = 1.0, backend: str | None = None
) -> Tensor:
    """dL/dscores from the gradient to the effective weight; dtype and memory format of `scores`.

    grad, weight, scores: one shape, one device. power >= 1. Raises ValueError otherwise.
    """
    for tensor, name in ((grad, "grad"), (weight, "weight")):
        check_tensor(tensor, name, _FLOATING, None, scores.device)
    if not grad.shape == weight.shape == scores.shape:
        raise ValueError(
            "grad, weight and scores must have one shape, got "
            f"{tuple(grad.shape)}, {tuple(weight.shape)} and {tuple(scores.shape)}"
        )
    if not power >= 1:
        raise ValueError(f"power must be at least 1, got {power}")
    return _score_gradient(grad, weight, scores, float(power), backend)


@torch.library.custom_op("mpt_fast::score_gradient", mutates_args=())
def _score_gradient(
    grad: Tensor, weight: Tensor, scores: Tensor, power: float, backend: str | None = None
) -> Tensor:
    case = costs.elements(costs.typed("score_gradient", scores.dtype), scores.numel())
    chosen = choose("score_gradient", backend, scores.device.type, BACKENDS, case)
    out = torch.empty_like(scores, memory_format=layout_of(scores))
    if chosen == "cpu" and weight.dtype == scores.dtype == torch.float32:
        g, w, s, result = in_memory_order_of(out, grad.to(torch.float32), weight, scores, out)
        cpu.engine().score_gradient(
            g.numpy(), w.numpy(), s.numpy(), power, result.numpy(), torch.get_num_threads()
        )
        return out
    wide = torch.float64 in (grad.dtype, weight.dtype, scores.dtype)
    if chosen == "triton" and not wide:
        from mpt_fast.kernels.masked_weight import triton

        g, w, s, result = in_memory_order_of(out, grad, weight, scores, out)
        triton.score_gradient(g.view(1, -1), w, s, power, None, result)
        return out
    return out.copy_(reference.score_gradient(grad, weight, scores, power))


@_score_gradient.register_fake
def _(
    grad: Tensor, weight: Tensor, scores: Tensor, power: float, backend: str | None = None
) -> Tensor:
    return torch.empty_like(scores, memory_format=layout_of(scores))


def weight_gradient(
    grad: Tensor, weight: Tensor, code: Tensor, gain: Tensor, kept: Tensor | None = None
) -> Tensor:
    """dL/dW for fine-tuning by the module's formula; M = (code != 0), kept: 0-dim, None counts M.

    A kept weight of exactly 0 has code 0 and is therefore treated as pruned.
    """
    if kept is None:
        kept = torch.count_nonzero(code)
    return reference.weight_gradient(grad, weight, code, gain, kept)


def autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast gives the input of a convolution or matrix product."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x
