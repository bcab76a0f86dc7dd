"""The suite of `mpt-fast bench cpu` and `make bench`: its cases, and what measuring one gives."""

import json
from pathlib import Path

import pytest
import torch

from mpt_fast import benchmark
from mpt_fast.benchmark import MODES, Case, Mode
from mpt_fast.benchmark import run as running
from mpt_fast.benchmark.usage import memory, neighbouring_bytes, startup
from mpt_fast.kernels import cpu
from mpt_fast.runtime import write_program
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.synthetic import Synthetic

needs_engine = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
SHORT = Mode(0.01, (4,), (0.9,), ((8, 6),), False, False)


def test_standard_cases_are_those_of_the_tables() -> None:
    cases = benchmark.cases(MODES["standard"])
    assert len({case.key for case in cases}) == len(cases)
    layers = [case for case in cases if case.kind == "layer"]
    assert {(c.name, c.activation, c.batch) for c in layers} == {
        (name, *kind)
        for name in ("64@32", "128@16", "256@8", "512@4")
        for kind in (("binary", 512), ("relu", 64))
    }
    networks = [case for case in cases if case.kind == "network"]
    assert {(c.name, c.activation, c.batch) for c in networks} == {
        (name, *kind)
        for name in ("vgg_small", "resnet18")
        for kind in (("binary", 512), ("binary", 64), ("binary", 1), ("relu", 64), ("relu", 1))
    }
    assert {c.sparsities for c in layers} == {(0.5, 0.8, 0.9, 0.95)}
    assert {(c.name, c.activation, c.batch) for c in networks if c.levels} == {
        (name, "relu", batch) for name in ("vgg_small", "resnet18") for batch in (64, 1)
    }
    unpruned = {c.activation: c.sparsities[0] == 0 for c in networks}
    assert unpruned == {"binary": True, "relu": False}


def test_options_replace_the_modes_own() -> None:
    cases = benchmark.cases(MODES["quick"], threads=2, batches=(7,), sparsities=(0.3,))
    assert {(c.batch, c.sparsities, c.threads) for c in cases} == {(7, (0.3,), 2)}
    assert all("2 threads" in case.table for case in cases)


@needs_engine
@pytest.mark.parametrize("activation", ["binary", "relu"])
def test_a_layer_case_gives_one_cell_per_sparsity(activation: str) -> None:
    case = Case("layer", "8@6", activation, 4, (0.5, 0.9))  # type: ignore[arg-type]
    before = torch.get_num_threads()
    cells = running.run_case(case, SHORT)
    assert torch.get_num_threads() == before
    assert [cell["column"] for cell in cells] == ["50%", "90%"]
    assert cells[0]["kept"] > cells[1]["kept"] > 0
    for cell in json.loads(json.dumps(cells)):
        assert cell["rounds"] >= 5
        assert cell["ratio"] == pytest.approx(cell["baseline_seconds"] / cell["candidate_seconds"])
        assert cell["ratio_p20"] <= cell["ratio_p80"]
        assert cell["baseline"].startswith("PyTorch fp32 eager, ")


@needs_engine
def test_a_network_case_has_other_engines_beside() -> None:
    case = Case("network", "conv2", "binary", 2, (0.9,))
    (cell,) = running.run_case(case, Mode(0.01, (2,), (0.9,), (), True, False))
    assert cell["baseline"].startswith("dense twin, PyTorch fp32 eager, ")
    assert set(cell["beside"]) == {"torch bf16", "ONNX Runtime fp32", "ONNX Runtime int8"}
    for found in cell["beside"].values():
        assert found > 0 if isinstance(found, float) else "not installed" in found


@needs_engine
def test_a_wrong_engine_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CompiledProgram.__call__
    monkeypatch.setattr(CompiledProgram, "__call__", lambda self, x, n: whole(self, x, n) * 1.001)
    with pytest.raises(RuntimeError, match="differs from its reference"):
        running.run_case(Case("layer", "8@6", "relu", 4, (0.5,)), SHORT)


@needs_engine
def test_start_up_and_memory_are_measured_in_fresh_processes(tmp_path: Path) -> None:
    net = Synthetic((64, 32, 32))
    net.combine(net.sign(net.combine(0, "bits"), 256, 1, 0.5), "f32")
    program = net.program()
    write_program(program, tmp_path / "net.mpt")
    times = startup(tmp_path / "net.mpt", repeats=1)
    assert 0 < times["load"] < 60
    result = 64 * 256 * 32 * 32 * 4  # bytes of the output alone
    assert memory(tmp_path / "net.mpt", 64)["running"] > result
    bits, f32 = 256 * 32 * 32 * 8, 256 * 32 * 32 * 64 * 4
    assert neighbouring_bytes(program, 64) == bits + f32
