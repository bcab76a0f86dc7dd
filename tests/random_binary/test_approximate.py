"""The construction: exact identity, legal masks, certified error, failure, uniformity."""

import copy
import itertools

import numpy as np
import pytest
import torch
from random_binary_cases import Residual, ball, conv_net, exact_mlp, integer_mlp, mlp
from torch import nn

import mpt_fast
from mpt_fast import random_binary
from mpt_fast.random_binary import (
    MaskNotFound,
    TargetError,
    approximate,
    approximation,
    search,
    signs,
)
from mpt_fast.random_binary.check import observe

DIMS = [6, 8, 8, 3]


def _errors(found, net, x):
    with torch.no_grad():
        return (found.module(x) - net(x)).flatten(1).norm(dim=1)


# 1. Exact identity


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", [[4, 3], [4, 5, 3], DIMS])
def test_outputs_equal_the_integer_network(dims, bias):
    net = mlp(dims, seed=len(dims), bias=bias)
    found = approximate(net, 10.0, 14, bits=8, seed=3)
    x = np.random.default_rng(0).integers(-60, 61, (40, dims[0]))
    got = found.integers(x)
    assert got.dtype == np.int64
    assert (got == exact_mlp(net, 8, x)).all()
    assert np.abs(got).max() > 0


def test_python_integers_take_over_where_int64_overflows():
    net = mlp([4, 6, 6, 6, 2], norm=2.0)
    found = approximate(net, 1e-8, 16, bits=34)
    x = np.random.default_rng(0).integers(-(2**40), 2**40, (5, 4))
    got = found.integers(x)
    assert got.dtype == object
    assert (got == exact_mlp(net, 34, x)).all()
    assert max(abs(value) for value in got.ravel()) > 2**63


def test_exact_evaluation_takes_integers_of_the_right_shape():
    found = approximate(mlp([4, 3]), 10.0, 12)
    with pytest.raises(ValueError, match="integers"):
        found.integers(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="integers"):
        found.integers(np.full((2, 4), 0.5, object))
    with pytest.raises(ValueError, match="shape"):
        found.integers(np.zeros((2, 5), np.int64))
    assert found.integers(np.zeros((0, 4), np.int64)).shape == (0, 3)


# 2. Legal masks


def test_weights_are_pruned_and_never_changed():
    seed = 11
    net = conv_net()
    found = approximate(net, 5.0, 12, seed=seed, input_shape=(1, 12, 12))
    network = found.network
    assert network.seed == found.seed == seed
    before, width = np.arange(network.channels + network.constant), network.channels + 1
    for number, layer in enumerate(network.layers):
        pixel, neuron = np.divmod(layer.source, before.size)
        source = pixel * width + before[neuron]
        drawn = signs.signs(seed, number, layer.used[layer.out], layer.tap, source)
        assert (layer.sign == drawn).all()
        edges = np.stack([layer.out, layer.tap, source])
        assert np.unique(edges, axis=1).shape == edges.shape  # the mask is 0 or 1
        assert (layer.used < layer.width).all()
        assert (source < layer.sources).all()
        before, width = layer.used, layer.width


def test_the_target_does_not_reach_the_drawn_signs():
    """Two targets of one shape: where both keep an edge, it has the same sign."""
    kept = []
    for seed in (0, 1):
        found = approximate(integer_mlp([4, 5, 3], 5, seed), 10.0, 12, bits=5, seed=2)
        layer = found.network.layers[3]
        out, source = layer.used[layer.out], found.network.layers[2].used[layer.source]
        kept.append(dict(zip(zip(out, source, strict=True), layer.sign, strict=True)))
    shared = kept[0].keys() & kept[1].keys()
    assert len(shared) > 10
    assert all(kept[0][edge] == kept[1][edge] for edge in shared)


def test_seeds_give_different_networks():
    net = mlp([4, 5, 3])
    first, second = (approximate(net, 0.5, 12, seed=seed).network for seed in (0, 1))
    again = approximate(net, 0.5, 12, seed=0).network
    assert all(
        np.array_equal(a.out, b.out) for a, b in zip(first.layers, again.layers, strict=True)
    )
    assert not np.array_equal(first.layers[2].source, second.layers[2].source)


# 3. The certified error


@pytest.mark.parametrize("bias", [False, True])
def test_error_stays_below_the_certificate(bias):
    net = mlp(DIMS, bias=bias)
    found = approximate(net, 0.05, 14)
    assert found.certificate <= 0.05
    seen = observe(found, net, points=2000, steps=30)
    assert 0 < seen.random <= found.certificate
    assert 0 < seen.vertices <= found.certificate
    assert max(seen.random, seen.vertices) <= seen.ascent <= found.certificate
    assert seen.largest == seen.ascent


def test_vertices_and_random_points_by_hand():
    net = mlp(DIMS, bias=True)
    found = approximate(net, 0.02, 14, radius=3.0)
    vertices = 3.0 * torch.cat([torch.eye(6), -torch.eye(6)]).double()
    x = torch.cat([vertices, ball(1000, [6], 3.0), 0 * ball(1, [6])])
    assert _errors(found, net, x).max() <= found.certificate <= 0.02


def test_ascent_finds_the_worst_input_and_the_certificate_is_tight():
    """One linear layer: the greatest error is the spectral norm of what rounding did to W."""
    net = mlp([40, 30])
    found = approximate(net, 10.0, 14, bits=7)
    weight = net[0].weight.detach().numpy()
    worst = np.linalg.norm(np.rint(weight * 2**7) / 2**7 - weight, 2)
    seen = observe(found, net, points=256, steps=60)
    assert found.certificate == pytest.approx(worst, rel=1e-6)
    assert 0.98 * worst < seen.ascent <= found.certificate
    assert max(seen.random, seen.vertices) < 0.8 * worst


class _Chain(nn.Module):
    """One neuron a layer, a skip past two of them; every number is rounded up to 3 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1).double() for _ in range(4))
        for layer, (weight, bias) in zip(
            self.layers, ((0.34, 0.35), (0.60, 0.10), (0.85, 0.73), (0.47, 0.22)), strict=True
        ):
            nn.init.constant_(layer.weight, weight)
            nn.init.constant_(layer.bias, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.layers[0](x))
        return self.layers[3](torch.relu(self.layers[2](torch.relu(self.layers[1](x))) + x))


def test_certificate_is_attained_where_every_rounding_goes_one_way():
    """All numbers positive and rounded up: at x = radius no term of the recursion is slack."""
    net = _Chain()
    rounded = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_((parameter * 8).round() / 8)
        assert all(
            (r > n).all() for r, n in zip(rounded.parameters(), net.parameters(), strict=True)
        )
        for radius in (1.0, 5.0):
            found = approximate(net, 10.0, 14, bits=3, radius=radius)
            x = torch.full((1, 1), radius, dtype=torch.float64)
            assert found.module(x).item() == pytest.approx(rounded(x).item(), rel=1e-12)
            error = (rounded(x) - net(x)).item()
            assert found.certificate == pytest.approx(error, rel=1e-6)
            assert found.certificate >= error


def test_vertices_are_spread_over_the_coordinates():
    """Only the last input is rounded: a few vertices must still find it."""
    net = mlp([8, 1])
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[0, 6] = 0.3
    found = approximate(net, 10.0, 14, bits=3)
    error = abs(round(0.3 * 8) / 8 - 0.3)
    for count in (8, None):
        seen = observe(found, net, points=1, steps=0, vertices=count)
        assert seen.vertices == pytest.approx(error)


def test_error_and_certificate_halve_with_every_bit():
    net = mlp(DIMS)
    x = ball(2000, [6])
    found = [approximate(net, 10.0, 14, bits=bits) for bits in range(4, 13)]
    bounds = np.array([f.certificate for f in found])
    formulas = np.array([f.report.formula for f in found])
    errors = np.array([float(_errors(f, net, x).max()) for f in found])
    assert (errors <= bounds).all()
    assert (bounds <= formulas).all()
    assert (np.diff(bounds) < 0).all()
    # eta halves exactly, its second-order terms a little faster; a rounding is at random.
    np.testing.assert_allclose(formulas[1:] / formulas[:-1], 0.5, atol=0.06)
    assert 0.45 < (bounds[-1] / bounds[0]) ** (1 / 8) < 0.55
    assert 0.4 < (errors[-1] / errors[0]) ** (1 / 8) < 0.6


def test_formula_is_the_theorems():
    """E(p) = sum_l eta sqrt(n_l n_(l-1)) prod_(k<l) ||W_k|| prod_(k>l) (||W_k|| + ...)."""
    net = mlp(DIMS)
    found = approximate(net, 0.05, 14, bits=8)
    weights = [layer.weight.detach().numpy() for layer in net if isinstance(layer, nn.Linear)]
    norms = [np.linalg.norm(w, 2) for w in weights]
    rounding = [2.0**-9 * np.sqrt(w.size) for w in weights]
    expected = sum(
        rounding[k]
        * np.prod(norms[:k])
        * np.prod([n + e for n, e in zip(norms[k + 1 :], rounding[k + 1 :], strict=True)])
        for k in range(3)
    )
    assert found.report.formula == pytest.approx(expected, rel=1e-6)


def test_fewest_bits_are_chosen():
    net = mlp(DIMS)
    found = approximate(net, 0.05, 14)
    with pytest.raises(TargetError, match="leave bits out"):
        approximate(net, 0.05, 14, bits=found.report.bits - 1)


# 4. Failure


def test_too_little_redundancy_is_refused_with_a_remedy():
    net = mlp([4, 5, 3])
    for redundancy in (1, 2):
        with pytest.raises(MaskNotFound, match="try redundancy") as caught:
            approximate(net, 0.1, redundancy)
        assert caught.value.redundancy == redundancy
        assert f"try redundancy {caught.value.suggestion}" in str(caught.value)
    approximate(net, 0.1, caught.value.suggestion)


def test_search_fails_and_succeeds_as_often_as_it_should():
    """Dims 4-5-3, p = 6, dense integer targets: 30 networks each (specified: 0, 1, 26, 30)."""
    net = integer_mlp([4, 5, 3], 6)
    x = np.random.default_rng(0).integers(-9, 10, (8, 4))
    wanted = exact_mlp(net, 6, x)
    found = dict.fromkeys((5, 8, 12), 0)
    for redundancy in found:
        for seed in range(30):
            try:
                result = approximate(net, 10.0, redundancy, seed, bits=6)
            except MaskNotFound:
                continue
            found[redundancy] += 1
            assert (result.integers(x) == wanted).all()  # never a wrong mask
    assert found[5] <= 2
    assert 18 <= found[8] <= 30
    assert found[12] == 30


@pytest.mark.parametrize(("dims", "bits"), [([24, 3], 3), ([4, 5, 3], 6)])
@pytest.mark.parametrize("redundancy", [6, 7, 8])
def test_expected_success_agrees_with_what_happens(dims, bits, redundancy):
    net = integer_mlp(dims, bits, seed=1)
    draws, hits, expected = 40, 0, set()
    for seed in range(draws):
        try:
            found = approximate(net, 10.0, redundancy, seed, bits=bits)
        except MaskNotFound as missing:
            expected.add(missing.expected_success)
        else:
            hits += 1
            expected.add(found.report.expected_success)
    (chance,) = expected  # of the plan, not of the network drawn
    # Three standard deviations, and a little for bundles that the prediction takes as independent.
    assert abs(hits / draws - chance) < 3 * np.sqrt(chance * (1 - chance) / draws) + 0.05


def test_weights_that_cannot_matter_ask_for_nothing():
    net = integer_mlp([6, 8, 3], 5)
    full = approximate(net, 10.0, 12, bits=5)
    with torch.no_grad():
        net[2].weight[:, 2:] = 0  # six hidden units that nobody reads
    less = approximate(net, 10.0, 12, bits=5)
    assert less.report.looked_at < 0.6 * full.report.looked_at
    assert less.report.width == full.report.width


# 5. One network, many targets


def test_one_network_serves_many_targets():
    x = np.random.default_rng(1).integers(-20, 21, (8, 4))
    shapes = set()
    for seed in range(12):
        net = integer_mlp([4, 5, 3], 6, seed)
        found = approximate(net, 10.0, 14, seed=99, bits=6)
        assert (found.integers(x) == exact_mlp(net, 6, x)).all()
        shapes.add(tuple((layer.width, layer.sources) for layer in found.network.layers))
    assert len(shapes) == 1


# 6. Special weights


def _check(net, p=6, n=4):
    found = approximate(net, 1e3, 14, bits=p)
    x = np.random.default_rng(0).integers(-9, 10, (16, n))
    assert (found.integers(x) == exact_mlp(net, p, x)).all()
    xt = torch.from_numpy(x).double()
    assert _errors(found, net, xt / xt.norm(dim=1, keepdim=True)).max() <= found.certificate + 1e-12
    return found


@pytest.mark.parametrize("case", ["large", "zero rows", "zero column", "ones", "negative", "zero"])
@pytest.mark.parametrize("bias", [False, True])
def test_special_weights(case, bias):
    net = mlp([4, 5, 3], bias=bias)
    first, last = net[0], net[2]
    with torch.no_grad():
        if case == "large":
            first.weight *= 9.7
            last.weight *= 3.1
        elif case == "zero rows":
            first.weight[1:3] = 0
            last.weight[0] = 0
            if bias:
                first.bias[1:3] = 0
        elif case == "zero column":
            first.weight[:, 2] = 0
            last.weight[:, 1] = 0
        elif case == "ones":
            first.weight.copy_(first.weight.sign())
            last.weight.copy_(last.weight.sign())
        elif case == "negative":
            first.weight.copy_(-first.weight.abs())
            last.weight.copy_(-last.weight.abs())
        else:
            for parameter in net.parameters():
                parameter.zero_()
    found = _check(net)
    if case == "ones" and not bias:
        assert found.certificate == 0.0  # N = +-2**p is exact


def test_one_layer_and_a_relu_on_the_output():
    _check(mlp([4, 3], bias=True))
    _check(nn.Sequential(*mlp([4, 5, 3]), nn.ReLU()))


# 7. The sweep


def test_every_kept_neuron_is_used_and_the_sweep_changes_nothing():
    net = mlp(DIMS)
    found = approximate(net, 0.05, 14)
    layers = found.network.layers
    for layer, following in itertools.pairwise(layers):
        assert np.array_equal(np.unique(following.source), np.arange(layer.used.size))
        assert layer.used.size < layer.width / 2
        assert np.array_equal(np.unique(layer.out), np.arange(layer.used.size))
    # Kept edges with the signs of the whole network, as a dense product over all of its neurons.
    x = np.random.default_rng(0).integers(-9, 10, (8, 6))
    values, before = x.T, np.arange(6)
    for number, layer in enumerate(layers):
        dense = np.zeros((layer.width, layer.sources), np.int64)
        rows, columns = layer.used[layer.out], before[layer.source]
        dense[rows, columns] = signs.signs(0, number, rows, layer.tap, columns)
        values = dense @ values
        values = np.maximum(values, 0) if layer.relu else values
        before = layer.used
    assert (found.integers(x) == values.T).all()


def test_sweep_removes_only_what_does_not_matter(monkeypatch):
    """All that the forward search found, unneeded neurons too, against what is left of it."""
    net = mlp(DIMS)
    swept = approximate(net, 0.05, 14)
    backward = search._backward

    def everything(layer, source, demands, needed, seed):
        edges, needed = backward(layer, source, demands, needed, seed)
        return edges, needed | source.live  # whatever is live counts as needed

    masks = []
    monkeypatch.setattr(search, "_backward", everything)
    monkeypatch.setattr(
        approximation, "make_network", lambda plan, edges, seed: masks.append((plan, edges))
    )
    monkeypatch.setattr(approximation, "_report", lambda *_: None)
    approximate(net, 0.05, 14)
    ((plan, edges),) = masks
    x = np.random.default_rng(0).integers(-9, 10, (8, 6))
    values = x.T
    for layer, kept in zip(plan.layers, edges, strict=True):
        dense = np.zeros((layer.width, layer.sources), np.int64)
        dense[kept.out, kept.source] = np.where(kept.negative, -1, 1)
        values = dense @ values
        values = np.maximum(values, 0) if layer.relu else values
    assert sum(kept.out.size for kept in edges) > 2 * swept.network.kept
    assert (swept.integers(x) == values.T).all()


# Convolutions, skips, pools


@pytest.mark.parametrize(
    ("net", "shape", "epsilon"),
    [
        (conv_net(), (1, 12, 12), 0.5),
        (Residual().double().eval(), (1, 6, 6), 2.0),
        (nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1)),
         (2, 7, 6), 0.5),
        (nn.Sequential(nn.Conv2d(1, 2, 2, padding=0), nn.ReLU(), nn.Conv2d(2, 2, (1, 3),
         dilation=(1, 2), padding=(0, 2))), (1, 5, 6), 0.5),
        (nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.AvgPool2d(2, 1), nn.ReLU(), nn.Flatten(),
         nn.Linear(8, 2)), (1, 8, 8), 0.5),
    ],
    ids=["conv", "residual", "stride", "even and dilated", "signed pool"],
)  # fmt: skip
def test_maps(net, shape, epsilon):
    net = net.double().eval()
    before = copy.deepcopy(net.state_dict())
    found = approximate(net, epsilon, 14, input_shape=shape)
    assert found.certificate <= epsilon
    x = torch.cat([ball(24, shape), torch.zeros(1, *shape)])
    errors = _errors(found, net, x)
    assert 0 < errors.max() <= found.certificate
    seen = observe(found, net, points=32, steps=5, vertices=32)
    assert 0 < seen.vertices <= seen.ascent <= found.certificate
    assert found.module(x).shape == net(x).shape
    # Three times the bits must leave an error no larger than the rounding of float64.
    fine = approximate(net, 1e-9, 16, input_shape=shape)
    assert _errors(fine, net, x).max() < 1e-9
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_tickets_are_targets():
    config = mpt_fast.TicketConfig(sparsity=0.5, scope="layer")
    net = nn.Sequential(
        nn.Flatten(),
        mpt_fast.MPTLinear(12, 6, config=config),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        mpt_fast.MPTLinear(6, 3, config=config),
    )
    net = net.double().eval()
    found = approximate(net, 0.01, input_shape=(3, 2, 2))
    assert 0 < _errors(found, net, ball(50, (3, 2, 2))).max() <= found.certificate <= 0.01


def test_exact_conv_against_torch():
    """Integers through maps equal the quantised network in float64, which is exact here."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(3, 2, 3, stride=2, padding=1, bias=False),
    ).double()
    quantised = copy.deepcopy(net)
    with torch.no_grad():
        for layer in (quantised[0], quantised[2]):
            layer.weight.copy_((layer.weight * 16).round())
    found = approximate(net, 100.0, 14, bits=4, input_shape=(2, 7, 8))
    assert found.report.depth == 13
    x = torch.randint(-9, 10, (5, 2, 7, 8))
    wanted = quantised(x.double()).detach().numpy()
    assert (found.integers(x.numpy()) == wanted).all()
    # Homogeneous: 2**70 times the input is 2**70 times the output, in Python's integers.
    large = found.integers(x.numpy().astype(object) * 2**70)
    assert (large == wanted.astype(np.int64).astype(object) * 2**70).all()


def test_lenet_layer_shapes_follow_the_theorem():
    found = approximate(mlp(DIMS), 0.05, 24, bits=8)
    report = found.report
    assert (report.depth, report.width, report.edges_drawn) == (31, 672, 7_319_664)
    assert report.edges_kept < 30_414  # without the sweep
    assert report.scale == 2.0**-24
    assert (report.theorem.bits, report.theorem.depth) == (9, 34)
    assert report.theorem.applies
    assert report.theorem.width == 4 * 8 * report.theorem.redundancy
    assert sum(layer.kept for layer in report.layers) == report.edges_kept


def test_approximations_print_in_one_line():
    found = approximate(mlp([4, 5, 3]), 0.5)
    assert f"{found.report.edges_kept} of {found.report.edges_drawn} signs kept" in repr(found)
    for shown in (found, found.network, *found.network.layers):
        assert "\n" not in repr(shown)
        assert len(repr(shown)) < 200


def test_redundancy_is_chosen_and_progress_told():
    told = []
    found = approximate(mlp(DIMS), 0.05, progress=lambda *step: told.append(step))
    assert 8 < found.report.redundancy < found.report.theorem.redundancy
    done = [step for step, _, _ in told]
    assert done == sorted(done)
    assert {total for _, total, _ in told} == {2 * found.report.depth}
    assert random_binary.approximate is approximate
