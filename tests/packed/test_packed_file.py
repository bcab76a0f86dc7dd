"""Saving and loading packed models; their plan, size and errors."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_checks import LAYERWISE, assert_same, randomise
from torch import Tensor, nn

import mpt_fast as mpt
from mpt_fast import models, runtime
from mpt_fast.kernels import cpu
from mpt_fast.kernels.backend import BackendError
from mpt_fast.packed import PackedModel, PackError
from mpt_fast.runtime import InputError, engine

SHAPE = (3, 12, 12)


@pytest.fixture(params=["conv2", "vgg_small", "resnet20", "relu"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Networks that between them use every step and every kind of field."""
    name, activation = request.param, "binary"
    if name == "relu":
        name, activation = "vgg_small", "relu"
    return randomise(
        models.build(
            name, activation=activation, bn="affine", width=0.1, image_size=12, config=LAYERWISE
        )
    )


def test_round_trip(model: nn.Module, backend: str, tmp_path: Path) -> None:
    x = torch.randn(5, *SHAPE)
    packed = mpt.pack(model, x, backend=backend)
    report = packed.save(tmp_path / "net.mpt")
    loaded = mpt.load(tmp_path / "net.mpt", backend=backend)
    assert torch.equal(loaded(x), packed(x))
    assert_same(loaded, model, x)
    assert loaded.input_shape == SHAPE
    assert loaded.output_shape == (10,)
    plans = [[row | {"measured": None} for row in p.plan().to_dicts()] for p in (loaded, packed)]
    assert plans[0] == plans[1]
    assert report == loaded.size_report()
    assert report.file_bytes == (tmp_path / "net.mpt").stat().st_size
    loaded.save(tmp_path / "again.mpt")
    assert (tmp_path / "again.mpt").read_bytes() == (tmp_path / "net.mpt").read_bytes()


def test_other_safetensors_readers_open_the_file(model: nn.Module, tmp_path: Path) -> None:
    from safetensors import safe_open

    mpt.pack(model, torch.randn(1, *SHAPE), backend="reference").save(tmp_path / "net.mpt")
    with safe_open(tmp_path / "net.mpt", "np") as file:
        program = json.loads(file.metadata()["mpt_fast"])
        assert program["version"] == 1
        assert all(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 - no mapping


@pytest.mark.skipif(not cpu.available(), reason="the runtime is the engine, which is not built")
def test_the_runtime_gives_the_same_without_torch(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(3, *SHAPE)
    packed = mpt.pack(model, x, backend="cpu", threads=1)
    packed.save(tmp_path / "net.mpt")
    np.save(tmp_path / "x.npy", x.numpy())
    script = (
        "import sys, numpy as np\n"
        "from mpt_fast import runtime\n"
        "model = runtime.load(sys.argv[1] + '/net.mpt', threads=1)\n"
        "np.save(sys.argv[1] + '/y.npy', model(np.load(sys.argv[1] + '/x.npy')))\n"
        "model.size_report(), model.layers()\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'torch']\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    assert np.array_equal(np.load(tmp_path / "y.npy"), packed(x).numpy())


def test_a_failed_save_leaves_the_old_file(model: nn.Module, tmp_path: Path) -> None:
    packed = mpt.pack(model, torch.randn(1, *SHAPE), backend="reference")
    target = tmp_path / "net.mpt"
    target.mkdir()
    with pytest.raises(runtime.FileError, match=r"cannot write .*net\.mpt"):
        packed.save(target)
    with pytest.raises(runtime.FileError, match="cannot write"):
        packed.save(tmp_path / "missing" / "net.mpt")
    assert [path.name for path in tmp_path.iterdir()] == ["net.mpt"]


def small(backend: str | None = "reference", threads: int | None = None) -> PackedModel:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    return mpt.pack(network, torch.zeros(1, 3, 6, 6), backend=backend, threads=threads)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(2, 3, 6, 5),
            r"input has shape \[2, 3, 6, 5\]; this network takes \[N, 3, 6, 6\]",
        ),
        (torch.zeros(2, 4, 6, 6), r"takes \[N, 3, 6, 6\]"),
        (torch.zeros(3, 6, 6), r"takes \[N, 3, 6, 6\]"),
        (torch.zeros(2, 3, 6, 6, dtype=torch.int32), "torch.int32 tensor; give a float32"),
        (torch.zeros(2, 3, 6, 6, dtype=torch.bfloat16), "torch.bfloat16 tensor"),
        (torch.full((1, 3, 6, 6), float("nan")), "NaN or infinite"),
        (torch.full((1, 3, 6, 6), float("inf")), "NaN or infinite"),
        (torch.zeros(1, 3, 6, 6, device="meta"), "on meta; a packed model runs on the CPU"),
        (np.zeros((1, 3, 6, 6), np.float32), "input is ndarray"),
    ],
    ids=str,
)
def test_bad_inputs(x: object, message: str, backend: str) -> None:
    packed = small(backend)
    with pytest.raises(InputError, match=message) as error:
        packed(x)
    assert "\n" not in str(error.value)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Unbatched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0)


class Pair(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        ("net", torch.zeros(1, 3), "pack takes an nn.Module, not str"),
        (nn.Linear(3, 2), torch.zeros(1, 4), r"Linear fails on an input of shape \[1, 4\]"),
        (nn.Linear(3, 2), torch.zeros(0, 3), r"example_input has shape \[0, 3\]"),
        (nn.Linear(3, 2), torch.zeros(3), r"example_input has shape \[3\]"),
        (nn.Linear(3, 2), torch.zeros(1, 3, dtype=torch.int64), "example_input is not a float"),
        (nn.Linear(3, 2), [0.0], "example_input is not a float"),
        (Branch(), torch.zeros(1, 3), "torch.fx cannot trace Branch"),
        (Two(), torch.zeros(1, 3), "Two does not return one tensor"),
        (Noise(), torch.zeros(1, 3), "torch.fx misreads Noise"),
        (Unbatched(), torch.zeros(1, 3), "first dimension must be the batch"),
        (Pair(), torch.zeros(1, 3), "Pair fails on an input"),
        (nn.Identity(), torch.zeros(1, 3), "Identity computes nothing"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_models_that_cannot_be_packed(model: object, example: object, message: str) -> None:
    with pytest.raises(PackError, match=message) as error:
        mpt.pack(model, example, backend="reference")  # type: ignore[arg-type]  # on purpose
    assert "\n" not in str(error.value)


def test_backends_and_threads() -> None:
    with pytest.raises(BackendError, match="unknown backend 'gpu'"):
        small("gpu")
    for threads in (0, -1, 1.5):
        with pytest.raises(PackError, match="threads="):
            small(threads=threads)  # type: ignore[arg-type]  # on purpose
    assert small(None).backend == ("cpu" if cpu.available() else "reference")


def test_an_engine_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_module", None)
    monkeypatch.setattr(cpu, "_reason", "not built")
    assert small(None).backend == "reference"
    with pytest.raises(BackendError, match="engine is not installed"):
        small("cpu")


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    from mpt_fast.kernels import backend

    backend._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, "mpt_fast"):
        chosen = small(None).backend
    assert f"packed model on cpu: backend {chosen}" in caplog.text


def test_plan_prints_and_serialises(backend: str) -> None:
    packed = small(backend)
    plan = packed.plan()
    rows = plan.to_dicts()
    assert json.loads(json.dumps(rows))[0]["layer"] == "0"
    assert [row["operations"] for row in rows] == ["conv + relu", "flatten", "linear"]
    assert rows[0]["kept"] == 108
    assert rows[0]["density"] == 1.0
    assert rows[0]["output"] == (4, 4, 4)
    lanes = ", pixels" if engine.LAYOUT == "pixels" else ""
    expected = "reference"
    if backend != "reference":
        code = runtime.CompiledProgram(packed.program, "f32").code
        expected = f"{'sparse code' if code else 'sparse'}{lanes}"
    assert rows[0]["kernel"] == expected
    lines = str(plan).splitlines()
    assert len(lines) == 2 + len(rows)
    assert plan.backend == backend
    assert all(word in lines[1] for word in ("layer", "kernel", "lanes", "kept", "density", "why"))


@pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
def test_packed_networks_without_code(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    x = torch.randn(20, 3, 6, 6)
    expected = mpt.pack(network, x, "cpu", 1)
    packed = mpt.pack(network, x, "cpu", 1, code=False)
    packed.save(tmp_path / "net.mpt")
    for model in (packed, mpt.load(tmp_path / "net.mpt", "cpu", 1, code=False)):
        assert [row.kernel for row in model.plan(20).steps] == ["sparse", "free", "sparse"]
        assert torch.equal(model(x), expected(x))


@pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
def test_plan_shows_predicted_and_measured_times() -> None:
    packed = small("cpu")
    before = packed.plan()
    assert before.batch == packed.plan(before.batch).steps[0].lanes
    assert all(step.predicted is not None and step.predicted >= 0 for step in before.steps)
    assert all(step.measured is None for step in before.steps)
    packed(torch.randn(70, *packed.input_shape))
    after = packed.plan()
    assert (after.batch, after.threads) == (70, torch.get_num_threads())
    assert all(step.measured is not None and step.measured >= 0 for step in after.steps)
    title = str(after).splitlines()[0]
    assert all(word in title for word in ("batch 70", "predicted", "measured"))
    assert all(step.measured is None for step in packed.plan(71).steps)
    one, many = packed.plan(16), packed.plan(1600)
    assert sum(s.predicted or 0 for s in many.steps) > sum(s.predicted or 0 for s in one.steps)
    with pytest.raises(PackError, match="batch=0 is not a positive number"):
        packed.plan(0)


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05])
def test_files_are_near_the_entropy_bound(density: float) -> None:
    """A layer of 147 456 weights: everything in the file, not only the mask."""
    config = mpt.TicketConfig(sparsity=1 - density, scope="layer")
    layer = mpt.MPTConv2d(128, 128, 3, padding=1, config=config)
    model = nn.Sequential(nn.BatchNorm2d(128), mpt.BinaryActivation(), layer, nn.BatchNorm2d(128))
    packed = mpt.pack(randomise(model), torch.randn(1, 128, 4, 4), backend="reference")
    report = packed.size_report()
    assert report.weights == 147_456
    assert report.fp32_bytes == 4 * report.weights
    assert report.parts["masks"] + report.parts["signs"] <= 1.03 * report.bound_bytes
    assert report.file_bytes <= 1.10 * report.bound_bytes + 4096
    assert sum(report.parts.values()) == report.file_bytes
    assert json.loads(json.dumps(report.to_dict()))["kept"] == report.kept
    assert str(report.kept) in str(report)


@pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
def test_plan_counts_a_joined_layer_where_it_is_computed() -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(64, 3, 6, 6)
    packed = mpt.pack(nn.Sequential(*layers), x, "cpu", 1)
    packed(x)
    conv, pool, *rest = packed.plan().steps
    assert (conv.kernel, conv.why) == ("joined", f"computed by {pool.layer}")
    assert conv.predicted is conv.measured is None
    assert pool.kernel.startswith("sparse")
    assert all(step.predicted is not None for step in (pool, *rest))
    assert pool.measured
    # A small batch has its pixels in the lanes, where nothing is joined.
    assert packed.plan(1).steps[0].kernel.endswith(", pixels")
