"""The pruned random network as a program of the packed engine."""

import math

import numpy as np
from numpy.typing import NDArray

from mpt_fast.random_binary.network import NetLayer, Network
from mpt_fast.runtime.program import (
    Combine,
    ConvAffine,
    Flatten,
    MaxPool,
    Program,
    Step,
    Taps,
)

Shape = tuple[int, ...]


def make_program(network: Network, input_shape: Shape, output_shape: Shape) -> Program:
    """A float64 program: one step per layer, +-1 taps, the scale 1/unit applied layer by layer.

    The channel of ones becomes the first layer's shift, since nothing else reads it.
    """
    ones = np.ones(network.channels)
    steps: list[Step] = [
        Combine(srcs=(0,), scales=(ones,), shifts=(0 * ones,), kind="f64", name="input")
    ]
    channels = network.channels
    for number, layer in enumerate(network.layers):
        for pool in layer.pools:
            steps.append(
                MaxPool(
                    src=len(steps),
                    kernel=pool.kernel,
                    stride=pool.stride,
                    padding=pool.padding,
                    name=layer.name,
                )
            )
        if layer.flat:
            steps.append(Flatten(src=len(steps), name=layer.name))
        sources = channels * (layer.flat or 1)
        steps.append(_step(layer, len(steps), sources, first=number == 0))
        channels = layer.used.size
    return Program(
        input=(network.channels, *network.size),
        input_kind="f32",
        steps=tuple(steps),
        output=len(steps),
        input_shape=input_shape,
        output_shape=output_shape,
    )


def _step(layer: NetLayer, src: int, sources: int, first: bool) -> ConvAffine:
    shift = np.zeros(layer.used.size)
    source, out, tap, sign = layer.source, layer.out, layer.tap, layer.sign
    if first:
        constant = source >= sources
        np.add.at(shift, out[constant], sign[constant])
        source, out, tap = source[~constant], out[~constant], tap[~constant]
        sign = sign[~constant]
    if layer.flat:
        # The engine flattens channel by channel, this network pixel by pixel.
        pixel, neuron = np.divmod(source, sources // layer.flat)
        source = neuron * layer.flat + pixel
    return ConvAffine(
        src=src,
        taps=_taps(layer, out, source, tap, sign, sources),
        stride=layer.stride,
        padding=layer.padding,
        scale=np.full(layer.used.size, 1.0 / layer.unit),
        shift=shift / layer.unit,
        act="relu" if layer.relu else "none",
        name=f"{layer.name}.{layer.kind}",
        covers="relu" if layer.relu else "",
    )


def _taps(
    layer: NetLayer, out: NDArray, source: NDArray, tap: NDArray, sign: NDArray, sources: int
) -> Taps:
    index = source * math.prod(layer.kernel) + tap
    order = np.lexsort((index, out))
    counts = np.bincount(out, minlength=layer.used.size)
    return Taps(
        shape=(layer.used.size, sources, *layer.kernel),
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        index=index[order].astype(np.int32),
        value=sign[order],
    )
