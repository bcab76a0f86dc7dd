"""Shared by the tests: comparison by relative RMS, and the `backend` fixture of suites."""

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mpt_fast.kernels import backend as backends
from mpt_fast.kernels import cpu, interop

# Relative RMS error of a sum of rounded terms in another order; a few units in the last place.
TOLERANCE = {torch.float32: 5e-7, torch.float64: 1e-15, torch.bfloat16: 8e-3}
# A single wrong element hides in the RMS of many right ones; its own error may be this much more.
PEAK = 20.0


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Fail unless `actual` has the dtype, shape and, up to rounding, the values of `expected`.

    The error is rms(actual - expected) / rms(expected), at most `tolerance` (None: by dtype, 0 for
    integers and bool), and at no element more than PEAK times that. NaN and infinity must stand
    where `expected` has them.
    """
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, (
        f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    if not expected.is_floating_point():
        wrong = int((actual != expected).sum())
        assert wrong == 0, f"{wrong} of {expected.numel()} elements differ"
        return
    limit = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    got, want = actual.detach().double().cpu(), expected.detach().double().cpu()
    finite = torch.isfinite(want)
    same_special = torch.equal(torch.isfinite(got), finite) and torch.equal(
        got[~finite].nan_to_num(), want[~finite].nan_to_num()
    )
    assert same_special, "NaN or infinity in other places"
    got, want = got[finite], want[finite]
    if want.numel() == 0:
        return
    scale = float(want.square().mean().sqrt()) or 1.0
    error = got - want
    rms, peak = float(error.square().mean().sqrt()) / scale, float(error.abs().max()) / scale
    assert rms <= limit, f"relative RMS error {rms:.3e}, allowed {limit:.1e}"
    assert peak <= PEAK * limit, f"largest relative error {peak:.3e}, allowed {PEAK * limit:.1e}"


def suite_backends(
    claimed: Iterable[str], every_isa: bool = True, routes: Sequence[str] = ()
) -> list[str]:
    """The parameters of an operation's suite: the claimed backends that can run on this machine.

    "cpu" becomes one "cpu/<isa>" for each instruction set of the engine where `every_isa`, "triton"
    one "triton/<route>" for each of `routes`.
    """
    parameters = []
    for name in claimed:
        if name == "cpu" and cpu.available() and every_isa:
            parameters += [f"cpu/{isa}" for isa in cpu.engine().isas()]
        elif name == "triton" and name in runnable_backends() and routes:
            parameters += [f"triton/{route}" for route in routes]
        elif name in runnable_backends():
            parameters.append(name)
    return parameters


def backend_fixture(
    claimed: Sequence[str],
    every_isa: bool = True,
    routes: Sequence[str] = (),
    pinned: str = "bitsliced_conv2d.triton",
) -> Callable[..., object]:
    """A module's `backend` fixture: each test that takes it runs on each of the backends.

    routes: those of the Triton backend, where each is to run; pinned: the module in kernels/ whose
    ROUTE pins them.
    """

    @pytest.fixture(
        name="backend", scope="module", params=suite_backends(claimed, every_isa, routes)
    )
    def fixture(request: pytest.FixtureRequest) -> Iterator[str]:
        name, _, variant = request.param.partition("/")
        with pytest.MonkeyPatch.context() as patch:
            if name == "cpu" and variant:
                patch.setattr(interop, "ISA", variant)
            if name == "triton" and variant:
                patch.setattr(f"mpt_fast.kernels.{pinned}.ROUTE", variant)
            yield name

    return fixture


def runnable_backends() -> set[str]:
    """Backends that can run on this machine at all."""
    runs = {"reference"}
    if cpu.available():
        runs.add("cpu")
    if backends.triton_available():
        runs.add("triton")
    return runs


def missing_suites(
    claims: Mapping[str, Sequence[str]],
    ran: Collection[tuple[str, str]],
    runnable: Collection[str],
) -> list[str]:
    """One line for each backend that an operation claims and no passed test of its suite used.

    `claims` maps an operation's folder to its backends, `ran` holds (folder, backend) of passed
    tests, and backends outside `runnable` are not asked for.
    """
    return [
        f"no test in tests/kernels/{operation} ran on backend {name!r}, "
        f"which kernels/{operation}/op.py claims"
        for operation, names in sorted(claims.items())
        for name in names
        if name in runnable and (operation, name) not in ran
    ]


def triton_kernels() -> dict[str, list[str]]:
    """The kernels that Triton launches, by operation: every jitted function named `*_kernel`."""
    found: dict[str, list[str]] = {}
    for path in sorted((Path(backends.__file__).parent).glob("*/triton*.py")):
        module = importlib.import_module(f"mpt_fast.kernels.{path.parent.name}.{path.stem}")
        names = [
            name
            for name, value in vars(module).items()
            if name.endswith("_kernel")
            and hasattr(value, "arg_names")
            and value.fn.__module__ == module.__name__
        ]
        found.setdefault(path.parent.name, []).extend(names)
    return found


def missing_launches(kernels: Mapping[str, Sequence[str]], launched: Collection[str]) -> list[str]:
    """One line for each Triton kernel, by operation, that no passed test launched."""
    return [
        f"no passed kernel test launched {name} of kernels/{operation}"
        for operation, names in sorted(kernels.items())
        for name in names
        if name not in launched
    ]


def record_launches(launched: set[str]) -> None:
    """Add to `launched` the name of every Triton kernel that runs from here on."""
    if importlib.util.find_spec("triton") is None:
        return
    jit = importlib.import_module("triton.runtime.jit")
    interpreter = importlib.import_module("triton.runtime.interpreter")

    def recording(launch: Any) -> Any:
        @functools.wraps(launch)
        def recorded(self: Any, *arguments: Any, **options: Any) -> Any:
            launched.add(self.fn.__name__)
            return launch(self, *arguments, **options)

        return recorded

    jit.JITFunction.run = recording(jit.JITFunction.run)
    interpreter.GridExecutor.__call__ = recording(interpreter.GridExecutor.__call__)


# Compile-time integers that make another form of a kernel, beside flags and modes.
FORM_INTEGERS = {"POWER", "PASS", "GROUP"}
Form = tuple[str, tuple[tuple[str, Any], ...]]


def form_of(kernel: str, constants: Mapping[str, Any]) -> Form:
    """(kernel, what its compile-time constants make of it): flags, modes and FORM_INTEGERS."""
    chosen = {
        name: value
        for name, value in constants.items()
        if isinstance(value, bool | str) or name in FORM_INTEGERS
    }
    return kernel, tuple(sorted(chosen.items()))


@contextlib.contextmanager
def launched_forms() -> Iterator[set[Form]]:
    """The forms of Triton kernels that the interpreter runs within it."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    found: set[Form] = set()
    launch = interpreter.GridExecutor.__call__

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        given = dict(zip(self.arg_names, arguments, strict=False)) | options
        found.add(
            form_of(self.fn.__name__, {n: v for n, v in given.items() if n in self.arg_names})
        )
        return launch(self, *arguments, **options)

    interpreter.GridExecutor.__call__ = noted
    try:
        yield found
    finally:
        interpreter.GridExecutor.__call__ = launch


def speed_up_the_interpreter() -> None:
    """Spare Triton's interpreter most of its time, and no result of its own.

    It patches its language at every call of every function; the tests compile nothing in this
    process, so once will do. And it computes whether integers overflow, to assert it in debug mode
    alone.
    """
    if importlib.util.find_spec("triton") is None:
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    patch_language = interpreter._patch_lang
    scopes: dict[frozenset[int], Any] = {}
    patched: dict[int, Any] = {}  # by the globals of a module, held so that no id comes again

    def patch_once(function: Any) -> Any:
        known = function.__globals__
        if id(known) not in patched:
            modules = [id(v) for v in known.values() if inspect.ismodule(v)]
            key = frozenset(set(modules) & {id(interpreter.tl), id(interpreter.tl.core)})
            if key not in scopes:
                scopes[key] = patch_language(function)
            patched[id(known)] = known
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once


def covers_folder(arguments: Iterable[str], folder: Path, start: Path) -> bool:
    """True if pytest's path arguments, given relative to `start`, include all of `folder`."""
    paths = [(start / argument).resolve() for argument in arguments if "::" not in argument]
    return any(path == folder or path in folder.parents for path in paths)
