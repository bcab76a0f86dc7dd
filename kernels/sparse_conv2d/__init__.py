"""sparse_conv2d: convolution of a float tensor with the kept taps of a weight."""

from mpt_fast.kernels.sparse_conv2d.op import sparse_conv2d

__all__ = ["sparse_conv2d"]
