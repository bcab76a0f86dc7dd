"""pack_bits and unpack_bits: signs of a tensor as 64-bit words of bit planes, and back."""

from mpt_fast.kernels.pack_bits.op import pack_bits, unpack_bits

__all__ = ["pack_bits", "unpack_bits"]
