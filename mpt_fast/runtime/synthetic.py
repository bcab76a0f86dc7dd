"""Programs of random layers: what calibration and benchmarks time where no trained network is."""

from typing import Any

import numpy as np

from mpt_fast.runtime.program import (
    AvgPool,
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    Kind,
    MaxPool,
    Program,
    Step,
    Taps,
    Value,
)


class Synthetic:
    """Builds a program step by step; every method returns the id of the value it adds.

    Convolutions are square, padded by half their size; `density` is the chance that a tap is
    kept. Thresholds and shifts are zero.
    """

    def __init__(self, shape: tuple[int, int, int], kind: Kind = "f32", seed: int = 1) -> None:
        self.values = [Value(kind, *shape)]
        self.steps: list[Step] = []
        self.rng = np.random.default_rng(seed)

    def add(self, step: Step) -> int:
        """Any step."""
        self.values.append(step.infer(self.values))
        self.steps.append(step)
        return len(self.steps)

    def combine(self, src: int, kind: Kind, *more: int) -> int:
        """Half the sum of values of one shape as `kind`; as bits its sign."""
        return self._combine((src, *more), kind, 0.5)

    def convert(self, src: int, kind: Kind) -> int:
        """The same value as `kind`."""
        return self._combine((src,), kind, 1)

    def _combine(self, srcs: tuple[int, ...], kind: Kind, scale: float) -> int:
        one = np.ones(self.values[srcs[0]].channels)
        act: Any = "sign" if kind == "bits" else "none"
        step = Combine(srcs=srcs, scales=(scale * one,) * len(srcs),
                       shifts=(0 * one,) * len(srcs), act=act, kind=kind)  # fmt: skip
        return self.add(step)

    def sign(self, src: int, outputs: int, size: int, density: float, stride: int = 1,
             residual: int = -1) -> int:  # fmt: skip
        """Convolution of bits to bits."""
        zero = np.zeros(outputs, np.int32)
        other = zero if residual >= 0 else None
        step = ConvSign(src=src, taps=self._taps(src, outputs, size, density),
                        **self._geometry(size, stride), threshold=zero,
                        flip=np.zeros(outputs, np.bool_), residual=residual,
                        residual_threshold=other)  # fmt: skip
        return self.add(step)

    def sums(self, src: int, outputs: int, size: int, density: float, stride: int = 1) -> int:
        """Convolution of bits to sums."""
        taps = self._taps(src, outputs, size, density)
        return self.add(Conv(src=src, taps=taps, **self._geometry(size, stride)))

    def real(self, src: int, outputs: int, size: int, density: float, binary: bool = True,
             act: Any = "none", residual: int = -1, stride: int = 1) -> int:  # fmt: skip
        """Convolution of real values; its scale keeps a chain of them in range."""
        taps = self._taps(src, outputs, size, density, binary)
        one = np.ones(outputs)
        other = one if residual >= 0 else None
        step = ConvAffine(src=src, taps=taps, **self._geometry(size, stride), scale=one / outputs,
                          shift=0 * one, act=act, residual=residual, residual_scale=other,
                          residual_shift=other)  # fmt: skip
        return self.add(step)

    def levels(self, src: int, outputs: int, size: int, density: float, kind: Kind = "u8",
               residual: int = -1, stride: int = 1) -> int:  # fmt: skip
        """Convolution of levels, relu; its scale keeps a chain of them in range."""
        taps = self._taps(src, outputs, size, density)
        one = np.ones(outputs)
        has = residual >= 0
        step = ConvAffine(src=src, taps=taps, **self._geometry(size, stride),
                          scale=one / (1 + taps.kept / outputs) ** 0.5, shift=0 * one, act="relu",
                          residual=residual, residual_scale=one if has else None,
                          residual_shift=0 * one if has else None, kind=kind)  # fmt: skip
        return self.add(step)

    def pool(self, src: int, size: int, average: bool = False) -> int:
        """Maximum or mean over windows of `size` that do not overlap."""
        make = AvgPool if average else MaxPool
        return self.add(make(src=src, kernel=(size, size), stride=(size, size)))

    def program(self) -> Program:
        """Everything so far, with the last value as the result."""
        first, last = self.values[0], self.values[-1]
        steps = tuple(self.steps)
        return Program(first.shape, steps, len(steps), first.shape, last.shape, first.kind)

    def _taps(self, src: int, outputs: int, size: int, density: float, binary: bool = True) -> Taps:
        shape = (outputs, self.values[src].channels, size, size)
        each = shape[1] * size * size
        drawn = self.rng.integers(0, 1 << 16, outputs * each, np.uint16)
        kept = np.flatnonzero(drawn < round(density * (1 << 16)))
        indptr = np.searchsorted(kept, np.arange(outputs + 1) * each).astype(np.int32)
        value = self.rng.choice([-1, 1], kept.size).astype(np.int8 if binary else np.float32)
        return Taps(shape, indptr, (kept % each).astype(np.int32), value)

    @staticmethod
    def _geometry(size: int, stride: int) -> dict[str, Any]:
        return {"stride": (stride, stride), "padding": (size // 2, size // 2)}
