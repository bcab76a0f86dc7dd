"""combine: an affine sum of values with images in the lanes, and what follows it."""

from mpt_fast.kernels.combine.op import combine

__all__ = ["combine"]
