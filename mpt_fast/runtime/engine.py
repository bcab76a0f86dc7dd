"""A checked program handed to the C++ engine."""

from typing import Any, NamedTuple

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

# Of programs compiled from here on: the best instruction set this machine has, images or pixels
# in the lanes by the size of the batch, machine code where it can be made; tests try the others.
ISA = "auto"
LAYOUT = "auto"
CODE = True


class Run(NamedTuple):
    """What a run took: its images and threads, and the seconds of every step."""

    images: int
    threads: int
    step_times: tuple[float, ...]


class CompiledProgram:
    """`program` in the engine's own form, for inputs of one kind ("f32" or "f64").

    Raises mpt_fast.kernels.cpu.EngineMissing where the engine is not built.
    """

    def __init__(
        self,
        program: Program,
        input_kind: Kind,
        isa: str | None = None,
        layout: str | None = None,
        code: bool | None = None,
    ) -> None:
        self.input_shape = program.input
        """(C, H, W) of one image."""
        self._handle = cpu.engine().Program(
            *program.input,
            isa=isa or ISA,
            input_kind=input_kind,
            layout=layout or LAYOUT,
            code=CODE if code is None else code,
        )
        for number, step in enumerate(program.steps):
            value = _add(self._handle, step)
            if value != number + 1:
                raise ProgramError(f"engine numbered step {number} ({step.op}) {value}")
        self._handle.finish(program.output)
        if program.pixels is not None:
            self._handle.set_pixels(program.pixels.table())
        self._last: tuple[int, int] | None = None

    @property
    def last_run(self) -> Run | None:
        """The run that ended last; where several threads run, its times may be another's."""
        return self._last and Run(*self._last, tuple(self._handle.step_times()))

    @property
    def lanes(self) -> int:
        """Images computed side by side."""
        return self._handle.lanes

    @property
    def isa(self) -> str:
        """Instruction set in use: "avx512", "avx2" or "plain"."""
        return self._handle.isa

    @property
    def code(self) -> bool:
        """True if convolutions run as machine code made from their taps."""
        return self._handle.makes_code

    @property
    def bit_code(self) -> bool:
        """True if convolutions of bits to bits run as machine code in blocks of 512 images, where
        they have few taps."""
        return self._handle.makes_bit_code

    def block_lanes(self, batch: int) -> int:
        """Images side by side in the first block of a batch."""
        return self._handle.block_lanes(batch)

    def uses_pixels(self, batch: int) -> bool:
        """True if a batch of so many images runs with its pixels, not its images, in the lanes."""
        return self._handle.uses_pixels(batch)

    def pixel_kernels(self, batch: int) -> list[str]:
        """Per step the kernel for such a batch with its pixels in the lanes; "": there is but one.

        "bit-sliced" counts planes of taps, "lookups" four taps at a time in tables, "popcount"
        whole words of taps; "sparse" adds real values from lists of taps, "sparse code" by
        code made from them, "sparse short lists" from lists of two bytes a tap.
        """
        return self._handle.pixel_names(batch)

    def computed_by(self) -> list[int]:
        """Per step the one that computes it with images in the lanes, in whose time it is counted:
        itself, or a later one that the engine joins it into; -1: nothing reads it."""
        return self._handle.computed_by()

    def peak_bytes(self, batch: int) -> int:
        """Bytes of the values alive at once while a batch runs."""
        return self._handle.peak_bytes(batch)

    def step_times(self) -> list[float]:
        """Seconds per step of the last run."""
        return self._handle.step_times()

    def __call__(self, x: NDArray, threads: int) -> NDArray:
        """x [N, C, H, W] contiguous, of the kind compiled for or uint8 -> [N, C', H', W'].

        The result is float32, or float64 where the program's is.
        """
        y = self._handle.run(x, threads)
        self._last = len(x), threads
        return y


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
            kind=step.kind,
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
