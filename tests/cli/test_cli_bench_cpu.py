"""`mpt-fast bench cpu`, with a small layer and a small network in place of the tables' own."""

from collections.abc import Callable

import pytest

from mpt_fast import benchmark
from mpt_fast.benchmark import Mode
from mpt_fast.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = Mode(0.01, (4,), (0.9,), ((8, 6),), False, False)
    monkeypatch.setitem(benchmark.MODES, "quick", mode)
    monkeypatch.setattr("mpt_fast.benchmark.suite.NETWORKS", ("conv2",))


def test_json_holds_every_cell_and_where_it_was_measured(cli: Callable) -> None:
    done = cli(
        "bench", "cpu", "--mode", "quick", "--sparsity", "0.5", "--sparsity", "0.9", "--json"
    )
    assert done.status == 0, done.err
    assert (done.json["mode"], done.json["threads"]) == ("quick", 1)
    assert done.json["machine"]["cpu"]
    places = {(cell["table"], cell["row"], cell["column"]) for cell in done.json["cells"]}
    assert places == {
        (table, row, column)
        for table, row in (
            ("Binary 3x3 layers, batch 4", "8@6"),
            ("Float 3x3 layers, batch 4", "8@6"),
            ("Binary networks, whole", "conv2, batch 4"),
            ("Float networks, whole", "conv2, batch 4"),
            ("Float networks with 8-bit activations, whole", "conv2, batch 4"),
        )
        for column in ("50%", "90%")
    }


def test_tables_for_people(cli: Callable) -> None:
    done = cli("bench", "cpu", "--mode", "quick", "--batch", "2", "--sparsity", "0.8")
    assert done.status == 0, done.err
    for words in ("Binary 3x3 layers, batch 2", "80% pruned", "conv2, batch 2", "1 thread"):
        assert words in done.out


@pytest.mark.parametrize(
    ("option", "words"),
    [(("--mode", "fast"), "none of quick, standard, full"), (("--sparsity", "1"), "[0, 1)")],
)
def test_wrong_usage(cli: Callable, option: tuple[str, str], words: str) -> None:
    done = cli("bench", "cpu", *option)
    assert done.status == 2
    assert words in done.err


def test_several_sparsities_are_for_cpu_alone(cli: Callable) -> None:
    done = cli("bench", "conv2", "--sparsity", "0.5", "--sparsity", "0.9")
    assert done.status == 2
    assert "repeated only for cpu" in done.err
