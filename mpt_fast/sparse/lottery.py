"""Lottery tickets (Frankle and Carbin, 2019): found masks over initial weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpt_fast.sparse.weights import Filter, sparse_parameters


@torch.no_grad()
def lottery_restart(
    model: nn.Module,
    initial: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    filter_fn: Filter | None = None,
) -> None:
    """Give the model its initial state again, in place, with zeros outside the masks.

    initial: a copy of `model.state_dict()` from before training (`copy.deepcopy` it: the state dict
    shares memory with the model). masks: `SparseTraining.masks` of the trained network. Train on
    with a fresh optimiser and `Static(model, optimizer, masks=masks)`, or with `RigL` the same way:
    Table 3 of RigL compares both with RigL from random masks, which is better.

    Raises ValueError if a masked layer is not in the model.
    """
    found = sparse_parameters(model, filter_fn)
    for name in masks:
        if name not in found:
            raise ValueError(f"the model has no layer {name!r} to mask; known: {', '.join(found)}")
    model.load_state_dict(initial)
    for name, mask in masks.items():
        found[name].masked_fill_(~mask.to(found[name].device), 0)
