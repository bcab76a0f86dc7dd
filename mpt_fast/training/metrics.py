"""One row per epoch, as JSON lines and as CSV, cut back to the checkpoint when a run resumes."""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["FIELDS", "MetricsLog"]

FIELDS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "sparsity",
    "seconds",
    "images_per_second",
)


class MetricsLog:
    """`metrics.jsonl` and `metrics.csv` of a run folder.

    `offsets` are their lengths in bytes; a checkpoint stores them, and opening the log at those
    offsets removes every row written after that checkpoint, half-written ones too.
    """

    def __init__(self, folder: Path, offsets: Mapping[str, int] | None = None) -> None:
        self._paths = {"jsonl": folder / "metrics.jsonl", "csv": folder / "metrics.csv"}
        if offsets is None:
            self._append(
                {"jsonl": "", "csv": _csv_line(dict(zip(FIELDS, FIELDS, strict=True)))}, "wb"
            )
        else:
            for kind, path in self._paths.items():
                _cut(path, offsets[kind])

    @property
    def offsets(self) -> dict[str, int]:
        """Length of each file in bytes."""
        return {kind: path.stat().st_size for kind, path in self._paths.items()}

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row and put it on the disk."""
        self._append({"jsonl": json.dumps(dict(row)) + "\n", "csv": _csv_line(row)}, "ab")

    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        text = self._paths["jsonl"].read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def _append(self, content: Mapping[str, str], mode: str) -> None:
        for kind, path in self._paths.items():
            with path.open(mode) as file:
                file.write(content[kind].encode())
                file.flush()
                os.fsync(file.fileno())


def _csv_line(row: Mapping[str, Any]) -> str:
    line = io.StringIO(newline="")
    csv.DictWriter(line, FIELDS, lineterminator="\n").writerow(row)
    return line.getvalue()


def _cut(path: Path, length: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size < length:
        raise ValueError(
            f"{path}: {size} bytes, and the checkpoint was written after {length}; "
            "restore the file or start the run anew"
        )
    os.truncate(path, length)
