"""mpt_fast.functional: the names, and that they are the operations themselves."""

import importlib

import pytest
import torch

import mpt_fast as mpt
from mpt_fast import functional


@pytest.mark.parametrize("name", functional.__all__)
def test_names_are_the_operations(name: str) -> None:
    function = getattr(functional, name)
    assert function.__module__.startswith("mpt_fast.kernels.")
    assert function.__doc__
    folder = importlib.import_module(function.__module__.rsplit(".", 1)[0])
    assert getattr(folder, name) is function


def test_a_ticket_layer_without_modules() -> None:
    """Selection, gain and convolution composed by hand equal the layer."""
    layer = mpt.MPTConv2d(3, 4, 3, padding=1, config=mpt.TicketConfig(sparsity=0.7))
    x = torch.randn(2, 3, 6, 6)
    selection = functional.select_topk([layer.weight], [layer.scores], 0.7)
    gain = functional.layer_gains(selection)[0]
    code = selection.codes[0]
    out = functional.masked_conv2d(x, layer.weight, layer.scores, code, gain, padding=1)
    assert torch.equal(out, layer(x))
    taps = functional.effective_weight(code, gain, torch.float32)
    assert torch.equal(taps, layer.effective_weight())
