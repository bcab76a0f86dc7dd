"""The built-in digits, and names that do not exist."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mpt_fast import data


def test_digits_are_split_by_class_and_scaled() -> None:
    ds = data.load("digits")
    assert isinstance(ds.train, data.TensorSplit)
    assert isinstance(ds.test, data.TensorSplit)
    assert ds.image_shape == (1, 8, 8)
    assert len(ds.train) + len(ds.test) == 1797
    assert len(ds.test) == 364
    for split, share in ((ds.train, 0.8), (ds.test, 0.2)):
        counts = torch.bincount(split.labels, minlength=10) / torch.bincount(
            torch.cat([ds.train.labels, ds.test.labels])
        )
        assert float((counts - share).abs().max()) < 0.01
    bunch = load_digits()
    pixels = torch.cat([ds.train.images, ds.test.images])
    assert set(pixels.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}
    assert int(pixels.sum()) == int(np.rint(bunch.images * 255 / 16).sum())
    normalized = ds.normalize(ds.train.images, torch.float64)
    assert abs(float(normalized.mean())) < 1e-12
    assert abs(float(normalized.std(correction=0)) - 1) < 1e-12


def test_the_split_is_fixed() -> None:
    first, second = data.load("digits"), data.load("digits")
    index = range(len(first.test))
    assert torch.equal(first.test.batch(index), second.test.batch(index))
    assert first.test.labels[:12].tolist() == second.test.labels[:12].tolist()
    assert data.available("digits")


@pytest.mark.parametrize("call", [data.load, data.available])
def test_unknown_names_are_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(data.DataError, match="unknown data set 'svhn'; choose one of digits, "):
        call("svhn")
