"""`mpt-fast approximate` on a tiny trained network."""

import json

import pytest
import torch
from typer.testing import CliRunner

from mpt_fast import random_binary
from mpt_fast.cli.app import app
from mpt_fast.training import recipe_for, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    train(recipe_for("fc", "digits", dense=True, epochs=1, width=0.05), folder, quiet=True)
    return folder


def _invoke(*arguments):
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(app, ["approximate", *map(str, arguments), "--threads", "1"])
    finally:
        torch.set_num_threads(threads)


def test_json_holds_the_report_and_the_file_is_written(run, tmp_path):
    file = tmp_path / "found.mpt"
    done = _invoke(run, "--epsilon", 0.2, "--seed", 4, "-o", file, "--images", 50, "--json")
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    found = random_binary.load(file)
    assert data["seed"] == found.seed == 4
    assert 0 < data["observed_error"] <= data["certificate"] <= data["epsilon"] == 0.2
    assert data["observed_error"] == max(data["observed"].values())
    assert data["edges_kept"] == found.report.edges_kept < data["edges_drawn"]
    assert len(data["widths"]) == data["depth"]
    assert max(data["widths"]) == data["width"]
    assert data["file_bytes"] == file.stat().st_size
    assert 1 < data["largest_image_norm"] < 100
    assert 45 <= data["predictions_unchanged"] <= data["predictions_compared"] == 50


def test_table_names_what_was_asked_for(run):
    done = _invoke(run, "--epsilon", 0.5, "--images", 10)
    assert done.exit_code == 0, done.stderr
    for word in ("Depth", "Widths", "Greatest width", "Signs drawn", "Signs kept",
                 "Bits per weight", "Error at most", "Largest error seen",
                 "Predictions unchanged"):  # fmt: skip
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["--redundancy", 2], "try redundancy", 1),
        (["--epsilon", 0], "--epsilon", 2),
        (["--radius", "nan"], "--radius", 2),
        (["--redundancy", 0], "--redundancy", 2),
    ],
)
def test_failures_are_one_line(run, arguments, message, status):
    done = _invoke(run, *arguments)
    assert done.exit_code == status
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_run_is_named(tmp_path):
    done = _invoke(tmp_path / "nothing")
    assert done.exit_code == 1
    assert "nothing" in done.stderr
