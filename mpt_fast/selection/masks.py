"""Selection over whole models.

Every function takes any nn.Module and acts on its TicketLayers, each once however often the model
uses it. Masks depend on nothing but the scores, so replicas with equal scores get equal masks
without communication.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mpt_fast.config import check_sparsity
from mpt_fast.kernels.select_topk import (
    EmptiedLayerError,
    Selection,
    apply_threshold,
    layer_gains,
    select_topk,
    threshold_from_quantile,
)
from mpt_fast.nn.ticket import TicketLayer
from mpt_fast.selection.powers import select_mixed_powers


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """Fractions pruned: of the whole model (`total`) and per layer name; kept of size weights."""

    total: float
    kept: int
    size: int
    layers: dict[str, float]


def ticket_layers(model: nn.Module) -> dict[str, TicketLayer]:
    """The model's ticket layers by qualified name, in order; they learn their names from this."""
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, TicketLayer)
    }
    for name, layer in layers.items():
        layer.label = name
    return layers


def update_masks(model: nn.Module) -> None:
    """Select anew for every layer of scope "global"; call it once per step, before the forward.

    Layers of equal sparsity and selection are one pool with one threshold, on the scores, or on the
    importances abs(s)**p where powers differ; layers that share a scores parameter count once.
    Layers of scope "layer" select in their own forward, layers being fine-tuned keep their mask:
    both are left alone.

    Raises ValueError naming the layer whose scores are not finite, and EmptiedLayerError (a
    ValueError) naming the layer that would keep nothing; no layer is changed then.
    """
    pools: dict[tuple[float, str, str], list[TicketLayer]] = defaultdict(list)
    for layer in ticket_layers(model).values():
        config = layer.config
        if config.scope == "global" and not layer.finetuning:
            pools[config.sparsity, config.selection, config.compat].append(layer)
    selected = [(pool, *_select(pool)) for pool in pools.values()]
    for pool, selection, gains in selected:
        for index, layer in enumerate(pool):
            layer.adopt(selection, gains, index)
            layer.threshold_fixed = layer.config.selection == "threshold"


def _select(pool: list[TicketLayer]) -> tuple[Selection, torch.Tensor]:
    config = pool[0].config
    owners = list({id(layer.scores): layer for layer in reversed(pool)}.values())[::-1]
    names = [layer.name for layer in owners]
    weights = [layer.weight for layer in owners]
    scores = [layer.scores for layer in owners]
    powers = [layer.config.power for layer in owners]
    if config.selection == "threshold" and len(set(powers)) > 1:
        raise ValueError(
            "selection='threshold' with several powers has no one threshold; use 'exact', or give "
            "the layers one power"
        )
    if config.selection == "threshold" or config.compat == "biprop":
        if config.selection == "threshold" and all(layer.threshold_fixed for layer in pool):
            cuts = torch.stack([layer.threshold for layer in owners])
        else:
            cut = threshold_from_quantile(scores, config.sparsity, names=names)
            if config.compat == "biprop" and int(config.sparsity * _numel(scores)) == 0:
                raise EmptiedLayerError(
                    "compat='biprop' prunes everything where nothing is to be pruned (a global "
                    "prune_rate of 1); use a prune_rate below 1 or compat='none'"
                )
            cuts = torch.stack([torch.full_like(layer.threshold, cut) for layer in owners])
        limits = torch.zeros(len(owners), dtype=torch.int64, device=cuts.device)
        selection = apply_threshold(weights, scores, cuts, limits, names=names)
    elif len(set(powers)) > 1:
        selection = select_mixed_powers(weights, scores, powers, config.sparsity, names)
    else:
        backend = "reference" if config.selection == "sort" else None
        selection = select_topk(weights, scores, config.sparsity, backend, names)
    if len(owners) < len(pool):
        owner = {id(layer.scores): index for index, layer in enumerate(owners)}
        index = [owner[id(layer.scores)] for layer in pool]
        names = [layer.name for layer in pool]
        selection = apply_threshold(
            [layer.weight for layer in pool],
            [layer.scores for layer in pool],
            selection.thresholds[index],
            selection.tie_limits[index],
            names=names,
        )
    return selection, layer_gains(selection, names)


def _numel(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def set_sparsity(model: nn.Module, sparsity: float) -> None:
    """Prune every ticket layer to `sparsity` (fraction pruned, in [0, 1)) and select anew.

    Raises ValueError outside that range or while a layer is being fine-tuned, and as `update_masks`
    does; the masks are the old ones then.
    """
    sparsity = check_sparsity(sparsity)
    for layer in ticket_layers(model).values():
        layer.sparsity = sparsity
    update_masks(model)


def finetune(model: nn.Module, enabled: bool = True) -> None:
    """Fix all masks at the current scores and train the weights; False trains the scores again."""
    if enabled:
        update_masks(model)
    for layer in ticket_layers(model).values():
        layer.finetune(enabled)


def realised_sparsity(model: nn.Module) -> SparsityReport:
    """The fraction that the masks really prune, per layer and in total (0 of no layers)."""
    counts = {
        name: (int(layer.mask().sum()), layer.weight.numel())
        for name, layer in ticket_layers(model).items()
    }
    kept = sum(count for count, _ in counts.values())
    size = sum(numel for _, numel in counts.values())
    return SparsityReport(
        total=1 - kept / size if size else 0.0,
        kept=kept,
        size=size,
        layers={name: 1 - count / numel for name, (count, numel) in counts.items()},
    )
