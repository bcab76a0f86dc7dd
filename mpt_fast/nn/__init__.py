"""Layers that hold a ticket: frozen random weights, trainable scores, a mask made of the scores."""

from mpt_fast.nn.activation import BinaryActivation, SignActivation
from mpt_fast.nn.conv import MPTConv2d
from mpt_fast.nn.linear import MPTLinear
from mpt_fast.nn.norm import batch_norm
from mpt_fast.nn.pool import MaxPool2d
from mpt_fast.nn.ticket import TicketLayer

__all__ = [
    "BinaryActivation",
    "MPTConv2d",
    "MPTLinear",
    "MaxPool2d",
    "SignActivation",
    "TicketLayer",
    "batch_norm",
]
