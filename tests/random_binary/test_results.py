"""What is done with an approximation: the module, the packed engine, files, predictions."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from random_binary_cases import Residual, ball, conv_net, mlp
from torch import nn

from mpt_fast import random_binary, runtime
from mpt_fast.kernels import cpu
from mpt_fast.packed.reference import run_reference
from mpt_fast.random_binary import approximate, predict
from mpt_fast.runtime import FileError
from mpt_fast.runtime.container import seal, unseal

CASES = {
    "mlp": (lambda: mlp([6, 8, 3], bias=True), (6,), 0.05),
    "flattened": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)),
        (3, 2, 2),
        0.5,
    ),
    "conv": (conv_net, (1, 12, 12), 1.0),
    "residual": (Residual, (1, 6, 6), 2.0),
}


@pytest.fixture(params=list(CASES))
def case(request):
    torch.manual_seed(0)
    build, shape, epsilon = CASES[request.param]
    net = build().double().eval()
    return net, shape, approximate(net, epsilon, 14, input_shape=shape)


# The module


def test_module_computes_the_exact_network(case):
    _net, shape, found = case
    x = np.random.default_rng(0).integers(-9, 10, (3, *shape))
    exact = found.integers(x)
    wanted = np.array([int(v) / found.network.unit for v in exact.ravel()]).reshape(exact.shape)
    got = found.module(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10 * np.abs(wanted).max())
    assert found.scale == 1 / found.network.unit


def test_module_keeps_dtype_and_takes_any_batch(case, monkeypatch):
    _, shape, found = case
    x = ball(7, shape)
    whole = found.module(x)
    assert found.module(x.float()).dtype == torch.float32
    torch.testing.assert_close(found.module(x.float()).double(), whole, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(random_binary.module, "_BYTES", 1)  # one image at a time
    torch.testing.assert_close(found.module(x), whole, rtol=1e-12, atol=1e-12)
    assert found.module(x[:0]).shape == (0, *whole.shape[1:])
    with pytest.raises(ValueError, match="takes floats"):
        found.module(x.long())
    with pytest.raises(ValueError, match="takes floats"):
        found.module(x[:, :0])


def test_module_has_the_gradient_of_its_target(case):
    net, shape, _found = case
    fine = approximate(net, 1e-8, 16, input_shape=shape).module
    x = ball(4, shape)
    gradients = []
    for function in (fine, net):
        y = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(y).square().sum(), y)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


def test_deep_networks_do_not_overflow_in_float32():
    """2**(pL) is past the range of float32 (and of a sum of squares); the module is not."""
    net = mlp([4, 4, 4, 4, 4, 4, 4, 3])
    found = approximate(net, 1e-4, 16, bits=20)
    assert found.network.unit == 2**140
    module = random_binary.RandomBinaryModule(found.network, (4,), (3,), dtype=torch.float32)
    x = ball(20, [4])
    torch.testing.assert_close(module(x.float()).double(), net(x), rtol=1e-4, atol=1e-4)


# The packed engine


def test_program_computes_the_same(case):
    _, shape, found = case
    x = ball(5, shape)
    program = found.program()
    wanted = found.module(x)
    channels = x.reshape(5, *program.input)
    got = run_reference(program, channels).reshape(wanted.shape)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)
    assert sum(s.taps.kept for s in program.steps if hasattr(s, "taps")) >= (
        found.report.edges_kept - 2 * 14
    )  # the constant's edges become a shift


@pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
def test_engine_runs_the_program(case):
    _, shape, found = case
    x = ball(5, shape)
    got = runtime.Model(found.program(), threads=1).run(x.numpy(), 1)
    np.testing.assert_allclose(got, found.module(x).numpy(), rtol=1e-12, atol=1e-12)


# Files


def test_file_holds_seed_and_mask_only(case, tmp_path):
    _, shape, found = case
    path = tmp_path / "found.mpt"
    size = found.save(path)
    assert size == path.stat().st_size
    _texts, tensors = unseal(path.read_bytes())
    assert {name.split(".")[1] for name in tensors} == {"used", "edges"}
    assert sum(t.nbytes for t in tensors.values()) < found.report.mask_bits / 8
    again = random_binary.load(path)
    assert again.report == found.report
    assert (again.input_shape, again.output_shape) == (found.input_shape, found.output_shape)
    for mine, its in zip(again.network.layers, found.network.layers, strict=True):
        for field in dataclasses.fields(its):
            assert np.array_equal(getattr(mine, field.name), getattr(its, field.name)), field.name
    x = ball(3, shape)
    assert torch.equal(again.module(x), found.module(x))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "found.mpt"
    approximate(mlp([6, 8, 3], bias=True), 0.5, 14).save(path)
    return path


def test_altered_and_truncated_files_are_refused(saved):
    content = saved.read_bytes()
    for place in np.linspace(0, len(content) - 1, 60).astype(int):
        saved.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(FileError) as caught:
            random_binary.load(saved)
        assert "\n" not in str(caught.value)
    for length in (0, 7, 100, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(FileError, match=saved.name):
            random_binary.load(saved)
    with pytest.raises(FileError, match="cannot read"):
        random_binary.load(saved.with_name("missing.mpt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d.update(seed=-1), "seed"),
        (lambda d: d.update(channels=7), "fit"),
        (lambda d: d.update(constant=1), "layers"),
        (lambda d: d.update(size=[0, 1]), "size"),
        (lambda d: d.update(output_shape=[4]), "shapes"),
        (lambda d: d.update(layers=[]), "layers"),
        (lambda d: d["layers"].pop(), "belongs to no layer"),
        (lambda d: d["layers"][1].update(width=0), "entries|kept"),
        (lambda d: d["layers"][1].update(width=1 << 50), "width"),
        (lambda d: d["layers"][1].update(sources=5), "does not fit"),
        (lambda d: d["layers"][1].update(flat=3), "does not fit"),
        (lambda d: d["layers"][1].update(kernel=[3, 3]), "beyond"),
        (lambda d: d["layers"][1].update(stride=[0, 1]), "beyond"),
        (lambda d: d["layers"][1].update(unit=0), "unit"),
        (lambda d: d["layers"][1].update(relu=2), "relu"),
        (lambda d: d["layers"][1].update(pools=[[1]]), "pools"),
        (lambda d: d["layers"][1].update(pools=[[[0, 1], [1, 1], [0, 0]]]), "pool"),
        (lambda d: d["layers"][1].update(used=[1, "all"]), "mask"),
        (lambda d: d["layers"][1].update(edges=[10**6, "gaps", 3]), "kept of"),
        (lambda d: d["layers"][1].update(edges=[3, "odd", 3]), "coding"),
        (lambda d: d["report"].pop("scale"), "report"),
        (lambda d: d["report"].update(bits="7"), "bits"),
        (lambda d: d["report"].update(theorem=None), "report"),
    ],
)
def test_files_made_by_hand_are_checked(saved, change, message):
    """With a right digest, so that nothing but the checks stands in the way."""
    texts, tensors = unseal(saved.read_bytes())
    (name,) = texts
    data = json.loads(texts[name])
    change(data)
    saved.write_bytes(seal({name: json.dumps(data)}, tensors))
    with pytest.raises(FileError, match=message) as caught:
        random_binary.load(saved)
    assert "\n" not in str(caught.value)


def test_packed_networks_and_approximations_are_told_apart(saved, tmp_path):
    with pytest.raises(FileError, match=r"use mpt_fast\.random_binary\.load"):
        runtime.read_program(saved)
    packed = tmp_path / "program.mpt"
    runtime.write_program(random_binary.load(saved).program(), packed)
    with pytest.raises(FileError, match=r"mpt_fast\.load"):
        random_binary.load(packed)


def test_an_unwritable_folder_is_named(tmp_path):
    with pytest.raises(FileError, match="nowhere"):
        approximate(mlp([4, 3]), 1.0, 12).save(tmp_path / "nowhere" / "found.mpt")


# Predictions


def test_theorem_redundancy_is_the_smallest_that_suffices():
    assert predict.union_bound(8, 31, 30) == pytest.approx(
        16 * 64 * 31 * 30 * 32 * 2.0**-30 + 16 * np.exp(-15)
    )
    for failure in (0.5, 0.01):
        r = predict.theorem_redundancy(8, 31, failure)
        assert predict.union_bound(8, 31, r) <= failure < predict.union_bound(8, 31, r - 1)
    assert predict.theorem_redundancy(8, 31, 0.01, taps=9) > predict.theorem_redundancy(8, 31, 0.01)


def test_expected_success_rises_with_redundancy():
    net = mlp([4, 5, 3])
    chances = [approximate(net, 1.0, r, seed=1).report.expected_success for r in (9, 11, 13, 16)]
    assert chances == sorted(chances)
    assert chances[-1] > 0.999
