"""bitsliced_conv2d and bitsliced_conv2d_sign: convolution of bit planes with kept +1/-1 taps."""

from mpt_fast.kernels.bitsliced_conv2d.op import bitsliced_conv2d, bitsliced_conv2d_sign

__all__ = ["bitsliced_conv2d", "bitsliced_conv2d_sign"]
