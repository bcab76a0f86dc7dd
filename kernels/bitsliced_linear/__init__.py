"""bitsliced_linear and bitsliced_linear_sign: product of bit planes with kept +1/-1 taps."""

from mpt_fast.kernels.bitsliced_linear.op import bitsliced_linear, bitsliced_linear_sign

__all__ = ["bitsliced_linear", "bitsliced_linear_sign"]
