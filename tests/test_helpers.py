"""The test helpers can fail: a comparison that never fails proves nothing."""

import importlib
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    TOLERANCE,
    assert_close,
    covers_folder,
    missing_launches,
    missing_suites,
    suite_backends,
    triton_kernels,
)

from mpt_fast.kernels.binary_activation import binary_activation

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assert_close_accepts_equal_and_rounded(dtype: torch.dtype) -> None:
    x = torch.randn(1000, dtype=dtype)
    assert_close(x, x)
    assert_close(x * (1 + 0.5 * TOLERANCE[dtype]), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assert_close_rejects_a_small_error_everywhere(dtype: torch.dtype) -> None:
    x = torch.randn(1000, dtype=dtype)
    with pytest.raises(AssertionError, match="RMS"):
        assert_close(x * (1 + 4 * TOLERANCE[dtype]), x)


def test_assert_close_rejects_one_wrong_element_among_many() -> None:
    x = torch.ones(1_000_000)
    y = x.clone()
    y[123] += 2e-5  # its share of the RMS is 2e-8
    with pytest.raises(AssertionError, match="largest"):
        assert_close(y, x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_assert_close_rejects_special_values_in_other_places(bad: float) -> None:
    x = torch.ones(5)
    y = x.clone()
    y[2] = bad
    with pytest.raises(AssertionError, match="NaN or infinity"):
        assert_close(y, x)
    with pytest.raises(AssertionError, match="NaN or infinity"):
        assert_close(x, y)
    assert_close(y, y)


def test_assert_close_rejects_infinity_of_the_other_sign() -> None:
    with pytest.raises(AssertionError, match="NaN or infinity"):
        assert_close(torch.tensor([float("-inf")]), torch.tensor([float("inf")]))


def test_assert_close_rejects_anything_but_zero_for_zero() -> None:
    assert_close(torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError, match="RMS"):
        assert_close(torch.tensor([0.0, 1e-5, 0.0]), torch.zeros(3))


def test_assert_close_rejects_other_shapes_and_dtypes() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.ones(3, 1), torch.ones(3))
    with pytest.raises(AssertionError, match="dtype"):
        assert_close(torch.ones(3, dtype=torch.float64), torch.ones(3))


def test_assert_close_compares_integers_exactly() -> None:
    x = torch.tensor([2**31 - 1, 5], dtype=torch.int32)
    assert_close(x, x.clone())
    with pytest.raises(AssertionError, match="1 of 2"):
        assert_close(x - torch.tensor([1, 0], dtype=torch.int32), x)


def test_missing_suites_names_operation_and_backend() -> None:
    claims = {"a": ("cpu", "reference"), "b": ("triton", "reference"), "c": ("reference",)}
    ran = {("a", "cpu"), ("a", "reference"), ("b", "reference")}
    lines = missing_suites(claims, ran, {"cpu", "reference"})
    assert len(lines) == 1
    assert "tests/kernels/c" in lines[0]
    assert "'reference'" in lines[0]
    assert missing_suites(claims, ran | {("c", "reference")}, {"cpu", "reference"}) == []
    assert len(missing_suites(claims, ran, {"cpu", "reference", "triton"})) == 2


def test_missing_launches_names_operation_and_kernel() -> None:
    kernels = {"a": ["_first_kernel", "_second_kernel"], "b": ["_third_kernel"], "c": []}
    lines = missing_launches(kernels, {"_first_kernel", "_third_kernel", "_other_kernel"})
    assert len(lines) == 1
    assert "_second_kernel of kernels/a" in lines[0]
    assert missing_launches(kernels, {"_first_kernel", "_second_kernel", "_third_kernel"}) == []


@needs_triton
def test_every_kernel_is_found_and_has_a_compile_case() -> None:
    """The guard and the compile report speak of the same kernels, and none hides from both."""
    found = triton_kernels()
    source = "".join(path.read_text() for path in KERNELS.glob("*/triton*.py"))
    assert sorted(name for names in found.values() for name in names) == sorted(
        re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)
    )
    for operation, names in found.items():
        module = importlib.import_module(f"mpt_fast.kernels.{operation}.triton")
        compiled = {case.kernel.fn.__name__ for case in module.compile_cases()}
        assert set(names) <= compiled


@needs_triton
def test_a_launch_is_recorded(request: pytest.FixtureRequest) -> None:
    # By its path: other folders' conftest.py have the same module name.
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    assert conftest is not None
    conftest._launching.clear()
    x = torch.randn(5, device="cuda" if torch.cuda.is_available() else "cpu")
    binary_activation(x, "triton")
    assert conftest._launching == {"_binary_activation_fwd_kernel"}


def test_covers_folder() -> None:
    start = Path("/repo")
    folder = Path("/repo/tests/kernels")
    assert covers_folder(["tests"], folder, start)
    assert covers_folder(["tests/data", "tests/kernels/"], folder, start)
    assert covers_folder(["."], folder, start)
    assert not covers_folder(["tests/kernels/pack_bits"], folder, start)
    assert not covers_folder(["tests/kernels::x"], folder, start)
    assert not covers_folder(["tests/data"], folder, start)


def test_only_runs_of_all_kernel_tests_are_judged(request: pytest.FixtureRequest) -> None:
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    assert conftest is not None
    root = Path(__file__).resolve().parent.parent

    def judged(*arguments: str, **chosen: object) -> bool:
        options = ("keyword", "markexpr", "deselect", "collectonly", "ignore", "ignore_glob")
        config = SimpleNamespace(
            option=SimpleNamespace(**{**dict.fromkeys(options), **chosen}),
            args=list(arguments),
            invocation_params=SimpleNamespace(dir=root),
        )
        return conftest._is_whole_kernel_run(config)

    assert judged("tests")
    assert judged("tests/kernels")
    assert not judged("tests", ignore=["tests/kernels"])
    assert not judged("tests/kernels", keyword="triton")
    assert not judged("tests/data")


def test_suite_backends_always_has_the_reference() -> None:
    assert "reference" in suite_backends(("cpu", "triton", "reference"))
    assert suite_backends(("reference",)) == ["reference"]
