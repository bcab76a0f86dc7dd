"""What a traced model becomes before fusion: nodes with per-image shapes (C, H, W).

A vector of F features is (F, 1, 1). `TorchNode` is whatever the engine has no step for; it runs
in PyTorch between engine segments.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mpt_fast.runtime.program import Pair, Taps

Shape = tuple[int, int, int]


class PackError(ValueError):
    """A model cannot be packed, or a packed model cannot do what was asked; one line, with why."""


@dataclass(eq=False)
class Node:
    """A value: `name` says where it comes from; `uses` counts its readers."""

    name: str
    shape: Shape
    inputs: list["Node"] = field(default_factory=list)
    uses: int = field(default=0, init=False)

    what = "value"

    @property
    def src(self) -> "Node":
        """The only or first input."""
        return self.inputs[0]

    @property
    def bits(self) -> bool:
        """True if every entry is -1 or +1."""
        return False


@dataclass(eq=False)
class InputNode(Node):
    """The model's input."""

    what = "input"


@dataclass(eq=False, kw_only=True)
class ConvNode(Node):
    """Convolution or linear layer: `scale` (float64 [O]) times kept taps, plus `bias`."""

    taps: Taps
    scale: Tensor
    bias: Tensor | None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    label: str = "conv"

    what = "conv"

    @property
    def counted(self) -> bool:
        """True if the sums are integers: +-1 taps over +-1 values."""
        return self.taps.binary and self.src.bits


@dataclass(eq=False, kw_only=True)
class AffineNode(Node):
    """y = scale*x + shift per channel; `apply` computes it exactly as the eager model does.

    `apply` takes and gives float64 [1, C, 1, 1]; `scale` and `shift` are float64 [C].
    """

    scale: Tensor
    shift: Tensor
    apply: Callable[[Tensor], Tensor]
    label: str = "affine"

    what = "affine"


@dataclass(eq=False)
class AddNode(Node):
    """Sum of two values of one shape."""

    what = "add"


@dataclass(eq=False, kw_only=True)
class SignNode(Node):
    """+1 where x >= 0, else -1. `strict` is torch.sign, whose 0 at 0 has to be ruled out."""

    strict: bool = False

    what = "sign"

    @property
    def bits(self) -> bool:
        return True


@dataclass(eq=False)
class ReluNode(Node):
    """max(x, 0)."""

    what = "relu"


@dataclass(eq=False, kw_only=True)
class PoolNode(Node):
    """Pooling window; `average` holds (count_include_pad, divisor) for a mean, None for max."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil_mode: bool = False
    average: tuple[bool, int] | None = None

    what = "pool"

    @property
    def bits(self) -> bool:
        return self.average is None and self.src.bits


@dataclass(eq=False)
class FlattenNode(Node):
    """(C, H, W) -> (C*H*W, 1, 1)."""

    what = "flatten"

    @property
    def bits(self) -> bool:
        return self.src.bits


@dataclass(eq=False, kw_only=True)
class TorchNode(Node):
    """An operation that runs in PyTorch, for the `reason` given.

    `operation` is its class or function. `call` takes a float dtype and the values of the inputs
    (tensors in their eager shapes [N, *view]) and returns whatever the operation returns.
    `bookkeeping` marks sizes and indices, which are no layers of their own.
    """

    reason: str
    operation: str
    call: Callable[[torch.dtype, list[Any]], Any]
    views: list[tuple[int, ...] | None]
    bookkeeping: bool = False

    what = "torch"


@dataclass
class Ref:
    """A traced value: its node and the shape per image the eager model gives it (None: other)."""

    node: Node
    view: tuple[int, ...] | None


class Graph:
    """A traced model: `nodes` in an order that computes, as far as `output` needs them."""

    def __init__(self, input: InputNode, input_view: tuple[int, ...], output: Ref) -> None:
        self.input = input
        self.input_view = input_view
        self.output = output
        self.nodes: list[Node] = []
        self.refresh()

    def refresh(self) -> None:
        """Orders the live nodes and counts their uses anew."""
        self.nodes = []
        stack: list[tuple[Node, bool]] = [(self.output.node, False)]
        seen: set[int] = set()
        while stack:
            node, ready = stack.pop()
            if ready:
                self.nodes.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack.extend((source, False) for source in reversed(node.inputs))
        for node in self.nodes:
            node.uses = 0
        for node in self.nodes:
            for source in node.inputs:
                source.uses += 1
        self.output.node.uses += 1

    def replace(self, old: Node, new: Node) -> None:
        """Puts `new` where `old` stands, for all its readers."""
        for node in self.nodes:
            node.inputs = [new if source is old else source for source in node.inputs]
        if self.output.node is old:
            self.output.node = new
        self.refresh()
