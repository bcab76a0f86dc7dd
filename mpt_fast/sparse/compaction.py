"""Compaction of sparse fully connected networks: dead pixels and units are removed (App. B)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class CompactNet(nn.Module):
    """The pixels that are read, then linear layers with ReLU between: [N, ...] -> [N, classes]."""

    pixels: Tensor

    def __init__(self, pixels: Tensor, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.register_buffer("pixels", pixels)
        parts: list[nn.Module] = []
        for layer in layers:
            parts += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.flatten(x, 1).index_select(1, self.pixels))


@dataclass(frozen=True)
class Compaction:
    """model: the compact network, equal to the one given up to rounding.

    alive: bool [inputs], the pixels it reads. widths: inputs, hidden units of each layer, classes.
    kept: weights left. size_bytes: 32 bit per weight left and bias, 1 bit per entry of the compact
    matrices and per pixel. flops: of one image, a multiplication and an addition per weight left.
    """

    model: CompactNet
    alive: Tensor
    widths: tuple[int, ...]
    kept: int
    size_bytes: float
    flops: int


@torch.no_grad()
def compact(model: nn.Module) -> Compaction:
    """Remove what no path from input to output uses from linear layers with ReLU between.

    A unit or pixel without an edge out is removed; so is a hidden unit without an edge in, whose
    constant output relu(bias) goes into the next layer's biases (the reference code forgets it).
    Repeated until nothing changes, since each removal takes edges with it. Edges are weights other
    than 0.

    Raises ValueError if the model has anything but linear layers, ReLU, identity, dropout and
    flattening.
    """
    passed = (nn.ReLU, nn.Identity, nn.Flatten, nn.Dropout)
    leaves = [m for m in model.modules() if not any(m.children())]
    # An empty Sequential is a leaf too: networks of this package have one in front.
    linear = [m for m in leaves if isinstance(m, nn.Linear)]
    known = (nn.Linear, *passed)
    strange = [m for m in leaves if not isinstance(m, known) and type(m) is not nn.Sequential]
    if not linear or strange:
        what = type(strange[0]).__name__ if strange else "no linear layer"
        raise ValueError(f"only linear layers with ReLU between can be compacted; found {what}")
    weights = [layer.weight.detach().clone() for layer in linear]
    biases = [
        torch.zeros_like(w[:, 0]) if layer.bias is None else layer.bias.detach().clone()
        for layer, w in zip(linear, weights, strict=True)
    ]
    alive = torch.arange(weights[0].shape[1])
    while True:
        before = sum(w.numel() for w in weights)
        read = (weights[0] != 0).any(0)
        weights[0], alive = weights[0][:, read], alive[read]
        for i in range(len(weights) - 1):
            fed = (weights[i] != 0).any(1)
            constant = torch.relu(biases[i]).masked_fill(fed, 0)
            biases[i + 1] = biases[i + 1] + weights[i + 1] @ constant
            use = fed & (weights[i + 1] != 0).any(0)
            weights[i], biases[i] = weights[i][use], biases[i][use]
            weights[i + 1] = weights[i + 1][:, use]
        if sum(w.numel() for w in weights) == before:
            break
    layers = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=weight.dtype)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        layers.append(layer)
    mask = torch.zeros(linear[0].in_features, dtype=torch.bool)
    mask[alive] = True
    kept = sum(int((w != 0).sum()) for w in weights)
    numbers = kept + sum(b.numel() for b in biases)
    bits = 32 * numbers + sum(w.numel() for w in weights) + mask.numel()
    return Compaction(
        model=CompactNet(alive, layers).train(model.training),
        alive=mask,
        widths=(len(alive), *(len(bias) for bias in biases)),
        kept=kept,
        size_bytes=bits / 8,
        flops=2 * kept,
    )
