"""What the engine has no step for runs in PyTorch, is named, and keeps the model from a file."""

from pathlib import Path

import pytest
import torch
from packed_checks import LAYERWISE, assert_same, eager, randomise
from torch import Tensor, nn

import mpt_fast as mpt
from mpt_fast.packed import PackedModel, PackError


def conv(inputs: int, outputs: int) -> nn.Module:
    return mpt.MPTConv2d(inputs, outputs, 3, padding=1, config=LAYERWISE)


class Chooser(nn.Module):
    """Python that torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x - 1


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.PReLU(), conv(4, 4))
        self.norm = nn.BatchNorm2d(4)
        self.act = mpt.BinaryActivation()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.body(x) + x))


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(3, 2), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x).relu(), self.b(x)], 1))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 4), conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * torch.sigmoid(self.b(x))


def unsupported(packed: PackedModel) -> list[tuple[str, str]]:
    return [(step.layer, step.operations) for step in packed.plan().unsupported]


CASES: dict[str, tuple[nn.Module, list[tuple[str, str]]]] = {
    "activation": (
        nn.Sequential(
            conv(3, 4), nn.PReLU(), conv(4, 4), nn.BatchNorm2d(4), mpt.BinaryActivation()
        ),
        [("1", "PReLU")],
    ),
    "residual": (nn.Sequential(conv(3, 4), Residual()), [("1.body.2", "PReLU"), ("add", "add")]),
    "first": (nn.Sequential(nn.Hardtanh(inplace=True), conv(3, 4)), [("0", "Hardtanh")]),
    "last": (nn.Sequential(conv(3, 4), nn.Flatten(), nn.LogSoftmax(1)), [("2", "LogSoftmax")]),
    "two": (nn.Sequential(nn.SiLU(), conv(3, 2), nn.GELU()), [("0", "SiLU"), ("2", "GELU")]),
    "untraceable": (nn.Sequential(conv(3, 4), Chooser(), conv(4, 2)), [("1", "Chooser")]),
    "concatenation": (Concatenation(), [("cat", "cat")]),
    "gate": (Gate(), [("sigmoid", "sigmoid"), ("mul", "mul")]),
    "padding mode": (
        nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        [("0", "Conv2d")],
    ),
    "one-sided same": (nn.Sequential(nn.Conv2d(3, 2, 2, padding="same")), [("0", "Conv2d")]),
    "batch statistics": (
        nn.Sequential(conv(3, 2), nn.BatchNorm2d(2, track_running_stats=False)),
        [("1", "BatchNorm2d")],
    ),
    "dilated pool": (nn.Sequential(conv(3, 2), nn.MaxPool2d(2, dilation=2)), [("1", "MaxPool2d")]),
    "unequal windows": (
        nn.Sequential(conv(3, 2), nn.AdaptiveAvgPool2d(4)),
        [("1", "AdaptiveAvgPool2d")],
    ),
    "transposed": (
        nn.Sequential(conv(3, 2), nn.ConvTranspose2d(2, 2, 2)),
        [("1", "ConvTranspose2d")],
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CASES)
def test_unsupported_parts_run_and_are_named(name: str, backend: str, tmp_path: Path) -> None:
    model, names = CASES[name]
    randomise(model)
    x = torch.randn(5, 3, 7, 6)
    packed = mpt.pack(model, x, backend=backend)
    assert unsupported(packed) == names
    assert_same(packed, model, x)
    assert names[0][1] in str(packed.plan())
    with pytest.raises(PackError, match=names[0][1]) as error:
        packed.save(tmp_path / "net.mpt")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_signs_behind_a_torch_module_are_decided_in_float64(backend: str) -> None:
    model = nn.Sequential(conv(3, 8), nn.Tanh(), nn.BatchNorm2d(8), mpt.BinaryActivation())
    x = torch.randn(40, 3, 9, 9)
    packed = mpt.pack(randomise(model), x, backend=backend)
    assert torch.equal(packed(x).double(), eager(model, x))
    kinds = {step.layer: step.kind for step in packed.plan().steps}
    assert kinds["1"] == "f64"


def test_strict_sign_that_may_meet_zero_stays_in_torch(backend: str) -> None:
    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = conv(3, 6), conv(6, 6), mpt.BinaryActivation()

        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(self.b(self.act(self.a(x))))

    model = Signed()
    x = torch.randn(30, 3, 5, 5)
    packed = mpt.pack(model, x, backend=backend)
    assert unsupported(packed) == [("sign", "sign")]
    assert "gives 0 at 0" in packed.plan().unsupported[0].why
    result = packed(x)
    assert torch.equal(result.double(), eager(model, x))
    assert bool((result == 0).any()), "the case is there"


def test_a_hooked_module_runs_as_it_is(backend: str) -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    x = torch.randn(2, 3, 5, 5)
    packed = mpt.pack(model, x, backend=backend)
    assert unsupported(packed) == [("0", "MPTConv2d")]
    assert_same(packed, model, x)


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches_across_segments(batch: int, backend: str) -> None:
    model, _ = CASES["residual"]
    packed = mpt.pack(randomise(model), torch.randn(1, 3, 6, 6), backend=backend)
    assert_same(packed, model, torch.randn(batch, 3, 6, 6))


def test_a_comparison_in_torch_feeds_the_engine(backend: str) -> None:
    class Compared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 4), conv(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b((self.a(x) > 0.25) + 0.5)

    model = Compared()
    x = torch.randn(5, 3, 6, 6)
    packed = mpt.pack(model, x, backend=backend)
    assert unsupported(packed) == [("gt", "gt")]
    assert_same(packed, model, x)
