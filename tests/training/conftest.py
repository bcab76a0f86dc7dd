"""What the training tests share: recipes so small that a run takes a tenth of a second."""

from collections.abc import Callable, Iterator

import pytest
import torch

from mpt_fast.training import Recipe

TINY = {
    "model": "conv2",
    "width": 0.125,
    "data": "digits",
    "epochs": 2,
    "batch_size": 256,
    "amp": "none",
    "threads": 1,
}


@pytest.fixture
def tiny() -> Callable[..., Recipe]:
    """tiny(**overrides) -> a Recipe of 2 epochs of 5 steps on the digits."""
    return lambda **overrides: Recipe.from_dict({**TINY, **overrides})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
