"""compat="biprop" against biprop's formulas, to the bit: masks, gains, outputs, gradients."""

import biprop_formulas as formulas
import pytest
import torch
from torch import Tensor, nn

import mpt_fast
from mpt_fast import models
from mpt_fast.config import TicketConfig
from mpt_fast.nn import MPTConv2d, SignActivation, TicketLayer
from mpt_fast.selection import EmptiedLayerError, ticket_layers, update_masks

RATES = [0.05, 0.1, 0.3, 0.5, 0.8]


def ticket(k: float, scope: str, channels: int = 12, **fields: object) -> MPTConv2d:
    config = TicketConfig(sparsity=1 - k, scope=scope, compat="biprop", **fields)  # type: ignore[arg-type]
    return MPTConv2d(channels, 16, 3, stride=2, padding=1, config=config)


@pytest.mark.parametrize("k", [*RATES, 1.0])
def test_layerwise(k: float) -> None:
    layer = ticket(k, "layer")
    weight, scores = layer.weight.detach(), layer.scores.detach().clone().requires_grad_()
    mask = formulas.layerwise_mask(scores.detach(), k)
    gain = formulas.layerwise_gain(weight, mask, k)
    check(layer, scores, mask, gain)


def check(layer: MPTConv2d, scores: Tensor, mask: Tensor, gain: Tensor) -> None:
    weight = layer.weight.detach()
    effective = formulas.effective_weight(scores, weight, mask, gain)
    assert torch.equal(layer.mask(), mask.bool())
    assert torch.equal(layer.gain(), gain)
    assert torch.equal(layer.effective_weight(), effective.detach())

    x = torch.randn(4, layer.in_channels, 8, 8)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = formulas.conv(theirs, effective, 2, 1)
    answer = layer(mine)
    assert torch.equal(answer, expected)
    seed = torch.randn_like(answer)
    answer.backward(seed)
    expected.backward(seed)
    assert torch.equal(mine.grad, theirs.grad)
    assert torch.equal(layer.scores.grad, scores.grad)
    assert bool((layer.scores.grad[~mask.bool()] != 0).all())  # pruned entries learn too


@pytest.mark.parametrize("n", [1728, 36864, 1000, 64 * 9])
def test_denominator_is_int_of_k_times_n(n: int) -> None:
    for k in [i / 100 for i in range(1, 100)]:
        if int(k * n) == 0:
            continue
        config = TicketConfig(sparsity=1 - k, scope="layer", compat="biprop")
        layer = TicketLayer((n, 1), False, config, None, None)
        nn.init.ones_(layer.weight)
        nn.init.uniform_(layer.scores, 0.1, 1)
        layer.reset_selection()
        kept = n - int((1 - k) * n)
        assert float(layer.gain()) == torch.tensor(kept / int(k * n)).item(), (n, k)


def test_a_rate_that_keeps_nothing_is_an_error_where_biprop_computes_nan() -> None:
    config = TicketConfig(sparsity=1 - 0.01, scope="layer", compat="biprop")
    layer = TicketLayer((9, 1), False, config, None, None)
    nn.init.ones_(layer.weight)
    nn.init.uniform_(layer.scores)
    with pytest.raises(EmptiedLayerError):
        layer.reset_selection()


@pytest.mark.parametrize("k", RATES)
@pytest.mark.parametrize("ties", [False, True])
def test_global(k: float, ties: bool) -> None:
    layers = [ticket(k, "global", 3), ticket(k, "global", 16)]
    model = nn.Sequential(*layers)
    steps = 31 if k < 0.2 else 6  # a coarser grid would tie all that a small rate keeps
    for layer in layers:
        nn.init.uniform_(layer.scores, -1, 1)
        if ties:  # scores on a grid: several equal the threshold, and biprop prunes them all
            layer.scores.data = (layer.scores.data * steps).round() / steps + 0.001
    update_masks(model)
    scores = [layer.scores.detach().clone().requires_grad_() for layer in layers]
    masks = formulas.global_masks([s.detach() for s in scores], k)
    size = sum(s.numel() for s in scores)
    kept = int(sum(m.sum() for m in masks))
    nominal = size - int((1 - k) * size)
    assert kept < nominal if ties else kept == nominal
    for layer, score, mask in zip(layers, scores, masks, strict=True):
        gain = formulas.global_gain(layer.weight.detach(), mask)
        check(layer, score, mask, gain)


def test_global_rate_1_is_refused_where_biprop_prunes_everything() -> None:
    model = nn.Sequential(ticket(1.0, "global"))
    with pytest.raises(EmptiedLayerError, match="prune_rate of 1"):
        update_masks(model)


def test_a_zero_weight_is_pruned_whatever_its_score() -> None:
    layer = ticket(0.5, "layer", weight_init="bernoulli")
    mask = formulas.layerwise_mask(layer.scores.detach(), 0.5)
    assert torch.equal(layer.sign_code().float(), torch.sign(layer.weight.detach()) * mask)


def test_no_gradient_where_a_score_is_zero() -> None:
    layer = ticket(0.5, "layer")
    with torch.no_grad():
        layer.scores[0] = 0
    layer(torch.randn(2, 12, 8, 8)).sum().backward()
    assert not bool(layer.scores.grad[0].any())


def test_power_one_is_biprop_to_the_bit() -> None:
    """Efficient-MPT's p = 1 is the original: biprop's gradients, with the paper's gain."""
    config = TicketConfig(sparsity=0.5, scope="layer", power=1.0)
    layer = MPTConv2d(12, 16, 3, stride=2, padding=1, config=config)
    scores = layer.scores.detach().clone().requires_grad_()
    mask = formulas.layerwise_mask(scores.detach(), 0.5)
    check(layer, scores, mask, layer.gain())
    kept = layer.weight.detach().abs().double()[mask.bool()]
    assert float(layer.gain()) == kept.mean().float().item()


def test_sign_activation() -> None:
    x = torch.tensor([-2.0, -1, -0.3, 0, 0.3, 1, 2, -0.0]).requires_grad_()
    y = x.detach().clone().requires_grad_()
    mine, theirs = SignActivation()(x), formulas.Sign.apply(y)
    assert torch.equal(mine, theirs)
    seed = torch.arange(1.0, 9.0)
    mine.backward(seed)
    theirs.backward(seed)
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("name", ["conv4", "vgg_small", "resnet18", "resnet20"])
def test_networks_take_its_sign(name: str) -> None:
    config = TicketConfig(compat="biprop")
    model = models.build(name, activation="binary", width=0.125, config=config)
    kinds = {type(m).__name__ for m in model.modules()}
    assert "SignActivation" in kinds
    assert "BinaryActivation" not in kinds
    dense = models.build(name, activation="binary", width=0.125, config=None, compat="biprop")
    kinds = {type(m).__name__ for m in dense.modules()}
    assert "SignActivation" in kinds
    assert "BinaryActivation" not in kinds


def test_small_resnets_have_forty_logits_with_the_position_fastest() -> None:
    torch.manual_seed(0)
    model = models.resnet20(config=TicketConfig(compat="biprop")).eval()
    seen: list[Tensor] = []
    model.layer3.register_forward_hook(lambda m, args, out: seen.append(out))
    x = torch.randn(2, 3, 32, 32)
    answer = model(x)
    assert answer.shape == (2, 40)
    pooled = nn.functional.avg_pool2d(seen[0], 4)  # [2, 64, 2, 2]
    weight = model.fc.effective_weight()[:, :, None, None]
    expected = nn.functional.conv2d(pooled, weight).flatten(1)
    assert torch.allclose(answer, expected, rtol=1e-5, atol=1e-6)
    dense = models.resnet20(config=None, compat="biprop")
    assert dense(x).shape == (2, 40)
    fixed = models.resnet20(config=TicketConfig())
    assert fixed(x).shape == (2, 10)


@pytest.mark.parametrize("field", [{"selection": "sort"}, {"power": 2.0}])
def test_what_biprop_lacks_is_refused(field: dict) -> None:
    with pytest.raises(ValueError, match="compat='biprop' needs"):
        TicketConfig(compat="biprop", **field)


def test_v2_twice_normalises_before_and_after_the_addition() -> None:
    torch.manual_seed(0)
    model = models.imagenet_resnet18(width=0.125, v2="twice", num_classes=5).eval()
    block = model.layer1[0]
    for norm in (block.bn1, block.bn2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 8, 6, 6)
    branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), torch.relu(block.bn2(branch + x)))
    deep = models.imagenet_wide_resnet50(width=0.0625, v2="twice", widen=2.0, num_classes=5)
    assert {"bn3", "bn4"} <= dict(deep.layer1[0].named_children()).keys()
    assert len(list(ticket_layers(deep))) == 54


@pytest.mark.parametrize("name", ["conv2", "resnet20"])
def test_compatible_networks_pack_and_answer_alike(name: str) -> None:
    torch.manual_seed(0)
    config = TicketConfig(scope="layer", compat="biprop", sparsity=0.7)
    options = {"activation": "binary", "config": config, "width": 0.25}
    model = models.build(name, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(std=0.3)
    x = torch.randn(6, 3, 32, 32)
    packed = mpt_fast.pack(model, x[:1])
    expected = model.double()(x.double()).float()
    assert torch.allclose(packed(x), expected, rtol=1e-5, atol=1e-5)
