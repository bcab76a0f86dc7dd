"""A packed program in plain PyTorch, every step in float64: the ground truth, never optimised.

Of levels the sums are exact integers and what follows is computed in float32 in the order the step
says, so that the engine gives the very same levels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from mpt_fast.runtime.program import (
    LEVELS,
    AvgPool,
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    Flatten,
    Kind,
    MaxPool,
    Op,
    Program,
    ProgramError,
    Step,
)


def run_reference(program: Program, x: Tensor) -> Tensor:
    """x float [N, C, H, W] -> float64 [N, C', H', W'], N >= 0. Bits are -1.0 and +1.0."""
    for number, value in enumerate(reference_values(program, x)):
        if number == program.output:
            result = value
    return result


def reference_values(
    program: Program, x: Tensor, dtype: torch.dtype = torch.float64
) -> Iterator[Tensor]:
    """Every value of the program in order, in `dtype`; each is dropped after its last reader."""
    values = [x.to(dtype)]
    yield values[0]
    last = {source: k for k, step in enumerate(program.steps) for source in step.sources()}
    kinds = [value.kind for value in program.values()]
    for number, step in enumerate(program.steps):
        values.append(_run(step, values, kinds, kinds[number + 1]))
        yield values[-1]
        for source in step.sources():
            if last[source] == number:
                values[source] = x.new_empty(0)


def _run(step: Step, values: list[Tensor], kinds: list[Kind], kind: Kind) -> Tensor:
    if isinstance(step, Conv | ConvSign | ConvAffine):
        x = values[step.src]
        weight = torch.from_numpy(step.taps.to_dense(float)).to(x.dtype)
        y = F.conv2d(x, weight, None, step.stride, step.padding, step.dilation, step.groups)
        if isinstance(step, Conv):
            return y
        if isinstance(step, ConvSign):
            return _compare(step, y, values)
        if kinds[step.src] in LEVELS:
            y = y.float()
        y = _scaled(y, step.scale, step.shift)
        if step.residual >= 0:
            other = values[step.residual].to(y.dtype)
            y = y + _scaled(other, step.residual_scale, step.residual_shift)
        return _level(_act(y, step.act), kind).to(x.dtype)
    if isinstance(step, Combine):
        first = values[step.srcs[0]]
        dtype = torch.float32 if kind in LEVELS else first.dtype
        terms = [
            _scaled(values[source].to(dtype), scale, shift)
            for source, scale, shift in zip(step.srcs, step.scales, step.shifts, strict=True)
        ]
        total = sum(terms[1:], terms[0])
        return _level(_act(total, step.act), kind).to(first.dtype)
    if isinstance(step, MaxPool):
        return _max_pool(step, values[step.src])
    if isinstance(step, AvgPool):
        return F.avg_pool2d(
            values[step.src],
            step.kernel,
            step.stride,
            step.padding,
            step.ceil_mode,
            step.count_include_pad,
            step.divisor or None,
        )
    if isinstance(step, Flatten):
        return values[step.src].flatten(1)[:, :, None, None]
    raise ProgramError(f"the reference has no step {step.op!r}")


def _column(vector: object) -> Tensor:
    return torch.as_tensor(vector).view(1, -1, 1, 1)


def _scaled(value: Tensor, scale: object, shift: object) -> Tensor:
    return value * _column(scale).to(value.dtype) + _column(shift).to(value.dtype)


def _level(value: Tensor, kind: Kind) -> Tensor:
    """The level of a real value, where `kind` is levels."""
    return value.clamp(*LEVELS[kind]).round() if kind in LEVELS else value


def _act(value: Tensor, act: Op) -> Tensor:
    if act == "relu":
        return value.relu()
    return _sign(value >= 0) if act == "sign" else value


def _sign(bit: Tensor) -> Tensor:
    return torch.where(bit, 1.0, -1.0).double()


def _compare(step: ConvSign, sums: Tensor, values: list[Tensor]) -> Tensor:
    threshold = _column(step.threshold)
    if step.residual >= 0:
        positive = values[step.residual] >= 0
        threshold = torch.where(positive, _column(step.residual_threshold), threshold)
    return _sign(torch.where(_column(step.flip), sums <= threshold, sums >= threshold))


def _max_pool(step: MaxPool, x: Tensor) -> Tensor:
    if x.shape[0] == 0:  # F.max_pool2d refuses an empty batch of some shapes; let one image say it
        return _max_pool(step, x.new_zeros(1, *x.shape[1:]))[:0]

    def pool(value: Tensor) -> Tensor:
        return F.max_pool2d(value, step.kernel, step.stride, step.padding, 1, step.ceil_mode)

    if step.flip is None:
        return pool(x)
    return torch.where(_column(step.flip), -pool(-x), pool(x))
