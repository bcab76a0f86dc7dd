"""scikit-learn's digits: 1797 images of 8 x 8 with values 0..16, always at hand."""

import numpy as np
import torch

from mpt_fast.data.dataset import DataError, TensorSplit

__all__ = ["load_digits_splits"]

_TEST_STEP = 5


def load_digits_splits() -> tuple[TensorSplit, TensorSplit]:
    """(train, test): every fifth image of each class is a test image; pixels scaled to 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits: scikit-learn is not installed; pip install scikit-learn") from None
    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    pixels = np.rint(np.asarray(bunch.images) * (255.0 / 16.0)).astype(np.uint8)[:, None]
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[::_TEST_STEP]] = True

    def split(rows: np.ndarray) -> TensorSplit:
        return TensorSplit(torch.from_numpy(pixels[rows]), torch.from_numpy(labels[rows]), 10)

    return split(~test), split(test)
