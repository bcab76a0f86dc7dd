"""A power per layer: importances stay, global selection compares importances, gradients follow."""

import pytest
import torch
from torch import nn

from mpt_fast.config import TicketConfig
from mpt_fast.kernels.select_topk import select_topk
from mpt_fast.nn import MPTLinear
from mpt_fast.selection import set_power, ticket_layers, update_masks
from mpt_fast.selection.powers import select_mixed_powers


def net(**fields: object) -> nn.Sequential:
    torch.manual_seed(0)
    config = TicketConfig(**fields)  # type: ignore[arg-type]
    return nn.Sequential(MPTLinear(30, 20, config=config), MPTLinear(20, 25, config=config))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_setting_a_power_keeps_the_masks(scope: str) -> None:
    model = net(scope=scope, sparsity=0.7)
    update_masks(model)
    before = [layer.mask() for layer in ticket_layers(model).values()]
    importance = [layer.scores.detach().abs().clone() for layer in ticket_layers(model).values()]
    set_power(model, {"*": 2.0, "1": 3.0})
    update_masks(model)
    layers = list(ticket_layers(model).values())
    assert [layer.config.power for layer in layers] == [2.0, 3.0]
    for layer, mask, old in zip(layers, before, importance, strict=True):
        assert torch.equal(layer.mask(), mask)
        assert torch.allclose(layer.scores.detach().abs().pow(layer.config.power), old)


def test_raw_scores_are_left_alone() -> None:
    model = net(score_init="raw", scope="layer")
    before = model[0].scores.detach().clone()
    set_power(model, {"0": 2.0})
    assert torch.equal(model[0].scores, before)


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match=r"power of 'conv\*': no ticket layer has that name"):
        set_power(net(), {"conv*": 2.0})


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("tied", [False, True])
def test_selection_is_that_of_the_importances(sparsity: float, tied: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(17, 9, generator=generator), torch.randn(40, generator=generator)]
    if tied:
        scores = [(s * 4).round() / 4 for s in scores]
    weights = [torch.randn(s.shape, generator=generator) for s in scores]
    powers = [2.0, 4.0]
    found = select_mixed_powers(weights, scores, powers, sparsity, ["a", "b"])
    importance = [s.double().abs() ** p for s, p in zip(scores, powers, strict=True)]
    expected = select_topk(
        [w.double() for w in weights], importance, sparsity, "reference", ["a", "b"]
    )
    for mine, theirs in zip(found.codes, expected.codes, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(found.kept, expected.kept)


def test_equal_powers_select_as_scores_do() -> None:
    scores = [torch.randn(50), torch.randn(60)]
    weights = [torch.randn(50), torch.randn(60)]
    mixed = select_mixed_powers(weights, scores, [3.0, 3.0], 0.6, ["a", "b"])
    plain = select_topk(weights, scores, 0.6)
    assert all(torch.equal(a, b) for a, b in zip(mixed.codes, plain.codes, strict=True))


def test_gradients_have_each_layers_factor() -> None:
    model = net(scope="layer", sparsity=0.5)
    set_power(model, {"1": 3.0})
    layer = model[1]
    x = torch.randn(4, 20)
    layer(x).backward(torch.ones(4, 25))
    to_weight = torch.ones(4, 25).T @ x
    s = layer.scores.detach()
    expected = to_weight * layer.weight * s.sign() * 3 * s.abs().square()
    assert torch.allclose(layer.scores.grad, expected, rtol=1e-5, atol=1e-7)


def test_scores_that_are_not_finite_are_named() -> None:
    scores = [torch.randn(5), torch.tensor([1.0, float("nan")])]
    with pytest.raises(ValueError, match="layer 'b' has scores that are NaN"):
        select_mixed_powers(scores, scores, [2.0, 3.0], 0.5, ["a", "b"])


def test_a_fixed_threshold_cannot_serve_several_powers() -> None:
    model = net(selection="threshold")
    set_power(model, {"1": 3.0})
    with pytest.raises(ValueError, match="several powers has no one threshold"):
        update_masks(model)
