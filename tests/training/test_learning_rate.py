"""Learning rates per epoch, against numbers worked out by hand."""

import pytest

from mpt_fast.training import Recipe
from mpt_fast.training.schedule import learning_rate


def rates(**values: object) -> list[float]:
    recipe = Recipe.from_dict({"lr": 0.8, **values})
    return [learning_rate(recipe, epoch) for epoch in range(recipe.epochs)]


def test_constant() -> None:
    assert rates(schedule="constant", epochs=3) == [0.8, 0.8, 0.8]


def test_cosine() -> None:
    assert rates(schedule="cosine", epochs=4) == pytest.approx(
        [0.8, 0.8 * (1 + 0.5**0.5) / 2, 0.4, 0.8 * (1 - 0.5**0.5) / 2], rel=1e-14
    )


def test_warmup_then_cosine() -> None:
    assert rates(schedule="cosine", epochs=6, warmup_epochs=4) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 0.8, 0.4], rel=1e-14
    )


def test_multistep() -> None:
    got = rates(schedule="multistep", epochs=6, milestones=[2, 3, 5], gamma=0.5)
    assert got == [0.8, 0.8, 0.4, 0.2, 0.2, 0.1]
