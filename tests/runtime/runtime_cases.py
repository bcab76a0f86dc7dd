"""Shared by the runtime tests: a program with every step and coding, and files made by hand."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpt_fast.runtime import Program, Taps, write_program
from mpt_fast.runtime.program import (
    AvgPool,
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    Flatten,
    MaxPool,
)

_CODES = {np.uint8: "U8", np.int8: "I8", np.int16: "I16", np.int32: "I32", np.float32: "F32"}
_CODES |= {np.float64: "F64", np.int64: "I64"}


def random_taps(
    shape: tuple[int, int, int, int], density: float, dtype: type = np.int8, seed: int = 0
) -> Taps:
    """Kept taps of a weight of `shape`: +-1, or floats of `dtype`."""
    rng = np.random.default_rng(seed)
    kept = rng.random((shape[0], shape[1] * shape[2] * shape[3])) < density
    rows, index = np.nonzero(kept)
    indptr = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
    value = rng.normal(size=rows.size) if dtype != np.int8 else rng.choice([-1, 1], rows.size)
    return Taps(shape, indptr, index.astype(np.int32), value.astype(dtype))


def vector(size: int, seed: int) -> NDArray[np.float64]:
    """Random float64 [size] that float32 holds exactly."""
    return np.random.default_rng(seed).normal(size=size).astype(np.float32).astype(np.float64)


def every_step() -> Program:
    """A small network in which each step, kind, coding and optional field occurs."""
    ones, zeros = np.ones(4), np.zeros(4)
    steps = (
        Combine(srcs=(0,), scales=(np.ones(2),), shifts=(np.zeros(2),), kind="f64", name="input"),
        ConvAffine(
            src=1,
            taps=random_taps((4, 2, 3, 3), 0.8, np.float64),
            padding=(1, 1),
            scale=vector(4, 1) / 3,
            shift=vector(4, 2),
            act="sign",
            name="stem",
        ),
        ConvSign(
            src=2,
            taps=random_taps((4, 4, 3, 3), 0.5),
            padding=(1, 1),
            threshold=np.array([-1, 0, 200, -70_000], np.int32),
            flip=np.array([False, True, False, True]),
            residual=2,
            residual_threshold=np.array([0, 1, 3, -2], np.int32),
            name="block",
            covers="conv + bn + add + sign",
        ),
        MaxPool(src=3, kernel=(2, 2), stride=(2, 2), flip=np.array([True, False, False, False])),
        Conv(src=4, taps=random_taps((4, 2, 3, 3), 0.1, seed=3), padding=(1, 1), groups=2),
        Combine(srcs=(5, 4), scales=(vector(4, 4), ones), shifts=(vector(4, 5), zeros), act="relu"),
        AvgPool(src=6, kernel=(2, 2), stride=(1, 1), count_include_pad=False, divisor=3),
        ConvAffine(
            src=7,
            taps=random_taps((4, 4, 1, 1), 0.95, seed=4),
            scale=np.full(4, 0.25),
            shift=vector(4, 6),
            residual=7,
            residual_scale=ones,
            residual_shift=zeros,
        ),
        Flatten(src=8),
        ConvAffine(
            src=9,
            taps=random_taps((3, 16, 1, 1), 0.4, np.float32),
            scale=np.ones(3),
            shift=np.zeros(3),
            name="head",
        ),
    )
    return Program(
        input=(2, 6, 6), steps=steps, output=10, input_shape=(2, 6, 6), output_shape=(3,)
    )


def take_apart(content: bytes) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Program JSON and tensors of a packed file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    program = json.loads(header.pop("__metadata__")["mpt_fast"])
    codes = {code: dtype for dtype, code in _CODES.items()}
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(content[start:end], codes[entry["dtype"]])
    return program, tensors


def put_together(program: Any, tensors: dict[str, NDArray], **entries: Any) -> bytes:
    """A file with a right digest, whatever it holds; `entries` replace tensors' descriptions."""
    text = program if isinstance(program, str) else json.dumps(program)
    header: dict[str, Any] = {"__metadata__": {"mpt_fast": text, "sha256": "0" * 64}}
    data = b""
    for name, tensor in tensors.items():
        end = len(data) + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype.type],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), end],
        } | entries.get(name.replace(".", "_"), {})
        data += tensor.tobytes()
    raw = json.dumps(header, separators=(",", ":")).encode()
    return sign(len(raw).to_bytes(8, "little") + raw + data)


def sign(content: bytes) -> bytes:
    """`content` with the digest of itself in place of the 64 zeros."""
    digest = hashlib.sha256(content).hexdigest().encode()
    return content.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest)


def forge(path: Path, edit: Callable[[dict[str, Any], dict[str, NDArray]], Any]) -> None:
    """Writes `every_step` to `path` as `edit` leaves its JSON and tensors, rightly signed."""
    write_program(every_step(), path)
    program, tensors = take_apart(path.read_bytes())
    edit(program, tensors)
    path.write_bytes(put_together(program, tensors))
