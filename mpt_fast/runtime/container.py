"""A safetensors file of texts and flat arrays under a digest: written whole, checked when read.

Layout: 8 bytes little-endian header length, JSON header, tensor data without gaps. The metadata
holds texts and "sha256", the hex digest of the file with those 64 digits replaced by zeros. So
every altered byte is found before anything is interpreted, and a file made by hand with a right
digest still has every length and offset checked.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


class FileError(ValueError):
    """A packed file is truncated, altered, of an unknown version or otherwise not usable."""


def compact(data: Mapping[str, Any]) -> str:
    """JSON without spaces; ValueError for NaN and infinity."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def seal(texts: Mapping[str, str], tensors: Mapping[str, NDArray]) -> bytes:
    """The file's content: one-dimensional, non-empty `tensors`, and `texts` (not "sha256")."""
    # Wide types first, so that every tensor is aligned to its own width.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    # The digest comes first, so that no text can be mistaken for it.
    header: dict[str, Any] = {"__metadata__": {"sha256": _ZEROS.decode(), **texts}}
    offset = 0
    for name, tensor in ordered:
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = compact(header).encode()
    text += b" " * (-len(text) % 8)
    little = (t.astype(t.dtype.newbyteorder("<"), copy=False).tobytes() for _, t in ordered)
    content = len(text).to_bytes(8, "little") + text + b"".join(little)
    start = content.index(_FIELD + _ZEROS) + len(_FIELD)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + digest + content[start + 64 :]


def unseal(content: bytes) -> tuple[dict[str, str], dict[str, NDArray]]:
    """Inverse of seal: (texts, tensors); raises FileError for anything else."""
    if len(content) < 8:
        raise FileError(f"{len(content)} bytes are no packed file; it is truncated")
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        raise FileError("the header exceeds the file: not a packed file, or a truncated one")
    header = parse_object(content[8 : 8 + length], "header")
    metadata = header.pop("__metadata__", None)
    if type(metadata) is not dict or "sha256" not in metadata:
        raise FileError("not a packed file: its metadata has no digest")
    if any(type(entry) is not str for entry in metadata.values()):
        raise FileError("metadata entries are not texts")
    _check_digest(content, length, metadata.pop("sha256"))
    return metadata, _tensors(header, content[8 + length :])


def write_whole(content: bytes, path: str | os.PathLike) -> None:
    """Writes a file in one go: afterwards `path` holds the old content or the new, never a part.

    Raises FileError naming the path where the folder cannot be written.
    """
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


def read_whole(path: str | os.PathLike) -> bytes:
    """The file's bytes; FileError naming the path where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None


def parse_object(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object without repeated fields, NaN or infinity; FileError naming `what` otherwise."""

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
