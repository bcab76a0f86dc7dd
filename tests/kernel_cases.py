"""Cases of the packed operations' suites, and convolution written out as loops."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from mpt_fast.kernels.pack_bits.reference import pack_bits
from mpt_fast.kernels.taps import Taps

# Engines and compilers warm up inside an example, so its time means nothing.
PROPERTY = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def naive_conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> np.ndarray:
    """x [N, C, H, W] * weight [O, C/groups, kh, kw] by the definition; taps outside add nothing."""
    N, _, H, W = x.shape
    outputs, per_group, kh, kw = weight.shape
    Ho = (H + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    Wo = (W + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((N, outputs, Ho, Wo), dtype=np.result_type(x, weight))
    for o, y, z in np.ndindex(outputs, Ho, Wo):
        first = o // (outputs // groups) * per_group
        for c, r, s in np.ndindex(per_group, kh, kw):
            row = y * stride[0] - padding[0] + r * dilation[0]
            column = z * stride[1] - padding[1] + s * dilation[1]
            if 0 <= row < H and 0 <= column < W:
                out[:, o, y, z] += weight[o, c, r, s] * x[:, first + c, row, column]
    return out


@dataclass(frozen=True)
class ConvCase:
    """One convolution: sizes, geometry, density of the weight and a seed for the values."""

    batch: int = 3
    groups: int = 1
    channels_per_group: int = 3
    outputs_per_group: int = 4
    image: tuple[int, int] = (6, 5)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    density: float = 0.4
    seed: int = 0

    @property
    def geometry(self) -> dict[str, Any]:
        """Keyword arguments of the public functions and of torch.nn.functional.conv2d."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def outputs(self) -> int:
        return self.groups * self.outputs_per_group

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def signs(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Random +1 and -1, [N, C, H, W]."""
        shape = (self.batch, self.groups * self.channels_per_group, *self.image)
        return (2 * torch.randint(0, 2, shape, generator=self.generator()) - 1).to(dtype)

    def floats(self, dtype: torch.dtype) -> Tensor:
        """Standard normal input, [N, C, H, W]."""
        shape = (self.batch, self.groups * self.channels_per_group, *self.image)
        return torch.randn(shape, generator=self.generator(), dtype=dtype)

    def planes(self) -> Tensor:
        """`signs` with the images in the lanes."""
        return pack_bits(self.signs(), 0)

    def weight(self, dtype: torch.dtype = torch.int8) -> Tensor:
        """Sparse weight: {-1, 0, +1} for int8, else normal; the first output keeps nothing."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (self.outputs, self.channels_per_group, *self.kernel)
        kept = torch.rand(shape, generator=generator) < self.density
        if self.density < 1:
            kept[0] = False
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        values = normal.sign() if dtype == torch.int8 else normal
        return torch.where(kept, values, 0).to(dtype)

    def taps(self, dtype: torch.dtype = torch.int8) -> Taps:
        return Taps.from_dense(self.weight(dtype))


def few_taps(case: ConvCase, backend: str) -> ConvCase:
    """`case`, or for Triton's interpreter, which takes a millisecond a tap, one of its outputs."""
    return replace(case, outputs_per_group=1) if backend == "triton" else case


CONV_CASES = {
    "3x3 padded": ConvCase(),
    "one image": ConvCase(batch=1),
    "no image": ConvCase(batch=0),
    "one full word": ConvCase(batch=64, image=(3, 3)),
    "one bit past a word": ConvCase(batch=65, image=(3, 3)),
    "many words": ConvCase(batch=1100, image=(2, 2), channels_per_group=2, outputs_per_group=2),
    "unpadded": ConvCase(padding=(0, 0)),
    "stride 2": ConvCase(stride=(2, 2), image=(7, 8)),
    "stride past the kernel": ConvCase(kernel=(1, 1), padding=(0, 0), stride=(3, 2), image=(7, 7)),
    "padding past the kernel": ConvCase(padding=(4, 5), image=(2, 3)),
    "dilated": ConvCase(dilation=(2, 3), padding=(2, 3), image=(7, 8)),
    "rectangular": ConvCase(kernel=(2, 5), stride=(2, 1), padding=(0, 3), image=(5, 7)),
    "1x1": ConvCase(kernel=(1, 1), padding=(0, 0), channels_per_group=7, outputs_per_group=9),
    "7x7": ConvCase(kernel=(7, 7), padding=(3, 3), image=(5, 6), density=0.1),
    "kernel larger than the image": ConvCase(kernel=(5, 5), padding=(2, 2), image=(2, 1)),
    "grouped": ConvCase(groups=3, channels_per_group=2, outputs_per_group=3),
    "depthwise": ConvCase(groups=5, channels_per_group=1, outputs_per_group=2),
    "every weight pruned": ConvCase(density=0.0),
    "every weight kept": ConvCase(density=1.0),
    "many taps": ConvCase(channels_per_group=70, outputs_per_group=2, density=1.0, image=(3, 2)),
}


@st.composite
def conv_cases(draw: st.DrawFn, kernels: st.SearchStrategy[int] | None = None) -> ConvCase:
    """Random small convolutions whose kernel fits into the padded image."""
    kernel_sizes = st.integers(1, 4) if kernels is None else kernels
    kernel = (draw(kernel_sizes), draw(kernel_sizes))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    smallest = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    return ConvCase(
        batch=draw(st.sampled_from([0, 1, 3, 63, 64, 65, 130])),
        groups=draw(st.integers(1, 3)),
        channels_per_group=draw(st.integers(1, 5)),
        outputs_per_group=draw(st.integers(1, 3)),
        image=(draw(st.integers(0, 4)) + smallest[0], draw(st.integers(0, 4)) + smallest[1]),
        kernel=kernel,
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        density=draw(st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0])),
        seed=draw(st.integers(0, 2**31)),
    )


@dataclass(frozen=True)
class LinearCase:
    """One linear layer: sizes, density of the weight and a seed for the values."""

    batch: int = 5
    inputs: int = 37
    outputs: int = 6
    density: float = 0.3
    seed: int = 0

    def _conv(self) -> ConvCase:
        return ConvCase(
            self.batch,
            channels_per_group=self.inputs,
            outputs_per_group=self.outputs,
            image=(1, 1),
            kernel=(1, 1),
            padding=(0, 0),
            density=self.density,
            seed=self.seed,
        )

    def signs(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Random +1 and -1, [N, I]."""
        return self._conv().signs(dtype).flatten(1)

    def floats(self, dtype: torch.dtype) -> Tensor:
        """Standard normal input, [N, I]."""
        return self._conv().floats(dtype).flatten(1)

    def planes(self) -> Tensor:
        """`signs` with the images in the lanes."""
        return pack_bits(self.signs(), 0)

    def weight(self, dtype: torch.dtype = torch.int8) -> Tensor:
        """Sparse weight [O, I]; the first output keeps nothing."""
        return self._conv().weight(dtype).flatten(1)

    def taps(self, dtype: torch.dtype = torch.int8) -> Taps:
        return Taps.from_dense(self.weight(dtype))


LINEAR_CASES = {
    "odd": LinearCase(),
    "one image": LinearCase(batch=1),
    "no image": LinearCase(batch=0),
    "one full word": LinearCase(batch=64, inputs=64),
    "one bit past a word": LinearCase(batch=65, inputs=65),
    "many words": LinearCase(batch=1100, inputs=5),
    "many inputs": LinearCase(inputs=700, outputs=3),
    "one input": LinearCase(inputs=1, outputs=1, density=1.0),
    "every weight pruned": LinearCase(density=0.0),
    "every weight kept": LinearCase(density=1.0),
}


def few_linear_taps(case: LinearCase, backend: str) -> LinearCase:
    """As `few_taps`."""
    if backend != "triton":
        return case
    return replace(case, inputs=min(case.inputs, 35), outputs=min(case.outputs, 2))


linear_cases = st.builds(
    LinearCase,
    batch=st.sampled_from([0, 1, 3, 63, 64, 65, 130]),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 8),
    density=st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 2**31),
)


def _with(tensor: Tensor, position: int, value: int) -> Tensor:
    changed = tensor.clone()
    changed[position] = value
    return changed


# Ways to spoil the int8 taps of a 1x1 or larger kernel with at least three taps in some channel.
MALFORMED_TAPS: dict[str, Callable[[Taps], Taps]] = {
    "indptr starts past 0": lambda t: t._replace(indptr=_with(t.indptr, 0, 1)),
    "indptr starts below 0": lambda t: t._replace(indptr=_with(t.indptr, 0, -1)),
    "indptr descends": lambda t: t._replace(indptr=_with(t.indptr, 1, int(t.indptr[-1]) + 1)),
    "indptr ends early": lambda t: t._replace(indptr=_with(t.indptr, -1, int(t.indptr[-2]))),
    "indptr ends late": lambda t: t._replace(indptr=_with(t.indptr, -1, int(t.indptr[-1]) + 1)),
    "indptr too short": lambda t: t._replace(indptr=t.indptr[1:]),
    "indptr of int64": lambda t: t._replace(indptr=t.indptr.long()),
    "index below 0": lambda t: t._replace(index=_with(t.index, 0, -1)),
    "index past the weight": lambda t: t._replace(
        index=_with(t.index, -1, t.shape[1] * t.shape[2] * t.shape[3])
    ),
    "index twice": lambda t: t._replace(index=_with(t.index, -1, int(t.index[-2]))),
    "index descends": lambda t: t._replace(index=torch.cat([t.index[:-2], t.index[-2:].flip(0)])),
    "index of int64": lambda t: t._replace(index=t.index.long()),
    "value too short": lambda t: t._replace(value=t.value[1:]),
    "value of int32": lambda t: t._replace(value=t.value.int()),
    "value 0": lambda t: t._replace(value=_with(t.value, 0, 0)),
    "value 2": lambda t: t._replace(value=_with(t.value, 0, 2)),
    "an empty shape": lambda t: t._replace(shape=(0, *t.shape[1:])),
}
