"""What a program accepts: taps, shapes, kinds and the order of its values."""

import numpy as np
import pytest
import torch
from runtime_cases import every_step, random_taps
from torch.nn import functional as F

from mpt_fast.runtime import Program, ProgramError, Taps
from mpt_fast.runtime.program import AvgPool, Combine, Conv, Flatten, MaxPool, Step, pool_size


def make(shape: tuple, indptr: list, index: list, value: list, /, **dtypes: type) -> Taps:
    return Taps(
        shape,  # type: ignore[arg-type]  # wrong lengths on purpose
        np.array(indptr, dtypes.get("indptr", np.int32)),
        np.array(index, dtypes.get("index", np.int32)),
        np.array(value, dtypes.get("value", np.int8)),
    )


GOOD = ((2, 1, 2, 2), [0, 2, 3], [0, 3, 1], [1, -1, 1])


def test_dense_and_back() -> None:
    taps = make(*GOOD)
    taps.check()
    assert taps.to_dense().tolist() == [[[[1, 0], [0, -1]]], [[[0, 1], [0, 0]]]]
    assert (taps.kept, taps.weights, taps.binary) == (3, 8, True)
    make((2, 1, 2, 2), [0, 0, 0], [], []).check()
    make((3, 1, 1, 1), [0, 0, 1, 1], [0], [0.5], value=np.float32).check()


@pytest.mark.parametrize(
    ("arguments", "dtypes", "message"),
    [
        (((2, 1, 2), *GOOD[1:]), {}, "bad weight shape"),
        (((0, 1, 2, 2), *GOOD[1:]), {}, "bad weight shape"),
        (((2, 1, 2**16, 2), *GOOD[1:]), {}, "bad weight shape"),
        (((2, 2**18, 2**15, 1), *GOOD[1:]), {}, "too large"),
        (GOOD, {"indptr": np.int64}, "tap indptr is int64"),
        (GOOD, {"index": np.int64}, "tap index is int64"),
        (GOOD, {"value": np.int16}, "tap value is int16"),
        ((GOOD[0], [0, 3], *GOOD[2:]), {}, r"tap indptr is int32\[2\], expected int32\[3\]"),
        ((GOOD[0], [0, 2, 4], *GOOD[2:]), {}, "does not rise from 0 to 3"),
        ((GOOD[0], [1, 2, 3], *GOOD[2:]), {}, "does not rise"),
        ((GOOD[0], [0, 4, 3], *GOOD[2:]), {}, "does not rise"),
        ((*GOOD[:2], [0, 4, 1], GOOD[3]), {}, r"tap index outside \[0, 4\)"),
        ((*GOOD[:2], [-1, 3, 1], GOOD[3]), {}, "tap index outside"),
        ((*GOOD[:2], [3, 0, 1], GOOD[3]), {}, "does not rise inside a channel"),
        ((*GOOD[:2], [3, 3, 1], GOOD[3]), {}, "does not rise inside a channel"),
        ((*GOOD[:3], [1, 0, 1]), {}, "neither -1 nor"),
        ((*GOOD[:3], [1, -128, 1]), {}, "neither -1 nor"),
        ((*GOOD[:3], [1, -1]), {}, r"tap value is int8\[2\]"),
        ((*GOOD[:3], [1.0, np.nan, 1.0]), {"value": np.float32}, "NaN or infinite"),
        ((*GOOD[:3], [1.0, np.inf, 1.0]), {"value": np.float64}, "NaN or infinite"),
    ],
    ids=str,
)
def test_inconsistent_taps(arguments: tuple, dtypes: dict[str, type], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        make(*arguments, **dtypes).check()


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_pool_sizes_are_those_of_torch(
    kernel: int, stride: int, padding: int, ceil_mode: bool
) -> None:
    for length in range(1, 12):
        size = pool_size(length, kernel, stride, padding, ceil_mode)
        if 2 * padding > kernel or length + 2 * padding < kernel:
            continue
        x = torch.zeros(1, 1, length, 1)
        y = F.max_pool2d(x, (kernel, 1), (stride, 1), (padding, 0), ceil_mode=ceil_mode)
        assert size == y.shape[2]


def test_values_of_every_step() -> None:
    kinds = [value.kind for value in every_step().values()]
    assert kinds == ["f32", "f64", "bits", "bits", "bits", "sums", *["f32"] * 5]
    shapes = [value.shape for value in every_step().values()]
    assert shapes[4:8] == [(4, 3, 3), (4, 3, 3), (4, 3, 3), (4, 2, 2)]
    assert shapes[-2:] == [(16, 1, 1), (3, 1, 1)]


def program(*steps: Step, **fields: object) -> Program:
    options = {"input": (2, 4, 4), "input_shape": (2, 4, 4), "output_shape": (2, 4, 4)} | fields
    return Program(steps=steps, output=len(steps), **options)  # type: ignore[arg-type]  # varied


ONE = np.ones(2)


@pytest.mark.parametrize(
    ("steps", "fields", "message"),
    [
        ([], {"input": (2, 4)}, "is not .C, H, W."),
        ([], {"input": (2**14, 2**10, 8)}, "more than 67108864"),
        ([], {"input_kind": "bits"}, "neither f32 nor f64"),
        ([], {"input_shape": (2, 4, 5)}, "input shape"),
        ([], {"output_shape": ()}, "output shape"),
        ([Flatten(src=1)], {}, r"step 0 \(flatten \) reads value 1, not yet computed"),
        (
            [Combine(srcs=(0,), scales=(np.ones(3),), shifts=(np.zeros(2),))],
            {},
            r"scale is float64\[3\], expected float64\[2\]",
        ),
        (
            [Combine(srcs=(0,), scales=(ONE.astype(np.float32),), shifts=(ONE,))],
            {},
            r"scale is float32\[2\]",
        ),
        ([Combine(srcs=(0,), scales=(ONE * np.nan,), shifts=(ONE,))], {}, "scale has a NaN"),
        ([Combine(srcs=(), scales=(), shifts=())], {}, "combine has 0 values"),
        (
            [Combine(srcs=(0,), scales=(ONE,), shifts=(ONE,), act="sign", kind="f32")],
            {},
            "cannot give kind 'f32' with activation 'sign'",
        ),
        (
            [
                Combine(srcs=(0,), scales=(ONE,), shifts=(ONE,), act="sign", kind="bits"),
                Conv(src=1, taps=random_taps((2, 2, 1, 1), 1.0, np.float32)),
            ],
            {},
            r"step 1 \(conv \): taps over bits must be -1 or \+1",
        ),
        (
            [
                Combine(srcs=(0,), scales=(ONE,), shifts=(ONE,), act="sign", kind="bits"),
                Conv(src=1, taps=random_taps((2, 2, 1, 1), 1.0)),
                Conv(src=2, taps=random_taps((2, 2, 1, 1), 1.0)),
            ],
            {},
            "conv reads bits, f32 or f64, not sums",
        ),
        ([Conv(src=0, taps=random_taps((2, 2, 3, 3), 1.0), stride=(0, 1))], {}, "stride"),
        ([MaxPool(src=0, kernel=(2, 2), stride=(1, 1), padding=(2, 0))], {}, "padding 2 exceeds"),
        ([MaxPool(src=0, kernel=(2, 2), stride=(1, 1), flip=ONE > 0)], {}, "flips bits only"),
        ([AvgPool(src=0, kernel=(2, 2), stride=(1, 1), divisor=-1)], {}, "bad divisor"),
    ],
)
def test_inconsistent_programs(steps: list[Step], fields: dict, message: str) -> None:
    with pytest.raises(ProgramError, match=message) as error:
        program(*steps, **fields)
    assert "\n" not in str(error.value)
