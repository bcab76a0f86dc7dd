"""RigL-driven tickets: the same numbers as ordinary ones, for the kept entries' work."""

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpt_fast as mpt
from mpt_fast import sparse, training
from mpt_fast.nn import TicketLayer
from mpt_fast.sparse.tickets import KeptForward
from mpt_fast.training import Recipe, RecipeError, TrainingError, checkpoint


def network(scope: str = "layer", power: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    config = mpt.TicketConfig(sparsity=0.6, scope=scope, power=power)  # type: ignore[arg-type]
    return nn.Sequential(
        mpt.MPTConv2d(2, 6, 3, padding=1, bias=True, config=config),
        nn.ReLU(),
        mpt.MPTConv2d(6, 8, 3, stride=2, padding=1, config=config),
        nn.ReLU(),
        nn.Flatten(),
        mpt.MPTLinear(32, 5, bias=True, config=config),
    )


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4, 2, 4, 4, generator=draw), torch.randint(0, 5, (4,), generator=draw)


def layers(model: nn.Module) -> list[TicketLayer]:
    return [module for module in model.modules() if isinstance(module, TicketLayer)]


def gradients(model: nn.Module) -> list[Tensor]:
    images, labels = batch()
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("power", [1.0, 1.5])
@pytest.mark.parametrize("channels_last", [False, True])
def test_kept_entries_get_the_ordinary_gradient_and_others_none(
    scope: str, power: float, channels_last: bool
) -> None:
    model = network(scope, power)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    mpt.update_masks(model)
    ordinary = copy.deepcopy(model)
    want = gradients(ordinary)
    tickets = sparse.RigLTickets(model, 4)
    assert not tickets.begin_step()
    images, _ = batch()
    torch.testing.assert_close(model(images), ordinary(images), rtol=1e-5, atol=1e-6)
    got = gradients(model)
    assert all(isinstance(x.kept_only, KeptForward) and x.kept_only.served for x in layers(model))
    scores = {id(x.scores): x.code != 0 for x in layers(model)}
    names = [p for p in model.parameters() if p.grad is not None]
    for parameter, mine, theirs in zip(names, got, want, strict=True):
        mask = scores.get(id(parameter))
        expected = theirs if mask is None else theirs * mask
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)
        assert mine.stride() == parameter.stride()


@pytest.mark.parametrize("compensate", [True, False])
def test_the_last_step_of_a_period_sees_every_entry(compensate: bool) -> None:
    model = network()
    ordinary = copy.deepcopy(model)
    tickets = sparse.RigLTickets(model, 3, compensate=compensate)
    assert [tickets.begin_step() for _ in range(3)] == [False, False, True]
    factor = 3 if compensate else 1
    for layer, mine, theirs in zip(
        layers(model), score_gradients(model), score_gradients(ordinary), strict=True
    ):
        expected = torch.where(layer.code == 0, theirs * factor, theirs)
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def score_gradients(model: nn.Module) -> list[Tensor]:
    gradients(model)
    return [layer.scores.grad for layer in layers(model) if layer.scores.grad is not None]


def test_delta_t_1_is_the_ordinary_ticket() -> None:
    def trained(driven: bool) -> nn.Module:
        model = network("global")
        scores = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(scores, 0.5, momentum=0.9)
        tickets = sparse.RigLTickets(model, 1) if driven else None
        for step in range(6):
            if tickets is not None:
                assert tickets.begin_step()
            else:
                mpt.update_masks(model)
            images, labels = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return model

    one, two = trained(True), trained(False)
    for a, b in zip(layers(one), layers(two), strict=True):
        assert torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("select_t", "moved"), [(1, "11111"), (2, "01101"), (3, "00100")])
def test_masks_stay_between_selections(
    scope: str, dtype: torch.dtype, select_t: int, moved: str
) -> None:
    model = network(scope).to(dtype)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 5.0)
    tickets = sparse.RigLTickets(model, 3, select_t=select_t)
    codes = []
    for step in range(6):
        tickets.begin_step()
        images, labels = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(images.to(dtype)), labels).backward()
        optimizer.step()
        codes.append(torch.cat([layer.code.flatten() for layer in layers(model)]))
    changes = "".join(str(int(not torch.equal(a, b))) for a, b in pairwise(codes))
    assert changes == moved


def test_a_mask_that_someone_else_moved_is_not_computed_with() -> None:
    model = network("global")
    tickets = sparse.RigLTickets(model, 5)
    tickets.begin_step()
    with torch.no_grad():
        for layer in layers(model):
            layer.scores.copy_(torch.randn_like(layer.scores))
    mpt.update_masks(model)
    images, _ = batch()
    got = model(images)
    tickets.remove()
    torch.testing.assert_close(got, model(images))


def test_copies_pack_and_evaluate_as_ever() -> None:
    model = network()
    tickets = sparse.RigLTickets(model, 5)
    tickets.begin_step()
    images, _ = batch()
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(images), model(images))
    packed = mpt.pack(model, images)
    want = model.eval()(images).detach()
    torch.testing.assert_close(packed(images), want, rtol=1e-4, atol=1e-5)


def test_other_dtypes_and_padding_modes_are_masked_ordinary_ones() -> None:
    config = mpt.TicketConfig(sparsity=0.5, scope="layer")
    layer = mpt.MPTConv2d(2, 3, 3, padding=1, padding_mode="reflect", config=config)
    tickets = sparse.RigLTickets(layer, 4)
    tickets.begin_step()
    layer(torch.randn(2, 2, 5, 5)).square().sum().backward()
    assert layer.scores.grad is not None
    assert not layer.scores.grad[layer.code == 0].any()
    assert layer.scores.grad[layer.code != 0].any()
    double = network().double()
    sparse.RigLTickets(double, 4).begin_step()
    double(batch()[0].double()).sum().backward()
    assert all(not x.scores.grad[x.code == 0].any() for x in layers(double))  # type: ignore[index]


def test_in_bf16_autocast_the_gradient_is_the_masked_ordinary_one() -> None:
    model = network()
    ordinary = copy.deepcopy(model)
    tickets = sparse.RigLTickets(model, 2, compensate=False)
    for sees_all in (False, True):
        assert tickets.begin_step() == sees_all
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mine, theirs = score_gradients(model), score_gradients(ordinary)
        for layer, got, want in zip(layers(model), mine, theirs, strict=True):
            kept = torch.ones_like(got, dtype=torch.bool) if sees_all else layer.code != 0
            assert torch.equal(got, want * kept)
            assert got[layer.code != 0].any()


def test_a_run_in_bf16(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(
        {"model": "conv2", "width": 0.125, "data": "digits", "epochs": 1, "batch_size": 256,
         "amp": "bf16", "threads": 1, "scope": "layer", "sparsity": 0.8}
    )  # fmt: skip
    result = sparse.train_ticket(recipe, 2, tmp_path, quiet=True, device="cpu")
    assert result.history[-1]["sparsity"] == pytest.approx(0.8, abs=2e-3)
    assert checkpoint.read(tmp_path / "last.safetensors").state["amp"] == "bf16"


def test_counted_flops() -> None:
    found = sparse.ticket_cost(network(), (2, 4, 4))
    s, d = found.sparse_flops, found.dense_flops
    assert found.training_flops("ticket") == pytest.approx(2 * s + d)
    assert found.training_flops("rigl-ticket", delta_t=4) == pytest.approx((11 * s + d) / 4)


def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_dict(
        {"model": "conv2", "width": 0.125, "data": "digits", "epochs": 2, "batch_size": 256,
         "amp": "none", "threads": 1, "scope": "layer", "sparsity": 0.8}
    )  # fmt: skip
    options = {"quiet": True, "device": "cpu", "checkpoint_steps": 1}
    sparse.train_ticket(recipe, 2, tmp_path / "whole", **options)

    class KilledError(Exception):
        pass

    original = sparse.TicketTrainer._optimize

    def optimize(self: sparse.TicketTrainer) -> None:
        if self.at.epoch == 1 and self.at.step == 3:
            raise KilledError
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(sparse.TicketTrainer, "_optimize", optimize)
        with pytest.raises(KilledError):
            sparse.train_ticket(recipe, 2, tmp_path / "cut", **options)
    sparse.train_ticket(recipe, 2, tmp_path / "cut", True, **options)
    one, two = (
        checkpoint.read(tmp_path / name / "last.safetensors").tensors for name in ("whole", "cut")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(RecipeError, match="with delta_t 3 and select_t 1, and the run was"):
        sparse.train_ticket(recipe, 3, tmp_path / "cut", True, **options)
    with pytest.raises(TrainingError, match="mpt-fast rigl --resume"):
        training.train(recipe, tmp_path / "cut", True, **options)
    model, _ = training.load_run(tmp_path / "whole")
    assert all(x.kept_only is None for x in layers(model))


def test_errors() -> None:
    with pytest.raises(ValueError, match="no ticket layer"):
        sparse.RigLTickets(nn.Linear(2, 2), 4)
    with pytest.raises(ValueError, match="delta_t must be an int of at least 1"):
        sparse.RigLTickets(network(), 0)
    with pytest.raises(ValueError, match="select_t must be an int of at least 1"):
        sparse.RigLTickets(network(), 4, select_t=0)
