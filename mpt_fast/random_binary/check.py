"""Looking for large errors of an approximation: the certificate from below."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpt_fast.random_binary.result import Approximation

_BATCH = 256
_WORST = 16  # points from which the ascent starts


@dataclass(frozen=True)
class Observed:
    """The largest errors found: at random points of the ball, at its vertices, by ascent.

    Each is the Euclidean norm of the difference of the outputs for an input of norm <= radius.
    """

    random: float
    vertices: float
    ascent: float

    @property
    def largest(self) -> float:
        """The largest of the three."""
        return max(self.random, self.vertices, self.ascent)


def observe(
    approximation: Approximation,
    target: nn.Module,
    points: int = 512,
    steps: int = 10,
    seed: int = 0,
    vertices: int | None = None,
) -> Observed:
    """Evaluates both networks in float64 and returns the largest errors found.

    `points` random points of the sphere and inside it; `vertices` (None: all) of the 2n points
    +-radius*e_i, evenly spread over i; and the worst of all of them after `steps` steps of gradient
    ascent on the error, projected to the ball. `target` is left as it is.
    """
    model = copy.deepcopy(target).eval().double().cpu()
    shape, radius = approximation.input_shape, approximation.report.radius
    size = math.prod(shape)
    count = 2 * size if vertices is None else min(vertices, 2 * size)

    def error(x: Tensor) -> Tensor:
        images = x.view(-1, *shape)
        return (approximation.module(images) - model(images)).flatten(1).norm(dim=1)

    generator = torch.Generator().manual_seed(seed)
    at_random, starts = _largest(error, _ball(points, size, radius, generator))
    at_vertices, more = _largest(error, _vertices(count, size, radius))
    by_ascent = _ascend(error, torch.cat([starts, more]), steps, radius)
    return Observed(at_random, at_vertices, by_ascent)


def _largest(error: Callable[[Tensor], Tensor], batches: Iterator[Tensor]) -> tuple[float, Tensor]:
    """The largest error over batches of inputs, and the worst inputs."""
    errors, inputs = torch.zeros(0, dtype=torch.float64), None
    with torch.no_grad():
        for x in batches:
            errors = torch.cat([errors, error(x)])
            inputs = x if inputs is None else torch.cat([inputs, x])
            best = errors.topk(min(_WORST, len(errors)))
            errors, inputs = best.values, inputs[best.indices]
    if inputs is None:
        raise ValueError("no points to look at; ask for at least one")
    return float(errors[0]), inputs


def _ball(count: int, size: int, radius: float, generator: torch.Generator) -> Iterator[Tensor]:
    """Directions uniform; half of the points on the sphere, half uniform in the ball."""
    for start in range(0, count, _BATCH):
        x = torch.randn(min(_BATCH, count - start), size, generator=generator, dtype=torch.float64)
        x *= radius / x.norm(dim=1, keepdim=True)
        inside = torch.rand(len(x) // 2, 1, generator=generator, dtype=torch.float64)
        x[: len(x) // 2] *= inside ** (1 / size)
        yield x


def _vertices(count: int, size: int, radius: float) -> Iterator[Tensor]:
    """`count` of the points +-radius*e_i: both signs, the indices i evenly spread."""
    for start in range(0, count, _BATCH):
        numbers = torch.arange(start, min(count, start + _BATCH))
        index = numbers // 2 * size // math.ceil(count / 2)
        x = torch.zeros(len(numbers), size, dtype=torch.float64)
        x[torch.arange(len(numbers)), index] = radius * (1 - 2 * (numbers % 2)).double()
        yield x


def _ascend(error: Callable[[Tensor], Tensor], x: Tensor, steps: int, radius: float) -> float:
    """The largest error after projected steps along the normalised gradient, shrinking."""
    largest = 0.0
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        errors = error(x)
        largest = max(largest, float(errors.detach().max()))
        (gradient,) = torch.autograd.grad(errors.sum(), x)
        length = radius / (2 + step)
        x = x.detach() + length * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-300)
        x = x * (radius / x.norm(dim=1, keepdim=True).clamp(min=radius))
    return largest
