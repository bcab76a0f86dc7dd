"""What the operations hand to the C++ engine."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import ConvCase

from mpt_fast.kernels import cpu, interop
from mpt_fast.kernels.bitsliced_conv2d import bitsliced_conv2d


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calls of an engine that only records them."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    recorder = ModuleType("recorder")

    def record(*args: Any, **kwargs: Any) -> np.ndarray:
        seen.append((args, kwargs))
        return np.zeros((4, 6, 5, 64), dtype=np.int32)

    recorder.bitsliced_conv2d = record  # type: ignore[attr-defined]  # a stand-in for the engine
    recorder.source_digest = cpu.engine().source_digest  # type: ignore[attr-defined]
    monkeypatch.setattr(cpu, "_module", recorder)
    return seen


def test_threads_and_instruction_set_reach_the_engine(
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ConvCase()
    planes, taps = case.planes(), case.taps()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        bitsliced_conv2d(planes, taps, padding=1, backend="cpu")
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(interop, "ISA", "plain")
    bitsliced_conv2d(planes, taps, padding=1)
    assert [options["isa"] for _, options in calls] == ["auto", "plain"]
    assert [options["threads"] for _, options in calls] == [3, before]
    assert calls[0][0][4:] == ((4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1)


def test_contiguous_tensors_are_not_copied(
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]],
) -> None:
    case = ConvCase()
    planes, taps = case.planes(), case.taps()
    bitsliced_conv2d(planes, taps, padding=1, backend="cpu")
    arguments = calls[0][0]
    for tensor, array in zip((planes, *taps[:3]), arguments, strict=False):
        assert array.ctypes.data == tensor.data_ptr()
        assert array.shape == tuple(tensor.shape)


def test_as_array_of_strided_tensors() -> None:
    x = torch.arange(6).view(2, 3).T
    assert interop.as_array(x).flags.c_contiguous
    assert interop.as_array(x).tolist() == x.tolist()
    assert interop.optional_array(None) is None
