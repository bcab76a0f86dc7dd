"""The loss along a curve between two solutions: a line, or a trained Bezier curve (Fig. 6).

    theta(u) = (1 - u) theta_0 + u theta_1                                                degree 1
    theta(u) = (1 - u)^2 theta_0 + 2 u (1 - u) phi + u^2 theta_1                          degree 2
    theta(u) = (1 - u)^3 theta_0 + 3 u (1 - u)^2 phi_1 + 3 u^2 (1 - u) phi_2 + u^3 theta_1      3

Control points are trained by minimising the mean over u ~ U[0, 1] of the loss (Garipov et al.,
2018). What the paper leaves open is chosen so: in the sparse space every point of the curve has its
weights in the union of the two solutions' masks, the only one of their masks that holds both ends;
the optimiser is Adam; parameters that are never masked (biases, batch norm) follow the curve too;
batch-norm statistics are recomputed at each u that is evaluated.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mpt_fast.sparse.weights import sparse_parameters

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Curve:
    """A Bezier curve in the parameters of a model: its ends and the control points between."""

    points: tuple[Weights, ...]

    @property
    def degree(self) -> int:
        """1 for a line, 2 and 3 for Bezier curves."""
        return len(self.points) - 1

    def at(self, u: float) -> Weights:
        """The parameters at u; 0 and 1 are the ends, other values outside [0, 1] too."""
        n = self.degree
        factors = [math.comb(n, i) * u**i * (1 - u) ** (n - i) for i in range(n + 1)]
        return {
            name: sum((f * p[name] for f, p in zip(factors, self.points, strict=True)), start=0 * x)
            for name, x in self.points[0].items()
        }


def fit_curve(
    model: nn.Module,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    batches: Batches,
    loss: Loss,
    *,
    degree: int = 2,
    sparse: bool = True,
    lr: float = 0.01,
    seed: int = 0,
) -> Curve:
    """A curve from `start` to `end` with low loss, its control points trained on `batches`.

    model: gives the network; its own state is left alone. start, end: state dicts. batches: one
    optimiser step each, at a random u. degree 1 is the line and needs no batch. sparse: keep the
    control points inside the union of the ends' non-zero weights; False lets them use every weight.

    Raises ValueError for another degree or state dicts of another model.
    """
    if degree not in (1, 2, 3):
        raise ValueError(f"degree must be 1 (line), 2 or 3, got {degree!r}")
    network = copy.deepcopy(model).train()
    names = [name for name, _ in network.named_parameters()]
    first, last = _parameters(start, network), _parameters(end, network)
    inner = [
        {name: torch.lerp(first[name], last[name], i / degree).requires_grad_() for name in names}
        for i in range(1, degree)
    ]
    curve = Curve((first, *inner, last))
    if not inner:
        return curve
    outside = _outside(network, first, last) if sparse else {}
    optimizer = torch.optim.Adam([p for point in inner for p in point.values()], lr)
    draw = torch.Generator().manual_seed(seed)
    for images, labels in batches:
        u = float(torch.rand((), generator=draw))
        value = loss(functional_call(network, curve.at(u), (images,)), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            for point in inner:
                for name, mask in outside.items():
                    point[name].masked_fill_(mask, 0)
    return Curve((first, *({n: x.detach() for n, x in point.items()} for point in inner), last))


@torch.no_grad()
def curve_losses(
    model: nn.Module,
    curve: Curve,
    points: Sequence[float],
    batches: Callable[[], Batches],
    loss: Loss,
    statistics: Callable[[], Batches] | None = None,
) -> list[float]:
    """The mean loss over `batches()` at each u, in evaluation mode.

    Before each, the batch-norm statistics are recomputed as the plain mean over `statistics()`
    (None: the same batches). loss: a mean over the batch. The model is left alone.
    """
    network = copy.deepcopy(model)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    found: list[float] = []
    for u in points:
        for name, value in curve.at(u).items():
            network.get_parameter(name).copy_(value)
        if norms:
            network.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
                norm.train()
            for images, _ in (statistics or batches)():
                network(images)
        network.eval()
        total, count = 0.0, 0
        for images, labels in batches():
            total += float(loss(network(images), labels)) * len(labels)
            count += len(labels)
        found.append(total / count)
    return found


def barrier(losses: Sequence[float]) -> float:
    """How far the highest loss of a curve rises above the higher of its two ends."""
    return max(losses) - max(losses[0], losses[-1])


def _parameters(state: Mapping[str, Tensor], model: nn.Module) -> Weights:
    found: Weights = {}
    for name, parameter in model.named_parameters():
        if name not in state or state[name].shape != parameter.shape:
            raise ValueError(f"an end of the curve has no {name!r} of {tuple(parameter.shape)}")
        found[name] = state[name].detach().clone()
    return found


def _outside(model: nn.Module, first: Weights, last: Weights) -> dict[str, Tensor]:
    """Where neither end has a weight, by parameter name."""
    masked = {id(weight) for weight in sparse_parameters(model).values()}
    return {
        name: (first[name] == 0) & (last[name] == 0)
        for name, parameter in model.named_parameters()
        if id(parameter) in masked
    }
