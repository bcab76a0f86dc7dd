"""The progressive schedule, with the numbers of the original."""

import pytest

from mpt_fast.selection import cubic_sparsity

# Densities that the original code steps through for a final density of 0.2 in ten epochs.
KEPT = [0.5, 0.4187, 0.3536, 0.3029, 0.2648, 0.2375, 0.2192, 0.2081, 0.2024, 0.2003, 0.2]


def test_numbers_of_the_original() -> None:
    got = [1 - cubic_sparsity(epoch, 10, 0.8) for epoch in range(11)]
    assert got == pytest.approx(KEPT, abs=5e-5)


def test_ends_exactly_and_stays() -> None:
    assert [cubic_sparsity(epoch, 4, 0.95) for epoch in (4, 5, 100)] == [0.95] * 3
    assert cubic_sparsity(0, 0, 0.95) == 0.95


def test_rises_from_one_half() -> None:
    steps = [cubic_sparsity(epoch, 10, 0.95) for epoch in range(11)]
    assert steps[0] == 0.5
    assert steps == sorted(steps)
    assert len(set(steps)) == 11


@pytest.mark.parametrize("final", [0.0, 0.3, 0.5])
def test_no_schedule_up_to_one_half(final: float) -> None:
    assert [cubic_sparsity(epoch, 10, final) for epoch in range(12)] == [final] * 12


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1 and 10"):
        cubic_sparsity(-1, 10, 0.8)
    with pytest.raises(ValueError, match="sparsity is the fraction pruned"):
        cubic_sparsity(0, 10, 1.0)
