"""Targets of the random_binary tests, and an exact evaluation that shares no code with them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def mlp(dims: Sequence[int], seed: int = 0, bias: bool = False, norm: float = 1.0) -> nn.Sequential:
    """A float64 ReLU network whose weight matrices have spectral norm `norm`."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(dims):
        layer = nn.Linear(n, m, bias=bias).double()
        with torch.no_grad():
            layer.weight *= norm / torch.linalg.matrix_norm(layer.weight, 2)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def integer_mlp(dims: Sequence[int], p: int, seed: int = 0) -> nn.Sequential:
    """Dense random weights N/2**p, -2**p <= N <= 2**p, no biases."""
    rng = np.random.default_rng(seed)
    net = mlp(dims)
    for layer in net:
        if isinstance(layer, nn.Linear):
            numbers = rng.integers(-(2**p), 2**p + 1, layer.weight.shape)
            layer.weight.data = torch.from_numpy(numbers / 2.0**p)
    return net


def exact_mlp(net: nn.Sequential, p: int, x: np.ndarray) -> np.ndarray:
    """g(x) of the quantised network in Python ints: biases ride on a constant that is rescaled.

    x int [N, I] -> object [N, O]. With the weights of a layer scaled by s = 2**e >= 1, e the least
    with |W|, |b| <= s, N = rint(2**p*W/s) and the constant grows by 2**p/s from layer to layer.
    """
    h = x.astype(object).T
    constant: Any = 1
    for layer in net:
        if isinstance(layer, nn.ReLU):
            h = np.where(h > 0, h, 0)
        elif isinstance(layer, nn.Linear):
            parts = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
            largest = max(float(part.detach().abs().max()) for part in parts)
            e = 0
            while largest > 2**e:
                e += 1
            unit = 2 ** (max(p, e) - e)
            weight = _rounded(layer.weight, unit)
            h = weight.dot(h)
            if layer.bias is not None:
                h = h + _rounded(layer.bias, unit)[:, None] * constant
            constant *= unit
    return h.T


def _rounded(values: Tensor, unit: int) -> np.ndarray:
    rounded = np.rint(values.detach().double().numpy() * unit)
    return np.vectorize(int, otypes=[object])(rounded)


def ball(n: int, shape: Sequence[int], radius: float = 1.0, seed: int = 0) -> Tensor:
    """n points of the sphere of `radius`, float64 [n, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return x * (radius / x.flatten(1).norm(dim=1)).view(-1, *[1] * len(shape))


class Residual(nn.Module):
    """Two residual blocks, the second with stride 2 and a projection; batch norms; global mean."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d
        self.stem = nn.Sequential(conv(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.a1 = conv(3, 3, 3, padding=1, bias=False)
        self.a2 = conv(3, 3, 3, padding=1, bias=False)
        self.b1 = conv(3, 4, 3, stride=2, padding=1, bias=False)
        self.b2 = conv(4, 4, 3, padding=1)
        self.skip = nn.Sequential(conv(3, 4, 1, stride=2, bias=False), nn.BatchNorm2d(4))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 2)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.a2(torch.relu(self.a1(x))))
        y = self.b2(torch.relu(self.b1(x)))
        y += self.skip(x)
        return self.fc(self.pool(torch.relu(y)).flatten(1))


def conv_net(seed: int = 0) -> nn.Sequential:
    """Valid and strided convolutions, groups, average and max pools, batch norm, flatten."""
    torch.manual_seed(seed)
    return (
        nn.Sequential(
            nn.Conv2d(1, 4, 5),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
        .double()
        .eval()
    )
