"""acceleration_rate against counts made by hand, by loops and by the law of independent masks."""

import json
import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from mpt_fast import TicketConfig, acceleration_rate, models
from mpt_fast.measure import count_flops, count_macs
from mpt_fast.nn import MPTConv2d, MPTLinear


def with_weight(layer: nn.Conv2d | nn.Linear, weight: Tensor) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def conv_with_zero_kernels(kernels: int, zero: int, **geometry: int) -> nn.Module:
    """One input channel, `kernels` outputs, the first `zero` kernels zero, the others one tap."""
    weight = torch.zeros(kernels, 1, 3, 3)
    weight[zero:, 0, 1, 2] = -0.5
    return with_weight(nn.Conv2d(1, kernels, 3, **geometry), weight)


class TestByHand:
    def test_one_convolution(self) -> None:
        rate = acceleration_rate(conv_with_zero_kernels(4, 3, padding=1), (1, 5, 7))
        (row,) = rate.layers
        assert (row.kernels, row.zero_kernels, row.zero_fraction) == (4, 3, 0.75)
        assert (row.weights, row.kept, row.positions, row.output) == (36, 1, 35, (5, 7))
        assert (row.macs, row.kernel_macs, row.kept_macs) == (36 * 35, 9 * 35, 35)
        assert (rate.kernel_rate, rate.weight_rate) == (4.0, 36.0)

    def test_layers_are_weighted_by_output_positions(self) -> None:
        """Eq. (4): (4*1*64*9 + 2*4*16*9) / (1*64*9 + 8*16*9), D^2 = 64 and then 16."""
        second = with_weight(nn.Conv2d(4, 2, 3, stride=2, padding=1), torch.ones(2, 4, 3, 3))
        model = nn.Sequential(conv_with_zero_kernels(4, 3, padding=1), nn.ReLU(), second)
        rate = acceleration_rate(model, (1, 8, 8))
        assert [row.positions for row in rate.layers] == [64, 16]
        assert [row.name for row in rate.layers] == ["0", "2"]
        assert rate.kernel_rate == (4 * 64 * 9 + 8 * 16 * 9) / (64 * 9 + 8 * 16 * 9)
        assert rate.weight_rate == (4 * 64 * 9 + 8 * 16 * 9) / (64 + 8 * 16 * 9)

    def test_groups_and_a_kernel_that_is_not_square(self) -> None:
        weight = torch.zeros(4, 2, 1, 5)
        weight[0, 0, 0, 0] = weight[3, 1] = 1.0
        layer = with_weight(nn.Conv2d(4, 4, (1, 5), groups=2), weight)
        (row,) = acceleration_rate(layer, (4, 3, 9)).layers
        assert (row.kernels, row.zero_kernels, row.output) == (8, 6, (3, 5))
        assert (row.macs, row.kernel_macs, row.kept_macs) == (40 * 15, 10 * 15, 6 * 15)

    def test_linear_and_pointwise_can_be_left_out(self) -> None:
        pointwise = with_weight(nn.Conv2d(4, 2, 1), torch.eye(4)[:2].reshape(2, 4, 1, 1))
        linear = with_weight(nn.Linear(2, 5), torch.ones(5, 2))
        model = nn.Sequential(
            conv_with_zero_kernels(4, 2, padding=1),
            pointwise,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            linear,
        )
        whole = acceleration_rate(model, (1, 2, 2))
        assert [row.kind for row in whole.layers] == ["conv", "conv", "linear"]
        assert [row.shape for row in whole.layers] == [(4, 1, 3, 3), (2, 4, 1, 1), (5, 2)]
        assert whole.layers[2].output == ()
        assert whole.kernel_rate == (36 * 4 + 8 * 4 + 10) / (18 * 4 + 2 * 4 + 10)
        no_linear = acceleration_rate(model, (1, 2, 2), linear=False)
        assert no_linear.kernel_rate == (36 * 4 + 8 * 4) / (18 * 4 + 2 * 4)
        only_conv = acceleration_rate(model, (1, 2, 2), linear=False, pointwise=False)
        assert only_conv.kernel_rate == 2.0
        assert acceleration_rate(model, (1, 2, 2), pointwise=False).macs == 36 * 4 + 10

    def test_a_layer_called_twice_counts_twice(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = with_weight(nn.Conv2d(1, 1, 3, padding=1), torch.ones(1, 1, 3, 3))
                self.unused = nn.Linear(2, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.conv(nn.functional.max_pool2d(self.conv(x), 2))

        (row,) = acceleration_rate(Twice(), (1, 4, 4)).layers
        assert (row.name, row.positions, row.output) == ("conv", 16 + 4, (4, 4))

    def test_linear_over_tokens_and_conv1d(self) -> None:
        model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(1, 1), nn.Linear(6, 2))
        rows = acceleration_rate(model, (3, 8)).layers
        assert [(row.positions, row.macs) for row in rows] == [(6, 36 * 6), (4, 12 * 4)]

    def test_an_empty_layer_has_no_finite_rate(self) -> None:
        model = with_weight(nn.Linear(3, 2), torch.zeros(2, 3))
        rate = acceleration_rate(model, (3,))
        assert (rate.kernel_rate, rate.layers[0].weight_rate) == (math.inf, math.inf)
        assert rate.to_dict()["kernel_rate"] is None
        json.dumps(rate.to_dict(), allow_nan=False)


class TestTickets:
    def test_against_a_loop_over_kernels(self) -> None:
        torch.manual_seed(3)
        config = TicketConfig(sparsity=0.8, scope="layer")
        model = nn.Sequential(
            MPTConv2d(3, 6, 3, stride=2, padding=1, config=config),
            nn.Flatten(),
            MPTLinear(6 * 16, 5, config=config),
        )
        rate = acceleration_rate(model, (3, 8, 8))
        dense = surviving = kept = 0
        for layer, positions in ((model[0], 16), (model[2], 1)):
            weight = layer.effective_weight()
            for o, i in product(range(weight.shape[0]), range(weight.shape[1])):
                taps = [value != 0 for value in weight[o, i].reshape(-1).tolist()]
                dense += positions * len(taps)
                surviving += positions * len(taps) * any(taps)
                kept += positions * sum(taps)
        assert (rate.macs, rate.kernel_macs, rate.kept_macs) == (dense, surviving, kept)
        assert rate.kernel_rate == dense / surviving

    def test_a_kept_weight_of_zero_computes_nothing(self) -> None:
        torch.manual_seed(0)
        config = TicketConfig(sparsity=0.5, scope="layer", weight_init="bernoulli")
        layer = MPTConv2d(4, 8, 3, config=config)
        (row,) = acceleration_rate(layer, (4, 5, 5)).layers
        assert row.kept == int((layer.effective_weight() != 0).sum()) < int(layer.mask().sum())

    @pytest.mark.parametrize(("sparsity", "baseline"), [(0.7, 1.04), (0.9, 1.63), (0.95, 2.70)])
    def test_independent_masks_reach_the_known_baseline(
        self, sparsity: float, baseline: float
    ) -> None:
        """A 3x3 kernel of independent taps is zero with probability s^9: AR = 1 / (1 - s^9)."""
        torch.manual_seed(0)
        layer = MPTConv2d(128, 160, 3, config=TicketConfig(sparsity=sparsity, scope="layer"))
        rate = acceleration_rate(layer, (128, 3, 3))
        (row,) = rate.layers
        expected, n = sparsity**9, row.kernels
        deviation = math.sqrt(expected * (1 - expected) / n)
        assert abs(row.zero_fraction - expected) < 5 * deviation
        assert 1 / (1 - expected) == pytest.approx(baseline, abs=0.005)
        assert rate.kernel_rate == 1 / (1 - row.zero_fraction)
        assert rate.weight_rate == pytest.approx(1 / (1 - sparsity), rel=1 / row.kept)


class TestModelIsLeftAlone:
    def test_flags_statistics_and_hooks(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.ReLU())
        model.train()
        model[2].eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        acceleration_rate(model, (1, 4, 4))
        assert [m.training for m in model.modules()] == [True, True, True, False, True]
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert not any(m._forward_hooks for m in model.modules())
        assert all(p.grad is None for p in model.parameters())

    def test_also_when_it_fails(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(5, 5)).train()
        with pytest.raises(ValueError, match="does not run"):
            acceleration_rate(model, (1, 4, 4))
        assert all(m.training for m in model.modules())
        assert not any(m._forward_hooks for m in model.modules())

    def test_double_precision_models_run(self) -> None:
        assert acceleration_rate(nn.Conv2d(1, 1, 1).double(), (1, 2, 2)).macs == 4


class TestReading:
    def test_table_has_a_row_per_layer_and_a_total(self) -> None:
        model = nn.Sequential(conv_with_zero_kernels(4, 3, padding=1), nn.Flatten())
        lines = str(acceleration_rate(model, (1, 5, 7))).splitlines()
        assert len(lines) == 3
        for cell in ("0 ", "4x1x3x3", "5x7", "3 of 4 (75.0%)", "1 of 36", "4.00x", "36.00x"):
            assert cell in lines[1]
        assert lines[2].startswith("total")
        assert lines[2].split()[-2:] == ["4.00x", "36.00x"]

    def test_a_bare_layer_is_called_the_model(self) -> None:
        assert str(acceleration_rate(nn.Linear(2, 2), (2,))).splitlines()[1].startswith("(model) ")

    def test_dict(self) -> None:
        rate = acceleration_rate(conv_with_zero_kernels(4, 3), (1, 3, 3))
        facts = json.loads(json.dumps(rate.to_dict()))
        assert facts["kernel_rate"] == 4.0
        assert facts["layers"][0]["shape"] == [4, 1, 3, 3]
        assert facts["layers"][0]["zero_fraction"] == 0.75

    def test_macs_of_conv4(self) -> None:
        expected = 1728 * 1024 + 36864 * 1024 + 73728 * 256 + 147456 * 256
        expected += 8192 * 256 + 256 * 256 + 256 * 10
        model = models.conv4(config=None)
        assert count_macs(model, (3, 32, 32)) == expected
        assert count_flops(model, (3, 32, 32)) == 2 * expected


class TestErrors:
    def test_wrong_shape(self) -> None:
        message = r"does not run on an input of shape \(1, 2, 4, 4\): "
        with pytest.raises(ValueError, match=message) as caught:
            acceleration_rate(nn.Conv2d(1, 1, 3), (2, 4, 4))
        assert "\n" not in str(caught.value)

    def test_nothing_to_count(self) -> None:
        with pytest.raises(ValueError, match="calls no convolution or linear layer to count"):
            acceleration_rate(nn.ReLU(), (3,))
        with pytest.raises(ValueError, match="calls no convolution or linear layer to count"):
            acceleration_rate(nn.Linear(3, 3), (3,), linear=False)
