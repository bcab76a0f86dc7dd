"""The measured cost table: reading, refusing, and what it does to the automatic choice."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpt_fast.kernels import backend, costs
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.costs import Case, CostTableError, Measured

HERE = ("NVIDIA H200", "3.9.0")
SOURCE = "measured on NVIDIA H200"
ALL = ("triton", "cpu", "reference")
ROUTES = ("adders", "int8")
SMALL, LARGE = Case("f", (64, 10)), Case("f", (100_000, 10))
MEASURED = [
    Measured(SMALL, {"triton": 30.0, "triton/int8": 40.0, "reference": 20.0}, SOURCE),
    Measured(LARGE, {"triton": 300.0, "triton/int8": 200.0, "reference": 900.0}, SOURCE),
    Measured(Case("g", (5, 5, 5)), {"reference": 1.0}, SOURCE),
]

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a document and points MPT_FAST_COST_TABLE at it."""

    def written(document: Any) -> Path:
        path = tmp_path / "costs.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        monkeypatch.setenv(costs.VARIABLE, str(path))
        costs._load.cache_clear()
        return path

    monkeypatch.setattr(costs, "_here", lambda: HERE)
    monkeypatch.setattr(backend, "triton_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return written


def test_a_table_comes_back_as_it_was_written() -> None:
    document = json.loads(json.dumps(costs.table(*HERE, MEASURED)))
    assert costs.parse(document) == (*HERE, MEASURED)


def test_the_fastest_measured_backend_is_chosen(write: Write) -> None:
    write(costs.table(*HERE, MEASURED))
    assert choose("f", None, "cuda", ALL, SMALL) == "reference"
    assert choose("f", None, "cuda", ALL, LARGE) == "triton"
    assert choose("f", None, "cuda", ("reference",), LARGE) == "reference"
    assert choose("f", "reference", "cuda", ALL, LARGE) == "reference"
    assert choose("f", None, "cpu", ("triton", "reference"), LARGE) == "reference"


def test_routes_are_ranked_among_themselves(write: Write) -> None:
    write(costs.table(*HERE, MEASURED))
    assert costs.route(SMALL, ROUTES) == "adders"
    assert costs.route(LARGE, ROUTES) == "int8"
    assert costs.route(Case("g", (5, 5, 5)), ROUTES) == "adders"
    assert costs.route(Case("h", (5,)), ROUTES) == "adders"


def test_a_route_that_cannot_run_is_passed_over(write: Write) -> None:
    write(costs.table(*HERE, MEASURED))
    assert costs.route(LARGE, ("adders", "other")) == "adders"
    assert costs.route(LARGE, ("other", "int8")) == "int8"


def test_what_this_process_measured_is_used_before_any_file(write: Write) -> None:
    write(costs.table(*HERE, MEASURED))
    with costs.supplying([Measured(LARGE, {"triton": 1.0, "triton/int8": 2.0}, SOURCE)]):
        assert costs.route(LARGE, ROUTES) == "adders"
        assert costs.ranking(SMALL) == []
        with costs.supplying([]):
            assert costs.ranking(LARGE) == []
    assert costs.route(LARGE, ROUTES) == "int8"


def test_on_a_machine_without_a_gpu_a_table_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(costs.table(*HERE, MEASURED)))
    monkeypatch.setenv(costs.VARIABLE, str(path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert costs.ranking(LARGE) == []


def test_the_nearest_case_answers_and_none_beyond_its_reach(write: Write) -> None:
    write(costs.table(*HERE, MEASURED))
    assert costs.ranking(Case("f", (400_000, 3))) == ["triton/int8", "triton", "reference"]
    assert costs.ranking(Case("f", (30, 10)))[0] == "reference"
    for beyond in ((400_001, 10), (100_000, 41), (1000, 10), (100_000,), (0, 10)):
        assert costs.ranking(Case("f", beyond)) == []
        assert choose("f", None, "cuda", ALL, Case("f", beyond)) == "reference"
    assert costs.ranking(Case("other", (64, 10))) == []


def test_without_a_table_triton_is_never_chosen(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(costs.VARIABLE, raising=False)
    assert choose("f", None, "cuda", ALL, LARGE) == "reference"
    assert costs.route(LARGE, ROUTES) == "adders"
    write(costs.table(*HERE, MEASURED))
    assert choose("f", None, "cuda", ALL) == "reference"


@pytest.mark.parametrize("other", [("NVIDIA A100", "3.9.0"), ("NVIDIA H200", "3.6.0")])
def test_a_table_of_another_device_or_version_is_set_aside(
    write: Write, other: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    write(costs.table(*other, MEASURED))
    with caplog.at_level(logging.WARNING, logger="mpt_fast"):
        for _ in range(2):
            assert choose("f", None, "cuda", ALL, LARGE) == "reference"
    assert len(caplog.messages) == 1
    assert f"was measured on {other[0]} with Triton {other[1]}" in caplog.messages[0]


ROW = {"operation": "f", "size": [1], "microseconds": {"triton": 1}, "source": SOURCE}


def _spoiled(**changes: Any) -> dict[str, Any]:
    return {**costs.table(*HERE, MEASURED), **changes}


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        _spoiled(version=1),
        _spoiled(format="another"),
        _spoiled(cases=None),
        _spoiled(cases=[{"operation": "f", "size": [1]}]),
        _spoiled(cases=[{"operation": "f", "size": [1], "microseconds": {"triton": 1}}]),
        _spoiled(cases=[{**ROW, "size": ["x"]}]),
        _spoiled(cases=[{**ROW, "size": [0]}]),
        _spoiled(cases=[{**ROW, "microseconds": {}}]),
        _spoiled(cases=[{**ROW, "microseconds": {"triton": -1}}]),
        _spoiled(cases=[{**ROW, "microseconds": {"triton": 1e999}}]),
    ],
)
def test_a_malformed_table_names_the_file_and_the_remedy(write: Write, document: Any) -> None:
    path = write(document)
    with pytest.raises(CostTableError, match=r"unset it or write the table with") as caught:
        choose("f", None, "cuda", ALL, LARGE)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(costs.VARIABLE, "/no/such/table.json")
    with pytest.raises(CostTableError, match=r"/no/such/table\.json"):
        costs.ranking(LARGE)


def test_merged_tables_keep_the_later_figure() -> None:
    newer = [Measured(SMALL, {"triton": 10.0}, SOURCE), Measured(Case("h", (9,)), {"x": 1.0}, "m")]
    document = costs.merged([costs.table(*HERE, MEASURED), costs.table(*HERE, newer)])
    assert costs.parse(document) == (*HERE, [newer[0], *MEASURED[1:], newer[1]])


def test_tables_of_different_devices_do_not_merge() -> None:
    tables = [costs.table(device, "3.9.0", MEASURED) for device in ("A", "B")]
    with pytest.raises(ValueError, match="2 devices or Triton versions"):
        costs.merged(tables)
    with pytest.raises(ValueError, match="it is not a"):
        costs.merged([tables[0], {}])
