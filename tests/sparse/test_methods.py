"""Each method, step by step, against NumPy; and what must hold whatever the optimiser."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpt_fast import sparse
from mpt_fast.sparse.weights import generator

ROWS, COLUMNS = 6, 10
SIZE = ROWS * COLUMNS


def layer_and_optimizer(**options: Any) -> tuple[nn.Linear, torch.optim.SGD]:
    torch.manual_seed(3)
    layer = nn.Linear(COLUMNS, ROWS, bias=False).double()
    settings_ = {"lr": oracles.LR, "momentum": oracles.MOMENTUM, "weight_decay": oracles.DECAY}
    return layer, torch.optim.SGD(layer.parameters(), **{**settings_, **options})


def gradients(steps: int) -> list[np.ndarray]:
    draw = np.random.default_rng(5)
    return [draw.standard_normal(SIZE) for _ in range(steps)]


def take(layer: nn.Linear, gradient: np.ndarray) -> None:
    layer.weight.grad = torch.from_numpy(gradient.copy()).view(ROWS, COLUMNS)


def check(method: sparse.SparseTraining, layer: nn.Linear, want: oracles.Layer) -> None:
    (mask,) = method.masks.values()
    assert np.array_equal(mask.numpy().ravel(), want.mask)
    np.testing.assert_allclose(layer.weight.detach().numpy().ravel(), want.weight, atol=1e-14)
    state = method.optimizer.state.get(layer.weight, {})
    if want.momentum is not None:
        np.testing.assert_allclose(
            state["momentum_buffer"].numpy().ravel(), want.momentum, atol=1e-14
        )


def oracle_of(method: sparse.SparseTraining, weight: Tensor) -> oracles.Layer:
    (mask,) = method.masks.values()
    return oracles.Layer(weight.numpy().ravel(), mask.numpy().ravel())


def test_rigl_against_numpy() -> None:
    layer, optimizer = layer_and_optimizer()
    start = layer.weight.detach().clone()
    method = sparse.RigL(layer, optimizer, 0.7, delta_t=3, alpha=0.5, t_end=14)
    want = oracle_of(method, start)
    replaced = []
    for gradient in gradients(20):
        take(layer, gradient)
        replaced.append(method.step())
        if not replaced[-1]:
            optimizer.step()
        oracles.rigl(want, gradient, 3, 0.5, 14)
        check(method, layer, want)
        assert int(want.mask.sum()) == sparse.kept_entries(SIZE, 0.7)
    assert [t for t, done in enumerate(replaced) if done] == [0, 3, 6, 9, 12]


def test_set_against_numpy() -> None:
    layer, optimizer = layer_and_optimizer()
    start = layer.weight.detach().clone()
    method = sparse.SET(layer, optimizer, 0.7, delta_t=3, alpha=0.5, t_end=14, seed=8)
    want = oracle_of(method, start)
    for t, gradient in enumerate(gradients(20)):
        take(layer, gradient)
        assert not method.step()
        optimizer.step()
        draw = torch.rand((ROWS, COLUMNS), generator=generator(8, 1, t, 0)).numpy().ravel()
        oracles.set_(want, gradient, draw, 3, 0.5, 14)
        check(method, layer, want)


def test_snfs_against_numpy() -> None:
    layer, optimizer = layer_and_optimizer()
    start = layer.weight.detach().clone()
    method = sparse.SNFS(layer, optimizer, 0.7, delta_t=3, alpha=0.5, t_end=14, momentum=0.8)
    want = oracle_of(method, start)
    mean = np.zeros(SIZE)
    for gradient in gradients(20):
        take(layer, gradient)
        assert not method.step()
        optimizer.step()
        mean = 0.8 * mean + 0.2 * gradient
        oracles.set_(want, gradient, np.abs(mean), 3, 0.5, 14)
        check(method, layer, want)


def test_static_against_numpy() -> None:
    layer, optimizer = layer_and_optimizer()
    start = layer.weight.detach().clone()
    method = sparse.Static(layer, optimizer, 0.7)
    want = oracle_of(method, start)
    for gradient in gradients(5):
        take(layer, gradient)
        assert not method.step()
        optimizer.step()
        want.masked_sgd(gradient)
        check(method, layer, want)


def test_snip_against_numpy() -> None:
    layer, optimizer = layer_and_optimizer()
    start = layer.weight.detach().numpy().ravel().copy()
    method = sparse.SNIP(layer, optimizer, 0.7)
    assert method.sparsity == 0
    want = oracle_of(method, torch.from_numpy(start))
    for t, gradient in enumerate(gradients(5)):
        take(layer, gradient)
        assert method.step() == (t == 0)
        if t == 0:
            count = sparse.kept_entries(SIZE, 0.7)
            want.mask = want.top(np.abs(gradient * start), count)
            want.weight = np.where(want.mask, start, 0.0)
        else:
            optimizer.step()
            want.masked_sgd(gradient)
        check(method, layer, want)


def test_pruning_against_numpy() -> None:
    layer, optimizer = layer_and_optimizer()
    start = layer.weight.detach().clone()
    method = sparse.GradualPruning(layer, optimizer, 0.7, t_start=2, t_end=13, frequency=3)
    want = oracle_of(method, start)
    parked = np.zeros(SIZE)
    kept = []
    for gradient in gradients(18):
        take(layer, gradient)
        assert not method.step()
        optimizer.step()
        parked = oracles.pruning(want, parked, gradient, 1 - 0.7, 2, 13, 3)
        check(method, layer, want)
        kept.append(int(want.mask.sum()))
    assert kept[1] == SIZE
    assert kept[-1] == sparse.kept_entries(SIZE, 0.7)
    assert kept == sorted(kept, reverse=True)


def test_dnw_against_numpy() -> None:
    layer, optimizer = layer_and_optimizer()
    start = layer.weight.detach().numpy().ravel().copy()
    method = sparse.DNW(layer, optimizer, 0.7)
    count = sparse.kept_entries(SIZE, 0.7)
    want = oracles.Layer(start, np.ones(SIZE, dtype=bool))
    changes = 0
    for gradient in gradients(15):
        take(layer, gradient)
        assert not method.step()
        optimizer.step()
        before = want.top(np.abs(want.weight), count)
        want.sgd(gradient)  # of all entries
        mask = want.top(np.abs(want.weight), count)
        changes += int((mask != before).sum())
        (found,) = method.masks.values()
        assert np.array_equal(found.numpy().ravel(), mask)
        np.testing.assert_allclose(
            layer.weight.detach().numpy().ravel(), np.where(mask, want.weight, 0), atol=1e-14
        )
    assert changes > 0


class TestOneUpdate:
    """drop_and_grow on six entries that can be followed by eye."""

    weight = torch.tensor([0.5, -0.1, 0.0, 0.3, 0.0, 0.0])
    mask = torch.tensor([True, True, False, True, False, False])

    def test_grows_where_the_score_is_largest(self) -> None:
        score = torch.tensor([9.0, 1.0, 2.0, 9.0, 3.0, 0.0])
        update = sparse.drop_and_grow(self.weight, self.mask, score, 0.4)
        assert update.mask.tolist() == [True, False, False, True, True, False]
        assert update.new.tolist() == [False, False, False, False, True, False]

    def test_what_was_dropped_may_come_back_and_is_not_new(self) -> None:
        score = torch.tensor([0.0, 5.0, 2.0, 0.0, 3.0, 0.0])
        update = sparse.drop_and_grow(self.weight, self.mask, score, 0.4)
        assert update.mask.tolist() == self.mask.tolist()
        assert not update.new.any()

    def test_less_than_one_entry_moves_nothing(self) -> None:
        update = sparse.drop_and_grow(self.weight, self.mask, torch.ones(6), 0.3)
        assert torch.equal(update.mask, self.mask)
        assert not update.new.any()

    def test_ties_go_to_the_lower_index(self) -> None:
        assert sparse.top_mask(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [
            True,
            True,
            False,
            False,
        ]

    def test_a_kept_zero_stands_before_a_masked_one(self) -> None:
        weight = torch.tensor([0.0, 0.0, 0.0, 1.0])
        mask = torch.tensor([False, True, True, True])
        score = torch.tensor([9.0, 0.0, 0.0, 0.0])
        update = sparse.drop_and_grow(weight, mask, score, 0.34)
        assert update.mask.tolist() == [True, True, False, True]

    def test_a_nan_score_is_refused(self) -> None:
        score = torch.full((6,), math.nan)
        with pytest.raises(RuntimeError, match="not finite"):
            sparse.drop_and_grow(self.weight, self.mask, score, 0.4)


@pytest.mark.parametrize("optimizer_kind", ["sgd", "adam", "adamw"])
def test_regrown_entries_keep_weight_and_slots_and_new_ones_start_at_zero(
    optimizer_kind: str,
) -> None:
    layer, _ = layer_and_optimizer()
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 0.1),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1),
    }
    optimizer = kinds[optimizer_kind](layer.parameters())
    method = sparse.RigL(
        layer, optimizer, 0.5, delta_t=100, alpha=0.5, t_start=1, t_end=1000, decay="constant"
    )
    take(layer, gradients(1)[0])
    assert not method.step()
    optimizer.step()
    (mask,) = method.masks.values()
    weight = layer.weight.detach().clone()
    slots = [slot.clone() for slot in method.layers[""].slots(optimizer)]
    assert len(slots) == (1 if optimizer_kind == "sgd" else 2)
    kept = mask.nonzero()
    smallest = kept[weight[mask].abs().argmin()]
    outside = (~mask).nonzero()
    gradient = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    gradient[tuple(smallest)] = 100.0  # dropped, and grown at once
    for index, entry in enumerate(outside[: int(0.5 * len(kept)) - 1]):
        gradient[tuple(entry)] = 10.0 + index
    layer.weight.grad = gradient
    assert method.step()
    (after,) = method.masks.values()
    assert int(after.sum()) == int(mask.sum())
    assert after[tuple(smallest)]
    assert layer.weight[tuple(smallest)] == weight[tuple(smallest)]
    for slot, before in zip(method.layers[""].slots(optimizer), slots, strict=True):
        assert slot[tuple(smallest)] == before[tuple(smallest)] != 0
        assert not slot[after & ~mask].any()
        assert not slot[~after].any()
    assert int((after & ~mask).sum()) == int(0.5 * len(kept)) - 1
    assert not layer.weight[after & ~mask].any()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, d: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=d),
    "nesterov": lambda p, d: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=d),
    "adam": lambda p, d: torch.optim.Adam(p, 0.01, weight_decay=d, amsgrad=True),
    "adamw": lambda p, d: torch.optim.AdamW(p, 0.01, weight_decay=d),
    "adagrad": lambda p, d: torch.optim.Adagrad(
        p, 0.1, weight_decay=d, initial_accumulator_value=0.1
    ),
}
FREE = ("rigl", "set", "snfs", "static")


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(sparse.METHODS)),
    optimizer_name=st.sampled_from(sorted(OPTIMIZERS)),
    decay=st.sampled_from([0.0, 0.1]),
    delta_t=st.integers(1, 4),
    sparsity=st.sampled_from([0.0, 0.5, 0.8, 0.95]),
    seed=st.integers(0, 5),
    channels_last=st.booleans(),
)
def test_outside_the_mask_all_is_zero_and_nnz_never_changes(
    name: str,
    optimizer_name: str,
    decay: float,
    delta_t: int,
    sparsity: float,
    seed: int,
    channels_last: bool,
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters(), decay)
    options: dict[str, Any] = {"seed": seed, "distribution": "uniform", "dense_first": False}
    if name in ("rigl", "set", "snfs"):
        options |= {"delta_t": delta_t, "t_end": 9, "alpha": 0.5}
    if name == "pruning":
        options |= {"t_start": 1, "t_end": 7, "frequency": delta_t}
    method = sparse.METHODS[name](model, optimizer, sparsity, **options)
    start = method.kept
    for _ in range(10):
        # Bounded, so that no optimiser can drive the dense gradients of DNW to infinity.
        loss = model(torch.randn(4, 2, 4, 4)).tanh().sum()
        optimizer.zero_grad()
        loss.backward()
        if not method.step():
            optimizer.step()
        for layer in method.layers.values():
            assert not layer.weight[layer.pruned].any()
            if name != "dnw":
                for slot in layer.slots(optimizer):
                    assert not slot[layer.pruned].any()
            assert torch.isfinite(layer.weight).all()
        if name in FREE:
            assert method.kept == start
    end = {n: sparse.kept_entries(x.weight.numel(), sparsity) for n, x in method.layers.items()}
    assert method.kept == end
    assert model[1].weight.abs().min() > 0  # batch norm is never masked


def test_weights_are_masked_at_construction() -> None:
    layer, optimizer = layer_and_optimizer()
    method = sparse.RigL(layer, optimizer, 0.9, t_end=10)
    assert int((layer.weight != 0).sum()) == method.kept[""] == sparse.kept_entries(SIZE, 0.9)


def test_weight_decay_does_not_rank() -> None:
    """With a zero gradient in one place and a large weight decay, nothing grows there."""
    layer, optimizer = layer_and_optimizer(weight_decay=100.0)
    method = sparse.RigL(layer, optimizer, 0.5, t_end=10, alpha=0.5)
    gradient = np.zeros(SIZE)
    outside = np.flatnonzero(~method.masks[""].numpy().ravel())
    gradient[outside[:3]] = 1e-3
    take(layer, gradient)
    assert method.step()
    assert method.masks[""].numpy().ravel()[outside[:3]].all()


def test_a_closure_a_scheduler_and_the_optimizer_step_go_on_as_they_were() -> None:
    layer, optimizer = layer_and_optimizer()
    step = type(optimizer).step
    method = sparse.RigL(layer, optimizer, 0.5, delta_t=2, t_start=2, t_end=10)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    calls = []

    def closure() -> float:
        calls.append(1)
        take(layer, gradients(1)[0])
        method.step()
        return 1.5

    assert optimizer.step(closure) == 1.5
    scheduler.step()
    assert calls == [1]
    assert type(optimizer).step is step
    assert not layer.weight[~method.masks[""]].any()


def test_gradient_accumulation_ranks_by_the_mean_of_the_last_steps() -> None:
    layer, optimizer = layer_and_optimizer()
    method = sparse.RigL(
        layer, optimizer, 0.5, delta_t=4, t_start=4, t_end=100, alpha=0.5, grad_accumulation=3
    )
    (mask,) = method.masks.values()
    seen = gradients(5)
    for t, gradient in enumerate(seen):
        take(layer, gradient)
        before = layer.weight.detach().clone()
        if not method.step():
            optimizer.step()
        assert (t == 4) == (method._sums == {} and t >= 2) or t < 2
    score = torch.from_numpy(np.abs(seen[2] + seen[3] + seen[4])).view(ROWS, COLUMNS)
    fraction = sparse.drop_fraction(4, 0.5, 100)
    want = sparse.drop_and_grow(before, mask, score, fraction)
    assert torch.equal(method.masks[""], want.mask)


def test_an_overflowed_update_waits() -> None:
    layer, optimizer = layer_and_optimizer()
    method = sparse.RigL(layer, optimizer, 0.5, delta_t=5, t_end=100)
    take(layer, np.full(SIZE, np.inf))
    before = method.masks[""]
    assert not method.step()  # the scaler would skip the optimiser's step now
    assert torch.equal(method.masks[""], before)
    take(layer, gradients(1)[0])
    assert method.step()
    assert not torch.equal(method.masks[""], before)


def test_amp_with_a_scaler_on_the_cpu() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    method = sparse.RigL(model, optimizer, 0.5, delta_t=3, t_end=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    done = []
    for _ in range(7):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.randn(5, 8)).float().square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        done.append(method.optimizer_step(scaler))
    assert done == [True, False, False, True, False, False, True]
    assert all(not x.weight[x.pruned].any() for x in method.layers.values())


def test_lstm_and_shared_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 5)
            self.a = nn.Linear(5, 5)
            self.b = nn.Linear(5, 5)
            self.b.weight = self.a.weight
            self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
            self.embedding = nn.Embedding(7, 4)

    found = sparse.sparse_parameters(Net())
    assert list(found) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "a"]


def test_errors_name_the_thing() -> None:
    layer, optimizer = layer_and_optimizer()
    with pytest.raises(ValueError, match="needs t_end; give it, or use decay='constant'"):
        sparse.RigL(layer, optimizer, 0.5)
    with pytest.raises(ValueError, match="delta_t must be an int of at least 1, got 0"):
        sparse.RigL(layer, optimizer, 0.5, delta_t=0, t_end=5)
    with pytest.raises(ValueError, match=r"grad_accumulation must lie in 1\.\.delta_t \(2\)"):
        sparse.RigL(layer, optimizer, 0.5, delta_t=2, t_end=5, grad_accumulation=3)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    with pytest.raises(ValueError, match="the optimizer does not hold layer ''"):
        sparse.Static(layer, other, 0.5)
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        sparse.Static(nn.ReLU(), optimizer, 0.5)
    with pytest.raises(ValueError, match=r"mask of layer '' does not fit: given torch.bool \(2,"):
        sparse.Static(layer, optimizer, masks={"": torch.ones(2, 2, dtype=torch.bool)})
    method = sparse.RigL(layer, optimizer, 0.5, t_end=5)
    layer.weight.grad = None
    with pytest.raises(RuntimeError, match=r"has no gradient; call loss\.backward"):
        method.step()
