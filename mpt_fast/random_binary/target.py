"""A target network as sums of linear maps of values, and the order in which they are computed.

The traced model (`mpt_fast.packed.trace`) becomes a list of steps: `Sum` (linear maps of earlier
values, a bias, perhaps a ReLU), `Flatten` and `MaxPool`. Batch norm, constants and residual
additions disappear into the sums. `schedule` puts sums that can be computed side by side into
groups, and says which values have to be carried past each group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpt_fast.packed.graph import (
    AddNode,
    AffineNode,
    ConvNode,
    FlattenNode,
    InputNode,
    Node,
    PackError,
    PoolNode,
    ReluNode,
    SignNode,
    TorchNode,
)
from mpt_fast.packed.trace import trace
from mpt_fast.runtime.program import Pair, pool_size

Array = NDArray[np.float64]


class TargetError(ValueError):
    """A target that cannot be approximated; one line that names the layer and the reason."""


@dataclass(eq=False)
class Value:
    """A value of the target: `channels` maps of `size`.

    A `signed` value is represented by two nonnegative lanes, its positive and its negative part.
    `base` is the signed value of which this one is the positive part (a ReLU that costs nothing).
    `folded` is the (C, H, W) that a flattened value had; its channels are ordered (H, W, C).
    """

    name: str
    channels: int
    size: Pair
    signed: bool
    base: "Value | None" = None
    folded: tuple[int, int, int] | None = None

    @property
    def root(self) -> "Value":
        """The value whose lanes this one uses."""
        return self.base or self


class Term(NamedTuple):
    """weight [O, C, kh, kw] over the maps of `source`; tap (u, v) of output pixel (i, k) reads
    pixel (i*stride - padding + u*dilation, k*stride - ...), and zero outside the map.

    `skip` says that the weight is the identity whatever the target's numbers are."""

    source: Value
    weight: Array
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    skip: bool = False


@dataclass(eq=False)
class Sum:
    """result = sum of terms + bias, then ReLU if `relu`.

    `divisor` is not 0 for an average pool, whose weights are 1/divisor; `exact` says that every
    weight is a small integer multiple of 1 (or of 1/divisor) whatever the target's numbers are.
    """

    result: Value
    terms: list[Term]
    bias: Array | None
    relu: bool = False
    divisor: int = 0
    output: bool = False

    @property
    def exact(self) -> bool:
        """Whether the weights follow from the target's shape alone."""
        return self.bias is None and (bool(self.divisor) or all(term.skip for term in self.terms))

    @property
    def sources(self) -> list[Value]:
        """The values read."""
        return [term.source for term in self.terms]


@dataclass(eq=False)
class Flatten:
    """(C, H, W) -> (C*H*W, 1, 1)."""

    source: Value
    result: Value

    @property
    def sources(self) -> list[Value]:
        """The value read."""
        return [self.source]


@dataclass(eq=False)
class MaxPool:
    """Maximum over windows of a nonnegative value; padding never wins."""

    source: Value
    result: Value
    kernel: Pair
    stride: Pair
    padding: Pair

    @property
    def sources(self) -> list[Value]:
        """The value read."""
        return [self.source]


Step = Sum | Flatten | MaxPool


@dataclass
class Group:
    """Sums computed side by side from the values `state`; `carried` live on afterwards."""

    sums: list[Sum]
    state: list[Value]
    carried: list[Value]
    constant: bool  # whether the constant 1 is needed by this group
    constant_after: bool  # or by a later one


@dataclass
class Target:
    """A target as groups and reshapes in order; `constant` says that some sum has a bias."""

    input: Value
    input_view: tuple[int, ...]
    output_view: tuple[int, ...]
    steps: list[Group | Flatten | MaxPool]
    constant: bool


def read_target(model: nn.Module, input_shape: Sequence[int] | None = None) -> Target:
    """Reads a ReLU network; `input_shape` is that of one input, without the batch.

    It may be left out where the first layer with weights is an nn.Linear. Raises TargetError
    naming the first operation that a network of additions and ReLUs has no form for.
    """
    shape = _input_shape(model) if input_shape is None else tuple(input_shape)
    try:
        graph = trace(model, torch.zeros(1, *shape))
    except PackError as error:
        raise TargetError(str(error)) from None
    reader = _Reader()
    for node in graph.nodes:
        for source in node.inputs:
            reader.readers.setdefault(source, []).append(node)
    for node in graph.nodes:
        reader.visit(node)
    output = reader.pending(graph.output.node)
    reader.emit(output, "output", output=True)
    steps, constant = _schedule(reader.steps, reader.input)
    assert graph.output.view is not None
    return Target(reader.input, graph.input_view, graph.output.view, steps, constant)


def _input_shape(model: nn.Module) -> tuple[int, ...]:
    for module in model.modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "MPTLinear":
            return (int(module.in_features),)  # type: ignore[arg-type]  # MPTLinear is no nn.Linear
        if next(module.parameters(recurse=False), None) is not None:
            break
    raise TargetError(
        f"{type(model).__name__} does not begin with a linear layer; give input_shape=(C, H, W)"
    )


@dataclass
class _Pending:
    """A sum that has no value yet, so that more can be folded into it."""

    terms: list[Term]
    bias: Array | None
    channels: int
    size: Pair

    def geometry(self) -> set[tuple[Pair, Pair]]:
        return {(term.stride, term.source.size) for term in self.terms}


@dataclass
class _Reader:
    steps: list[Step] = field(default_factory=list)
    env: dict[Node, Value | _Pending] = field(default_factory=dict)
    input: Value = field(init=False)
    readers: dict[Node, list[Node]] = field(default_factory=dict)

    def visit(self, node: Node) -> None:
        handlers = {
            InputNode: self._input,
            ConvNode: self._conv,
            AffineNode: self._affine,
            AddNode: self._add,
            ReluNode: self._relu,
            PoolNode: self._pool,
            FlattenNode: self._flatten,
        }
        if isinstance(node, TorchNode):
            raise TargetError(
                f"{node.name} ({node.operation}): {node.reason}; a target has linear and "
                "convolution layers, batch norm, ReLU, additions and pooling"
            )
        if isinstance(node, SignNode):
            raise TargetError(f"{node.name}: a sign is no ReLU; give a network with ReLUs")
        value = handlers[type(node)](node)  # type: ignore[operator]  # one handler for each class
        if isinstance(value, _Pending) and node.uses > 1:
            value = self.emit(value, node.name)
        self.env[node] = value

    def emit(
        self, sum_: _Pending, name: str, relu: bool = False, divisor: int = 0, output: bool = False
    ) -> Value:
        """Gives a pending sum a value of its own."""
        positive = relu or (bool(divisor) and not sum_.terms[0].source.signed)
        result = Value(name, sum_.channels, sum_.size, signed=not positive)
        self.steps.append(Sum(result, sum_.terms, sum_.bias, relu, divisor, output))
        return result

    def value(self, node: Node) -> Value:
        """The value of a node."""
        found = self.env[node]
        if isinstance(found, _Pending):
            found = self.env[node] = self.emit(found, node.name)
        return found

    def pending(self, node: Node) -> _Pending:
        """A node as a sum; the identity of a value."""
        found = self.env[node]
        if isinstance(found, Value):
            eye = np.eye(found.channels)[:, :, None, None]
            return _Pending([Term(found, eye, skip=True)], None, found.channels, found.size)
        return found

    def _input(self, node: InputNode) -> Value:
        self.input = Value(node.name, node.shape[0], node.shape[1:], signed=True)
        return self.input

    def _conv(self, node: ConvNode) -> _Pending:
        source = self.value(node.src)
        dense = node.taps.to_dense(np.float64) * node.scale.numpy()[:, None, None, None]
        weight = _ungrouped(dense, node.groups)
        spans = [d * (k - 1) for d, k in zip(node.dilation, weight.shape[2:], strict=True)]
        if any(2 * pad > span for pad, span in zip(node.padding, spans, strict=True)):
            raise TargetError(
                f"{node.name}: padding {node.padding} exceeds half of the kernel; pad less"
            )
        term = Term(source, weight, node.stride, node.padding, node.dilation)
        return _Pending([term], _array(node.bias), node.shape[0], node.shape[1:])

    def _affine(self, node: AffineNode) -> _Pending:
        inner = self.pending(node.src)
        scale, shift = node.scale.numpy(), node.shift.numpy()
        columns = scale[:, None, None, None]
        terms = [t._replace(weight=t.weight * columns, skip=False) for t in inner.terms]
        # A batch norm has a bias whatever its numbers are; a mere factor has none.
        bias = None if inner.bias is None else inner.bias * scale
        if node.label == "bn" or shift.any():
            bias = shift if bias is None else bias + shift
        return _Pending(terms, bias, inner.channels, inner.size)

    def _add(self, node: AddNode) -> _Pending:
        parts = [self.pending(source) for source in node.inputs]
        common = set.union(*(part.geometry() for part in parts))
        if len(common) > 1:
            # Only sums over maps of the result's own size can share a layer with a skip.
            plain = {((1, 1), node.shape[1:])}
            for source, part in zip(node.inputs, parts, strict=True):
                if part.geometry() != plain:
                    self.value(source)
            parts = [self.pending(source) for source in node.inputs]
        biases = [part.bias for part in parts if part.bias is not None]
        return _Pending(
            [term for part in parts for term in part.terms],
            np.sum(biases, axis=0) if biases else None,
            node.shape[0],
            node.shape[1:],
        )

    def _relu(self, node: Node) -> Value:
        found = self.env[node.src]
        if isinstance(found, _Pending):
            return self.emit(found, node.name, relu=True)
        if not found.signed:
            return found
        return Value(node.name, found.channels, found.size, signed=False, base=found)

    def _pool(self, node: PoolNode) -> Value:
        for axis, length in enumerate(node.src.shape[1:]):
            size = pool_size(
                length, node.kernel[axis], node.stride[axis], node.padding[axis], ceil_mode=False
            )
            if size != node.shape[1 + axis]:
                raise TargetError(f"{node.name}: ceil_mode changes its result; set it to False")
        if node.average is None:
            return self._max_pool(node)
        source = self.value(node.src)
        include, divisor = node.average
        if any(node.padding) and not (include or divisor):
            raise TargetError(
                f"{node.name}: count_include_pad=False with padding divides by different numbers; "
                "set it to True"
            )
        divisor = divisor or math.prod(node.kernel)
        kernel = np.full(node.kernel, 1 / divisor)
        weight = np.eye(source.channels)[:, :, None, None] * kernel
        sum_ = _Pending(
            [Term(source, weight, node.stride, node.padding)], None, node.shape[0], node.shape[1:]
        )
        return self.emit(sum_, node.name, divisor=divisor)

    def _max_pool(self, node: PoolNode) -> Value:
        followers = self.readers.get(node, [])
        if followers and all(isinstance(reader, ReluNode) for reader in followers):
            source = self._relu(node)  # max(relu(x)) = relu(max(x)), and relu(x) has no sign
        else:
            source = self.value(node.src)
        if source.signed:
            raise TargetError(
                f"{node.name}: a max-pool of values that may be negative; put the ReLU before it"
            )
        result = Value(node.name, node.shape[0], node.shape[1:], signed=False)
        self.steps.append(MaxPool(source, result, node.kernel, node.stride, node.padding))
        return result

    def _flatten(self, node: FlattenNode) -> Value:
        source = self.value(node.src)
        channels, height, width = node.src.shape
        result = Value(
            node.name,
            node.shape[0],
            (1, 1),
            signed=source.signed,
            folded=(channels, height, width),
        )
        self.steps.append(Flatten(source, result))
        return result


def _array(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else tensor.numpy().astype(np.float64)


def _ungrouped(weight: Array, groups: int) -> Array:
    if groups == 1:
        return weight
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    full = np.zeros((weight.shape[0], inputs * groups, *weight.shape[2:]))
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        full[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return full


def _schedule(steps: list[Step], source: Value) -> tuple[list[Group | Flatten | MaxPool], bool]:
    """Orders the steps; sums with one geometry that are ready together share a group."""
    left, state = list(steps), [source]
    constant = any(isinstance(step, Sum) and step.bias is not None for step in left)
    result: list[Group | Flatten | MaxPool] = []
    while left:
        chosen = _next(left, state)
        left = [step for step in left if step not in chosen]
        live = {value.root for step in left for value in step.sources}
        carried = [value for value in state if value in live]
        first = chosen[0]
        if isinstance(first, Sum):
            sums = [step for step in chosen if isinstance(step, Sum)]
            later = any(isinstance(step, Sum) and step.bias is not None for step in left)
            needed = any(step.bias is not None for step in sums)
            result.append(Group(sums, state, carried, needed or later, later))
        else:
            result.append(first)
        state = [step.result for step in chosen] + carried
    return result, constant


def _geometry(step: Step) -> tuple:
    if not isinstance(step, Sum):
        return (id(step),)
    term = step.terms[0]
    return (term.source.size, step.result.size, term.stride, step.divisor, step.output)


def _next(left: list[Step], state: list[Value]) -> list[Step]:
    known = set(state)
    ready = [step for step in left if known.issuperset(v.root for v in step.sources)]
    for keep in (True, False):  # first what leaves the maps' size alone and lets values pass
        for step in ready:
            group = [other for other in ready if _geometry(other) == _geometry(step)]
            rest = [other for other in left if other not in group]
            live = known & {value.root for other in rest for value in other.sources}
            preserving = (
                isinstance(step, Sum)
                and step.result.size == step.terms[0].source.size
                and step.terms[0].stride == (1, 1)
            )
            if preserving if keep else not live:
                return group
    step = ready[0]
    raise TargetError(
        f"{step.result.name}: a value is carried past this change of map size by a skip "
        "connection; a skip needs a layer of the same stride in its branch"
    )
