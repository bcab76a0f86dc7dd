"""A checked program handed to the C++ engine."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpt_fast.kernels import cpu
from mpt_fast.runtime.program import (
    AvgPool,
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    Flatten,
    Kind,
    MaxPool,
    Program,
    ProgramError,
    Step,
)

ISA = "auto"  # of programs compiled from here on: the best this machine has; tests try the others


class CompiledProgram:
    """`program` in the engine's own form, for inputs of one kind ("f32" or "f64").

    Raises mpt_fast.kernels.cpu.EngineMissing where the engine is not built.
    """

    def __init__(self, program: Program, input_kind: Kind, isa: str | None = None) -> None:
        self._handle = cpu.engine().Program(*program.input, isa=isa or ISA, input_kind=input_kind)
        for number, step in enumerate(program.steps):
            value = _add(self._handle, step)
            if value != number + 1:
                raise ProgramError(f"engine numbered step {number} ({step.op}) {value}")
        self._handle.finish(program.output)

    @property
    def lanes(self) -> int:
        """Images computed side by side."""
        return self._handle.lanes

    @property
    def isa(self) -> str:
        """Instruction set in use: "avx512", "avx2" or "plain"."""
        return self._handle.isa

    def peak_bytes(self, batch: int) -> int:
        """Bytes of the values alive at once while a batch runs."""
        return self._handle.peak_bytes(batch)

    def step_times(self) -> list[float]:
        """Seconds per step of the last run."""
        return self._handle.step_times()

    def __call__(self, x: NDArray, threads: int) -> NDArray:
        """x [N, C, H, W] contiguous, of the kind compiled for -> [N, C', H', W'] float32/64."""
        return self._handle.run(x, threads)


def _add(handle: Any, step: Step) -> int:
    if isinstance(step, Conv | ConvSign | ConvAffine):
        taps = step.taps
        weight = (taps.indptr, taps.index, taps.value, taps.shape)
        geometry = (step.stride, step.padding, step.dilation, step.groups)
        if isinstance(step, Conv):
            return handle.conv(step.src, *weight, *geometry)
        if isinstance(step, ConvSign):
            return handle.conv_sign(
                step.src,
                *weight,
                *geometry,
                step.threshold,
                step.flip.astype(np.uint8),
                residual=step.residual,
                residual_threshold=step.residual_threshold,
            )
        return handle.conv_affine(
            step.src,
            *weight,
            *geometry,
            step.scale,
            step.shift,
            op=step.act,
            residual=step.residual,
            residual_scale=step.residual_scale,
            residual_shift=step.residual_shift,
        )
    if isinstance(step, Combine):
        return handle.combine(
            list(step.srcs), list(step.scales), list(step.shifts), op=step.act, kind=step.kind
        )
    if isinstance(step, MaxPool):
        flip = None if step.flip is None else step.flip.astype(np.uint8)
        return handle.max_pool(
            step.src, step.kernel, step.stride, step.padding, ceil_mode=step.ceil_mode, flip=flip
        )
    if isinstance(step, AvgPool):
        return handle.avg_pool(
            step.src,
            step.kernel,
            step.stride,
            step.padding,
            ceil_mode=step.ceil_mode,
            count_include_pad=step.count_include_pad,
            divisor=step.divisor,
        )
    if isinstance(step, Flatten):
        return handle.flatten(step.src)
    raise ProgramError(f"the engine has no step {step.op!r}")
