"""Upper bounds of operator norms, for the certificate: rigorous, and the same for every input."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mpt_fast.runtime.program import Pair

Array = NDArray[np.float64]

# Eigenvalues of a Gram matrix of order n are off by a small multiple of n*2**-53 of the largest;
# 1 + _SAFETY covers that and the rounding of the Gram matrix for n up to some millions.
_SAFETY = 1e-7
_BUDGET = 2e10  # operations worth spending on one norm of a convolution
_BATCH = 1 << 22  # complex numbers transformed at a time


def matrix_norm(matrix: Array) -> float:
    """An upper bound of the spectral norm of a matrix [O, I], tight to 1e-7."""
    if not matrix.size or not matrix.any():
        return 0.0
    scale = float(np.abs(matrix).max())
    matrix = matrix / scale
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    largest = float(np.linalg.eigvalsh(gram)[-1])
    return scale * float(np.sqrt(max(largest, 0.0))) * (1 + _SAFETY)


def conv_norm(weight: Array, size: Pair) -> float:
    """An upper bound of the spectral norm of a convolution of maps of `size` padded with zeros.

    weight [O, C, kh, kw]. Zero padding, strides and crops make it a part of the convolution on the
    torus of (H + kh - 1) x (W + kw - 1) pixels, whose norm is the largest spectral norm of the
    kernel's discrete Fourier transforms (one [O, C] matrix for each frequency). Where those are
    too many, the sum over the kernel's taps of the taps' norms.
    """
    used = np.argwhere(weight.any(axis=(0, 1)))
    if not used.size:
        return 0.0
    (top, left), (bottom, right) = used.min(axis=0), used.max(axis=0)
    weight = weight[:, :, top : bottom + 1, left : right + 1]
    outputs, inputs, height, width = weight.shape
    if (height, width) == (1, 1):
        return matrix_norm(weight[:, :, 0, 0])
    torus = (size[0] + height - 1, size[1] + width - 1)
    small = min(outputs, inputs)
    if torus[0] * torus[1] * small * small * (small + max(outputs, inputs)) > _BUDGET:
        return sum(
            matrix_norm(weight[:, :, row, column])
            for row in range(height)
            for column in range(width)
        )
    scale = float(np.abs(weight).max())
    largest = max(
        float(np.linalg.eigvalsh(gram)[:, -1].max()) for gram in _grams(weight / scale, torus)
    )
    return scale * float(np.sqrt(max(largest, 0.0))) * (1 + _SAFETY)


def _grams(weight: Array, torus: Pair) -> Iterator[NDArray]:
    """Batches [F, n, n] of A A* or A* A over the frequencies, up to conjugation."""
    outputs, inputs, height, width = weight.shape
    rows = np.exp(-2j * np.pi * np.outer(np.arange(torus[0]), np.arange(height)) / torus[0])
    columns = np.exp(
        -2j * np.pi * np.outer(np.arange(torus[1] // 2 + 1), np.arange(width)) / torus[1]
    )
    for row in rows:
        partial = np.einsum("ocuv,u->ocv", weight, row)
        step = max(1, _BATCH // (outputs * inputs))
        for start in range(0, len(columns), step):
            symbol = np.moveaxis(partial @ columns[start : start + step].T, -1, 0)
            adjoint = symbol.conj().transpose(0, 2, 1)
            yield symbol @ adjoint if outputs <= inputs else adjoint @ symbol
