"""Random weights and first scores of a ticket layer, by the rules of TicketConfig."""

import math

import torch
from torch import Tensor

from mpt_fast.config import TicketConfig


def fans(weight: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight [O, I, ...]: I and O times the kernel's size."""
    receptive = math.prod(weight.shape[2:])
    return weight.shape[1] * receptive, weight.shape[0] * receptive


def weight_std(weight: Tensor, config: TicketConfig) -> float:
    """gain(nonlinearity) / sqrt(fan), with fan scaled as `scale_fan` says."""
    fan_in, fan_out = fans(weight)
    fan = float(fan_in if config.mode == "fan_in" else fan_out)
    if config.scale_fan:
        fan *= config.sparsity if config.scale_fan == "pruned" else config.density
    return torch.nn.init.calculate_gain(config.nonlinearity) / math.sqrt(fan)


@torch.no_grad()
def init_weight_(weight: Tensor, config: TicketConfig) -> Tensor:
    """Draw `weight` [O, I, ...] in place by config.weight_init; returns it."""
    if weight.numel() == 0:
        return weight
    fan_in, fan_out = fans(weight)
    xavier_std = math.sqrt(2.0 / (fan_in + fan_out))
    std = weight_std(weight, config)
    match config.weight_init:
        case "kaiming_normal":
            return weight.normal_(0.0, std)
        case "kaiming_uniform":
            bound = math.sqrt(3.0) * std
            return weight.uniform_(-bound, bound)
        case "xavier_normal":
            return weight.normal_(0.0, xavier_std)
        case "xavier_constant":
            return _random_sign_(weight).mul_(xavier_std)
        case "signed_constant":
            return _random_sign_(weight).mul_(std)
        case "unsigned_constant":
            return weight.fill_(std)
        case "standard":
            bound = 1.0 / math.sqrt(fan_in)
            return weight.uniform_(-bound, bound)
        case "ones":
            return weight.fill_(1.0)
        case "bernoulli":
            return weight.bernoulli_(0.5)
        case "usc_bernoulli":
            return weight.bernoulli_(0.5).mul_(std)


@torch.no_grad()
def init_scores_(scores: Tensor, config: TicketConfig) -> Tensor:
    """Draw `scores` [O, I, ...] in place by config.score_init; returns it.

    S0 ~ U(+-1 / sqrt(fan_in)). Under power-propagation s0 = sign(S0) * abs(S0)**(1 / power), so
    that Psi(s0) = S0, unless score_init is "raw".
    """
    if scores.numel() == 0:
        return scores
    bound = 1.0 / math.sqrt(fans(scores)[0])
    scores.uniform_(-bound, bound)
    if config.power != 1.0 and config.score_init != "raw":
        scores.copy_(scores.sign() * scores.abs().pow(1.0 / config.power))
    return scores


def _random_sign_(weight: Tensor) -> Tensor:
    """+1 or -1 with equal chance; never 0, which would be pruned for good."""
    return weight.bernoulli_(0.5).mul_(2.0).sub_(1.0)
