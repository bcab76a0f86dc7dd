"""The packed program: an ordered list of steps over per-image values, checked before it runs.

Value 0 is the input; step i produces value i + 1. A value is one (C, H, W) array per image of a
kind: "bits" (+-1), "sums" (int32 sums of kept taps over bits), "f32", "f64", or a kind of levels.
Every step infers the shape and kind of its result from those of its sources and raises
ProgramError, in one line, where they do not fit; `Program.values()` does so for the whole program.

Levels are the integers of 8-bit activations: "u8" from 0 to 255, "i8" from -127 to 127, and "i16"
from -32767 to 32767 for what is only added (shortcuts). A level stands for that many of its
value's unit, a real number that the scales of the steps before and after it contain. A real y
becomes the level round(min(max(y, low), high)), ties to the even integer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpt_fast.runtime.pixels import Pixels

Kind = Literal["bits", "sums", "f32", "f64", "u8", "i8", "i16"]
Op = Literal["none", "relu", "sign"]
Pair = tuple[int, int]

KINDS: tuple[Kind, ...] = ("bits", "sums", "f32", "f64", "u8", "i8", "i16")
REAL: tuple[Kind, ...] = ("f32", "f64")
LEVELS: Mapping[Kind, tuple[int, int]] = {"u8": (0, 255), "i8": (-127, 127), "i16": (-32767, 32767)}
"""The kinds of levels with their least and largest."""
LEVEL_TAPS = 128
"""Largest kernel area over levels, so that the sum of one kernel fits 16 bits."""
OPS: tuple[Op, ...] = ("none", "relu", "sign")
MAX_ELEMENTS = (
    1 << 26
)  # of one value per image; keeps every offset in int32 and a bad file harmless
MAX_GEOMETRY = 1 << 15  # largest kernel, stride, padding or dilation


class ProgramError(ValueError):
    """A program is inconsistent: a shape, kind, length, index or id does not fit."""


class Value(NamedTuple):
    """Kind and per-image shape of one value."""

    kind: Kind
    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProgramError(message)


def _value(kind: Kind, channels: int, height: int, width: int) -> Value:
    _require(min(channels, height, width) >= 1, f"empty value {(channels, height, width)}")
    _require(
        channels * height * width <= MAX_ELEMENTS,
        f"value {(channels, height, width)} has more than {MAX_ELEMENTS} elements per image",
    )
    return Value(kind, channels, height, width)


def _pair(what: str, pair: Pair, least: int) -> None:
    _require(
        len(pair) == 2 and all(least <= size <= MAX_GEOMETRY for size in pair),
        f"{what} {pair} outside [{least}, {MAX_GEOMETRY}]",
    )


def _vector(what: str, vector: NDArray, length: int, dtype: type) -> None:
    _require(
        vector.dtype == dtype and vector.shape == (length,),
        f"{what} is {vector.dtype}{list(vector.shape)}, expected {np.dtype(dtype)}[{length}]",
    )
    if vector.dtype.kind == "f":
        _require(bool(np.isfinite(vector).all()), f"{what} has a NaN or infinite entry")


@dataclass(frozen=True, eq=False)
class Taps:
    """Kept taps of a weight of shape (O, C/groups, kh, kw), by output channel (CSR).

    `indptr` int32 [O + 1], `index` int32 [T] flat in (C/groups, kh, kw) and ascending inside each
    channel, `value` int8 +-1 or float32/float64 [T]. A linear layer is (O, I, 1, 1).
    """

    shape: tuple[int, int, int, int]
    indptr: NDArray[np.int32]
    index: NDArray[np.int32]
    value: NDArray

    @property
    def kept(self) -> int:
        """Number of kept taps."""
        return int(self.index.size)

    @property
    def weights(self) -> int:
        """Number of entries of the dense weight."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def binary(self) -> bool:
        """True if the values are +-1 (int8)."""
        return self.value.dtype == np.int8

    def check(self) -> None:
        """Raises ProgramError unless the arrays describe a weight of `shape`."""
        _require(len(self.shape) == 4 and min(self.shape) >= 1, f"bad weight shape {self.shape}")
        outputs, inputs, height, width = self.shape
        _require(max(height, width) <= MAX_GEOMETRY, f"bad weight shape {self.shape}")
        size = inputs * height * width
        _require(size < 2**31, f"weight shape {self.shape} is too large")
        _vector("tap indptr", self.indptr, outputs + 1, np.int32)
        _vector("tap index", self.index, self.index.size, np.int32)
        dtype = next((t for t in (np.int8, np.float32) if self.value.dtype == t), np.float64)
        _vector("tap value", self.value, self.index.size, dtype)
        _require(
            self.indptr[0] == 0
            and self.indptr[-1] == self.index.size
            and bool((np.diff(self.indptr) >= 0).all()),
            f"tap indptr does not rise from 0 to {self.index.size}",
        )
        if not self.index.size:
            return
        _require(
            int(self.index.min()) >= 0 and int(self.index.max()) < size,
            f"tap index outside [0, {size})",
        )
        rising = np.diff(self.index) > 0
        starts = self.indptr[1:-1]
        rising[starts[(starts > 0) & (starts < self.index.size)] - 1] = True
        _require(bool(rising.all()), "tap index does not rise inside a channel")
        if self.binary:
            _require(bool((np.abs(self.value) == 1).all()), "tap value is neither -1 nor +1")

    def to_dense(self, dtype: type = np.float32) -> NDArray:
        """The weight as a dense array of `shape`."""
        dense: NDArray = np.zeros((self.shape[0], self.weights // self.shape[0]), dtype=dtype)
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        dense[rows, self.index] = self.value
        return dense.reshape(self.shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One step. `name` is the layer it came from and `covers` the operations fused into it."""

    op: ClassVar[str]
    name: str = ""
    covers: str = ""

    def sources(self) -> tuple[int, ...]:
        """Ids of the values read."""
        raise NotImplementedError

    def infer(self, values: Sequence[Value]) -> Value:
        """Shape and kind of the result; raises ProgramError if the sources do not fit."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, kw_only=True)
class _ConvStep(Step):
    src: int
    taps: Taps
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def sources(self) -> tuple[int, ...]:
        return (self.src,)

    def _geometry(self, source: Value, kind: Kind) -> Value:
        self.taps.check()
        outputs, inputs, *kernel = self.taps.shape
        _pair("stride", self.stride, 1)
        _pair("padding", self.padding, 0)
        _pair("dilation", self.dilation, 1)
        _require(
            self.groups >= 1 and outputs % self.groups == 0,
            f"{outputs} output channels do not split into {self.groups} groups",
        )
        _require(
            inputs * self.groups == source.channels,
            f"weight {self.taps.shape} in {self.groups} groups needs {inputs * self.groups} "
            f"channels, value has {source.channels}",
        )
        sizes = []
        for axis, length in enumerate((source.height, source.width)):
            span = self.dilation[axis] * (kernel[axis] - 1) + 1
            room = length + 2 * self.padding[axis] - span
            _require(room >= 0, f"kernel span {span} exceeds the padded input of {length}")
            sizes.append(room // self.stride[axis] + 1)
        return _value(kind, outputs, sizes[0], sizes[1])


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(_ConvStep):
    """sum over kept taps inside the image: bits -> sums; a real source keeps its kind."""

    op: ClassVar[str] = "conv"

    def infer(self, values: Sequence[Value]) -> Value:
        source = values[self.src]
        _require(
            source.kind in ("bits", *REAL),
            f"conv reads bits, f32 or f64, not {source.kind}",
        )
        if source.kind == "bits":
            _require(self.taps.binary, "taps over bits must be -1 or +1")
            return self._geometry(source, "sums")
        return self._geometry(source, source.kind)


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvSign(_ConvStep):
    """Sums S of a convolution of bits, compared: bit = (S <= t) if flip else (S >= t).

    t is `threshold` int32 [O]; with a residual (bits of the result's shape) it is `threshold`
    where the residual is -1 and `residual_threshold` where it is +1. `flip` is bool [O].
    """

    op: ClassVar[str] = "conv_sign"
    threshold: NDArray[np.int32]
    flip: NDArray[np.bool_]
    residual: int = -1
    residual_threshold: NDArray[np.int32] | None = None

    def sources(self) -> tuple[int, ...]:
        return (self.src,) if self.residual < 0 else (self.src, self.residual)

    def infer(self, values: Sequence[Value]) -> Value:
        source = values[self.src]
        _require(source.kind == "bits", f"conv_sign reads bits, not {source.kind}")
        _require(self.taps.binary, "taps over bits must be -1 or +1")
        result = self._geometry(source, "bits")
        _vector("threshold", self.threshold, result.channels, np.int32)
        _vector("flip", self.flip, result.channels, np.bool_)
        _require(
            (self.residual >= 0) == (self.residual_threshold is not None),
            "a residual and residual_threshold come together",
        )
        if self.residual_threshold is not None:
            _vector("residual_threshold", self.residual_threshold, result.channels, np.int32)
            _require(
                values[self.residual] == result,
                f"residual {tuple(values[self.residual])} does not match {tuple(result)}",
            )
        return result


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvAffine(_ConvStep):
    """y = scale*conv + shift (+ residual_scale*residual + residual_shift), then `act`.

    The source is f32 or f64, the result the same kind, or bits for act="sign" (y >= 0).
    scale, shift and the residual's are float64 [O].

    From levels (u8 or i8) the taps are +-1 and `kind` is u8, i8, i16 or f32: the sums are exact,
    y is computed in float32 in the order above, each product and sum rounded, the residual is
    levels too, and y becomes a level of `kind` (None: only without levels).
    """

    op: ClassVar[str] = "conv_affine"
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    act: Op = "none"
    residual: int = -1
    residual_scale: NDArray[np.float64] | None = None
    residual_shift: NDArray[np.float64] | None = None
    kind: Kind | None = None

    def sources(self) -> tuple[int, ...]:
        return (self.src,) if self.residual < 0 else (self.src, self.residual)

    def infer(self, values: Sequence[Value]) -> Value:
        source = values[self.src]
        _require(self.act in OPS, f"unknown activation {self.act!r}")
        if source.kind in ("u8", "i8"):
            result = self._geometry(source, self._level_kind(values))
        else:
            _require(
                source.kind in REAL, f"conv_affine reads f32, f64, u8 or i8, not {source.kind}"
            )
            _require(self.kind is None, f"a convolution of {source.kind} has no kind of its own")
            result = self._geometry(source, "bits" if self.act == "sign" else source.kind)
        _vector("scale", self.scale, result.channels, np.float64)
        _vector("shift", self.shift, result.channels, np.float64)
        has = self.residual >= 0
        _require(
            has == (self.residual_scale is not None) == (self.residual_shift is not None),
            "a residual, residual_scale and residual_shift come together",
        )
        if has and self.residual_scale is not None and self.residual_shift is not None:
            _vector("residual_scale", self.residual_scale, result.channels, np.float64)
            _vector("residual_shift", self.residual_shift, result.channels, np.float64)
            _require(
                values[self.residual].shape == result.shape,
                f"residual {values[self.residual].shape} does not match {result.shape}",
            )
        return result

    def _level_kind(self, values: Sequence[Value]) -> Kind:
        """The result's kind where the source is levels."""
        kind = self.kind
        _require(self.act != "sign", "a convolution of levels gives no bits")
        _require(self.taps.binary, "taps over levels must be -1 or +1")
        if kind is None or kind not in ("f32", *LEVELS):
            raise ProgramError(f"a convolution of levels gives u8, i8, i16 or f32, not {kind}")
        area = int(np.prod(self.taps.shape[2:]))
        _require(area <= LEVEL_TAPS, f"a kernel of {area} over levels, at most {LEVEL_TAPS}")
        per_channel = self.taps.weights // self.taps.shape[0]
        _require(per_channel < 1 << 23, f"{per_channel} taps per channel over levels are too many")
        if self.residual >= 0:
            other = values[self.residual].kind
            _require(other in LEVELS, f"the residual over levels is {other}, no levels")
        return kind


@dataclass(frozen=True, eq=False, kw_only=True)
class Combine(Step):
    """y_c = sum_k (scale_k[c]*v_k + shift_k[c]) in the order of `srcs`, then `act`.

    In double where `kind` is f64 or bits, else in float; sources of any kind. act="sign" and
    kind="bits" come together; of a kind of levels, y becomes a level.
    """

    op: ClassVar[str] = "combine"
    srcs: tuple[int, ...]
    scales: tuple[NDArray[np.float64], ...]
    shifts: tuple[NDArray[np.float64], ...]
    act: Op = "none"
    kind: Kind = "f32"

    def sources(self) -> tuple[int, ...]:
        return self.srcs

    def infer(self, values: Sequence[Value]) -> Value:
        _require(
            0 < len(self.srcs) == len(self.scales) == len(self.shifts),
            f"combine has {len(self.srcs)} values, {len(self.scales)} scales and "
            f"{len(self.shifts)} shifts",
        )
        _require(self.act in OPS, f"unknown activation {self.act!r}")
        _require(
            self.kind in ("f32", "f64", "bits", *LEVELS)
            and (self.act == "sign") == (self.kind == "bits"),
            f"combine cannot give kind {self.kind!r} with activation {self.act!r}",
        )
        first = values[self.srcs[0]]
        for source, scale, shift in zip(self.srcs, self.scales, self.shifts, strict=True):
            _require(
                values[source].shape == first.shape,
                f"combine adds {values[source].shape} to {first.shape}",
            )
            _vector("scale", scale, first.channels, np.float64)
            _vector("shift", shift, first.channels, np.float64)
        return _value(self.kind, *first.shape)


def pool_size(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Output length of a pooling window as PyTorch counts it (0 or less: does not fit)."""
    room = length + 2 * padding - kernel
    if room < 0:
        return 0
    size = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (size - 1) * stride >= length + padding:
        size -= 1  # the last window must start inside the input or its left padding
    return size


@dataclass(frozen=True, eq=False, kw_only=True)
class _PoolStep(Step):
    src: int
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil_mode: bool = False

    def sources(self) -> tuple[int, ...]:
        return (self.src,)

    def _geometry(self, source: Value) -> Value:
        _pair("kernel", self.kernel, 1)
        _pair("stride", self.stride, 1)
        _pair("padding", self.padding, 0)
        sizes = []
        for axis, length in enumerate((source.height, source.width)):
            kernel, padding = self.kernel[axis], self.padding[axis]
            _require(2 * padding <= kernel, f"pool padding {padding} exceeds half of {kernel}")
            sizes.append(pool_size(length, kernel, self.stride[axis], padding, self.ceil_mode))
            _require(sizes[-1] >= 1, f"pool kernel {kernel} exceeds the padded input of {length}")
        return _value(source.kind, source.channels, sizes[0], sizes[1])


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(_PoolStep):
    """Maximum over windows; padding never wins. Of bits: OR, and AND (minimum) where `flip`."""

    op: ClassVar[str] = "max_pool"
    flip: NDArray[np.bool_] | None = None

    def infer(self, values: Sequence[Value]) -> Value:
        source = values[self.src]
        result = self._geometry(source)
        if self.flip is not None:
            _require(source.kind == "bits", f"max_pool flips bits only, not {source.kind}")
            _vector("flip", self.flip, result.channels, np.bool_)
        return result


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool(_PoolStep):
    """Mean over windows, with PyTorch's count_include_pad and divisor_override (0: none)."""

    op: ClassVar[str] = "avg_pool"
    count_include_pad: bool = True
    divisor: int = 0

    def infer(self, values: Sequence[Value]) -> Value:
        source = values[self.src]
        _require(source.kind in REAL, f"avg_pool reads f32 or f64, not {source.kind}")
        _require(0 <= self.divisor < 2**31, f"bad divisor {self.divisor}")
        return self._geometry(source)


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Step):
    """(C, H, W) -> (C*H*W, 1, 1)."""

    op: ClassVar[str] = "flatten"
    src: int

    def sources(self) -> tuple[int, ...]:
        return (self.src,)

    def infer(self, values: Sequence[Value]) -> Value:
        source = values[self.src]
        return _value(source.kind, source.channels * source.height * source.width, 1, 1)


STEPS: tuple[type[Step], ...] = (Conv, ConvSign, ConvAffine, Combine, MaxPool, AvgPool, Flatten)


@dataclass(frozen=True, eq=False)
class Program:
    """A packed network.

    `input` is (C, H, W) per image; `input_shape` and `output_shape` are the shapes the caller
    sees per image (a vector [F] is (F, 1, 1) inside); `output` is the id of the result.
    `pixels` says what uint8 images stand for; None: only float images are taken. `metadata` is the
    user's: JSON data that a file carries along and nothing here interprets.
    """

    input: tuple[int, int, int]
    steps: tuple[Step, ...]
    output: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_kind: Kind = "f32"
    pixels: Pixels | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _values: list[Value] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._values.extend(self._infer())

    def _infer(self) -> list[Value]:
        _require(self.input_kind in REAL, f"input kind {self.input_kind!r} is neither f32 nor f64")
        _require(len(self.input) == 3, f"input shape {self.input} is not (C, H, W)")
        _require(
            self.pixels is None or self.pixels.channels == self.input[0],
            f"pixels are given for {self.pixels and self.pixels.channels} channels, the network "
            f"takes {self.input[0]}",
        )
        values = [_value(self.input_kind, *self.input)]
        for number, step in enumerate(self.steps):
            where = f"step {number} ({step.op} {step.name})"
            for source in step.sources():
                _require(0 <= source <= number, f"{where} reads value {source}, not yet computed")
            try:
                values.append(step.infer(values))
            except ProgramError as error:
                raise ProgramError(f"{where}: {error}") from None
        _require(0 <= self.output < len(values), f"output value {self.output} does not exist")
        _require(values[self.output].kind not in LEVELS, "the output must not be levels")
        kinds = {value.kind for value in values}
        _require(
            not ("bits" in kinds and kinds & set(LEVELS)), "a program has bits or levels, not both"
        )
        for what, shape, value in (
            ("input", self.input_shape, values[0]),
            ("output", self.output_shape, values[self.output]),
        ):
            dims = tuple(size for size in value.shape if size != 1)
            _require(
                1 <= len(shape) <= 3
                and min(shape) >= 1
                and tuple(size for size in shape if size != 1) == dims,
                f"{what} shape {shape} does not fit the value {value.shape}",
            )
        return values

    @property
    def has_levels(self) -> bool:
        """True if activations are 8-bit."""
        return any(value.kind in LEVELS for value in self._values)

    def values(self) -> tuple[Value, ...]:
        """Kind and shape of every value: the input, then the result of each step."""
        return tuple(self._values)
