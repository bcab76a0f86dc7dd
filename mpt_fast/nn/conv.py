"""MPTConv2d: a convolution whose weights are a ticket."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mpt_fast.config import TicketConfig
from mpt_fast.kernels.geometry import Pair, pair
from mpt_fast.kernels.masked_conv2d import masked_conv2d
from mpt_fast.nn.ticket import TicketLayer

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class MPTConv2d(TicketLayer):
    """nn.Conv2d's arguments and geometry with the weight g * sign(W) * M; see TicketLayer.

    Input [N, C, H, W] or [C, H, W], any floating dtype (computed in it; autocast is honoured).
    Differs from nn.Conv2d in `bias=False` by default (a bias starts at 0, is trained, and is added
    after the convolution) and in the keyword `config`, the TicketConfig (None: its defaults).

    Raises ValueError for geometry that no convolution has.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        config: TicketConfig | None = None,
    ) -> None:
        kernel = pair(kernel_size, "kernel_size", 1)
        if min(in_channels, out_channels, groups) < 1:
            raise ValueError(
                "in_channels, out_channels and groups must be at least 1, "
                f"got {in_channels}, {out_channels} and {groups}"
            )
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"in_channels ({in_channels}) and out_channels ({out_channels}) must be divisible "
                f"by groups ({groups})"
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(
                f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}"
            )
        super().__init__(
            (out_channels, in_channels // groups, *kernel), bias, config, device, dtype
        )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = pair(stride, "stride", 1)
        self.dilation = pair(dilation, "dilation", 1)
        self.groups = groups
        self.padding_mode = padding_mode
        self.padding: tuple[int, int] | str
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
            if padding == "same" and self.stride != (1, 1):
                raise ValueError("padding='same' needs stride 1; give the padding in numbers")
            self.padding = padding
        else:
            self.padding = pair(padding, "padding", 0)
        self.reset_parameters()

    @property
    def padding_sides(self) -> tuple[int, int, int, int]:
        """Padding (left, right, top, bottom) in numbers, however it was written."""
        if not isinstance(self.padding, str):
            rows, columns = self.padding
            return (columns, columns, rows, rows)
        if self.padding == "valid":
            return (0, 0, 0, 0)
        rows, columns = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        left, top = columns // 2, rows // 2
        return (left, columns - left, top, rows - top)

    def forward(self, x: Tensor) -> Tensor:
        by_kept = self._by_kept(x)
        if by_kept is not None:
            return by_kept
        code, gain, kept, cut = self._selected()
        left, right, top, bottom = self.padding_sides
        padding = (top, left)
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, (left, right, top, bottom), mode=self.padding_mode), (0, 0)
        elif left != right or top != bottom:
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        out = masked_conv2d(
            x,
            self.weight,
            self.scores,
            code,
            gain,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.config.power,
            kept,
            cut=cut,
        )
        return out if self.bias is None else out + self.bias.to(out.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts.append(f"stride={self.stride}")
        if self.padding != (0, 0):
            parts.append(f"padding={self.padding!r}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join([*parts, f"bias={self.bias is not None}", self._ticket_repr()])
