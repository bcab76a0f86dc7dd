"""From a graph to a program: what fuses into one step, and in which kind it is computed.

A value is computed on demand, once, as late and as fused as its readers allow:

- a sign over integer sums becomes one comparison in the convolution (`decide`);
- affine operations and additions are gathered as terms scale*v + shift and go into the step that
  produces v, or the one that joins the terms;
- a real value that reaches a sign decision is computed in float64, any other in float32.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpt_fast.packed.decide import decision, slope_falls, strip
from mpt_fast.packed.graph import (
    AddNode,
    AffineNode,
    ConvNode,
    FlattenNode,
    Node,
    PackError,
    PoolNode,
    ReluNode,
    SignNode,
)
from mpt_fast.runtime.program import (
    AvgPool,
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    Flatten,
    Kind,
    MaxPool,
    Op,
    Program,
    ProgramError,
    Step,
    Value,
)


class Term(NamedTuple):
    """scale*v + shift, float64 [C], of the value v of `base`.

    Where `raw`, v is what lies under that value instead: the sum over taps of a convolution, or
    the maximum of such integer sums. `covers` names the operations passed on the way.
    """

    base: Node
    scale: Tensor
    shift: Tensor
    covers: tuple[str, ...] = ()
    raw: bool = False

    def then(self, affine: AffineNode, shifted: bool) -> "Term":
        """The term after `affine`, whose shift only the first term of a sum takes."""
        shift = self.shift * affine.scale
        return self._replace(
            scale=self.scale * affine.scale,
            shift=shift + affine.shift if shifted else shift,
            covers=(*self.covers, affine.label),
        )


def _value_of(node: Node, *covers: str) -> Term:
    one = torch.ones(node.shape[0], dtype=torch.float64)
    return Term(node, one, torch.zeros_like(one), covers)


def _raw_conv(node: ConvNode) -> Term:
    shift = torch.zeros_like(node.scale) if node.bias is None else node.bias
    label = "scale" if node.counted else node.label
    return Term(node, node.scale, shift, (label,), raw=True)


def precise_nodes(nodes: Sequence[Node]) -> set[Node]:
    """The nodes whose real value reaches a sign decision: computed in float64."""
    precise: set[Node] = set()
    for node in reversed(nodes):
        if isinstance(node, SignNode) or (node in precise and not node.bits):
            counted = isinstance(node, ConvNode) and node.counted
            precise.update(source for source in node.inputs if not (counted or source.bits))
    return precise


class Lowering:
    """Builds the program that computes `target` from `source` (value 0)."""

    def __init__(self, source: Node, precise: set[Node]) -> None:
        self._source = source
        self._precise = precise
        self._steps: list[Step] = []
        self._values: list[Value] = [Value("f32", *source.shape)]
        self._ids: dict[Node, int] = {source: 0}
        self._sums: dict[Node, int] = {}
        self._converted: dict[tuple[int, Kind], int] = {}

    def program(
        self, target: Node, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> Program:
        """The program; `input_shape` and `output_shape` are what the caller sees per image."""
        output = self._value(target)
        return Program(
            input=self._source.shape,
            steps=tuple(self._steps),
            output=output,
            input_shape=input_shape,
            output_shape=output_shape,
        )

    def _add(self, step: Step) -> int:
        try:
            value = step.infer(self._values)
        except ProgramError as error:
            raise PackError(f"{step.name}: {error}") from None
        self._steps.append(step)
        self._values.append(value)
        return len(self._steps)

    def _value(self, node: Node) -> int:
        """Id of the value of `node` itself: bits, f32 or f64."""
        if node not in self._ids:
            self._ids[node] = self._compute(node)
        if node is self._source and node.bits:
            return self._as_bits(node)
        return self._ids[node]

    def _compute(self, node: Node) -> int:
        kind = self._kind(node)
        if isinstance(node, SignNode):
            return self._sign(node)
        if isinstance(node, FlattenNode):
            return self._add(Flatten(src=self._value(node.src), name=node.name, covers=node.what))
        if isinstance(node, ReluNode):
            return self._join(self._inner(node.src), "relu", kind, node.name)
        if isinstance(node, PoolNode) and self._count(node) is None:
            if node.average is not None:
                count_include_pad, divisor = node.average
                return self._add(
                    AvgPool(
                        src=self._real(node.src, kind),
                        kernel=node.kernel,
                        stride=node.stride,
                        padding=node.padding,
                        ceil_mode=node.ceil_mode,
                        count_include_pad=count_include_pad,
                        divisor=divisor,
                        name=node.name,
                        covers="average pool",
                    )
                )
            source = self._value(node.src) if node.bits else self._real(node.src, kind)
            return self._max_pool(node, source)
        return self._join(self._terms(node), "none", kind, node.name)

    def _kind(self, node: Node) -> Kind:
        return "f64" if node in self._precise else "f32"

    def _as_bits(self, node: Node) -> int:
        key: tuple[int, Kind] = (0, "bits")
        if key not in self._converted:
            self._converted[key] = self._combine([_value_of(node)], [0], "sign", "bits", node.name)
        return self._converted[key]

    def _real(self, node: Node, kind: Kind) -> int:
        """Id of the value of `node` in `kind`."""
        value = self._value(node)
        if self._values[value].kind == kind:
            return value
        if (value, kind) not in self._converted:
            term = _value_of(node, "convert")
            self._converted[value, kind] = self._combine([term], [value], "none", kind, node.name)
        return self._converted[value, kind]

    # Integer sums

    def _count(self, node: Node) -> Term | None:
        """`node` as scale*S + shift of integer sums S (or of their maximum), if it is that."""
        if node is self._source:
            return None
        if isinstance(node, ConvNode) and node.counted:
            return _raw_conv(node)
        if isinstance(node, PoolNode) and node.average is None and not node.bits:
            core, affines = strip(node.src)
            term = self._count(core)
            if term is not None:
                for affine in affines:
                    term = term.then(affine, True)
                # The maximum of scale*S + shift is scale*max(S) + shift only while it rises.
                if bool((term.scale > 0).all()):
                    return term._replace(base=node, covers=(*term.covers, "max pool"))
        return None

    def _sums_of(self, node: Node) -> int:
        """Id of the integer sums S under `node`, which `_count` accepts."""
        if node not in self._sums:
            if isinstance(node, ConvNode):
                step = Conv(src=self._value(node.src), **_geometry(node), covers=node.label)
                self._sums[node] = self._add(step)
            else:
                assert isinstance(node, PoolNode)
                self._sums[node] = self._max_pool(node, self._sums_of(strip(node.src)[0]))
        return self._sums[node]

    def _max_pool(self, node: PoolNode, source: int, flip: Tensor | None = None) -> int:
        return self._add(
            MaxPool(
                src=source,
                kernel=node.kernel,
                stride=node.stride,
                padding=node.padding,
                ceil_mode=node.ceil_mode,
                flip=None if flip is None or not flip.any() else flip.numpy(),
                name=node.name,
                covers="max pool",
            )
        )

    # Signs

    def _sign(self, node: SignNode) -> int:
        if node.src.bits:
            return self._value(node.src)
        if node.src.uses == 1:
            return self._decide(node.src, (), node.name)
        return self._join(self._inner(node.src), "sign", "f64", node.name)

    def _decide(self, node: Node, post: tuple[AffineNode, ...], name: str) -> int:
        """Id of the bits sign(post(node)) of the sign `name`; nothing else reads `node`."""
        core, affines = strip(node)
        post = affines + post
        if (
            isinstance(core, PoolNode)
            and core.average is None
            and core.uses == core.src.uses == 1
            and not core.bits
        ):
            flip = slope_falls(post, core.shape[0])
            return self._max_pool(core, self._decide(core.src, post, name), flip)
        found = decision(core, post)
        if found is None:
            terms = self._terms(core) if core.uses == 1 else self._inner(core)
            for affine in post:
                terms = [term.then(affine, k == 0) for k, term in enumerate(terms)]
            return self._join(terms, "sign", "f64", name)
        low, high = found.thresholds()
        covers = [found.conv.label, *(a.label for a in found.inner)]
        residual = -1
        if found.residual is not None:
            residual = self._value(found.residual.node)
            covers += ["add", *(a.label for a in found.residual.affines)]
        covers += [*(a.label for a in post), "sign"]
        return self._add(
            ConvSign(
                src=self._value(found.conv.src),
                **_geometry(found.conv),
                threshold=low.threshold.to(torch.int32).numpy(),
                flip=low.flip.numpy(),
                residual=residual,
                residual_threshold=(
                    None if found.residual is None else high.threshold.to(torch.int32).numpy()
                ),
                covers=" + ".join(covers),
            )
        )

    # Sums of terms

    def _inner(self, node: Node) -> list[Term]:
        """Terms of a value that is read by a step: expanded if nothing else reads it."""
        if node.uses == 1:
            return self._terms(node)
        count = self._count(node)
        return [count or _value_of(node)]

    def _terms(self, node: Node) -> list[Term]:
        """`node` as a sum of scaled and shifted base values."""
        count = self._count(node)
        if count is not None:
            return [count]
        if node is not self._source and isinstance(node, AffineNode):
            terms = self._inner(node.src)
            return [term.then(node, k == 0) for k, term in enumerate(terms)]
        if node is not self._source and isinstance(node, AddNode):
            first, second = (self._inner(source) for source in node.inputs)
            head = first[0]._replace(covers=(*first[0].covers, "add"))
            return [head, *first[1:], *second]
        if isinstance(node, ConvNode) and node is not self._source:
            return [_raw_conv(node)]
        return [_value_of(node)]

    def _join(self, terms: list[Term], act: Op, kind: Kind, name: str) -> int:
        """Id of act(sum of terms), computed in `kind` (bits for a sign)."""
        pooled = self._before_pool(terms, act, kind, name)
        if pooled is not None:
            return pooled
        main = max(
            (term for term in terms if _fusable(term)),
            key=lambda term: _conv_of(term).taps.kept,
            default=None,
        )
        if main is not None:
            return self._conv_affine(main, [t for t in terms if t is not main], act, kind)
        values = [self._base(term, kind) for term in terms]
        only = terms[0]
        if (
            len(terms) == 1
            and act == "none"
            and self._values[values[0]].kind == kind
            and bool((only.scale == 1).all() and (only.shift == 0).all())
        ):
            return values[0]
        return self._combine(terms, values, act, "bits" if act == "sign" else kind, name)

    def _before_pool(self, terms: list[Term], act: Op, kind: Kind, name: str) -> int | None:
        """Rising operations after a max-pool, moved before it where a convolution takes them."""
        if len(terms) != 1 or terms[0].raw or act == "sign":
            return None
        pool, scale, shift, covers, _ = terms[0]
        if (
            not isinstance(pool, PoolNode)
            or pool is self._source
            or pool.average is not None
            or pool.bits
            or pool.uses != 1
            or pool.src.uses != 1
            or not bool((scale > 0).all())
        ):
            return None
        inner = self._terms(pool.src)
        if not any(_fusable(term) for term in inner):
            return None
        moved = [
            t._replace(scale=t.scale * scale, shift=t.shift * scale + (shift if k == 0 else 0.0))
            for k, t in enumerate(inner)
        ]
        moved[0] = moved[0]._replace(covers=(*moved[0].covers, *covers))
        return self._max_pool(pool, self._join(moved, act, kind, name))

    def _base(self, term: Term, kind: Kind) -> int:
        """Id of v in a term."""
        if not term.raw:
            return self._value(term.base)
        if _fusable(term):
            return self._conv_affine(_value_of(term.base, _conv_of(term).label), [], "none", kind)
        return self._sums_of(term.base)

    def _conv_affine(self, main: Term, others: list[Term], act: Op, kind: Kind) -> int:
        """Id of act(main + others) in one step, or two where there is more than one other."""
        conv = _conv_of(main)
        if len(others) > 1:
            first = self._conv_affine(main, [], "none", kind)
            terms = [_value_of(conv), *others]
            values = [first, *(self._base(term, kind) for term in others)]
            target: Kind = "bits" if act == "sign" else kind
            return self._combine(terms, values, act, target, conv.name)
        source = self._real(conv.src, kind)
        other = others[0] if others else None
        return self._add(
            ConvAffine(
                src=source,
                **_geometry(conv),
                scale=self._round(main.scale, kind),
                shift=self._round(main.shift, kind),
                act=act,
                residual=-1 if other is None else self._base(other, kind),
                residual_scale=None if other is None else self._round(other.scale, kind),
                residual_shift=None if other is None else self._round(other.shift, kind),
                covers=_covers([main, *others], act),
            )
        )

    def _combine(self, terms: list[Term], values: list[int], act: Op, kind: Kind, name: str) -> int:
        return self._add(
            Combine(
                srcs=tuple(values),
                scales=tuple(self._round(term.scale, kind) for term in terms),
                shifts=tuple(self._round(term.shift, kind) for term in terms),
                act=act,
                kind=kind,
                name=name,
                covers=_covers(terms, act),
            )
        )

    def _round(self, vector: Tensor, kind: Kind) -> NDArray[np.float64]:
        """float64 [C], of float32 precision for steps that compute in float32."""
        return (vector.float().double() if kind == "f32" else vector).numpy()


def _conv_of(term: Term) -> ConvNode:
    assert isinstance(term.base, ConvNode)
    return term.base


def _fusable(term: Term) -> bool:
    """True if the term is a convolution of real values, which can take what follows it."""
    return term.raw and isinstance(term.base, ConvNode) and not term.base.counted


def _covers(terms: list[Term], act: Op) -> str:
    names = [name for term in terms for name in term.covers]
    return " + ".join(names + ([] if act == "none" else [act]))


def _geometry(node: ConvNode) -> dict[str, Any]:
    return {
        "taps": node.taps,
        "stride": node.stride,
        "padding": node.padding,
        "dilation": node.dilation,
        "groups": node.groups,
        "name": node.name,
    }
