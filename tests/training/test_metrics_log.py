"""Metrics files: one row per epoch in both, cut back to where a checkpoint was written."""

import csv
import json
from pathlib import Path

import pytest

from mpt_fast.training.metrics import FIELDS, MetricsLog


def row(epoch: int) -> dict[str, float]:
    return {name: epoch + i / 8 for i, name in enumerate(FIELDS)}


def read(folder: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with (folder / "metrics.csv").open(newline="") as file:
        table = [{k: float(v) for k, v in entry.items()} for entry in csv.DictReader(file)]
    return lines, table


def test_both_files_hold_the_rows(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(row(1))
    log.write(row(2))
    assert read(tmp_path) == ([row(1), row(2)], [row(1), row(2)])


def test_reopening_removes_what_came_after(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(row(1))
    offsets = log.offsets
    log.write(row(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')  # killed here
    again = MetricsLog(tmp_path, offsets)
    assert read(tmp_path) == ([row(1)], [row(1)])
    again.write(row(2))
    assert read(tmp_path) == ([row(1), row(2)], [row(1), row(2)])


def test_a_new_log_starts_empty(tmp_path: Path) -> None:
    MetricsLog(tmp_path).write(row(1))
    MetricsLog(tmp_path)
    assert read(tmp_path) == ([], [])


def test_a_shortened_file_is_named(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(row(1))
    offsets = log.offsets
    (tmp_path / "metrics.csv").unlink()
    with pytest.raises(ValueError, match=r"metrics\.csv: 0 bytes, and the checkpoint was written"):
        MetricsLog(tmp_path, offsets)
