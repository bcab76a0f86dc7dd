"""baselines: every setting computes the model, wrong ones are named, the model stays as it was."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from mpt_fast import models
from mpt_fast.measure import baselines

ALL = {"NCHW", "channels_last", "NCHW, folded", "channels_last, folded"}


def small_twin() -> nn.Module:
    """A ResNet with batch norms that are worth folding."""
    torch.manual_seed(0)
    model = models.dense_twin("resnet20", activation="binary", width=0.25, in_channels=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.running_mean, -1, 1)
    return model


def test_all_settings_compute_the_model() -> None:
    model, x = small_twin(), torch.randn(3, 1, 8, 8)
    found = baselines(model, x, repeats=2)
    assert {b.setting for b in found.candidates} == ALL
    assert found.skipped == {}
    expected = copy.deepcopy(model).eval()(x)
    for baseline in found.candidates:
        # 1e-4: twenty layers of fp32 sums in another order, far below any wrong fold.
        torch.testing.assert_close(baseline(), expected, rtol=1e-4, atol=1e-4)
        assert not baseline().requires_grad


def test_settings_are_what_they_are_called() -> None:
    found = baselines(small_twin(), torch.randn(3, 1, 8, 8), repeats=1)
    for baseline in found.candidates:
        norms = [m for m in baseline.model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert (not norms) == baseline.setting.endswith("folded")
        last = baseline.setting.startswith("channels_last")
        memory_format = torch.channels_last if last else torch.contiguous_format
        weights = [p for p in baseline.model.parameters() if p.dim() == 4]
        assert weights
        assert all(w.is_contiguous(memory_format=memory_format) for w in weights)
        assert baseline.example.is_contiguous(memory_format=memory_format)


def test_fastest_first() -> None:
    found = baselines(small_twin(), torch.randn(2, 1, 8, 8), repeats=3)
    medians = [timing.median for timing in found.timings]
    assert medians == sorted(medians)
    assert found.best is found.candidates[0]
    facts = json.loads(json.dumps(found.to_dict()))
    assert facts["best"] == found.best.setting
    assert set(facts["settings"]) == ALL


def test_model_is_left_alone() -> None:
    model = small_twin().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    baselines(model, torch.randn(2, 1, 8, 8), repeats=1)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_untraceable_model_names_the_reason() -> None:
    class Branches(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    found = baselines(nn.Sequential(Branches(4, 2)), torch.ones(3, 4), repeats=1)
    assert [b.setting for b in found.candidates] == ["NCHW"]
    assert found.skipped["folded"].startswith("cannot be traced: ")


def test_a_setting_with_another_result_is_not_timed() -> None:
    class Memory(nn.Module):
        """Answers otherwise when its input is channels_last."""

        def forward(self, x: Tensor) -> Tensor:
            return x + float(not x.is_contiguous())

    found = baselines(Memory(), torch.randn(2, 3, 4, 4), repeats=1)
    assert "channels_last" not in {b.setting for b in found.candidates}
    assert found.skipped["channels_last"].startswith("differs from the model by ")


def test_nothing_to_time() -> None:
    class Counter(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counter.calls += 1
            return x * Counter.calls

    with pytest.raises(RuntimeError, match="no setting repeats the model's result"):
        baselines(Counter(), torch.ones(2, 3), repeats=1)


def test_only_fp32() -> None:
    with pytest.raises(ValueError, match=r"example must be float32, got torch\.float64"):
        baselines(nn.Linear(2, 2), torch.zeros(1, 2, dtype=torch.float64))
