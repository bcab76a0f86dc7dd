"""Popcount convolution in plain PyTorch: the ground truth of `xnor_conv2d`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mpt_fast.kernels.geometry import Geometry, conv2d_output_size
from mpt_fast.kernels.pack_bits.reference import popcount, unpack_bits
from mpt_fast.kernels.taps import KernelList


def _patches(bits: Tensor, geometry: Geometry) -> Tensor:
    """int64 [N, C, Ho, Wo] of 9-bit patches: bit r*3+s is the tap of row r, column s; 0 outside."""
    N, C, H, W = bits.shape
    (sh, sw), (ph, pw), (dh, dw), _ = geometry
    Ho, Wo = conv2d_output_size((H, W), (3, 3), geometry)
    padded = F.pad(bits, (pw, pw, ph, ph))
    patches = bits.new_zeros(N, C, Ho, Wo)
    for r in range(3):
        for s in range(3):
            rows = slice(r * dh, r * dh + (Ho - 1) * sh + 1, sh)
            columns = slice(s * dw, s * dw + (Wo - 1) * sw + 1, sw)
            patches |= padded[:, :, rows, columns] << (r * 3 + s)
    return patches


def xnor_conv2d(rows: Tensor, width: int, kernels: KernelList, geometry: Geometry) -> Tensor:
    """See `mpt_fast.kernels.xnor_conv2d.op.xnor_conv2d`."""
    channels_per_group = rows.shape[1] // geometry.groups
    kernels.validate(channels_per_group)
    bits = (unpack_bits(rows, width, -1, torch.int32).long() + 1) // 2
    patches = _patches(bits, geometry)
    inside = _patches(torch.ones_like(bits[:1, :1]), geometry)
    popcounts = popcount(torch.arange(512, device=rows.device))
    indptr = kernels.indptr.tolist()
    out_channels = len(indptr) - 1
    N, _, Ho, Wo = patches.shape
    out = torch.zeros(N, out_channels, Ho, Wo, dtype=torch.int32, device=rows.device)
    for o in range(out_channels):
        own = slice(indptr[o], indptr[o + 1])
        group = o // (out_channels // geometry.groups)
        patch = patches[:, group * channels_per_group + kernels.channel[own].long()]
        sign = kernels.sign[own].long().view(1, -1, 1, 1)
        mask = kernels.mask[own].long().view(1, -1, 1, 1) & inside
        agreements = popcounts[~(patch ^ sign) & mask]
        out[:, o] = (2 * agreements - popcounts[mask]).sum(1)
    return out
