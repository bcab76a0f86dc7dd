"""`mpt-fast rigl`: a run, its JSON, what takes it further, and wrong usage."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mpt_fast import sparse, training

SMALL = ["--set", "width=0.2", "--epochs", "1", "--threads", "1", "--device", "cpu"]


def test_a_run_can_be_resumed_evaluated_and_packed(cli: Callable, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "net.mpt"
    arguments = ["rigl", "lenet_300_100", *SMALL, "--sparsity", "0.8", "--delta-t", "3"]
    done = cli(*arguments, "--out", str(run), "--json")
    assert done.status == 0, done.err
    found = done.json
    assert found["weights"] == 64 * 60 + 60 * 20 + 20 * 10
    assert found["kept"] / found["weights"] == pytest.approx(0.2, abs=2e-3)
    assert found["inference_ratio"] == pytest.approx(0.2, abs=2e-3)
    assert found["training_ratio"] == pytest.approx((11 * 0.2 + 1) / 12, abs=2e-3)
    assert found["size_bytes"] < 0.3 * found["dense_bytes"]
    done = cli(*arguments, "--out", str(run), "--resume", "--json")
    assert done.status == 0, done.err
    assert done.json["accuracy"] == found["accuracy"]
    done = cli("eval", str(run), "--json")
    assert done.status == 0, done.err
    assert done.json["accuracy"] == found["accuracy"]
    done = cli("pack", str(run), "-o", str(file), "--json")
    assert done.status == 0, done.err
    assert file.is_file()


@pytest.mark.parametrize("method", ["static", "set", "snfs", "snip", "pruning", "dnw"])
def test_every_method_runs(method: str, cli: Callable, tmp_path: Path) -> None:
    arguments = ["rigl", "lenet_300_100", *SMALL, "--method", method, "--out", str(tmp_path / "r")]
    own = ["--set", "frequency=2"] if method == "pruning" else []
    done = cli(*arguments, *own, "--json")
    assert done.status == 0, done.err
    found = done.json
    assert found["kept"] / found["weights"] == pytest.approx(0.1, abs=2e-3)


def test_a_small_dense_network_is_as_large_and_resumes(cli: Callable, tmp_path: Path) -> None:
    arguments = ["rigl", "lenet_300_100", *SMALL, "--method", "small-dense", "--sparsity", "0.8"]
    run = str(tmp_path / "r")
    done = cli(*arguments, "--out", run, "--json")
    assert done.status == 0, done.err
    found = done.json
    # 64-60-20-10 at 0.2 by ERK: 32 bits per weight and bias, a bit per entry of a masked layer.
    sizes = (64 * 60, 60 * 20, 20 * 10)
    target = 32 * (0.2 * sum(sizes) + 90) + sum(sizes)
    assert 8 * found["size_bytes"] == pytest.approx(target, rel=0.05)  # widths are whole
    assert found["kept"] == found["size_bytes"] / 4 - sum(widths(run))
    assert found["weights"] == sum(sizes)
    assert found["training_ratio"] == pytest.approx(found["inference_ratio"])
    again = cli(*arguments, "--out", run, "--resume", "--json")
    assert again.status == 0, again.err
    assert again.json["accuracy"] == found["accuracy"]
    other = cli(*arguments[:-1], "0.7", "--out", run, "--resume")
    assert other.status == 1
    assert "cannot resume" in other.err
    assert cli("eval", run, "--json").json["accuracy"] == found["accuracy"]


def widths(run: str) -> list[int]:
    model, _ = training.load_run(run)
    return [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]


def test_a_lottery_restart_has_the_run_s_masks_and_initial_weights(
    cli: Callable, tmp_path: Path
) -> None:
    first, second, third = (str(tmp_path / name) for name in "abc")
    base = ["rigl", "lenet_300_100", *SMALL]
    pruned = cli(*base, "--method", "pruning", "--set", "frequency=1", "--out", first, "--json")
    assert pruned.status == 0, pruned.err
    lottery = [*base, "--method", "lottery", "--from", first, "--out", second, "--json"]
    # A learning rate so small that what is left are the weights it began with.
    done = cli(*lottery, "--lr", "1e-30")
    assert done.status == 0, done.err
    masks = sparse.run_masks(first)
    assert {n: m.tolist() for n, m in sparse.run_masks(second).items()} == {
        n: m.tolist() for n, m in masks.items()
    }
    model, recipe = training.load_run(second)
    initial = recipe.build((1, 8, 8), 10).state_dict()
    for name, mask in masks.items():
        assert torch.equal(model.state_dict()[f"{name}.weight"], initial[f"{name}.weight"] * mask)
    assert done.json["kept"] == pruned.json["kept"]
    assert done.json["training_ratio"] == pytest.approx(done.json["inference_ratio"])
    again = cli(*lottery, "--lr", "1e-30", "--resume")
    assert again.status == 0, again.err
    moving = cli(*base, "--from", first, "--out", third, "--delta-t", "3", "--json")
    assert moving.status == 0, moving.err
    assert moving.json["kept"] == pruned.json["kept"]
    assert any(not torch.equal(m, masks[n]) for n, m in sparse.run_masks(third).items())
    other = cli(*base, "--from", first, "--out", str(tmp_path / "d"), "--seed", "1")
    assert other.status == 1
    assert "masks_from: seed is 1 here and 0 in" in other.err
    dense = cli(*base, "--from", str(tmp_path / "none"), "--out", str(tmp_path / "d"))
    assert dense.status == 1
    assert "no such checkpoint" in dense.err


def test_a_rigl_driven_ticket(cli: Callable, tmp_path: Path) -> None:
    arguments = ["rigl", "conv2", "--set", "width=0.125", *SMALL[2:], "--method", "ticket"]
    done = cli(*arguments, "--delta-t", "4", "--out", str(tmp_path / "r"), "--json")
    assert done.status == 0, done.err
    found = done.json
    s = found["inference_ratio"]
    assert found["training_ratio"] == pytest.approx((11 * s + 1) / 12)
    assert found["kept"] / found["weights"] == pytest.approx(0.1, abs=5e-3)
    again = cli(*arguments, "--delta-t", "4", "--out", str(tmp_path / "r"), "--resume", "--json")
    assert again.json["accuracy"] == found["accuracy"]
    other = cli(*arguments, "--delta-t", "2", "--out", str(tmp_path / "r"), "--resume")
    assert other.status == 1
    assert "RigL-driven ticket with delta_t 2" in other.err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["rigl"], 2, "name a model"),
        (["rigl", "lenet_300_100", "--method", "sett"], 1, "method must be one of rigl, set"),
        (["rigl", "lenet_300_101"], 1, "did you mean lenet_300_100"),
        (["rigl", "conv2", "--method", "static", "--delta-t", "5"], 2, "delta_t has no meaning"),
        (["rigl", "conv2", "--method", "snip", "--stop", "0.5"], 2, "stop has no meaning"),
        (["rigl", "conv2", "--set", "frequency=5"], 2, "frequency has no meaning for --method r"),
        (["rigl", "conv2", "--method", "small-dense", "--alpha", "0.1"], 2, "alpha has no meaning"),
        (["rigl", "conv2", "--method", "ticket", "--distribution", "er"], 2, "distribution has no"),
        (["rigl", "conv2", "--method", "lottery"], 2, "lottery needs --from RUN"),
        (["rigl", "conv2", "--method", "snip", "--from", "x"], 2, "--from has no meaning"),
        (["rigl", "conv2", "--from", "x", "--sparsity", "0.5"], 2, "sparsity has no meaning with"),
        (["rigl", "conv2", "--method", "ticket", "--alpha", "0.2"], 2, "alpha has no meaning"),
        (["rigl", "conv2", "--sparsity", "1"], 1, "must lie in [0, 1)"),
    ],
)
def test_wrong_usage(
    arguments: list[str], status: int, said: str, cli: Callable, tmp_path: Path
) -> None:
    done = cli(*arguments, "--out", str(tmp_path / "r"))
    assert done.status == status
    assert said in done.err
    assert done.out == ""
