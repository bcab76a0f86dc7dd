"""Public entry: a target network becomes a pruned random +-1 network."""

import math
from collections.abc import Sequence
from numbers import Integral, Real

from torch import nn

from mpt_fast.random_binary import predict
from mpt_fast.random_binary.network import Network, make_network
from mpt_fast.random_binary.plan import Plan, make_plan
from mpt_fast.random_binary.result import Approximation, LayerReport, Report, Theorem
from mpt_fast.random_binary.search import Mask, MaskNotFound, Progress, find_mask
from mpt_fast.random_binary.signs import SEEDS
from mpt_fast.random_binary.stages import (
    MAX_BITS,
    Certificate,
    Stage,
    certify,
    choose_bits,
    make_steps,
)
from mpt_fast.random_binary.target import Flatten, MaxPool, Target, TargetError, read_target
from mpt_fast.runtime.coding import entropy_bits

_FAILURE = 0.01  # of the theorem's redundancy in reports

Steps = Sequence[Stage | Flatten | MaxPool]


def approximate(
    target: nn.Module,
    epsilon: float,
    redundancy: int | None = None,
    seed: int = 0,
    *,
    input_shape: Sequence[int] | None = None,
    radius: float = 1.0,
    bits: int | None = None,
    progress: Progress | None = None,
) -> Approximation:
    """Prunes a random +-1 network until c*g(x) is within `epsilon` of `target`.

    ||c*g(x) - target(x)||_2 <= E(p) <= epsilon for every ||x||_2 <= radius, by a certificate that
    reads the target's weights and no data. The random network is a function of `seed` and of the
    target's shape, `bits` and `redundancy`; of its signs nothing is changed, some are deleted.

    Args:
        target: a ReLU network of linear and convolution layers (also tickets) that torch.fx can
            trace, taken in eval mode: biases, batch norm, residual additions, average pooling,
            max-pooling of nonnegative values, flatten. It is left as it is.
        epsilon: the allowed Euclidean distance of the outputs.
        redundancy: r, the number of neurons that carry one value. None: chosen from the target's
            shape so that the search fails about once in a thousand times.
        seed: of the random network, 0 <= seed < 2**63.
        input_shape: shape of one input; may be left out where the first layer is linear.
        radius: the greatest Euclidean norm of inputs that the certificate is for.
        bits: p, the bits of a quantised weight after its sign. None: the fewest for epsilon.
        progress: called with (steps done, steps in all, what is happening).

    Raises:
        TargetError: the target holds an operation that has no form here (it is named), or the
            bits given, or the most there are, do not reach epsilon.
        MaskNotFound: this random network has no mask by this search; names the redundancy to try.
        ValueError, TypeError: another argument is out of range, or no number.
    """
    _check(epsilon, redundancy, seed, radius, bits)
    read = read_target(target, input_shape)
    steps = make_steps(read)
    certificate = _certificate(steps, read, epsilon, radius, bits)
    r = predict.choose_redundancy(steps, certificate.p) if redundancy is None else redundancy
    plan = make_plan(read, steps, certificate.p, r)
    found = find_mask(plan, seed, progress)
    if not isinstance(found, Mask):
        layer, why = found
        better = max(predict.choose_redundancy(steps, certificate.p), r + max(1, r // 4))
        raise MaskNotFound(
            f"no mask with redundancy {r} and seed {seed}: {why} (layer {layer.index}, "
            f"{layer.kind} of {layer.name}); try redundancy {better}",
            r,
            better,
            predict.expected_success(plan),
        )
    network = make_network(plan, found.edges, seed)
    report = _report(network, plan, steps, certificate, found, epsilon, radius)
    return Approximation(network, report, read.input_view, read.output_view)


def _check(
    epsilon: float, redundancy: int | None, seed: int, radius: float, bits: int | None
) -> None:
    for name, real in (("epsilon", epsilon), ("radius", radius)):
        if isinstance(real, bool) or not isinstance(real, Real):
            raise TypeError(f"{name} must be a number, got {real!r}")
    for name, whole in (("redundancy", redundancy), ("seed", seed), ("bits", bits)):
        if isinstance(whole, bool) or not isinstance(whole, Integral | None):
            raise TypeError(f"{name} must be an integer, got {whole!r}")
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon {epsilon} is not a positive number")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius {radius} is not a positive number")
    if redundancy is not None and redundancy < 1:
        raise ValueError(f"redundancy {redundancy} is not a positive number; try 12")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed {seed} is outside 0 <= seed < 2**63; give another")
    if bits is not None and not 0 <= bits <= MAX_BITS:
        raise ValueError(f"bits {bits} is outside 0 .. {MAX_BITS}")


def _certificate(
    steps: Steps, target: Target, epsilon: float, radius: float, bits: int | None
) -> Certificate:
    if bits is None:
        return choose_bits(steps, target.input, epsilon, radius)
    given = certify(steps, target.input, bits, radius)
    if given.bound > epsilon:
        raise TargetError(
            f"{bits} bits give an error of up to {given.bound:.3g}, more than epsilon "
            f"{epsilon:.3g}; leave bits out or ask for more"
        )
    return given


def _report(
    network: Network,
    plan: Plan,
    steps: Steps,
    certificate: Certificate,
    mask: Mask,
    epsilon: float,
    radius: float,
) -> Report:
    return Report(
        epsilon=epsilon,
        radius=radius,
        seed=network.seed,
        redundancy=plan.redundancy,
        bits=certificate.p,
        certificate=certificate.bound,
        formula=certificate.formula,
        scale=1 / network.unit,
        depth=len(network.layers),
        width=max(layer.width for layer in network.layers),
        edges_drawn=network.drawn,
        edges_kept=network.kept,
        mask_bits=sum(entropy_bits(layer.drawn, layer.kept) for layer in network.layers),
        looked_at=mask.looked_at,
        expected_success=predict.expected_success(plan),
        theorem=_theorem(steps, plan, epsilon, radius),
        layers=tuple(
            LayerReport(
                layer.name, layer.kind, layer.width, layer.drawn, layer.kept, layer.used.size
            )
            for layer in network.layers
        ),
    )


def _theorem(steps: Steps, plan: Plan, epsilon: float, radius: float) -> Theorem:
    stages = [step for step in steps if isinstance(step, Stage) and not step.exact]
    width = max([plan.inputs, *(row.sum.result.channels for s in stages for row in s.rows)])
    taps = max([1, *(math.prod(stage.geometry.box) for stage in stages)])
    count = max(1, len(stages))
    bits = max(0, math.ceil(math.log2(count * width / epsilon)))
    depth = 1 + count * (bits + 2)
    redundancy = predict.theorem_redundancy(width, depth, _FAILURE, taps)
    plain = all(
        isinstance(step, Stage)
        and not step.exact
        and step.geometry.size == (1, 1)
        and all(
            row.bias is None and len(row.parts) == 1 and row.parts[0].norm <= 1 + 1e-6
            for row in step.rows
        )
        for step in steps
    )
    return Theorem(
        applies=plain and radius <= 1 and epsilon <= 1 and not plan.constant,
        failure=_FAILURE,
        bits=bits,
        depth=depth,
        width=4 * width * redundancy,
        redundancy=redundancy,
    )
