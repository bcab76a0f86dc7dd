"""How redundant a random network has to be: the theorem's bound, and what to expect in practice."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpt_fast.random_binary.plan import Demands, Layer, Plan
from mpt_fast.random_binary.stages import Stage
from mpt_fast.random_binary.target import Flatten, MaxPool

Array = NDArray[np.float64]

_CHUNK = 2048  # bundles whose distributions are propagated together
_TAKEN = 1e-3  # a redundancy that is chosen for the user fails about this often
_MOST = 512


def union_bound(width: int, depth: int, redundancy: int, taps: int = 1) -> float:
    """The theorem's bound of the probability that some target of this shape has no mask.

    16*d**2*k**2*D*(r+2)*2**-r for the signs seen by every (neuron, bundle) pair, k**2 kernel taps,
    plus 2*d*exp(-r/2) for the split layer. It speaks of every target of the shape at once.
    """
    pairs = 16.0 * width**2 * taps * depth * redundancy * (redundancy + 2) * 2.0**-redundancy
    return pairs + 2 * width * math.exp(-redundancy / 2)


def theorem_redundancy(width: int, depth: int, failure: float, taps: int = 1) -> int:
    """The smallest redundancy whose `union_bound` is at most `failure`."""
    return next(r for r in range(2, 10_000) if union_bound(width, depth, r, taps) <= failure)


def _tails(most: int) -> Array:
    """[3, most + 1]: P(Bin(l, 1/2) >= need) for need 0, 1, 2 and l = 0 .. most."""
    copies = np.arange(most + 1)
    none = 0.5**copies
    return np.stack([np.ones(most + 1), 1 - none, 1 - none * (1 + copies)])


def _binomials(most: int) -> Array:
    return np.array([float(math.comb(most, k)) for k in range(most + 1)])


def expected_success(plan: Plan) -> float:
    """The probability that the search finds a mask for this plan, over random networks.

    Follows the number of live copies of every bundle from layer to layer; bundles count as
    independent, except for the copies that an accumulator takes from itself.
    """
    live = np.ones((plan.channels, 2))
    live[:, 0] = 0.0
    success = 1.0
    for layer in plan.layers:
        demands = layer.demands()
        source = demands.source % len(live)
        need = np.zeros(len(live), np.int64)
        np.maximum.at(need, source, demands.need)
        enough = np.arange(live.shape[1]) >= need[:, None]
        passed = (live * enough).sum(axis=1)
        success *= float(np.prod(passed))
        if success == 0.0:
            return 0.0
        live = live * enough / passed[:, None]
        live = _propagate(layer, demands, source, live)
    asked = np.unique(plan.layers[-1].demands().out)
    return success * float(np.prod(1 - live[asked, 0]))


def _propagate(layer: Layer, demands: Demands, source: NDArray, live: Array) -> Array:
    """Distribution of live copies of every bundle of `layer`, float64 [bundles, copies + 1]."""
    tails = _tails(live.shape[1] - 1)
    mean = live @ tails.T
    chance = mean[source, demands.need]
    # Neurons of a bundle share their sources' live counts: follow the scarcest source exactly.
    order = np.lexsort((chance, demands.out))
    starts = np.flatnonzero(np.diff(demands.out[order], prepend=-1))
    out, first = demands.out[order][starts], order[starts]
    with np.errstate(divide="ignore"):
        logs = np.log(chance[order])
    logs[starts] = 0.0
    others = np.exp(np.add.reduceat(logs, starts)) if starts.size else np.zeros(0)
    result = np.zeros((layer.bundles, layer.copies + 1))
    result[:, 0] = 1.0
    copies, choose = np.arange(layer.copies + 1), _binomials(layer.copies)
    for start in range(0, out.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        alive = tails[demands.need[first[part]]] * others[part, None]
        chances = choose * alive[..., None] ** copies * (1 - alive[..., None]) ** copies[::-1]
        result[out[part]] = np.einsum("nl,nlk->nk", live[source[first[part]]], chances)
    return result


def expected_failure(steps: Sequence[Stage | Flatten | MaxPool], p: int, redundancy: int) -> float:
    """About how often the search fails if every coefficient has every bit; no target is read.

    One accumulator with the most terms is followed through every layer, lanes likewise.
    """
    stages = [step for step in steps if isinstance(step, Stage)]
    tails = _tails(redundancy)
    copies, choose = np.arange(redundancy + 1), _binomials(redundancy)

    def advance(live: Array, need: int, others: float) -> Array:
        alive = tails[need] * others
        table = choose * alive[:, None] ** copies * (1 - alive[:, None]) ** copies[::-1]
        return live @ table

    full = np.zeros(redundancy + 1)
    full[-1] = 1.0
    total = 0.0
    for stage in stages:
        layers = stage.bits(p) + 1
        terms, bundles = 1, 0
        for row in stage.rows:
            terms = max(terms, sum(int(np.prod(part.positive.shape[1:])) for part in row.parts))
            bundles += 2 * row.sum.result.channels
        lane, failed = full, 0.0
        accumulator = None
        for _ in range(layers):
            chance = float(lane @ tails[1])
            if accumulator is None:
                accumulator = advance(full, 0, chance**terms)
            else:
                accumulator = advance(accumulator, 2, chance**terms)
            lane = advance(lane, 1, 1.0)
            failed = 1 - (1 - failed) * (1 - float(accumulator[:2].sum()))
            accumulator[:2] = 0.0
            if not accumulator.sum() > 0:
                return 1.0
            accumulator /= accumulator.sum()
        total += bundles * failed
        if stage.rows[0].sum.output and accumulator is not None:
            total += bundles * float(accumulator @ (1 - tails[1]))
    return min(1.0, total)


def choose_redundancy(
    steps: Sequence[Stage | Flatten | MaxPool], p: int, failure: float = _TAKEN
) -> int:
    """The smallest redundancy whose `expected_failure` is at most `failure`."""
    for redundancy in range(4, _MOST):
        if expected_failure(steps, p, redundancy) <= failure:
            return redundancy
    return _MOST
