"""`mpt-fast rigl`: a run, its JSON, what takes it further, and wrong usage."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
    done = cli(*arguments, "--set", "frequency=2", "--json")
    assert done.status == 0, done.err
    found = done.json
    assert found["kept"] / found["weights"] == pytest.approx(0.1, abs=2e-3)


def test_a_rigl_driven_ticket(cli: Callable, tmp_path: Path) -> None:
    arguments = ["rigl", "conv2", "--set", "width=0.125", *SMALL[2:], "--method", "ticket"]
    done = cli(*arguments, "--delta-t", "4", "--out", str(tmp_path / "r"), "--json")
    assert done.status == 0, done.err
    found = done.json
    s = found["inference_ratio"]
    assert found["training_ratio"] == pytest.approx((11 * s + 1) / 12)
    assert found["kept"] / found["weights"] == pytest.approx(0.1, abs=5e-3)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["rigl"], 2, "name a model"),
        (["rigl", "lenet_300_100", "--method", "sett"], 1, "method must be one of rigl, set"),
        (["rigl", "lenet_300_101"], 1, "did you mean lenet_300_100"),
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
