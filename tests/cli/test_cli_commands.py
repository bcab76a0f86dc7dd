"""The commands on a tiny ticket: train, eval, pack, run, bench, demo."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mpt_fast as mpt
from mpt_fast import data, runtime
from mpt_fast.report import demo as page
from mpt_fast.training import Recipe, load_run

TINY = ["conv2", "--width", "0.125", "--activation", "binary", "--epochs", "1", "--threads", "1"]


def dumped(cli: Callable, *arguments: str | Path) -> dict:
    done = cli("train", *arguments, "--dump")
    assert done.status == 0, done.err
    return yaml.safe_load(done.out)


def test_dump_shows_every_default_and_reads_back(cli: Callable, tmp_path: Path) -> None:
    values = dumped(cli, "conv4")
    assert set(values) == set(Recipe().to_dict())
    file = tmp_path / "recipe.yaml"
    file.write_text(cli("train", "conv4", "--dump").out, encoding="utf-8")
    assert dumped(cli, "--recipe", file) == values
    assert cli("train", "conv4", "--dump", "--json").json["recipe"] == values


@pytest.mark.parametrize(
    ("arguments", "optimizer", "lr"),
    [
        (["--activation", "relu"], "sgd", 0.1),
        (["--activation", "binary"], "adam", 0.1),
        (["--activation", "binary", "--lr", "0.02"], "adam", 0.02),
        (["--activation", "binary", "--optimizer", "sgd"], "sgd", 0.1),
    ],
)
def test_defaults_follow_the_activation(
    cli: Callable, arguments: list[str], optimizer: str, lr: float
) -> None:
    values = dumped(cli, "conv4", *arguments)
    assert (values["optimizer"], values["lr"]) == (optimizer, lr)


def test_options_override_the_file_which_overrides_the_defaults(
    cli: Callable, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: conv2\nactivation: binary\nepochs: 7\nseed: 5\n", encoding="utf-8")
    values = dumped(cli, "--recipe", file, "--epochs", "9", "--set", "label-smoothing=0.1")
    assert values["model"] == "conv2"
    assert values["optimizer"] == "adam"  # the default for what the file says
    assert values["epochs"] == 9
    assert values["seed"] == 5
    assert values["label_smoothing"] == 0.1
    assert dumped(cli, "conv6", "--recipe", file)["model"] == "conv6"
    assert dumped(cli, "--recipe", "digits-binary", "--sparsity", "0.8")["sparsity"] == 0.8


def test_training_writes_a_run_and_says_what_came_out(cli: Callable, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = cli("train", *TINY, "--out", out, "--json")
    assert done.status == 0
    assert done.err == ""
    assert done.json["kept"] == done.json["weights"] - done.json["weights"] // 2
    assert 0 <= done.json["accuracy"] <= 1
    assert done.json["recipe"]["width"] == 0.125
    assert {"recipe.yaml", "metrics.csv", "last.safetensors"} <= {p.name for p in out.iterdir()}

    again = cli("train", *TINY, "--out", out)
    assert again.status == 1
    assert "--resume" in again.err
    resumed = cli("train", "--resume", "--out", out, "--json")
    assert resumed.status == 0, resumed.err
    assert resumed.json["accuracy"] == done.json["accuracy"]


def test_training_tells_a_person_what_to_do_next(cli: Callable, tmp_path: Path) -> None:
    done = cli("train", *TINY, "--out", tmp_path / "t")
    assert done.status == 0
    for words in ("Test accuracy", "Weights kept", f"mpt-fast pack {tmp_path / 't'}"):
        assert words in done.out


def test_run_folder_is_named_after_what_is_trained(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("train", *TINY, "--dense", "--json")
    assert done.status == 0, done.err
    assert done.json["out"] == "runs/conv2-digits-dense-binary"
    assert "kept" not in done.json


def test_eval_agrees_on_run_checkpoint_and_packed_file(
    cli: Callable, run_folder: Path, packed_file: Path
) -> None:
    """The run and its checkpoint in float32; the packed file as the network in float64."""
    named = [run_folder, run_folder / "last.safetensors", packed_file]
    done = [cli("eval", path, "--json", "--threads", 1) for path in named]
    assert [result.status for result in done] == [0, 0, 0]
    run, checkpoint, packed = (result.json["correct"] for result in done)
    assert run == checkpoint
    digits = data.load("digits")
    images = digits.normalize(digits.test.batch(torch.arange(len(digits.test))))
    model, _ = load_run(run_folder)
    answers = model.double()(images.double()).argmax(1)
    assert packed == int((answers == digits.test.labels).sum())
    assert done[0].json["total"] == len(digits.test)
    assert cli("eval", run_folder, "--best", "--json").json["total"] == done[0].json["total"]


@pytest.mark.parametrize("name", ["recipe.yaml", "middle.safetensors"])
def test_eval_of_something_else_names_it(cli: Callable, run_folder: Path, name: str) -> None:
    (run_folder / name).touch()
    done = cli("eval", run_folder / name)
    assert done.status == 1
    assert "neither a run folder nor a checkpoint" in done.err


def test_packed_file_without_data_needs_the_option(cli: Callable, tmp_path: Path) -> None:
    file = anonymous(tmp_path)
    assert "give --data" in cli("eval", file).err
    assert "no twin to compare" in cli("bench", file).err


def anonymous(folder: Path) -> Path:
    """A packed file that says nothing about itself."""
    import torch

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    mpt.pack(model, torch.zeros(1, 1, 8, 8)).save(folder / "anonymous.mpt")
    return folder / "anonymous.mpt"


def test_pack_reports_size_and_plan(cli: Callable, run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.mpt"
    done = cli("pack", run_folder, "-o", file, "--json")
    assert done.status == 0, done.err
    report = done.json
    assert report["file_bytes"] == file.stat().st_size == sum(report["parts"].values())
    assert report["fp32_bytes"] == 4 * report["weights"]
    assert report["kept"] == report["weights"] - report["weights"] // 2
    assert report["bound_bytes"] < report["file_bytes"]
    assert report["plan"]
    about = runtime.read_program(file).metadata
    assert about["classes"] == [str(digit) for digit in range(10)]
    assert (about["model"], about["data"], about["activation"]) == ("conv2", "digits", "binary")
    assert about["accuracy"] == report["accuracy"] == cli("eval", file, "--json").json["accuracy"]

    for words in ("Entropy bound", "Weights kept", "linear", "mpt-fast run"):
        assert words in cli("pack", run_folder, "-o", file).out


def test_pack_with_8_bit_activations_prints_both_accuracies(cli: Callable, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cli("train", "conv2", "--width", "0.125", "--activation", "relu", "--epochs", "1",
               "--threads", "1", "--out", run)  # fmt: skip
    assert done.status == 0, done.err
    whole, file = tmp_path / "float.mpt", tmp_path / "int8.mpt"
    in_float = cli("pack", run, "-o", whole, "--json").json["accuracy"]
    report = cli("pack", run, "-o", file, "--activations", "int8", "--json").json
    assert report["accuracy_float"] == in_float
    assert report["accuracy_difference"] == report["accuracy"] - in_float
    assert abs(report["accuracy_difference"]) < 0.05
    assert report["accuracy"] == cli("eval", file, "--json").json["accuracy"]
    assert runtime.read_program(file).has_levels
    for words in ("With float activations", "Difference", "points"):
        assert words in cli("pack", run, "-o", file, "--activations", "int8").out


def test_pack_with_8_bit_activations_refuses(
    cli: Callable, run_folder: Path, tmp_path: Path
) -> None:
    binary = cli("pack", run_folder, "-o", tmp_path / "t.mpt", "--activations", "int8")
    assert binary.status == 1
    assert "this one has binary ones" in binary.err
    seeds = cli("pack", run_folder, "-o", tmp_path / "t", "--activations", "int8", "--seed-only")
    assert seeds.status == 2
    assert list(tmp_path.iterdir()) == []


def test_pack_that_cannot_write_fails(cli: Callable, run_folder: Path, tmp_path: Path) -> None:
    done = cli("pack", run_folder, "-o", tmp_path / "none" / "t.mpt")
    assert done.status == 1
    assert "cannot write" in done.err


def test_run_answers_like_the_trained_network(
    cli: Callable, run_folder: Path, packed_file: Path, tmp_path: Path
) -> None:
    dataset = data.load("digits")
    model, _ = load_run(run_folder)
    import torch

    index = torch.arange(30)
    raw = dataset.test.batch(index)
    logits = model.double()(dataset.normalize(raw, torch.float64))
    chances = logits.softmax(1)
    np.save(tmp_path / "many.npy", raw.numpy())
    Image.fromarray(raw[3, 0].numpy()).save(tmp_path / "one.png")
    done = cli(
        "run", packed_file, tmp_path / "many.npy", tmp_path / "one.png", "--top", 3, "--json"
    )
    assert done.status == 0, done.err
    answers = done.json["images"]
    assert [a["image"] for a in answers] == [f"many.npy[{i}]" for i in range(30)] + ["one.png"]
    assert [int(a["class"]) for a in answers[:30]] == chances.argmax(1).tolist()
    np.testing.assert_allclose(
        [a["confidence"] for a in answers[:30]], chances.amax(1).tolist(), rtol=1e-4
    )
    assert {**answers[3], "image": ""} == {**answers[30], "image": ""}
    top = answers[0]["top"]
    assert len(top) == 3
    assert top[0]["confidence"] >= top[1]["confidence"] >= top[2]["confidence"]


def test_run_options(cli: Callable, packed_file: Path, tmp_path: Path) -> None:
    raw = data.load("digits").test.images[:5].numpy()
    np.save(tmp_path / "plain.npy", raw)
    np.save(tmp_path / "paper.npy", 255 - raw)
    plain = cli("run", packed_file, tmp_path / "plain.npy", "--json").json["images"]
    paper = cli("run", packed_file, tmp_path / "paper.npy", "--invert", "--json").json["images"]
    assert [a["class"] for a in paper] == [a["class"] for a in plain]
    assert (
        len(cli("run", packed_file, tmp_path / "plain.npy", "--limit", 2, "--json").json["images"])
        == 2
    )
    shown = cli("run", packed_file, tmp_path / "plain.npy").out
    assert "plain.npy[4]" in shown
    assert " %" in shown


def test_run_of_a_file_without_normalisation_says_so(cli: Callable, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8), np.uint8))
    done = cli("run", anonymous(tmp_path), tmp_path / "a.npy", "--json")
    assert done.status == 0
    assert "does not say how pixels are normalised" in done.err
    assert len(done.json["images"]) == 1


def test_run_never_imports_torch(shell: Callable, packed_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.uint8))
    code = (
        "import sys\n"
        "from mpt_fast.cli import main\n"
        f"sys.argv = ['mpt-fast', 'run', {str(packed_file)!r}, 'a.npy', '--json']\n"
        "try:\n    main()\n"
        "finally:\n    sys.stderr.write(repr('torch' in sys.modules))\n"
    )
    done = shell("-c", code, cwd=tmp_path)
    assert (done.status, done.err) == (0, "False")
    assert len(done.json["images"]) == 3


def test_run_without_the_engine_goes_through_pytorch_and_says_so(
    cli: Callable, packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", data.load("digits").test.images[:20].numpy())
    fast = cli("run", packed_file, tmp_path / "a.npy", "--json")
    monkeypatch.setattr("mpt_fast.kernels.cpu._module", None)
    slow = cli("run", packed_file, tmp_path / "a.npy", "--json")
    assert fast.err == ""
    assert "slow path through PyTorch: the C++ engine is not installed" in slow.err
    for one, other in zip(fast.json["images"], slow.json["images"], strict=True):
        assert one["class"] == other["class"]
        assert one["confidence"] == pytest.approx(other["confidence"], rel=1e-5)


def test_bench_of_a_file_and_of_a_model(cli: Callable, packed_file: Path) -> None:
    common = ["--seconds", "0.1", "--threads", "1", "--json"]
    for target in ([packed_file], ["conv2", "--image", "1x8x8"]):
        done = cli("bench", *target, "--batch", "3", "--batch", "64", *common)
        assert done.status == 0, done.err
        rows = done.json["results"]
        assert [(row["batch"], row["network"]) for row in rows] == [
            (3, "packed"), (3, "dense twin"), (64, "packed"), (64, "dense twin"),
        ]  # fmt: skip
        for packed, twin in zip(rows[::2], rows[1::2], strict=True):
            assert packed["ratio"] == pytest.approx(twin["median"] / packed["median"])
            assert packed["p20"] <= packed["median"] <= packed["p80"]
            assert twin["setting"].startswith("eager, ")
        assert done.json["threads"] == 1


def test_bench_does_not_time_a_wrong_network(
    cli: Callable, packed_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mpt_fast.packed.PackedModel.forward", lambda self, x: x.new_zeros(len(x), 10)
    )
    done = cli("bench", packed_file, "--seconds", "0.1")
    assert done.status == 1
    assert "it is not timed" in done.err


def test_demo_end_to_end(cli: Callable, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ["--model", "conv2", "--epochs", "1", "--batch", "32", "--seconds", "0.5",
                 "--threads", "1", "--out", out]  # fmt: skip
    done = cli("demo", *arguments)
    assert done.status == 0, done.err
    for words in ("Float ticket", "Binary ticket", "Entropy bound", "Images per second",
                  "Acceleration, kernels", f"{out}/report.html",
                  f"mpt-fast run {out}/binary.mpt {out}/images/*.png"):  # fmt: skip
        assert words in done.out, words
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    report = page.Demo.from_json(json.loads((out / "report.json").read_text(encoding="utf-8")))
    for role in page.TICKETS:
        ticket = report.network(role)
        assert ticket.disagreements == 0
        again = cli("eval", out / f"{role}.mpt", "--json").json
        assert ticket.accuracy == pytest.approx(again["accuracy"], rel=1e-12)
        assert ticket.file_bytes == (out / f"{role}.mpt").stat().st_size
        assert ticket.kept == pytest.approx(0.1 * ticket.weights, rel=0.01)
        assert ticket.weights == report.network(page.TWINS[role]).weights
    images = sorted((out / "images").iterdir())
    answers = cli("run", out / "binary.mpt", *images, "--json").json["images"]
    assert [answer["image"] for answer in answers] == [image.name for image in images]
    # The pictures were chosen among those it knows: their names begin with their class.
    assert [answer["class"] for answer in answers] == [image.name.split("-")[0] for image in images]

    again = cli("demo", *arguments, "--json")
    assert again.status == 0, again.err
    assert again.json["networks"][0]["accuracy"] == report.network("float").accuracy
