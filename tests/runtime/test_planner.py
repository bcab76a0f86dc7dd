"""The cost model's counts, fit and cache, and the choice among ways to run a program."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpt_fast.kernels import cpu
from mpt_fast.runtime import Program, Step, Value, calibration, kernels, planner
from mpt_fast.runtime.calibration import Point
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.kernels import BIT_CODE, CODE, IMAGES, KERNELS, Block, Kernel
from mpt_fast.runtime.synthetic import Synthetic

needs_engine = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
# Code is made for these instruction sets.
CODED = cpu.available() and not {"avx512", "avx2"}.isdisjoint(cpu.engine().isas())
BIT_CODED = CODED and "avx512" in cpu.engine().isas()
LAYOUTS = (IMAGES, *((CODE,) if CODED else ()), *((BIT_CODE,) if BIT_CODED else ()))
BLOCK = Block(lanes=256, groups=16, words=4)


def network() -> Program:
    net = Synthetic((8, 6, 6))
    bits = net.combine(0, "bits")
    net.combine(net.sums(net.pool(net.sign(bits, 16, 3, 0.5), 2), 4, 1, 0.5), "f32")
    return net.program()


def reals() -> Program:
    net = Synthetic((3, 6, 6))
    net.real(net.pool(net.real(0, 8, 3, 0.5), 2), 4, 3, 0.5)
    return net.program()


def counts(
    step: Step, values: list[Value], block: Block = BLOCK, layout: str = IMAGES
) -> dict[str, float]:
    sources, result = [values[s] for s in step.sources()], values[-1]
    (kernel,) = kernels.kernels_for(step, sources, result, layout)
    return dict(zip(kernel.terms, kernel.count(step, sources, result, block), strict=True))


def test_counts_of_a_bit_sliced_layer_are_those_of_its_loops() -> None:
    net = Synthetic((8, 6, 6))
    bits = net.combine(0, "bits")
    net.sign(bits, 16, 3, 0.5)
    step = net.steps[-1]
    kept = step.taps.kept  # type: ignore[attr-defined]
    found = counts(step, net.values)
    assert (found["call"], found["vector"], found["tap"]) == (1, 16 * 36, kept * 36)
    assert found["vector chosen by a residual"] == found["word sorted by stride"] == 0
    # 64 lanes are one word: a row of six pixels fills two vectors of four.
    narrow = counts(step, net.values, Block(64, 1, 4))
    assert (narrow["vector"], narrow["tap"]) == (16 * 6 * 2, kept * 6 * 2)
    net.sign(bits, 16, 3, 0.5, stride=2, residual=-1)
    assert counts(net.steps[-1], net.values, Block(64, 1, 4))["word sorted by stride"] == 8 * 36


def test_counts_of_a_real_layer_and_of_pools() -> None:
    net = Synthetic((8, 6, 6))
    net.real(0, 4, 3, 0.5)
    kept = net.steps[-1].taps.kept  # type: ignore[attr-defined]
    found = counts(net.steps[-1], net.values)
    assert (found["tap"], found["value"]) == (kept * 36 * 16, 4 * 36 * 16)
    assert found["tile"] == 4 * 6 * 2 * 16
    net.pool(0, 2, average=True)
    assert counts(net.steps[-1], net.values) == {
        "call": 1, "value": 8 * 9 * 16, "value read": 8 * 36 * 16,
    }  # fmt: skip


def test_counts_of_layers_that_run_as_code() -> None:
    block = Block(lanes=16, groups=1, words=8)
    net = Synthetic((8, 6, 6))
    net.real(0, 30, 3, 0.5)
    kept = net.steps[-1].taps.kept  # type: ignore[attr-defined]
    found = counts(net.steps[-1], net.values, block, CODE)
    assert (found["call"], found["tap"], found["value"]) == (1, kept * 36, 30 * 36)
    assert found["tap's code fetched"] == kept  # once: it stays near
    assert found["value kept between blocks"] == found["tap's code waited for"] == 0
    # 30 outputs are two parts, of which every input is likely to have a tap.
    assert found["input vector loaded"] == pytest.approx(2 * 8 * 9 * 36, rel=0.01)
    net = Synthetic((512, 1, 1))
    net.real(0, 512, 1, 0.5)
    found = counts(net.steps[-1], net.values, block, CODE)
    assert 0 < found["tap's code waited for"] < found["tap's code fetched"]
    assert found["value kept between blocks"] > 0  # more taps than a function takes
    net = Synthetic((96, 40, 40))
    net.real(0, 96, 3, 0.5, residual=net.real(0, 96, 3, 0.5))
    found = counts(net.steps[-1], net.values, block, CODE)
    kept = net.steps[-1].taps.kept  # type: ignore[attr-defined]
    assert found["tap's code fetched"] > 2 * kept  # of 40 rows in bands
    assert found["value added to"] == found["value"]
    net.real(0, 30, 3, 0)
    assert counts(net.steps[-1], net.values, block, CODE)["input vector loaded"] == 0
    # 32 levels lie in a vector.
    net = Synthetic((8, 6, 6))
    net.levels(net.combine(0, "i8"), 30, 3, 0.5)
    assert counts(net.steps[-1], net.values, Block(32, 2, 8), CODE)["value"] == 30 * 36
    net.pool(2, 2)
    assert counts(net.steps[-1], net.values, block, CODE) == {
        "call": 1, "value": 30 * 9, "value read": 30 * 9 * 4
    }  # fmt: skip


@needs_engine
def test_counts_of_layers_of_bits_that_run_as_code() -> None:
    net = Synthetic((64, 6, 6))
    bits = net.combine(0, "bits")
    net.sign(bits, 32, 3, 0.5, residual=net.sign(bits, 32, 3, 0.5))
    step = net.steps[-1]
    kept = step.taps.kept  # type: ignore[attr-defined]
    found = counts(step, net.values, Block(512, 32, 8), BIT_CODE)
    assert (found["call"], found["vector"], found["tap"]) == (1, 32 * 36, kept * 36)
    assert found["input vector read"] == 64 * 36
    assert found["vector chosen by a residual"] == 32 * 36
    assert found["vector by lists"] == found["tap by lists"] == 0
    # The last images of a batch may fill a narrower block.
    narrow = counts(step, net.values, Block(64, 1, 8), BIT_CODE)
    lists = counts(step, net.values, Block(64, 1, 8), IMAGES)
    assert narrow["vector"] == narrow["tap"] == narrow["input vector read"] == 0
    assert narrow["vector by lists"] == lists["vector"]
    assert narrow["tap by lists"] == lists["tap"]
    # Layers of many taps, of many in one channel, or whose channels share many keep lists.
    layers = ((32, 3, 0.6, True), (64, 3, 0.95, False), (1, 9, 1.0, False), (32, 3, 1.0, False))
    for outputs, size, density, few in layers:
        net.sign(bits, outputs, size, density)
        (kernel,) = kernels.kernels_for(net.steps[-1], [net.values[bits]], net.values[-1], BIT_CODE)
        assert kernel.name == ("bit-sliced code" if few else "bit-sliced")


@pytest.mark.parametrize("seed", range(20))
def test_nonnegative_least_squares_meets_its_optimality_conditions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(12, 4)) * 10.0 ** rng.integers(-6, 6, 4)
    target = rng.normal(size=12)
    x = np.array(calibration.nonnegative(matrix, target))
    gradient = matrix.T @ (matrix @ x - target) / np.linalg.norm(matrix, axis=0)
    assert (x >= 0).all()
    assert (gradient >= -1e-9).all()
    assert np.abs(gradient[x > 0]).max(initial=0) < 1e-9


def test_fit_finds_the_coefficients_behind_exact_times() -> None:
    rng = np.random.default_rng(0)
    truth = {k.case: rng.uniform(1e-9, 1e-8, len(k.terms)) for k in KERNELS}
    measured = [
        Point(case, tuple(row), float(row @ coefficients))
        for case, coefficients in truth.items()
        for row in rng.uniform(100, 10_000, (12, len(coefficients)))
    ]
    fitted = calibration.fit(measured)
    for case, coefficients in truth.items():
        assert fitted[case] == pytest.approx(coefficients, rel=1e-6)


@needs_engine
@pytest.mark.parametrize("batch", [1, 64, 65, 256, 700])
def test_blocks_are_those_the_engine_cuts(batch: int) -> None:
    compiled = CompiledProgram(network(), "f32")
    blocks = calibration.blocks(compiled, batch)
    done = 0
    for block in blocks:
        assert block.lanes == compiled.block_lanes(batch - done)
        assert block.groups == -(-min(block.lanes, batch - done) // 16)
        done += block.lanes
    assert done >= batch > done - blocks[-1].lanes


@needs_engine
@pytest.mark.parametrize("layout", LAYOUTS)
def test_calibration_measures_every_kernel(layout: str) -> None:
    isa = cpu.engine().isas()[0]
    points = calibration.measure(isa, 1, layout)
    for kernel in calibration.kernels_of(layout):
        own = np.array([point.counts for point in points if point.case == kernel.case])
        assert len(own) >= 4, kernel.case
        # A term that no synthetic layer has would get coefficient 0. With vectors of one word
        # nothing is ever sorted by its stride.
        unused = {t for t, column in zip(kernel.terms, own.T, strict=True) if not column.any()}
        words = cpu.engine().vector_words(isa)
        assert unused <= ({"word sorted by stride"} if words == 1 else set()), kernel.case
    assert all(point.seconds >= 0 for point in points)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """Calls of `measure`, which gives the same points at once; the cache is tmp_path."""
    calls: list[tuple[str, int]] = []

    def measure(isa: str, threads: int, layout: str) -> list[Point]:
        calls.append((isa, threads))
        known = calibration.kernels_of(layout)
        return [Point(k.case, (1.0,) * len(k.terms), 1e-3) for k in known]

    monkeypatch.setattr(calibration, "measure", measure)
    monkeypatch.setenv(calibration.CACHE, str(tmp_path))
    return calls


def fresh(isa: str = "plain", threads: int = 1, layout: str = IMAGES) -> calibration.Costs:
    """As a new process would ask."""
    calibration.costs.cache_clear()
    try:
        return calibration.costs(isa, threads, layout)
    finally:
        calibration.costs.cache_clear()


@needs_engine
def test_costs_are_measured_once_per_key(counted: list[tuple[str, int]], tmp_path: Path) -> None:
    first = fresh()
    assert fresh() == first
    assert counted == [("plain", 1)]
    fresh(threads=2)
    assert counted == [("plain", 1), ("plain", 2)]
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert set(fresh(layout=CODE)) == {k.case for k in KERNELS if k.layout == CODE}
    assert len(list(tmp_path.iterdir())) == 3
    key = json.loads(files[0].read_text())["key"]
    parts = {"processor", "instruction_sets", "isa", "engine", "threads", "layout", "terms"}
    assert parts <= set(key)
    assert key["engine"] == cpu.engine().source_digest


def truncated(text: str) -> str:
    return text[: len(text) // 2]


def of_another_engine(text: str) -> str:
    data = json.loads(text)
    data["key"]["engine"] = "0" * 16
    return json.dumps(data)


def negative(text: str) -> str:
    data = json.loads(text)
    data["costs"]["flatten"] = [-1.0]
    return json.dumps(data)


def not_a_number(text: str) -> str:
    return text.replace("1.0", "NaN").replace("0.001", "NaN")


def of_other_kernels(text: str) -> str:
    data = json.loads(text)
    data["costs"]["popcount"] = data["costs"].pop("flatten")
    return json.dumps(data)


def a_list(text: str) -> str:
    return "[1, 2]"


@needs_engine
@pytest.mark.parametrize(
    "damage", [truncated, of_another_engine, negative, not_a_number, of_other_kernels, a_list]
)
def test_a_damaged_or_foreign_file_is_measured_anew(
    counted: list[tuple[str, int]], tmp_path: Path, damage: Any
) -> None:
    first = fresh()
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    assert damage(whole) != whole
    file.write_text(damage(whole))
    assert fresh() == first
    assert len(counted) == 2
    assert file.read_text() == whole


@needs_engine
def test_without_a_cache_nothing_is_written(
    counted: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(calibration.CACHE, "")
    fresh()
    fresh()
    assert len(counted) == 2
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv(calibration.CACHE)
    fresh()
    assert [path.parent for path in tmp_path.rglob("costs-*.json")] == [tmp_path / "mpt_fast"]


@needs_engine
@pytest.mark.skipif(os.name != "posix", reason="uses a file where a folder should be")
def test_a_cache_that_cannot_be_written_costs_only_time(
    counted: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(calibration.CACHE, str(tmp_path / "file" / "folder"))
    assert fresh() == fresh()
    assert len(counted) == 2


def steps_like(name: str, case: str, layout: str) -> Kernel:
    """A kernel for every step whose only cost is one call."""
    return Kernel(name, case, layout, lambda *_: True, ("call",), lambda *_: (1.0,), "test")


@pytest.mark.parametrize("prices", list(itertools.permutations((1.0, 2.0, 3.0))))
def test_the_cheapest_way_wins(
    monkeypatch: pytest.MonkeyPatch, prices: tuple[float, float, float]
) -> None:
    table = (
        steps_like("a", "a", "images"),
        steps_like("b", "b", "images"),
        steps_like("c", "c", "pixels"),
    )
    monkeypatch.setattr(kernels, "KERNELS", table)
    monkeypatch.setattr(planner, "LAYOUTS", ("images", "pixels"))
    program = network()
    costs = {case: (price,) for case, price in zip("abc", prices, strict=True)}
    blocks = {"images": [BLOCK], "pixels": [BLOCK, BLOCK]}  # pixels in two blocks: twice the cost
    found = planner.ways(program, blocks, costs)
    images = min(prices[0], prices[1])
    assert [way.layout for way in found] == (
        ["images", "pixels"] if images <= 2 * prices[2] else ["pixels", "images"]
    )
    for way in found:
        price = images if way.layout == "images" else 2 * prices[2]
        assert way.seconds == pytest.approx(price * len(program.steps))
        chosen = "c" if way.layout == "pixels" else "a" if prices[0] < prices[1] else "b"
        assert {step.kernel for step in way.steps} == {chosen}
    only = planner.ways(program, {"images": [BLOCK]}, costs)
    assert [way.layout for way in only] == ["images"]


def test_a_step_without_a_known_cost_does_not_make_a_way_cheap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blind = Kernel("c", "c", "pixels", lambda step, *_: step.op == "combine", ("call",),
                   lambda *_: (1.0,), "test")  # fmt: skip
    monkeypatch.setattr(kernels, "KERNELS", (steps_like("a", "a", "images"), blind))
    monkeypatch.setattr(planner, "LAYOUTS", ("images", "pixels"))
    found = planner.ways(
        network(), {"images": [BLOCK], "pixels": [BLOCK]}, {"a": (5.0,), "c": (1.0,)}
    )
    assert [(way.layout, way.complete) for way in found] == [("images", True), ("pixels", False)]
    assert found[1].seconds < found[0].seconds


@needs_engine
@pytest.mark.parametrize("code", [True, False])
def test_a_program_that_makes_code_is_planned_with_its_kernels(code: bool) -> None:
    compiled = CompiledProgram(reals(), "f32", code=code)
    layout = calibration.layout_of(compiled, 20)
    assert layout == (CODE if compiled.code else IMAGES)
    costs = {k.case: (1.0,) * len(k.terms) for k in calibration.kernels_of(layout)}
    (way,) = planner.ways(reals(), {layout: calibration.blocks(compiled, 20)}, costs)
    name = "sparse code" if compiled.code else "sparse"
    assert [step.kernel for step in way.steps] == [name, "pool", name]
    assert way.complete
    assert all("machine code" in s.why for s in way.steps if s.kernel == "sparse code")


@needs_engine
@pytest.mark.parametrize("code", [True, False])
def test_a_program_of_bits_is_planned_with_code_where_it_runs_as_code(code: bool) -> None:
    compiled = CompiledProgram(network(), "f32", code=code)
    assert calibration.layout_of(compiled, 256) == IMAGES  # a block of half the width
    layout = calibration.layout_of(compiled, 600)
    assert layout == (BIT_CODE if code and BIT_CODED else IMAGES)
    costs = {k.case: (1.0,) * len(k.terms) for k in calibration.kernels_of(layout)}
    (way,) = planner.ways(network(), {layout: calibration.blocks(compiled, 600)}, costs)
    name = "bit-sliced code" if code and BIT_CODED else "bit-sliced"
    found = [step.kernel for step in way.steps]
    assert found == ["elementwise", name, "pool", "bit-sliced", "elementwise"]
    assert way.complete
