"""Taps and KernelList: from dense weights and back, and every malformed list refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import MALFORMED_TAPS, PROPERTY, ConvCase, conv_cases

from mpt_fast.kernels.taps import KernelList, Taps

DTYPES = [torch.int8, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_known_list(dtype: torch.dtype) -> None:
    weight = torch.zeros(3, 2, 2, 2, dtype=dtype)
    weight[0, 1, 0, 1] = 1
    weight[2, 0, 0, 0] = -1
    weight[2, 1, 1, 1] = 1
    taps = Taps.from_dense(weight)
    assert taps.indptr.tolist() == [0, 1, 1, 3]
    assert taps.index.tolist() == [5, 0, 7]
    assert taps.value.tolist() == [1, -1, 1]
    assert taps.shape == (3, 2, 2, 2)
    assert (taps.indptr.dtype, taps.index.dtype) == (torch.int32, torch.int32)
    assert taps.value.dtype == dtype


@PROPERTY
@given(case=conv_cases(), dtype=st.sampled_from(DTYPES))
def test_dense_weights_survive(case: ConvCase, dtype: torch.dtype) -> None:
    weight = case.weight(dtype)
    taps = Taps.from_dense(weight)
    taps.validate()
    assert torch.equal(taps.to_dense(), weight)
    assert taps.to_dense().dtype == dtype
    assert torch.equal(taps.to_dense(torch.float64), weight.double())
    for o in range(weight.shape[0]):
        own = slice(int(taps.indptr[o]), int(taps.indptr[o + 1]))
        assert taps.index[own].tolist() == np.flatnonzero(weight[o].numpy()).tolist()


def test_linear_and_strided_weights() -> None:
    weight = ConvCase(channels_per_group=7, kernel=(1, 1)).weight()[:, :, 0, 0]
    taps = Taps.from_dense(weight)
    assert taps.shape == (4, 7, 1, 1)
    assert torch.equal(taps.to_dense()[:, :, 0, 0], weight)
    dense = ConvCase().weight(torch.float32)
    strided = dense.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    assert Taps.from_dense(strided).index.tolist() == Taps.from_dense(dense).index.tolist()


def test_a_parameter_gives_taps_without_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    assert not Taps.from_dense(weight).value.requires_grad


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), "weight must be"),
        (torch.ones(2, 2, 2), "weight must be"),
        (torch.ones(0, 2), "empty dimension"),
        (torch.ones(2, 2, dtype=torch.float16), "weight must be int8 or float32 or float64"),
        (torch.ones(2, 2, dtype=torch.int32), "weight must be int8"),
        (torch.tensor([[1, 2]], dtype=torch.int8), "only -1, 0 and"),
        (torch.tensor([[1, -128]], dtype=torch.int8), "only -1, 0 and"),
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinity"),
        (torch.tensor([[1.0, float("-inf")]]), "NaN or infinity"),
    ],
)
def test_bad_weights(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Taps.from_dense(weight)


@pytest.mark.parametrize("name", MALFORMED_TAPS)
def test_malformed_taps(name: str) -> None:
    taps = MALFORMED_TAPS[name](ConvCase(density=1.0).taps())
    with pytest.raises(ValueError, match=r"^taps\.") as caught:
        taps.validate()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^taps\."):
        taps.to_dense()


def test_taps_on_another_device_are_refused() -> None:
    taps = ConvCase().taps()
    taps.check(torch.device("cpu"))
    with pytest.raises(ValueError, match="is on cpu, but the input is on meta"):
        taps.check(torch.device("meta"))


def test_known_kernel_list() -> None:
    weight = torch.zeros(2, 3, 3, 3, dtype=torch.int8)
    weight[0, 2, 0, 0] = 1
    weight[0, 2, 2, 2] = -1
    weight[1, 0, 0, 1] = -1
    weight[1, 1, 1, 0] = 1
    kernels = KernelList.from_taps(Taps.from_dense(weight))
    assert kernels.indptr.tolist() == [0, 1, 3]
    assert kernels.channel.tolist() == [2, 0, 1]
    assert kernels.mask.tolist() == [1 + 256, 2, 8]
    assert kernels.sign.tolist() == [1, 0, 8]
    assert [t.dtype for t in kernels] == [torch.int32, torch.int32, torch.int16, torch.int16]


@PROPERTY
@given(case=conv_cases(kernels=st.just(3)))
def test_kernel_lists_survive(case: ConvCase) -> None:
    taps = case.taps()
    kernels = KernelList.from_taps(taps)
    kernels.validate(case.channels_per_group)
    back = kernels.to_taps(case.channels_per_group)
    assert torch.equal(back.to_dense(), taps.to_dense())
    kept = (case.weight() != 0).flatten(2).any(-1).sum(1)
    assert (kernels.indptr[1:] - kernels.indptr[:-1]).tolist() == kept.tolist()


def test_kernel_lists_need_ternary_3x3_taps() -> None:
    with pytest.raises(ValueError, match="3x3 kernels, got 5x5; use bitsliced_conv2d"):
        KernelList.from_taps(ConvCase(kernel=(5, 5)).taps())
    with pytest.raises(ValueError, match="int8 taps; use sparse_conv2d"):
        KernelList.from_taps(ConvCase().taps(torch.float32))
