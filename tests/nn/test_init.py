"""Weight and score initialisations, statistically and by their exact values."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mpt_fast.config import WEIGHT_INITS, TicketConfig
from mpt_fast.nn.init import fans, init_scores_, init_weight_, weight_std

SHAPE = (64, 32, 3, 3)
FAN_IN, FAN_OUT = 32 * 9, 64 * 9
STD = math.sqrt(2 / FAN_IN)
XAVIER = math.sqrt(2 / (FAN_IN + FAN_OUT))
# 18432 draws: the relative standard error of a deviation is 1/sqrt(2 * 18432) = 0.5 %.
SPREAD = 0.03


def draw(**fields: Any) -> Tensor:
    return init_weight_(torch.full(SHAPE, float("nan")), TicketConfig(**fields))


def test_fans() -> None:
    assert fans(torch.empty(SHAPE)) == (FAN_IN, FAN_OUT)
    assert fans(torch.empty(5, 7)) == (7, 5)


@pytest.mark.parametrize("weight_init", WEIGHT_INITS)
def test_every_init_fills_every_entry(weight_init: Any) -> None:
    weight = draw(weight_init=weight_init)
    assert bool(weight.isfinite().all())
    linear = init_weight_(torch.full((8, 5), float("nan")), TicketConfig(weight_init=weight_init))
    assert bool(linear.isfinite().all())


@pytest.mark.parametrize(
    ("weight_init", "std"),
    [
        ("kaiming_normal", STD),
        ("kaiming_uniform", STD),
        ("xavier_normal", XAVIER),
        ("standard", 1 / math.sqrt(3 * FAN_IN)),
        ("signed_constant", STD),
        ("xavier_constant", XAVIER),
    ],
)
def test_centred_inits(weight_init: Any, std: float) -> None:
    weight = draw(weight_init=weight_init)
    assert weight.std().item() == pytest.approx(std, rel=SPREAD)
    assert abs(weight.mean().item()) < SPREAD * std


def test_shapes_of_the_distributions() -> None:
    normal, uniform = draw(weight_init="kaiming_normal"), draw(weight_init="kaiming_uniform")
    assert normal.abs().max() > 3 * STD
    assert uniform.abs().max() <= math.sqrt(3) * STD
    assert uniform.abs().max() > 0.99 * math.sqrt(3) * STD
    assert draw(weight_init="standard").abs().max() <= 1 / math.sqrt(FAN_IN)


@pytest.mark.parametrize(
    ("weight_init", "values"),
    [
        ("signed_constant", {-STD, STD}),
        ("xavier_constant", {-XAVIER, XAVIER}),
        ("unsigned_constant", {STD}),
        ("ones", {1.0}),
        ("bernoulli", {0.0, 1.0}),
        ("usc_bernoulli", {0.0, STD}),
    ],
)
def test_discrete_inits(weight_init: Any, values: set[float]) -> None:
    weight = draw(weight_init=weight_init)
    got = sorted(weight.unique().tolist())
    assert got == pytest.approx(sorted(values), rel=1e-6)
    if len(values) == 2:
        high = (weight == weight.max()).float().mean().item()
        assert high == pytest.approx(0.5, abs=SPREAD)


@pytest.mark.parametrize("weight_init", ["kaiming_normal", "signed_constant", "usc_bernoulli"])
@pytest.mark.parametrize(
    ("scale_fan", "factor"), [(False, 1.0), (True, 0.2), ("pruned", 0.8)], ids=str
)
def test_scale_fan(weight_init: Any, scale_fan: Any, factor: float) -> None:
    """True: fan times the density (0.2); "pruned": fan times the sparsity, as biprop has it."""
    config = TicketConfig(sparsity=0.8, weight_init=weight_init, scale_fan=scale_fan)
    want = math.sqrt(2 / (FAN_IN * factor))
    weight = init_weight_(torch.empty(SHAPE), config)
    assert weight_std(weight, config) == pytest.approx(want)
    rms = weight[weight != 0].square().mean().sqrt().item()
    assert rms == pytest.approx(want, rel=SPREAD)


def test_mode_and_nonlinearity() -> None:
    config = TicketConfig(mode="fan_out", nonlinearity="linear")
    assert weight_std(torch.empty(SHAPE), config) == pytest.approx(1 / math.sqrt(FAN_OUT))


def test_kaiming_normal_draws_what_torch_draws() -> None:
    torch.manual_seed(3)
    want = torch.nn.init.kaiming_normal_(torch.empty(SHAPE), nonlinearity="relu")
    torch.manual_seed(3)
    assert torch.equal(draw(weight_init="kaiming_normal"), want)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_scores(power: float) -> None:
    """Psi(s0) = S0 ~ U(+-1/sqrt(fan_in)) unless raw; power 1 is bit-identical to no power."""
    bound = 1 / math.sqrt(FAN_IN)
    torch.manual_seed(5)
    plain = torch.nn.init.kaiming_uniform_(torch.empty(SHAPE), a=math.sqrt(5))
    torch.manual_seed(5)
    rooted = init_scores_(torch.empty(SHAPE), TicketConfig(power=power))
    torch.manual_seed(5)
    raw = init_scores_(torch.empty(SHAPE), TicketConfig(power=power, score_init="raw"))
    assert torch.equal(raw, plain)
    assert plain.abs().max() <= bound * (1 + 1e-6)
    if power == 1.0:
        assert torch.equal(rooted, plain)
    psi = rooted * rooted.abs().pow(power - 1)
    torch.testing.assert_close(psi, plain, rtol=1e-5, atol=0)


def test_empty_tensors() -> None:
    config = TicketConfig()
    assert init_weight_(torch.empty(0, 3, 3, 3), config).numel() == 0
    assert init_scores_(torch.empty(2, 0), config).numel() == 0
