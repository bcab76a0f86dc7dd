"""Geometries, fusions and ways to write a network, each packed and equal to eager in float64."""

from collections.abc import Callable

import pytest
import torch
from packed_checks import LAYERWISE, assert_same, check, eager, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import mpt_fast as mpt
from mpt_fast.kernels.binary_activation import binary_activation

BN = nn.BatchNorm2d


def ticket(*args: int, **options: object) -> mpt.MPTConv2d:
    return mpt.MPTConv2d(*args, config=LAYERWISE, **options)  # type: ignore[arg-type]  # any option


class Network(nn.Module):
    """`function(self, x)` as a forward, over the modules given."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def operations(packed: mpt.packed.PackedModel) -> list[str]:
    return [step.operations for step in packed.plan().steps]


GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 0},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 5, "padding": 2, "stride": 3},
    {"kernel_size": (3, 1), "padding": (1, 0), "stride": (1, 2)},
    {"kernel_size": (2, 4), "padding": (2, 3)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "dilation": (1, 3), "padding": (0, 4)},
    {"kernel_size": 3, "padding": 1, "groups": 4},
    {"kernel_size": 3, "padding": 1, "groups": 8},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 2, "padding": "valid"},
    {"kernel_size": 3, "padding": 1, "bias": True},
    {"kernel_size": 9, "padding": 5},
]


@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=str)
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("kind", ["bits", "float", "both"])
def test_convolution_geometry(
    kind: str, options: dict[str, object], size: tuple[int, int], backend: str
) -> None:
    conv = ticket(8, 8, **options)
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    stem = [BN(8), mpt.BinaryActivation()] if kind != "float" else []
    tail = [BN(8), mpt.BinaryActivation()] if kind == "both" else [BN(8)]
    model = randomise(nn.Sequential(*stem, conv, *tail))
    check(model, torch.randn(5, 8, *size), backend)


@pytest.mark.parametrize(
    ("layers", "fused"),
    [
        ([BN(6), "sign"], ["conv + bn + sign"]),
        ([nn.MaxPool2d(2), BN(6), "sign"], ["conv + bn + sign", "max pool"]),
        ([BN(6), nn.MaxPool2d(2), "sign"], ["conv + bn + sign", "max pool"]),
        ([BN(6), nn.MaxPool2d(2), BN(6), "sign"], ["conv + bn + bn + sign", "max pool"]),
        (
            [nn.MaxPool2d(2), nn.MaxPool2d(2), BN(6), "sign"],
            ["conv + bn + sign", *["max pool"] * 2],
        ),
        (["sign", nn.MaxPool2d(3, 2, 1)], ["conv + sign", "max pool"]),
        ([nn.MaxPool2d(3, 2, 1), BN(6), "sign"], ["conv + bn + sign", "max pool"]),
        ([nn.MaxPool2d(3, 2, 0, ceil_mode=True), BN(6), "sign"], ["conv + bn + sign", "max pool"]),
        ([nn.MaxPool2d((2, 3), (1, 2)), "sign"], ["conv + sign", "max pool"]),
        ([BN(6), nn.ReLU(), BN(6), "sign"], ["conv", "scale + bn + relu", "bn + sign"]),
        ([nn.AvgPool2d(2), BN(6), "sign"], ["conv", "scale", "average pool", "bn + sign"]),
        ([nn.MaxPool2d(2), BN(6), nn.ReLU()], ["conv", "max pool", "scale + max pool + bn + relu"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("first", ["bits", "float"])
def test_fusion_up_to_the_sign(
    first: str, layers: list[nn.Module | str], fused: list[str], backend: str
) -> None:
    body = [mpt.BinaryActivation() if layer == "sign" else layer for layer in layers]
    stem = [BN(4), mpt.BinaryActivation()] if first == "bits" else []
    model = randomise(nn.Sequential(*stem, ticket(4, 6, 3, padding=1), *body))
    packed = check(model, torch.randn(6, 4, 11, 10), backend)
    if first == "bits":
        assert operations(packed) == ["bn + sign", *fused]


def test_signs_of_every_slope(backend: str) -> None:
    """Slopes 0, tiny, huge and of both signs, shifts on every side of the sums' range."""
    norm = BN(9)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, 0.0, -0.0, 1e-30, -1e-30, 1e9, -1e9, 1.0, -1.0]))
        norm.bias.copy_(torch.tensor([1.0, -1.0, 0.0, 1e-30, 0.0, -1e9, 1e9, 0.0, 0.0]))
    sign = mpt.BinaryActivation()
    model = nn.Sequential(sign, ticket(5, 9, 3, padding=1), nn.MaxPool2d(2), norm, sign)
    check(model, torch.randn(8, 5, 6, 6), backend)


def test_sums_on_the_threshold_decide_as_eager(backend: str) -> None:
    """Running means that are exactly a sum times the gain: the last bit decides."""
    conv = ticket(8, 16, 3, padding=1)
    norm = BN(16)
    assert norm.running_mean is not None
    norm.running_mean.copy_(conv.gain() * torch.arange(-8, 8))
    nn.init.normal_(norm.weight)
    model = nn.Sequential(mpt.BinaryActivation(), conv, norm, mpt.BinaryActivation())
    check(model, torch.randn(16, 8, 9, 9), backend)


RESIDUALS: dict[str, Callable[..., Tensor]] = {
    "identity": lambda s, x: s.act(s.bn(s.conv(x)) + x),
    "identity first": lambda s, x: s.act(torch.add(x, s.bn(s.conv(x)))),
    "normed shortcut": lambda s, x: s.act(s.bn(s.conv(x)) + s.bn2(x)),
    "norm after": lambda s, x: s.act(s.bn(s.conv(x) + x)),
    "two convolutions": lambda s, x: s.act(s.bn(s.conv(x)) + s.bn2(s.conv2(x))),
    "twice": lambda s, x: s.act(s.bn(s.conv(x)) + x + s.bn2(s.conv2(x))),
    "pooled": lambda s, x: s.act(F.max_pool2d(s.bn(s.conv(x)) + x, 2)),
    "shared sums": lambda s, x: (lambda y: s.act(s.bn(y)) + s.act(s.bn2(y)))(s.conv(x)),
    "shared norm": lambda s, x: (lambda y: s.act(y) + y)(s.bn(s.conv(x))),
    "scaled": lambda s, x: s.act(s.bn(s.conv(x)) * 0.5 - x / 3 + 0.25),
    "alpha": lambda s, x: s.act(torch.add(s.bn(s.conv(x)), x, alpha=-2)),
    "itself": lambda s, x: s.act((lambda y: y + y)(s.bn(s.conv(x)))),
    "into pool": lambda s, x: F.avg_pool2d(s.bn(s.conv(x)) + x, 2),
    "real shortcut": lambda s, x: s.act(s.bn(s.conv(x)) + s.bn2(x).relu()),
    "of relu": lambda s, x: F.relu(s.bn(s.conv(x)) + F.relu(s.bn2(s.conv2(x)))),
    "pre-activation": lambda s, x: (lambda y: s.conv2(s.act(s.bn2(y))) + y)(s.conv(x) + x),
}


@pytest.mark.parametrize("act", [mpt.BinaryActivation(), nn.ReLU()], ids=["sign", "relu"])
@pytest.mark.parametrize("stem", ["bits", "float"])
@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals(name: str, stem: str, act: nn.Module, backend: str) -> None:
    block = Network(
        RESIDUALS[name],
        conv=ticket(6, 6, 3, padding=1),
        conv2=ticket(6, 6, 1),
        bn=BN(6),
        bn2=BN(6),
        act=act,
    )
    first = mpt.BinaryActivation() if stem == "bits" else nn.ReLU()
    model = randomise(nn.Sequential(BN(6), first, block, nn.Flatten()), seed=3)
    check(model, torch.randn(7, 6, 6, 8), backend)


SPELLINGS: dict[str, Callable[..., Tensor]] = {
    "functions": lambda s, x: F.linear(
        torch.flatten(F.max_pool2d(F.relu(s.conv(x)), (1, 2)), 1), s.head2.weight[:, :192]
    ),
    "view": lambda s, x: s.head2(s.conv(x).view(x.size(0), -1)),
    "view of shape": lambda s, x: s.head2(s.conv(x).view(x.shape[0], -1)),
    "view of minus one": lambda s, x: s.head2(torch.relu(s.conv(x)).reshape(-1, 6 * 8 * 8)),
    "flatten": lambda s, x: s.head2(s.conv(x).flatten(1)),
    "pool by size": lambda s, x: s.head3(
        F.avg_pool2d(s.conv(x), s.conv(x).size()[3]).view(x.size(0), -1)
    ),
    "mean": lambda s, x: s.head3(s.conv(x).mean((2, 3))),
    "mean kept": lambda s, x: s.head3(s.conv(x).mean([-1, -2], keepdim=True).flatten(1)),
    "squeeze": lambda s, x: s.head3(F.adaptive_avg_pool2d(s.conv(x), 1).squeeze(-1).squeeze(-1)),
    "adaptive": lambda s, x: F.adaptive_avg_pool2d(s.conv(x), (2, 4)),
    "in place": lambda s, x: F.relu(s.conv(x), inplace=True).add_(1.0).mul_(2.0),
    "dropout": lambda s, x: s.head2(F.dropout(s.conv(x), 0.5, s.training).flatten(1)),
    "binary function": lambda s, x: binary_activation(s.conv(x)),
    "negated": lambda s, x: -s.conv(x) - 1.0,
    "per channel": lambda s, x: (
        s.conv(x) * s.factor.view(1, -1, 1, 1) + s.factor[None, :, None, None]
    ),
    "batch norm": lambda s, x: F.batch_norm(s.conv(x), s.factor, s.factor.abs() + 0.1),
    "conv function": lambda s, x: F.conv2d(x, torch.sign(s.dense.weight) * 0.5, padding=1),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str, backend: str) -> None:
    model = Network(
        SPELLINGS[name],
        conv=ticket(3, 6, 3, padding=1),
        dense=nn.Conv2d(3, 6, 3),
        head2=nn.Linear(6 * 8 * 8, 5),
        head3=mpt.MPTLinear(6, 5, config=LAYERWISE, bias=True),
    )
    model.register_parameter("factor", nn.Parameter(torch.randn(6)))
    check(model, torch.randn(4, 3, 8, 8), backend)


def test_in_place_changes_are_seen_by_later_readers(backend: str) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.conv(x)
        view = y.view(y.size(0), 6, 8, 8)
        self.relu(y)
        return view + y

    model = Network(forward, conv=ticket(3, 6, 3, padding=1), relu=nn.ReLU(inplace=True))
    packed = check(model, torch.randn(4, 3, 8, 8), backend)
    assert any("relu" in name for name in operations(packed))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True)], ids=str)
@pytest.mark.parametrize("include", [True, False])
def test_average_pools(pool: nn.AvgPool2d, include: bool, backend: str) -> None:
    pool.count_include_pad = include
    model = nn.Sequential(ticket(2, 4, 3), pool, nn.AvgPool2d(2, divisor_override=3))
    check(model, torch.randn(3, 2, 13, 12), backend)


@pytest.mark.parametrize("features", [1, 17])
def test_vectors_as_input(features: int, backend: str) -> None:
    model = nn.Sequential(
        mpt.MPTLinear(features, 33, config=LAYERWISE),
        nn.BatchNorm1d(33),
        mpt.BinaryActivation(),
        nn.Linear(33, 4),
    )
    packed = check(randomise(model), torch.randn(70, features), backend)
    assert packed.input_shape == (features,)


def test_a_single_layer_and_a_single_channel(backend: str) -> None:
    check(nn.Conv2d(1, 1, 1), torch.randn(2, 1, 1, 1), backend)
    check(nn.Linear(3, 1), torch.randn(2, 3), backend)
    check(mpt.BinaryActivation(), torch.randn(2, 3, 4, 4), backend)


def test_signs_are_equal_plane_by_plane(backend: str) -> None:
    """The +-1 maps themselves, at every depth."""
    sign = mpt.BinaryActivation
    layers = [ticket(3, 16, 3, padding=1), BN(16), sign(), ticket(16, 24, 3, stride=2), BN(24)]
    layers += [nn.MaxPool2d(2), sign(), ticket(24, 8, 3, padding=2), BN(8), sign()]
    model = randomise(nn.Sequential(*layers))
    x = torch.randn(66, 3, 15, 14)
    for depth in (3, 7, 10):
        packed = mpt.pack(model[:depth], x, backend=backend)
        assert torch.equal(packed(x).double(), eager(model[:depth], x))


def test_strict_sign_is_accepted_where_no_sum_is_zero(backend: str) -> None:
    norm = BN(6)
    nn.init.constant_(norm.bias, 0.3)
    conv = ticket(4, 6, 3, padding=1)
    model = Network(
        lambda s, x: torch.sign(s.norm(s.conv(s.act(x)))),
        norm=norm,
        conv=conv,
        act=mpt.BinaryActivation(),
    )
    check(model, torch.randn(5, 4, 6, 6), backend)


def test_threads_do_not_change_the_result(backend: str) -> None:
    model = randomise(nn.Sequential(BN(4), mpt.BinaryActivation(), ticket(4, 8, 3), BN(8)))
    x = torch.randn(150, 4, 9, 9)
    one, two = (mpt.pack(model, x, backend=backend, threads=threads)(x) for threads in (1, 2))
    assert torch.equal(one, two)
    assert_same(mpt.pack(model, x, backend=backend, threads=2), model, x)
