"""The file of an approximation: the seed and the mask, in the container of packed files.

Signs are not stored: they are recomputed from the seed (`signs`). The mask of a layer has two
parts, coded by `mpt_fast.runtime.coding`: which of its neurons are in use, and which of the edges
between neurons in use are kept, as flat indices into (out, tap, source).
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpt_fast.random_binary import signs
from mpt_fast.random_binary.network import NetLayer, Network
from mpt_fast.random_binary.plan import Pool
from mpt_fast.random_binary.result import Approximation, LayerReport, Report, Theorem
from mpt_fast.runtime.coding import CodedMask, CodingError, decode_mask, encode_mask
from mpt_fast.runtime.container import (
    FileError,
    compact,
    parse_object,
    read_whole,
    seal,
    unseal,
    write_whole,
)
from mpt_fast.runtime.file import APPROXIMATION as FORMAT
from mpt_fast.runtime.program import pool_size

VERSION = 1
_LARGEST = 1 << 40  # neurons, edges of a layer, pixels: what a file may speak of
_NUMBERS = ("width", "sources", "flat", "unit")
_PAIRS = ("kernel", "padding", "stride", "out_size")


def save(approximation: Approximation, path: str | os.PathLike) -> int:
    """Writes `approximation` to `path` in one go; returns the number of bytes."""
    network = approximation.network
    tensors: dict[str, NDArray] = {}
    layers = []
    before = network.channels + network.constant
    for number, layer in enumerate(network.layers):
        sources = before * (layer.flat or 1)
        taps = math.prod(layer.kernel)
        edges = (layer.out * taps + layer.tap) * sources + layer.source
        layers.append(
            {name: getattr(layer, name) for name in ("name", "kind", "relu", *_NUMBERS)}
            | {name: list(getattr(layer, name)) for name in _PAIRS}
            | {
                "pools": [[list(pair) for pair in pool] for pool in layer.pools],
                "used": _encode(layer.used, layer.width, f"{number}.used", tensors),
                "edges": _encode(
                    edges, layer.used.size * taps * sources, f"{number}.edges", tensors
                ),
            }
        )
        before = layer.used.size
    data = {
        "version": VERSION,
        "seed": network.seed,
        "channels": network.channels,
        "size": list(network.size),
        "constant": network.constant,
        "input_shape": list(approximation.input_shape),
        "output_shape": list(approximation.output_shape),
        "report": _report_data(approximation.report),
        "layers": layers,
    }
    content = seal({FORMAT: compact(data)}, tensors)
    write_whole(content, path)
    return len(content)


def _report_data(report: Report) -> dict[str, Any]:
    """The report without what the layers say anyway."""
    data = asdict(report)
    del data["layers"]
    return data


def _encode(kept: NDArray, n: int, name: str, tensors: dict[str, NDArray]) -> list[Any]:
    mask = encode_mask(kept, n)
    for part, stream in (("high", mask.high), ("low", mask.low)):
        if stream.size:
            tensors[f"{name}.{part}"] = stream
    return [int(kept.size), mask.coding, mask.rice]


def load(path: str | os.PathLike) -> Approximation:
    """Reads and checks the file of an approximation; its signs are made again from the seed.

    Raises FileError, in one line, for a truncated or altered file or one of another kind.
    """
    content = read_whole(path)
    try:
        texts, tensors = unseal(content)
        if set(texts) != {FORMAT}:
            raise FileError("not an approximation; use mpt_fast.load for a packed network")
        return _read(parse_object(texts[FORMAT].encode(), "approximation"), tensors)
    except (FileError, CodingError) as error:
        raise FileError(f"{path}: {error}") from None


def _read(data: dict[str, Any], tensors: dict[str, NDArray]) -> Approximation:
    if data.get("version") != VERSION:
        raise FileError(
            f"version {data.get('version')!r} is unknown to this release, which reads version "
            f"{VERSION}; update mpt_fast or approximate again"
        )
    seed, channels = _integer(data, "seed", signs.SEEDS), _integer(data, "channels", _LARGEST)
    size, constant = _integers(data, "size", 2), data.get("constant")
    if type(constant) is not bool or type(data.get("layers")) is not list or not data["layers"]:
        raise FileError("its layers are not described")
    layers: list[NetLayer] = []
    maps, width = size, channels + constant
    if not 0 < width * math.prod(size) < _LARGEST:
        raise FileError("its input has no size, or one too large")
    used = np.arange(width)
    for number, item in enumerate(data["layers"]):
        if type(item) is not dict:
            raise FileError(f"layer {number} is not described")
        layer = _layer(item, number, maps, used, width, seed, tensors)
        layers.append(layer)
        maps, used, width = layer.out_size, layer.used, layer.width
    if tensors:
        raise FileError(f"tensor {min(tensors)!r} belongs to no layer")
    views = [_integers(data, name, None) for name in ("input_shape", "output_shape")]
    sizes = [channels * math.prod(size), used.size * math.prod(maps)]
    if [math.prod(view) for view in views] != sizes:
        raise FileError("the shapes of input and output do not fit the layers")
    network = Network(seed, channels, _pair(size), constant, tuple(layers))
    return Approximation(network, _report(data.get("report"), network), views[0], views[1])


def _layer(
    item: dict[str, Any],
    number: int,
    maps: Sequence[int],
    before: NDArray[np.int64],
    width: int,
    seed: int,
    tensors: dict[str, NDArray],
) -> NetLayer:
    """Reads one layer over maps of the neurons `before`, those in use of `width`."""
    numbers = {name: _integer(item, name, _LARGEST) for name in _NUMBERS}
    pairs = {name: _integers(item, name, 2) for name in _PAIRS}
    if type(item.get("relu")) is not bool or not all(
        type(item.get(name)) is str for name in ("name", "kind")
    ):
        raise FileError(f"layer {number} has no name, kind or relu")
    pools = _pools(item, number)
    for pool in pools:
        maps = [
            pool_size(length, k, s, p, ceil_mode=False)
            for length, k, s, p in zip(maps, *pool, strict=True)
        ]
    flat = numbers["flat"]
    if (flat and flat != math.prod(maps)) or numbers["sources"] != width * (flat or 1):
        raise FileError(f"layer {number} does not fit the layer before it")
    for axis, length in enumerate((1, 1) if flat else maps):
        room = length + 2 * pairs["padding"][axis] - pairs["kernel"][axis]
        stride, size = pairs["stride"][axis], pairs["out_size"][axis]
        if min(length, stride, size, pairs["kernel"][axis]) < 1 or (size - 1) * stride > room:
            raise FileError(f"layer {number} reads beyond the maps before it")
    sources, taps = before.size * (flat or 1), math.prod(pairs["kernel"])
    used = _decode(item, "used", numbers["width"], number, tensors)
    if not used.size or numbers["unit"] < 1:
        raise FileError(f"layer {number} has no neuron in use, or no unit")
    edges = _decode(item, "edges", used.size * taps * sources, number, tensors)
    rest, source = np.divmod(edges, sources)
    out, tap = np.divmod(rest, taps)
    pixel, neuron = np.divmod(source, before.size)
    return NetLayer(
        name=item["name"],
        kind=item["kind"],
        relu=item["relu"],
        width=numbers["width"],
        sources=numbers["sources"],
        flat=flat,
        unit=numbers["unit"],
        **{name: _pair(pairs[name]) for name in _PAIRS},
        pools=pools,
        used=used,
        out=out,
        tap=tap,
        source=source,
        sign=signs.signs(seed, number, used[out], tap, pixel * width + before[neuron]),
    )


def _decode(
    item: dict[str, Any], name: str, n: int, number: int, tensors: dict[str, NDArray]
) -> NDArray[np.int64]:
    entry = item.get(name)
    if type(entry) is not list or [type(part) for part in entry] != [int, str, int]:
        raise FileError(f"layer {number} has no mask {name!r}")
    if n >= 1 << 62:
        raise FileError(f"the mask {name!r} of layer {number} is too large")
    none = np.zeros(0, np.uint8)
    streams = [tensors.pop(f"{number}.{name}.{part}", none) for part in ("high", "low")]
    if any(stream.dtype != np.uint8 for stream in streams):
        raise FileError(f"the mask {name!r} of layer {number} is not bytes")
    kept, coding, rice = entry
    if coding == "all" and n >= _LARGEST:
        raise FileError(f"the mask {name!r} of layer {number} is too large")
    return decode_mask(CodedMask(coding, rice, streams[0], streams[1]), n, kept)


def _integer(data: dict[str, Any], name: str, limit: int) -> int:
    value = data.get(name)
    if type(value) is not int or not 0 <= value < limit:
        raise FileError(f"{name} is {str(value)[:40]!r}, expected an integer below {limit}")
    return value


def _integers(data: dict[str, Any], name: str, count: int | None) -> tuple[int, ...]:
    value = data.get(name)
    if (
        type(value) is not list
        or (len(value) != count if count else not 1 <= len(value) <= 3)
        or not all(type(item) is int and 0 <= item < 1 << 20 for item in value)
    ):
        raise FileError(f"{name} is {str(value)[:40]!r}, expected small integers")
    return tuple(value)


def _pools(item: dict[str, Any], number: int) -> tuple[Pool, ...]:
    entries = item.get("pools")
    if type(entries) is not list or any(type(e) is not list or len(e) != 3 for e in entries):
        raise FileError(f"layer {number} has malformed pools")
    pools = []
    for entry in entries:
        kernel, stride, padding = (_integers({"pool": pair}, "pool", 2) for pair in entry)
        if min(*kernel, *stride) < 1:
            raise FileError(f"layer {number} has a pool without a size")
        pools.append(Pool(_pair(kernel), _pair(stride), _pair(padding)))
    return tuple(pools)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _report(data: Any, network: Network) -> Report:
    """The stored report with the layers' part made again from the network."""
    if type(data) is not dict or type(data.get("theorem")) is not dict:
        raise FileError("it has no report")
    layers = tuple(
        LayerReport(layer.name, layer.kind, layer.width, layer.drawn, layer.kept, layer.used.size)
        for layer in network.layers
    )
    _check_fields(Theorem, data["theorem"])
    report = {**data, "theorem": Theorem(**data["theorem"]), "layers": layers}
    _check_fields(Report, report)
    return Report(**report)


def _check_fields(cls: type, data: dict[str, Any]) -> None:
    known = {field.name: field.type for field in fields(cls)}
    if set(data) != set(known):
        raise FileError(f"the fields of its {cls.__name__.lower()} are not those of version 1")
    kinds = {"bool": (bool,), "int": (int,), "float": (float, int)}
    for name, value in data.items():
        wanted = getattr(known[name], "__name__", str(known[name]))
        if wanted in kinds and (type(value) not in kinds[wanted]):
            raise FileError(f"{name} of its {cls.__name__.lower()} is {str(value)[:40]!r}")
