"""Matrix product with a ticket's binary masked weights."""

from mpt_fast.kernels.masked_linear.op import masked_linear

__all__ = ["masked_linear"]
