"""Which parts of a graph the engine runs, and which PyTorch runs in between.

An engine segment has one input and one output. A value that PyTorch reads is cut out as such an
output, and everything after it starts from it; an addition of values of two segments is left to
PyTorch as well.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mpt_fast.packed.decide import never_zero
from mpt_fast.packed.graph import AddNode, Graph, Node, SignNode, TorchNode
from mpt_fast.packed.lower import Lowering, precise_nodes
from mpt_fast.runtime.program import Program


@dataclass(eq=False)
class EngineStage:
    """One program; `target` = program(`source`)."""

    program: Program
    source: Node
    target: Node


@dataclass(eq=False)
class TorchStage:
    """One operation in PyTorch, in float64 if its result reaches a sign decision."""

    node: TorchNode
    dtype: torch.dtype
    sources: list[Node] = field(default_factory=list)


Stage = EngineStage | TorchStage


def stages(graph: Graph) -> list[Stage]:
    """The stages of `graph` in order; one EngineStage where the engine runs everything."""
    _refuse_zero_signs(graph)
    cuts = _cut(graph)
    precise = precise_nodes(graph.nodes)
    homes: dict[Node, Node] = {}
    found: list[Stage] = []
    for node in graph.nodes:
        if isinstance(node, TorchNode):
            dtype = torch.float64 if node in precise else torch.float32
            found.append(TorchStage(node, dtype, list(node.inputs)))
            homes[node] = node
        elif node is graph.input:
            homes[node] = node
        else:
            homes[node] = homes[node.src]
            if node in cuts:
                source = homes[node]
                shapes = (
                    graph.input_view if source is graph.input else source.shape,
                    graph.output.view or node.shape if node is graph.output.node else node.shape,
                )
                program = Lowering(source, precise).program(node, *shapes)
                found.append(EngineStage(program, source, node))
                homes[node] = node
    return found


def _refuse_zero_signs(graph: Graph) -> None:
    """Leaves to PyTorch every torch.sign that may meet a 0, which is neither -1 nor +1."""
    for node in list(graph.nodes):
        if isinstance(node, SignNode) and node.strict and not never_zero(node.src):
            reason = "torch.sign gives 0 at 0, which may occur here; use mpt_fast.BinaryActivation"
            graph.replace(node, _in_torch(node, reason, lambda dtype, values: values[0].sign()))


def _in_torch(node: Node, reason: str, call: Callable[[torch.dtype, list[Tensor]], Tensor]) -> Node:
    views: list[tuple[int, ...] | None] = [source.shape for source in node.inputs]
    return TorchNode(
        node.name,
        node.shape,
        node.inputs,
        reason=reason,
        operation=node.what,
        call=call,
        views=views,
    )


def _cut(graph: Graph) -> set[Node]:
    """The values that leave an engine segment; leaves additions across segments to PyTorch."""
    while True:
        cuts = {graph.output.node}
        for node in graph.nodes:
            if isinstance(node, TorchNode):
                cuts.update(node.inputs)
        homes: dict[Node, Node] = {}
        for node in graph.nodes:
            starts = node is graph.input or isinstance(node, TorchNode) or node in cuts
            if isinstance(node, AddNode) and homes[node.inputs[0]] is not homes[node.inputs[1]]:
                reason = "it adds values of two engine segments"
                graph.replace(node, _in_torch(node, reason, lambda dtype, v: v[0] + v[1]))
                break
            homes[node] = node if starts else homes[node.src]
        else:
            return cuts
