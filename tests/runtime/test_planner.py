"""The cost model's counts, fit and cache, and the choice among ways to run a program."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpt_fast.kernels import cpu
from mpt_fast.runtime import Program, calibration, kernels, planner, samples
from mpt_fast.runtime.calibration import Point
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.kernels import BITS, CODE, KERNELS, LISTS, WHOLE, Kernel
from mpt_fast.runtime.synthetic import Synthetic
from mpt_fast.runtime.work import Block, Work, far_lines, taps_inside, works

needs_engine = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
# Code is made for these instruction sets.
CODED = cpu.available() and not {"avx512", "avx2"}.isdisjoint(cpu.engine().isas())
BIT_CODED = CODED and "avx512" in cpu.engine().isas()
LAYOUTS = (LISTS, BITS, *((CODE,) if CODED else ()), *((WHOLE,) if BIT_CODED else ()))
BLOCK = Block(BITS, lanes=256, groups=16, words=4)
NARROW = Block(BITS, lanes=64, groups=1, words=4)


def network() -> Program:
    net = Synthetic((8, 6, 6))
    bits = net.combine(0, "bits")
    net.combine(net.sums(net.pool(net.sign(bits, 16, 3, 0.5), 2), 4, 1, 0.5), "f32")
    return net.program()


def reals() -> Program:
    net = Synthetic((3, 6, 6))
    net.real(net.pool(net.real(0, 8, 3, 0.5), 2), 4, 3, 0.5)
    return net.program()


def alone(net: Synthetic) -> Work:
    """The last step of `net` so far, joined with nothing."""
    step = net.steps[-1]
    read = tuple(net.values[s] for s in step.sources())
    return Work(step, read, net.values[-1], outer=tuple((value, step) for value in read))


def counted_by(work: Work, block: Block) -> tuple[Kernel, dict[str, float]]:
    """The only kernel for `work`, and what it counts."""
    (kernel,) = kernels.kernels_for(work, block)
    return kernel, dict(zip(kernel.terms, kernel.count(work, block), strict=True))


def counts(net: Synthetic, block: Block = BLOCK) -> dict[str, float]:
    return counted_by(alone(net), block)[1]


def kept(net: Synthetic) -> int:
    return net.steps[-1].taps.kept  # type: ignore[attr-defined]


def inside(net: Synthetic) -> int:
    work = alone(net)
    return taps_inside(work.step, work.sources[0], work.result)  # type: ignore[arg-type]


def test_counts_of_a_bit_sliced_layer_are_those_of_its_loops() -> None:
    net = Synthetic((8, 6, 6))
    bits = net.combine(0, "bits")
    net.sign(bits, 16, 3, 0.5)
    found = counts(net)
    assert (found["call"], found["vector"]) == (1, 16 * 36)
    assert found["tap"] == pytest.approx(inside(net))
    assert found["tap"] + found["tap outside the image"] == pytest.approx(kept(net) * 36)
    assert found["vector chosen by a residual"] == found["pixel sorted by stride"] == 0
    # 64 lanes are one word: a row of six pixels fills two vectors of four.
    narrow = counts(net, NARROW)
    assert narrow["vector"] == 16 * 6 * 2
    assert narrow["tap"] + narrow["tap outside the image"] == pytest.approx(kept(net) * 12)
    net.sign(bits, 16, 3, 0.5, stride=2)
    assert counts(net, NARROW)["pixel sorted by stride"] == 8 * 36


def test_counts_of_a_real_layer_and_of_pools() -> None:
    block = Block(LISTS, lanes=256, groups=16, words=4)
    net = Synthetic((8, 6, 6))
    net.real(0, 4, 3, 0.5)
    found = counts(net, block)
    assert found["tap"] + found["tap outside the image"] == kept(net) * 36 * 16
    assert found["tap outside the image"] > 0
    assert (found["value"], found["tile"]) == (4 * 36 * 16, 4 * 6 * 2 * 16)
    net.pool(0, 2, average=True)
    found = counts(net, block)
    assert (found["call"], found["value"], found["value read"]) == (1, 8 * 9 * 16, 8 * 36 * 16)


def test_counts_of_layers_that_run_as_code() -> None:
    block = Block(CODE, lanes=16, groups=1, words=8)
    net = Synthetic((8, 6, 6))
    net.real(0, 30, 3, 0.5)
    found = counts(net, block)
    assert (found["call"], found["value"]) == (1, 30 * 36)
    assert found["tap"] + found["tap outside the image"] == pytest.approx(kept(net) * 36)
    assert found["tap's code fetched"] == kept(net)  # once: it stays near
    assert found["value kept between blocks"] == found["tap's code waited for"] == 0
    assert found["input vector beyond L2"] == 0
    # 30 outputs are two parts, of which every input is likely to have a tap.
    assert found["input vector loaded"] == pytest.approx(2 * 8 * 9 * 36, rel=0.01)
    net = Synthetic((512, 1, 1))
    net.real(0, 512, 1, 0.5)
    found = counts(net, block)
    assert 0 < found["tap's code waited for"] < found["tap's code fetched"]
    assert found["value kept between blocks"] > 0  # more taps than a function takes
    net = Synthetic((96, 40, 40))
    net.real(0, 384, 3, 0.5, residual=net.real(0, 384, 3, 0.5))
    found = counts(net, block)
    assert found["tap's code fetched"] > 2 * kept(net)  # of 40 rows in bands
    assert found["input vector beyond L2"] > 0  # three rows of 40 pixels of 6 KiB
    assert found["value added to"] == found["value"]
    net.real(0, 30, 3, 0)
    assert counts(net, block)["input vector loaded"] == 0
    # 32 levels lie in a vector.
    net = Synthetic((8, 6, 6))
    net.levels(net.combine(0, "i8"), 30, 3, 0.5)
    assert counts(net, Block(CODE, 32, 2, 8))["value"] == 30 * 36
    net.pool(2, 2)
    found = counts(net, block)
    assert (found["call"], found["value"], found["value read"]) == (1, 30 * 9, 30 * 9 * 4)


@needs_engine
def test_counts_of_layers_of_bits_that_run_as_code() -> None:
    net = Synthetic((64, 6, 6))
    bits = net.combine(0, "bits")
    net.sign(bits, 32, 3, 0.5, residual=net.sign(bits, 32, 3, 0.5))
    whole = Block(WHOLE, 512, 32, 8, bit_code=True)
    kernel, found = counted_by(alone(net), whole)
    assert kernel.name == "bit-sliced code"
    assert (found["call"], found["vector"]) == (1, 32 * 36)
    assert found["tap"] + found["tap outside the image"] == pytest.approx(kept(net) * 36)
    assert found["vector chosen by a residual"] == 32 * 36
    # From lists where the program makes no code, and where the last images fill a narrower block.
    for block in (Block(WHOLE, 512, 32, 8), Block(BITS, 64, 1, 8)):
        assert counted_by(alone(net), block)[0].name == "bit-sliced"
    # Layers of many taps, of many in one channel, or whose channels share many keep lists.
    layers = ((32, 3, 0.6, True), (64, 3, 0.95, False), (1, 9, 1.0, False), (32, 3, 1.0, False))
    for outputs, size, density, few in layers:
        net.sign(bits, outputs, size, density)
        name = counted_by(alone(net), whole)[0].name
        assert name == ("bit-sliced code" if few else "bit-sliced")


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_taps_inside_are_those_that_meet_a_pixel(size: int, stride: int) -> None:
    net = Synthetic((3, 7, 5))
    net.real(0, 4, size, 0.6, stride=stride)
    step, result = net.steps[-1], net.values[-1]
    found = 0
    for tap in step.taps.index % (size * size):  # type: ignore[attr-defined]
        for y in range(result.height):
            for x in range(result.width):
                row = y * stride - size // 2 + tap // size
                column = x * stride - size // 2 + tap % size
                found += 0 <= row < 7 and 0 <= column < 5
    assert inside(net) == found


def test_far_lines_are_what_the_cache_does_not_hold() -> None:
    net = Synthetic((32, 16, 16))
    net.combine(0, "f32")
    work, held = alone(net), 1024 * 1024 / 64
    assert far_lines(work, Block(LISTS, 16, 1, 8)) == 0  # half a MiB each
    assert far_lines(work, Block(LISTS, 64, 4, 8)) == 2 * 32 * 256 * 4 - held
    # A 1x1 kernel with stride 2 passes over three pixels of four.
    net.real(0, 32, 1, 0.5, stride=2)
    assert far_lines(alone(net), Block(LISTS, 256, 16, 8)) == 2 * 32 * 64 * 16 - held


def joined_programs() -> dict[str, tuple[Program, list[str]]]:
    """By what the engine joins: a program, and the kernels of its last steps."""
    found = {}
    net = Synthetic((3, 8, 8))
    net.real(net.convert(0, "f64"), 8, 3, 0.5, act="sign")
    found["filtered"] = net.program(), ["joined", "sparse"]
    net = Synthetic((8, 8, 8))
    bits = net.combine(0, "bits")
    net.combine(net.sums(bits, 4, 3, 0.5), "bits", net.sums(bits, 4, 1, 0.5))
    found["pair"] = net.program(), ["elementwise", "joined", "joined", "bit-sliced pair"]
    net = Synthetic((8, 8, 8))
    net.combine(net.pool(net.sums(net.combine(0, "bits"), 4, 3, 0.5), 2), "f32")
    found["sums"] = net.program(), ["elementwise", "joined", "joined", "bit-sliced, joined"]
    net = Synthetic((8, 8, 8))
    net.pool(net.convert(net.combine(0, "bits"), "f32"), 8, average=True)
    found["average"] = net.program(), ["elementwise", "joined", "pool"]
    net = Synthetic((8, 8, 8))
    net.pool(net.real(0, 8, 3, 0.5), 2)
    found["pooled"] = net.program(), ["joined", "sparse"]
    return found


def no_costs(layouts: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """Every term costs a second."""
    return {k.case: (1.0,) * len(k.terms) for k in KERNELS if k.layout in layouts}


@needs_engine
@pytest.mark.parametrize("what", ["filtered", "pair", "sums", "average", "pooled"])
def test_joined_steps_are_priced_where_the_engine_computes_them(what: str) -> None:
    program, names = joined_programs()[what]
    compiled = CompiledProgram(program, program.input_kind, layout="images", code=False)
    by = compiled.computed_by()
    batch = compiled.lanes
    blocks = calibration.blocks(compiled, batch)
    costs = no_costs((LISTS, BITS, WHOLE))
    found = planner.choices(program, by, blocks, costs)
    assert [choice.kernel for choice in found] == names
    last = len(program.steps) - 1
    for number, choice in enumerate(found):
        if choice.kernel == "joined":
            assert by[number] == last
            assert choice.seconds is None
            assert choice.why == f"computed by step {last}"
        else:
            assert by[number] == number
            assert choice.seconds
    # The engine's clock agrees: those joined take no time of their own.
    x = np.ones((batch, *program.input), np.float32)
    compiled(x, 1)
    timed = [time > 0 for time in compiled.step_times()]
    assert timed == [choice.kernel != "joined" for choice in found]
    # Whatever is joined is counted: its taps, and only what is stored is read.
    work = works(program, by)[-1]
    assert work is not None
    made = {n + 1 for n, b in enumerate(by) if b == last}
    stored = {s for n, b in enumerate(by) if b == last for s in program.steps[n].sources()} - made
    assert {value for value, _ in work.outer} == {program.values()[s] for s in stored}
    assert len(work.inside) == names.count("joined")


@needs_engine
def test_every_reader_of_a_conversion_goes_without_it() -> None:
    net = Synthetic((3, 8, 8))
    double = net.convert(0, "f64")
    for _ in range(2):
        net.real(double, 8, 3, 0.5, act="sign")
    program = net.program()
    by = CompiledProgram(program, "f32", layout="images").computed_by()
    assert by[1:] == [1, 2]
    assert by[0] in (1, 2)
    first, *rest = works(program, by)
    assert first is None
    assert all(w and w.inside and w.outer[0][0] == program.values()[0] for w in rest)


def test_a_step_that_nothing_reads_has_no_work() -> None:
    net = Synthetic((3, 4, 4))
    net.convert(0, "f64")
    net.pool(0, 2)
    program = net.program()
    assert [work is None for work in works(program, [-1, 1])] == [True, False]
    costs = no_costs((LISTS,))
    found = planner.choices(program, [-1, 1], [Block(LISTS, 16, 1, 8)], costs)
    assert (found[0].why, found[0].seconds) == ("nothing reads it", None)


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
        for row in rng.uniform(100, 10_000, (40, len(coefficients)))
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
    measured = {point.case for point in points}
    assert measured == {kernel.case for kernel in calibration.kernels_of(layout)}
    assert all(point.seconds > 0 for point in points)


@needs_engine
@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_have_every_term(layout: str) -> None:
    """A term that no synthetic layer has would get coefficient 0."""
    isa = cpu.engine().isas()[0]
    words = cpu.engine().vector_words(isa)
    counts: dict[str, list[tuple[float, ...]]] = {}
    for program, batch, code in samples.samples(isa, layout):
        compiled = CompiledProgram(program, program.input_kind, isa, "images", code)
        assert {block.layout for block in calibration.blocks(compiled, batch)} == {layout}
        for point in calibration.points(compiled, program, [1.0] * len(program.steps), batch):
            counts.setdefault(point.case, []).append(point.counts)
    for kernel in calibration.kernels_of(layout):
        own = np.array(counts[kernel.case])
        unused = {t for t, column in zip(kernel.terms, own.T, strict=True) if not column.any()}
        allowed = {kernels._FAR}  # not every kernel has values as large as that
        if words == 1 or layout == WHOLE:  # of one vector or word nothing is sorted
            allowed.add("pixel sorted by stride")
        if layout == WHOLE:  # whose additions the engine counts, with or without them
            allowed.add("tap outside the image")
        if layout == LISTS:
            allowed.add("value read from bits")
        assert unused <= allowed, kernel.case


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


def fresh(isa: str = "plain", threads: int = 1, layout: str = LISTS) -> calibration.Costs:
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


def steps_like(name: str, case: str) -> Kernel:
    """A kernel for every step whose only cost is one call."""
    return Kernel(name, case, BITS, lambda *_: True, ("call",), lambda *_: (1.0,), "test")


@pytest.mark.parametrize("prices", [(1.0, 2.0), (2.0, 1.0)])
def test_the_cheapest_kernel_wins(
    monkeypatch: pytest.MonkeyPatch, prices: tuple[float, float]
) -> None:
    other = Kernel("c", "c", WHOLE, lambda *_: True, ("call",), lambda *_: (1.0,), "test")
    table = (steps_like("a", "a"), steps_like("b", "b"), other)
    monkeypatch.setattr(kernels, "KERNELS", table)
    program = network()
    costs = {"a": prices[:1], "b": prices[1:], "c": (0.5,)}
    own = range(len(program.steps))
    wide = Block(WHOLE, 512, 32, 8)
    found = planner.choices(program, own, [BLOCK, wide, BLOCK], costs)
    assert {choice.kernel for choice in found} == {"a" if prices[0] < prices[1] else "b"}
    assert all(choice.seconds == 2 * min(prices) + 0.5 for choice in found)


def test_a_step_without_a_known_cost_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = Kernel("c", "c", BITS, lambda work, block: work.step.op == "combine", ("call",),
                   lambda *_: (1.0,), "test")  # fmt: skip
    monkeypatch.setattr(kernels, "KERNELS", (blind,))
    program = network()
    found = planner.choices(program, range(len(program.steps)), [BLOCK], {"c": (1.0,)})
    known = [step.op == "combine" for step in program.steps]
    assert [choice.seconds is not None for choice in found] == known


@needs_engine
@pytest.mark.parametrize("code", [True, False])
def test_a_program_that_makes_code_is_planned_with_its_kernels(code: bool) -> None:
    compiled = CompiledProgram(reals(), "f32", code=code)
    blocks = calibration.blocks(compiled, 20)
    layout = CODE if compiled.code else LISTS
    assert {block.layout for block in blocks} == {layout}
    found = planner.choices(reals(), compiled.computed_by(), blocks, no_costs((layout,)))
    name = "sparse code" if compiled.code else "sparse"
    assert [choice.kernel for choice in found] == ["joined", name, name]
    assert all("machine code" in c.why for c in found if c.kernel == "sparse code")


@needs_engine
@pytest.mark.parametrize("code", [True, False])
def test_a_program_of_bits_is_planned_with_code_where_it_runs_as_code(code: bool) -> None:
    compiled = CompiledProgram(network(), "f32", code=code)
    blocks = calibration.blocks(compiled, 600)
    whole = compiled.isa == "avx512"
    layouts = [block.layout for block in blocks]
    assert layouts == ([WHOLE, BITS] if whole else [BITS] * len(blocks))
    costs = no_costs((BITS, WHOLE))
    found = planner.choices(network(), compiled.computed_by(), blocks, costs)
    name = "bit-sliced code" if code and BIT_CODED else "bit-sliced"
    names = [choice.kernel for choice in found]
    assert names == ["elementwise", name, "pool", "joined", "bit-sliced, joined"]
    assert all((c.seconds is None) == (c.kernel == "joined") for c in found)
    narrow = planner.choices(network(), compiled.computed_by(), blocks[-1:], costs)
    assert narrow[1].kernel == "bit-sliced"
