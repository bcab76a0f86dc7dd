"""A command runner and one tiny trained and packed ticket for all command line tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mpt_fast.cli.app import app

TINY = ["conv2", "--width", "0.125", "--activation", "binary", "--epochs", "1", "--threads", "1"]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON value; fails when anything else is there."""
        return json.loads(self.out)


@pytest.fixture(scope="session")
def cli() -> Callable[..., Done]:
    """Runs `mpt-fast ARGS` in this process."""

    def run(*arguments: str | Path) -> Done:
        threads = torch.get_num_threads()
        try:
            result = CliRunner().invoke(app, [str(item) for item in arguments])
        finally:
            torch.set_num_threads(threads)
        return Done(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def shell() -> Callable[..., Done]:
    """Runs `python ARGS` as its own process."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> Done:
        result = subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return Done(result.returncode, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def run_folder(cli: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny binary ticket on the digits."""
    folder = tmp_path_factory.mktemp("runs") / "ticket"
    done = cli("train", *TINY, "--out", folder)
    assert done.status == 0, done.err
    return folder


@pytest.fixture(scope="session")
def packed_file(cli: Callable[..., Done], run_folder: Path) -> Path:
    """That ticket, packed."""
    file = run_folder.parent / "ticket.mpt"
    done = cli("pack", run_folder, "-o", file)
    assert done.status == 0, done.err
    return file
