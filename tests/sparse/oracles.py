"""Every method written out in NumPy, entry by entry, for one layer and SGD with momentum.

Nothing here uses the package: a step takes the weights' gradient and returns nothing but state.
"""

import math

import numpy as np

LR, MOMENTUM, DECAY = 0.1, 0.9, 0.01


class Layer:
    """A weight vector with mask, momentum buffer and step count, trained by SGD."""

    def __init__(self, weight: np.ndarray, mask: np.ndarray) -> None:
        self.mask = mask.copy()
        self.weight = np.where(mask, weight, 0.0)
        self.momentum: np.ndarray | None = None
        self.t = 0

    def sgd(self, gradient: np.ndarray) -> None:
        """PyTorch's SGD: d = g + decay w; v = d at first, then momentum v + d; w -= lr v."""
        step = gradient + DECAY * self.weight
        if self.momentum is None:
            self.momentum = step.copy()
        else:
            self.momentum = MOMENTUM * self.momentum + step
        self.weight = self.weight - LR * self.momentum

    def masked_sgd(self, gradient: np.ndarray) -> None:
        self.sgd(np.where(self.mask, gradient, 0.0))
        self.weight = np.where(self.mask, self.weight, 0.0)
        self.momentum = np.where(self.mask, self.momentum, 0.0)

    def move(self, score: np.ndarray, fraction: float) -> None:
        """Drop and grow, in the words of the paper: lists of entries, sorted."""
        entries = range(len(self.weight))
        kept = [i for i in entries if self.mask[i]]
        moved = int(fraction * len(kept))
        by_size = sorted(kept, key=lambda i: (-abs(self.weight[i]), i))
        keep = set(by_size[: len(kept) - moved])
        candidates = sorted((i for i in entries if i not in keep), key=lambda i: (-score[i], i))
        grown = set(candidates[:moved])
        for i in entries:
            was = bool(self.mask[i])
            self.mask[i] = i in keep or i in grown
            if not self.mask[i] or not was:
                self.weight[i] = 0.0
                if self.momentum is not None:
                    self.momentum[i] = 0.0

    def top(self, score: np.ndarray, count: int) -> np.ndarray:
        """bool: the `count` largest, ties to the lower index."""
        order = sorted(range(len(score)), key=lambda i: (-score[i], i))[:count]
        return np.isin(np.arange(len(score)), order)


def cosine(t: int, alpha: float, t_end: int) -> float:
    return alpha / 2 * (1 + math.cos(math.pi * t / t_end)) if t < t_end else 0.0


def rigl(layer: Layer, gradient: np.ndarray, delta_t: int, alpha: float, t_end: int) -> None:
    if layer.t % delta_t == 0 and layer.t < t_end:
        layer.move(np.abs(gradient), cosine(layer.t, alpha, t_end))
    else:
        layer.masked_sgd(gradient)
    layer.t += 1


def set_(
    layer: Layer,
    gradient: np.ndarray,
    draw: np.ndarray,
    delta_t: int,
    alpha: float,
    t_end: int,
) -> None:
    layer.masked_sgd(gradient)
    if layer.t % delta_t == 0 and layer.t < t_end:
        layer.move(draw, cosine(layer.t, alpha, t_end))
    layer.t += 1


def pruning(
    layer: Layer,
    parked: np.ndarray,
    gradient: np.ndarray,
    kept_at_end: float,
    t_start: int,
    t_end: int,
    frequency: int,
) -> np.ndarray:
    """One step of gradual pruning; returns the values parked outside the mask."""
    layer.masked_sgd(gradient)
    t = layer.t
    layer.t += 1
    if not t_start <= t <= t_end or ((t - t_start) % frequency and t != t_end):
        return parked
    share = 1 - (1 - (t - t_start) / (t_end - t_start)) ** 3
    size = len(layer.weight)
    count = size - math.floor((1 - kept_at_end) * share * size)
    whole = layer.weight + parked
    layer.mask = layer.top(np.abs(whole), count)
    layer.weight = np.where(layer.mask, whole, 0.0)
    layer.momentum = np.where(layer.mask, layer.momentum, 0.0)
    return np.where(layer.mask, 0.0, whole)
