"""The demo's page and figure from its numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpt_fast.report import __main__ as command
from mpt_fast.report import demo


def network(role: str, median: float, accuracy: float) -> demo.Network:
    packed = role in demo.TICKETS
    return demo.Network(
        role=role,
        accuracy=accuracy,
        train_seconds=12.5,
        epochs=[1, 2, 3],
        test_accuracy=[0.4, 0.8, accuracy],
        train_loss=[2.0, 0.7, 0.3],
        weights=40_000,
        kept=4_000 if packed else 40_000,
        fp32_bytes=160_000,
        file_bytes=5_000 if packed else None,
        bound_bytes=2_845 if packed else None,
        kernel_rate=2.5 if packed else None,
        weight_rate=10.0 if packed else None,
        speed=demo.Speed(median, 0.9 * median, 1.2 * median, "channels_last"),
        empty_kernels=[("convs.0", 0.5), ("linear.0", 0.9)] if packed else [],
        disagreements=0 if packed else None,
    )


def results() -> demo.Demo:
    return demo.Demo(
        model="conv4",
        dataset="digits",
        train_images=1437,
        test_images=360,
        image_shape=(1, 2, 2),
        sparsity=0.9,
        batch=500,
        threads=1,
        seconds=71.0,
        command="mpt-fast demo --seed 3",
        machine={"torch": "9.9", "processor": "an <abacus>"},
        networks=[
            network("float", 0.02, 0.97),
            network("float_twin", 0.05, 0.98),
            network("binary", 0.002, 0.96),
            network("binary_twin", 0.06, 0.99),
        ],
        kernels=[[[0, 1, 0], [0, 0, -1], [0, 0, 0]]],
        kernels_layer="convs.2",
        examples=[
            demo.Example([[0.0, 1.0], [2.0, 3.0]], "7", "1", 0.51),
            demo.Example([[0.0, 1.0], [2.0, 3.0]], "3", "3", 0.93),
        ],
    )


def row(name: str) -> list[str]:
    return next(list(cells[1:]) for cells in demo.table(results()).rows if cells[0] == name)


def test_json_round_trip() -> None:
    assert demo.Demo.from_json(json.loads(json.dumps(results().to_json()))) == results()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "something"}, "not a report of mpt-fast demo"),
        ({"version": 99}, "version 99 is unknown"),
        ({"networks": [{"role": "float"}]}, "incomplete"),
        ({"seconds": ...}, "incomplete"),
    ],
)
def test_other_json_is_refused(change: dict[str, Any], message: str) -> None:
    data = results().to_json() | change
    data = {key: value for key, value in data.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        demo.Demo.from_json(data)


def test_list_is_no_report() -> None:
    with pytest.raises(ValueError, match="not a report"):
        demo.Demo.from_json([])  # type: ignore[arg-type]  # what a wrong file may hold


def test_table_compares_every_ticket_with_its_twin() -> None:
    assert row("Test accuracy") == ["97.00 %", "98.00 %", "96.00 %", "99.00 %"]
    assert row("Weights trained") == ["none", "all", "none", "all"]
    assert row("Activations") == ["float", "float", "1 bit", "float"]
    assert row("Images per second") == ["25,000", "10,000", "250,000", "8,333"]
    assert row("… against the twin") == ["2.50×", "1×", "30.0×", "1×"]
    assert row("Packed file") == ["5.00 kB", "–", "5.00 kB", "–"]
    assert row("… times smaller") == ["32.0×", "–", "32.0×", "–"]
    assert row("Entropy bound") == ["2.85 kB", "–", "2.85 kB", "–"]
    assert row("Weights kept") == ["4,000", "40,000", "4,000", "40,000"]
    assert row("Acceleration, kernels") == ["2.50×", "–", "2.50×", "–"]


def test_strong_rows_are_the_headlines() -> None:
    table = demo.table(results())
    assert [table.rows[index][0] for index in sorted(table.strong)] == [
        "Test accuracy",
        "… times smaller",
        "… against the twin",
    ]


def test_page_tells_the_result_and_how_to_get_it() -> None:
    page = demo.document(results()).html()
    for words in ("30.0×", "5.00 kB", "mpt-fast demo --seed 3", "an &lt;abacus&gt;", "1, not 7",
                  "0 of 360", "1 thread", "convs.2"):  # fmt: skip
        assert words in page, words


def test_page_without_examples_has_no_empty_gallery() -> None:
    page = demo.document(replace(results(), examples=[])).html()
    assert "What it says" not in page


def test_unknown_role_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        results().network("ternary")


@pytest.mark.parametrize("name", ["report.html", "figure.svg"])
def test_command_makes_page_and_figure_from_the_json(tmp_path: Path, name: str) -> None:
    source = tmp_path / "report.json"
    source.write_text(json.dumps(results().to_json()), encoding="utf-8")
    assert command.main([str(source), str(tmp_path / name)]) == 0
    written = (tmp_path / name).read_text(encoding="utf-8")
    expected = demo.document(results()).html() if name.endswith("html") else demo.figure(results())
    assert written == expected


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [([], 2, "usage"), (["a.json", "b.pdf"], 2, "usage"), (["missing.json", "b.svg"], 1, "error")],
)
def test_command_fails_in_one_line(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == status
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
