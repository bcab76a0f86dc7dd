"""Random small networks: whatever is drawn, packed equals eager in float64."""

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, assume, given, settings
from packed_checks import assert_same, eager, randomise
from torch import Tensor, nn

import mpt_fast as mpt
from mpt_fast.packed import PackedModel
from mpt_fast.runtime.program import Combine, ConvAffine


class Block(nn.Module):
    """body(x), plus x or a projection of it; then act."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None, act: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return self.act(y)


@st.composite
def layers(draw: st.DrawFn, inputs: int, outputs: int) -> nn.Module:
    """A convolution of random weights, geometry that keeps the size, density and bias."""
    kernel = draw(st.sampled_from([1, 3]))
    groups = draw(st.sampled_from([1, 1, 2])) if inputs % 2 == outputs % 2 == 0 else 1
    options = {"padding": kernel // 2, "groups": groups, "bias": draw(st.booleans())}
    kind = draw(st.sampled_from(["ticket", "ticket", "ternary", "float"]))
    sparsity = draw(st.sampled_from([0.0, 0.5, 0.9]))
    if kind == "ticket":
        config = mpt.TicketConfig(sparsity=sparsity, scope="layer")
        conv: nn.Module = mpt.MPTConv2d(inputs, outputs, kernel, config=config, **options)
    else:
        conv = nn.Conv2d(inputs, outputs, kernel, **options)
        with torch.no_grad():
            kept = torch.rand_like(conv.weight) >= sparsity
            conv.weight.mul_(kept)
            if kind == "ternary":
                conv.weight.sign_().mul_(torch.rand(outputs, 1, 1, 1) + 0.1)
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    return conv


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, int, int]]:
    """A stack of blocks with norms, pools, shortcuts and activations; its input's shape."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels = draw(st.integers(1, 5))
    shape = (channels, draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    parts: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        width = draw(st.sampled_from([channels, 2, 6]))
        body: list[nn.Module] = [draw(layers(channels, width))]
        if draw(st.booleans()):
            body.append(nn.BatchNorm2d(width, affine=draw(st.booleans())))
        shortcut: nn.Module | None = None
        if draw(st.booleans()):
            shortcut = nn.Identity() if width == channels else draw(layers(channels, width))
        act = draw(st.sampled_from([mpt.BinaryActivation(), nn.ReLU(), nn.Identity()]))
        parts.append(Block(nn.Sequential(*body), shortcut, act))
        after = draw(st.sampled_from(["nothing", "max", "average", "norm"]))
        if after == "max":
            size = draw(st.integers(1, 2))
            parts.append(nn.MaxPool2d(size, 1, ceil_mode=draw(st.booleans())))
        elif after == "average":
            parts.append(nn.AvgPool2d(2, 1, 1, count_include_pad=draw(st.booleans())))
        elif after == "norm":
            parts.append(nn.BatchNorm2d(width))
        channels = width
    head = draw(st.sampled_from(["linear", "sign", "maps"]))
    if head == "sign":
        parts.append(mpt.BinaryActivation())
    elif head == "linear":
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]
    return randomise(nn.Sequential(*parts), seed=channels), shape


def rounding_decides(model: nn.Module, packed: PackedModel, x: Tensor) -> bool:
    """True if a real sum before a sign is 0 up to rounding.

    Terms such as v - v + w - w over few distinct values do that. Their sum in float64 is 0 or a few
    1e-17 by the order of additions, which PyTorch does not promise either. Integer sums have no
    such cases: a network all of whose signs are decided by integers is always compared.
    """
    steps = packed.program.steps
    if not any(isinstance(s, ConvAffine | Combine) and s.act == "sign" for s in steps):
        return False
    ties: list[bool] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        size = inputs[0].abs()
        ties.append(bool((size <= 1e-12 * size.max()).any()))

    signs = [m for m in model.modules() if isinstance(m, mpt.BinaryActivation)]
    hooks = [sign.register_forward_pre_hook(look) for sign in signs]
    eager(model, x)
    for hook in hooks:
        hook.remove()
    return any(ties)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=networks(), batch=st.sampled_from([1, 3, 70]))
def test_random_networks(
    drawn: tuple[nn.Module, tuple[int, int, int]], batch: int, backend: str
) -> None:
    model, shape = drawn
    x = torch.randn(batch, *shape)
    packed = mpt.pack(model, x, backend=backend)
    assert not packed.plan().unsupported
    assume(not rounding_decides(model, packed, x))
    if isinstance(model[-1], mpt.BinaryActivation):
        assert torch.equal(packed(x).double(), eager(model, x))
    else:
        assert_same(packed, model, x)
