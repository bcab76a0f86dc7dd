"""Kernel tests see poison in unwritten memory (the fixture of tests/conftest.py)."""

import torch


def test_unwritten_memory_is_poisoned() -> None:
    assert torch.empty(7).isnan().all()
    assert torch.empty_like(torch.ones(3, dtype=torch.float64)).isnan().all()
    assert torch.ones(2).new_empty(5).isnan().all()
    for dtype in (torch.int8, torch.int32, torch.int64):
        assert (torch.empty(4, dtype=dtype) == torch.iinfo(dtype).max).all()
    assert torch.empty(3, dtype=torch.bool).all()
