"""Layer order, shapes, gradients, tracing, twins and errors of the networks, at tiny widths."""

import logging
import math
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from mpt_fast import TicketConfig, models, update_masks
from mpt_fast.nn import BinaryActivation, MaxPool2d, MPTConv2d, MPTLinear, TicketLayer
from mpt_fast.selection import EmptiedLayerError

FAMILIES = [
    ("conv4", {}),
    ("fc", {}),
    ("vgg_small", {"layout": "plain"}),
    ("vgg_small", {"layout": "staged"}),
    ("vgg_small", {"layout": "normed"}),
    ("resnet20", {}),
    ("resnet20", {"v2": True}),
    ("resnet50", {}),
    ("wide_resnet18", {}),
    ("imagenet_resnet18", {}),
    ("imagenet_resnet18", {"v2": True}),
    ("imagenet_wide_resnet50", {"v2": True}),
]
WORDS: dict[type[nn.Module], str] = {
    MPTConv2d: "conv",
    nn.Conv2d: "conv",
    MPTLinear: "linear",
    nn.Linear: "linear",
    nn.BatchNorm2d: "bn",
    nn.BatchNorm1d: "bn",
    nn.ReLU: "relu",
    BinaryActivation: "sign",
    MaxPool2d: "pool",
}


def tiny(name: str, **arguments: Any) -> nn.Module:
    defaults = {"width": 0.125, "in_channels": 1, "image_size": 8, "num_classes": 10}
    torch.manual_seed(0)
    return models.build(name, **{**defaults, **arguments})


def words(module: nn.Module) -> str:
    """The modules of a Sequential in words."""
    return " ".join(WORDS[type(m)] for m in module.children())


def leaves(model: nn.Module) -> list[str]:
    return [WORDS[type(m)] for m in model.modules() if type(m) in WORDS]


class TestLayerOrder:
    def test_conv_float(self) -> None:
        model = tiny("conv4")
        assert words(model.convs) == "conv relu conv relu pool conv relu conv relu pool"
        assert words(model.linear) == "linear relu linear relu linear"

    def test_conv_binary(self) -> None:
        model = tiny("conv2", activation="binary")
        assert words(model.convs) == "conv bn sign conv pool bn sign"
        assert words(model.linear) == "linear bn sign linear bn sign linear"

    def test_fc(self) -> None:
        assert words(tiny("fc").linear) == "linear relu linear relu linear"
        assert words(tiny("fc", activation="binary").linear) == (
            "linear bn sign linear bn sign linear"
        )

    @pytest.mark.parametrize(
        ("name", "arguments", "expected"),
        [
            ("vgg_small", {}, "conv relu conv pool bn conv conv pool bn conv conv pool bn relu"),
            (
                "vgg_small",
                {"activation": "binary"},
                "conv sign conv pool bn sign conv sign conv pool bn sign "
                "conv sign conv pool bn relu",
            ),
            (
                "wide_vgg_small",
                {"activation": "binary"},
                "conv bn sign conv pool bn sign conv bn sign conv pool bn sign "
                "conv bn sign conv pool bn relu",
            ),
            (
                "wide_vgg_small",
                {},
                "conv bn relu conv pool bn relu conv bn relu conv pool bn relu "
                "conv bn relu conv pool bn relu",
            ),
        ],
    )
    def test_vgg(self, name: str, arguments: dict[str, Any], expected: str) -> None:
        model = tiny(name, **arguments)
        assert words(model.convs) == expected
        assert words(model.linear) == "linear"

    @pytest.mark.parametrize("v2", [False, True])
    @pytest.mark.parametrize("activation", ["relu", "binary"])
    def test_basic_block_formula(self, activation: str, v2: bool) -> None:
        # In float64 sums of +-gain are exact: a sum of 0 is 0 whatever the order of addition.
        model = tiny("resnet18", activation=activation, v2=v2).double().eval()
        act = torch.relu if activation == "relu" else (lambda v: 2.0 * (v >= 0).double() - 1.0)
        x = torch.randn(2, 8, 8, 8).sign().double()
        for block in (model.layer1[0], model.layer2[0]):
            short = x if block is model.layer1[0] else block.shortcut[1](block.shortcut[0](x))
            branch = block.conv2(act(block.bn1(block.conv1(x))))
            total = block.bn2(branch + short) if v2 else block.bn2(branch) + short
            torch.testing.assert_close(block(x), act(total), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("v2", [False, True])
    def test_bottleneck_formula(self, v2: bool) -> None:
        model = tiny("resnet50", v2=v2).double().eval()
        block, x = model.layer2[0], torch.randn(2, 32, 8, 8).double()
        out = torch.relu(block.bn1(block.conv1(x)))
        out = block.conv3(torch.relu(block.bn2(block.conv2(out))))
        assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
        short = block.shortcut[1](block.shortcut[0](x))
        total = block.bn3(out + short) if v2 else block.bn3(out) + short
        torch.testing.assert_close(block(x), torch.relu(total), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(("v2", "order"), [(False, "norm first"), (True, "pool first")])
    def test_imagenet_stem(self, v2: bool, order: str) -> None:
        model = tiny("imagenet_resnet18", config=None, v2=v2, image_size=32).double().eval()
        nn.init.constant_(model.bn1.weight, -1.0)  # a negative slope tells the orders apart
        captured: list[Tensor] = []
        model.layer1.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
        x = torch.randn(2, 1, 32, 32).double()
        model(x)
        out = model.conv1(x)
        assert out.shape[-2:] == (16, 16)
        out = (
            model.maxpool(model.bn1(out))
            if order == "norm first"
            else model.bn1(model.maxpool(out))
        )
        torch.testing.assert_close(captured[0], torch.relu(out), rtol=1e-12, atol=1e-12)
        assert captured[0].shape[-2:] == (8, 8)

    def test_small_resnet_pools_globally(self) -> None:
        """The original pools 8x8 maps by 4 and returns 40 numbers."""
        assert tiny("resnet20", in_channels=3, image_size=32)(torch.randn(2, 3, 32, 32)).shape == (
            2,
            10,
        )


class TestShapes:
    @pytest.mark.parametrize("activation", ["relu", "binary"])
    @pytest.mark.parametrize("name", models.NAMES)
    def test_every_network(self, name: str, activation: str) -> None:
        model = tiny(name, activation=activation, width=0.0625, num_classes=7)
        assert model(torch.randn(2, 1, 8, 8)).shape == (2, 7)

    @pytest.mark.parametrize("size", [8, 28, 32, (9, 13)])
    @pytest.mark.parametrize("name", ["conv2", "conv8", "fc", "vgg_small", "resnet18"])
    def test_image_sizes(self, name: str, size: int | tuple[int, int]) -> None:
        model = tiny(name, width=0.05, activation="binary", image_size=size)
        height, width = (size, size) if isinstance(size, int) else size
        assert model(torch.randn(2, 1, height, width)).shape == (2, 10)

    def test_one_image_keeps_its_batch(self) -> None:
        assert tiny("conv2").eval()(torch.randn(1, 1, 8, 8)).shape == (1, 10)

    def test_pools_stop_at_one_pixel(self) -> None:
        convs = tiny("conv8").convs
        assert sum(isinstance(m, MaxPool2d) for m in convs) == 3
        assert isinstance(convs[19], nn.Identity)  # positions stay those of larger images


class TestTraining:
    @pytest.mark.parametrize("activation", ["relu", "binary"])
    @pytest.mark.parametrize(("name", "arguments"), FAMILIES)
    def test_a_step_moves_scores_only(
        self, name: str, arguments: dict[str, Any], activation: str
    ) -> None:
        model = tiny(name, activation=activation, **arguments)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert trained
        assert all(n.endswith(".scores") for n in trained)
        frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        optimizer = torch.optim.SGD(trained.values(), lr=0.1)
        logits = model(torch.randn(4, 1, 8, 8))
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        for key, parameter in trained.items():
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
        assert sum(bool(p.grad.any()) for p in trained.values()) > len(trained) // 2
        optimizer.step()
        now = dict(model.named_parameters())
        assert all(torch.equal(now[n], p) for n, p in frozen.items())

    @pytest.mark.parametrize(("name", "arguments"), FAMILIES)
    def test_dense_step_moves_every_weight(self, name: str, arguments: dict[str, Any]) -> None:
        model = tiny(name, config=None, width=0.25, **arguments)
        assert all(p.requires_grad for p in model.parameters())
        before = [p.clone() for p in model.parameters() if p.dim() > 1]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        logits = model(torch.randn(4, 1, 8, 8))
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        optimizer.step()
        after = [p for p in model.parameters() if p.dim() > 1]
        assert all(torch.isfinite(p).all() for p in after)
        assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))

    def test_batch_norm_kinds(self) -> None:
        def affine(**arguments: Any) -> set[bool]:
            model = tiny("conv2", activation="binary", **arguments)
            norms = (nn.BatchNorm1d, nn.BatchNorm2d)
            return {m.affine for m in model.modules() if isinstance(m, norms)}

        assert affine() == {False}
        assert affine(bn="affine") == {True}
        assert affine(config=None) == {True}
        assert affine(config=None, bn="frozen") == {False}


class TestMasks:
    def test_global_scope_is_one_threshold(self) -> None:
        model = tiny("vgg_small", config=TicketConfig(sparsity=0.5))
        layers = [m for m in model.modules() if isinstance(m, TicketLayer)]
        assert len({float(layer.threshold) for layer in layers}) == 1
        total = sum(layer.weight.numel() for layer in layers)
        kept = sum(int(layer.mask().sum()) for layer in layers)
        assert kept == total - int(0.5 * total)

    def test_layer_scope_prunes_each(self) -> None:
        model = tiny("vgg_small", config=TicketConfig(sparsity=0.9, scope="layer"))
        for layer in (m for m in model.modules() if isinstance(m, TicketLayer)):
            n = layer.weight.numel()
            assert int(layer.mask().sum()) == n - int(0.9 * n)

    def test_a_threshold_that_empties_a_layer_waits_for_training(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "mpt_fast.models"):
            model = tiny("vgg_small", in_channels=3, config=TicketConfig(sparsity=0.97), width=0.5)
        assert "keeps its layerwise masks" in caplog.text
        for layer in (m for m in model.modules() if isinstance(m, TicketLayer)):
            n = layer.weight.numel()
            assert int(layer.mask().sum()) == n - int(0.97 * n)
        with pytest.raises(EmptiedLayerError):
            update_masks(model)

    def test_seed_decides_everything(self) -> None:
        one, two = tiny("resnet20").state_dict(), tiny("resnet20").state_dict()
        assert all(torch.equal(value, two[key]) for key, value in one.items())


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, TicketLayer | BinaryActivation | MaxPool2d)
        return ours or super().is_leaf_module(m, module_qualified_name)


class TestTracing:
    LAYERS = (*WORDS, nn.AdaptiveAvgPool2d, nn.Identity)
    FUNCTIONS = (torch.flatten, operator.add)

    @pytest.mark.parametrize("activation", ["relu", "binary"])
    @pytest.mark.parametrize(("name", "arguments"), FAMILIES)
    def test_ticket_uses_the_known_vocabulary(
        self, name: str, arguments: dict[str, Any], activation: str
    ) -> None:
        model = tiny(name, activation=activation, **arguments).double().eval()
        traced = fx.GraphModule(model, _Tracer().trace(model))
        for node in traced.graph.nodes:
            if node.op == "call_module":
                assert type(traced.get_submodule(node.target)) in self.LAYERS
            elif node.op == "call_function":
                assert node.target in self.FUNCTIONS
            else:
                assert node.op in ("placeholder", "output")
        x = torch.randn(3, 1, 8, 8).double()
        torch.testing.assert_close(traced(x), model(x), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(("name", "arguments"), FAMILIES)
    def test_dense_traces_with_plain_fx(self, name: str, arguments: dict[str, Any]) -> None:
        model = tiny(name, config=None, **arguments).double().eval()
        x = torch.randn(3, 1, 8, 8).double()
        traced = fx.symbolic_trace(model)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-12, atol=1e-12)


class TestDenseTwin:
    @pytest.mark.parametrize("activation", ["relu", "binary"])
    @pytest.mark.parametrize(
        ("name", "arguments"),
        [(n, {}) for n in models.NAMES if n not in ("resnet101", "imagenet_resnet101")]
        + [("vgg_small", {"layout": "normed"}), ("resnet18", {"v2": True})],
    )
    def test_same_layers_and_shapes(
        self, name: str, arguments: dict[str, Any], activation: str
    ) -> None:
        shape = {"width": 0.0625, "in_channels": 1, "image_size": 8, "num_classes": 10}
        ticket = models.build(name, activation=activation, **shape, **arguments)
        twin = models.dense_twin(name, activation=activation, **shape, **arguments)
        assert leaves(twin) == [{"sign": "relu"}.get(word, word) for word in leaves(ticket)]
        shapes = [m.weight.shape for m in ticket.modules() if isinstance(m, TicketLayer)]
        assert [p.shape for p in twin.parameters() if p.dim() > 1] == shapes
        x = torch.randn(2, 1, 8, 8)
        assert torch.isfinite(twin(x)).all()
        assert not any(isinstance(m, TicketLayer | BinaryActivation) for m in twin.modules())

    def test_ticket_arguments_do_not_leak(self) -> None:
        twin = models.dense_twin("conv2", config=TicketConfig(0.9), bn="frozen", width=0.1)
        assert all(p.requires_grad for p in twin.parameters())
        norms = [m for m in models.dense_twin("conv2", activation="binary", bn="frozen",
                 width=0.1).modules() if isinstance(m, nn.BatchNorm2d)]  # fmt: skip
        assert norms
        assert all(m.affine for m in norms)

    @pytest.mark.parametrize("name", ["conv2", "fc"])
    def test_kaiming_normal_fan_in(self, name: str) -> None:
        torch.manual_seed(1)
        weight = max(models.build(name, config=None).parameters(), key=torch.numel).detach()
        n, fan = weight.numel(), weight[0].numel()
        std = math.sqrt(2 / fan)
        # 5 deviations: of a mean of n normals, and of their standard deviation.
        assert abs(float(weight.mean())) < 5 * std / math.sqrt(n)
        assert abs(float(weight.std()) / std - 1) < 5 / math.sqrt(2 * n)
        tail = float((weight.abs() > 2 * std).float().mean())
        assert abs(tail - 0.0455) < 5 * math.sqrt(0.0455 / n)


class TestNamesAndErrors:
    def test_every_name_is_a_function(self) -> None:
        assert models.names() == models.NAMES
        assert len(set(models.NAMES)) == len(models.NAMES)
        for name in models.NAMES:
            assert getattr(models, name).__name__ == name
            assert getattr(models, name).__doc__
            assert name in models.__all__

    def test_option_names(self) -> None:
        common = {"num_classes", "in_channels", "activation", "width", "config", "bn"}
        common |= {"image_size", "compat"}
        assert set(models.option_names("conv4")) == common | {"layout"}
        assert set(models.option_names("wide_resnet18")) == common | {"v2", "widen"}
        for name in models.NAMES:
            assert common <= set(models.option_names(name))

    def test_functions_take_the_first_two_by_position(self) -> None:
        assert models.conv2(7, 1, width=0.1)(torch.randn(2, 1, 32, 32)).shape == (2, 7)

    @pytest.mark.parametrize("call", [models.build, models.dense_twin, models.option_names])
    def test_unknown_name_lists_close_ones(self, call: Any) -> None:
        with pytest.raises(ValueError, match=r"unknown model 'resnet81'; did you mean .*resnet18"):
            call("resnet81")

    def test_nothing_close_lists_all(self) -> None:
        with pytest.raises(ValueError, match=r"unknown model 'xyzzy'; known are conv2, .*, fc"):
            models.build("xyzzy")

    def test_unknown_argument(self) -> None:
        with pytest.raises(
            TypeError, match=r"unknown argument of conv4 'widht'; did you mean width"
        ):
            models.build("conv4", widht=2)
        with pytest.raises(TypeError, match="unknown argument of resnet18 'layout'"):
            models.build("resnet18", layout="plain")

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                {"activation": "tanh"},
                ValueError,
                "activation must be 'relu' or 'binary', got 'tanh'",
            ),
            ({"bn": "none"}, ValueError, "bn must be 'affine', 'frozen' or None, got 'none'"),
            ({"width": 0}, ValueError, "width must be finite and above 0, got 0"),
            ({"width": float("nan")}, ValueError, "width must be finite and above 0, got nan"),
            ({"width": "2"}, TypeError, "width must be a number above 0, got '2'"),
            ({"width": 0.001}, ValueError, "width 0.001 leaves no channel of 64; raise it"),
            (
                {"config": 0.5},
                TypeError,
                r"config must be a TicketConfig or None \(dense\), got float",
            ),
            ({"image_size": 0}, ValueError, "image_size must be at least 1, got 0"),
            ({"image_size": (8, 8, 8)}, ValueError, r"image_size must be one number or \(height"),
            ({"image_size": 8.0}, TypeError, "image_size must be one number or"),
            ({"image_size": (8, 8.5)}, TypeError, "image_size must be an int, got 8.5"),
            ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
            ({"num_classes": 1.5}, TypeError, "num_classes must be an int, got 1.5"),
            ({"in_channels": -1}, ValueError, "in_channels must be at least 1, got -1"),
        ],
    )
    @pytest.mark.parametrize("name", ["conv2", "resnet18"])
    def test_bad_argument(
        self, name: str, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            tiny(name, **arguments)

    def test_bad_layout_and_widen(self) -> None:
        with pytest.raises(
            ValueError, match="layout must be one of plain, normed or None, got 'v1'"
        ):
            tiny("conv2", layout="v1")
        with pytest.raises(ValueError, match="layout must be one of plain, staged, normed or None"):
            tiny("vgg_small", layout="v1")
        with pytest.raises(ValueError, match="widen must be finite and above 0, got -1"):
            tiny("wide_resnet18", widen=-1)
        with pytest.raises(TypeError, match="widen must be a number above 0, got 'x'"):
            tiny("wide_resnet18", widen="x")
        with pytest.raises(ValueError, match="activation must be"):
            models.dense_twin("conv2", activation="tanh")


class TestSparseTrainingNetworks:
    def test_wrn_dropout_and_depths(self) -> None:
        found = models.wrn(22, 1, config=None, dropout=0.3)
        assert [len(group) for group in (found.group1, found.group2, found.group3)] == [3, 3, 3]
        assert [m.p for m in found.modules() if isinstance(m, nn.Dropout)] == [0.3] * 9
        with pytest.raises(ValueError, match="depth must be 6 n"):
            models.wrn(20, 1)
        with pytest.raises(ValueError, match="dropout must lie in"):
            models.wrn(10, 1, dropout=1.0)

    def test_wrn_shortcuts_see_the_activation_where_the_shape_changes(self) -> None:
        block = models.wrn10_1(config=None, in_channels=1).eval().group2[0].double()
        x = torch.randn(2, 16, 6, 6).double()
        inner = torch.relu(block.bn1(x))
        branch = block.conv2(torch.relu(block.bn2(block.conv1(inner))))
        torch.testing.assert_close(block(x), branch + block.shortcut(inner))

    def test_mobilenet_alternates_depthwise_and_pointwise(self) -> None:
        convs = [m for m in models.mobilenet_v1(config=None, width=0.25).modules()
                 if isinstance(m, nn.Conv2d)]  # fmt: skip
        assert len(convs) == 27
        assert all(m.groups == m.in_channels == m.out_channels for m in convs[1::2])
        assert all(m.kernel_size == (1, 1) and m.groups == 1 for m in convs[2::2])
        assert [m.stride[0] for m in convs[1::2]] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]

    def test_lenet_has_biases_that_start_at_zero(self) -> None:
        biases = [m.bias for m in models.lenet_300_100(config=None).modules()
                  if isinstance(m, nn.Linear)]  # fmt: skip
        assert [len(b) for b in biases] == [300, 100, 10]
        assert not any(b.any() for b in biases)
