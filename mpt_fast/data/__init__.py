"""Data sets by name, and batches of them on the training device.

`load(name)` gives a `Dataset` of uint8 images and int64 labels; `Loader` gives its normalised,
augmented batches. Files are checked before they are believed and never run code.
"""

from mpt_fast.data.augment import MODES as AUGMENTATIONS
from mpt_fast.data.augmix import Mixing
from mpt_fast.data.catalog import NAMES, available, load, shape_of
from mpt_fast.data.dataset import (
    DataError,
    Dataset,
    MissingDataError,
    Split,
    TensorSplit,
    normalize,
)
from mpt_fast.data.loader import Loader

__all__ = [
    "AUGMENTATIONS",
    "NAMES",
    "DataError",
    "Dataset",
    "Loader",
    "MissingDataError",
    "Mixing",
    "Split",
    "TensorSplit",
    "available",
    "load",
    "normalize",
    "shape_of",
]
