"""Norm bounds of the certificate, against dense matrices of the operators."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mpt_fast.random_binary import bounds


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (20, 20)])
def test_matrix_norm(shape):
    matrix = np.random.default_rng(0).standard_normal(shape) * 1e-3
    exact = np.linalg.norm(matrix, 2)
    assert exact <= bounds.matrix_norm(matrix) <= exact * (1 + 1e-6)
    assert bounds.matrix_norm(np.zeros(shape)) == 0.0


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 4)])
@pytest.mark.parametrize("budget", [2e10, 0.0], ids=["torus", "taps"])
def test_conv_norm_bounds_every_convolution(kernel, budget, monkeypatch):
    monkeypatch.setattr(bounds, "_BUDGET", budget)
    weight = np.random.default_rng(1).standard_normal((3, 2, *kernel))
    eye = torch.eye(2 * 5 * 6, dtype=torch.float64).view(-1, 2, 5, 6)
    bound = bounds.conv_norm(weight, (5, 6))
    for stride, padding in ((1, 0), (1, 1), (2, 1)):
        out = F.conv2d(eye, torch.from_numpy(weight), stride=stride, padding=padding)
        exact = float(torch.linalg.matrix_norm(out.flatten(1), 2))
        assert exact <= bound
        if stride == 1 and padding == 1 and budget:
            assert bound < 1.4 * exact


def test_conv_norm_sees_what_zero_padding_does():
    """On one pixel this kernel is its centre; on a torus of one pixel it would be its sum, 0."""
    weight = np.array([[[[-0.5, 1.0, -0.5]]]])
    assert 1.0 <= bounds.conv_norm(weight, (1, 1)) < 2.1


def test_conv_norm_ignores_an_empty_border():
    weight = np.random.default_rng(1).standard_normal((3, 2, 3, 3))
    wide = np.zeros((3, 2, 9, 9))
    wide[:, :, 2:5, 4:7] = weight
    assert bounds.conv_norm(wide, (5, 5)) == bounds.conv_norm(weight, (5, 5))
    assert bounds.conv_norm(np.zeros((2, 2, 3, 3)), (5, 5)) == 0.0
