"""Program <-> JSON plus tensors: which fields a step has and how each is written and checked.

A tensor is named "<step>.<field>" after the step and field it belongs to, so that a file cannot
point at the wrong one; a reader takes every tensor exactly once. Vectors take the least room:
a constant is a JSON number, integers the narrowest type, reals float32 where that is exact.
"""

import math
from collections.abc import Callable
from dataclasses import MISSING
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpt_fast.runtime.coding import (
    CodedMask,
    CodingError,
    decode_mask,
    encode_mask,
    pack_flags,
    unpack_flags,
)
from mpt_fast.runtime.pixels import Pixels
from mpt_fast.runtime.program import (
    KINDS,
    MAX_GEOMETRY,
    OPS,
    AvgPool,
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    Flatten,
    MaxPool,
    Program,
    Step,
    Taps,
)

FORMAT = "mpt_fast"
VERSIONS = (1, 2)
"""2 adds the kinds of levels; files without them are still written as 1."""
MAX_IDS = 1 << 20
MAX_LENGTH = 1 << 20  # of a per-channel vector


class SchemaError(ValueError):
    """The JSON of a program, or a tensor it needs, is not what the format says."""


class Tensors:
    """The tensors of a file while it is read: each is taken once and none may be left over."""

    def __init__(self, tensors: dict[str, NDArray]) -> None:
        self._left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *dtypes: type) -> NDArray:
        """The tensor `name`, one-dimensional and of one of `dtypes`."""
        if name not in self._left:
            raise SchemaError(f"tensor {name!r} is missing")
        tensor = self._left.pop(name)
        if tensor.ndim != 1 or tensor.dtype.type not in dtypes:
            raise SchemaError(f"tensor {name!r} is {tensor.dtype}{list(tensor.shape)}")
        return tensor

    def finish(self) -> None:
        """Raises SchemaError if a tensor was not used."""
        if self._left:
            raise SchemaError(f"tensor {min(self._left)!r} belongs to no step")


Written = dict[str, NDArray]
Writer = Callable[[Any, str, Written], Any]
Reader = Callable[[Any, str, Tensors], Any]


class _Codec(NamedTuple):
    """How one field goes into JSON (and tensors named after `prefix`) and comes back."""

    write: Writer
    read: Reader


def _plain(check: Callable[[Any], bool], what: str, make: Callable = lambda value: value) -> _Codec:
    def read(data: Any, where: str, tensors: Tensors) -> Any:
        if not check(data):
            raise SchemaError(f"{where} is {_short(data)}, expected {what}")
        return make(data)

    def write(value: Any, prefix: str, tensors: Written) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return _Codec(write, read)


def _short(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "..."


def _is_int(data: Any, least: int, most: int) -> bool:
    return type(data) is int and least <= data <= most


def _integer(least: int, most: int) -> _Codec:
    return _plain(lambda data: _is_int(data, least, most), f"an integer from {least} to {most}")


def _integers(least: int, most: int, lengths: range) -> _Codec:
    return _plain(
        lambda data: (
            type(data) is list
            and len(data) in lengths
            and all(_is_int(item, least, most) for item in data)
        ),
        f"{lengths.start} or more integers from {least} to {most}",
        tuple,
    )


def _choice(*options: str) -> _Codec:
    return _plain(
        lambda data: type(data) is str and data in options, f"one of {', '.join(options)}"
    )


def _write_reals(value: NDArray, name: str, tensors: Written) -> Any:
    if (value == value[0]).all():
        return [float(value[0]), value.size]
    narrow = value.astype(np.float32)
    tensors[name] = narrow if (narrow == value).all() else value
    return value.size


def _read_reals(data: Any, name: str, tensors: Tensors) -> NDArray[np.float64]:
    if type(data) is list and len(data) == 2 and type(data[0]) is float:
        return np.full(_length(data[1], name), data[0])
    vector = tensors.take(name, np.float32, np.float64)
    return _sized(vector, data, name).astype(np.float64)


def _length(data: Any, name: str) -> int:
    if not _is_int(data, 1, MAX_LENGTH):
        raise SchemaError(f"{name} has length {_short(data)}, expected 1 to {MAX_LENGTH}")
    return data


def _sized(vector: NDArray, data: Any, name: str) -> NDArray:
    if vector.size != _length(data, name):
        raise SchemaError(f"tensor {name!r} has {vector.size} entries, not {data}")
    return vector


def _write_thresholds(value: NDArray[np.int32], name: str, tensors: Written) -> Any:
    narrow = next(
        dtype
        for dtype in (np.int8, np.int16, np.int32)
        if value.min() >= np.iinfo(dtype).min and value.max() <= np.iinfo(dtype).max
    )
    tensors[name] = value.astype(narrow)
    return value.size


def _read_thresholds(data: Any, name: str, tensors: Tensors) -> NDArray[np.int32]:
    vector = tensors.take(name, np.int8, np.int16, np.int32)
    return _sized(vector, data, name).astype(np.int32)


def _write_flags(value: NDArray[np.bool_], name: str, tensors: Written) -> Any:
    if not value.any():
        return [False, value.size]
    tensors[name] = pack_flags(value)
    return value.size


def _read_flags(data: Any, name: str, tensors: Tensors) -> NDArray[np.bool_]:
    if type(data) is list and len(data) == 2 and data[0] is False:
        return np.zeros(_length(data[1], name), np.bool_)
    return unpack_flags(tensors.take(name, np.uint8), _length(data, name)).copy()


def _write_taps(taps: Taps, name: str, tensors: Written) -> Any:
    size = taps.weights // taps.shape[0]
    rows = np.repeat(np.arange(taps.shape[0], dtype=np.int64), np.diff(taps.indptr))
    mask = encode_mask(rows * size + taps.index, taps.weights)
    for part, data in (("high", mask.high), ("low", mask.low)):
        if data.size:
            tensors[f"{name}.{part}"] = data
    if taps.kept:
        value = pack_flags(taps.value > 0) if taps.binary else taps.value
        tensors[f"{name}.{'sign' if taps.binary else 'value'}"] = value
    return {
        "shape": list(taps.shape),
        "kept": taps.kept,
        "coding": mask.coding,
        "rice": mask.rice,
        "signs": taps.binary,
    }


_SHAPE = _integers(1, 2**31 - 1, range(4, 5))
_TAP_FIELDS: dict[str, _Codec] = {
    "shape": _SHAPE,
    "kept": _integer(0, 2**31 - 1),
    "coding": _choice("bits", "gaps", "holes", "all"),
    "rice": _integer(0, 64),
    "signs": _plain(lambda data: type(data) is bool, "true or false"),
}


def _read_taps(data: Any, name: str, tensors: Tensors) -> Taps:
    if type(data) is not dict or set(data) != set(_TAP_FIELDS):
        raise SchemaError(f"{name} is {_short(data)}, expected the fields of coded taps")
    item = {
        key: codec.read(data[key], f"{name}.{key}", tensors) for key, codec in _TAP_FIELDS.items()
    }
    shape, kept = item["shape"], item["kept"]
    weights = math.prod(shape)
    if weights >= 2**40:
        raise SchemaError(f"{name} has shape {shape}, which is too large")
    # Values first: their length bounds `kept`, and with it what decoding may allocate.
    value: NDArray
    if not kept:
        value = np.zeros(0, np.int8 if item["signs"] else np.float32)
    elif item["signs"]:
        flags = unpack_flags(tensors.take(f"{name}.sign", np.uint8), kept)
        value = np.where(flags, np.int8(1), np.int8(-1))
    else:
        value = tensors.take(f"{name}.value", np.float32, np.float64)
    if value.size != kept:
        raise SchemaError(f"{name} keeps {kept} taps but has {value.size} values")
    streams = [
        tensors.take(f"{name}.{part}", np.uint8)
        if f"{name}.{part}" in tensors
        else np.zeros(0, np.uint8)
        for part in ("high", "low")
    ]
    index = decode_mask(CodedMask(item["coding"], item["rice"], *streams), weights, kept)
    size = weights // shape[0]
    if shape[0] > MAX_LENGTH or size >= 2**31:
        raise SchemaError(f"{name} has shape {shape}, which is too large")
    indptr = np.searchsorted(index, np.arange(shape[0] + 1, dtype=np.int64) * size)
    return Taps(shape, indptr.astype(np.int32), (index % size).astype(np.int32), value)


def _write_many(value: tuple[NDArray, ...], name: str, tensors: Written) -> Any:
    return [_write_reals(item, f"{name}.{k}", tensors) for k, item in enumerate(value)]


def _read_many(data: Any, name: str, tensors: Tensors) -> tuple[NDArray, ...]:
    if type(data) is not list or len(data) > MAX_IDS:
        raise SchemaError(f"{name} is {_short(data)}, expected a list")
    return tuple(_read_reals(item, f"{name}.{k}", tensors) for k, item in enumerate(data))


_TEXT = _plain(lambda data: type(data) is str and len(data) <= 4096, "a text")
_BOOL = _plain(lambda data: type(data) is bool, "true or false")
_ID = _integer(0, MAX_IDS)
_RESIDUAL = _integer(-1, MAX_IDS)
_SIZES = _integers(1, MAX_GEOMETRY, range(2, 3))
_PADDING = _integers(0, MAX_GEOMETRY, range(2, 3))
_REALS = _Codec(_write_reals, _read_reals)
_MANY = _Codec(_write_many, _read_many)
_THRESHOLDS = _Codec(_write_thresholds, _read_thresholds)
_FLAGS = _Codec(_write_flags, _read_flags)
_ACT = _choice(*OPS)

_COMMON = {"name": _TEXT, "covers": _TEXT}
_GEOMETRY = {
    "src": _ID,
    "taps": _Codec(_write_taps, _read_taps),
    "stride": _SIZES,
    "padding": _PADDING,
    "dilation": _SIZES,
    "groups": _integer(1, 2**26),
}
_POOL = {
    "src": _ID,
    "kernel": _SIZES,
    "stride": _SIZES,
    "padding": _PADDING,
    "ceil_mode": _BOOL,
}
# Fields may be left out of a file where the step class has a default.
_FIELDS: dict[type[Step], dict[str, _Codec]] = {
    Conv: _COMMON | _GEOMETRY,
    ConvSign: _COMMON
    | _GEOMETRY
    | {
        "threshold": _THRESHOLDS,
        "flip": _FLAGS,
        "residual": _RESIDUAL,
        "residual_threshold": _THRESHOLDS,
    },
    ConvAffine: _COMMON
    | _GEOMETRY
    | {
        "scale": _REALS,
        "shift": _REALS,
        "act": _ACT,
        "residual": _RESIDUAL,
        "residual_scale": _REALS,
        "residual_shift": _REALS,
        "kind": _choice(*KINDS),
    },
    Combine: _COMMON
    | {
        "srcs": _integers(0, MAX_IDS, range(1, MAX_IDS)),
        "scales": _MANY,
        "shifts": _MANY,
        "act": _ACT,
        "kind": _choice(*KINDS),
    },
    MaxPool: _COMMON | _POOL | {"flip": _FLAGS},
    AvgPool: _COMMON | _POOL | {"count_include_pad": _BOOL, "divisor": _integer(0, 2**31 - 1)},
    Flatten: _COMMON | {"src": _ID},
}
_CLASSES = {cls.op: cls for cls in _FIELDS}


def _is_reals(data: Any) -> bool:
    return type(data) is list and len(data) <= MAX_LENGTH and all(type(v) is float for v in data)


# Optional: what 8-bit pixels stand for.
_PIXELS = _plain(
    lambda data: (
        type(data) is dict and set(data) == {"mean", "std"} and all(map(_is_reals, data.values()))
    ),
    "mean and std, a list of reals each",
    lambda data: Pixels(tuple(data["mean"]), tuple(data["std"])),
)
_DIMS = _integers(1, 2**31 - 1, range(1, 4))


def to_json(program: Program) -> tuple[dict[str, Any], Written]:
    """The program as JSON-ready data and the tensors it names."""
    tensors: Written = {}
    steps = []
    for number, step in enumerate(program.steps):
        data: dict[str, Any] = {"op": step.op}
        for name, codec in _FIELDS[type(step)].items():
            value = getattr(step, name)
            if _is_default(step, name, value):
                continue
            data[name] = codec.write(value, f"{number}.{name}", tensors)
        steps.append(data)
    optional: dict[str, Any] = {}
    if program.pixels is not None:
        optional["pixels"] = {"mean": list(program.pixels.mean), "std": list(program.pixels.std)}
    return {
        "format": FORMAT,
        "version": 2 if program.has_levels else 1,
        **optional,
        "input": list(program.input),
        "input_kind": program.input_kind,
        "input_shape": list(program.input_shape),
        "output": program.output,
        "output_shape": list(program.output_shape),
        "steps": steps,
    }, tensors


def _is_default(step: Step, name: str, value: Any) -> bool:
    field = type(step).__dataclass_fields__[name]
    return isinstance(value, str | int | tuple | None) and value == field.default


def from_json(data: Any, tensors: dict[str, NDArray]) -> Program:
    """Inverse of to_json; raises SchemaError, CodingError or ProgramError on anything else."""
    if type(data) is not dict or data.get("format") != FORMAT:
        raise SchemaError("not a packed program")
    if data.get("version") not in VERSIONS or type(data["version"]) is not int:
        raise SchemaError(
            f"program version {_short(data.get('version'))} is unknown to this release, which "
            f"reads versions {' and '.join(map(str, VERSIONS))}; update mpt_fast or pack the model "
            "again"
        )
    left = Tensors(tensors)
    top = {
        "input": _integers(1, 2**31 - 1, range(3, 4)),
        "input_kind": _choice("f32", "f64"),
        "input_shape": _DIMS,
        "output": _ID,
        "output_shape": _DIMS,
    }
    if "pixels" in data:
        top["pixels"] = _PIXELS
    if set(data) != set(top) | {"format", "version", "steps"}:
        raise SchemaError(f"program fields {_short(sorted(data))} are not those of a program")
    fields = {name: codec.read(data[name], name, left) for name, codec in top.items()}
    if type(data["steps"]) is not list:
        raise SchemaError("program steps are not a list")
    steps = [_read_step(number, item, left) for number, item in enumerate(data["steps"])]
    left.finish()
    program = Program(steps=tuple(steps), **fields)
    if program.has_levels and data["version"] == 1:
        raise SchemaError("a program of version 1 has 8-bit activations, which came with version 2")
    return program


def _read_step(number: int, data: Any, tensors: Tensors) -> Step:
    if type(data) is not dict or type(data.get("op")) is not str:
        raise SchemaError(f"step {number} is {_short(data)}, expected a step")
    if data["op"] not in _CLASSES:
        raise SchemaError(f"step {number} has the unknown op {_short(data['op'])}")
    cls = _CLASSES[data["op"]]
    known = _FIELDS[cls]
    unknown = sorted(set(data) - set(known) - {"op"})
    if unknown:
        raise SchemaError(f"step {number} ({cls.op}) has the unknown field {_short(unknown[0])}")
    arguments = {}
    for name, codec in known.items():
        if name not in data:
            continue
        where = f"{number}.{name}"
        try:
            arguments[name] = codec.read(data[name], where, tensors)
        except CodingError as error:
            raise SchemaError(f"{where}: {error}") from None
    missing = [
        name
        for name, field in cls.__dataclass_fields__.items()
        if name in known and name not in arguments and field.default is MISSING
    ]
    if missing:
        raise SchemaError(f"step {number} ({cls.op}) lacks the field {missing[0]!r}")
    return cls(**arguments)
