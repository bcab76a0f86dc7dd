"""MPTLinear: a fully connected layer whose weights are a ticket."""

import torch
from torch import Tensor

from mpt_fast.config import TicketConfig
from mpt_fast.kernels.masked_linear import masked_linear
from mpt_fast.nn.ticket import TicketLayer


class MPTLinear(TicketLayer):
    """y = x (g * sign(W) * M)^T (+ bias), input [..., in_features]; see TicketLayer.

    Differs from nn.Linear in `bias=False` by default (a bias starts at 0, is trained, and is added
    after the product) and in the keyword `config`, the TicketConfig (None: its defaults).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        config: TicketConfig | None = None,
    ) -> None:
        if min(in_features, out_features) < 1:
            raise ValueError(
                "in_features and out_features must be at least 1, "
                f"got {in_features} and {out_features}"
            )
        super().__init__((out_features, in_features), bias, config, device, dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        by_kept = self._by_kept(x)
        if by_kept is not None:
            return by_kept
        code, gain, kept, cut = self._selected()
        out = masked_linear(
            x, self.weight, self.scores, code, gain, self.config.power, kept, cut=cut
        )
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, "
            f"{self._ticket_repr()}"
        )
