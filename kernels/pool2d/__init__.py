"""pool2d: pooling windows over values with images in the lanes."""

from mpt_fast.kernels.pool2d.op import pool2d

__all__ = ["pool2d"]
