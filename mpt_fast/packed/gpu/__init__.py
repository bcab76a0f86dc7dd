"""Whole packed networks on a GPU: every step on Triton kernels, under one CUDA graph per batch.

Activations stay bit planes with the images in the lanes (int64 [C, H, W, words]) from the first
sign to the last; real values and integer sums are [C, H, W, images] between the same kernels.
Importing this package imports no Triton.
"""

from mpt_fast.packed.gpu.routes import Choice, choices

__all__ = ["Choice", "choices"]
