"""select_topk: the exact mask of a ticket, its signs and its gain's sums.

For score tensors s_1..s_L with n entries in all, `select_topk` keeps the n - int(sparsity * n)
entries of largest abs(s). Equal scores are kept in order of (position in the list, flat logical
index). The result is described by a threshold t and, per tensor, a tie limit:

    M = (abs(s) > t) | (abs(s) == t & index < tie_limit)
    code = sign(W) * M in {-1, 0, +1} (int8; sign(0) = 0),   gain g = sum(abs(W) * M) / sum(M)

Importance under power-propagation is abs(Psi(s)) = abs(s)**p, monotone in abs(s): the power never
enters. Tensors are read by logical index, so strides and memory format do not change the mask.

Backends: "reference" (concatenate and sort), "cpu" (C++) and "triton", both without a sort or a
concatenation; float32, other dtypes run the reference.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpt_fast.kernels import costs, cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.interop import as_array
from mpt_fast.kernels.layout import in_memory_order_of, is_channels_last, layout_of
from mpt_fast.kernels.select_topk import reference

BACKENDS = ("triton", "cpu", "reference")


class EmptiedLayerError(ValueError):
    """A layer keeps no weight at all, so its gain would be 0/0."""


class Selection(NamedTuple):
    """What is kept of L weight tensors.

    codes: int8, the shapes of the weights, channels_last where the weight is, else contiguous.
    thresholds: [L], float64 if any score is float64, else float32.
    tie_limits: int64 [L]; any limits that describe the mask (compare masks, not limits).
    abs_sums: float64 [L], sum of abs(W) over the mask.
    kept: int64 [L], the number of entries of the mask.
    """

    codes: list[Tensor]
    thresholds: Tensor
    tie_limits: Tensor
    abs_sums: Tensor
    kept: Tensor


def kept_count(total: int, sparsity: float) -> int:
    """How many of `total` weights stay at `sparsity`: total - int(sparsity * total)."""
    return total - int(sparsity * total)


def select_topk(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    sparsity: float,
    backend: str | None = None,
    names: Sequence[str] | None = None,
) -> Selection:
    """Keep n - int(sparsity * n) weights of the whole list by largest abs(score).

    weights, scores: L floating tensors each, pairwise of one shape and device, any strides;
    empty tensors are allowed. sparsity: fraction pruned, in [0, 1). names: what errors call the
    tensors. One call with all layers is global pruning, one call per layer is layerwise pruning.

    Raises ValueError for shapes that do not match, a sparsity outside [0, 1) and scores that are
    not finite; TypeError for dtypes that are not floating.
    """
    _check(weights, scores)
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is the fraction pruned and must lie in [0, 1), got {sparsity}")
    return Selection(
        *_select_topk(_detached(weights), _detached(scores), float(sparsity), _join(names), backend)
    )


def apply_threshold(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    thresholds: Tensor,
    tie_limits: Tensor,
    backend: str | None = None,
    names: Sequence[str] | None = None,
) -> Selection:
    """The Selection that given thresholds [L] and tie_limits [L] describe (0: strictly above).

    thresholds must be finite and not negative. Arguments and errors otherwise as in `select_topk`.
    """
    _check(weights, scores)
    if thresholds.shape != (len(scores),) or tie_limits.shape != (len(scores),):
        raise ValueError(
            f"thresholds and tie_limits must have shape ({len(scores)},), "
            f"got {tuple(thresholds.shape)} and {tuple(tie_limits.shape)}"
        )
    return Selection(
        *_apply_threshold(
            _detached(weights), _detached(scores), thresholds, tie_limits, _join(names), backend
        )
    )


def threshold_from_quantile(
    scores: Sequence[Tensor],
    sparsity: float,
    backend: str | None = None,
    names: Sequence[str] | None = None,
) -> float:
    """The t for which abs(s) > t keeps n - int(sparsity * n) entries, or fewer where scores tie.

    It is the largest pruned abs(s), or 0 at sparsity 0, where only scores of exactly 0 are pruned.
    Errors as in `select_topk`.
    """
    _check(scores, scores)
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is the fraction pruned and must lie in [0, 1), got {sparsity}")
    total = sum(score.numel() for score in scores)
    kept = kept_count(total, sparsity)
    if kept == total:
        _check_finite(scores, _join(names))
        return 0.0
    fast = _fast_backend("select_topk", [], scores, backend)
    if fast is not None:
        kth_largest = _engine_kth_largest if fast == "cpu" else _kernels().kth_largest
        threshold = kth_largest(scores, kept + 1)
        if threshold is not None:
            return threshold
    _check_finite(scores, _join(names))
    return reference.kth_largest(scores, kept + 1)


def layer_gains(selection: Selection, names: Sequence[str] | None = None) -> Tensor:
    """Gains g = abs_sums / kept as float32 [L], divided in float64 and rounded once.

    Rounding to float32 makes every sum of +-g exact in float64. Raises EmptiedLayerError naming
    the first layer that keeps nothing.
    """
    return _layer_gains(selection.abs_sums, selection.kept, _join(names))


_Parts = tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("mpt_fast::select_topk", mutates_args=())
def _select_topk(
    weights: list[Tensor],
    scores: list[Tensor],
    sparsity: float,
    names: str = "",
    backend: str | None = None,
) -> _Parts:
    kept_total = kept_count(sum(score.numel() for score in scores), sparsity)
    fast = _fast_backend("select_topk", weights, scores, backend)
    if fast == "triton" and kept_total:
        parts = _kernels().select_topk(weights, scores, kept_total)
        if parts is not None:
            return parts
    elif fast == "cpu":
        rows = _engine_select(weights, scores, kept_total)
        if rows is not None:
            return _parts(rows, weights, scores)
    _check_finite(scores, names)
    return _parts(reference.select_topk(weights, scores, kept_total), weights, scores)


@torch.library.custom_op("mpt_fast::apply_threshold", mutates_args=())
def _apply_threshold(
    weights: list[Tensor],
    scores: list[Tensor],
    thresholds: Tensor,
    tie_limits: Tensor,
    names: str = "",
    backend: str | None = None,
) -> _Parts:
    cuts = thresholds.tolist()
    limits = [max(0, limit) for limit in tie_limits.tolist()]
    for position, cut in enumerate(cuts):
        if not 0.0 <= cut < float("inf"):
            raise ValueError(
                f"{_name(names, position)} has threshold {cut}; thresholds must be finite and not "
                "negative: select anew or load a sound checkpoint"
            )
    fast = _fast_backend("apply_threshold", weights, scores, backend)
    if fast == "triton":
        parts = _kernels().apply_threshold(weights, scores, cuts, limits)
        if parts is not None:
            return parts
    elif fast == "cpu":
        rows = _engine_apply(weights, scores, cuts, limits)
        if rows is not None:
            return _parts(rows, weights, scores)
    _check_finite(scores, names)
    return _parts(reference.apply_threshold(weights, scores, cuts, limits), weights, scores)


@_select_topk.register_fake
def _(
    weights: list[Tensor],
    scores: list[Tensor],
    sparsity: float,
    names: str = "",
    backend: str | None = None,
) -> _Parts:
    return _fake_parts(weights, scores)


@_apply_threshold.register_fake
def _(
    weights: list[Tensor],
    scores: list[Tensor],
    thresholds: Tensor,
    tie_limits: Tensor,
    names: str = "",
    backend: str | None = None,
) -> _Parts:
    return _fake_parts(weights, scores)


@torch.library.custom_op("mpt_fast::layer_gains", mutates_args=())
def _layer_gains(abs_sums: Tensor, kept: Tensor, names: str = "") -> Tensor:
    for position, count in enumerate(kept.tolist()):
        if count == 0:
            raise EmptiedLayerError(
                f"{_name(names, position)} keeps no weight (emptied layer, gain 0/0); lower the "
                "sparsity or the learning rate of the scores, or prune with scope='layer'"
            )
    return (abs_sums / kept).to(torch.float32)


@_layer_gains.register_fake
def _(abs_sums: Tensor, kept: Tensor, names: str = "") -> Tensor:
    return torch.empty_like(abs_sums, dtype=torch.float32)


class _Operands:
    """NumPy arrays of a list of tensors for the engine, and the codes that the engine fills.

    Tensors are passed in logical order; where `memory_order` allows it, in that of their scores,
    which saves the copies of channels_last tensors.
    """

    def __init__(
        self, weights: Sequence[Tensor], scores: Sequence[Tensor], memory_order: Sequence[bool]
    ) -> None:
        self._codes = [_empty_code(weight) for weight in weights]
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self.weights: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        self.codes: list[np.ndarray] = []
        for weight, score, code, as_it_lies in zip(
            weights, scores, self._codes, memory_order, strict=True
        ):
            w, s, c = (weight.detach(), score.detach(), code)
            if as_it_lies and is_channels_last(score):
                w, s, c = (tensor.permute(0, 2, 3, 1) for tensor in (w, s, c))
            buffer = c.contiguous()
            if buffer is not c:
                self._buffers.append((c, buffer))
            self.weights.append(as_array(w))
            self.scores.append(as_array(s))
            self.codes.append(buffer.numpy())

    def filled_codes(self) -> list[Tensor]:
        """The codes in the layout of their weights, after the engine wrote `codes`."""
        for code, buffer in self._buffers:
            code.copy_(buffer)
        return self._codes


def _engine_select(
    weights: Sequence[Tensor], scores: Sequence[Tensor], kept_total: int
) -> reference.Rows | None:
    """None where a score is not finite: the caller says which."""
    if any(is_channels_last(score) for score in scores):
        # The order of entries matters only where some of the threshold's ties are pruned: try
        # with all of them kept, in memory order, which needs no copy.
        threshold = _engine_kth_largest(scores, kept_total)
        if threshold is None:
            return None
        sizes = [score.numel() for score in scores]
        rows = _engine_apply(weights, scores, [threshold] * len(scores), sizes)
        if rows is None or sum(rows[4]) == kept_total:
            return rows
    operands = _Operands(weights, scores, [False] * len(scores))
    threshold, tie_limits, abs_sums, kept, finite = cpu.engine().select_topk(
        operands.weights, operands.scores, kept_total, operands.codes, torch.get_num_threads()
    )
    if not finite:
        return None
    return operands.filled_codes(), [threshold] * len(scores), tie_limits, abs_sums, kept


def _engine_apply(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    thresholds: list[float],
    tie_limits: list[int],
) -> reference.Rows | None:
    """None where a score is not finite: the caller says which."""
    all_or_none = [
        limit <= 0 or limit >= score.numel()
        for score, limit in zip(scores, tie_limits, strict=True)
    ]
    operands = _Operands(weights, scores, all_or_none)
    abs_sums, kept, finite = cpu.engine().apply_threshold(
        operands.weights,
        operands.scores,
        thresholds,
        tie_limits,
        operands.codes,
        torch.get_num_threads(),
    )
    return (operands.filled_codes(), thresholds, tie_limits, abs_sums, kept) if finite else None


def _engine_kth_largest(scores: Sequence[Tensor], rank: int) -> float | None:
    """None where a score is not finite."""
    arrays = [in_memory_order_of(score, score)[0].numpy() for score in scores]
    threshold, _, finite = cpu.engine().kth_largest(arrays, rank, torch.get_num_threads())
    return threshold if finite else None


def _fast_backend(
    operation: str, weights: Sequence[Tensor], scores: Sequence[Tensor], backend: str | None
) -> str | None:
    """ "cpu" or "triton" where it takes these tensors, None where the reference runs."""
    device_type = scores[0].device.type if scores else "cpu"
    case = costs.elements(operation, sum(score.numel() for score in scores))
    chosen = choose(operation, backend, device_type, BACKENDS, case)
    floats = all(tensor.dtype == torch.float32 for tensor in (*weights, *scores))
    takes = chosen != "reference" and floats and any(score.numel() for score in scores)
    return chosen if takes else None


def _kernels() -> ModuleType:
    """The Triton kernels, imported where they run."""
    from mpt_fast.kernels.select_topk import triton

    return triton


def _empty_code(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=torch.int8, memory_format=layout_of(weight))


def _parts(rows: reference.Rows, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> _Parts:
    codes, thresholds, tie_limits, abs_sums, kept = rows
    device = scores[0].device if scores else torch.device("cpu")
    return (
        [
            code.contiguous(memory_format=layout_of(weight))
            for code, weight in zip(codes, weights, strict=True)
        ],
        torch.tensor(thresholds, dtype=_threshold_dtype(scores), device=device),
        torch.tensor(tie_limits, dtype=torch.int64, device=device),
        torch.tensor(abs_sums, dtype=torch.float64, device=device),
        torch.tensor(kept, dtype=torch.int64, device=device),
    )


def _fake_parts(weights: Sequence[Tensor], scores: Sequence[Tensor]) -> _Parts:
    device = scores[0].device if scores else torch.device("cpu")
    count = len(scores)
    return (
        [_empty_code(weight) for weight in weights],
        torch.empty(count, dtype=_threshold_dtype(scores), device=device),
        torch.empty(count, dtype=torch.int64, device=device),
        torch.empty(count, dtype=torch.float64, device=device),
        torch.empty(count, dtype=torch.int64, device=device),
    )


def _threshold_dtype(scores: Sequence[Tensor]) -> torch.dtype:
    wide = any(score.dtype == torch.float64 for score in scores)
    return torch.float64 if wide else torch.float32


def _check(weights: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
    if len(weights) != len(scores):
        raise ValueError(f"got {len(weights)} weights and {len(scores)} scores; pass one per layer")
    for position, (weight, score) in enumerate(zip(weights, scores, strict=True)):
        if weight.shape != score.shape:
            raise ValueError(
                f"tensor {position}: weight has shape {tuple(weight.shape)} but its scores have "
                f"shape {tuple(score.shape)}"
            )
        if not (weight.is_floating_point() and score.is_floating_point()):
            raise TypeError(
                f"tensor {position}: weight and scores must be floating, "
                f"got {weight.dtype} and {score.dtype}"
            )
        if weight.device != score.device or score.device != scores[0].device:
            raise ValueError(
                f"tensor {position}: all weights and scores must be on one device, "
                f"got {weight.device}, {score.device} and {scores[0].device}"
            )


def _check_finite(scores: Sequence[Tensor], names: str) -> None:
    for position, score in enumerate(scores):
        if not bool(score.detach().isfinite().all()):
            raise ValueError(
                f"{_name(names, position)} has scores that are NaN or infinite; lower the learning "
                "rate or return to an earlier checkpoint"
            )


def _detached(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach() for tensor in tensors]


def _join(names: Sequence[str] | None) -> str:
    return "\n".join(names) if names else ""


def _name(names: str, position: int) -> str:
    return f"layer {names.splitlines()[position]!r}" if names else f"tensor {position}"
