"""Shared suite of select_topk, apply_threshold and threshold_from_quantile, on every backend."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers import backend_fixture
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import PROPERTY
from torch import Tensor

from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.select_topk import (
    EmptiedLayerError,
    Selection,
    apply_threshold,
    kept_count,
    layer_gains,
    op,
    reference,
    select_topk,
    threshold_from_quantile,
)

backend = backend_fixture(op.BACKENDS, every_isa=False)

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "one score": [(1,)],
    "odd": [(7,)],
    "conv": [(5, 3, 3, 3)],
    "three layers": [(4, 3, 3, 3), (6, 4, 1, 1), (10, 6)],
    "an empty one": [(3, 5), (0, 4), (2, 2)],
    "only empty": [(0, 4)],
    "none": [],
    "sampled": [(9_001,), (3, 4_000)],
    "more than one chunk": [(70_001,), (3, 50_000)],
}


def layers(
    shapes: Sequence[tuple[int, ...]], levels: int | None = None, seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Random weights and scores; `levels` rounds the scores so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    scores = [torch.randn(shape, generator=generator) for shape in shapes]
    if levels is not None:
        scores = [(score * levels).round() / levels for score in scores]
    return weights, scores


def expected_masks(scores: Sequence[Tensor], sparsity: float) -> list[np.ndarray]:
    """By the definition: rank all entries by (largest abs, list position, flat index)."""
    flat = [score.detach().double().abs().numpy().ravel() for score in scores]
    everything = np.concatenate([np.zeros(0), *flat])
    order = np.lexsort((np.arange(everything.size), -everything))
    keep = np.zeros(everything.size, dtype=bool)
    keep[order[: everything.size - int(sparsity * everything.size)]] = True
    masks, start = [], 0
    for score in scores:
        masks.append(keep[start : start + score.numel()].reshape(tuple(score.shape)))
        start += score.numel()
    return masks


def described_mask(score: Tensor, threshold: float, tie_limit: int) -> np.ndarray:
    """The mask that a threshold and a tie limit describe."""
    importance = score.detach().double().abs().numpy()
    index = np.arange(importance.size).reshape(importance.shape)
    return (importance > threshold) | ((importance == threshold) & (index < tie_limit))


def assert_selects(
    selection: Selection, weights: Sequence[Tensor], scores: Sequence[Tensor], sparsity: float
) -> None:
    """Every field of `selection` against the definition."""
    masks = expected_masks(scores, sparsity)
    assert len(selection.codes) == len(masks)
    for index, (mask, weight, score) in enumerate(zip(masks, weights, scores, strict=True)):
        signs = np.sign(weight.detach().double().numpy())
        code = selection.codes[index]
        assert code.dtype == torch.int8
        np.testing.assert_array_equal(code.numpy(), np.where(mask, signs, 0))
        assert selection.kept[index] == mask.sum()
        sum_of_kept = np.abs(weight.detach().double().numpy())[mask].sum()
        np.testing.assert_allclose(selection.abs_sums[index].item(), sum_of_kept, rtol=1e-12)
        described = described_mask(
            score, selection.thresholds[index].item(), int(selection.tie_limits[index])
        )
        np.testing.assert_array_equal(described, mask)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8, 0.999, 1 - 2**-53])
@pytest.mark.parametrize("name", SHAPES)
def test_matches_definition(backend: str, name: str, sparsity: float) -> None:
    weights, scores = layers(SHAPES[name])
    selection = select_topk(weights, scores, sparsity, backend)
    assert_selects(selection, weights, scores, sparsity)
    total = sum(score.numel() for score in scores)
    assert int(selection.kept.sum()) == total - int(sparsity * total)


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.6, 0.95])
@pytest.mark.parametrize("levels", [0.5, 2, 1000])
@pytest.mark.parametrize(
    "name", ["conv", "three layers", "an empty one", "sampled", "more than one chunk"]
)
def test_ties_go_to_the_lower_index(backend: str, name: str, levels: int, sparsity: float) -> None:
    weights, scores = layers(SHAPES[name], levels)
    assert_selects(select_topk(weights, scores, sparsity, backend), weights, scores, sparsity)


def test_all_scores_equal(backend: str) -> None:
    weights, _ = layers([(5,), (4,)])
    scores = [torch.full((5,), -2.0), torch.full((4,), 2.0)]
    selection = select_topk(weights, scores, 0.25, backend)
    assert selection.kept.tolist() == [5, 2]
    assert selection.codes[1].ne(0).tolist() == [True, True, False, False]


@PROPERTY
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    levels=st.sampled_from([None, 1, 3]),
    sparsity=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**31),
)
def test_random_layers(
    backend: str, sizes: list[int], levels: int | None, sparsity: float, seed: int
) -> None:
    weights, scores = layers([(size,) for size in sizes], levels, seed)
    assert_selects(select_topk(weights, scores, sparsity, backend), weights, scores, sparsity)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def sliced(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, torch.full_like(tensor, 99.0)], dim=-1)[..., 0]


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("change", [channels_last, transposed, sliced])
@pytest.mark.parametrize("which", ["weights", "scores", "both", "first layer"])
def test_strides_do_not_change_the_mask(
    backend: str, change: object, which: str, levels: int | None
) -> None:
    assert callable(change)
    weights, scores = layers([(6, 5, 3, 3), (8, 6, 3, 2), (3, 8, 1, 1)], levels)
    laid_weights = [change(w) if which != "scores" else w for w in weights]
    laid_scores = [change(s) if which != "weights" else s for s in scores]
    if which == "first layer":
        laid_weights[1:], laid_scores[1:] = weights[1:], scores[1:]
    for sparsity in (0.4,) if backend == "triton" else (0.0, 0.4, 0.9):
        selection = select_topk(laid_weights, laid_scores, sparsity, backend)
        assert_selects(selection, weights, scores, sparsity)
        again = apply_threshold(
            laid_weights, laid_scores, selection.thresholds, selection.tie_limits, backend
        )
        assert all(map(torch.equal, again.codes, selection.codes))
        for code, weight in zip(selection.codes, laid_weights, strict=True):
            kept_format = weight.is_contiguous(memory_format=torch.channels_last)
            assert code.is_contiguous() or kept_format
            if change is channels_last:
                assert code.stride() == torch.empty_like(weight).stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(backend: str, dtype: torch.dtype) -> None:
    weights, scores = layers([(9, 4), (30,)])
    weights, scores = [w.to(dtype) for w in weights], [s.to(dtype) for s in scores]
    selection = select_topk(weights, scores, 0.6, backend)
    assert_selects(selection, weights, scores, 0.6)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert selection.thresholds.dtype == wide
    assert selection.abs_sums.dtype == torch.float64


def test_a_kept_weight_of_zero_counts_but_has_code_zero(backend: str) -> None:
    weights = [torch.tensor([0.0, -0.0, 3.0, -1.0])]
    scores = [torch.tensor([9.0, -8.0, 7.0, 0.1])]
    selection = select_topk(weights, scores, 0.25, backend)
    assert selection.codes[0].tolist() == [0, 0, 1, 0]
    assert selection.kept.tolist() == [3]
    assert selection.abs_sums.tolist() == [3.0]


def test_threads_do_not_change_the_sums(backend: str) -> None:
    weights, scores = layers([(300_000,)])
    before = torch.get_num_threads()
    try:
        sums = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums.append(select_topk(weights, scores, 0.8, "cpu" if backend == "cpu" else backend))
    finally:
        torch.set_num_threads(before)
    if backend == "cpu":
        assert sums[0].abs_sums.tolist() == sums[1].abs_sums.tolist() == sums[2].abs_sums.tolist()
    assert torch.equal(sums[0].codes[0], sums[1].codes[0])
    assert torch.equal(sums[0].codes[0], sums[2].codes[0])


def test_backends_agree(backend: str) -> None:
    weights, scores = layers(SHAPES["three layers"])
    got = select_topk(weights, scores, 0.7, backend)
    want = select_topk(weights, scores, 0.7, "reference")
    assert all(map(torch.equal, got.codes, want.codes))
    assert torch.equal(got.thresholds, want.thresholds)
    assert torch.equal(got.kept, want.kept)


def test_parameters_get_no_gradient_path(backend: str) -> None:
    weight = torch.randn(6, requires_grad=True)
    score = torch.randn(6, requires_grad=True)
    selection = select_topk([weight], [score], 0.5, backend)
    assert not selection.abs_sums.requires_grad
    assert not selection.thresholds.requires_grad


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_threshold_from_quantile(backend: str, sparsity: float) -> None:
    weights, scores = layers([(4, 3, 3, 3), (11,)])
    scores[0] = channels_last(scores[0])
    cut = threshold_from_quantile(scores, sparsity, backend)
    above = sum(int((score.abs() > cut).sum()) for score in scores)
    assert above == kept_count(119, sparsity)
    if sparsity:
        assert any(bool((score.abs() == cut).any()) for score in scores)
    else:
        assert cut == 0.0
    cuts = torch.full((2,), cut)
    selection = apply_threshold(weights, scores, cuts, torch.zeros(2, dtype=torch.int64), backend)
    assert int(selection.kept.sum()) == above


def test_threshold_prunes_ties_when_the_limit_is_zero(backend: str) -> None:
    weights, scores = [torch.ones(4)], [torch.tensor([1.0, -1.0, 2.0, 0.5])]
    for limit, kept in ((-3, [2]), (0, [2]), (1, [0, 2]), (2, [0, 1, 2]), (9, [0, 1, 2])):
        selection = apply_threshold(
            weights, scores, torch.tensor([1.0]), torch.tensor([limit]), backend
        )
        assert torch.nonzero(selection.codes[0]).flatten().tolist() == kept


@pytest.mark.parametrize("cut", [float("nan"), float("inf"), -1.0])
def test_bad_threshold(backend: str, cut: float) -> None:
    with pytest.raises(ValueError, match="layer 'head' has threshold"):
        apply_threshold(
            [torch.ones(3)],
            [torch.ones(3)],
            torch.tensor([cut]),
            torch.tensor([0]),
            backend,
            ["head"],
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [4, 80])
def test_scores_that_are_not_finite(
    backend: str, bad: float, layout: torch.memory_format, size: int
) -> None:
    weights, scores = layers([(2, 3, 3, 3), (size, size // 2, 5, 5)])
    scores[1][1, 1, 1, 1] = bad
    scores = [score.contiguous(memory_format=layout) for score in scores]
    message = "layer 'b' has scores that are NaN or infinite"
    names = ["a", "b"]
    with pytest.raises(ValueError, match=message):
        select_topk(weights, scores, 0.5, backend, names)
    with pytest.raises(ValueError, match=message):
        threshold_from_quantile(scores, 0.5, backend, names)
    with pytest.raises(ValueError, match=message):
        threshold_from_quantile(scores, 0.0, backend, names)
    zeros = torch.zeros(2)
    with pytest.raises(ValueError, match=message):
        apply_threshold(weights, scores, zeros, zeros.long(), backend, names)
    with pytest.raises(ValueError, match="tensor 1 has scores"):
        select_topk(weights, scores, 0.5, backend)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan"), 2])
def test_sparsity_out_of_range(backend: str, sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"sparsity is the fraction pruned .* \[0, 1\)"):
        select_topk([torch.ones(3)], [torch.ones(3)], sparsity, backend)
    with pytest.raises(ValueError, match=r"sparsity is the fraction pruned .* \[0, 1\)"):
        threshold_from_quantile([torch.ones(3)], sparsity, backend)


def test_operands_that_do_not_match(backend: str) -> None:
    with pytest.raises(ValueError, match="got 2 weights and 1 scores"):
        select_topk([torch.ones(3)] * 2, [torch.ones(3)], 0.5, backend)
    with pytest.raises(ValueError, match=r"tensor 1: weight has shape \(3,\) .* \(4,\)"):
        select_topk([torch.ones(3)] * 2, [torch.ones(3), torch.ones(4)], 0.5, backend)
    with pytest.raises(TypeError, match=r"tensor 0: .* floating, got torch.float32 and torch.int"):
        select_topk([torch.ones(3)], [torch.ones(3).int()], 0.5, backend)
    with pytest.raises(ValueError, match="on one device"):
        select_topk([torch.ones(3, device="meta")], [torch.ones(3)], 0.5, backend)
    with pytest.raises(ValueError, match=r"must have shape \(1,\)"):
        apply_threshold(
            [torch.ones(3)], [torch.ones(3)], torch.zeros(()), torch.zeros(1).long(), backend
        )


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
        select_topk([torch.ones(3)], [torch.ones(3)], 0.5, "cuda")


def test_gains_are_divided_in_float64_and_rounded_once() -> None:
    abs_sums = torch.tensor([1.0, 123456789.123], dtype=torch.float64)
    kept = torch.tensor([3, 77])
    gains = layer_gains(Selection([], kept, kept, abs_sums, kept))
    assert gains.dtype == torch.float32
    want = np.array([1.0 / 3, 123456789.123 / 77]).astype(np.float32)
    np.testing.assert_array_equal(gains.numpy(), want)


def test_emptied_layer_is_named() -> None:
    abs_sums = torch.tensor([1.0, 0.0], dtype=torch.float64)
    kept = torch.tensor([3, 0])
    selection = Selection([], kept, kept, abs_sums, kept)
    with pytest.raises(EmptiedLayerError, match=r"layer 'convs.2' keeps no weight \(emptied"):
        layer_gains(selection, ["convs.0", "convs.2"])
    with pytest.raises(ValueError, match="tensor 1 keeps no weight"):
        layer_gains(selection)


def test_opcheck(backend: str) -> None:
    weights, scores = layers([(2, 3, 3, 3), (5, 3), (0, 2)])
    weights[0], scores[0] = channels_last(weights[0]), channels_last(scores[0])
    torch.library.opcheck(
        torch.ops.mpt_fast.select_topk.default, (weights, scores, 0.5, "a\nb\nc", backend)
    )
    cuts, limits = torch.full((3,), 0.5), torch.ones(3, dtype=torch.int64)
    torch.library.opcheck(
        torch.ops.mpt_fast.apply_threshold.default, (weights, scores, cuts, limits, "", backend)
    )
    sums = torch.ones(3, dtype=torch.float64)
    torch.library.opcheck(torch.ops.mpt_fast.layer_gains.default, (sums, limits, ""))


def test_reference_rows_are_the_definition() -> None:
    """The reference itself, called directly, on a case worked out by hand."""
    weights = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([[-4.0], [5.0]])]
    scores = [torch.tensor([0.5, -0.9, 0.5]), torch.tensor([[0.5], [-0.1]])]
    codes, thresholds, tie_limits, abs_sums, kept = reference.select_topk(weights, scores, 3)
    assert [code.tolist() for code in codes] == [[1, -1, 0], [[0], [0]]]
    assert thresholds == [0.5, 0.5]
    assert tie_limits == [3, 0]
    assert abs_sums == [3.0, 0.0]
    assert kept == [3, 0]
