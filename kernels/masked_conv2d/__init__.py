"""Convolution with a ticket's binary masked weights."""

from mpt_fast.kernels.masked_conv2d.op import masked_conv2d

__all__ = ["masked_conv2d"]
