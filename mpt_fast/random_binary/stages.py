"""Groups of sums as matrices over lanes, their quantisation, and the certificate E(p).

A stage computes all its sums, and carries what later stages need, over one kernel box. Lanes carry
K*v for a value v and one integer K per stage; a stage multiplies K by its `unit`, 2**(p - e) where
2**e bounds its weights, so that K*(W v + b) becomes sums of lanes with the integer coefficients
N = rint(unit*W), |N| <= 2**p, and values are carried with the coefficient `unit`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mpt_fast.random_binary.bounds import Array, conv_norm
from mpt_fast.random_binary.target import Flatten, Group, MaxPool, Sum, Target, TargetError, Value
from mpt_fast.runtime.program import Pair

MAX_BITS = 48  # keeps coefficients exact in float64
Integers = NDArray[np.int64]
_ROUNDING = 1 + 1e-9  # covers the float64 rounding of a certificate's own arithmetic


@dataclass
class Geometry:
    """Kernel box and sampling of a stage.

    Its accumulators live on the source's pixels and read pixels up to `radius` away; output pixel
    (i, k) is accumulator pixel (i*stride + anchor, k*stride + anchor), read by a kernel box `crop`
    of which only the tap at `anchor` is kept.
    """

    size: Pair
    out_size: Pair
    stride: Pair
    anchor: Pair
    radius: Pair
    crop: Pair

    @property
    def box(self) -> Pair:
        """Height and width of the kernel box."""
        return 2 * self.radius[0] + 1, 2 * self.radius[1] + 1

    @property
    def centre(self) -> int:
        """Flat index of the centre tap."""
        return self.radius[0] * self.box[1] + self.radius[1]


@dataclass
class Part:
    """One sum's weights over one value: [O, C, *box] for the positive and the negative part.

    `negative` is None where the value has no negative part.
    """

    root: Value
    positive: Array
    negative: Array | None
    norm: float = field(init=False, default=0.0)

    @property
    def odd(self) -> bool:
        """True if the weights are those of the signed value, so that one norm bounds both."""
        return self.negative is not None and np.array_equal(self.negative, -self.positive)

    def weights(self) -> list[Array]:
        """The matrices whose norms add up to a bound for this part."""
        if self.negative is None or self.odd:
            return [self.positive]
        return [self.positive, self.negative]


@dataclass
class Row:
    """One sum of a stage: its result, its parts, and its bias [O] or None."""

    sum: Sum
    parts: list[Part]
    bias: Array | None


@dataclass
class Stage:
    """A group of sums as matrices. `exponent` is e; `exact` says that no number is rounded."""

    group: Group
    geometry: Geometry
    rows: list[Row]
    exponent: int
    exact: bool
    divisor: int

    @property
    def name(self) -> str:
        """The results' names."""
        return "+".join(row.sum.result.name for row in self.rows)

    def bits(self, p: int) -> int:
        """p_l: the coefficients are at most 2**p_l (an exact stage has its own)."""
        if self.exact:
            return max(self.divisor, 1 << self.exponent).bit_length() - 1
        return max(p, self.exponent)

    def unit(self, p: int) -> int:
        """The factor from the values' integer scale to the results'."""
        return self.divisor or 1 << (self.bits(p) - self.exponent)

    def quantise(self, weight: Array, p: int) -> Integers:
        """N = rint(unit*W)."""
        return np.rint(weight * float(self.unit(p))).astype(np.int64)


def make_steps(target: Target) -> list[Stage | Flatten | MaxPool]:
    """The target's steps with every group as a stage."""
    return [_stage(step) if isinstance(step, Group) else step for step in target.steps]


def _stage(group: Group) -> Stage:
    geometry = _geometry(group.sums)
    rows = [Row(sum_, _parts(sum_, geometry), sum_.bias) for sum_ in group.sums]
    largest = 0.0
    for row in rows:
        arrays = [w for part in row.parts for w in part.weights()]
        largest = max([largest, *(float(np.abs(w).max(initial=0.0)) for w in arrays)])
        if row.bias is not None:
            largest = max(largest, float(np.abs(row.bias).max(initial=0.0)))
    mantissa, exponent = math.frexp(largest)
    exponent = max(0, exponent - (mantissa == 0.5))
    if exponent > MAX_BITS:
        raise TargetError(f"{group.sums[0].result.name}: a weight of {largest:.3g} is too large")
    stage = Stage(
        group,
        geometry,
        rows,
        exponent,
        exact=all(sum_.exact for sum_ in group.sums),
        divisor=group.sums[0].divisor,
    )
    for row in rows:
        for part in row.parts:
            part.norm = _norm(row.sum, part.weights(), geometry)
    return stage


def _geometry(sums: Sequence[Sum]) -> Geometry:
    name = sums[0].result.name
    terms = [term for sum_ in sums for term in sum_.terms]
    size, out_size, stride = terms[0].source.size, sums[0].result.size, terms[0].stride
    anchor, radius, crop = [], [], []
    for axis in (0, 1):
        spans = [t.dilation[axis] * (t.weight.shape[2 + axis] - 1) for t in terms]
        pads = [t.padding[axis] for t in terms]
        at = max(0, *(span // 2 - pad for span, pad in zip(spans, pads, strict=True)))
        last = (out_size[axis] - 1) * stride[axis] + at
        if last >= size[axis]:
            raise TargetError(f"{name}: padding beyond half of the kernel; pad less")
        anchor.append(at)
        radius.append(
            max(max(pad + at, span - pad - at) for span, pad in zip(spans, pads, strict=True))
        )
        crop.append(max(at + 1, size[axis] - out_size[axis] * stride[axis] + 1))
    return Geometry(size, out_size, stride, _pair(anchor), _pair(radius), _pair(crop))


def _pair(values: list[int]) -> Pair:
    return values[0], values[1]


def _parts(sum_: Sum, geometry: Geometry) -> list[Part]:
    parts: dict[Value, Part] = {}
    for term in sum_.terms:
        root = term.source.root
        weight = np.zeros((*term.weight.shape[:2], *geometry.box))
        steps = [
            at + dilation * np.arange(taps)
            for at, dilation, taps in zip(
                (
                    r - pad - a
                    for r, pad, a in zip(
                        geometry.radius, term.padding, geometry.anchor, strict=True
                    )
                ),
                term.dilation,
                term.weight.shape[2:],
                strict=True,
            )
        ]
        weight[:, :, steps[0][:, None], steps[1]] = term.weight
        if root.folded is not None:
            channels, height, width = root.folded
            folded = weight.reshape(weight.shape[0], channels, height * width)
            weight = folded.swapaxes(1, 2).reshape(weight.shape)
        if root not in parts:
            negative = np.zeros_like(weight) if root.signed else None
            parts[root] = Part(root, np.zeros_like(weight), negative)
        part = parts[root]
        part.positive += weight
        if part.negative is not None and term.source is root:
            part.negative -= weight
    return list(parts.values())


def _norm(sum_: Sum, weights: list[Array], geometry: Geometry) -> float:
    if sum_.divisor:
        term = sum_.terms[0]
        taps = term.weight.shape[2:]
        overlap = _overlap(taps, term.stride)
        return math.sqrt(math.prod(taps) * overlap) / sum_.divisor * _ROUNDING
    return sum(conv_norm(weight, geometry.size) for weight in weights)


def _overlap(kernel: Sequence[int], stride: Pair) -> int:
    """The greatest number of windows that read one pixel."""
    return math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))


@dataclass(frozen=True)
class Certificate:
    """Bounds of ||c*g(x) - f(x)|| for every ||x|| <= radius (Euclidean norms), in exact arithmetic.

    `bound` uses the norms of the rounding errors that were made, `formula` what rounding to p bits
    can do at most: eta*sqrt(n_l*n_(l-1)) for each layer, eta = 2**(e - p - 1). Both are
    E = sum over layers of ||W^_l - W_l|| * prod_{k<l} ||W_k|| * prod_{k>l} ||W^_k||, written as a
    recursion over the layers, which also serves biases and skip connections.
    """

    p: int
    bound: float
    formula: float


def certify(
    steps: Sequence[Stage | Flatten | MaxPool], source: Value, p: int, radius: float
) -> Certificate:
    """The certificate at p bits; reads weights only, no data."""
    size = {source: radius}  # bounds of values
    error = {source: 0.0}  # and of their errors
    coarse = {source: 0.0}
    result = source
    for step in steps:
        if not isinstance(step, Stage):
            growth = 1.0
            if isinstance(step, MaxPool):
                growth = math.sqrt(_overlap(step.kernel, step.stride))
            for table in (size, error, coarse):
                table[step.result] = table[step.source.root] * growth
            continue
        for row in step.rows:
            result = row.sum.result
            size[result], error[result], coarse[result] = _propagate(
                step, row, p, size, error, coarse
            )
    return Certificate(p, error[result] * _ROUNDING, coarse[result] * _ROUNDING)


def _propagate(
    stage: Stage,
    row: Row,
    p: int,
    size: dict[Value, float],
    error: dict[Value, float],
    coarse: dict[Value, float],
) -> tuple[float, float, float]:
    pixels = math.sqrt(math.prod(stage.geometry.out_size))
    unit = float(stage.unit(p))
    total = measured = formula = 0.0
    for part in row.parts:
        made = allowed = 0.0
        if not stage.exact:
            for weight in part.weights():
                made += conv_norm(stage.quantise(weight, p) / unit - weight, stage.geometry.size)
                taps = int(weight.any(axis=(0, 1)).sum())
                allowed += 0.5 / unit * taps * math.sqrt(weight.shape[0] * weight.shape[1])
        root = part.root
        total += part.norm * size[root]
        measured += made * size[root] + (part.norm + made) * error[root]
        formula += allowed * size[root] + (part.norm + allowed) * coarse[root]
    if row.bias is not None:
        total += float(np.linalg.norm(row.bias)) * pixels
        rounding = stage.quantise(row.bias, p) / unit - row.bias
        measured += float(np.linalg.norm(rounding)) * pixels
        formula += 0.5 / unit * math.sqrt(row.bias.size) * pixels
    return total, measured, formula


def choose_bits(
    steps: Sequence[Stage | Flatten | MaxPool], source: Value, epsilon: float, radius: float
) -> Certificate:
    """The fewest bits p whose bound is at most epsilon; TargetError if MAX_BITS are too few."""
    last = certify(steps, source, MAX_BITS, radius)
    if last.bound > epsilon:
        raise TargetError(
            f"epsilon {epsilon:.3g} would need more than {MAX_BITS} bits a weight "
            f"(the bound there is {last.bound:.3g}); ask for a larger epsilon or a smaller radius"
        )
    # The bounds fall by about one half a bit: jump near the answer, then step to it.
    ratio = epsilon / last.bound if last.bound > 0 else 2.0**MAX_BITS
    p = min(MAX_BITS, max(0, MAX_BITS - math.floor(math.log2(ratio))))
    best = certify(steps, source, p, radius)
    while best.bound > epsilon:
        best = certify(steps, source, best.p + 1, radius)
    while best.p > 0:
        fewer = certify(steps, source, best.p - 1, radius)
        if fewer.bound > epsilon:
            break
        best = fewer
    return best
