"""Code made from the taps: as lists of taps, for every geometry, layout and processor."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_program import (
    ISAS,
    Array,
    EveryLayout,
    Net,
    Size,
    both,
    column,
    nearly_same,
    same_bits,
)
from torch.nn import functional

from mpt_fast.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
MADE_FOR = [isa for isa in ISAS if isa in ("avx512", "avx2")]
BATCHES = (1, 2, 12, 13, 16, 17, 33, 70)
LEVELS = {"u8": (0, 255), "i8": (-127, 127), "i16": (-32767, 32767)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread_of_torch() -> Iterator[None]:
    """Its threads, waiting for work, would take the processors from the engine's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class EveryWay(EveryLayout):
    """Every instruction set and layout, with code where it is made, and with lists of taps."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.programs = [
            cpu.engine().Program(*shape, isa=isa, layout=layout, code=code)
            for isa in ISAS
            for layout in ("images", "pixels")
            for code in ((True, False) if isa in MADE_FOR else (False,))
        ]
        self.listed = []

    def finish(self, output: int) -> None:
        for program in self.programs:
            program.finish(output)


class CodeNet(Net):
    """`check` also compares the batches with each other, bit for bit in each layout."""

    def __init__(self, shape: tuple[int, int, int], seed: int = 0) -> None:
        super().__init__(shape)
        self.program = EveryWay(shape)
        self.rng = np.random.default_rng(seed)

    def weight(self, shape: tuple[int, ...], density: float, signs: bool = True) -> Array:
        """Of three channels or more the first keeps nothing, the second all, the third all +1."""
        weight = super().weight(shape, density, signs)
        if len(weight) >= 3:
            weight[0] = 0
            weight[1] = super().weight(shape, 1.0, signs)[1]
            weight[2] = np.abs(weight[1])
        return weight

    def identity(self, src: int, kind: str) -> int:
        """The values in another kind: floats, or the levels nearest to sixty times the input."""
        self.program.levels = True
        c = self.shapes[src][0]
        factor = 1.0 if kind == "f32" else 60.0
        terms = ([src], [np.full(c, factor)], [np.zeros(c)])

        def step(v: list[torch.Tensor]) -> torch.Tensor:
            y = v[src].float() * factor
            return (y if kind == "f32" else y.round().clamp(*LEVELS[kind])).double()

        return self._add(self.program.combine(*terms, "none", kind), step)

    def level_conv(self, src: int, out: int, kind: str, kernel: Size = 3, stride: Size = 1,
                   padding: Size = 1, dilation: Size = 1, groups: int = 1, density: float = 0.5,
                   mode: str = "none", residual: int = -1) -> int:  # fmt: skip
        """As `conv`, in float32 as the engine rounds: exact."""
        weight = self.weight((out, self.shapes[src][0] // groups, *both(kernel)), density)
        geometry = (both(stride), both(padding), both(dilation), groups)
        size = (50 if kind == "i16" else 1) / np.sqrt(1 + density * weight[0].size)
        scale, scale2 = size * self.channels(out), self.channels(out)
        shift, shift2 = 20 * self.channels(out), 20 * self.channels(out)

        def step(v: list[torch.Tensor]) -> torch.Tensor:
            sums = functional.conv2d(v[src], torch.from_numpy(weight), None, *geometry)
            y = sums.float() * column(scale).float() + column(shift).float()
            if residual >= 0:
                other = v[residual].float() * column(scale2).float() + column(shift2).float()
                y = y + other
            y = y.relu() if mode == "relu" else y
            return (y if kind == "f32" else y.round().clamp(*LEVELS[kind])).double()

        extra = {}
        if residual >= 0:
            extra = {"residual": residual, "residual_scale": scale2, "residual_shift": shift2}
        given = (src, *self.taps(weight, True), *geometry)
        value = self.program.conv_affine(
            *given, scale=scale, shift=shift, op=mode, kind=kind, **extra
        )
        return self._add(value, step)

    def images(self, count: int) -> Array:
        return self.rng.normal(size=(count, *self.shapes[0])).astype(np.float32)

    def run(
        self, output: int, batches: tuple[int, ...] = BATCHES, images: Array | None = None,
        threads: tuple[int, ...] = (1, 3),
    ) -> tuple[Array, Array]:  # fmt: skip
        """The results of all images, which those of every batch begin like, and the images."""
        self.program.finish(output)
        x = self.images(max(batches)) if images is None else images
        whole = self.program.runs(x, 1)
        for count in batches:  # three threads wait for each other: for the ends of the range alone
            inside = min(batches) < count < max(batches)
            for many in (1,) if inside else threads:
                for part, results in zip(self.program.runs(x[:count], many), whole, strict=True):
                    same_bits(part, results[:count])
        return whole[0], x

    def check(
        self, output: int, batches: tuple[int, ...] = BATCHES, exact: bool = False,
        images: Array | None = None, threads: tuple[int, ...] = (1, 3),
    ) -> None:  # fmt: skip
        whole, x = self.run(output, batches, images, threads)
        expected = self.values(x)[output].numpy()
        if exact:
            np.testing.assert_array_equal(whole, expected)
        else:
            tight = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=tight)


@dataclass
class Case:
    """An input shape, a convolution that fits it, what follows it, and batches."""

    shape: tuple[int, int, int]
    layer: dict[str, Any]
    after: str
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (3, 1), (1, 3)]))
    stride = (draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 1, 2, 3])))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    spans = [dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] for i in (0, 1)]
    size = [max(1, span) + draw(st.integers(0, 9)) for span in spans]
    groups = draw(st.sampled_from([1, 1, 2, 6]))
    each = draw(st.sampled_from([1, 1, 2, 5, 20]) if groups == 1 else st.integers(1, 2))
    out = draw(st.sampled_from([1, 5, 11, 12, 27, 28, 64]) if groups == 1 else st.integers(1, 8))
    layer = {
        "out": groups * out,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "density": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "mode": draw(st.sampled_from(["none", "relu"])),
    }
    return Case(
        (groups * each, size[0], size[1]),
        layer,
        draw(st.sampled_from(["none", "pool", "residual"])),
        (draw(st.sampled_from(BATCHES)), draw(st.sampled_from(BATCHES))),
        (draw(st.sampled_from([1, 1, 1, 3])),),  # rarely three: they wait for each other
        draw(st.integers(0, 2**31)),
    )


def halved(net: CodeNet, value: int) -> int:
    """Pooled as the engine joins it to a convolution, where the map is large enough."""
    return net.max_pool(value, 2, 2) if min(net.shapes[value][1:]) > 1 else value


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases(), signs=st.booleans(), plain=st.booleans())
def test_floats_of_every_geometry(case: Case, signs: bool, plain: bool) -> None:
    net = CodeNet(case.shape, case.seed)
    layer = case.layer | ({"mode": "plain"} if plain else {})
    y = net.conv(0, **layer, signs=signs)
    if case.after == "residual":  # whose memory the sums take
        y = net.conv(0, **case.layer, signs=signs, residual=y)
    net.check(halved(net, y) if case.after == "pool" else y, case.batches, threads=case.threads)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    case=cases(),
    source=st.sampled_from(["u8", "i8"]),
    other=st.sampled_from(["u8", "i8", "i16"]),
    kind=st.sampled_from(["u8", "i8", "i16", "f32"]),
)
def test_levels_of_every_geometry(case: Case, source: str, other: str, kind: str) -> None:
    net = CodeNet(case.shape, case.seed)
    x = net.identity(0, source)
    residual = {}
    if case.after == "residual":
        residual = {"residual": net.level_conv(x, kind=other, **case.layer)}
    y = net.level_conv(x, kind=kind, **case.layer, **residual)
    y = halved(net, y) if case.after == "pool" else y
    y = net.identity(y, "f32") if kind != "f32" else y
    net.check(y, case.batches, exact=True, threads=case.threads)


@pytest.mark.parametrize("out", [1, 11, 12, 22, 27, 28, 54, 64, 65])
@pytest.mark.parametrize("form", ["signs", "weights", "levels"])
def test_every_count_of_output_channels(form: str, out: int) -> None:
    """Several functions of several blocks of input channels."""
    net = CodeNet((70, 4, 5), out)
    if form == "levels":
        y = net.level_conv(net.identity(0, "i8"), out, "i16", density=0.4)
        return net.check(net.identity(y, "f32"), (1, 17), exact=True)
    return net.check(net.conv(0, out, density=0.9, signs=form == "signs"), (1, 17))


@pytest.mark.parametrize("form", ["signs", "weights", "levels"])
@pytest.mark.parametrize("after", ["none", "residual", "pool"])
def test_every_batch(form: str, after: str) -> None:
    net = CodeNet((9, 6, 7))
    layer: dict[str, Any] = {"out": 30, "density": 0.3, "mode": "relu"}
    x = 0
    if form == "levels":
        x = net.identity(0, "u8")
        make = lambda **given: net.level_conv(x, kind="i8", **given)  # noqa: E731
    else:
        make = lambda **given: net.conv(x, signs=form == "signs", **given)  # noqa: E731
    y = make(**layer)
    if after == "residual":
        y = make(**layer, residual=y)
    y = halved(net, y) if after == "pool" else y
    levels = form == "levels"
    net.check(net.identity(y, "f32") if levels else y, exact=levels)


@pytest.mark.parametrize("kind", ["u8", "i8", "i16", "f32"])
@pytest.mark.parametrize("after", ["none", "residual", "pool"])
@pytest.mark.parametrize(
    "layer",
    [
        {"kernel": 1, "padding": 0, "density": 0.5},
        {"kernel": 1, "padding": 0, "density": 1.0},
        {"kernel": 3, "padding": 1, "density": 0.6},
    ],
    ids=["half", "dense", "3x3"],
)
def test_sums_that_leave_sixteen_bits(layer: dict[str, Any], after: str, kind: str) -> None:
    """With the largest levels under taps of one sign; some channels drain, others do not."""
    net = CodeNet((512 if layer["kernel"] == 1 else 100, 3, 4), 5)
    x = net.identity(0, "u8")
    residual = {"residual": net.level_conv(x, 29, "i8", **layer)} if after == "residual" else {}
    y = net.level_conv(x, 29, kind, **layer, **residual)
    y = halved(net, y) if after == "pool" else y
    images = net.images(18)
    images[::3] = 9
    net.check(net.identity(y, "f32") if kind != "f32" else y, (1, 17, 18), True, images)


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("width", [15, 16, 17, 31, 32, 33, 34, 63, 64, 65, 66, 97])
def test_rows_about_as_wide_as_vectors(width: int, levels: bool) -> None:
    """A row's stage is filled vector by vector, with masks where the image ends."""
    for stride, dilation, padding in ((2, 1, 1), (2, 1, 3), (2, 2, 2), (1, 1, 2), (3, 1, 1)):
        net = CodeNet((2, 5, width))
        layer: dict[str, Any] = {"out": 4, "stride": (1, stride), "dilation": (1, dilation)}
        layer |= {"padding": (1, padding), "density": 1.0}
        if levels:
            y = net.level_conv(net.identity(0, "i8"), kind="f32", **layer)
        else:
            y = net.conv(0, **layer)
        net.check(y, (1, 2), exact=levels, threads=(1,))


def test_maps_of_many_bands() -> None:
    """Sums that pass from block to block in parts of the map; rows cut among threads."""
    for signs in (True, False):
        net = CodeNet((70, 33, 35), 2)
        net.check(net.conv(0, 65, density=0.2, signs=signs), (1, 3))
    net = CodeNet((100, 33, 35), 3)
    y = net.max_pool(net.level_conv(net.identity(0, "i8"), 65, "i8", density=0.2), 2, 2)
    net.check(net.identity(y, "f32"), (1, 3), exact=True)


POOLED = [(4, 32), (2, 2), (8, 8), (6, 16), (4, 64), (4, 12), (5, 4)]


@pytest.mark.parametrize("size", POOLED, ids=str)
def test_pools_of_levels(size: tuple[int, int]) -> None:
    """Windows side by side of rows that are a power of two and others, down to few elements."""
    net = CodeNet((3, *size))
    for kind in ("i8", "i16"):
        x = net.level_conv(net.identity(0, "i8"), 21, kind)
        net.check(net.identity(net.max_pool(x, 2, 2), "f32"), (1, 2, 16, 17), exact=True)
        net = CodeNet((3, *size))


def test_code_too_long_for_the_cache() -> None:
    net = CodeNet((128, 9, 10), 2)
    net.check(net.conv(0, 64, density=0.7), (1, 16))


@pytest.mark.parametrize("after", ["none", "residual", "pool"])
@pytest.mark.parametrize("form", ["signs", "weights", "levels"])
def test_stages_of_several_bands(form: str, after: str) -> None:
    """Rows of whole vectors, of an input that is larger than what is staged at a time."""
    net = CodeNet((70, 33, 32))
    layer: dict[str, Any] = {"out": 30, "density": 0.05, "mode": "relu"}
    if form == "levels":
        net = CodeNet((110, 36, 32))
        x = net.identity(0, "u8")
        y = net.level_conv(x, kind="u8", **layer)
        y = net.level_conv(x, kind="i8", residual=y, **layer) if after == "residual" else y
        y = net.identity(halved(net, y) if after == "pool" else y, "f32")
        return net.check(y, (1, 3), exact=True)
    y = net.conv(0, signs=form == "signs", **layer)
    y = net.conv(0, signs=form == "signs", residual=y, **layer) if after == "residual" else y
    return net.check(halved(net, y) if after == "pool" else y, (1, 3))


def test_networks_with_flatten_and_linear_layers() -> None:
    net = CodeNet((3, 9, 8))
    x = net.conv(0, 8, mode="relu")
    y = net.conv(x, 8, mode="relu", residual=x, signs=False)
    a = net.conv(y, 12, stride=2, mode="none")
    b = net.conv(y, 12, kernel=1, padding=0, stride=2, mode="none")
    x = net.combine([a, b], "relu")
    flat = net.flatten(x)  # [H][W][C] becomes [C][H][W]
    other = net.flatten(net.avg_pool(x, 2, 1, padding=1, include=False))
    y = net.conv(flat, 33, kernel=1, padding=0, mode="relu", density=0.2)
    z = net.conv(other, 33, kernel=1, padding=0, mode="relu", density=0.2, signs=False)
    net.check(net.conv(net.flatten(net.combine([y, z])), 10, kernel=1, padding=0))


def test_flattened_values_that_several_steps_read() -> None:
    """An image alone lies without the lanes that fill a group up only where all readers know."""
    linear: dict[str, Any] = {"kernel": 1, "padding": 0, "density": 0.3}
    for signs in (True, False):
        net = CodeNet((40, 3, 2))
        flat = net.flatten(net.conv(0, 40, mode="relu"))
        y = net.conv(flat, 240, signs=signs, **linear)
        z = net.conv(flat, 240, signs=signs, residual=flat, **linear)
        net.check(net.combine([y, z, flat]), (1, 2, 17))
        net = CodeNet((40, 3, 2))
        flat = net.flatten(net.conv(0, 40, mode="relu"))
        net.check(net.combine([net.conv(flat, 9, signs=signs, **linear)]), (1, 2, 17))
        net = CodeNet((40, 3, 2))
        net.check(net.flatten(net.conv(0, 40, signs=signs)), (1, 2, 17))


def test_networks_of_levels_with_flatten_and_linear_layers() -> None:
    net = CodeNet((3, 8, 10))
    x = net.level_conv(net.identity(0, "i8"), 16, "u8", mode="relu")
    x = net.max_pool(net.level_conv(x, 20, "u8", mode="relu"), 2, 2)
    x = net.level_conv(x, 20, "i8", residual=x)
    x = net.level_conv(net.flatten(net.max_pool(x, 3, 2, padding=1)), 40, "i8", kernel=1, padding=0)
    net.check(net.level_conv(x, 10, "f32", kernel=1, padding=0), exact=True)


def test_floats_and_levels_in_one_network() -> None:
    """Float layers whose blocks have the lanes of levels, two groups of them."""
    net = CodeNet((5, 7, 6))
    x = net.conv(0, 20, density=0.3, mode="relu")
    y = net.level_conv(net.identity(x, "u8"), 20, "i8", density=0.1)
    y = net.conv(net.identity(y, "f32"), 20, mode="relu", residual=x, signs=False)
    net.program.levels = False  # not of them alone
    net.run(net.conv(net.flatten(y), 9, kernel=1, padding=0))


def test_images_of_eight_bits() -> None:
    net = CodeNet((3, 6, 5))
    table = net.rng.normal(size=(3, 256)).astype(np.float32)
    x = net.rng.integers(0, 256, (33, 3, 6, 5), np.uint8)
    net.program.set_pixels(table)
    y = net.conv(net.conv(0, 12, mode="relu"), 7, stride=2)
    net.check(y, (1, 17, 33), images=table[np.arange(3)[:, None, None], x])
    same_bits(net.program.run(x), net.program.run(table[np.arange(3)[:, None, None], x]))


@pytest.mark.parametrize("form", ["signs", "weights", "levels"])
def test_groups_of_several_blocks(form: str) -> None:
    """Functions whose channels are of more groups than one."""
    net = CodeNet((210, 4, 3))
    layer: dict[str, Any] = {"out": 84, "groups": 3, "density": 0.9}
    if form == "levels":
        return net.check(net.level_conv(net.identity(0, "i8"), kind="f32", **layer), (1, 17), True)
    return net.check(net.conv(0, signs=form == "signs", **layer), (1, 17))


@pytest.mark.parametrize("form", ["signs", "weights", "levels"])
def test_room_for_channels_of_many_groups(form: str) -> None:
    """One function passes by the inputs of all groups: hardly a tap, and a base for every row."""
    net = CodeNet((972, 3, 32))
    layer: dict[str, Any] = {"out": 27, "groups": 27, "density": 0.002}
    if form == "levels":
        x = net.identity(0, "i8")
        y = net.level_conv(x, kind="f32", **layer, residual=net.level_conv(x, kind="i8", **layer))
        return net.check(y, (1, 3), exact=True)
    y = net.conv(0, signs=form == "signs", **layer)
    return net.check(net.conv(0, signs=form == "signs", **layer, residual=y), (1, 3))


@pytest.mark.parametrize("levels", [False, True])
def test_linear_layers_of_many_inputs(levels: bool) -> None:
    """One pixel, so that flatten copies nothing."""
    net = CodeNet((700, 1, 1))
    layer: dict[str, Any] = {"out": 50, "kernel": 1, "padding": 0, "density": 0.5}
    if levels:
        x = net.flatten(net.level_conv(net.identity(0, "u8"), kind="i8", **layer))
        return net.check(net.level_conv(x, kind="f32", **layer), exact=True)
    return net.check(net.conv(net.flatten(net.conv(0, **layer)), signs=False, **layer))


@pytest.mark.parametrize("signs", [False, True])
def test_values_that_are_not_finite(signs: bool) -> None:
    """A NaN passes through relu and maxima, and zeros keep their signs, as with lists of taps."""
    for pooled in (False, True):
        net = CodeNet((5, 6, 6))
        y = net.conv(0, 13, mode="relu", density=0.1, signs=signs)
        y = net.max_pool(y, 2, 2) if pooled else net.conv(0, 13, mode="relu", residual=y)
        net.program.finish(y)
        for special in (np.nan, np.inf, -np.inf, -0.0, 1e-40, 3e36):
            x = net.images(18)
            x[net.rng.random(x.shape) < 0.02] = special
            first, *others = (program.run(x) for program in net.program.programs)
            for other in others:
                nearly_same(other, first)
                zero = first == 0
                np.testing.assert_array_equal(np.signbit(other[zero]), np.signbit(first[zero]))


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("shape", [(4, 5, 6), (70, 3, 2), (2, 17, 18)], ids=str)
def test_no_image_and_no_earlier_run_changes_another(
    shape: tuple[int, int, int], levels: bool
) -> None:
    """What lies beside the values that are used, or was there before, is never part of a result."""

    def built() -> CodeNet:
        net = CodeNet(shape, 1)
        if levels:
            x = net.level_conv(net.identity(0, "i8"), 29, "i8", padding=2)
            y = net.level_conv(x, 29, "f32", stride=2)
        else:
            x = net.conv(0, 29, padding=2, mode="relu")
            y = net.conv(x, 29, stride=2, mode="none", signs=False)
        net.program.finish(y)
        return net

    net, spoiled = built(), built()
    x = net.images(35)
    worst = np.full_like(x, np.nan)
    for count in (35, 13, 1):
        beside = worst[:count].copy()
        beside[0], beside[count // 2] = x[0], x[count // 2]
        for clean, used in zip(net.program.programs, spoiled.program.programs, strict=True):
            expected = clean.run(x[:count])
            used.run(worst)
            used.run(worst[:count])
            same_bits(used.run(x[:count]), expected)
            result = used.run(beside)
            same_bits(result[:1], expected[:1])
            same_bits(result[count // 2], expected[count // 2])


@pytest.mark.parametrize("isa", MADE_FOR)
def test_first_runs_of_many_threads_at_once(isa: str) -> None:
    def program() -> Any:
        net = Net((6, 10, 11), isa)
        net.program.programs = [cpu.engine().Program(6, 10, 11, isa=isa)]
        net.program.listed = []
        x = net.conv(0, 40, mode="relu")
        x = net.conv(x, 40, mode="relu", residual=x)
        net.program.finish(net.conv(net.flatten(x), 7, kernel=1, padding=0))
        return net.program

    alone = program()
    x = np.random.default_rng(1).normal(size=(70, 6, 10, 11)).astype(np.float32)
    counts = (1, 70, 3, 33, 6, 17)
    expected = [alone.run(x[:count], 1) for count in counts]
    for _ in range(3):
        made = program()
        results: dict[int, Array] = {}
        barrier = threading.Barrier(len(counts))

        def work(
            i: int,
            made: Any = made,
            results: dict[int, Array] = results,
            barrier: threading.Barrier = barrier,
        ) -> None:
            barrier.wait()
            results[i] = made.run(x[: counts[i]], 2)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(counts))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for i, value in enumerate(expected):
            same_bits(results[i], value)


def anonymous_code() -> set[str]:
    """Address ranges of this process that hold code of no file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return {line[0] for line in lines if line[1] == "r-xp" and len(line) == 5}


def small(isa: str = "auto", code: bool = True) -> Any:
    program = cpu.engine().Program(1, 2, 2, isa=isa, code=code)
    taps = (np.array([0, 1], np.int32), np.zeros(1, np.int32), np.ones(1, np.int8))
    program.finish(program.conv(0, *taps, (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1))
    return program


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize("isa", ISAS)
def test_code_is_made_on_the_first_run_and_freed(isa: str) -> None:
    x = np.ones((16, 1, 2, 2), np.float32)
    small(isa).run(x)  # what the first ever needs
    for code in (False, True):
        before = anonymous_code()
        program = small(isa, code)
        assert anonymous_code() == before
        program.run(x)
        assert len(anonymous_code() - before) == (code and isa in MADE_FOR)
        del program
        assert anonymous_code() == before


FORBIDDEN = """
import ctypes, sys
import numpy as np
from mpt_fast.kernels import cpu

engine = cpu.engine()
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE: nothing written becomes code
    sys.exit(77)
taps = (np.array([0, 2], np.int32), np.arange(2, dtype=np.int32), np.array([1, -1], np.int8))
program = engine.Program(2, 1, 1)
program.finish(program.conv(0, *taps, (1, 2, 1, 1), (1, 1), (0, 0), (1, 1), 1))
for count in (1, 40):
    x = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2, 1, 1)
    assert (program.run(x) == -1).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_lists_of_taps_where_no_program_may_write_code() -> None:
    done = subprocess.run([sys.executable, "-c", FORBIDDEN], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this kernel cannot forbid it")
    assert done.returncode == 0, done.stderr
