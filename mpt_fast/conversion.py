"""convert: turn the convolutions and linear layers of any model into tickets."""

import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from mpt_fast.config import TicketConfig
from mpt_fast.kernels.layout import is_channels_last
from mpt_fast.nn import MPTConv2d, MPTLinear, TicketLayer
from mpt_fast.selection import EmptiedLayerError, update_masks

_log = logging.getLogger(__name__)

Filter = Callable[[nn.Module, str], bool]


def convert(
    model: nn.Module,
    config: TicketConfig | None = None,
    filter_fn: Filter | None = None,
    *,
    weights: Literal["init", "keep"] = "init",
    subclasses: bool = False,
) -> nn.Module:
    """Replace every nn.Conv2d by MPTConv2d and nn.Linear by MPTLinear, in place; returns the model.

    config: TicketConfig of the new layers (None: its defaults). filter_fn(module, name): False
    leaves that layer as it is; name is qualified ("" for the root). weights: "init" draws new
    frozen weights by config.weight_init, "keep" freezes the present ones. subclasses: False leaves
    subclasses of nn.Conv2d and nn.Linear alone, since what they add would be lost; True converts
    them too.

    Geometry, dtype, device, memory format and training flag are kept, a bias with its value too. A
    module used in several places stays one module, layers that share a weight share weight and
    scores. A root that is itself converted comes back as the new layer. Hooks of replaced layers
    are not carried over.

    Ends with `update_masks`. Scores start at the size 1 / sqrt(fan_in), so at a high sparsity one
    global threshold may empty the widest layers of an untrained model: a warning says so, the
    layers keep the layerwise masks they were made with, and training has to begin at a lower
    sparsity (`mpt_fast.selection.cubic_sparsity`).

    Raises TypeError for a model that is no nn.Module, ValueError for another `weights`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert takes an nn.Module, got {type(model).__name__}")
    if weights not in ("init", "keep"):
        raise ValueError(f"weights must be 'init' or 'keep', got {weights!r}")
    config = TicketConfig() if config is None else config
    replaced: dict[int, TicketLayer] = {}
    owners: dict[int, TicketLayer] = {}
    for name, module in list(model.named_modules()):
        if not _is_convertible(module, subclasses):
            continue
        if filter_fn is not None and not filter_fn(module, name):
            continue
        layer = _ticket(module, config, weights)
        owner = owners.setdefault(id(module.weight), layer)
        if owner is not layer and owner.weight.shape == layer.weight.shape:
            layer.weight, layer.scores = owner.weight, owner.scores
            layer.reset_selection()
        replaced[id(module)] = layer
    root = replaced.get(id(model), model)
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is not None and id(child) in replaced:
                setattr(parent, child_name, replaced[id(child)])
    try:
        update_masks(root)
    except EmptiedLayerError as error:
        _log.warning("the converted model keeps its layerwise masks: %s", error)
    return root


def _is_convertible(module: nn.Module, subclasses: bool) -> bool:
    if subclasses:
        return isinstance(module, (nn.Conv2d, nn.Linear))
    return type(module) in (nn.Conv2d, nn.Linear)


@torch.no_grad()
def _ticket(module: nn.Module, config: TicketConfig, weights: str) -> TicketLayer:
    layer: TicketLayer
    if isinstance(module, nn.Conv2d):
        layer = MPTConv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            module.bias is not None,
            module.padding_mode,
            module.weight.device,
            module.weight.dtype,
            config=config,
        )
    elif isinstance(module, nn.Linear):
        layer = MPTLinear(
            module.in_features,
            module.out_features,
            module.bias is not None,
            module.weight.device,
            module.weight.dtype,
            config=config,
        )
    else:
        raise TypeError(f"cannot convert {type(module).__name__}")
    if weights == "keep":
        layer.weight.copy_(module.weight)
        layer.reset_selection()
    if layer.bias is not None and module.bias is not None:
        layer.bias.copy_(module.bias)
        layer.bias.requires_grad_(module.bias.requires_grad)
    if is_channels_last(module.weight):
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    return layer.train(module.training)
