"""Fixtures of every test, and the check that each operation's suite ran on what it claims."""

import importlib
import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch

# Without a GPU the triton backend runs in Triton's interpreter, which the kernels' decorator reads
# when they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TESTS = Path(__file__).resolve().parent
KERNEL_TESTS = TESTS / "kernels"
KERNELS = TESTS.parent / "kernels"

if os.environ.get("TRITON_INTERPRET") == "1":
    helpers.speed_up_the_interpreter()

_ran: set[tuple[str, str]] = set()
# Triton kernels launched in the running test, and in tests that passed.
_launching: set[str] = set()
_launched: set[str] = set()
helpers.record_launches(_launching)
_problems: list[str] = []


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cost model of the tests is kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPT_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Every test starts from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """In kernel tests torch.empty and its kin return NaN or the largest integer, not zeros.

    That is what PyTorch does in deterministic mode, so an output that is not written shows.
    """
    if KERNEL_TESTS not in Path(request.path).resolve().parents:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "setup":
        _launching.clear()
    elif call.when == "call" and report.passed and KERNEL_TESTS in item.path.parents:
        _launched.update(_launching)
    if report.when == "call" and report.passed and KERNEL_TESTS in item.path.parents:
        parameters = getattr(item, "callspec", None)
        name = parameters.params.get("backend") if parameters is not None else None
        if isinstance(name, str):
            operation = item.path.relative_to(KERNEL_TESTS).parts[0]
            _ran.add((operation, name.partition("/")[0]))
    return report


def _is_whole_kernel_run(config: pytest.Config) -> bool:
    option = config.option
    chosen = option.keyword or option.markexpr or option.deselect or option.collectonly
    ignored = option.ignore or option.ignore_glob
    start = config.invocation_params.dir
    return not (chosen or ignored) and helpers.covers_folder(config.args, KERNEL_TESTS, start)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run of all kernel tests that left a claimed backend or a Triton kernel out.

    A run that fails by itself is not judged: what its failed tests did not reach says nothing.
    """
    if session.exitstatus != pytest.ExitCode.OK or not _is_whole_kernel_run(session.config):
        return
    folders = sorted(path.parent.name for path in KERNELS.glob("*/op.py"))
    claims = {
        name: importlib.import_module(f"mpt_fast.kernels.{name}.op").BACKENDS for name in folders
    }
    _problems.extend(helpers.missing_suites(claims, _ran, helpers.runnable_backends()))
    if "triton" in helpers.runnable_backends():
        _problems.extend(helpers.missing_launches(helpers.triton_kernels(), _launched))
    if _problems:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for problem in _problems:
        terminalreporter.write_line(f"FAILED {problem}", red=True)
    missing = sorted({"cpu", "triton"} - helpers.runnable_backends())
    if missing and _ran:
        terminalreporter.write_line(f"kernel tests ran without the backends {missing}")
