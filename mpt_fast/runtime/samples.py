"""What the cost model is fitted to: narrow layers on the maps of whole networks.

A layer's cost follows what it reads: how far its input and its taps lie from the processor. So
the inputs are as large as those of real networks; outputs are few, in which counts are linear.
"""

from collections.abc import Sequence

from mpt_fast.kernels import cpu
from mpt_fast.runtime.kernels import BITS, CODE, WHOLE
from mpt_fast.runtime.program import Flatten, Kind, Program
from mpt_fast.runtime.synthetic import Synthetic

_MAPS = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels and pixels a side
_DENSITIES = (0.3, 0.1, 0.03)


def samples(isa: str, layout: str) -> list[tuple[Program, int, bool]]:
    """The programs of a layout, each with the batch it is run at and whether it makes code."""
    lanes = 64 * cpu.engine().vector_words(isa)
    if layout == WHOLE:
        return [(_bits(), lanes, False), (_bit_code(), lanes, True), (_near(), lanes, True)]
    if layout == BITS:
        most = min(lanes, 256)
        return [(_bits(), batch, False) for batch in sorted({64, most})] + [(_near(), most, False)]
    if layout == CODE:
        return [(_reals("f32", _MAPS), 16, True), (_levels(_MAPS), 32, True)]
    few = _MAPS[1:]  # lists take their time
    reals = [(_reals("f32", few), 16), (_levels(few), 32), (_reals("f64", _MAPS[2:]), 16)]
    return [(program, batch, False) for program, batch in reals]


def _bits() -> Program:
    net = Synthetic((3, 32, 32))
    net.combine(0, "bits")
    # Signs of a conversion to double, which the engine decides in float where that is certain.
    double = net.convert(0, "f64")
    map_ = net.real(double, 64, 3, 0.1, act="sign")
    for binary in (True, False):
        for outputs, density in ((16, 0.4), (16, 0.1), (32, 0.05)):
            net.real(double, outputs, 3, density, binary, act="sign")
    net.pool(net.sign(map_, 128, 1, 0.03), 2)
    for channels, side in _MAPS:
        few, some = channels // 16, channels // 4
        for outputs, density in ((few, 0.5), (some, 0.1), (2 * some, 0.03)):
            last = net.sign(map_, outputs, 3, density)
        net.sign(map_, 2 * some, 3, 0.05, residual=last)
        net.sign(map_, some, 1, 0.2)
        net.sign(map_, some, 3, 0.1, stride=2)
        for outputs, size, density in ((some, 1, 0.1), (few, 3, 0.2)):
            sums = [net.sums(map_, outputs, size, density) for size in (3, size)]
            net.combine(sums[0], "bits", sums[1])
        joined = some if side <= 8 else few
        for size, density in ((3, 0.05), (3, 0.2), (1, 0.2)):
            net.combine(net.pool(net.sums(map_, joined, size, density), 2), "f32")
        net.pool(map_, 2)
        net.pool(map_, 4)
        if side <= 8:
            net.combine(net.sums(map_, few, 3, 0.3), "f64")
            net.combine(net.sums(map_, few, 3, 0.3, stride=2), "f32")
            net.sums(map_, 16, 3, 0.1)
            _around(net, net.sign(map_, 16, 1, 0.2), net.sums(map_, 16, 1, 0.2, stride=2))
            net.pool(net.convert(map_, "f32"), side, average=True)
            net.pool(net.convert(map_, "f32"), 2, average=True)
        if side > 4:
            before = map_
            map_ = net.sign(map_, 2 * channels, 1, 0.04, stride=2)
            shortcut = net.sums(before, 2 * some, 1, 0.1, stride=2)
            net.combine(net.sums(map_, 2 * some, 3, 0.1), "bits", shortcut)
    flat = net.add(Flatten(src=net.combine(map_, "f32")))
    for density in (0.1, 0.04):
        net.real(flat, 10, 1, density)
        net.real(flat, 10, 1, density, binary=False)
    return net.program()


def _bit_code() -> Program:
    """Signs of layers whose taps are few enough."""
    net = Synthetic((3, 32, 32))
    map_ = net.real(net.convert(0, "f64"), 64, 3, 0.03, act="sign")
    for channels, side in _MAPS:
        some, half = channels // 4, channels // 2
        for outputs, density in ((some, 0.2), (half, 0.1), (half, 0.03)):
            last = net.sign(map_, outputs, 3, density)
        net.sign(map_, half, 3, 0.05, residual=last)
        net.sign(map_, some, 1, 0.2)
        net.sign(map_, some, 3, 0.1, stride=2)
        if side > 4:
            map_ = net.sign(map_, 2 * channels, 1, 0.04, stride=2)
    return net.program()


def _near() -> Program:
    """Layers on maps that stay in the L2 cache."""
    net = Synthetic((3, 12, 12))
    double = net.convert(0, "f64")
    net.real(double, 40, 3, 0.2, act="sign", binary=False)
    map_ = net.real(double, 40, 3, 0.2, act="sign")
    for _ in range(2):
        channels = net.values[map_].channels
        for density in (0.4, 0.15, 0.04):
            net.sign(map_, channels, 3, density)
        net.sums(map_, channels, 1, 0.3)
        net.pool(map_, 2)
        map_ = net.sign(map_, 3 * channels, 1, 0.2, stride=2)
    return net.program()


def _around(net: Synthetic, bits: int, sums: int) -> None:
    """What else a program with bits may do, with few channels of them."""
    kinds: tuple[Kind, ...] = ("f32", "f64", "bits")
    for kind in kinds:
        net.combine(bits, kind)
        net.combine(bits, kind, bits)
    for real in (net.combine(sums, "f32"), net.combine(sums, "f64")):  # two readers: stored
        net.combine(real, "bits")
        for binary in (True, False):
            net.real(real, 8, 3, 0.5, binary)
            net.real(real, 8, 3, 0.2, binary, act="sign")
            net.real(real, 8, 1, 0.5, binary, residual=net.real(real, 8, 1, 0.5, binary))
            net.pool(net.real(real, 8, 1, 0.5, binary), 2)
        net.pool(real, 2)
        net.pool(real, 2, average=True)


def _reals(kind: Kind, maps: Sequence[tuple[int, int]]) -> Program:
    channels, side = maps[0]
    net = Synthetic((3, side, side), kind)
    net.combine(0, kind)
    map_ = net.real(0, channels, 3, 0.1)
    net.real(0, 16, 3, 0.5)
    net.real(0, 16, 3, 0.3, binary=False)
    for channels, side in maps:
        if side == 32:  # rows of it together are hardly less than the L2 cache
            wide = net.real(map_, 2 * channels, 1, 0.04)
            for outputs, density in ((24, 0.3), (channels, 0.1), (2 * channels, 0.03)):
                net.pool(net.real(wide, outputs, 3, density), 2)
        half = channels // 2
        for binary, layers in ((True, ((24, 0.3), (half, 0.1), (channels, 0.03))),
                               (False, ((24, 0.2), (half, 0.05), (half, 0.02)))):  # fmt: skip
            for outputs, density in layers:
                last = net.real(map_, outputs, 3, density, binary)
            net.real(map_, outputs, 3, 0.05, binary, residual=last)
            net.real(map_, half, 1, 0.2, binary)
            net.real(map_, half, 3, 0.05, binary, stride=2)
            net.pool(net.real(map_, half, 3, 0.05, binary), 2)
        net.combine(last, kind, last)
        net.add(Flatten(src=last))
        for size in (2, side):
            net.pool(map_, size)
            last = net.pool(map_, size, average=True)
        net.add(Flatten(src=last))
        if side > 4:
            map_ = net.real(map_, 2 * channels, 1, 0.04, stride=2)
    flat = net.add(Flatten(src=map_))
    for binary in (True, False):
        net.real(flat, 10, 1, 0.1, binary)
        net.real(flat, 200, 1, 0.1, binary)
    return net.program()


def _levels(maps: Sequence[tuple[int, int]]) -> Program:
    channels, side = maps[0]
    net = Synthetic((3, side, side))
    level = net.combine(0, "i8")
    map_ = net.levels(level, channels, 3, 0.1)
    net.levels(level, 16, 3, 0.5)
    for channels, side in maps:
        if side == 32:
            wide = net.levels(map_, 2 * channels, 1, 0.04)
            for outputs, density in ((24, 0.3), (channels, 0.1), (2 * channels, 0.03)):
                net.pool(net.levels(wide, outputs, 3, density), 2)
        half = channels // 2
        for outputs, density in ((24, 0.3), (half, 0.1), (channels, 0.03)):
            last = net.levels(map_, outputs, 3, density)
        net.levels(map_, channels, 3, 0.05, residual=last)
        net.levels(map_, half, 1, 0.2)
        net.levels(map_, half, 3, 0.1, stride=2)
        net.combine(net.levels(map_, 24, 3, 0.1, kind="f32"), "i8")
        net.pool(net.levels(map_, half, 3, 0.1), 2)
        net.combine(last, "i8", last)
        net.combine(last, "f32")
        net.add(Flatten(src=last))
        net.pool(map_, 2)
        net.pool(map_, side)
        if side > 4:
            map_ = net.levels(map_, 2 * channels, 1, 0.04, stride=2)
    flat = net.add(Flatten(src=map_))
    net.levels(flat, 200, 1, 0.1)
    net.levels(flat, 10, 1, 0.1, kind="f32")
    return net.program()
