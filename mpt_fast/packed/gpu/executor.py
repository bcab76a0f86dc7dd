"""A packed program on one device: each step becomes launches of Triton kernels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpt_fast.kernels.combine import triton as combine
from mpt_fast.kernels.gpu import guard
from mpt_fast.kernels.pack_bits import unpack_bits
from mpt_fast.kernels.pool2d import triton as pool2d
from mpt_fast.packed.gpu import routes
from mpt_fast.packed.gpu.convolutions import Launch, bit_launch, real_launch
from mpt_fast.runtime.pixels import scale_and_shift
from mpt_fast.runtime.program import (
    AvgPool,
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    Flatten,
    MaxPool,
    Program,
    ProgramError,
    Step,
)

KINDS = {torch.float32: "f32", torch.float64: "f64"}
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bits": torch.float64}


class DeviceProgram:
    """`program` with its weights on `device`; call it with [N, *program.input] there, N >= 1.

    The result is float32 [N, *program.output_shape]. Nothing in a call waits for the device, so
    that a call can be captured; an image with NaN or infinity gives NaN instead of an error.
    Weights are laid out at the first call that takes their route.
    """

    def __init__(self, program: Program, device: torch.device) -> None:
        self.program = program
        self.device = device
        self._launches: dict[tuple[int, str, torch.dtype], Launch] = {}
        self._vectors: dict[tuple[int, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        self._flips = {
            number: torch.as_tensor(step.flip).to(device, torch.int8)
            for number, step in enumerate(program.steps)
            if isinstance(step, MaxPool) and step.flip is not None
        }
        self._pixels: Tensor | None = None
        if program.pixels is not None:
            affine = scale_and_shift(program.pixels.mean, program.pixels.std)
            self._pixels = torch.tensor(affine, device=device, dtype=torch.float64).float()
        self._last = {s: k for k, step in enumerate(program.steps) for s in step.sources()}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x float32, float64 or, where the program has pixels, uint8 [N, C, H, W]."""
        with guard(x):
            if x.dtype == torch.uint8:
                x = self._normalised(x)
            finite = x.flatten(1).isfinite().all(1)
            images = x.shape[0]
            choices = routes.choices(self.program, KINDS[x.dtype], images)
            values: list[Tensor | None] = [x.permute(1, 2, 3, 0)]
            for number, choice in enumerate(choices):
                values.append(self._step(number, choice.route, values, images))
                for source in self.program.steps[number].sources():
                    if self._last[source] == number and source != self.program.output:
                        values[source] = None  # its memory serves later steps
            result = values[self.program.output]
            assert result is not None
            y = self._images_first(result, images)
            return torch.where(finite.view(-1, *[1] * (y.dim() - 1)), y, float("nan"))

    def _normalised(self, x: Tensor) -> Tensor:
        """As `Pixels.normalize`: the product and the sum each rounded to float32."""
        assert self._pixels is not None
        scale, shift = (v.view(-1, 1, 1) for v in self._pixels)
        return x.float() * scale + shift

    def _images_first(self, value: Tensor, images: int) -> Tensor:
        if value.dtype == torch.int64:
            value = unpack_bits(value, images, 0, torch.float32, "triton")
        else:
            value = value[..., :images].movedim(-1, 0)
        return value.reshape(images, *self.program.output_shape).float()

    def _step(
        self, number: int, route: str, values: Sequence[Tensor | None], images: int
    ) -> Tensor:
        step = self.program.steps[number]
        sources = [values[source] for source in step.sources()]
        x = sources[0]
        assert x is not None
        if isinstance(step, Conv | ConvSign | ConvAffine):
            residual = sources[1] if len(sources) > 1 else None
            y = self._launch(number, step, route, x.dtype)(x, residual, images)
            if not isinstance(step, ConvAffine):
                return y
            joined = [y] if residual is None else [y, residual]
            return self._combine(number, step, joined, step.act, x.dtype, images)
        if isinstance(step, Combine):
            joined = [value for value in sources if value is not None]
            return self._combine(number, step, joined, step.act, DTYPES[step.kind], images)
        if isinstance(step, Flatten):
            return x.reshape(-1, 1, 1, x.shape[3])
        if isinstance(step, MaxPool | AvgPool):
            result = self.program.values()[number + 1]
            mean = isinstance(step, AvgPool)
            return pool2d.run(
                x,
                "mean" if mean else "max",
                step.kernel,
                step.stride,
                step.padding,
                (result.height, result.width),
                self._flips.get(number),
                step.count_include_pad if isinstance(step, AvgPool) else True,
                step.divisor if isinstance(step, AvgPool) else 0,
            )
        raise ProgramError(f"the Triton executor has no step {step.op!r}")

    def _launch(
        self, number: int, step: Conv | ConvSign | ConvAffine, route: str, dtype: torch.dtype
    ) -> Launch:
        key = (number, route, dtype)
        if key not in self._launches:
            source = self.program.values()[step.src]
            if dtype == torch.int64:
                assert not isinstance(step, ConvAffine)
                self._launches[key] = bit_launch(route, step, source, self.device)
            else:
                assert not isinstance(step, ConvSign)
                self._launches[key] = real_launch(route, step, source, dtype, self.device)
        return self._launches[key]

    def _combine(
        self,
        number: int,
        step: Combine | ConvAffine,
        sources: list[Tensor],
        act: str,
        dtype: torch.dtype,
        images: int,
    ) -> Tensor:
        key = (number, dtype)
        if key not in self._vectors:
            scales, shifts = _vectors(step)
            self._vectors[key] = (
                [torch.as_tensor(v).to(self.device, dtype) for v in scales],
                [torch.as_tensor(v).to(self.device, dtype) for v in shifts],
            )
        return combine.run(sources, *self._vectors[key], act, images)


def _vectors(step: Step) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scale and shift of each source of a Combine, or of a ConvAffine's sum and residual."""
    if isinstance(step, Combine):
        return list(step.scales), list(step.shifts)
    assert isinstance(step, ConvAffine)
    if step.residual_scale is None or step.residual_shift is None:
        return [step.scale], [step.shift]
    return [step.scale, step.residual_scale], [step.shift, step.residual_shift]
