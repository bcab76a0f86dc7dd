"""The packed file: a container (`container`) whose texts are the program and its user's metadata.

"mpt_fast" is the program as JSON (`schema`); "user", where there is any, a JSON object for whoever
saved the file. A file made by hand with a right digest still has every length, index, kind and id
checked before the engine sees it.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from mpt_fast.runtime.coding import CodingError, entropy_bits
from mpt_fast.runtime.container import (
    FileError,
    compact,
    parse_object,
    read_whole,
    seal,
    unseal,
    write_whole,
)
from mpt_fast.runtime.pixels import PixelError
from mpt_fast.runtime.program import Program, ProgramError, Taps
from mpt_fast.runtime.schema import FORMAT, SchemaError, from_json, to_json

APPROXIMATION = "mpt_fast.random_binary"  # the other kind of file in this container
_USER = "user"
_MAX_USER = 1 << 20  # bytes of JSON


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
    texts = {FORMAT: compact(data)}
    if program.metadata:
        texts[_USER] = _user_text(program.metadata)
    return seal(texts, tensors), tensors


def _user_text(metadata: Mapping[str, Any]) -> str:
    try:
        text = compact(dict(metadata))
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
    write_whole(content, path)
    return _report(program, len(content), tensors)


def read_program(path: str | os.PathLike) -> Program:
    """The checked program of a packed file; raises FileError, in one line, for anything else."""
    return parse_program(read_whole(path), path)


def parse_program(content: bytes, path: str | os.PathLike) -> Program:
    """The same of a file's bytes; `path` names it in errors."""
    try:
        return _parse(content)
    except (FileError, SchemaError, CodingError, ProgramError, PixelError) as error:
        raise FileError(f"{path}: {error}") from None


def _parse(content: bytes) -> Program:
    texts, tensors = unseal(content)
    if APPROXIMATION in texts:
        raise FileError(f"an approximation, not a packed network; use {APPROXIMATION}.load")
    if set(texts) - {_USER} != {FORMAT}:
        raise FileError("not a packed file: its metadata has no program; save one with pack")
    data = parse_object(texts[FORMAT].encode(errors="replace"), "program")
    program = from_json(data, tensors)
    if _USER not in texts:
        return program
    user = texts[_USER].encode(errors="replace")
    if len(user) > _MAX_USER:
        raise FileError(f"user metadata has {len(user)} bytes; at most {_MAX_USER} fit a file")
    return replace(program, metadata=parse_object(user, "user metadata"))
