"""Which kernels run each convolution of a packed program on a GPU: the planner's entries for CUDA.

| values | route | kernels |
|---|---|---|
| bits | adders | `bitsliced_conv2d`, the kept taps alone |
| bits | int8 | `bitsliced_conv2d`'s tensor-core route, every weight |
| bits, 3x3 | popcount | `xnor_conv2d` on patches of the planes, decided by `combine` |
| real | sparse | `sparse_conv2d`, the kept taps alone |
| real | dense | PyTorch's convolution, without tf32 |

The cost table (`mpt_fast.kernels.costs`) chooses by shape and density where the layer was measured
on this GPU, instruction counts (`estimates`) elsewhere. Every choice gives the same decisions.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from mpt_fast.kernels import costs
from mpt_fast.packed.gpu import estimates
from mpt_fast.runtime.program import Combine, Conv, ConvAffine, ConvSign, Program, Value

BIT_ROUTES = ("adders", "int8", "popcount")
REAL_ROUTES = ("sparse", "dense")
BYTES = {"f32": 4, "f64": 8}
# Pins the routes of every program, as tests and benchmarks do; {} leaves them to the costs.
PINNED: dict[str, str] = {}
"""{"bits": a bit route, "real": a real one}; a layer that a route cannot run takes its first."""


class Choice(NamedTuple):
    """How one step runs. seconds: measured or estimated, None where nothing was weighed."""

    route: str
    seconds: float | None
    source: str
    why: str


@dataclass(frozen=True)
class Layer:
    """A convolution at one batch size; kind: its source's, as the input's dtype makes it."""

    step: Conv | ConvSign | ConvAffine
    kind: str
    source: Value
    result: Value
    images: int

    @property
    def routes(self) -> tuple[str, ...]:
        """The routes that can run it."""
        if self.kind != "bits":
            return REAL_ROUTES
        return BIT_ROUTES if self.step.taps.shape[2:] == (3, 3) else BIT_ROUTES[:2]

    @property
    def case(self) -> costs.Case:
        """Its name in the cost table."""
        columns = self.images * self.result.height * self.result.width
        sign = isinstance(self.step, ConvSign)  # sums take 32 times the memory of decisions
        operation = f"packed {'conv_sign' if sign else 'conv'} {self.kind}"
        return costs.product(operation, columns, self.step.taps.shape, max(1, self.step.taps.kept))

    @property
    def shape(self) -> estimates.Shape:
        """What `estimates` asks for."""
        step = self.step
        return estimates.Shape(
            images=self.images,
            channels=self.source.channels,
            outputs=self.result.channels,
            kernel=(step.taps.shape[2], step.taps.shape[3]),
            stride=step.stride,
            image=(self.source.height, self.source.width),
            out=(self.result.height, self.result.width),
            groups=step.groups,
            kept=step.taps.kept,
            value_bytes=BYTES.get(self.kind, 0),
        )

    def entry(self) -> costs.Measured:
        """Its entry of the cost table: the nearest measured one, else instruction counts."""
        found = costs.nearest(self.case)
        if found is not None and any(f"triton/{r}" in found.microseconds for r in self.routes):
            return found
        shape = self.shape
        times = {f"triton/{r}": 1e6 * estimates.ESTIMATES[r](shape) for r in self.routes}
        return costs.Measured(self.case, times, estimates.SOURCE)

    def choose(self) -> Choice:
        """The fastest route of its entry."""
        entry = self.entry()
        times = {
            route: entry.microseconds[f"triton/{route}"]
            for route in self.routes
            if f"triton/{route}" in entry.microseconds
        }
        pinned = PINNED.get("bits" if self.kind == "bits" else "real")
        if pinned:
            best = pinned if pinned in self.routes else self.routes[0]
        else:
            best = min(times, key=times.__getitem__)
        ranked = ", ".join(f"{r} {t:.1f} us" for r, t in sorted(times.items(), key=lambda i: i[1]))
        seconds = times[best] / 1e6 if best in times else None
        return Choice(best, seconds, entry.source, f"{entry.source}: {ranked}")


def kinds(program: Program, input_kind: str) -> list[str]:
    """The kind of every value where the input is of `input_kind`: a real convolution keeps it."""
    found = [input_kind]
    for step, value in zip(program.steps, program.values()[1:], strict=True):
        follows = value.kind in BYTES and not isinstance(step, Combine)
        found.append(found[step.sources()[0]] if follows else value.kind)
    return found


_OTHERS = {
    "combine": Choice("combine", None, "", "joins, converts or decides"),
    "max_pool": Choice("pool2d", None, "", "window"),
    "avg_pool": Choice("pool2d", None, "", "window"),
    "flatten": Choice("free", None, "", "lanes are images, so nothing moves"),
}


def choices(program: Program, input_kind: str, images: int) -> tuple[Choice, ...]:
    """One choice per step of `program` for a batch of `images`."""
    known, values = kinds(program, input_kind), program.values()
    found: list[Choice] = []
    for step, result in zip(program.steps, values[1:], strict=True):
        if isinstance(step, Conv | ConvSign | ConvAffine):
            found.append(Layer(step, known[step.src], values[step.src], result, images).choose())
        else:
            found.append(_OTHERS[step.op])
    return tuple(found)


def lanes(value: Value, images: int) -> int:
    """Lanes that a value takes: whole words for bits."""
    return 64 * math.ceil(images / 64) if value.kind == "bits" else images
