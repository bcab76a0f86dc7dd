"""The effective weight and the scores' gradient on the GPU, one pass each.

    effective weight  g * code
    dL/ds = dL/dw * W * sign(s) * power * abs(s)**(power - 1), 0 at s = 0, where dL/dw is the sum of
            its parts [splits, n], added in a fixed order in float64 (few adds that wait for memory)

All tensors are contiguous with entries in one memory order.
"""

from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.gpu import ceil_div, guard, tl, triton, widened
from mpt_fast.kernels.gpu.aot import CompileCase

BLOCK = 65_536 if interpreted() else 512


@triton.jit
def _effective_weight_kernel(code_ptr, gain_ptr, out_ptr, n, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    code = tl.load(code_ptr + index, mask=inside, other=0).to(tl.float32)
    weight = code * tl.load(gain_ptr).to(tl.float32)
    tl.store(out_ptr + index, weight.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["power"])
def _score_gradient_kernel(
    parts_ptr,  # [SPLITS, n]
    w_ptr,
    s_ptr,
    grad_ptr,
    grad_scores_ptr,
    n,
    power,
    SPLITS: tl.constexpr,
    POWER: tl.constexpr,  # 1, 2, or 0 for any
    NEED_GRAD: tl.constexpr,
    NEED_SCORES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    rows = tl.zeros([1], tl.int64) + n  # 64-bit, so that splits beyond 2**31 entries are reached
    total = tl.zeros([BLOCK], tl.float64)
    for split in range(0, SPLITS):
        total += tl.load(parts_ptr + index + split * rows, mask=inside, other=0.0).to(tl.float64)
    grad = total.to(tl.float32)
    if NEED_GRAD:
        tl.store(grad_ptr + index, grad, mask=inside)
    if NEED_SCORES:
        weight = tl.load(w_ptr + index, mask=inside, other=0.0).to(tl.float32)
        score = tl.load(s_ptr + index, mask=inside, other=0.0).to(tl.float32)
        size = tl.abs(score)
        if POWER == 1:
            slope = tl.where(size > 0, 1.0, 0.0)
        elif POWER == 2:
            slope = 2.0 * size
        else:
            slope = power * tl.exp2((power - 1.0) * tl.log2(tl.where(size > 0, size, 1.0)))
            slope = tl.where(size > 0, slope, 0.0)
        slope = tl.where(score < 0, -slope, slope)
        result = (grad * weight * slope).to(grad_scores_ptr.dtype.element_ty)
        tl.store(grad_scores_ptr + index, result, mask=inside)


def effective_weight(code: Tensor, gain: Tensor, out: Tensor) -> None:
    """Writes gain * code to `out`, float32 or narrower."""
    result = widened(out)
    if code.numel():
        with guard(code):
            _effective_weight_kernel[(ceil_div(code.numel(), BLOCK),)](
                code, gain.detach(), result, code.numel(), BLOCK=BLOCK
            )
    if result is not out:
        out.copy_(result)


def score_gradient(
    parts: Tensor,
    weight: Tensor,
    scores: Tensor,
    power: float,
    grad: Tensor | None,
    grad_scores: Tensor | None,
) -> None:
    """Writes dL/dw to `grad` (float32) and dL/ds to `grad_scores`, each unless None.

    parts: [splits, n] of n = weight.numel(); no split at all means a gradient of 0.
    """
    n = weight.numel()
    if not n:
        return
    result = None if grad_scores is None else widened(grad_scores)
    parts = widened(parts)
    with guard(weight):
        _score_gradient_kernel[(ceil_div(n, BLOCK),)](
            parts,
            widened(weight),
            widened(scores),
            parts if grad is None else grad,
            parts if result is None else result,
            n,
            float(power),
            SPLITS=parts.shape[0],
            POWER=int(power) if power in (1.0, 2.0) else 0,
            NEED_GRAD=grad is not None,
            NEED_SCORES=grad_scores is not None,
            BLOCK=BLOCK,
        )
    if grad_scores is not None and result is not None and result is not grad_scores:
        grad_scores.copy_(result)


def compile_cases() -> list[CompileCase]:
    """Every kernel at the configurations that are launched."""
    cases = [
        CompileCase(
            _effective_weight_kernel,
            kind,
            {"code_ptr": "*i8", "gain_ptr": "*fp32", "out_ptr": f"*{kind}", "n": "i32"},
            {"BLOCK": BLOCK},
            multiples=("n",),
        )
        for kind in ("fp32", "fp16", "bf16")
    ]
    pointers = ("parts_ptr", "w_ptr", "s_ptr", "grad_ptr", "grad_scores_ptr")
    # Behind the splits, which are float32, or behind a product of the library.
    forms = [(power, 8, "fp32", (False, True)) for power in (1, 2, 0)]
    forms += [(1, 1, kind, (False, True)) for kind in ("fp16", "bf16")]
    forms += [(1, 8, "fp32", (True, False))]
    for power, splits, kind, (need_grad, need_scores) in forms:
        label = f"power {power or 'any'}" + ("" if kind == "fp32" else f", {kind} gradient")
        label += ", to the weight alone" * need_grad
        cases.append(
            CompileCase(
                _score_gradient_kernel,
                label,
                {
                    **dict.fromkeys(pointers, "*fp32"),
                    "parts_ptr": f"*{kind}",
                    "n": "i32",
                    "power": "fp32",
                },
                {
                    "SPLITS": splits,
                    "POWER": power,
                    "NEED_GRAD": need_grad,
                    "NEED_SCORES": need_scores,
                    "BLOCK": BLOCK,
                },
                multiples=("n",),
            )
        )
    return cases
