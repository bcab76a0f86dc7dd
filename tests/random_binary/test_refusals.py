"""What `approximate` refuses: targets, arguments and shapes, each by name."""

import pytest
import torch
from random_binary_cases import mlp
from torch import nn

import mpt_fast
from mpt_fast.random_binary import TargetError, approximate


def test_binary_activations_are_refused():
    with pytest.raises(TargetError, match="sign is no ReLU"):
        approximate(nn.Sequential(nn.Linear(3, 2), mpt_fast.BinaryActivation()), 1.0)


class _Silu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Sigmoid(), "1 .Sigmoid"),
        (_Silu(), "silu"),
        (nn.LayerNorm(4), "LayerNorm"),
    ],
)
def test_other_operations_are_refused_by_name(layer, message):
    with pytest.raises(TargetError, match=message):
        approximate(nn.Sequential(nn.Linear(4, 4), layer), 0.1)


def test_signed_max_pools_and_padded_windows_are_refused():
    for net, message in (
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), "put the ReLU before"),
        (nn.Sequential(nn.Conv2d(1, 2, 1, padding=1), nn.ReLU()), "padding"),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), "ceil_mode"),
        (nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False)), "count_include_pad"),
    ):
        with pytest.raises(TargetError, match=message):
            approximate(net, 1.0, input_shape=(1, 5, 5))


class _Crossing(nn.Module):
    """A skip past a change of size whose own branch changes the size later."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 2, 3, stride=2, padding=1)
        self.b = nn.Conv2d(2, 2, 3, stride=2, padding=1)
        self.skip = nn.Conv2d(1, 2, 1, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x))) + self.skip(x)


def test_a_skip_past_a_change_of_size_is_refused():
    with pytest.raises(TargetError, match="skip"):
        approximate(_Crossing(), 1.0, input_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": 1e-30}, "larger epsilon"),
        ({"epsilon": 1.0, "redundancy": 0}, "redundancy"),
        ({"epsilon": 1.0, "seed": -1}, "seed"),
        ({"epsilon": 1.0, "radius": -1.0}, "radius"),
        ({"epsilon": 1.0, "bits": 99}, "bits"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        approximate(mlp([4, 3], bias=True), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": "0.1"}, "epsilon must be a number"),
        ({"epsilon": 0.1, "redundancy": 2.5}, "redundancy must be an integer"),
        ({"epsilon": 0.1, "seed": True}, "seed must be an integer"),
        ({"epsilon": 0.1, "bits": "8"}, "bits must be an integer"),
    ],
)
def test_arguments_of_another_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        approximate(mlp([4, 3]), **arguments)


def test_weights_that_are_no_numbers_are_named():
    net = mlp([4, 5, 3])
    net[2].weight.data[0, 0] = float("nan")
    with pytest.raises(TargetError, match="2: the weight has NaN"):
        approximate(net, 1.0)


def test_a_convolution_needs_its_input_shape():
    with pytest.raises(TargetError, match="input_shape"):
        approximate(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), 1.0)
