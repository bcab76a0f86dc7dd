"""The engine's stand-alone kernels against torch in float64, on every instruction set."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mpt_fast.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
ISAS = cpu.engine().isas() if cpu.available() else []
Array = NDArray[Any]


def taps_of(weight: Array) -> tuple[Array, Array, Array]:
    """CSR (indptr, index, value) of a weight [O, I, kh, kw]; int8 values if all are -1, 0, 1."""
    flat = weight.reshape(weight.shape[0], -1)
    index = [np.flatnonzero(row) for row in flat]
    indptr = np.cumsum([0] + [len(i) for i in index]).astype(np.int32)
    value = np.concatenate([row[i] for row, i in zip(flat, index, strict=True)])
    if np.isin(weight, (-1, 0, 1)).all():
        value = value.astype(np.int8)
    return indptr, np.concatenate(index).astype(np.int32), value


def random_signs(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> Array:
    return rng.choice([-1.0, 1.0], size=shape) * (rng.random(shape) < density)


def pack_images(bits: Array) -> Array:
    """[N, C, H, W] of bool to planes [C, H, W, words], by NumPy's own bit packing."""
    lanes = np.moveaxis(bits, 0, -1)
    missing = -lanes.shape[-1] % 64
    lanes = np.pad(lanes, [(0, 0)] * 3 + [(0, missing)])
    packed = np.packbits(lanes, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.int64)


def conv_double(x: Array, weight: Array, **geometry: Any) -> Array:
    y = torch.nn.functional.conv2d(
        torch.from_numpy(x).double(), torch.from_numpy(weight).double(), **geometry
    )
    return y.numpy()


# channels, height, width, outputs, kernel, stride, padding, dilation, groups, density, images
CASES = [
    (3, 5, 7, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.5, 1),
    (8, 8, 8, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.5, 63),
    (8, 8, 9, 5, (3, 3), (2, 2), (1, 1), (1, 1), 1, 0.5, 64),
    (6, 9, 6, 9, (3, 3), (2, 1), (0, 2), (1, 2), 3, 0.7, 65),
    (4, 6, 6, 4, (3, 3), (1, 1), (1, 1), (1, 1), 4, 1.0, 130),
    (16, 4, 4, 7, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.1, 513),
    (5, 11, 4, 3, (5, 2), (3, 2), (2, 1), (1, 1), 1, 0.6, 70),
    (300, 1, 1, 33, (1, 1), (1, 1), (0, 0), (1, 1), 1, 1.0, 200),
    (7, 6, 6, 8, (1, 1), (2, 2), (0, 0), (1, 1), 1, 0.5, 520),
    (1, 3, 40, 2, (3, 3), (1, 3), (3, 3), (2, 2), 1, 1.0, 66),
    (520, 3, 3, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1.0, 64),
]


def geometry_of(case: tuple[Any, ...]) -> dict[str, Any]:
    return {"stride": case[5], "padding": case[6], "dilation": case[7], "groups": case[8]}


def signs_case(case: tuple[Any, ...]) -> tuple[Array, Array, Array]:
    c, h, w, o, kernel, *_, groups, density, images = case
    rng = np.random.default_rng(c * 1000 + images)
    weight = random_signs(rng, (o, c // groups, *kernel), density)
    if o > 2:
        weight[1] = 0  # an empty channel
        weight[2] = -1  # a full one of one sign
    bits = rng.random((images, c, h, w)) < 0.5
    return weight, bits, conv_double(bits * 2.0 - 1.0, weight, **geometry_of(case))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bitsliced_sums_equal_float64_convolution(
    case: tuple[Any, ...], isa: str, threads: int
) -> None:
    weight, bits, expected = signs_case(case)
    sums = cpu.engine().bitsliced_conv2d(
        pack_images(bits), *taps_of(weight), weight.shape, **geometry_of(case), isa=isa,
        threads=threads,
    )  # fmt: skip
    assert sums.dtype == np.int32
    np.testing.assert_array_equal(np.moveaxis(sums, -1, 0)[: len(bits)], expected)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bitsliced_signs_equal_thresholded_sums(
    case: tuple[Any, ...], isa: str, with_residual: bool
) -> None:
    weight, bits, sums = signs_case(case)
    rng = np.random.default_rng(5)
    spread = int(np.abs(sums).max()) + 2  # some thresholds lie beyond every sum
    threshold = rng.integers(-spread, spread + 1, len(weight), dtype=np.int32)
    threshold[: len(weight) // 2] //= 4
    threshold[0] = np.iinfo(np.int32).max
    threshold[-1] = np.iinfo(np.int32).min
    flip = rng.integers(0, 2, len(weight), dtype=np.uint8)
    limit = np.broadcast_to(threshold[:, None, None], sums.shape).astype(np.int64)
    extra: dict[str, Any] = {}
    if with_residual:
        residual = rng.random(sums.shape) < 0.5
        other = rng.integers(-spread, spread + 1, len(weight), dtype=np.int32)
        extra = {"residual": pack_images(residual), "residual_threshold": other}
        limit = np.where(residual, other[:, None, None], limit)
    expected = np.where(flip[:, None, None] == 1, sums <= limit, sums >= limit)
    for threads in (1, 2):
        planes = cpu.engine().bitsliced_conv2d_sign(
            pack_images(bits), *taps_of(weight), weight.shape, **geometry_of(case),
            threshold=threshold, flip=flip, isa=isa, threads=threads, **extra,
        )  # fmt: skip
        got = np.unpackbits(planes.view(np.uint8), axis=-1, bitorder="little")
        np.testing.assert_array_equal(np.moveaxis(got, -1, 0)[: len(bits)], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("signs", [True, False])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", [c for c in CASES if c[-1] < 200] + [
    (70, 6, 9, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.3, 17),  # several blocks of input channels
    (40, 5, 19, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.9, 3),
], ids=str)  # fmt: skip
def test_sparse_convolution(case: tuple[Any, ...], isa: str, signs: bool, dtype: type) -> None:
    c, h, w, o, *_, images = case
    weight, _, _ = signs_case((*case[:-1], 1))
    rng = np.random.default_rng(8)
    if not signs:
        weight = weight * rng.normal(size=weight.shape)
    x = rng.normal(size=(images, c, h, w)).astype(dtype)
    bias = rng.normal(size=o).astype(dtype)
    expected = conv_double(x, weight, **geometry_of(case)) + bias[:, None, None].astype(np.float64)
    scale = conv_double(np.abs(x), np.abs(weight), **geometry_of(case)).max() + 1
    results = [
        cpu.engine().sparse_conv2d(
            x, *taps_of(weight), weight.shape, bias, **geometry_of(case), isa=isa, threads=threads
        )
        for threads in (1, 2)
    ]
    assert results[0].dtype == dtype
    np.testing.assert_allclose(results[0], expected, rtol=0, atol=scale * np.finfo(dtype).eps * 4)
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("signs", [True, False])
def test_sparse_convolution_gives_the_same_bits_on_every_isa(signs: bool) -> None:
    rng = np.random.default_rng(3)
    weight = random_signs(rng, (9, 33, 3, 3), 0.4)
    if not signs:
        weight *= rng.normal(size=weight.shape)
    x = rng.normal(size=(20, 33, 7, 11)).astype(np.float32)
    results = [
        cpu.engine().sparse_conv2d(
            x, *taps_of(weight), weight.shape, None, (1, 1), (1, 1), (1, 1), 1, isa=isa
        )
        for isa in ISAS
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_convolution_without_taps_or_images() -> None:
    engine = cpu.engine()
    none = (np.zeros(4, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int8))
    geometry = ((3, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    shape, *rest = geometry
    assert not engine.bitsliced_conv2d(np.ones((2, 4, 5, 1), np.int64), *none, *geometry).any()
    assert engine.bitsliced_conv2d(np.ones((2, 4, 5, 0), np.int64), *none, *geometry).shape == (
        3, 4, 5, 0)  # fmt: skip
    y = engine.sparse_conv2d(np.ones((2, 2, 4, 5), np.float32), *none, shape, None, *rest)
    assert y.shape == (2, 3, 4, 5)
    assert not y.any()
    y = engine.sparse_conv2d(np.ones((0, 2, 4, 5), np.float32), *none, shape, None, *rest)
    assert y.shape == (0, 3, 4, 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 64, 3), (3, 65, 70), (2, 130, 1), (0, 5, 2),
                                   (2, 0, 3), (2, 3, 0)])  # fmt: skip
def test_pack_bits(shape: tuple[int, int, int], dtype: type) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=shape).astype(dtype)
    x[rng.random(shape) < 0.3] = -0.0
    x[rng.random(shape) < 0.1] = np.nan
    rows, length, inner = shape
    words = -(-length // 64)
    bits = np.zeros((rows, inner, words * 64), bool)
    bits[..., :length] = np.moveaxis(x >= 0, 1, 2)
    expected = np.packbits(bits, axis=-1, bitorder="little").reshape(rows, inner, words * 8)
    planes = cpu.engine().pack_bits(x)
    assert planes.shape == (rows, inner, words)
    np.testing.assert_array_equal(planes.view(np.uint8).reshape(expected.shape), expected)
    np.testing.assert_array_equal(planes, cpu.engine().pack_bits(x, threads=2))
    back = cpu.engine().unpack_bits(planes, length, np.dtype(dtype).name)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, np.where(x >= 0, 1, -1))


def arguments() -> dict[str, Any]:
    weight = random_signs(np.random.default_rng(0), (4, 3, 3, 3), 0.5)
    indptr, index, value = taps_of(weight)
    return {
        "planes": np.zeros((3, 6, 6, 1), np.int64), "indptr": indptr, "index": index,
        "value": value, "shape": (4, 3, 3, 3), "stride": (1, 1), "padding": (1, 1),
        "dilation": (1, 1), "groups": 1, "isa": "auto", "threads": 1,
    }  # fmt: skip


def changed(array: Array, at: int, value: int) -> Array:
    array = array.copy()
    array[at] = value
    return array


BAD: list[tuple[str, Any, str]] = [
    ("planes", np.zeros((3, 6, 6, 1), np.int32), "planes must be a C-contiguous int64"),
    ("planes", np.zeros((3, 6, 12, 1), np.int64)[:, :, ::2], "planes must be a C-contiguous"),
    ("planes", np.zeros((3, 6, 6), np.int64), "planes must be"),
    ("planes", np.zeros((3, 0, 6, 1), np.int64), "input"),
    ("planes", np.zeros((3, 1, 1, 1), np.int64), "larger than|stay"),
    ("indptr", lambda a: a["indptr"][:-1], "indptr must have 5 entries"),
    ("indptr", lambda a: changed(a["indptr"], 0, 1), "indptr must run"),
    ("indptr", lambda a: changed(a["indptr"], 4, 2**30), "indptr must run"),
    ("indptr", lambda a: changed(a["indptr"], 2, -5), "indptr must not fall"),
    ("indptr", lambda a: changed(a["indptr"], 2, 2**30), "indptr must not fall"),
    ("indptr", lambda a: a["indptr"].astype(np.int64), "indptr must be a C-contiguous int32"),
    ("index", lambda a: changed(a["index"], 0, -1), "index of output channel 0"),
    ("index", lambda a: changed(a["index"], -1, 27), "index of output channel 3"),
    ("index", lambda a: changed(a["index"], 1, int(a["index"][0])), "rise strictly"),
    ("index", lambda a: a["index"][:-1], "same length"),
    ("value", lambda a: changed(a["value"], 0, 2), "-1 or \\+1"),
    ("value", lambda a: changed(a["value"], 0, 0), "-1 or \\+1"),
    ("value", lambda a: a["value"].astype(np.float32), "int8"),
    ("value", lambda a: a["value"].astype(np.int16), "int8"),
    ("shape", (4, 2, 3, 3), "does not fit"),
    ("shape", (5, 3, 3, 3), "indptr must have 6"),
    ("shape", (4, 3, 0, 3), "kernel height"),
    ("shape", (4, 3, 9, 9), "larger than the padded input"),
    ("stride", (0, 1), "stride"),
    ("padding", (-1, 0), "padding"),
    ("padding", (2**24, 2**24), "2\\^31|2\\^24"),
    ("dilation", (1, 0), "dilation"),
    ("groups", 2, "does not fit"),
    ("groups", 0, "groups"),
    ("isa", "mmx", "isa 'mmx' cannot run here"),
    ("threads", 0, "threads"),
]


@pytest.mark.parametrize(("name", "bad", "message"), BAD)
def test_bad_arguments_raise_value_error(name: str, bad: Any, message: str) -> None:
    good = arguments()
    given = dict(good)
    given[name] = bad(good) if callable(bad) else bad
    if name == "planes" and given[name].shape[1:3] == (1, 1):
        given["padding"] = (0, 0)
    with pytest.raises(ValueError, match=message):
        cpu.engine().bitsliced_conv2d(**given)
    shape = given["planes"].shape
    if name == "value" and given["value"].dtype == np.float32:
        return  # a sparse convolution takes float taps
    if name == "planes" and len(shape) == 4 and shape[1:3] == (6, 6):
        return  # of the wrong type only
    given.pop("planes")
    x = np.zeros((1, *shape[:3])[:4], np.float32)
    given["x"] = x if len(shape) == 4 else x[0]
    with pytest.raises(ValueError, match=message if len(shape) == 4 else "x must have"):
        cpu.engine().sparse_conv2d(**given, bias=None)


@pytest.mark.parametrize(("extra", "message"), [
    ({"threshold": np.zeros(3, np.int32)}, "threshold"),
    ({"threshold": np.zeros(4, np.int64)}, "threshold must be"),
    ({"flip": np.zeros(5, np.uint8)}, "flip"),
    ({"residual": np.zeros((4, 6, 6, 1), np.int64)}, "given together"),
    ({"residual_threshold": np.zeros(4, np.int32)}, "given together"),
    ({"residual": np.zeros((4, 6, 5, 1), np.int64), "residual_threshold": np.zeros(4, np.int32)},
     "output's shape"),
    ({"residual": np.zeros((4, 6, 6, 2), np.int64), "residual_threshold": np.zeros(4, np.int32)},
     "output's shape"),
    ({"residual": np.zeros((4, 6, 6, 1), np.int64), "residual_threshold": np.zeros(1, np.int32)},
     "residual_threshold"),
])  # fmt: skip
def test_bad_thresholds_raise_value_error(extra: dict[str, Any], message: str) -> None:
    given = arguments() | {"threshold": np.zeros(4, np.int32), "flip": np.zeros(4, np.uint8)}
    with pytest.raises(ValueError, match=message):
        cpu.engine().bitsliced_conv2d_sign(**(given | extra))


def test_bad_bits_and_bias_raise_value_error() -> None:
    engine = cpu.engine()
    with pytest.raises(ValueError, match="x must be"):
        engine.pack_bits(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="x must be"):
        engine.pack_bits(np.zeros((2, 3, 4), np.int32))
    with pytest.raises(ValueError, match="do not hold"):
        engine.unpack_bits(np.zeros((2, 3, 1), np.int64), 65)
    with pytest.raises(ValueError, match="do not hold"):
        engine.unpack_bits(np.zeros((2, 3, 1), np.int64), -1)
    with pytest.raises(ValueError, match="dtype"):
        engine.unpack_bits(np.zeros((2, 3, 1), np.int64), 64, "int8")
    given = arguments()
    given.pop("planes")
    for bias in (np.zeros(3, np.float32), np.zeros(4, np.float64)):
        with pytest.raises(ValueError, match="bias"):
            engine.sparse_conv2d(np.zeros((1, 3, 6, 6), np.float32), **given, bias=bias)
