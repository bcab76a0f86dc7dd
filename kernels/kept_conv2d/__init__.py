"""kept_conv2d: a convolution by kept taps that trains them, forward and backward."""

from mpt_fast.kernels.kept_conv2d.op import KeptWeight, kept_conv2d

__all__ = ["KeptWeight", "kept_conv2d"]
