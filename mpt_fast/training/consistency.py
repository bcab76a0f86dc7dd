"""The consistency loss of AugMix."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["jensen_shannon"]

_SMALLEST = 1e-7


def jensen_shannon(logits: Sequence[Tensor]) -> Tensor:
    """Mean over the batch of the Jensen-Shannon divergence of k predictions, each [n, classes].

    1/k sum_i KL(p_i || m) with m = 1/k sum_i p_i kept at 1e-7 or more, in nats. 0-dim.
    """
    shares = [torch.softmax(view, dim=1) for view in logits]
    mean = torch.stack(shares).mean(0).clamp(_SMALLEST, 1).log()
    return torch.stack([F.kl_div(mean, share, reduction="batchmean") for share in shares]).mean()
