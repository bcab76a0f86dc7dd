"""engine.Program: whole networks against the same steps written with torch in float64."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mpt_fast.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
ISAS = cpu.engine().isas() if cpu.available() else []
Array = NDArray[Any]
Size = int | tuple[int, int]
BATCHES = (1, 63, 64, 65, 130, 513)


BUILDING = ("conv", "conv_sign", "conv_affine", "combine", "max_pool", "avg_pool", "flatten")
LAYOUTS = ("images", "sliced", "lookups", "words")


class EveryLayout:
    """One program per lane layout, built alike; `run` fails unless they agree.

    Bit for bit, but for floats where code is made from the taps, which adds up in another order.
    There pixels in the lanes are one layout, and both layouts run without code too; where code is
    made of layers of bits, images in the lanes do.
    """

    levels = False  # whose sums are exact

    def __init__(self, shape: tuple[int, int, int], isa: str, kind: str) -> None:
        make = cpu.engine().Program
        self.programs = [make(*shape, isa=isa, input_kind=kind, layout=name) for name in LAYOUTS]
        self.listed = [
            make(*shape, isa=isa, input_kind=kind, layout=name, code=False) for name in LAYOUTS[:2]
        ]

    def runs(self, *arguments: Any) -> list[Array]:
        """The results of every program."""
        first, *others = (program.run(*arguments) for program in self.programs)
        for other in others:
            if self.levels or not self.programs[0].makes_code:
                same_bits(other, first)
            else:
                nearly_same(other, first)
        return [first, *others]

    def run(self, *arguments: Any) -> Array:
        return self.runs(*arguments)[0]

    def finish(self, output: int) -> None:
        for program in self.programs:
            program.finish(output)
        if self.programs[0].makes_code:
            for program in self.listed:
                program.finish(output)
            self.programs[2:] = self.listed
        elif self.programs[0].makes_bit_code:
            self.listed[0].finish(output)
            self.programs.append(self.listed[0])

    def __getattr__(self, name: str) -> Any:
        if not callable(getattr(self.programs[0], name)):
            return getattr(self.programs[0], name)

        def call(*arguments: Any, **options: Any) -> Any:
            programs = [*self.programs, *(self.listed if name in BUILDING else ())]
            images, *_ = (getattr(p, name)(*arguments, **options) for p in programs)
            return images

        return call


class Net:
    """Builds a program and, beside it, the function that each value is of the input."""

    def __init__(self, shape: tuple[int, int, int], isa: str = "auto", kind: str = "f32") -> None:
        self.program = EveryLayout(shape, isa, kind)
        self.rng = np.random.default_rng(11)
        self.steps: list[Callable[[list[torch.Tensor]], torch.Tensor]] = []
        self.shapes = [shape]

    def _add(self, value: int, step: Callable[[list[torch.Tensor]], torch.Tensor]) -> int:
        self.steps.append(step)
        assert value == len(self.steps)
        probe = self.values(np.zeros((1, *self.shapes[0])))
        c, h, w = probe[-1].shape[1:]
        self.shapes.append((c, h, w))
        return value

    def values(self, x: Array) -> list[torch.Tensor]:
        values = [torch.from_numpy(x).double()]
        for step in self.steps:
            values.append(step(values))
        return values

    def weight(self, shape: tuple[int, ...], density: float, signs: bool = True) -> Array:
        weight = self.rng.choice([-1.0, 1.0], size=shape) * (self.rng.random(shape) < density)
        return weight if signs else weight * self.rng.normal(size=shape)

    def taps(self, weight: Array, signs: bool) -> tuple[Array, Array, Array, tuple[int, ...]]:
        flat = weight.reshape(len(weight), -1)
        indptr = np.concatenate([[0], np.cumsum((flat != 0).sum(1))]).astype(np.int32)
        index = np.nonzero(flat)[1].astype(np.int32)
        return indptr, index, flat[flat != 0].astype(np.int8 if signs else float), weight.shape

    def channels(self, count: int) -> Array:
        return self.rng.normal(size=count)

    def conv(self, src: int, out: int, kernel: Size = 3, stride: Size = 1, padding: Size = 1,
             dilation: Size = 1, groups: int = 1, density: float = 0.5, mode: str = "plain",
             residual: int = -1, signs: bool = True) -> int:  # fmt: skip
        shape = (out, self.shapes[src][0] // groups, *both(kernel))
        weight = self.weight(shape, density, signs)
        tensor = torch.from_numpy(weight)
        geometry = (both(stride), both(padding), both(dilation), groups)
        given = (src, *self.taps(weight, signs), *geometry)

        def sums(v: list[torch.Tensor]) -> torch.Tensor:
            return functional.conv2d(v[src], tensor, None, *geometry)

        if mode == "plain":
            return self._add(self.program.conv(*given), sums)
        if mode == "sign":
            threshold, other = self.rng.integers(-9, 10, (2, out), dtype=np.int32)
            flip = self.rng.integers(0, 2, out, dtype=np.uint8)
            limits = [torch.from_numpy(t)[:, None, None] for t in (threshold, other, flip)]

            def sign(v: list[torch.Tensor]) -> torch.Tensor:
                s, limit = sums(v), limits[0]
                if residual >= 0:
                    limit = torch.where(v[residual] > 0, limits[1], limits[0])
                return torch.where(limits[2] == 1, s <= limit, s >= limit).double() * 2 - 1

            extra = {"residual": residual, "residual_threshold": other} if residual >= 0 else {}
            value = self.program.conv_sign(*given, threshold=threshold, flip=flip, **extra)
            return self._add(value, sign)
        op = "sign" if mode == "real_sign" else mode
        scale, shift, scale2, shift2 = (self.channels(out) for _ in range(4))

        def affine(v: list[torch.Tensor]) -> torch.Tensor:
            y = sums(v) * column(scale) + column(shift)
            if residual >= 0:
                y = y + (v[residual] * column(scale2) + column(shift2))
            return finish(y, op)

        extra = {}
        if residual >= 0:
            extra = {"residual": residual, "residual_scale": scale2, "residual_shift": shift2}
        value = self.program.conv_affine(*given, scale=scale, shift=shift, op=op, **extra)
        return self._add(value, affine)

    def combine(self, srcs: list[int], op: str = "none", kind: str = "f32") -> int:
        c = self.shapes[srcs[0]][0]
        scales = [self.channels(c) for _ in srcs]
        shifts = [self.channels(c) for _ in srcs]

        def step(v: list[torch.Tensor]) -> torch.Tensor:
            terms = [
                v[s] * column(a) + column(b) for s, a, b in zip(srcs, scales, shifts, strict=True)
            ]
            return finish(sum(terms[1:], terms[0]), op)

        return self._add(self.program.combine(srcs, scales, shifts, op, kind), step)

    def max_pool(self, src: int, kernel: int, stride: int, padding: int = 0, ceil: bool = False,
                 flip: bool = False) -> int:  # fmt: skip
        flips = self.rng.integers(0, 2, self.shapes[src][0], dtype=np.uint8) if flip else None
        sign = column(1 - 2.0 * flips) if flips is not None else torch.ones(1, 1, 1)

        def step(v: list[torch.Tensor]) -> torch.Tensor:
            y = functional.max_pool2d(v[src] * sign, kernel, stride, padding, 1, ceil)
            return y * sign

        pair = [(n, n) for n in (kernel, stride, padding)]
        return self._add(self.program.max_pool(src, *pair, ceil, flips), step)

    def avg_pool(self, src: int, kernel: int, stride: int, padding: int = 0, ceil: bool = False,
                 include: bool = True, divisor: int = 0) -> int:  # fmt: skip
        def step(v: list[torch.Tensor]) -> torch.Tensor:
            return functional.avg_pool2d(v[src], kernel, stride, padding, ceil, include,
                                         divisor or None)  # fmt: skip

        pair = [(n, n) for n in (kernel, stride, padding)]
        return self._add(self.program.avg_pool(src, *pair, ceil, include, divisor), step)

    def flatten(self, src: int) -> int:
        return self._add(self.program.flatten(src), lambda v: v[src].flatten(1)[..., None, None])

    def check(self, output: int, batches: tuple[int, ...] = BATCHES, exact: bool = False) -> None:
        self.program.finish(output)
        for images in batches:
            x = self.rng.normal(size=(images, *self.shapes[0])).astype(np.float32)
            expected = self.values(x)[output].numpy()
            results = [self.program.run(x, threads) for threads in (1, 2, 1)]
            for other in results[1:]:
                np.testing.assert_array_equal(results[0], other)
            if exact:
                np.testing.assert_array_equal(results[0], expected)
            else:
                tight = 1e-12 if results[0].dtype == np.float64 else 1e-5
                scale = np.abs(expected).max()
                np.testing.assert_allclose(results[0], expected, rtol=tight, atol=tight * scale)


def nearly_same(one: Array, other: Array) -> None:
    """But for the order in which floats were added up."""
    largest = np.abs(other[np.isfinite(other)]).max(initial=0)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * largest)


def same_bits(one: Array, other: Array) -> None:
    np.testing.assert_array_equal(*(a.view(f"i{a.itemsize}") for a in (one, other)))


def both(value: Size) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def column(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, float))[:, None, None]


def finish(y: torch.Tensor, op: str) -> torch.Tensor:
    if op == "relu":
        return y.relu()
    return torch.where(y >= 0, 1.0, -1.0).double() if op == "sign" else y


@pytest.mark.parametrize("isa", ISAS)
def test_binary_vgg(isa: str) -> None:
    net = Net((3, 8, 10), isa)
    x = net.combine([0], kind="f64")
    x = net.conv(x, 12, mode="real_sign")
    x = net.conv(x, 20, mode="sign")
    x = net.max_pool(x, 2, 2, flip=True)
    x = net.conv(x, 9, mode="sign", density=0.2)
    x = net.flatten(x)
    x = net.conv(x, 33, kernel=1, padding=0, mode="sign")
    x = net.conv(x, 10, kernel=1, padding=0)
    net.check(net.combine([x]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["sign", "residual", "sums"])
@pytest.mark.parametrize(
    "layer",
    [
        {"kernel": 5, "padding": 2, "density": 0.3},
        {"kernel": 5, "padding": 2, "stride": 2, "density": 0.3},
        {"kernel": 3, "padding": 2, "dilation": 2, "groups": 3, "density": 0.01},
        {"kernel": 3, "padding": 12, "dilation": 12, "density": 0.3},  # taps too far for 16 bits
    ],
    ids=["same", "stride", "groups", "far"],
)
def test_layers_whose_pixels_are_vectors(kind: str, isa: str, layer: dict[str, Any]) -> None:
    """Blocks of 513 images leave one over; lists from none to many words of four taps."""
    net = Net((180, 5, 6), isa)
    x = net.combine([0], "sign", "bits")
    if kind == "sums":  # two readers, so that it is a step of its own
        y = net.conv(x, 24, **layer)
        return net.check(net.combine([net.combine([y]), y]), (65, 513))
    y = net.conv(x, 24, mode="sign", **layer)
    if kind == "residual":
        y = net.conv(x, 24, mode="sign", residual=y, **layer)
    return net.check(y, (65, 513), exact=True)


@pytest.mark.parametrize("layer", [{}, {"kernel": 5, "padding": 2}, {"stride": 2}, {"padding": 3}])
@pytest.mark.parametrize("side", [6, 160])
@pytest.mark.parametrize("isa", ISAS)
def test_real_layers_of_small_and_large_maps(isa: str, side: int, layer: dict[str, Any]) -> None:
    """Pixels in the lanes stage small maps once per column of a kernel, and large ones once."""
    net = Net((40, side, side + 1), isa)
    net.check(net.conv(0, 3, density=0.02, mode="relu", **layer), (1, 3))


@pytest.mark.parametrize("isa", ISAS)
def test_first_layer_with_sign_is_exact(isa: str) -> None:
    net = Net((3, 7, 9), isa)
    x = net.combine([0], kind="f64")
    weight = net.weight((5, 3, 3, 3), 0.6)
    given = (x, *net.taps(weight, True), (2, 2), (1, 1), (1, 1), 1)
    scale, shift = np.full(5, 0.25), np.zeros(5)
    value = net.program.conv_affine(*given, scale=scale, shift=shift, op="sign")
    x = net._add(value, lambda v: finish(
        functional.conv2d(v[1], torch.from_numpy(weight), None, 2, 1) * 0.25, "sign"))  # fmt: skip
    net.check(x, exact=True)


@pytest.mark.parametrize("isa", ISAS)
def test_binary_residual_network(isa: str) -> None:
    net = Net((4, 8, 8), isa)
    x = net.combine([0], "sign", "bits")
    y = net.conv(x, 6, mode="sign")
    x = net.conv(y, 6, mode="sign", residual=y)  # identity shortcut
    y = net.conv(x, 10, stride=2, mode="sign")
    a, b = net.conv(y, 10), net.conv(x, 10, kernel=1, padding=0, stride=2)  # projection
    x = net.combine([a, b], "sign", "bits")
    y = net.conv(x, 10, mode="sign", dilation=2, padding=2, groups=2)
    x = net.combine([net.conv(y, 10), x], kind="f64")
    x = net.avg_pool(x, 4, 4)
    x = net.flatten(x)
    net.check(net.conv(x, 7, kernel=1, padding=0))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_real_residual_network(isa: str, kind: str) -> None:
    net = Net((3, 9, 8), isa, kind)
    assert net.program.isa == isa
    x = net.conv(0, 8, mode="relu")
    y = net.conv(x, 8, mode="relu", density=0.3)
    x = net.conv(y, 8, mode="relu", residual=x, signs=False)
    y = net.conv(x, 6, stride=2, groups=2)
    x = net.combine([y, net.conv(x, 6, kernel=1, padding=0, stride=2)], "relu", kind)
    x = net.max_pool(x, 3, 2, padding=1)
    x = net.avg_pool(x, 2, 1, padding=1, include=False)
    x = net.flatten(x)
    x = net.conv(x, 11, kernel=1, padding=0, mode="none")
    net.check(x, (1, 15, 16, 17, 40))
    assert net.program.lanes == 16


@pytest.mark.parametrize("isa", ISAS)
def test_residuals_of_every_kind(isa: str) -> None:
    net = Net((5, 6, 6), isa)
    bits = net.combine([0], "sign", "bits")
    sums = net.conv(bits, 5)
    real = net.combine([bits], kind="f64")
    for residual in (bits, sums, 0, real):
        real = net.conv(real, 5, mode="relu", residual=residual)
    net.check(net.conv(real, 5, mode="real_sign", residual=bits), (1, 70), exact=True)


@pytest.mark.parametrize("kernel", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1), (5, 3, 2)], ids=str)
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("isa", ISAS)
def test_pooling_of_every_kind(isa: str, ceil: bool, kernel: tuple[int, int, int]) -> None:
    def check(make: Callable[[Net], int], exact: bool) -> None:
        net = Net((3, 7, 10), isa)
        net.check(make(net), (1, 70), exact)

    check(lambda n: n.max_pool(n.combine([0], "sign", "bits"), *kernel, ceil, True), True)
    check(lambda n: n.max_pool(n.combine([0], "sign", "bits"), *kernel, ceil), True)
    check(lambda n: n.max_pool(n.conv(n.combine([0], "sign", "bits"), 4), *kernel, ceil), True)
    check(lambda n: n.max_pool(0, *kernel, ceil), True)
    check(lambda n: n.max_pool(n.combine([0], kind="f64"), *kernel, ceil), False)
    for include in (False, True):
        check(lambda n, i=include: n.avg_pool(0, *kernel, ceil, i), False)
        check(lambda n, i=include: n.avg_pool(0, *kernel, ceil, i, divisor=3), False)


def test_max_pool_keeps_nan_like_torch() -> None:
    net = Net((1, 4, 4))
    net.program.finish(net.max_pool(0, 2, 2))
    x = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    x[0, 0, 0, 0] = x[1, 0, 3, 2] = np.nan
    np.testing.assert_array_equal(net.program.run(x), functional.max_pool2d(torch.from_numpy(x), 2))


def test_one_value_with_several_borders() -> None:
    """A 5x5 and a 1x1 convolution, a pool and a flatten all read one value."""
    net = Net((6, 5, 6))
    x = net.combine([0], "sign", "bits")
    a = net.conv(x, 7, kernel=5, padding=2)
    b = net.conv(x, 7, kernel=1, padding=0)
    c = net.conv(net.max_pool(x, 3, 1, 1), 7)
    d = net.conv(net.flatten(x), 7, kernel=1, padding=0)
    y = net.combine([a, b, c], kind="f64")
    y = net.combine([net.avg_pool(net.max_pool(y, 5, 5), 1, 1), d], kind="f64")
    net.check(net.flatten(y))


def test_padding_of_a_flattened_value() -> None:
    net = Net((2, 3, 3))
    x = net.combine([0], "sign", "bits")
    x = net.conv(net.flatten(x), 5, kernel=3, padding=1)
    net.check(x, (1, 65), exact=True)


def test_outputs_of_every_kind() -> None:
    for kind, op in (("bits", "sign"), ("f64", "none"), ("f32", "relu")):
        net = Net((2, 3, 5))
        y = net.combine([0], op, kind)
        net.check(y, (1, 65))
        x = np.zeros((2, 2, 3, 5), np.float32)
        assert net.program.run(x).dtype == (np.float64 if kind == "f64" else np.float32)
    net = Net((2, 3, 5))
    net.program.finish(0)
    x = net.rng.normal(size=(3, 2, 3, 5))
    np.testing.assert_array_equal(net.program.run(x), x.astype(np.float32))
    net = Net((2, 3, 5), kind="f64")
    net.program.finish(0)
    np.testing.assert_array_equal(net.program.run(x), x)


def test_empty_batch_and_sizes() -> None:
    net = Net((3, 8, 8))
    x = net.conv(net.combine([0], "sign", "bits"), 4, mode="sign")
    net.program.finish(x)
    assert net.program.run(np.zeros((0, 3, 8, 8), np.float32)).shape == (0, 4, 8, 8)
    assert net.program.peak_bytes(0) == 0
    least, most = net.program.peak_bytes(64), net.program.peak_bytes(512)
    assert 0 < net.program.peak_bytes(1) == least
    assert least < most if net.program.lanes > 64 else least == most  # plain words: 64 lanes
    net.program.run(np.zeros((1, 3, 8, 8), np.float32))
    times = net.program.step_times()
    assert len(times) == 2
    assert min(times) > 0


def test_freed_buffers_are_used_again() -> None:
    def peak(depth: int) -> int:
        net = Net((8, 16, 16))
        x = 0
        for _ in range(depth):
            x = net.conv(x, 8, mode="relu")
        net.program.finish(x)
        return int(net.program.peak_bytes(16))

    assert peak(8) == peak(3)


def test_runs_from_many_threads_at_once() -> None:
    net = Net((3, 12, 12))
    x = net.conv(net.combine([0], "sign", "bits"), 16, mode="sign")
    net.program.finish(net.conv(x, 8))
    inputs = [net.rng.normal(size=(n, 3, 12, 12)).astype(np.float32) for n in (1, 65, 130, 513)]
    expected = [net.program.run(x) for x in inputs]
    results: dict[int, Array] = {}

    def work(i: int) -> None:
        results[i] = net.program.run(inputs[i], 2)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, value in enumerate(expected):
        np.testing.assert_array_equal(results[i], value)


ONE = (np.array([0, 1], np.int32), np.zeros(1, np.int32), np.ones(1, np.int8), (1, 2, 1, 1),
       (1, 1), (0, 0), (1, 1), 1)  # fmt: skip
FLOAT = (*ONE[:2], np.ones(1), *ONE[3:])
PAIR = ((2, 2), (2, 2), (0, 0))
LIMIT = {"threshold": np.zeros(1, np.int32), "flip": np.zeros(1, np.uint8)}
SCALE = {"scale": np.ones(1), "shift": np.zeros(1)}
TWO = [np.ones(2)]
BAD: list[tuple[Callable[[Any], Any], str]] = [
    (lambda p: p.conv(9, *ONE), "src names value 9"),
    (lambda p: p.conv(-1, *ONE), "src names value -1"),
    (lambda p: p.conv(1, *FLOAT), "int8"),
    (lambda p: p.conv(2, *ONE), "f32, f64, u8 or i8, not sums"),
    (lambda p: p.conv_sign(0, *ONE, **LIMIT), "reads bits, not f32"),
    (lambda p: p.conv_sign(1, *ONE, **(LIMIT | {"flip": np.zeros(2, np.uint8)})), "flip"),
    (lambda p: p.conv_sign(1, *ONE, **LIMIT, residual=1), "given together"),
    (lambda p: p.conv_sign(1, *ONE, **LIMIT, residual=0,
                           residual_threshold=np.zeros(1, np.int32)), "must be bits"),
    (lambda p: p.conv_sign(1, *ONE, **LIMIT, residual=7,
                           residual_threshold=np.zeros(1, np.int32)), "residual names value 7"),
    (lambda p: p.conv_affine(1, *ONE, **SCALE), "f32, f64, u8 or i8, not bits"),
    (lambda p: p.conv_affine(0, *ONE, scale=np.ones(2), shift=np.ones(1)), "scale and shift"),
    (lambda p: p.conv_affine(0, *ONE, scale=np.ones(1, np.float32), shift=np.ones(1)), "scale"),
    (lambda p: p.conv_affine(0, *ONE, **SCALE, op="tanh"), "op must be"),
    (lambda p: p.conv_affine(0, *ONE, **SCALE, residual=2), "given together"),
    (lambda p: p.conv_affine(0, *ONE, **SCALE, residual=0, residual_scale=np.ones(1),
                             residual_shift=np.ones(1)), "output's shape"),
    (lambda p: p.conv_affine(0, *ONE, **SCALE, residual=2, residual_scale=np.ones(1),
                             residual_shift=np.ones(2)), "residual_scale and residual_shift"),
    (lambda p: p.combine([], [], []), "at least one"),
    (lambda p: p.combine([0, 2], TWO * 2, TWO * 2), "one shape"),
    (lambda p: p.combine([0], [np.ones(3)], TWO), "scales|shifts|channel"),
    (lambda p: p.combine([0], TWO, []), "per source"),
    (lambda p: p.combine([0], [np.ones(1)], [np.ones(1)]), "per source and channel"),
    (lambda p: p.combine([0], TWO, TWO, "sign", "f32"), "exactly when"),
    (lambda p: p.combine([0], TWO, TWO, "none", "bits"), "exactly when"),
    (lambda p: p.combine([0], TWO, TWO, "none", "sums"), "kind must be"),
    (lambda p: p.max_pool(0, (0, 2), (2, 2), (0, 0)), "kernel and stride"),
    (lambda p: p.max_pool(0, (2, 2), (2, 2), (2, 0)), "half the kernel"),
    (lambda p: p.max_pool(0, (9, 2), (2, 2), (0, 0)), "larger than the padded"),
    (lambda p: p.max_pool(0, *PAIR, flip=np.zeros(2, np.uint8)), "bits only"),
    (lambda p: p.max_pool(1, *PAIR, flip=np.zeros(3, np.uint8)), "per channel"),
    (lambda p: p.avg_pool(1, *PAIR), "f32 or f64, not bits"),
    (lambda p: p.avg_pool(0, *PAIR, divisor=-1), "divisor"),
    (lambda p: p.flatten(3), "src names value 3"),
    (lambda p: p.finish(3), "output names value 3"),
    (lambda p: p.run(np.zeros((1, 2, 4, 5), np.float32)), "finish"),
    (lambda p: p.peak_bytes(1), "finish"),
    (lambda p: p.lanes, "finish"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD)
def test_inconsistent_steps_raise_value_error(call: Callable[[Any], Any], message: str) -> None:
    program = cpu.engine().Program(2, 4, 5)
    assert program.combine([0], TWO, TWO, "sign", "bits") == 1
    assert program.conv(1, *ONE) == 2
    with pytest.raises(ValueError, match=message):
        call(program)
    assert program.combine([2], [np.ones(1)], [np.ones(1)]) == 3  # nothing was added


def test_bad_runs_raise_value_error() -> None:
    engine = cpu.engine()
    for shape in ((0, 4, 4), (1, -1, 4), (2**20, 2**20, 2**20)):
        with pytest.raises(ValueError, match="input"):
            engine.Program(*shape)
    with pytest.raises(ValueError, match="cannot run here"):
        engine.Program(1, 1, 1, isa="neon")
    for kind in ("bits", "f16"):
        with pytest.raises(ValueError, match="kind"):
            engine.Program(1, 1, 1, input_kind=kind)
    program = engine.Program(2, 4, 5)
    program.finish(0)
    good = np.zeros((1, 2, 4, 5), np.float32)
    with pytest.raises(ValueError, match="already finished"):
        program.finish(0)
    with pytest.raises(ValueError, match="finished"):
        program.flatten(0)
    for bad in (good[0], good[..., 1:], good.astype(np.int32), np.zeros((1, 2, 4, 10))[..., ::2]):
        with pytest.raises(ValueError, match="x must"):
            program.run(bad)
    for threads in (0, -3, 10**6):
        with pytest.raises(ValueError, match="threads"):
            program.run(good, threads)
    with pytest.raises(ValueError, match="batch"):
        program.peak_bytes(-1)
