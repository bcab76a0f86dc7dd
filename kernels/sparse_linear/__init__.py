"""sparse_linear: product of a float matrix with the kept taps of a weight."""

from mpt_fast.kernels.sparse_linear.op import sparse_linear

__all__ = ["sparse_linear"]
