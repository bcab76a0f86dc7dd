"""Power-propagation with another power in every layer.

Importance is abs(Psi(s)) = abs(s)**p. With one p for all layers it orders the scores as abs(s) does
and selection never sees it; with several, one global threshold compares importances, not scores.
"""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mpt_fast.kernels.select_topk import Selection, apply_threshold, select_topk
from mpt_fast.kernels.select_topk.op import kept_count
from mpt_fast.nn.ticket import TicketLayer


@torch.no_grad()
def set_power(model: nn.Module, powers: Mapping[str, float]) -> None:
    """Give ticket layers a power of their own, their importances abs(Psi(s)) staying as they are.

    powers: layer name or shell pattern ("convs.0", "linear.*") -> p >= 1; of several patterns that
    match, the last counts. s becomes sign(s) abs(s)**(old p / p), so that the masks stay; with
    score_init "raw" the scores are left alone. Layers of scope "global" then have layerwise masks
    until `update_masks` is called. Raises ValueError for a pattern that names no layer.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, TicketLayer)}
    for pattern, power in powers.items():
        names = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(
                f"power of {pattern!r}: no ticket layer has that name; layers are "
                f"{', '.join(layers)}"
            )
        for name in names:
            layer = layers[name]
            before = layer.config.power
            layer.config = dataclasses.replace(layer.config, power=power)
            if layer.config.score_init != "raw" and before != layer.config.power:
                scores = layer.scores
                scores.copy_(scores.sign() * scores.abs().pow(before / layer.config.power))
            layer.reset_selection()


def select_mixed_powers(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    powers: Sequence[float],
    sparsity: float,
    names: Sequence[str],
) -> Selection:
    """`select_topk` by importance abs(s)**p, a p per tensor; exact, ties to the lower index.

    Importances are compared in float64, in which the powers of two different float32 scores differ
    too. The result is described in the units of each tensor's own scores.
    """
    importance = [
        score.detach().abs().double().pow(power).reshape(-1)
        for score, power in zip(scores, powers, strict=True)
    ]
    every = torch.cat(importance)
    if not bool(every.isfinite().all()):
        return select_topk(weights, scores, sparsity, names=names)  # raises, naming the layer
    total = every.numel()
    kept = kept_count(total, sparsity)
    cut = torch.kthvalue(every, total - kept + 1).values  # counted from the smallest
    ties_left = kept - int((every > cut).sum())
    thresholds, limits = [], []
    for score, value in zip(scores, importance, strict=True):
        flat = score.detach().abs().reshape(-1)
        tied = value == cut
        chosen = torch.nonzero(tied).reshape(-1)[:ties_left]
        ties_left -= chosen.numel()
        keep = value > cut
        keep[chosen] = True
        lowest = flat[keep].min() if bool(keep.any()) else flat.max()
        at_lowest = torch.nonzero(keep & (flat == lowest)).reshape(-1)
        thresholds.append(lowest)
        limits.append(int(at_lowest[-1]) + 1 if at_lowest.numel() else 0)
    device = scores[0].device
    wide = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    return apply_threshold(
        weights,
        scores,
        torch.stack(thresholds).to(wide),
        torch.tensor(limits, device=device),
        names=names,
    )
