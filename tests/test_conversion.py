"""convert: what is swapped, what is kept, what comes back."""

import logging
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import nn

import mpt_fast as mpt
from mpt_fast.nn import MPTConv2d, MPTLinear, TicketLayer
from mpt_fast.selection import realised_sparsity, ticket_layers

CONFIG = mpt.TicketConfig(sparsity=0.6)


class Block(nn.Module):
    """A tree with attributes, containers, a shared module and a subclass."""

    class OwnLinear(nn.Linear):
        """Left alone unless asked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, "valid", bias=False)
        self.stages = nn.ModuleList(
            [nn.Conv2d(8, 8, (3, 1), padding=(1, 0), dilation=1, groups=4), nn.Identity()]
        )
        self.norms = nn.ModuleDict({"a": nn.BatchNorm2d(8)})
        self.shared = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.again = self.shared
        self.absent = None
        self.register_module("nothing", None)
        self.own = self.OwnLinear(8, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norms["a"](self.stages[0](self.stem(x))).relu()
        x = self.again(self.shared(x)).mean((2, 3))
        return self.head(self.own(x))


def test_swaps_in_place_and_keeps_geometry() -> None:
    model = Block()
    names = [name for name, _ in model.named_modules()]
    assert mpt.convert(model, CONFIG) is model
    assert [name for name, _ in model.named_modules()] == names
    stage = model.stages[0]
    assert isinstance(model.stem, MPTConv2d)
    assert isinstance(stage, MPTConv2d)
    assert isinstance(model.head, MPTLinear)
    assert type(model.own) is Block.OwnLinear
    assert (model.stem.stride, model.stem.padding, model.stem.bias) == ((2, 2), "valid", None)
    assert (stage.kernel_size, stage.padding, stage.groups) == ((3, 1), (1, 0), 4)
    assert model.shared is model.again
    assert isinstance(model.shared, MPTConv2d)
    assert model.shared.padding_mode == "circular"
    assert {layer.config for layer in ticket_layers(model).values()} == {CONFIG}
    report = realised_sparsity(model)
    assert report.kept == report.size - int(0.6 * report.size)
    assert list(report.layers) == ["stem", "stages.0", "shared", "head"]
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    assert model.stem.scores.grad is not None


def test_shared_twice_in_one_parent() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    mpt.convert(model, CONFIG)
    assert model[0] is model[2]
    assert isinstance(model[0], MPTLinear)


def test_layers_that_share_a_weight_share_the_ticket() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    mpt.convert(model, CONFIG)
    left, right = model
    assert isinstance(left, MPTLinear)
    assert isinstance(right, MPTLinear)
    assert left.scores is right.scores
    assert left.weight is right.weight
    assert torch.equal(left.effective_weight(), right.effective_weight())
    assert right.bias is not None
    assert int(left.kept) == 16 - int(0.6 * 16)


@pytest.mark.parametrize("weights", ["init", "keep"])
def test_weights_are_drawn_or_kept(weights: Any) -> None:
    model = Block()
    before = model.stem.weight.detach().clone()
    bias = model.shared.bias
    assert bias is not None
    values = bias.detach().clone()
    config = mpt.TicketConfig(sparsity=0.6, weight_init="ones")
    mpt.convert(model, config, weights=weights)
    want = before if weights == "keep" else torch.ones_like(before)
    assert torch.equal(model.stem.weight, want)
    assert not model.stem.weight.requires_grad
    assert isinstance(model.stem, MPTConv2d)
    gain = want.abs()[model.stem.mask()].mean().item()
    assert model.stem.gain().item() == pytest.approx(gain, rel=1e-6)
    assert model.shared.bias is not None
    assert torch.equal(model.shared.bias, values)
    assert model.shared.bias.requires_grad


def test_kept_weights_at_sparsity_zero_are_the_binarised_network() -> None:
    dense = nn.Conv2d(3, 4, 3)
    ticket = mpt.convert(dense, mpt.TicketConfig(sparsity=0), weights="keep")
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        dense.weight.copy_(dense.weight.sign() * dense.weight.abs().mean())
    assert_close(ticket(x), dense(x), 1e-6)


def test_filter_sees_modules_and_qualified_names() -> None:
    seen = []

    def choose(module: nn.Module, name: str) -> bool:
        seen.append((type(module).__name__, name))
        return name != "stages.0"

    model = mpt.convert(Block(), CONFIG, choose)
    assert seen == [
        ("Conv2d", "stem"),
        ("Conv2d", "stages.0"),
        ("Conv2d", "shared"),
        ("Linear", "head"),
    ]
    assert list(ticket_layers(model)) == ["stem", "shared", "head"]


def test_subclasses_when_asked() -> None:
    model = mpt.convert(Block(), CONFIG, subclasses=True)
    assert "own" in ticket_layers(model)


def test_a_root_that_is_a_layer_comes_back_new() -> None:
    root = nn.Linear(5, 3)
    layer = mpt.convert(root, CONFIG)
    assert isinstance(layer, MPTLinear)
    assert layer.bias is not None
    assert torch.equal(layer.bias, root.bias)
    assert type(root) is nn.Linear


def test_dtype_training_flag_and_memory_format() -> None:
    model = Block().double().eval().to(memory_format=torch.channels_last)
    model.shared.bias.requires_grad_(False)
    mpt.convert(model, CONFIG)
    for layer in ticket_layers(model).values():
        assert layer.weight.dtype == layer.scores.dtype == torch.float64
        assert not layer.training
    assert model.shared.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.shared.bias is not None
    assert not model.shared.bias.requires_grad
    assert model(torch.randn(1, 3, 9, 9, dtype=torch.float64)).dtype == torch.float64
    meta = mpt.convert(nn.Linear(3, 3, device="meta"), CONFIG, lambda *_: False)
    assert type(meta) is nn.Linear


def test_converting_twice_changes_nothing() -> None:
    model = mpt.convert(Block(), CONFIG)
    before = ticket_layers(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    mpt.convert(model, CONFIG)
    assert all(ticket_layers(model)[name] is layer for name, layer in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_default_config() -> None:
    layer = mpt.convert(nn.Linear(4, 4))
    assert isinstance(layer, TicketLayer)
    assert layer.config == mpt.TicketConfig()


def test_a_sparsity_that_empties_an_untrained_layer_warns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(2, 50), nn.Linear(2000, 3))
    with caplog.at_level(logging.WARNING, "mpt_fast"):
        mpt.convert(model, mpt.TicketConfig(sparsity=0.99))
    assert "layer '1' keeps no weight" in caplog.text
    assert realised_sparsity(model).layers["1"] == pytest.approx(0.99)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"convert takes an nn\.Module, got OrderedDict"):
        mpt.convert(Block().state_dict(), CONFIG)
    with pytest.raises(ValueError, match="weights must be 'init' or 'keep', got 'random'"):
        mpt.convert(Block(), CONFIG, weights="random")  # type: ignore[arg-type]  # error tested
    with pytest.raises(TypeError, match="config must be a TicketConfig, got float"):
        mpt.convert(Block(), 0.5)  # type: ignore[arg-type]  # the error is tested
