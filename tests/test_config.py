"""TicketConfig: defaults, validation, immutability."""

import dataclasses
import json
from typing import Any

import pytest

from mpt_fast.config import SCALED_INITS, WEIGHT_INITS, TicketConfig, check_sparsity


def test_defaults() -> None:
    config = TicketConfig()
    assert dataclasses.asdict(config) == {
        "sparsity": 0.5,
        "scope": "global",
        "selection": "exact",
        "power": 1.0,
        "weight_init": "kaiming_normal",
        "mode": "fan_in",
        "nonlinearity": "relu",
        "scale_fan": False,
        "score_init": "kaiming_uniform",
        "compat": "none",
    }
    assert config.density == 0.5


def test_survives_json_and_is_immutable() -> None:
    config = TicketConfig(sparsity=0.8, scale_fan="pruned", power=3)
    assert TicketConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sparsity = 0.1  # type: ignore[misc]  # the assignment is what must fail


def test_replace_validates() -> None:
    with pytest.raises(ValueError, match="sparsity"):
        dataclasses.replace(TicketConfig(), sparsity=1.0)


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.999999, 1 - 2**-53])
def test_good_sparsity(sparsity: float) -> None:
    assert TicketConfig(sparsity=sparsity).sparsity == sparsity
    assert isinstance(check_sparsity(sparsity), float)


@pytest.mark.parametrize("sparsity", [1.0, 1, 80, -0.01, float("nan"), float("inf")])
def test_sparsity_out_of_range(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"sparsity is the fraction pruned .* in \[0, 1\), got"):
        TicketConfig(sparsity=sparsity)


@pytest.mark.parametrize("sparsity", [True, "0.5", None])
def test_sparsity_of_another_type(sparsity: Any) -> None:
    with pytest.raises(TypeError, match=r"sparsity must be a number in \[0, 1\)"):
        TicketConfig(sparsity=sparsity)


@pytest.mark.parametrize(
    "field", ["scope", "selection", "weight_init", "mode", "nonlinearity", "score_init"]
)
def test_unknown_choice_lists_the_known_ones(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be one of .*, got 'binary'"):
        TicketConfig(**{field: "binary"})


@pytest.mark.parametrize("power", [0.999, 0, -2, float("nan"), float("inf")])
def test_power_out_of_range(power: float) -> None:
    with pytest.raises(ValueError, match="power must be finite and >= 1"):
        TicketConfig(power=power)


@pytest.mark.parametrize("power", [True, "2", None])
def test_power_of_another_type(power: Any) -> None:
    with pytest.raises(TypeError, match="power must be a number >= 1"):
        TicketConfig(power=power)


@pytest.mark.parametrize("weight_init", WEIGHT_INITS)
@pytest.mark.parametrize("scale_fan", [True, "pruned"])
def test_scale_fan_only_where_it_acts(weight_init: Any, scale_fan: Any) -> None:
    if weight_init in SCALED_INITS:
        TicketConfig(weight_init=weight_init, scale_fan=scale_fan)
    else:
        with pytest.raises(ValueError, match=f"no effect on weight_init='{weight_init}'"):
            TicketConfig(weight_init=weight_init, scale_fan=scale_fan)


def test_scale_fan_at_its_degenerate_point() -> None:
    with pytest.raises(ValueError, match="scale_fan='pruned' divides by the sparsity, which is 0"):
        TicketConfig(sparsity=0, scale_fan="pruned")
    TicketConfig(sparsity=0, scale_fan=True)


@pytest.mark.parametrize("scale_fan", ["density", None, 2])
def test_scale_fan_of_another_value(scale_fan: Any) -> None:
    with pytest.raises(ValueError, match="scale_fan must be False, True or 'pruned'"):
        TicketConfig(scale_fan=scale_fan)
