"""Sparse float linear layer in plain PyTorch: the ground truth of `sparse_linear`."""

import torch.nn.functional as F
from torch import Tensor

from mpt_fast.kernels.taps import Taps


def sparse_linear(x: Tensor, taps: Taps, bias: Tensor | None) -> Tensor:
    """See `mpt_fast.kernels.sparse_linear.op.sparse_linear`."""
    return F.linear(x, taps.to_dense(x.dtype).flatten(1), bias)
