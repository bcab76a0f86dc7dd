"""Activations of +1 and -1 with a piecewise-linear gradient."""

from mpt_fast.kernels.binary_activation.op import binary_activation

__all__ = ["binary_activation"]
