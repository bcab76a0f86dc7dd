"""Programs run: the engine and the PyTorch reference against loops over single numbers."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from runtime_cases import every_step

from mpt_fast import runtime
from mpt_fast.kernels import cpu
from mpt_fast.packed import run_reference
from mpt_fast.runtime import CompiledProgram, InputError
from mpt_fast.runtime.model import all_finite
from mpt_fast.runtime.program import (
    AvgPool,
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    MaxPool,
    Program,
    Step,
)
from mpt_fast.runtime.synthetic import Synthetic

needs_engine = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
ISAS = cpu.engine().isas() if cpu.available() else []


def by_loops(program: Program, image: NDArray) -> NDArray:
    """One image [C, H, W] through `program`, number by number in float64."""
    values = [image.astype(np.float64)]
    for step, result in zip(program.steps, program.values()[1:], strict=True):
        out = np.zeros(result.shape)
        for place in np.ndindex(*result.shape):
            out[place] = one_number(step, place, values)
        values.append(out)
    return values[program.output].reshape(program.output_shape)


def one_number(step: Step, place: tuple[int, ...], values: list[NDArray]) -> float:
    channel = place[0]
    if isinstance(step, Conv | ConvSign | ConvAffine):
        total = convolved(step, place, values[step.src])
        if isinstance(step, Conv):
            return total
        if isinstance(step, ConvSign):
            threshold = step.threshold[channel]
            if step.residual_threshold is not None and values[step.residual][place] > 0:
                threshold = step.residual_threshold[channel]
            passed = total <= threshold if step.flip[channel] else total >= threshold
            return 1.0 if passed else -1.0
        total = step.scale[channel] * total + step.shift[channel]
        if step.residual_scale is not None and step.residual_shift is not None:
            residual = values[step.residual][place]
            total += step.residual_scale[channel] * residual + step.residual_shift[channel]
        return activated(step.act, total)
    if isinstance(step, Combine):
        terms = zip(step.srcs, step.scales, step.shifts, strict=True)
        total = sum(a[channel] * values[s][place] + b[channel] for s, a, b in terms)
        return activated(step.act, total)
    if isinstance(step, MaxPool | AvgPool):
        source = values[step.src][channel]
        top, left = (
            p * s - m for p, s, m in zip(place[1:], step.stride, step.padding, strict=True)
        )
        window = source[max(top, 0) : top + step.kernel[0], max(left, 0) : left + step.kernel[1]]
        if isinstance(step, AvgPool):
            return float(window.sum()) / (step.divisor or window.size)
        lowest = step.flip is not None and step.flip[channel]
        return float(window.min() if lowest else window.max())
    return float(values[step.sources()[0]].reshape(-1)[channel])


def convolved(step: Conv | ConvSign | ConvAffine, place: tuple[int, ...], x: NDArray) -> float:
    channel, row, column = place
    outputs, inputs, height, width = step.taps.shape
    first = channel // (outputs // step.groups) * inputs
    total = 0.0
    for tap in range(step.taps.indptr[channel], step.taps.indptr[channel + 1]):
        i, r, s = np.unravel_index(step.taps.index[tap], (inputs, height, width))
        y = row * step.stride[0] - step.padding[0] + r * step.dilation[0]
        z = column * step.stride[1] - step.padding[1] + s * step.dilation[1]
        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
            total += float(step.taps.value[tap]) * x[first + i, y, z]
    return total


def activated(act: str, value: float) -> float:
    if act == "sign":
        return 1.0 if value >= 0 else -1.0
    return max(value, 0.0) if act == "relu" else value


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=(70, 2, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(images: NDArray) -> NDArray:
    return np.stack([by_loops(every_step(), image) for image in images])


def test_reference_equals_loops(images: NDArray, expected: NDArray) -> None:
    y = run_reference(every_step(), torch.from_numpy(images))
    assert y.dtype == torch.float64
    assert np.allclose(y.flatten(1).numpy(), expected, rtol=1e-12, atol=1e-12)
    assert run_reference(every_step(), torch.zeros(0, 2, 6, 6)).shape == (0, 3, 1, 1)


@needs_engine
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_engine_equals_loops(images: NDArray, expected: NDArray, kind: str, isa: str) -> None:
    compiled = CompiledProgram(every_step(), kind, isa)  # type: ignore[arg-type]  # a Kind
    x = images.astype(np.float64 if kind == "f64" else np.float32)
    y = compiled(x, threads=1).reshape(70, 3)
    assert compiled.isa == isa
    assert np.abs(y - expected).max() <= 1e-6 * np.abs(expected).max()
    assert len(compiled.step_times()) == len(every_step().steps)
    assert compiled.peak_bytes(70) > 0


@needs_engine
@pytest.mark.parametrize("batch", [0, 1, 5, 70])
def test_model_of_a_file(images: NDArray, expected: NDArray, batch: int, tmp_path: Path) -> None:
    runtime.write_program(every_step(), tmp_path / "net.mpt")
    model = runtime.load(tmp_path / "net.mpt", threads=2)
    for x in (images[:batch], images[:batch].astype(np.float64)):
        y = model(x)
        assert y.dtype == np.float32
        assert y.shape == (x.shape[0], 3)
    assert np.allclose(model(images[:batch]), expected[:batch], rtol=1e-5, atol=1e-5)
    assert (model.input_shape, model.output_shape) == ((2, 6, 6), (3,))
    assert model.size_report().file_bytes == (tmp_path / "net.mpt").stat().st_size
    rows = model.layers()
    assert [row["op"] for row in rows] == [step.op for step in every_step().steps]
    assert rows[1]["name"] == "stem"
    assert rows[1]["kept"] == 57
    assert rows[1]["density"] == pytest.approx(57 / 72)
    assert rows[8]["kept"] is None


@needs_engine
def test_images_in_any_memory_order(images: NDArray, expected: NDArray) -> None:
    model = runtime.Model(every_step())
    strided = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not strided.flags.c_contiguous
    assert np.array_equal(model(strided), model(images))
    assert np.array_equal(model(images[::-1]), model(images)[::-1])


@needs_engine
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 2, 6, 5), np.float32), r"input has shape \[1, 2, 6, 5\]; .* \[N, 2, 6, 6\]"),
        (np.zeros((2, 6, 6), np.float32), r"takes \[N, 2, 6, 6\]"),
        (np.zeros((1, 2, 6, 6), np.int64), "input is a int64 array; give a float32"),
        (np.zeros((1, 2, 6, 6), np.float16), "float16"),
        (np.zeros((1, 2, 6, 6), object), "object"),
        ([[1.0]], "input is list"),
        (torch.zeros(1, 2, 6, 6), "input is Tensor"),
        (np.full((1, 2, 6, 6), np.nan, np.float32), "NaN or infinite"),
        (np.full((1, 2, 6, 6), -np.inf), "NaN or infinite"),
    ],
    ids=range(9),
)
def test_bad_inputs(x: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        runtime.Model(every_step())(x)  # type: ignore[arg-type]  # on purpose
    assert "\n" not in str(error.value)


@needs_engine
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa in ("avx512", "avx2")])
@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("batch", [1, 20])
def test_code_gives_what_lists_give(levels: bool, batch: int, isa: str) -> None:
    net = Synthetic((3, 7, 7))
    if levels:
        last = net.levels(net.combine(0, "i8"), 30, 3, 0.5)
        last = net.levels(last, 30, 3, 0.3, residual=last)
        net.combine(net.pool(last, 2), "f32")
    else:
        last = net.real(0, 30, 3, 0.5)
        last = net.real(last, 30, 3, 0.3, binary=False, act="relu", residual=last)
        net.pool(net.pool(last, 2), 3, average=True)
    program = net.program()
    with_code, without = (CompiledProgram(program, "f32", isa, code=code) for code in (True, False))
    assert with_code.code
    assert not without.code
    x = 20 * np.random.default_rng(2).normal(size=(batch, 3, 7, 7)).astype(np.float32)
    found, expected = with_code(x, threads=1), without(x, threads=1)
    np.testing.assert_allclose(found, expected, rtol=0 if levels else 1e-5, atol=0)


@needs_engine
def test_models_without_code(tmp_path: Path) -> None:
    net = Synthetic((3, 6, 6))
    net.real(0, 4, 3, 0.5)
    path = tmp_path / "net.mpt"
    runtime.write_program(net.program(), path)
    for model in (runtime.load(path, code=False), runtime.Model(net.program(), code=False)):
        assert not model.compiled("f32").code
        assert not model.compiled("f64").code
    kinds = {kind: runtime.load(path).compiled(kind).code for kind in ("f32", "f64")}
    assert kinds == {"f32": CompiledProgram(net.program(), "f32").code, "f64": False}


def test_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.mpt"
    runtime.write_program(every_step(), path)
    with pytest.raises(InputError, match="'reference' needs PyTorch"):
        runtime.load(path, "reference")
    with pytest.raises(InputError, match="unknown backend 'cuda'"):
        runtime.load(path, "cuda")
    with pytest.raises(InputError, match="threads=0"):
        runtime.load(path, threads=0)
    monkeypatch.setattr(cpu, "_module", None)
    with pytest.raises(cpu.EngineMissing, match="not installed"):
        runtime.load(path)


def test_torch_is_never_imported(tmp_path: Path) -> None:
    runtime.write_program(every_step(), tmp_path / "net.mpt")
    script = (
        "import sys, numpy as np\n"
        "sys.modules['torch'] = None\n"  # importing it raises
        "from mpt_fast import runtime\n"
        "from mpt_fast.kernels import cpu\n"
        "program = runtime.read_program(sys.argv[1])\n"
        "runtime.size_report(program)\n"
        "if cpu.available():\n"
        "    assert runtime.load(sys.argv[1])(np.ones((3, 2, 6, 6), np.float32)).shape == (3, 3)\n"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path / "net.mpt")], check=True, timeout=60
    )


def test_a_loaded_model_keeps_what_it_runs(tmp_path: Path) -> None:
    """No taps beside the engine's; asked for, they come from the bytes that were loaded."""

    def taps() -> int:
        gc.collect()
        return sum(type(thing) is runtime.Taps for thing in gc.get_objects())

    path = tmp_path / "network.mpt"
    runtime.write_program(every_step(), path)
    before = taps()
    model = runtime.load(path)
    assert taps() == before
    path.unlink()
    held = model.program
    assert taps() > before
    expected = every_step()
    for step, other in zip(held.steps, expected.steps, strict=True):
        if hasattr(other, "taps"):
            np.testing.assert_array_equal(step.taps.index, other.taps.index)
    assert model.size_report().kept == runtime.Model(expected).size_report().kept
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape))
    np.testing.assert_array_equal(model(x), runtime.Model(expected)(x))  # compiled for float64


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_all_finite(kind: Any) -> None:
    x = np.full((3, 5, 7), np.finfo(kind).max, kind)
    x[0] = -x[0]
    x[1, 2, 3], x[1, 2, 4] = 0, np.finfo(kind).smallest_subnormal
    assert all_finite(x)
    assert all_finite(x[:, ::2])
    assert all_finite(x[:0])
    for special in (np.nan, np.inf, -np.inf):
        for place in ((0, 0, 0), (1, 2, 3), (2, 4, 6)):
            y = x.copy()
            y[place] = special
            assert not all_finite(y)
            assert not all_finite(y[:, ::2])
