"""One topology update of one layer, as a function of tensors; no optimiser, no model."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Decay = Literal["cosine", "constant", "power"]
DECAYS: tuple[str, ...] = get_args(Decay)


class Update(NamedTuple):
    """mask: the new mask, bool. new: kept now and not before, bool; these start at 0."""

    mask: Tensor
    new: Tensor


def top_mask(score: Tensor, count: int) -> Tensor:
    """bool, the shape of `score`: its `count` largest entries, ties to the lower flat index."""
    flat = score.reshape(-1)
    if not 0 <= count <= flat.numel():
        raise ValueError(f"cannot keep {count} of {flat.numel()} entries")
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    least = torch.topk(flat, count, sorted=False).values.min()
    mask = flat > least
    ties = (flat == least).nonzero().squeeze(1)
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view(score.shape)


def drop_and_grow(weight: Tensor, mask: Tensor, grow_score: Tensor, fraction: float) -> Update:
    """Drop the smallest weights, grow where the score is highest; keeps the number of entries.

    With n entries kept and k = int(fraction n): K are the n - k largest abs(weight) of the mask
    (zeros inside the mask before those outside); G the k highest `grow_score` outside K, so that an
    entry just dropped may come back; the new mask is K and G. An entry that comes back is not
    `new`: its weight and its optimiser slots are left as they were, as in the reference.
    (Algorithm 1 of RigL; its ArgTopK(-abs(weight), k) is what K leaves out.)

    weight, grow_score: float, any one shape. mask: bool. fraction: in [0, 1].
    """
    kept = int(mask.sum())
    moved = int(fraction * kept)
    if moved == 0:
        return Update(mask.clone(), torch.zeros_like(mask))
    keep = top_mask(weight.abs().masked_fill(~mask, -1), kept - moved)
    grown = top_mask(grow_score.masked_fill(keep, -math.inf), moved)
    after = keep | grown
    if bool((keep & grown).any()) or int(after.sum()) != kept:
        raise RuntimeError("the grow scores are not finite; lower the learning rate")
    return Update(after, grown & ~mask)


def drop_fraction(
    t: int,
    alpha: float,
    t_end: int | None,
    decay: Decay = "cosine",
    *,
    t_start: int = 0,
    power: float = 1.0,
) -> float:
    """The fraction of a layer's entries that an update at step t moves.

    "cosine": alpha / 2 (1 + cos(pi t / t_end)), which does not see t_start; "constant": alpha;
    "power": alpha (1 - (t - t_start) / (t_end - t_start)) ** power. 0 from t_end on.
    """
    if t_end is None:
        if decay != "constant":
            raise ValueError(f"decay={decay!r} needs t_end; give it, or use decay='constant'")
        return alpha
    if t >= t_end:
        return 0.0
    if decay == "cosine":
        return alpha / 2 * (1 + math.cos(math.pi * t / t_end))
    if decay == "power":
        return alpha * (1 - (t - t_start) / (t_end - t_start)) ** power
    return alpha
