"""Packed files: what is written comes back; anything else is a one-line error, never a crash."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime_cases import every_step, forge, put_together, sign, take_apart

from mpt_fast import runtime
from mpt_fast.kernels import cpu
from mpt_fast.runtime import FileError, Program, Taps, read_program, write_program

Serve = Callable[[bytes | bytearray], None]
Edit = Callable[[dict[str, Any], dict[str, NDArray]], Any]


def assert_equal_programs(a: Program, b: Program) -> None:
    assert a.values() == b.values()
    assert (a.input, a.output, a.input_kind) == (b.input, b.output, b.input_kind)
    assert (a.input_shape, a.output_shape) == (b.input_shape, b.output_shape)
    for first, second in zip(a.steps, b.steps, strict=True):
        assert type(first) is type(second)
        for name in first.__dataclass_fields__:
            assert_equal_fields(getattr(first, name), getattr(second, name))


def assert_equal_fields(a: object, b: object) -> None:
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    elif isinstance(a, Taps):
        assert isinstance(b, Taps)
        for name in ("shape", "indptr", "index", "value"):
            assert_equal_fields(getattr(a, name), getattr(b, name))
    elif isinstance(a, tuple):
        assert isinstance(b, tuple)
        assert len(a) == len(b)
        for first, second in zip(a, b, strict=True):
            assert_equal_fields(first, second)
    else:
        assert a == b


def refused(path: Path) -> str:
    """The message with which reading `path` fails; it is one line that names the file."""
    with pytest.raises(FileError) as error:
        read_program(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.mpt"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Call it with content, and every file holds that: thousands of files in no time."""
    return lambda content: monkeypatch.setattr(Path, "read_bytes", lambda path: bytes(content))


def test_every_step_comes_back(path: Path) -> None:
    program = every_step()
    report = write_program(program, path)
    assert_equal_programs(read_program(path), program)
    assert report == runtime.size_report(program)
    assert report.file_bytes == path.stat().st_size == sum(report.parts.values())
    assert all(report.parts[part] for part in ("masks", "signs", "values", "thresholds", "scales"))


def test_forged_files_are_otherwise_right(path: Path) -> None:
    forge(path, lambda program, tensors: None)
    assert_equal_programs(read_program(path), every_step())


def test_every_altered_byte_is_found(path: Path, memory: Serve) -> None:
    write_program(every_step(), path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    generator = random.Random(0)
    positions = [*range(header), *generator.sample(range(header, len(content)), 200)]
    for position in positions:
        altered = bytearray(content)
        altered[position] ^= generator.randrange(1, 256)
        memory(altered)
        refused(path)


def test_every_single_bit_of_the_digest_and_lengths_is_found(path: Path, memory: Serve) -> None:
    write_program(every_step(), path)
    content = path.read_bytes()
    digest = content.index(b'"sha256":"') + 10
    for position in [*range(8), *range(digest, digest + 64)]:
        for bit in range(8):
            altered = bytearray(content)
            altered[position] ^= 1 << bit
            memory(altered)
            refused(path)


def test_every_truncation_and_extension_is_found(path: Path, memory: Serve) -> None:
    write_program(every_step(), path)
    content = path.read_bytes()
    for length in range(len(content)):
        memory(content[:length])
        refused(path)
    for extra in (b"\0", b" ", content[-1:], content):
        memory(content + extra)
        refused(path)


def test_missing_file_and_folder(path: Path) -> None:
    assert "cannot read" in refused(path)
    path.mkdir()
    assert "cannot read" in refused(path)


def step(number: int, **fields: Any) -> Edit:
    return lambda program, tensors: program["steps"][number].update(fields)


def taps(number: int, **fields: Any) -> Edit:
    return lambda program, tensors: program["steps"][number]["taps"].update(fields)


def drop(number: int, name: str) -> Edit:
    return lambda program, tensors: program["steps"][number].pop(name)


def top(**fields: Any) -> Edit:
    return lambda program, tensors: program.update(fields)


def tensor(name: str, change: Callable[[NDArray], NDArray]) -> Edit:
    return lambda program, tensors: tensors.update({name: change(tensors[name])})


CRAFTED: dict[str, tuple[Edit, str]] = {
    "unknown version": (top(version=3), "version 3 is unknown to this release"),
    "boolean version": (top(version=True), "version True is unknown"),
    "unknown format": (top(format="onnx"), "not a packed program"),
    "unknown field": (top(extra=1), "are not those of a program"),
    "unknown op": (step(3, op="median_pool"), "step 3 has the unknown op 'median_pool'"),
    "op of another type": (step(3, op=3), "step 3 is"),
    "unknown step field": (step(3, dilation=[2, 2]), r"step 3 \(max_pool\) has the unknown field"),
    "missing field": (drop(3, "kernel"), r"step 3 \(max_pool\) lacks the field 'kernel'"),
    "missing threshold": (drop(2, "threshold"), r"lacks the field 'threshold'"),
    "unknown kind": (step(5, kind="f16"), "5.kind is 'f16', expected one of bits, sums, f32, f64"),
    "unknown activation": (step(5, act="gelu"), "5.act is 'gelu'"),
    "unknown input kind": (top(input_kind="bits"), "input_kind is 'bits'"),
    "itself as source": (step(3, src=4), r"step 3 \(max_pool \) reads value 4, not yet computed"),
    "cycle": (step(2, residual=8), "reads value 8, not yet computed"),
    "cycle of a sum": (step(5, srcs=[5, 6]), "reads value 6, not yet computed"),
    "negative source": (step(3, src=-1), "3.src is -1"),
    "fractional source": (step(3, src=2.0), "3.src is 2.0"),
    "no such output": (top(output=11), "output value 11 does not exist"),
    "source of another kind": (step(4, src=5), "not yet computed"),
    "real input to bits": (step(2, src=1, residual=-1), "conv_sign reads bits, not f64"),
    "bits to an average": (step(6, src=4), "avg_pool reads f32 or f64, not bits"),
    "kind and activation": (step(5, kind="bits"), "cannot give kind 'bits' with activation 'relu'"),
    "flip of reals": (step(3, src=1), "max_pool flips bits only"),
    "residual alone": (drop(2, "residual_threshold"), "belongs to no step|come together"),
    "residual of another shape": (step(7, residual=4), "does not match"),
    "sum of other shapes": (step(5, srcs=[5, 3]), "combine adds"),
    "sum of other counts": (step(5, srcs=[5]), "combine has 1 values, 2 scales"),
    "groups": (step(4, groups=3), "do not split into 3 groups"),
    "channels": (step(4, groups=1), "needs 2 channels, value has 4"),
    "zero stride": (step(4, stride=[0, 1]), "4.stride is"),
    "three strides": (step(4, stride=[1, 1, 1]), "4.stride is"),
    "huge padding": (step(4, padding=[2**30, 1]), "4.padding is"),
    "boolean padding": (step(4, padding=[True, 1]), "4.padding is"),
    "kernel too large": (step(3, kernel=[9, 2]), "pool kernel 9 exceeds"),
    "dilation too large": (step(4, dilation=[9, 9]), "kernel span 19 exceeds"),
    "pool padding": (step(3, padding=[2, 0]), "pool padding 2 exceeds half of 2"),
    "huge value": (step(4, padding=[30000, 30000]), "more than 67108864 elements"),
    "input shape": (top(input=[2, 6, 7]), "does not fit|exceeds|match"),
    "output shape": (top(output_shape=[4]), r"output shape \(4,\) does not fit"),
    "input of no size": (top(input=[2, 0, 6]), "input is"),
    "steps of another type": (top(steps={}), "steps are not a list"),
    "a step of another type": (top(steps=[1]), "step 0 is 1"),
    "kept too many": (taps(2, kept=75), "expected 10|bits"),
    "kept negative": (taps(2, kept=-1), "kept is -1"),
    "kept more than the weight": (taps(1, kept=10**9), "has .* values"),
    "weight shape": (taps(2, shape=[4, 4, 3, 2]), "bits|outside|kept"),
    "huge weight shape": (taps(4, shape=[4, 2**30, 2**30, 3]), "too large"),
    "many outputs": (taps(4, shape=[2**29, 2, 3, 3]), "too large|entries are kept|outside"),
    "unknown coding": (taps(2, coding="zip"), "coding is 'zip'"),
    "other coding": (taps(4, coding="holes"), "fit|end"),
    "rice": (taps(4, rice=30), "rice 30"),
    "signs for values": (taps(1, signs=True), "'1.taps.sign' is missing"),
    "taps of another type": (step(4, taps=[1]), "expected the fields of coded taps"),
    "scale of another length": (step(1, scale=5), "has 4 entries, not 5"),
    "scale not finite": (step(7, scale=[1e999, 4]), "Infinity"),
    "scale constant of another length": (step(7, scale=[0.5, 3]), r"scale is float64\[3\]"),
    "scale of huge length": (step(7, scale=[0.5, 2**40]), "has length"),
    "missing tensor": (lambda p, t: t.pop("2.taps.sign"), "tensor '2.taps.sign' is missing"),
    "left-over tensor": (
        lambda p, t: t.update({"9.extra": np.zeros(3, np.uint8)}),
        "tensor '9.extra' belongs to no step",
    ),
    "short signs": (tensor("2.taps.sign", lambda t: t[:-1]), "bytes for .* bits"),
    "signs' padding": (tensor("4.taps.sign", lambda t: t | 0x80), "padding bits are not 0"),
    "mask too full": (tensor("2.taps.high", lambda t: t | 0xFF), "entries are kept"),
    "mask of another dtype": (
        tensor("2.taps.high", lambda t: t.astype(np.int8)),
        "tensor '2.taps.high' is int8",
    ),
    "index out of range": (
        tensor("4.taps.high", lambda t: np.concatenate([np.zeros(9, np.uint8), t])),
        "index .* outside a mask of 72 entries",
    ),
    "values not finite": (tensor("9.taps.value", lambda t: t * np.float32(np.inf)), "NaN or inf"),
    "values too few": (tensor("9.taps.value", lambda t: t[1:]), "has .* values"),
    "threshold too few": (tensor("2.threshold", lambda t: t[1:]), "has 3 entries, not 4"),
    "threshold of reals": (
        tensor("2.threshold", lambda t: t.astype(np.float32)),
        "'2.threshold' is float32",
    ),
    "flip padding": (tensor("2.flip", lambda t: t | 0x10), "padding bits"),
    "not a number": (tensor("1.shift", lambda t: t * np.float32(np.nan)), "NaN or infinite"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused(name: str, path: Path) -> None:
    edit, message = CRAFTED[name]
    forge(path, edit)
    assert re.search(message, refused(path))


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": "F8_E4M3"}, "unknown dtype 'F8_E4M3'"),
    "dtype type": ({"dtype": 3}, "unknown dtype 3"),
    "shape": ({"shape": [1, 4]}, "not one-dimensional"),
    "negative": ({"shape": [-4]}, "not one-dimensional"),
    "offsets": ({"data_offsets": [0, 10**9]}, "does not fit"),
    "three offsets": ({"data_offsets": [0, 1, 2]}, "not one-dimensional"),
    "reversed": ({"data_offsets": [4, 0]}, "does not fit"),
    "extra": ({"note": 1}, "not described by"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_crafted_tensor_headers_are_refused(name: str, path: Path) -> None:
    entry, message = HEADERS[name]
    write_program(every_step(), path)
    path.write_bytes(put_together(*take_apart(path.read_bytes()), **{"2_flip": entry}))
    assert message in refused(path)


def test_overlaps_gaps_and_leftovers_are_refused(path: Path) -> None:
    write_program(every_step(), path)
    program, tensors = take_apart(path.read_bytes())
    content = put_together(program, tensors)
    for extra in (b"\0", b"abc"):
        zeroed = content[:-1] + content[-1:]
        start = zeroed.index(b'"sha256":"') + 10
        path.write_bytes(sign(zeroed[:start] + b"0" * 64 + zeroed[start + 64 :] + extra))
        assert f"{len(extra)} bytes follow the last tensor" in refused(path)
    entry = {"data_offsets": [0, tensors["2.flip"].nbytes]}
    path.write_bytes(put_together(program, tensors, **{"2_flip": entry}))
    assert "overlap or leave a gap" in refused(path)


def signed(header: str) -> bytes:
    raw = header.replace("DIGEST", "0" * 64).encode()
    return sign(len(raw).to_bytes(8, "little") + raw)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are no packed file"),
        (b"\x02\0\0\0\0\0\0\0{}", "no digest"),
        (b"\xff" * 64, "header exceeds the file"),
        (signed("[]"), "header is not a JSON object"),
        (signed("{"), "header is not JSON"),
        (signed("[" * 100_000), "header is not JSON"),
        (signed('{"a":1,"a":2}'), "names a field twice"),
        (signed('{"__metadata__":{"format":"pt"}}'), "no digest"),
        (signed('{"__metadata__":{"mpt_fast":1,"sha256":"DIGEST"}}'), "not texts"),
        (signed('{"__metadata__":{"mpt_fast":"{}","sha256":""}}'), "digest is malformed"),
        (signed('{"__metadata__":{"mpt_fast":"{}","sha256": "DIGEST"}}'), "malformed"),
        (signed('{"__metadata__":{"mpt_fast":"{}","sha256":"DIGEST"}}'), "not a packed program"),
        (signed('{"__metadata__":{"mpt_fast":"[]","sha256":"DIGEST"}}'), "not a JSON object"),
        (signed('{"__metadata__":{"mpt_fast":"NaN","sha256":"DIGEST"}}'), "program holds NaN"),
        (signed('{"__metadata__":{"mpt_fast":"\\ud800","sha256":"DIGEST"}}'), "not JSON"),
    ],
    ids=range(15),
)
def test_files_of_other_kinds_are_refused(content: bytes, message: str, path: Path) -> None:
    path.write_bytes(content)
    assert message in refused(path)


def test_a_pickle_is_refused_and_never_run(path: Path) -> None:
    import pickle

    class Harm:
        def __reduce__(self) -> tuple[Callable, tuple[str]]:
            return (open, (str(path.with_name("harm")),))

    path.write_bytes(pickle.dumps(Harm()))
    refused(path)
    assert not path.with_name("harm").exists()


def leaves(data: Any, trail: tuple = ()) -> Iterator[tuple]:
    """Paths to every value inside JSON data."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*trail, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*trail, key))


WILD = (None, True, -1, 0, 1, 7, 2**31, 2**70, 0.5, -0.0, "", "bits", "sums", [], [0], [1, 1], {})


def refused_or_runs(path: Path) -> bool:
    """True if the file is accepted; then the engine has to take and run its program as well."""
    try:
        program = read_program(path)
    except FileError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return False
    if cpu.available():
        y = runtime.Model(program, threads=1)(np.ones((3, *program.input_shape), np.float32))
        assert y.shape == (3, *program.output_shape)
    return True


def test_wild_values_anywhere_in_the_program(path: Path, memory: Serve) -> None:
    """Each value of the JSON replaced by others, rightly signed: refused, or the program runs."""
    write_program(every_step(), path)
    original, tensors = take_apart(path.read_bytes())
    accepted = 0
    for trail in list(leaves(original)):
        for value in WILD:
            program = copy.deepcopy(original)
            place = program
            for key in trail[:-1]:
                place = place[key]
            place[trail[-1]] = value
            memory(put_together(program, tensors))
            accepted += refused_or_runs(path)
    assert accepted > 10


def test_wild_bytes_anywhere_in_the_tensors(path: Path, memory: Serve) -> None:
    """Each tensor with bytes changed, cut and grown, rightly signed: refused, or it runs."""
    write_program(every_step(), path)
    program, original = take_apart(path.read_bytes())
    generator = np.random.default_rng(0)
    accepted = 0
    for name, data in original.items():
        for turn in range(12):
            raw = data.view(np.uint8).copy()
            raw[generator.integers(raw.size)] ^= generator.integers(1, 256, dtype=np.uint8)
            resized = (data[:-1], np.concatenate([data, data[-1:]]), raw.view(data.dtype))
            memory(put_together(program, original | {name: resized[turn % 3]}))
            accepted += refused_or_runs(path)
    assert accepted > 10


def test_json_stays_plain(path: Path) -> None:
    write_program(every_step(), path)
    program, _ = take_apart(path.read_bytes())
    assert program["version"] == 1
    assert json.loads(json.dumps(program)) == program
