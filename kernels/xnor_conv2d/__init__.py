"""xnor_conv2d: popcount convolution of packed rows with the 3x3 kernels that keep a weight."""

from mpt_fast.kernels.xnor_conv2d.op import xnor_conv2d

__all__ = ["xnor_conv2d"]
