"""How sparse each layer is: uniform, Erdos-Renyi (ER) and Erdos-Renyi-Kernel (ERK).

A layer of N entries and sparsity s keeps exactly N - floor(s N) of them. ER and ERK keep the
density of a layer proportional to

    raw = (n_in + n_out) / (n_in n_out)                       ER: channels only
    raw = (n_in + n_out + kw + kh) / (n_in n_out kw kh)       ERK (Sec. 3 of RigL)

with one factor epsilon for all layers, found so that the whole network keeps what the sparsity
says; a layer whose density would pass 1 is dense and the others share what it saved.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from mpt_fast.config import check_sparsity

Distribution = Literal["uniform", "er", "erk"]
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)

Shapes = Mapping[str, Sequence[int]]
"""Shape of every layer's weight by name, in the network's order: (O, I) or (O, I, kh, kw)."""


def layer_sparsities(
    shapes: Shapes,
    sparsity: float,
    distribution: Distribution = "erk",
    *,
    custom: Mapping[str, float] | None = None,
    dense_first: bool | None = None,
    power: float = 1.0,
) -> dict[str, float]:
    """Sparsity of every layer, in [0, 1), by name.

    sparsity: of the whole network, in [0, 1). "uniform" gives it to every layer but the first.
    custom: sparsities of single layers; they do not count towards the network's. dense_first:
    keeps the first layer dense; None does so for "uniform" if the first layer is a convolution, as
    the papers do on images. power: exponent of ER and ERK (0 gives every layer one density).

    Raises ValueError for an unknown layer or distribution, or if the layers that must be dense
    already hold more than the sparsity allows.
    """
    sparsity = check_sparsity(sparsity)
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}"
        )
    if not (math.isfinite(power) and power >= 0):
        raise ValueError(f"power must be a finite number of at least 0, got {power!r}")
    if not shapes:
        raise ValueError("there is no layer to make sparse")
    fixed = _checked(custom or {}, shapes)
    first = next(iter(shapes))
    if dense_first is None:
        dense_first = distribution == "uniform" and len(shapes[first]) > 2
    if dense_first:
        fixed.setdefault(first, 0.0)
    if distribution == "uniform":
        return {name: fixed.get(name, sparsity) for name in shapes}
    kernel = distribution == "erk"
    raw = {name: _raw(shapes[name], kernel) ** power for name in shapes if name not in fixed}
    epsilon, dense = _solve(raw, {name: math.prod(shapes[name]) for name in raw}, sparsity)
    found = {name: 0.0 if name in dense else 1 - epsilon * raw[name] for name in raw}
    return {name: fixed[name] if name in fixed else found[name] for name in shapes}


def kept_entries(size: int, sparsity: float) -> int:
    """N - floor(s N): entries that a layer of `size` entries keeps."""
    return size - math.floor(sparsity * size)


def erk_epsilon(shapes: Shapes, sparsity: float, distribution: Distribution = "erk") -> float:
    """The factor epsilon of ER or ERK without fixed layers."""
    raw = {name: _raw(shape, distribution == "erk") for name, shape in shapes.items()}
    return _solve(raw, {n: math.prod(shape) for n, shape in shapes.items()}, sparsity)[0]


def _checked(custom: Mapping[str, float], shapes: Shapes) -> dict[str, float]:
    for name in custom:
        if name not in shapes:
            close = difflib.get_close_matches(name, shapes, n=2)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(shapes)}"
            raise ValueError(f"custom sparsity for unknown layer {name!r}; {hint}")
    return {name: check_sparsity(value) for name, value in custom.items()}


def _raw(shape: Sequence[int], kernel: bool) -> float:
    """The paper's term. PyTorch weights have the channels first; the reference has them last."""
    channels, area = shape[:2], shape[2:] if kernel else ()
    return (sum(channels) + sum(area)) / (math.prod(channels) * math.prod(area))


def _solve(
    raw: Mapping[str, float], sizes: Mapping[str, int], sparsity: float
) -> tuple[float, set[str]]:
    """(epsilon, the layers that are dense): no density above 1, the budget met in total."""
    dense: set[str] = set()
    while len(dense) < len(raw):
        budget = sum(kept_entries(sizes[n], sparsity) for n in raw if n not in dense)
        budget -= sum(math.floor(sparsity * sizes[name]) for name in dense)
        if budget <= 0:
            raise ValueError(
                f"sparsity {sparsity:g} cannot be met: the layers that stay dense "
                f"({', '.join(sorted(dense))}) hold more; lower it or use distribution='uniform'"
            )
        epsilon = budget / sum(raw[name] * sizes[name] for name in raw if name not in dense)
        largest = max(raw[name] for name in raw if name not in dense)
        if epsilon * largest <= 1:
            return epsilon, dense
        dense |= {name for name in raw if name not in dense and raw[name] == largest}
    return 0.0, dense
