"""The two lists that describe a sparse weight to the packed operations.

`Taps` names every kept weight and serves any kernel size, ternary or real. `KernelList` names the
3x3 kernels that keep at least one weight, as 9 sign bits and 9 mask bits each, for the popcount
operations. Both are CSR over output channels; pruned entries are absent and cost nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mpt_fast.kernels.geometry import check_tensor

VALUE_DTYPES = (torch.int8, torch.float32, torch.float64)
_LIMIT = 2**31 - 1


class Taps(NamedTuple):
    """The kept taps of a convolution or linear weight, by output channel.

    Attributes:
        indptr: int32 [O+1]; the taps of output channel o are entries indptr[o]:indptr[o+1].
        index: int32 [T]; flat index into (C/groups, kh, kw) of the output channel's weight,
            strictly ascending within a channel.
        value: int8 [T] of +1 and -1, or float32/float64 [T].
        shape: (O, C/groups, kh, kw); a linear layer is (O, I, 1, 1).
    """

    indptr: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which a tap list has no use for
    value: Tensor
    shape: tuple[int, int, int, int]

    @classmethod
    def from_dense(cls, weight: Tensor) -> "Taps":
        """The taps of the non-zero entries of `weight`, int8 of {-1, 0, +1} or float32/float64.

        Accepts [O, C/groups, kh, kw] or [O, I], of any strides. Raises ValueError for another
        rank or dtype, an int8 entry outside {-1, 0, +1}, NaN or infinity.
        """
        check_tensor(weight, "weight", VALUE_DTYPES)
        if weight.dim() not in (2, 4):
            raise ValueError(f"weight must be [O, I] or [O, C, kh, kw], got {tuple(weight.shape)}")
        if min(weight.shape) < 1:
            raise ValueError(f"weight has an empty dimension: {tuple(weight.shape)}")
        channels, per_group, kh, kw = (*weight.shape, 1, 1)[:4]
        rows = weight.detach().reshape(channels, per_group * kh * kw)
        if weight.dtype == torch.int8:
            if bool(((rows < -1) | (rows > 1)).any()):
                raise ValueError("an int8 weight may hold only -1, 0 and +1; use float32 for more")
        elif not bool(torch.isfinite(rows).all()):
            raise ValueError("weight holds NaN or infinity")
        channel, index = torch.nonzero(rows, as_tuple=True)
        if max(rows.shape[1], index.numel()) > _LIMIT:
            raise ValueError(
                f"weight {tuple(weight.shape)} has more than 2**31 - 1 entries a channel or taps"
            )
        return cls(
            indptr=_indptr(channel, channels),
            index=index.to(torch.int32),
            value=rows[channel, index],
            shape=(channels, per_group, kh, kw),
        )

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense [O, C/groups, kh, kw] weight in `dtype` (None: that of `value`)."""
        self.validate()
        channels, per_group, kh, kw = self.shape
        dense = self.value.new_zeros(
            (channels, per_group * kh * kw), dtype=dtype or self.value.dtype
        )
        dense[_channels(self.indptr), self.index.long()] = self.value.to(dense.dtype)
        return dense.view(self.shape)

    def check(self, device: torch.device | None = None) -> None:
        """ValueError unless dtypes and shapes belong together; reads no values."""
        if len(self.shape) != 4 or min(self.shape) < 1:
            raise ValueError(f"taps.shape must be four sizes >= 1, got {tuple(self.shape)}")
        check_tensor(self.indptr, "taps.indptr", torch.int32, (self.shape[0] + 1,), device)
        check_tensor(self.index, "taps.index", torch.int32, (None,), device)
        check_tensor(self.value, "taps.value", VALUE_DTYPES, tuple(self.index.shape), device)

    def validate(self) -> None:
        """ValueError unless this is a well-formed list: `check`, then every value."""
        self.check()
        _, C, kh, kw = self.shape
        _validate_csr(self.indptr, self.index, C * kh * kw, "taps.indptr", "taps.index")
        if self.value.dtype == torch.int8 and bool((self.value.abs() != 1).any()):
            raise ValueError("taps.value of dtype int8 may hold only -1 and +1")


class KernelList(NamedTuple):
    """The 3x3 kernels that keep at least one weight, by output channel; weights are +1 or -1.

    Attributes:
        indptr: int32 [O+1]; the kernels of output channel o are entries indptr[o]:indptr[o+1].
        channel: int32 [K]; input channel within the group, strictly ascending in an output
            channel.
        sign: int16 [K]; bit r*3+s is 1 where the tap of row r, column s is +1. Bits outside the
            mask mean nothing.
        mask: int16 [K]; bit r*3+s is 1 where that tap is kept; never 0.
    """

    indptr: Tensor
    channel: Tensor
    sign: Tensor
    mask: Tensor

    @classmethod
    def from_taps(cls, taps: Taps) -> "KernelList":
        """The kernels of int8 3x3 `taps`; ValueError for real taps or another kernel size."""
        taps.validate()
        channels, per_group, kh, kw = taps.shape
        if (kh, kw) != (3, 3):
            raise ValueError(
                f"the popcount operations take 3x3 kernels, got {kh}x{kw}; use bitsliced_conv2d"
            )
        if taps.value.dtype != torch.int8:
            raise ValueError("the popcount operations take int8 taps; use sparse_conv2d")
        flat = _channels(taps.indptr) * per_group + taps.index.long() // 9
        bit = torch.ones_like(flat) << (taps.index.long() % 9)
        kernels, position = torch.unique(flat, return_inverse=True)
        zeros = torch.zeros_like(kernels)
        mask = zeros.index_add(0, position, bit)
        sign = zeros.index_add(0, position, bit * (taps.value > 0))
        return cls(
            indptr=_indptr(kernels // per_group, channels),
            channel=(kernels % per_group).to(torch.int32),
            sign=sign.to(torch.int16),
            mask=mask.to(torch.int16),
        )

    def to_taps(self, channels_per_group: int) -> Taps:
        """The same weight as Taps of shape (O, channels_per_group, 3, 3)."""
        self.validate(channels_per_group)
        bits = torch.arange(9, device=self.mask.device)
        kept = (self.mask.unsqueeze(1) >> bits) & 1
        positive = (self.sign.unsqueeze(1) >> bits) & 1
        shape = (self.indptr.numel() - 1, channels_per_group, 3, 3)
        dense = self.mask.new_zeros(shape, dtype=torch.int8).flatten(2)
        code = kept * (2 * positive - 1)
        dense[_channels(self.indptr), self.channel.long()] = code.to(torch.int8)
        return Taps.from_dense(dense.view(shape))

    def check(self, device: torch.device | None = None) -> None:
        """ValueError unless dtypes and shapes belong together; reads no values."""
        check_tensor(self.indptr, "kernels.indptr", torch.int32, (None,), device)
        if self.indptr.shape[0] < 2:
            raise ValueError("kernels.indptr must have at least two entries (one output channel)")
        check_tensor(self.channel, "kernels.channel", torch.int32, (None,), device)
        shape = tuple(self.channel.shape)
        check_tensor(self.sign, "kernels.sign", torch.int16, shape, device)
        check_tensor(self.mask, "kernels.mask", torch.int16, shape, device)

    def validate(self, channels_per_group: int) -> None:
        """ValueError unless this is a well-formed list: `check`, then every value."""
        self.check()
        _validate_csr(
            self.indptr, self.channel, channels_per_group, "kernels.indptr", "kernels.channel"
        )
        if bool(((self.mask < 1) | (self.mask > 511)).any()):
            raise ValueError("kernels.mask must be 9 bits and not 0; leave empty kernels out")
        if bool(((self.sign < 0) | (self.sign > 511)).any()):
            raise ValueError("kernels.sign must be 9 bits")


def _indptr(rows: Tensor, count: int) -> Tensor:
    """int32 [count+1] row starts of entries whose ascending row numbers are `rows`."""
    starts = rows.new_zeros(count + 1)
    starts[1:] = torch.bincount(rows, minlength=count).cumsum(0)
    return starts.to(torch.int32)


def _channels(indptr: Tensor) -> Tensor:
    """int64 [T]: the output channel of every entry."""
    counts = (indptr[1:] - indptr[:-1]).long()
    return torch.repeat_interleave(torch.arange(counts.numel(), device=indptr.device), counts)


def _validate_csr(
    indptr: Tensor, index: Tensor, limit: int, indptr_name: str, index_name: str
) -> None:
    starts = indptr.long()
    entries = index.numel()
    if int(starts[0]) != 0 or int(starts[-1]) != entries:
        raise ValueError(
            f"{indptr_name} must run from 0 to {entries} (the number of entries), "
            f"got {int(starts[0])} to {int(starts[-1])}"
        )
    if bool((starts[1:] < starts[:-1]).any()):
        raise ValueError(f"{indptr_name} must not descend")
    if entries == 0:
        return
    if int(index.min()) < 0 or int(index.max()) >= limit:
        raise ValueError(
            f"{index_name} must lie in 0..{limit - 1}, got {int(index.min())}..{int(index.max())}"
        )
    flat = _channels(indptr) * limit + index.long()
    if bool((flat[1:] <= flat[:-1]).any()):
        raise ValueError(f"{index_name} must ascend strictly within every output channel")
