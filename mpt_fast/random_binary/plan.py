"""From stages to the layers of the random network: its shape, and who needs which sign from whom.

A *bundle* is `copies` neurons that carry one value. Neurons, bundles and kernel boxes follow from
the target's shape, p and the redundancy alone; the demands, from the coefficients:

    split        two bundles per input, sigma(x) and sigma(-x), share one block of neurons
    horner       p + 1 layers, bit j = p .. 0: an accumulator is doubled (two +1 edges from two
                 copies of itself) and takes one +1 edge from each lane whose coefficient has bit
                 j; lanes that later bits need are copied
    difference   sigma(A+ - A-): one +1 and one -1 edge; one neuron per output in the last layer
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpt_fast.random_binary.stages import Row, Stage
from mpt_fast.random_binary.target import Flatten, MaxPool, Target, Value
from mpt_fast.runtime.program import Pair

Index = NDArray[np.int64]
Flags = NDArray[np.bool_]
Kind = Literal["split", "horner", "difference", "output"]


class Pool(NamedTuple):
    """A max-pool of every neuron's map."""

    kernel: Pair
    stride: Pair
    padding: Pair


class Demands(NamedTuple):
    """For every neuron of bundle `out`: `need` edges of one sign from distinct copies of `source`.

    `source` counts the bundles of the layer before, after its maps were flattened (pixel-major).
    """

    out: Index
    source: Index
    tap: Index
    negative: Flags
    need: NDArray[np.int8]


@dataclass
class Layer:
    """One random layer: `width` neurons in blocks of `copies`, a kernel box, no bias.

    A neuron's map has `out_size`; output pixel i reads pixels i*stride - padding + tap. `flat` is
    the number of pixels per map if the maps before it are flattened, otherwise 0; `pools` come
    before that. `unit` is the factor by which the values' scale grows with this layer.
    """

    index: int
    kind: Kind
    name: str
    copies: int
    blocks: int
    block: Index  # of each bundle
    sources: int  # neurons read, after flattening
    kernel: Pair
    padding: Pair
    stride: Pair
    out_size: Pair
    relu: bool
    flat: int = 0
    pools: tuple[Pool, ...] = ()
    unit: int = 1
    demands: Callable[[], Demands] = field(repr=False, default=lambda: _join([]))

    @property
    def width(self) -> int:
        """Number of neurons (channels)."""
        return self.blocks * self.copies

    @property
    def bundles(self) -> int:
        """Number of bundles."""
        return self.block.size

    @property
    def drawn(self) -> int:
        """Number of random signs."""
        return self.width * self.sources * self.kernel[0] * self.kernel[1]


@dataclass
class Plan:
    """The layers of a random network, and the prunable copies of its inputs."""

    inputs: int  # channels of the target's input
    size: Pair  # of its maps
    constant: bool  # whether a channel of ones is appended
    redundancy: int
    layers: list[Layer]

    @property
    def channels(self) -> int:
        """Input channels of the random network."""
        return self.inputs + self.constant


def _join(parts: Sequence[tuple[Index, Index, Index | int, bool | Flags, int]]) -> Demands:
    columns: list[list[NDArray]] = [[], [], [], [], []]
    for out, source, tap, negative, need in parts:
        for column, item in zip(columns, (out, source, tap, negative, need), strict=True):
            column.append(np.broadcast_to(item, out.shape))
    dtypes = (np.int64, np.int64, np.int64, np.bool_, np.int8)
    return Demands(
        *(
            np.concatenate(column).astype(dtype) if column else np.zeros(0, dtype)
            for column, dtype in zip(columns, dtypes, strict=True)
        )
    )


@dataclass
class _Entries:
    """Coefficients of a stage: `magnitude` of lane in accumulator, through tap."""

    accumulator: Index
    lane: Index
    tap: Index
    magnitude: Index

    def keep(self, chosen: Flags) -> None:
        for name in ("accumulator", "lane", "tap", "magnitude"):
            setattr(self, name, getattr(self, name)[chosen])


@dataclass
class _Outs:
    """Output bundles of a stage: sigma(plus - minus), accumulator numbers, -1 for none."""

    plus: list[Index] = field(default_factory=list)
    minus: list[Index] = field(default_factory=list)
    count: int = 0

    def add(self, plus: Index, minus: Index | None) -> Index:
        self.plus.append(plus)
        self.minus.append(np.full(plus.size, -1) if minus is None else minus)
        self.count += plus.size
        return np.arange(self.count - plus.size, self.count)


Lanes = dict[Value, tuple[Index, Index | None]]


class _StagePlan:
    """One stage's lanes, accumulators and coefficients, over the bundles of the layer before."""

    def __init__(
        self, stage: Stage, p: int, lanes: Lanes, constant: Index | None, before: int
    ) -> None:
        self.stage, self.p, self.before = stage, p, before
        group = stage.group
        # Lanes in order: each value's positive parts, then its negative ones; then the constant.
        self.of: Lanes = {}
        sources: list[Index] = []
        count = 0
        for value in group.state:
            plus, minus = lanes[value]
            sources += [plus] if minus is None else [plus, minus]
            first = np.arange(count, count + plus.size)
            self.of[value] = (first, None if minus is None else first + plus.size)
            count += plus.size * (1 if minus is None else 2)
        if group.constant:
            assert constant is not None
            sources.append(constant[:1])
            count += 1
        self.constant = count - 1
        self.source = np.concatenate(sources)
        self.lanes = count
        self.accumulators = 0
        self.outs = _Outs()
        self.results: Lanes = {}
        self.constant_after: Index | None = None
        parts = [self._row(row) for row in stage.rows]
        for value in group.carried:
            plus, minus = self.of[value]
            carried = [self._carry(lane, parts) for lane in (plus, minus) if lane is not None]
            self.results[value] = (carried[0], carried[1] if len(carried) > 1 else None)
        if group.constant_after:
            self.constant_after = self._carry(np.array([self.constant]), parts)
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        self.entries = _Entries(*columns)
        self.needed = np.ones(self.outs.count, np.bool_)

    def _claim(self, count: int) -> Index:
        self.accumulators += count
        return np.arange(self.accumulators - count, self.accumulators)

    def _carry(self, lane: Index, parts: list) -> Index:
        """Rows that copy lanes: one accumulator each, with the coefficient `unit`."""
        accumulator = self._claim(lane.size)
        unit = np.full(lane.size, self.stage.unit(self.p))
        centre = np.full(lane.size, self.stage.geometry.centre)
        parts.append((accumulator, lane, centre, unit))
        return self.outs.add(accumulator, None)

    def _row(self, row: Row) -> tuple[Index, Index, Index, Index]:
        result = row.sum.result
        plus = self._claim(result.channels)
        # A pool of nonnegative values has no negative coefficient, whatever the target is.
        positive = bool(row.sum.divisor) and not result.signed
        minus = None if positive else self._claim(result.channels)
        found = [self._part(plus, minus, part.root, part.positive, 0) for part in row.parts]
        found += [
            self._part(plus, minus, part.root, part.negative, 1)
            for part in row.parts
            if part.negative is not None
        ]
        if row.bias is not None:
            numbers = self.stage.quantise(row.bias, self.p)
            (channel,) = np.nonzero(numbers)
            centre = np.full(channel.size, self.stage.geometry.centre)
            lane = np.full(channel.size, self.constant)
            found.append(_signed(plus, minus, channel, lane, centre, numbers[channel]))
        if row.sum.output:
            self.outs.add(plus, minus)
        elif result.signed and minus is not None:
            self.results[result] = (self.outs.add(plus, minus), self.outs.add(minus, plus))
        else:
            self.results[result] = (self.outs.add(plus, minus), None)
        a, b, c, d = (np.concatenate(column) for column in zip(*found, strict=True))
        return a, b, c, d

    def _part(
        self, plus: Index, minus: Index | None, root: Value, weight: NDArray, side: int
    ) -> tuple[Index, Index, Index, Index]:
        numbers = self.stage.quantise(weight, self.p)
        numbers = numbers.reshape(*numbers.shape[:2], -1)
        row, channel, tap = np.nonzero(numbers)
        lane = self.of[root][side]
        assert lane is not None
        return _signed(plus, minus, row, lane[channel], tap, numbers[row, channel, tap])

    # Which bundles are worth a demand

    def drop_zero_lanes(self, zero: Flags) -> Flags:
        """Drops coefficients of lanes that are always 0; returns the same for the results."""
        self.entries.keep(~zero[self.source % self.before][self.entries.lane])
        filled = np.zeros(self.accumulators, np.bool_)
        filled[self.entries.accumulator] = True
        self.filled = filled
        self.plus, self.minus = np.concatenate(self.outs.plus), np.concatenate(self.outs.minus)
        return ~filled[self.plus]

    def drop_unneeded(self, needed: Flags) -> Flags:
        """Drops what only unneeded results use; returns the bundles needed of the layer before."""
        self.needed = needed
        used = np.zeros(self.accumulators + 1, np.bool_)  # the last one stands for "none"
        used[self.plus[needed]] = used[self.minus[needed]] = True
        self.entries.keep(used[self.entries.accumulator])
        before = np.zeros(self.before, np.bool_)
        before[self.source[self.entries.lane] % self.before] = True
        return before

    # Layers

    @property
    def bits(self) -> int:
        """Number of horner layers."""
        return self.stage.bits(self.p) + 1

    def horner(self, step: int) -> Callable[[], Demands]:
        """The demands of horner layer `step`, which adds bit bits - 1 - step."""

        def demands() -> Demands:
            entries, bit, centre = self.entries, self.bits - 1 - step, self.stage.geometry.centre
            last = bit == 0
            base = 0 if last else self.lanes
            lanes = self.source if step == 0 else np.arange(self.lanes)
            chosen = (entries.magnitude >> bit) & 1 == 1
            accumulator, lane = entries.accumulator[chosen], entries.lane[chosen]
            parts = [(base + accumulator, lanes[lane], entries.tap[chosen], False, 1)]
            started = _distinct(
                entries.accumulator[entries.magnitude >> (bit + 1) > 0], self.accumulators
            )
            parts.append((base + started, self.lanes + started, centre, False, 2))
            copied = _distinct(entries.lane[entries.magnitude & ((1 << bit) - 1) > 0], self.lanes)
            parts.append((copied, lanes[copied], centre, False, 1))
            return _join(parts)

        return demands

    def difference(self) -> Demands:
        """The demands of the last layer of the stage."""
        crop, anchor = self.stage.geometry.crop, self.stage.geometry.anchor
        tap = anchor[0] * crop[1] + anchor[1]
        out = np.flatnonzero(self.needed)
        parts = []
        for accumulator, negative in ((self.plus[out], False), (self.minus[out], True)):
            there = (accumulator >= 0) & self.filled[accumulator]
            parts.append((out[there], accumulator[there], tap, negative, 1))
        return _join(parts)


def _distinct(numbers: Index, below: int) -> Index:
    """The different ones among `numbers`, ascending."""
    there = np.zeros(below, np.bool_)
    there[numbers] = True
    return np.flatnonzero(there)


def _signed(
    plus: Index, minus: Index | None, row: Index, lane: Index, tap: Index, numbers: Index
) -> tuple[Index, Index, Index, Index]:
    accumulator = plus[row] if minus is None else np.where(numbers > 0, plus[row], minus[row])
    return accumulator, lane, tap, np.abs(numbers)


def make_plan(
    target: Target, steps: Sequence[Stage | Flatten | MaxPool], p: int, redundancy: int
) -> Plan:
    """The random network's layers for p bits, and what the quantised target demands of them."""
    source = target.input
    plan = Plan(source.channels, source.size, target.constant, redundancy, [])
    channels = np.arange(source.channels)
    block = np.concatenate([channels, channels])
    if target.constant:
        block = np.append(block, source.channels)
    split = Layer(
        index=0,
        kind="split",
        name=source.name,
        copies=2 * redundancy,
        blocks=plan.channels,
        block=block,
        sources=plan.channels,
        kernel=(1, 1),
        padding=(0, 0),
        stride=(1, 1),
        out_size=source.size,
        relu=True,
    )
    plan.layers.append(split)
    lanes: Lanes = {source: (channels, channels + source.channels)}
    constant = np.array([2 * source.channels]) if target.constant else None
    stages: list[_StagePlan] = []
    flat, pools = 0, []
    for step in steps:
        if isinstance(step, MaxPool):
            pools.append(Pool(step.kernel, step.stride, step.padding))
            lanes = {step.result: (lanes[step.source.root][0], None)}
        elif isinstance(step, Flatten):
            assert step.result.folded is not None
            flat = step.result.folded[1] * step.result.folded[2]
            pixels = np.arange(flat)[:, None] * plan.layers[-1].bundles
            plus, minus = (
                None if lane is None else (pixels + lane).ravel()
                for lane in lanes[step.source.root]
            )
            assert plus is not None
            lanes = {step.result: (plus, minus if step.result.signed else None)}
        else:
            made = _StagePlan(step, p, lanes, constant, plan.layers[-1].bundles)
            stages.append(made)
            _add_layers(plan, made, flat, tuple(pools))
            lanes, constant = made.results, made.constant_after
            flat, pools = 0, []
    _filter(stages, split)
    return plan


def _add_layers(plan: Plan, made: _StagePlan, flat: int, pools: tuple[Pool, ...]) -> None:
    geometry, name = made.stage.geometry, made.stage.name
    output = made.stage.rows[0].sum.output
    for step in range(made.bits + 1):
        before = plan.layers[-1]
        first, last = step == 0, step == made.bits
        bundles = made.outs.count if last else made.accumulators
        bundles += made.lanes if step < made.bits - 1 else 0
        plan.layers.append(
            Layer(
                index=len(plan.layers),
                kind=("output" if output else "difference") if last else "horner",
                name=name,
                copies=1 if output and last else plan.redundancy,
                blocks=bundles,
                block=np.arange(bundles),
                sources=before.width * (flat if first and flat else 1),
                kernel=geometry.crop if last else geometry.box,
                padding=(0, 0) if last else geometry.radius,
                stride=geometry.stride if last else (1, 1),
                out_size=geometry.out_size if last else geometry.size,
                relu=not (output and last),
                flat=flat if first else 0,
                pools=pools if first else (),
                unit=made.stage.unit(made.p) if last else 1,
                demands=made.difference if last else made.horner(step),
            )
        )


def _filter(stages: list[_StagePlan], split: Layer) -> None:
    """Lets only those coefficients demand edges that can matter to the output."""
    zero = np.zeros(split.bundles, np.bool_)
    for stage in stages:
        zero = stage.drop_zero_lanes(zero)
    needed = np.ones(stages[-1].outs.count, np.bool_)
    for stage in reversed(stages):
        needed = stage.drop_unneeded(needed)
    bundle = np.flatnonzero(needed)
    split.demands = lambda: _split_demands(split, bundle)


def _split_demands(split: Layer, bundle: Index) -> Demands:
    first_copy = np.zeros(split.bundles, np.bool_)
    first_copy[np.unique(split.block, return_index=True)[1]] = True
    negative = ~first_copy[bundle]
    return Demands(
        bundle,
        split.block[bundle],
        np.zeros(bundle.size, np.int64),
        negative,
        np.ones(bundle.size, np.int8),
    )
