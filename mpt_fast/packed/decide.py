"""Signs of integer sums: which operations fold into an integer threshold, and the threshold.

    conv of +-1 by +-1 -> [max-pool] -> affines -> [+ affines of a +-1 residual] -> affines -> sign

is one comparison of the integer sum with a constant per channel (two constants with a residual).
A max-pool moves behind the sign: the largest of the sums passes the threshold where any of them
does (OR), or where all do if the operations after the pool fall with the sum (AND).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mpt_fast.packed.graph import AddNode, AffineNode, ConvNode, Node, PoolNode
from mpt_fast.packed.thresholds import Formula, Thresholds, falls, solve


@dataclass(frozen=True)
class Residual:
    """A +-1 value added to the sums after the operations `affines` (inner first)."""

    node: Node
    affines: tuple[AffineNode, ...]


@dataclass(frozen=True)
class Decision:
    """What a sign reads: a counted convolution and what lies between them, inner first.

    `inner` acts on the convolution alone, `post` after the residual; `pools` are the max-pools
    passed on the way with the number of affine operations of `post` that lie inside them.
    """

    conv: ConvNode
    inner: tuple[AffineNode, ...]
    residual: Residual | None
    post: tuple[AffineNode, ...]

    def formula(self, sign: float) -> Formula:
        """The eager model's float64 value before the sign, for a residual of `sign`."""

        def evaluate(count: Tensor) -> Tensor:
            value = count * self.conv.scale.view(1, -1, 1, 1)
            if self.conv.bias is not None:
                value = value + self.conv.bias.view(1, -1, 1, 1)
            value = _through(self.inner, value)
            if self.residual is not None:
                value = value + _through(self.residual.affines, torch.full_like(value, sign))
            return _through(self.post, value)

        return evaluate

    def thresholds(self) -> tuple[Thresholds, Thresholds]:
        """For a residual of -1 and of +1; the same twice where there is none."""
        taps = self.conv.taps
        limit = torch.from_numpy(taps.indptr).diff().to(torch.int64)
        low, high = self.formula(-1.0), self.formula(1.0)
        flip = falls(low, limit) | falls(high, limit)
        return solve(low, limit, flip), solve(high, limit, flip)


def _through(affines: tuple[AffineNode, ...], value: Tensor) -> Tensor:
    for affine in affines:
        value = affine.apply(value)
    return value


def strip(node: Node) -> tuple[Node, tuple[AffineNode, ...]]:
    """`node` without the affine operations on it that nothing else reads; those, inner first."""
    affines: list[AffineNode] = []
    while isinstance(node, AffineNode) and node.uses == 1:
        affines.append(node)
        node = node.src
    return node, tuple(reversed(affines))


def decision(core: Node, post: tuple[AffineNode, ...]) -> Decision | None:
    """The integer decision sign(post(core)), or None where `core` is no integer sum."""
    if core.uses != 1:
        return None
    if isinstance(core, ConvNode) and core.counted:
        return Decision(core, (), None, post)
    if isinstance(core, AddNode):
        for first, second in (core.inputs, core.inputs[::-1]):
            conv, inner = strip(first)
            other, affines = strip(second)
            if isinstance(conv, ConvNode) and conv.counted and conv.uses == 1 and other.bits:
                return Decision(conv, inner, Residual(other, affines), post)
    return None


def slope_falls(affines: tuple[AffineNode, ...], channels: int) -> Tensor:
    """bool [channels]: the composition of `affines` falls."""
    falling = torch.zeros(channels, dtype=torch.bool)
    for affine in affines:
        falling ^= affine.scale < 0
    return falling


def never_zero(node: Node) -> bool:
    """True if the value that a torch.sign reads is proved not to be 0: sums off every threshold.

    A max-pool in between chooses among values that are all proved.
    """
    post: tuple[AffineNode, ...] = ()
    if node.uses != 1:
        return False
    while True:
        core, affines = strip(node)
        post = affines + post
        if not (isinstance(core, PoolNode) and core.average is None and core.uses == 1):
            break
        node = core.src
    found = decision(core, post)
    if found is None:
        return False
    low, high = found.thresholds()
    return not bool((low.hits_zero | high.hits_zero).any())
