"""The progressive schedule of the sparsity."""

from mpt_fast.config import check_sparsity

START = 0.5
"""Sparsity at which the progressive schedule begins."""


def cubic_sparsity(epoch: int, epochs: int, final: float) -> float:
    """Sparsity of `epoch` (from 0) when `final` is to be reached at `epochs`.

    final + (0.5 - final) (1 - epoch / epochs)**3 before `epochs`, exactly `final` from then on and
    for any final sparsity below 0.5. Raises ValueError for negative epochs.
    """
    final = check_sparsity(final)
    if epoch < 0 or epochs < 0:
        raise ValueError(f"epoch and epochs must not be negative, got {epoch} and {epochs}")
    if epoch >= epochs or final < START:
        return final
    return final + (START - final) * (1.0 - epoch / epochs) ** 3
