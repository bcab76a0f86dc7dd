"""`mpt-fast train --biprop-config`: dry runs need no data, errors name the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CONV = {
    "arch": "Conv4", "data": "/mnt", "set": "CIFAR10", "optimizer": "sgd", "lr": 0.1,
    "lr_policy": "cosine_lr", "epochs": 100, "batch_size": 128, "conv_type": "SubnetConv",
    "bn_type": "NonAffineBatchNorm", "freeze_weights": True, "prune_rate": -1,
    "init": "kaiming_normal", "scale_fan": True, "workers": 4,
}  # fmt: skip


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_dry_run_needs_no_data(cli: Callable, tmp_path: Path) -> None:
    path = written(tmp_path, {**CONV, "arch": "Conv4Wide", "width_mult": 0.25})
    arguments = ["train", "--biprop-config", path, "--prune-rate", "0.1", "--dry-run"]
    done = cli(*arguments, "--json", "--epochs", 7)
    assert (done.status, done.err) == (0, "")
    sizes = [3 * 16 * 9, 16 * 16 * 9, 16 * 32 * 9, 32 * 32 * 9, 32 * 64 * 64, 64 * 64, 64 * 10]
    assert done.json["weights"] == sum(sizes)
    assert done.json["kept"] == sum(n - int((1 - 0.1) * n) for n in sizes)
    assert done.json["trained"] == sum(sizes)
    assert done.json["recipe"]["epochs"] == 7
    assert {line["key"] for line in done.json["mapping"]} == {*CONV, "width_mult"}
    said = cli(*arguments)
    assert said.status == 0
    assert "scale_fan=pruned" in said.out
    assert "Kept at the end" in said.out
    assert cli("train", "conv4", "--dry-run", "--json").json["kept_at_start"] > 0


def test_global_dry_run_counts_start_and_end(cli: Callable, tmp_path: Path) -> None:
    values = {**CONV, "arch": "Conv4Wide", "width_mult": 0.125, "conv_type": "GlobalSubnetConv"}
    path = written(tmp_path, values)
    found = cli("train", "--biprop-config", path, "--prune-rate", "0.1", "--dry-run", "--json").json
    total = found["weights"]
    assert found["kept"] == total - int((1 - 0.1) * total)
    assert found["kept_at_start"] == total - int(0.5 * total)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--prune-rate", "0.5"], 2, "needs --biprop-config"),
        (["--biprop-config", "FILE", "--recipe", "digits-float"], 2, "not both"),
        (["--biprop-config", "FILE"], 1, "add --prune-rate K"),
    ],
)
def test_command_line_errors(
    cli: Callable, tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    path = written(tmp_path, CONV)
    done = cli("train", *[path if a == "FILE" else a for a in arguments])
    assert done.status == status
    assert words in done.err
