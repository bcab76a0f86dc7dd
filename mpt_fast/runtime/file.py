"""The packed file: safetensors whose metadata holds the program and a digest of the whole file.

Layout: 8 bytes little-endian header length, JSON header, tensor data without gaps. The metadata
has "mpt_fast", the program as JSON (`schema`), "sha256", the hex digest of the file with those 64
digits replaced by zeros, and, where there is any, "user", a JSON object for whoever saved the file.
So every altered byte is found before anything is interpreted, and a file made by hand with a right
digest still has every length, offset, index, kind and id checked before the engine sees it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpt_fast.runtime.coding import CodingError, entropy_bits
from mpt_fast.runtime.program import Program, ProgramError, Taps
from mpt_fast.runtime.schema import FORMAT, SchemaError, from_json, to_json

_DTYPES: dict[str, type] = {
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "F32": np.float32,
    "F64": np.float64,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_ZEROS = b"0" * 64
_FIELD = b'"sha256":"'
_USER = "user"
_MAX_USER = 1 << 20  # bytes of JSON


class FileError(ValueError):
    """A packed file is truncated, altered, of an unknown version or otherwise not usable."""


@dataclass(frozen=True)
class SizeReport:
    """Where the bytes of a packed network go, against what they could be.

    `bound_bytes` is the sum over weights of n*H(kept/n) mask bits and one bit per kept sign (or
    the stored width per kept value); `fp32_bytes` is 4 bytes for each of the `weights`.
    """

    file_bytes: int
    parts: dict[str, int]
    bound_bytes: float
    fp32_bytes: int
    weights: int
    kept: int

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {**vars(self), "parts": dict(self.parts)}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size}" for name, size in self.parts.items() if size)
        return (
            f"{self.file_bytes} bytes ({parts}); bound {self.bound_bytes:.0f}, "
            f"fp32 {self.fp32_bytes}; {self.kept} of {self.weights} weights kept"
        )


def _serialise(program: Program) -> tuple[bytes, dict[str, NDArray]]:
    data, tensors = to_json(program)
    # Wide types first, so that every tensor is aligned to its own width.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    metadata = {FORMAT: _compact(data), "sha256": _ZEROS.decode()}
    if program.metadata:
        metadata[_USER] = _user_text(program.metadata)
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in ordered:
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = _compact(header).encode()
    text += b" " * (-len(text) % 8)
    little = (t.astype(t.dtype.newbyteorder("<"), copy=False).tobytes() for _, t in ordered)
    content = len(text).to_bytes(8, "little") + text + b"".join(little)
    start = content.index(_FIELD + _ZEROS) + len(_FIELD)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + digest + content[start + 64 :], tensors


def _compact(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _user_text(metadata: Mapping[str, Any]) -> str:
    try:
        text = _compact(dict(metadata))
        if json.loads(text) != metadata:
            raise ValueError("its keys must be texts and its values lists, not tuples")
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(f"metadata is not plain JSON data ({error})") from None
    if len(text) > _MAX_USER:
        raise FileError(f"metadata has {len(text)} bytes of JSON; at most {_MAX_USER} fit a file")
    return text


def size_report(program: Program) -> SizeReport:
    """Sizes of the file that `program` makes."""
    content, tensors = _serialise(program)
    return _report(program, len(content), tensors)


def _report(program: Program, file_bytes: int, tensors: dict[str, NDArray]) -> SizeReport:
    parts = {"masks": 0, "signs": 0, "values": 0, "thresholds": 0, "scales": 0}
    fields = {
        "high": "masks",
        "low": "masks",
        "sign": "signs",
        "value": "values",
        "threshold": "thresholds",
        "residual_threshold": "thresholds",
        "flip": "thresholds",
    }
    for name, tensor in tensors.items():
        parts[fields.get(name.rsplit(".", 1)[1], "scales")] += tensor.nbytes
    parts["metadata"] = len(_user_text(program.metadata)) if program.metadata else 0
    parts["header"] = file_bytes - sum(parts.values())
    bits = sum(
        entropy_bits(taps.weights, taps.kept)
        + taps.kept * (1 if taps.binary else 8 * taps.value.dtype.itemsize)
        for taps in _all_taps(program)
    )
    weights = sum(taps.weights for taps in _all_taps(program))
    return SizeReport(
        file_bytes=file_bytes,
        parts=parts,
        bound_bytes=bits / 8,
        fp32_bytes=4 * weights,
        weights=weights,
        kept=sum(taps.kept for taps in _all_taps(program)),
    )


def _all_taps(program: Program) -> Iterable[Taps]:
    return (step.taps for step in program.steps if hasattr(step, "taps"))


def write_program(program: Program, path: str | os.PathLike) -> SizeReport:
    """Writes `program` to `path` in one go: the old file or the new one, never a part of it.

    Raises FileError naming the path where the folder cannot be written.
    """
    content, tensors = _serialise(program)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as stream:
            try:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror}; choose another path") from None
    return _report(program, len(content), tensors)


def read_program(path: str | os.PathLike) -> Program:
    """The checked program of a packed file; raises FileError, in one line, for anything else."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None
    try:
        return _parse(content)
    except (FileError, SchemaError, CodingError, ProgramError) as error:
        raise FileError(f"{path}: {error}") from None


def _parse(content: bytes) -> Program:
    if len(content) < 8:
        raise FileError(f"{len(content)} bytes are no packed file; it is truncated")
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        raise FileError("the header exceeds the file: not a packed file, or a truncated one")
    header = _object(content[8 : 8 + length], "header")
    metadata = header.pop("__metadata__", None)
    if type(metadata) is not dict or set(metadata) - {_USER} != {FORMAT, "sha256"}:
        raise FileError("not a packed file: its metadata has no program; save one with pack")
    if any(type(entry) is not str for entry in metadata.values()):
        raise FileError("metadata entries are not texts")
    _check_digest(content, length, metadata["sha256"])
    tensors = _tensors(header, content[8 + length :])
    program = from_json(_object(metadata[FORMAT].encode(errors="replace"), "program"), tensors)
    if _USER not in metadata:
        return program
    user = metadata[_USER].encode(errors="replace")
    if len(user) > _MAX_USER:
        raise FileError(f"user metadata has {len(user)} bytes; at most {_MAX_USER} fit a file")
    return replace(program, metadata=_object(user, "user metadata"))


def _object(text: bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise FileError(f"{what} names a field twice")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise FileError(f"{what} holds {constant}")

    try:
        data = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except FileError:
        raise
    except (ValueError, RecursionError):
        raise FileError(f"{what} is not JSON; the file is altered or truncated") from None
    if type(data) is not dict:
        raise FileError(f"{what} is not a JSON object")
    return data


def _check_digest(content: bytes, length: int, digest: str) -> None:
    field = _FIELD + digest.encode(errors="replace") + b'"'
    if len(field) != len(_FIELD) + 65 or content.count(field, 8, 8 + length) != 1:
        raise FileError("the digest is malformed; the file is altered, copy or save it again")
    start = content.index(field) + len(_FIELD)
    hasher = hashlib.sha256(content[:start])
    hasher.update(_ZEROS)
    hasher.update(memoryview(content)[start + 64 :])
    if hasher.hexdigest() != digest:
        raise FileError("the digest does not match; the file is altered, copy or save it again")


def _tensors(header: dict[str, Any], data: bytes) -> dict[str, NDArray]:
    tensors: dict[str, NDArray] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise FileError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(dtype) is not str or dtype not in _DTYPES:
            raise FileError(f"tensor {name!r} has the unknown dtype {dtype!r}")
        numbers: list[Any] = [*shape, *offsets] if type(shape) is type(offsets) is list else []
        if len(numbers) != 3 or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise FileError(f"tensor {name!r} is not one-dimensional with two offsets")
        count, start, end = numbers
        width = np.dtype(_DTYPES[dtype]).itemsize
        if count < 1 or end - start != count * width or end > len(data):
            raise FileError(f"tensor {name!r} does not fit its offsets or the file")
        spans.append((start, end))
        little = np.dtype(_DTYPES[dtype]).newbyteorder("<")
        raw = np.frombuffer(data, little, count, start)
        tensors[name] = raw.astype(_DTYPES[dtype])
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise FileError("tensors overlap or leave a gap")
        position = end
    if position != len(data):
        raise FileError(f"{len(data) - position} bytes follow the last tensor")
    return tensors
