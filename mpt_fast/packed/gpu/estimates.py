"""Times of a convolution's routes from instruction counts, for what nobody measured yet.

Instructions per tap-word are those of the compiled kernels (`python -m benchmarks.compile_report`),
rates an H200's. Such a time says which route to try, not how fast it is.
"""

import math
from dataclasses import dataclass

SOURCE = "instruction count"

MULTIPROCESSORS, CLOCK = 132, 1.98e9
LOP3_LANES, POPC_LANES, ADD_LANES = 64, 16, 64  # of a multiprocessor, each clock
LOAD_BYTES = 128  # from L1, of a multiprocessor, each clock
L1_BYTES = 192 * 1024
L2_BYTES_PER_SECOND, MEMORY_BYTES_PER_SECOND = 5.5e12, 4.3e12
INT8_PER_SECOND = 0.8 * 1979e12
FMA_PER_SECOND = {4: 0.8 * 33.5e12, 8: 0.8 * 16.7e12}  # by bytes of a value, without tensor cores
LAUNCH_SECONDS = 2e-6  # of a kernel in a CUDA graph
LOP3_PER_TAP_WORD = 2.4
PATCH_INSTRUCTIONS = 6  # for each bit of a patch: bounds, load, shift, or
TILE_WORDS, GROUP_TAPS, OUTPUT_TILE = 512, 16, 128


@dataclass(frozen=True)
class Shape:
    """What a convolution's time depends on. value_bytes: of a real entry (0: bits)."""

    images: int
    channels: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    image: tuple[int, int]
    out: tuple[int, int]
    groups: int
    kept: int
    value_bytes: int

    @property
    def pixels(self) -> int:
        return self.out[0] * self.out[1]

    @property
    def per_output(self) -> int:
        """Weights of one output channel."""
        return self.channels // self.groups * math.prod(self.kernel)


def _issued(instructions: float, lanes: int) -> float:
    return instructions / (lanes * MULTIPROCESSORS * CLOCK)


def _loaded(size: float, slice_bytes: float) -> float:
    """Seconds to load `size` bytes again and again from a slice that fits L1, or not."""
    if slice_bytes <= L1_BYTES:
        return size / (LOAD_BYTES * MULTIPROCESSORS * CLOCK)
    return size / L2_BYTES_PER_SECOND


def _slice(shape: Shape, pixels: int, pixel_bytes: int) -> float:
    """Bytes of the input that a tile of so many output pixels reads."""
    rows = math.ceil(pixels / shape.out[1]) * shape.stride[0] + shape.kernel[0] - 1
    rows = min(rows, shape.image[0] + shape.kernel[0] - 1)
    return shape.channels // shape.groups * rows * (shape.image[1] + 2) * pixel_bytes


def adders(shape: Shape) -> float:
    """Bit-sliced: cost of the kept taps; the planes are padded in two launches of their own."""
    row = 2 * math.ceil(shape.images / 64)
    taps = shape.kept + shape.outputs * GROUP_TAPS  # half a turn of fillers in either list
    tap_words = taps * shape.pixels * row
    across = min(row & -row, TILE_WORDS)
    slice_bytes = _slice(shape, max(1, TILE_WORDS // across), 4 * across)
    work = _issued(LOP3_PER_TAP_WORD * tap_words, LOP3_LANES)
    return max(work, _loaded(4 * tap_words, slice_bytes)) + 3 * LAUNCH_SECONDS


def int8(shape: Shape) -> float:
    """Tensor cores: every weight, and a byte for each activation."""
    lanes = 64 * math.ceil(shape.images / 64)
    products = lanes * shape.pixels * shape.outputs * shape.per_output
    size = lanes * math.prod(shape.image) * shape.channels
    reads = size * math.prod(shape.kernel) * math.ceil(shape.outputs / OUTPUT_TILE)
    work = max(2 * products / INT8_PER_SECOND, reads / L2_BYTES_PER_SECOND)
    return work + size / MEMORY_BYTES_PER_SECOND + 2 * LAUNCH_SECONDS


def popcount(shape: Shape) -> float:
    """One popcount for three kernels that keep anything, after gathering patches."""
    pixels = shape.images * shape.pixels
    density = shape.kept / (shape.outputs * shape.per_output)
    triples = math.ceil(shape.channels / shape.groups / 3)
    words = shape.outputs * triples * (1 - (1 - density) ** 27)
    gather = _issued(9 * PATCH_INSTRUCTIONS * shape.channels * pixels, ADD_LANES)
    count = _issued(words * pixels, POPC_LANES)
    decide = 8 * shape.outputs * pixels / MEMORY_BYTES_PER_SECOND
    return gather + count + decide + 3 * LAUNCH_SECONDS


def sparse(shape: Shape) -> float:
    """One load and one multiply-add for each kept tap and image."""
    adds = shape.kept * shape.pixels * shape.images
    size = shape.images * shape.channels * math.prod(shape.image) * shape.value_bytes
    lanes = min(128, shape.images)
    slice_bytes = _slice(shape, max(1, TILE_WORDS // lanes), shape.value_bytes * lanes)
    work = max(
        adds / FMA_PER_SECOND[shape.value_bytes],
        _loaded(shape.value_bytes * adds, slice_bytes),
    )
    return work + 2 * size / MEMORY_BYTES_PER_SECOND + 3 * LAUNCH_SECONDS


def dense(shape: Shape) -> float:
    """PyTorch's convolution, every weight, after a copy with the images first."""
    products = shape.images * shape.pixels * shape.outputs * shape.per_output
    size = shape.images * shape.channels * math.prod(shape.image) * shape.value_bytes
    work = products / FMA_PER_SECOND[shape.value_bytes]
    return work + 2 * size / MEMORY_BYTES_PER_SECOND + 3 * LAUNCH_SECONDS


ESTIMATES = {
    "adders": adders,
    "int8": int8,
    "popcount": popcount,
    "sparse": sparse,
    "dense": dense,
}
