"""TicketConfig: how a ticket is drawn, scored and pruned. This module imports no torch."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["global", "layer"]
SelectionKind = Literal["exact", "threshold", "sort"]
WeightInit = Literal[
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_constant",
    "signed_constant",
    "unsigned_constant",
    "standard",
    "ones",
    "bernoulli",
    "usc_bernoulli",
]
ScoreInit = Literal["kaiming_uniform", "raw"]
FanMode = Literal["fan_in", "fan_out"]
Nonlinearity = Literal["relu", "leaky_relu", "linear", "tanh", "sigmoid", "selu"]
Compatibility = Literal["none", "biprop"]

SCOPES: tuple[str, ...] = get_args(Scope)
SELECTIONS: tuple[str, ...] = get_args(SelectionKind)
WEIGHT_INITS: tuple[str, ...] = get_args(WeightInit)
SCORE_INITS: tuple[str, ...] = get_args(ScoreInit)
FAN_MODES: tuple[str, ...] = get_args(FanMode)
NONLINEARITIES: tuple[str, ...] = get_args(Nonlinearity)
COMPATIBILITIES: tuple[str, ...] = get_args(Compatibility)
SCALED_INITS = ("kaiming_normal", "signed_constant", "unsigned_constant", "usc_bernoulli")
"""The weight initialisations whose deviation follows `scale_fan`."""


def check_sparsity(sparsity: float) -> float:
    """`sparsity` as a float if it is a number in [0, 1); ValueError or TypeError otherwise."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"sparsity must be a number in [0, 1), got {sparsity!r}")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(
            f"sparsity is the fraction pruned and must lie in [0, 1), got {sparsity!r}"
        )
    return float(sparsity)


@dataclass(frozen=True, slots=True)
class TicketConfig:
    """Everything that says how a ticket is found; immutable, change it with `dataclasses.replace`.

    sparsity: fraction of the weights that is pruned, in [0, 1).
    scope: "global" prunes all layers by one threshold (`update_masks` once per step); "layer"
        prunes each layer to `sparsity` in its own forward pass.
    selection: "exact" keeps n - int(sparsity * n) weights without sorting; "sort" keeps the same
        weights by sorting (the papers' baseline); "threshold" keeps abs(s) > t for a t taken from
        the quantile of the scores at the start, so the realised sparsity drifts.
    power: p >= 1 of the power-propagation Psi(s) = s * abs(s)**(p - 1); 1 means none.
    weight_init: distribution of the frozen weights. With fan = fan_in or fan_out (`mode`), std =
        gain(nonlinearity) / sqrt(fan): "kaiming_normal" N(0, std^2); "kaiming_uniform"
        U(+-sqrt(3) std); "xavier_normal" N(0, 2 / (fan_in + fan_out)); "xavier_constant"
        +-sqrt(2 / (fan_in + fan_out)); "signed_constant" +-std; "unsigned_constant" +std;
        "standard" U(+-1 / sqrt(fan_in)), PyTorch's own; "ones" 1; "bernoulli" 0 or 1;
        "usc_bernoulli" 0 or std. A weight of 0 has sign 0: it is pruned whatever its score.
    scale_fan: True multiplies fan by the density, so that the kept weights have the variance that
        the rule asks for; "pruned" multiplies it by the sparsity instead, as biprop's code does.
        Only for the weight_inits in `SCALED_INITS`.
    score_init: "kaiming_uniform" makes Psi(s) ~ U(+-1 / sqrt(fan_in)), that is s0 =
        sign(S0) * abs(S0)**(1 / power); "raw" makes s itself ~ U(+-1 / sqrt(fan_in)). The same
        for power = 1.
    compat: "biprop" computes what that code computes: a layerwise gain divides by
        int(density * n) instead of the number of weights kept, a global mask prunes scores that
        equal the threshold (and keeps nothing at sparsity 0), `models` take sign(0) = 0 in binary
        activations and four logits per class in ResNet-20/32/44/56/110.

    Raises ValueError or TypeError naming the field.
    """

    sparsity: float = 0.5
    scope: Scope = "global"
    selection: SelectionKind = "exact"
    power: float = 1.0
    weight_init: WeightInit = "kaiming_normal"
    mode: FanMode = "fan_in"
    nonlinearity: Nonlinearity = "relu"
    scale_fan: bool | Literal["pruned"] = False
    score_init: ScoreInit = "kaiming_uniform"
    compat: Compatibility = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_sparsity(self.sparsity))
        for field, choices in (
            ("scope", SCOPES),
            ("selection", SELECTIONS),
            ("weight_init", WEIGHT_INITS),
            ("mode", FAN_MODES),
            ("nonlinearity", NONLINEARITIES),
            ("score_init", SCORE_INITS),
            ("compat", COMPATIBILITIES),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}"
                )
        if isinstance(self.power, bool) or not isinstance(self.power, (int, float)):
            raise TypeError(f"power must be a number >= 1, got {self.power!r}")
        if not (math.isfinite(self.power) and self.power >= 1):
            raise ValueError(f"power must be finite and >= 1 (1 means none), got {self.power!r}")
        object.__setattr__(self, "power", float(self.power))
        if self.compat == "biprop" and (self.selection != "exact" or self.power != 1):
            raise ValueError(
                "compat='biprop' needs selection='exact' and power=1, as that code has"
            )
        self._check_scale_fan()

    def _check_scale_fan(self) -> None:
        if not (isinstance(self.scale_fan, bool) or self.scale_fan == "pruned"):
            raise ValueError(f"scale_fan must be False, True or 'pruned', got {self.scale_fan!r}")
        if not self.scale_fan:
            return
        if self.weight_init not in SCALED_INITS:
            raise ValueError(
                f"scale_fan has no effect on weight_init={self.weight_init!r}; "
                f"use it with {', '.join(SCALED_INITS)} or set scale_fan=False"
            )
        if self.scale_fan == "pruned" and self.sparsity == 0:
            raise ValueError(
                "scale_fan='pruned' divides by the sparsity, which is 0; set it to True or False"
            )

    @property
    def density(self) -> float:
        """Fraction of the weights that is kept.

        1 - sparsity rounded to 15 decimals, so that a density that was written in decimals and
        stored as 1 - density comes back: 1 - (1 - 0.1) is 0.09999999999999998.
        """
        return round(1.0 - self.sparsity, 15)
