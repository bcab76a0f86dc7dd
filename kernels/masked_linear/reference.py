"""masked_linear in plain PyTorch: form the effective weight, multiply."""

import torch
from torch import Tensor

from mpt_fast.kernels.masked_weight.reference import effective_weight


def masked_linear(x: Tensor, code: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """(x times the transpose of gain * code, the effective weight gain * code)."""
    effective = effective_weight(code, gain, x.dtype)
    return torch.nn.functional.linear(x, effective), effective
