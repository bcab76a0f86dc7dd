"""Selection over whole models: pools, sharing, thresholds, errors, replicas."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpt_fast as mpt
from mpt_fast.kernels import select_topk as operation
from mpt_fast.nn import MPTConv2d, MPTLinear, TicketLayer
from mpt_fast.selection import (
    EmptiedLayerError,
    finetune,
    masks,
    realised_sparsity,
    set_sparsity,
    ticket_layers,
    update_masks,
)

CONFIG = mpt.TicketConfig(sparsity=0.7)


def network(config: mpt.TicketConfig = CONFIG) -> nn.Sequential:
    return nn.Sequential(
        MPTConv2d(3, 6, 3, padding=1, config=config),
        nn.ReLU(),
        nn.Sequential(MPTConv2d(6, 5, 1, config=config), nn.Flatten()),
        MPTLinear(80, 4, config=config),
    )


SIZE = 6 * 3 * 9 + 5 * 6 + 4 * 80


def layers_of(model: nn.Module) -> list[TicketLayer]:
    return list(ticket_layers(model).values())


def global_mask(layers: list[TicketLayer], sparsity: float) -> list[Tensor]:
    """The largest abs(score) of all layers by a full sort; scores without ties."""
    importance = torch.cat([layer.scores.detach().abs().flatten() for layer in layers])
    kept = importance.numel() - int(sparsity * importance.numel())
    cut = importance.sort(descending=True).values[kept - 1]
    return [layer.scores.detach().abs() >= cut for layer in layers]


@pytest.mark.parametrize("selection", ["exact", "sort"])
def test_one_threshold_for_the_whole_model(selection: Any) -> None:
    model = network(dataclasses.replace(CONFIG, selection=selection))
    update_masks(model)
    layers = layers_of(model)
    for layer, mask in zip(layers, global_mask(layers, 0.7), strict=True):
        assert torch.equal(layer.mask(), mask)
        assert torch.equal(layer.threshold, layers[0].threshold)
    report = realised_sparsity(model)
    assert (report.kept, report.size) == (SIZE - int(0.7 * SIZE), SIZE)
    assert report.total == pytest.approx(int(0.7 * SIZE) / SIZE)
    assert list(report.layers) == ["0", "2.0", "3"]
    assert len(set(report.layers.values())) == 3


def test_sorting_takes_the_reference_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = network()
    exact_masks = [layer.mask() for layer in layers_of(exact)]
    for layer in layers_of(exact):
        layer.config = dataclasses.replace(layer.config, selection="sort")
    asked = []

    def spy(*args: Any) -> Any:
        asked.append(args[3])
        return operation.select_topk(*args)

    monkeypatch.setattr(masks, "select_topk", spy)
    update_masks(exact)
    assert asked == ["reference"]
    sorted_masks = [layer.mask() for layer in layers_of(exact)]
    for layer in layers_of(exact):
        layer.config = CONFIG
    update_masks(exact)
    assert asked == ["reference", None]
    for layer, mask in zip(layers_of(exact), sorted_masks, strict=True):
        assert torch.equal(layer.mask(), mask)
    assert not all(map(torch.equal, exact_masks, sorted_masks))  # layerwise before the first update


def test_layerwise_layers_are_left_to_their_forward() -> None:
    model = network(dataclasses.replace(CONFIG, scope="layer"))
    update_masks(model)
    for name, sparsity in realised_sparsity(model).layers.items():
        size = ticket_layers(model)[name].weight.numel()
        assert sparsity == pytest.approx(int(0.7 * size) / size)


def test_equal_sparsity_and_selection_make_a_pool() -> None:
    other = dataclasses.replace(CONFIG, sparsity=0.2)
    model = nn.Sequential(
        MPTLinear(20, 20, config=CONFIG),
        MPTLinear(30, 20, config=other),
        MPTLinear(9, 20, config=CONFIG),
        MPTLinear(7, 20, config=dataclasses.replace(CONFIG, scope="layer")),
    )
    update_masks(model)
    first, second, third, fourth = layers_of(model)
    assert torch.equal(first.threshold, third.threshold)
    assert int(first.kept + third.kept) == 580 - int(0.7 * 580)
    assert int(second.kept) == 600 - int(0.2 * 600)
    assert int(fourth.kept) == 140 - int(0.7 * 140)


def test_a_module_used_twice_counts_once() -> None:
    layer = MPTLinear(10, 10, config=CONFIG)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    update_masks(model)
    assert list(ticket_layers(model)) == ["0"]
    assert realised_sparsity(model).size == 100
    assert int(layer.kept) == 30


def test_shared_scores_count_once() -> None:
    first, second, third = (MPTLinear(10, 10, config=CONFIG) for _ in range(3))
    second.scores, second.weight = first.scores, first.weight
    third.scores = first.scores  # the same mask over other weights
    model = nn.Sequential(first, MPTLinear(5, 10, config=CONFIG), second, third)
    update_masks(model)
    assert int(first.kept + layers_of(model)[1].kept) == 150 - int(0.7 * 150)
    assert torch.equal(first.code, second.code)
    assert torch.equal(first.gain(), second.gain())
    assert torch.equal(third.mask(), first.mask())
    assert torch.equal(third.code, (third.weight.sign() * first.mask()).to(torch.int8))
    assert third.gain().item() == pytest.approx(
        third.weight.abs()[first.mask()].mean().item(), rel=1e-6
    )


def test_set_sparsity() -> None:
    for scope in ("global", "layer"):
        model = network(mpt.TicketConfig(sparsity=0.2, scope=scope))  # type: ignore[arg-type]  # loop
        set_sparsity(model, 0.6)
        assert {layer.sparsity for layer in layers_of(model)} == {0.6}
        kept = realised_sparsity(model).kept
        parts = [SIZE] if scope == "global" else [x.weight.numel() for x in layers_of(model)]
        assert kept == sum(size - int(0.6 * size) for size in parts)
    before = [layer.mask() for layer in layers_of(model)]
    with pytest.raises(ValueError, match="sparsity is the fraction pruned"):
        set_sparsity(model, 1.0)
    assert all(map(torch.equal, before, [layer.mask() for layer in layers_of(model)]))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_threshold_is_fixed_at_the_start(scope: Any) -> None:
    config = mpt.TicketConfig(sparsity=0.6, scope=scope, selection="threshold")
    model = network(config)
    update_masks(model)
    layers = layers_of(model)
    parts = [SIZE] if scope == "global" else [layer.weight.numel() for layer in layers]
    assert realised_sparsity(model).kept == sum(size - int(0.6 * size) for size in parts)
    cuts = [layer.threshold.clone() for layer in layers]
    if scope == "global":
        assert torch.equal(cuts[0], cuts[1])
    with torch.no_grad():
        layers[0].scores.mul_(1.5)
    update_masks(model)
    assert all(map(torch.equal, cuts, [layer.threshold for layer in layers]))
    drifted = realised_sparsity(model)
    assert drifted.total < 0.6
    assert drifted.kept == sum(int((x.scores.abs() > x.threshold).sum()) for x in layers)

    restored = network(config)
    restored.load_state_dict(model.state_dict())
    update_masks(restored)
    assert all(map(torch.equal, cuts, [layer.threshold for layer in layers_of(restored)]))
    set_sparsity(model, 0.3)
    sizes = [SIZE] if scope == "global" else [layer.weight.numel() for layer in layers]
    assert realised_sparsity(model).kept == sum(size - int(0.3 * size) for size in sizes)


def test_threshold_covers_layers_that_join_later() -> None:
    config = mpt.TicketConfig(sparsity=0.5, selection="threshold")
    model = nn.Sequential(MPTLinear(10, 10, config=config))
    update_masks(model)
    model.append(MPTLinear(10, 10, config=config))
    update_masks(model)
    first, second = layers_of(model)
    assert torch.equal(first.threshold, second.threshold)
    assert int(first.kept + second.kept) == 100


@pytest.mark.parametrize("selection", ["exact", "sort", "threshold"])
def test_an_emptied_layer_is_named_and_nothing_changes(selection: Any) -> None:
    model = network(dataclasses.replace(CONFIG, selection=selection))
    update_masks(model)
    layers = layers_of(model)
    before = [(layer.code.clone(), layer.threshold.clone()) for layer in layers]
    with torch.no_grad():
        layers[1].scores.mul_(1e-6)
        layers[0].scores.add_(1.0)
    with pytest.raises(EmptiedLayerError, match=r"layer '2\.0' keeps no weight \(emptied layer"):
        update_masks(model)
    for layer, (code, threshold) in zip(layers, before, strict=True):
        assert torch.equal(layer.code, code)
        assert torch.equal(layer.threshold, threshold)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("selection", ["exact", "sort", "threshold"])
def test_scores_that_are_not_finite_name_the_layer(selection: Any, bad: float) -> None:
    model = network(dataclasses.replace(CONFIG, selection=selection))
    layers = layers_of(model)
    with torch.no_grad():
        layers[2].scores[1, 2] = bad
    codes = [layer.code.clone() for layer in layers]
    with pytest.raises(ValueError, match="layer '3' has scores that are NaN or infinite"):
        update_masks(model)
    assert all(map(torch.equal, codes, [layer.code for layer in layers]))


def test_replicas_get_equal_masks() -> None:
    """Masks are a function of the scores: copies that took the same steps agree bit for bit."""
    model = network()
    replica = copy.deepcopy(model)
    x = torch.randn(4, 3, 4, 4)
    for run in (model, replica):
        optimizer = torch.optim.SGD([layer.scores for layer in layers_of(run)], lr=0.1)
        for _ in range(3):
            update_masks(run)
            optimizer.zero_grad()
            run(x).square().sum().backward()
            optimizer.step()
        update_masks(run)
    for left, right in zip(layers_of(model), layers_of(replica), strict=True):
        assert torch.equal(left.code, right.code)
        assert torch.equal(left.gain(), right.gain())


def test_training_moves_masks_and_never_a_weight() -> None:
    model = network()
    update_masks(model)
    weights = [layer.weight.clone() for layer in layers_of(model)]
    before = [layer.mask() for layer in layers_of(model)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        update_masks(model)
        optimizer.zero_grad()
        model(torch.randn(8, 3, 4, 4)).square().mean().backward()
        optimizer.step()
    update_masks(model)
    assert all(map(torch.equal, weights, [layer.weight for layer in layers_of(model)]))
    assert not all(map(torch.equal, before, [layer.mask() for layer in layers_of(model)]))


def test_finetune_fixes_the_masks_of_the_current_scores() -> None:
    model = network()
    update_masks(model)
    with torch.no_grad():
        for layer in layers_of(model):
            layer.scores.copy_(layer.scores.flip(0))
    finetune(model)
    layers = layers_of(model)
    want = global_mask(layers, 0.7)
    assert all(map(torch.equal, want, [layer.mask() for layer in layers]))
    assert all(layer.weight.requires_grad and not layer.scores.requires_grad for layer in layers)
    with torch.no_grad():
        for layer in layers:
            layer.weight.neg_()
    update_masks(model)
    assert all(map(torch.equal, want, [layer.mask() for layer in layers]))
    with pytest.raises(ValueError, match="layer '0' is being fine-tuned"):
        set_sparsity(model, 0.1)
    restored = network()
    restored.load_state_dict(model.state_dict())
    finetune(restored)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(restored(x), model(x))
    finetune(model, False)
    assert all(layer.scores.requires_grad for layer in layers)
    assert torch.equal(restored(x), model(x))


def test_models_without_ticket_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    update_masks(model)
    set_sparsity(model, 0.3)
    finetune(model)
    report = realised_sparsity(model)
    assert (report.total, report.kept, report.size, report.layers) == (0.0, 0, 0, {})


def test_channels_last_models_get_the_same_masks() -> None:
    model = network()
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for run in (model, twin):
        update_masks(run)
    for left, right in zip(layers_of(model), layers_of(twin), strict=True):
        assert torch.equal(left.mask(), right.mask())
        assert torch.equal(left.gain(), right.gain())
