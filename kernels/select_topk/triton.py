"""select_topk and apply_threshold on the GPU: no sort, no concatenation, the same few launches for
any number of tensors.

The key of a score is the bit pattern of abs(s), monotone for floats that are not negative. Four
counting passes over all scores fix 8, 8, 8 and 7 bits of the threshold's key; each pass derives
what is already decided from the histograms before it, so nothing returns to the host. One last pass
reads scores and weights and emits codes and partial sums, which one program per tensor then adds in
a fixed order: results are deterministic. Ties at the threshold are kept in the order (position in
the list, flat logical index): a segment's first kept tie follows from the tie counts of the
segments before it.

    table    int64 [L, COLUMNS]  per tensor: score, weight and code address, entries, channels,
                                 pixels (1: logical order), first and past-the-last segment
    segments int64 [S, 3]        per program: tensor, begin, end (flat logical indices)

float32 scores and weights. A non-finite score raises the flag of its tensor.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.gpu import ceil_div, guard, tl, triton
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.layout import is_channels_last, layout_of

COLUMNS = 8
BINS = 256
PASSES = 4
# The interpreter's cost is per operation, not per entry.
BLOCK = 65_536 if interpreted() else 2048
NUM_WARPS = 8
# Emitting holds a block's sums beside scores and weights: with eight warps that is up to 188
# registers, one program a multiprocessor, and spills on sm_100; with 16 about 100.
EMIT_WARPS = 16
# Programs beyond a few per multiprocessor only lengthen the list of tie counts.
MOST_SEGMENTS = 2048


@triton.jit
def _memory_offset(table_ptr, tensor, index):
    """Where the entry of flat logical `index` lies: [O, I, HW] indexed, stored as [O, HW, I]."""
    channels = tl.load(table_ptr + tensor * 8 + 4)
    pixels = tl.load(table_ptr + tensor * 8 + 5)
    offset = index
    if pixels > 1:
        pixel = index % pixels
        rest = index // pixels
        offset = ((rest // channels) * pixels + pixel) * channels + rest % channels
    return offset


@triton.jit
def _key(table_ptr, tensor, offset, mask):
    """int32 bit patterns of abs(score)."""
    address = tl.multiple_of(tl.load(table_ptr + tensor * 8), 16)
    scores = address.to(tl.pointer_type(tl.int32))
    return tl.load(scores + offset, mask=mask) & 0x7FFFFFFF


@triton.jit
def _decided(histograms_ptr, rank, DECIDED: tl.constexpr, BINS: tl.constexpr):
    """The key's bits that DECIDED histograms fix, and the rank inside the bin they lead to."""
    bins = tl.arange(0, BINS)
    prefix = tl.sum(bins, 0) * 0
    for p in tl.static_range(DECIDED):
        counts = tl.load(histograms_ptr + p * BINS + bins)
        above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
        here = (above < rank) & (rank <= above + counts)
        prefix = prefix | (tl.sum(tl.where(here, bins, 0), 0) << (23 - 8 * p if p < 3 else 0))
        rank = rank - tl.sum(tl.where(here, above, 0), 0)
    return prefix, rank


@triton.jit
def _count_block(table_ptr, tensor, index, end, prefix, PASS: tl.constexpr, BINS: tl.constexpr,
                 MASKED: tl.constexpr):  # fmt: skip
    """(histogram of this pass's digit, number of scores that are not finite)."""
    shift: tl.constexpr = 23 - 8 * PASS if PASS < 3 else 0
    decided: tl.constexpr = 31 - 8 * PASS
    inside = index < end if MASKED else None
    key = _key(table_ptr, tensor, _memory_offset(table_ptr, tensor, index), inside)
    digit = (key >> shift) & (BINS - 1 if PASS < 3 else 127)
    active = index < end if MASKED else index >= 0
    bad = tl.sum((active & (key >= 0x7F800000)).to(tl.int32), 0)
    if PASS > 0:
        active = active & ((key >> decided) == (prefix >> decided))
    return tl.histogram(digit, BINS, mask=active), bad


@triton.jit
def _select_topk_count_kernel(
    table_ptr,
    segments_ptr,
    histograms_ptr,  # int64 [PASSES, BINS]
    own_ptr,  # int32 [S, BINS], the last pass's counts of each segment
    bad_ptr,  # int32 [L]
    rank,
    PASS: tl.constexpr,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
):
    """Adds the histogram of one digit of the keys that agree with what is decided."""
    program = tl.program_id(0)
    tensor = tl.load(segments_ptr + program * 3)
    begin = tl.multiple_of(tl.load(segments_ptr + program * 3 + 1), BLOCK)
    end = tl.load(segments_ptr + program * 3 + 2)
    prefix, _ = _decided(histograms_ptr, rank, PASS, BINS)
    lane = tl.arange(0, BLOCK)
    bins = tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int32)
    bad = tl.sum(bins, 0) * 0
    while begin + BLOCK <= end:
        more, worse = _count_block(table_ptr, tensor, begin + lane, end, prefix, PASS, BINS, False)
        counts += more
        bad += worse
        begin = tl.multiple_of(begin + BLOCK, BLOCK)
    if begin < end:
        more, worse = _count_block(table_ptr, tensor, begin + lane, end, prefix, PASS, BINS, True)
        counts += more
        bad += worse
    tl.atomic_add(histograms_ptr + PASS * BINS + bins, counts.to(tl.int64), mask=counts > 0)
    if PASS == 3:
        tl.store(own_ptr + program * BINS + bins, counts)
    if PASS == 0 and bad > 0:
        tl.atomic_max(bad_ptr + tensor, 1)


@triton.jit
def _emit_block(table_ptr, tensor, index, end, cut, limit, left, seen, mixed, GIVEN: tl.constexpr,
                MASKED: tl.constexpr):  # fmt: skip
    """Writes codes; (abs(W) where kept, kept, index + 1 of kept ties, ties, not finite)."""
    inside = index < end if MASKED else None
    valid = index < end if MASKED else index >= 0
    offset = _memory_offset(table_ptr, tensor, index)
    key = _key(table_ptr, tensor, offset, inside)
    address = tl.multiple_of(tl.load(table_ptr + tensor * 8 + 1), 16)
    weight = tl.load(address.to(tl.pointer_type(tl.float32)) + offset, mask=inside)
    tied = valid & (key == cut)
    if GIVEN:
        kept_tie = tied & (index < limit)
    else:
        kept_tie = tied & (left > 0)
        if mixed:
            kept_tie = tied & (seen + tl.cumsum(tied.to(tl.int32), 0) <= left)
    keep = (valid & (key > cut)) | kept_tie
    sign = (weight > 0).to(tl.int8) - (weight < 0).to(tl.int8)
    code = tl.multiple_of(tl.load(table_ptr + tensor * 8 + 2), 16).to(tl.pointer_type(tl.int8))
    tl.store(code + offset, tl.where(keep, sign, 0).to(tl.int8), mask=inside)
    magnitude = tl.where(keep, tl.abs(weight), 0.0).to(tl.float64)
    last = tl.max(tl.where(kept_tie, index + 1, 0), 0)
    bad = tl.sum((valid & (key >= 0x7F800000)).to(tl.int32), 0)
    return magnitude, keep.to(tl.int32), last, tl.sum(tied.to(tl.int32), 0), bad


@triton.jit
def _select_topk_emit_kernel(
    table_ptr,
    segments_ptr,
    histograms_ptr,
    own_ptr,
    cuts_ptr,  # int32 [L] keys, GIVEN only
    limits_ptr,  # int64 [L], GIVEN only
    sums_ptr,  # float64 [S]
    kept_ptr,  # int64 [S]
    last_ptr,  # int64 [S]
    bad_ptr,
    rank,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
):
    """Codes of one segment, and its share of the sums."""
    program = tl.program_id(0)
    tensor = tl.load(segments_ptr + program * 3)
    begin = tl.multiple_of(tl.load(segments_ptr + program * 3 + 1), BLOCK)
    end = tl.load(segments_ptr + program * 3 + 2)
    lane = tl.arange(0, BLOCK)
    left = begin * 0
    seen = begin * 0
    limit = begin * 0
    mixed = begin < 0
    if GIVEN:
        cut = tl.load(cuts_ptr + tensor)
        limit = tl.load(limits_ptr + tensor)
    else:
        cut, wanted = _decided(histograms_ptr, rank, 4, BINS)
        column = own_ptr + (cut & 127)
        rows = tl.arange(0, BINS)
        before = tl.zeros([BINS], tl.int32)
        first = program * 0
        while first < program:
            before += tl.load(column + (first + rows) * BINS, mask=first + rows < program, other=0)
            first += BINS
        left = wanted - tl.sum(before, 0)
        mixed = (left > 0) & (left < tl.load(column + program * BINS))
    total = tl.zeros([BLOCK], tl.float64)
    kept = tl.zeros([BLOCK], tl.int32)
    last = begin * 0
    bad = tl.sum(lane, 0) * 0
    while begin + BLOCK <= end:
        magnitude, keep, farthest, ties, worse = _emit_block(
            table_ptr, tensor, begin + lane, end, cut, limit, left, seen, mixed, GIVEN, False
        )
        total += magnitude
        kept += keep
        last = tl.maximum(last, farthest)
        seen += ties
        bad += worse
        begin = tl.multiple_of(begin + BLOCK, BLOCK)
    if begin < end:
        magnitude, keep, farthest, ties, worse = _emit_block(
            table_ptr, tensor, begin + lane, end, cut, limit, left, seen, mixed, GIVEN, True
        )
        total += magnitude
        kept += keep
        last = tl.maximum(last, farthest)
        bad += worse
    tl.store(sums_ptr + program, tl.sum(total, 0))
    tl.store(kept_ptr + program, tl.sum(kept, 0).to(tl.int64))
    tl.store(last_ptr + program, last)
    if GIVEN and bad > 0:
        tl.atomic_max(bad_ptr + tensor, 1)


@triton.jit
def _select_topk_finish_kernel(
    table_ptr,
    sums_ptr,
    kept_ptr,
    last_ptr,
    abs_sums_ptr,  # float64 [L]
    counts_ptr,  # int64 [L]
    tie_limits_ptr,  # int64 [L]
    BLOCK: tl.constexpr,
):
    """Adds the shares of one tensor's segments in a fixed order."""
    tensor = tl.program_id(0)
    segment = tl.load(table_ptr + tensor * 8 + 6)
    stop = tl.load(table_ptr + tensor * 8 + 7)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    kept = tl.zeros([BLOCK], tl.int64)
    last = tl.zeros([BLOCK], tl.int64)
    while segment < stop:
        here = segment + lane
        inside = here < stop
        total += tl.load(sums_ptr + here, mask=inside, other=0.0)
        kept += tl.load(kept_ptr + here, mask=inside, other=0)
        last = tl.maximum(last, tl.load(last_ptr + here, mask=inside, other=0))
        segment += BLOCK
    tl.store(abs_sums_ptr + tensor, tl.sum(total, 0))
    tl.store(counts_ptr + tensor, tl.sum(kept, 0))
    tl.store(tie_limits_ptr + tensor, tl.max(last, 0))


@triton.jit
def _select_topk_cut_kernel(histograms_ptr, cut_ptr, rank, BINS: tl.constexpr):
    """The threshold's key, from all histograms."""
    cut, _ = _decided(histograms_ptr, rank, 4, BINS)
    tl.store(cut_ptr, cut)


Rows = tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]
"""(codes, thresholds, tie_limits, abs_sums, kept) as in `Selection`."""


class _Work:
    """Addresses, segments and scratch of one call; keeps every tensor it points to alive."""

    def __init__(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        self.device = scores[0].device
        self.codes: list[Tensor] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._alive: list[Tensor] = []
        sizes = tuple(score.numel() for score in scores)
        spans = _spans(sizes)
        rows = []
        for weight, score, (first, stop) in zip(weights, scores, spans, strict=True):
            code = torch.empty_like(weight, dtype=torch.int8, memory_format=layout_of(weight))
            self.codes.append(code)
            channels, pixels = 1, 1
            if is_channels_last(score) and is_channels_last(weight):
                channels, pixels = score.shape[1], score.shape[2] * score.shape[3]
            else:
                weight, score = weight.contiguous(), score.contiguous()
                if not code.is_contiguous():
                    buffer = torch.empty(code.shape, dtype=torch.int8, device=self.device)
                    self._copies.append((code, buffer))
                    code = buffer
            operands = [_aligned(score), _aligned(weight), code]
            self._alive += operands
            addresses = [operand.data_ptr() for operand in operands]
            rows.append([*addresses, score.numel(), channels, pixels, first, stop])
        self.table = torch.tensor(rows, dtype=torch.int64).to(self.device)
        self.segments = _segments(sizes, self.device)
        self.count = self.segments.shape[0]
        self.histograms = torch.zeros(PASSES, BINS, dtype=torch.int64, device=self.device)
        self.own = torch.empty(self.count, BINS, dtype=torch.int32, device=self.device)
        self.bad = torch.zeros(len(scores), dtype=torch.int32, device=self.device)

    def count_digits(self, rank: int) -> None:
        """Fills the histograms, after which the threshold's key is decided."""
        for position in range(PASSES):
            _select_topk_count_kernel[(self.count,)](
                self.table,
                self.segments,
                self.histograms,
                self.own,
                self.bad,
                rank,
                PASS=position,
                BLOCK=BLOCK,
                BINS=BINS,
                num_warps=NUM_WARPS,
            )

    def cut(self, rank: int) -> Tensor:
        """int32 [1], the key of the rank-th largest score."""
        key = torch.empty(1, dtype=torch.int32, device=self.device)
        _select_topk_cut_kernel[(1,)](self.histograms, key, rank, BINS=BINS)
        return key

    def emit(self, rank: int, cuts: Tensor | None, limits: Tensor | None) -> tuple[Tensor, ...]:
        """(tie_limits, abs_sums, kept); the codes are written."""
        sums = torch.empty(self.count, dtype=torch.float64, device=self.device)
        kept = torch.empty(self.count, dtype=torch.int64, device=self.device)
        last = torch.empty(self.count, dtype=torch.int64, device=self.device)
        _select_topk_emit_kernel[(self.count,)](
            self.table,
            self.segments,
            self.histograms,
            self.own,
            self.own if cuts is None else cuts,
            last if limits is None else limits,
            sums,
            kept,
            last,
            self.bad,
            rank,
            GIVEN=cuts is not None,
            BLOCK=BLOCK,
            BINS=BINS,
            num_warps=EMIT_WARPS,
        )
        layers = len(self.codes)
        abs_sums = torch.empty(layers, dtype=torch.float64, device=self.device)
        counts = torch.empty(layers, dtype=torch.int64, device=self.device)
        tie_limits = torch.empty(layers, dtype=torch.int64, device=self.device)
        _select_topk_finish_kernel[(layers,)](
            self.table, sums, kept, last, abs_sums, counts, tie_limits, BLOCK=BINS
        )
        for code, buffer in self._copies:
            code.copy_(buffer)
        return tie_limits, abs_sums, counts

    def finite(self) -> bool:
        """Whether every score was finite; waits for the device."""
        return not bool(self.bad.any())


def select_topk(
    weights: Sequence[Tensor], scores: Sequence[Tensor], kept_total: int
) -> Rows | None:
    """`select_topk` of float32 tensors with at least one entry, kept_total >= 1.

    None where a score is not finite: the caller says which.
    """
    with guard(scores[0]):
        work = _Work(weights, scores)
        work.count_digits(kept_total)
        tie_limits, abs_sums, kept = work.emit(kept_total, None, None)
        thresholds = work.cut(kept_total).view(torch.float32).repeat(len(scores))
        if not work.finite():
            return None
    return work.codes, thresholds, tie_limits, abs_sums, kept


def apply_threshold(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    thresholds: Sequence[float],
    tie_limits: Sequence[int],
) -> Rows | None:
    """`apply_threshold` of float32 tensors with at least one entry; None as in `select_topk`."""
    cuts = np.array(thresholds, dtype=np.float64)
    below = cuts.astype(np.float32)
    below = np.where(below > cuts, np.nextafter(below, np.float32(0)), below)
    # A cut between two floats: every score above the lower one passes, none can tie.
    limits = np.where(below == cuts, np.array(tie_limits, dtype=np.int64), 0)
    device = scores[0].device
    keys = torch.from_numpy(np.abs(below).view(np.int32)).to(device)
    with guard(scores[0]):
        work = _Work(weights, scores)
        _, abs_sums, kept = work.emit(0, keys, torch.from_numpy(limits).to(device))
        if not work.finite():
            return None
    values = torch.tensor(list(thresholds), dtype=torch.float32, device=device)
    positions = torch.tensor(list(tie_limits), dtype=torch.int64, device=device)
    return work.codes, values, positions, abs_sums, kept


def kth_largest(scores: Sequence[Tensor], rank: int) -> float | None:
    """The rank-th largest abs(score), rank from 1; None where a score is not finite."""
    with guard(scores[0]):
        work = _Work(scores, scores)
        work.count_digits(rank)
        key = work.cut(rank)
        return float(key.view(torch.float32).item()) if work.finite() else None


def _aligned(tensor: Tensor) -> Tensor:
    """`tensor` at a multiple of 16 bytes, which the vector loads count on."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


@functools.lru_cache(maxsize=64)
def _bounds(sizes: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(tensor, begin, end) of every segment, a whole number of blocks except at a tensor's end."""
    blocks = sum(ceil_div(size, BLOCK) for size in sizes)
    length = max(1, ceil_div(blocks, MOST_SEGMENTS)) * BLOCK
    return [
        (tensor, begin, min(begin + length, size))
        for tensor, size in enumerate(sizes)
        for begin in range(0, size, length)
    ]


@functools.lru_cache(maxsize=64)
def _segments(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(_bounds(sizes), dtype=torch.int64).to(device)


@functools.lru_cache(maxsize=64)
def _spans(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and past-the-last segment of every tensor."""
    owners = [tensor for tensor, _, _ in _bounds(sizes)]
    starts = np.searchsorted(owners, range(len(sizes) + 1)).tolist()
    return list(itertools.pairwise(starts))


def compile_cases() -> list[CompileCase]:
    """Every kernel at the configurations that are launched."""
    tables = {"table_ptr": "*i64", "segments_ptr": "*i64", "histograms_ptr": "*i64"}
    blocks = {"BLOCK": BLOCK, "BINS": BINS}
    cases = [
        CompileCase(
            _select_topk_count_kernel,
            f"pass {position}",
            {**tables, "own_ptr": "*i32", "bad_ptr": "*i32", "rank": "i64"},
            {"PASS": position, **blocks},
            NUM_WARPS,
        )
        for position in range(PASSES)
    ]
    partial = {"sums_ptr": "*fp64", "kept_ptr": "*i64", "last_ptr": "*i64"}
    for given in (False, True):
        cases.append(
            CompileCase(
                _select_topk_emit_kernel,
                "given thresholds" if given else "selected",
                {
                    **tables,
                    "own_ptr": "*i32",
                    "cuts_ptr": "*i32",
                    "limits_ptr": "*i64",
                    **partial,
                    "bad_ptr": "*i32",
                    "rank": "i64",
                },
                {"GIVEN": given, **blocks},
                EMIT_WARPS,
            )
        )
    results = {"abs_sums_ptr": "*fp64", "counts_ptr": "*i64", "tie_limits_ptr": "*i64"}
    cases.append(
        CompileCase(
            _select_topk_finish_kernel,
            "sums",
            {"table_ptr": "*i64", **partial, **results},
            {"BLOCK": BINS},
        )
    )
    cases.append(
        CompileCase(
            _select_topk_cut_kernel,
            "threshold",
            {"histograms_ptr": "*i64", "cut_ptr": "*i32", "rank": "i64"},
            {"BINS": BINS},
        )
    )
    return cases
