"""8-bit activations for a float network: its program in levels, calibrated on images.

Every activation tensor has one unit, the real number that a level of 1 stands for, so that a
convolution by +-1 taps sums integers. Units come from the largest magnitudes met while the float
program runs on the calibration images (high percentiles gave no better accuracy: see
benchmarks/NOTES.md): what ReLU gives is 0 to 255 units (u8), what has a sign and
is read by a convolution -127 to 127 (i8), and what is only added, such as a projection shortcut,
16 bits wide (i16), with twice the range that calibration met. Scales, shifts and units are folded
into one scale and shift per channel (Jacob et al. 2018, arXiv:1712.05877, with a zero point of 0).

Layers on vectors behind an average pool stay in float, and so does the network's result.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpt_fast.packed.graph import PackError
from mpt_fast.packed.reference import reference_values
from mpt_fast.runtime.program import (
    LEVEL_TAPS,
    LEVELS,
    AvgPool,
    Combine,
    ConvAffine,
    Flatten,
    Kind,
    MaxPool,
    Program,
    ProgramError,
    Step,
    Value,
)

_CHUNK = 32  # images at a time
_I16_HEADROOM = 2.0  # times the range met: 16 bits have the room


def quantize(program: Program, batches: Iterable[Tensor]) -> Program:
    """The program with 8-bit activations, calibrated on `batches` of float [N, *input_shape].

    Raises PackError for binary activations, layers whose weights are not +-gain, no images, or
    images that make an activation infinite or NaN.
    """
    _check(program)
    return _Quantizer(program, peaks(program, batches)).program()


def peaks(program: Program, batches: Iterable[Tensor]) -> NDArray[np.float64]:
    """float64 [values]: the largest magnitude of every value of the program over all images."""
    largest = np.zeros(len(program.values()))
    images = 0
    for batch in batches:
        for chunk in batch.reshape(len(batch), *program.input).split(_CHUNK) if len(batch) else ():
            values = reference_values(program, chunk, torch.float32)
            met = [float(value.abs().max()) for value in values]
            largest = np.maximum(largest, met)
            images += len(chunk)
    if not images:
        raise PackError("calibration has no images; give a few batches")
    if not np.isfinite(largest).all():
        raise PackError("calibration images give NaN or infinite activations; clean them")
    return largest


def _check(program: Program) -> None:
    if any(value.kind != "f32" for value in program.values()):
        raise PackError(
            "8-bit activations are for networks of float activations; this one has binary ones"
        )
    for step in program.steps:
        if not isinstance(step, ConvAffine | Combine | MaxPool | AvgPool | Flatten):
            raise PackError(f"{step.name}: {step.op} has no form with 8-bit activations")


@dataclass(frozen=True)
class _Stored:
    """Where a value of the float program is: its id in the new one, and its unit (1 of a real)."""

    value: int
    unit: float


class _Quantizer:
    def __init__(self, program: Program, peaks: Sequence[float] | NDArray) -> None:
        self._old = program
        self._peaks = peaks
        self._readers: dict[int, list[int]] = defaultdict(list)  # steps that read a value
        for number, step in enumerate(program.steps):
            for source in step.sources():
                self._readers[source].append(number)
        self._real = self._real_values()
        self._steps: list[Step] = []
        self._values: list[Value] = [program.values()[0]]
        self._stored: dict[int, _Stored] = {0: _Stored(0, 1.0)}
        self._converted: dict[tuple[int, bool], _Stored] = {}
        self._reals: dict[int, int] = {}

    def program(self) -> Program:
        for number, step in enumerate(self._old.steps):
            self._stored[number + 1] = self._translate(number + 1, step)
        output = self._as_real(self._old.output)
        result = replace(self._old, steps=tuple(self._steps), output=output)
        if not result.has_levels:
            raise PackError("no layer of this network has a form with 8-bit activations")
        return result

    def _real_values(self) -> set[int]:
        """Values that stay in float: vectors from an average pool on."""
        real: set[int] = set()
        for number, step in enumerate(self._old.steps):
            value = self._old.values()[number + 1]
            pooled = isinstance(step, AvgPool) and value.height == value.width == 1
            if pooled or real.issuperset(step.sources()):
                real.add(number + 1)
        return real

    def _feeds_convolution(self, value: int) -> bool:
        """True if a convolution of levels reads `value`, or pools or a flattened copy of it."""
        for number in self._readers[value]:
            step = self._old.steps[number]
            if isinstance(step, ConvAffine) and step.src == value and number + 1 not in self._real:
                return True
            if isinstance(step, MaxPool | Flatten) and self._feeds_convolution(number + 1):
                return True
        return False

    def _is_added(self, value: int) -> bool:
        """True if `value`, or pools or a flattened copy of it, is a term of levels."""
        for number in self._readers[value]:
            step, result = self._old.steps[number], number + 1
            if isinstance(step, MaxPool | Flatten):
                if self._is_added(result):
                    return True
            elif isinstance(step, ConvAffine | Combine) and result not in self._real:
                return True
        return False

    def _kind(self, value: int, step: Step) -> Kind:
        """How the result of `step`, a convolution or combination, is stored."""
        if value in self._real:
            return "f32"
        if self._feeds_convolution(value):
            return "u8" if getattr(step, "act", "none") == "relu" else "i8"
        return "i16" if self._is_added(value) else "f32"

    def _unit(self, value: int, kind: Kind) -> float:
        peak = float(self._peaks[value])
        if kind == "f32" or peak == 0:
            return 1.0
        return peak * (_I16_HEADROOM if kind == "i16" else 1.0) / LEVELS[kind][1]

    def _add(self, step: Step) -> int:
        try:
            value = step.infer(self._values)
        except ProgramError as error:
            raise PackError(f"{step.name}: {error}") from None
        self._steps.append(step)
        self._values.append(value)
        return len(self._steps)

    def _translate(self, value: int, step: Step) -> _Stored:
        if isinstance(step, ConvAffine):
            return self._conv(value, step)
        if isinstance(step, Combine):
            return self._combine(value, step)
        assert isinstance(step, MaxPool | AvgPool | Flatten)
        source = self._stored[step.src]
        if isinstance(step, AvgPool):
            source = _Stored(self._as_real(step.src), 1.0)
        return _Stored(self._add(replace(step, src=source.value)), source.unit)

    def _conv(self, value: int, step: ConvAffine) -> _Stored:
        if value in self._real:
            residual = step.residual if step.residual < 0 else self._as_real(step.residual)
            return _Stored(
                self._add(replace(step, src=self._as_real(step.src), residual=residual)), 1.0
            )
        _check_taps(step)
        source = self._as_levels(step.src, to_convolve=True)
        kind = self._kind(value, step)
        unit = self._unit(value, kind)
        fields: dict[str, Any] = {}
        if step.residual >= 0:
            assert step.residual_scale is not None
            assert step.residual_shift is not None
            other = self._as_levels(step.residual, to_convolve=False)
            fields = {
                "residual": other.value,
                "residual_scale": _single(step.residual_scale * (other.unit / unit)),
                "residual_shift": _single(step.residual_shift / unit),
            }
        new = replace(
            step,
            src=source.value,
            scale=_single(step.scale * (source.unit / unit)),
            shift=_single(step.shift / unit),
            kind=kind,
            covers=_covers(step.covers, kind),
            **fields,
        )
        return _Stored(self._add(new), unit)

    def _combine(self, value: int, step: Combine) -> _Stored:
        kind = self._kind(value, step)
        unit = self._unit(value, kind)
        sources = [self._stored[source] for source in step.srcs]
        new = replace(
            step,
            srcs=tuple(source.value for source in sources),
            scales=tuple(
                _single(scale * (source.unit / unit))
                for scale, source in zip(step.scales, sources, strict=True)
            ),
            shifts=tuple(_single(shift / unit) for shift in step.shifts),
            kind=kind,
            covers=_covers(step.covers, kind),
        )
        return _Stored(self._add(new), unit)

    def _as_levels(self, value: int, to_convolve: bool) -> _Stored:
        """The value in levels, 8-bit ones where a convolution reads it."""
        stored = self._stored[value]
        kind = self._values[stored.value].kind
        if kind in ("u8", "i8") or (kind == "i16" and not to_convolve):
            return stored
        if (value, to_convolve) not in self._converted:
            wanted: Kind = "i8" if to_convolve else "i16"
            unit = self._unit(value, wanted)
            self._converted[value, to_convolve] = _Stored(
                self._convert(stored, stored.unit / unit, wanted, "quantise"), unit
            )
        return self._converted[value, to_convolve]

    def _as_real(self, value: int) -> int:
        """Id of the value in float."""
        stored = self._stored[value]
        if self._values[stored.value].kind == "f32":
            return stored.value
        if value not in self._reals:
            self._reals[value] = self._convert(stored, stored.unit, "f32", "dequantise")
        return self._reals[value]

    def _convert(self, stored: _Stored, scale: float, kind: Kind, what: str) -> int:
        channels = self._values[stored.value].channels
        return self._add(
            Combine(
                srcs=(stored.value,),
                scales=(_single(np.full(channels, scale)),),
                shifts=(np.zeros(channels),),
                kind=kind,
                name=self._steps[stored.value - 1].name if stored.value else "input",
                covers=what,
            )
        )


def _check_taps(step: ConvAffine) -> None:
    if not step.taps.binary:
        raise PackError(
            f"{step.name}: its weights are not one gain times -1, 0 or +1 per channel; 8-bit "
            "activations are for tickets so far, pack it with activations='float'"
        )
    area = int(np.prod(step.taps.shape[2:]))
    if area > LEVEL_TAPS:
        raise PackError(
            f"{step.name}: its kernel has {area} entries, 8-bit activations take {LEVEL_TAPS} at "
            "most; pack it with activations='float'"
        )


def _single(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounded to float32, in which the engine computes."""
    return vector.astype(np.float32).astype(np.float64)


def _covers(covers: str, kind: Kind) -> str:
    return f"{covers} + quantise" if kind in LEVELS else covers
