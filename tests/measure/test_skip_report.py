"""The skip report: counts are Eq. (4)'s, the measured side is checked before it is timed."""

import pytest
import torch
from torch import nn

from mpt_fast import models
from mpt_fast.config import TicketConfig
from mpt_fast.measure import acceleration_rate, skip_report

SHAPE = (1, 8, 8)


def networks(activation: str = "binary") -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    options = {"in_channels": 1, "image_size": 8, "width": 0.25, "activation": activation}
    config = TicketConfig(sparsity=0.9, scope="layer")
    ticket = models.build("conv2", config=config, **options).eval()
    return ticket, models.dense_twin("conv2", **options).eval()


@pytest.mark.parametrize("activation", ["binary", "relu"])
def test_counted_and_measured(activation: str) -> None:
    ticket, twin = networks(activation)
    report = skip_report(ticket, twin, SHAPE, batches=(8,), seconds=0.05)
    assert report.counted == acceleration_rate(ticket, SHAPE)
    zero = sum(
        int((layer.sign_code().flatten(2) == 0).all(2).sum())
        if layer.weight.dim() == 4
        else int((layer.sign_code() == 0).sum())
        for layer in ticket.modules()
        if hasattr(layer, "sign_code")
    )
    kernels = sum(layer.kernels for layer in report.counted.layers)
    assert report.zero_fraction == zero / kernels
    (measured,) = report.measured
    assert measured.batch == 8
    assert measured.ratio > 0
    data = report.to_dict()
    assert data["counted"]["kernel_rate"] == report.counted.kernel_rate
    assert data["measured"][0]["setting"] == measured.setting
    assert f"{report.counted.kernel_rate:.3g}x by kernels" in str(report)


def test_counting_alone_times_nothing() -> None:
    ticket, twin = networks()
    report = skip_report(ticket, twin, SHAPE, batches=())
    assert report.measured == ()
    assert "measured" not in str(report)


def test_a_wrong_packed_network_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticket, twin = networks()
    other = networks()[0]
    with torch.no_grad():
        next(other.parameters()).mul_(-1)
    import mpt_fast.packed

    pack = mpt_fast.packed.pack
    changed = other
    for layer in changed.modules():
        if hasattr(layer, "reset_selection"):
            layer.reset_selection()
    monkeypatch.setattr(
        mpt_fast.packed, "pack", lambda model, *args, **kw: pack(changed, *args, **kw)
    )
    with pytest.raises(RuntimeError, match="differs from the model"):
        skip_report(ticket, twin, SHAPE, batches=(2,))
