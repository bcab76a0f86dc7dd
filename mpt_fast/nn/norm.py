"""Batch normalisation for tickets."""

from typing import Literal

from torch import nn


def batch_norm(
    channels: int, kind: Literal["affine", "frozen"] = "affine", dims: Literal[1, 2] = 2
) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """Batch normalisation of [N, channels, H, W] (dims=2) or [N, channels] (dims=1).

    kind "affine" trains the slope and the shift; "frozen" has none (slope 1, shift 0), so that a
    ticket changes nothing but its scores. Both follow the running statistics.
    """
    if kind not in ("affine", "frozen"):
        raise ValueError(f"batch norm must be 'affine' or 'frozen', got {kind!r}")
    if dims not in (1, 2):
        raise ValueError(f"dims must be 1 or 2, got {dims!r}")
    layer = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
    return layer(channels, affine=kind == "affine")
