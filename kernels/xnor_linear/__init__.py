"""xnor_linear: popcount product of packed inputs with packed, masked +1/-1 weights."""

from mpt_fast.kernels.xnor_linear.op import pack_weight, xnor_linear

__all__ = ["pack_weight", "xnor_linear"]
