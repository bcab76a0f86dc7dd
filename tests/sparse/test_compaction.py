"""Compaction, lottery restart and the landscape's curves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mpt_fast as mpt
from mpt_fast import models, sparse


def test_dead_parts_are_removed_and_the_outputs_stay() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    first, last = model[1], model[3]
    with torch.no_grad():
        # unit 0: fed by pixel 1; unit 1: fed by nothing, constant relu(0.5); unit 2: feeds nothing
        first.weight.copy_(torch.tensor([[0.0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 3.0, 0]]))
        first.bias.copy_(torch.tensor([0.1, 0.5, 0.2]))
        last.weight.copy_(torch.tensor([[1.0, 4, 0], [0, -2, 0]]))
        last.bias.copy_(torch.tensor([0.0, 1.0]))
    found = sparse.compact(model)
    assert found.widths == (1, 1, 2)
    assert found.alive.tolist() == [False, True, False, False]
    assert found.kept == 2
    assert found.flops == 4
    assert found.size_bytes == (32 * (2 + 3) + 3 + 4) / 8
    torch.testing.assert_close(found.model.layers[2].bias, torch.tensor([2.0, 0.0]))
    x = torch.randn(9, 2, 2)
    torch.testing.assert_close(found.model(x), model(x))


def test_a_chain_of_dead_units_goes_whole() -> None:
    layers = [nn.Linear(3, 3, bias=False) for _ in range(3)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.eye(3))
        layers[2].weight[:, 1] = 0  # unit 1 of the second layer feeds nothing
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    found = sparse.compact(model)
    assert found.widths == (2, 2, 2, 3)
    x = torch.randn(5, 3)
    torch.testing.assert_close(found.model(x), model(x))


@pytest.mark.parametrize("seed", range(3))
def test_a_sparse_lenet_is_compacted_without_change(seed: int) -> None:
    torch.manual_seed(seed)
    model = models.lenet_300_100(config=None, width=0.3)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.normal_()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse.Static(model, optimizer, 0.99, seed=seed, distribution="uniform")
    found = sparse.compact(model)
    assert found.widths[0] < 784
    assert found.kept < sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1)
    x = torch.randn(6, 1, 28, 28)
    torch.testing.assert_close(found.model(x), model(x), rtol=1e-5, atol=1e-5)


def test_only_linear_networks_are_compacted() -> None:
    with pytest.raises(ValueError, match="found Conv2d"):
        sparse.compact(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="found no linear layer"):
        sparse.compact(nn.ReLU())


def test_pixels_that_never_vary_die_and_are_found() -> None:
    """A border that is always 0 gives a zero gradient: RigL grows nothing there."""
    torch.manual_seed(0)
    images = torch.zeros(256, 8, 8)
    images[:, 2:6, 2:6] = torch.rand(256, 4, 4)
    labels = (images.flatten(1).sum(1) > 8).long()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    method = sparse.RigL(model, optimizer, 0.8, delta_t=2, alpha=0.5, t_end=150, decay="constant")
    before = method.masks["1"].view(20, 8, 8)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        method.optimizer_step()
    after = method.masks["1"].view(20, 8, 8)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    assert int(before[:, ~inside].sum()) > int(before[:, inside].sum())
    assert int(after[:, inside].sum()) > 2 * int(before[:, inside].sum())
    alive = sparse.compact(model).alive.view(8, 8)
    assert alive[inside].all()
    assert int(alive[~inside].sum()) < int((~inside).sum())


def test_lottery_restart_gives_initial_values_under_the_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    initial = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sparse.GradualPruning(model, optimizer, 0.5, t_start=0, t_end=4, frequency=1)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(5, 6)).square().sum().backward()
        method.optimizer_step()
    masks = method.masks
    method.remove()
    sparse.lottery_restart(model, initial, masks)
    assert torch.equal(model[0].weight, initial["0.weight"] * masks["0"])
    assert torch.equal(model[0].bias, initial["0.bias"])
    again = sparse.Static(model, torch.optim.SGD(model.parameters(), 0.1), masks=masks)
    assert all(torch.equal(again.masks[name], mask) for name, mask in masks.items())
    with pytest.raises(ValueError, match="no layer 'x' to mask"):
        sparse.lottery_restart(model, initial, {"x": masks["0"]})


def ends() -> tuple[nn.Module, dict, dict, list]:
    """Two sparse networks, each trained for a few steps, and the batches they saw."""
    draw = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(20):
        x = torch.randn(32, 6, generator=draw)
        batches.append((x, (x[:, 0] * x[:, 1] > 0).long()))
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 2))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        method = sparse.Static(model, optimizer, 0.5, seed=seed)
        for x, y in batches * 5:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            method.optimizer_step()
        states.append(copy.deepcopy(model.state_dict()))
    return model, *states, batches


def test_curves() -> None:
    model, first, last, batches = ends()
    kept = copy.deepcopy(model.state_dict())
    losses: dict[object, list[float]] = {}
    points = [0, 0.25, 0.5, 0.75, 1]
    for degree, inside in ((1, True), (2, True), (2, False), (3, True)):
        curve = sparse.fit_curve(
            model, first, last, batches * 5, F.cross_entropy, degree=degree, sparse=inside
        )
        assert curve.degree == degree
        for u, state in ((0, first), (1, last)):
            for name, value in curve.at(u).items():
                torch.testing.assert_close(value, state[name])
        union = (first["0.weight"] != 0) | (last["0.weight"] != 0)
        off = curve.at(0.5)["0.weight"][~union]
        assert bool((off == 0).all()) == (inside or degree == 1)
        losses[degree, inside] = sparse.curve_losses(
            model, curve, points, lambda: batches, F.cross_entropy
        )
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
    line = losses[1, True]
    for key, found in losses.items():
        assert found[0] == pytest.approx(line[0])
        assert found[-1] == pytest.approx(line[-1])
        if key[0] > 1:
            assert sparse.barrier(found) < sparse.barrier(line)
    # a Bezier curve of degree n with its control points on the line is the line
    plain = sparse.fit_curve(model, first, last, [], F.cross_entropy, degree=3)
    middle = plain.at(0.5)["0.weight"]
    torch.testing.assert_close(middle, (first["0.weight"] + last["0.weight"]) / 2)


def test_statistics_are_recomputed_at_each_point() -> None:
    model, first, last, batches = ends()
    curve = sparse.fit_curve(model, first, last, [], F.cross_entropy, degree=1)
    (found,) = sparse.curve_losses(model, curve, [0], lambda: batches, F.cross_entropy)
    model.load_state_dict(first)
    norm = model[1]
    norm.reset_running_stats()
    norm.momentum = None
    model.train()
    with torch.no_grad():
        for x, _ in batches:
            model(x)
        model.eval()
        want = sum(float(F.cross_entropy(model(x), y)) for x, y in batches) / len(batches)
    assert found == pytest.approx(want, rel=1e-5)


def test_curve_errors() -> None:
    model, first, last, _ = ends()
    with pytest.raises(ValueError, match="degree must be 1"):
        sparse.fit_curve(model, first, last, [], F.cross_entropy, degree=4)
    del last["0.bias"]
    with pytest.raises(ValueError, match=r"no '0.bias' of \(24,\)"):
        sparse.fit_curve(model, first, last, [], F.cross_entropy)


def test_char_gru_trains_sparsely() -> None:
    torch.manual_seed(0)
    model = mpt.models.CharGRU(vocabulary=16, embedding=8, hidden=12, readout=(10, 8))
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    method = sparse.RigL(
        model, optimizer, 0.75, distribution="uniform", alpha=0.1, delta_t=10, t_end=100
    )
    assert list(method.layers) == [
        "gru.weight_ih_l0",
        "gru.weight_hh_l0",
        "readout.0",
        "readout.2",
        "readout.4",
    ]
    tokens = torch.arange(40).remainder(7).repeat(4, 1)
    losses = []
    for _ in range(100):
        logits, state = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        method.optimizer_step()
    assert losses[-1] < 0.5 * losses[0]
    assert state.shape == (1, 4, 12)
    assert method.sparsity == pytest.approx(0.75, abs=5e-3)
    with pytest.raises(ValueError, match="tokens must be int64"):
        model(tokens.float())
