"""MPTConv2d and MPTLinear: geometry, state, selection in the forward pass, errors."""

import copy
import dataclasses
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

import mpt_fast as mpt
from mpt_fast.kernels.select_topk import apply_threshold
from mpt_fast.nn import BinaryActivation, MPTConv2d, MPTLinear, TicketLayer, batch_norm
from mpt_fast.selection import update_masks

CONFIG = mpt.TicketConfig(sparsity=0.6)
LAYERWISE = mpt.TicketConfig(sparsity=0.6, scope="layer")
SELECTIONS = ("exact", "sort", "threshold")

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1, "stride": 2},
    "rectangular": {"kernel_size": (3, 2), "padding": (2, 1), "dilation": (1, 2)},
    "grouped": {"kernel_size": 3, "groups": 2, "bias": True},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "same, even kernel": {"kernel_size": (2, 4), "padding": "same", "bias": True},
    "valid": {"kernel_size": 3, "padding": "valid", "stride": 2},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": (0, 2), "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "circular same": {"kernel_size": (4, 3), "padding": "same", "padding_mode": "circular"},
}


def dense_twin(layer: TicketLayer, **geometry: Any) -> nn.Module:
    """PyTorch's layer with the effective weight of `layer`."""
    twin: nn.Module
    if isinstance(layer, MPTConv2d):
        twin = nn.Conv2d(layer.in_channels, layer.out_channels, **{"bias": False, **geometry})
    else:
        assert isinstance(layer, MPTLinear)
        twin = nn.Linear(layer.in_features, layer.out_features, **{"bias": False, **geometry})
    with torch.no_grad():
        assert isinstance(twin.weight, Tensor)
        twin.weight.copy_(layer.effective_weight())
        if layer.bias is not None:
            assert isinstance(twin.bias, Tensor)
            twin.bias.copy_(layer.bias)
    return twin


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("config", [CONFIG, LAYERWISE], ids=["global", "layer"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry_is_that_of_conv2d(name: str, config: mpt.TicketConfig) -> None:
    layer = MPTConv2d(4, 6, **GEOMETRIES[name], config=config)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    twin = dense_twin(layer, **GEOMETRIES[name])
    for shape in ((2, 4, 7, 9), (4, 7, 9)):
        x = torch.randn(shape)
        assert_close(layer(x), twin(x), 1e-6)
    left, right, top, bottom = layer.padding_sides
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(torch.randn(2, 4, 7, 9), (left, right, top, bottom), mode=mode)
    assert isinstance(twin, nn.Conv2d)
    unpadded = F.conv2d(padded, twin.weight, None, twin.stride, 0, twin.dilation, twin.groups)
    assert unpadded.shape == layer(torch.randn(2, 4, 7, 9)).shape


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (7,), (2, 3, 7)])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    layer = MPTLinear(7, 4, bias, config=CONFIG)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(shape)
    assert_close(layer(x), dense_twin(layer, bias=bias)(x), 1e-6)


def conv(config: mpt.TicketConfig = CONFIG, **arguments: Any) -> MPTConv2d:
    return MPTConv2d(3, 8, 3, padding=1, config=config, **arguments)


def linear(config: mpt.TicketConfig = CONFIG, **arguments: Any) -> MPTLinear:
    return MPTLinear(12, 5, config=config, **arguments)


MAKERS: list[Callable[..., TicketLayer]] = [conv, linear]


def sample(layer: TicketLayer, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (2, 3, 5, 5) if isinstance(layer, MPTConv2d) else (2, 12)
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("make", MAKERS)
def test_what_a_layer_is_made_of(make: Callable[..., TicketLayer]) -> None:
    layer = make()
    assert not isinstance(layer, (nn.Conv2d, nn.Linear))
    assert layer.bias is None
    assert not layer.weight.requires_grad
    assert layer.scores.requires_grad
    assert layer.scores.shape == layer.weight.shape
    assert sorted(layer.state_dict()) == ["scores", "threshold", "tie_limit", "weight"]
    assert layer.sparsity == 0.6
    biased = make(bias=True)
    assert biased.bias is not None
    assert biased.bias.requires_grad
    assert not biased.bias.any()


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("make", MAKERS)
def test_mask_code_gain_and_weight_belong_together(
    make: Callable[..., TicketLayer], scope: Any, selection: Any
) -> None:
    layer = make(mpt.TicketConfig(sparsity=0.6, scope=scope, selection=selection))
    mask, weight = layer.mask(), layer.weight
    total = weight.numel()
    assert int(mask.sum()) == total - int(0.6 * total)
    assert mask.dtype == torch.bool
    gain = (weight.double().abs() * mask).sum() / mask.sum()
    assert layer.gain().dtype == torch.float32
    assert layer.gain().shape == ()
    assert layer.gain().item() == pytest.approx(gain.item(), rel=1e-7)
    assert torch.equal(layer.sign_code(), (weight.sign() * mask).to(torch.int8))
    assert torch.equal(layer.effective_weight(), layer.gain() * layer.sign_code())
    smallest_kept = layer.scores.abs()[mask].min()
    assert bool((layer.scores.abs()[~mask] <= smallest_kept).all())


def test_mask_counts_kept_weights_of_zero() -> None:
    layer = linear(mpt.TicketConfig(sparsity=0.5, weight_init="bernoulli"))
    mask = layer.mask()
    assert int(mask.sum()) == int(layer.kept) == 30
    assert int(layer.sign_code().ne(0).sum()) < 30
    assert layer.gain().item() == pytest.approx(layer.weight[mask].mean().item(), rel=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.5])
@pytest.mark.parametrize("make", MAKERS)
def test_gradient_of_the_scores(make: Callable[..., TicketLayer], power: float) -> None:
    layer = make(dataclasses.replace(CONFIG, power=power))
    x = sample(layer)
    layer(x).square().sum().backward()
    twin = dense_twin(layer, **({"kernel_size": 3, "padding": 1} if x.dim() == 4 else {}))
    twin(x).square().sum().backward()
    assert isinstance(twin.weight, Tensor)
    assert twin.weight.grad is not None
    s = layer.scores.detach()
    want = twin.weight.grad * layer.weight * s.sign() * power * s.abs().pow(power - 1)
    assert_close(layer.scores.grad, want, 1e-5)
    assert layer.weight.grad is None


def test_power_one_trains_like_no_power() -> None:
    """power=1 and the default give the same bits after steps of SGD."""
    results = []
    for config in (CONFIG, dataclasses.replace(CONFIG, power=1)):
        torch.manual_seed(0)
        layer = linear(config)
        optimizer = torch.optim.SGD([layer.scores], lr=0.5)
        for _ in range(3):
            update_masks(layer)
            optimizer.zero_grad()
            layer(torch.randn(6, 12)).square().sum().backward()
            optimizer.step()
        results.append(layer.scores.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("selection", ["exact", "sort"])
def test_layerwise_scope_selects_in_the_forward(selection: Any) -> None:
    layer = linear(dataclasses.replace(LAYERWISE, selection=selection))
    with torch.no_grad():
        layer.scores.copy_(torch.arange(60.0).view(5, 12))
    x = torch.eye(12)
    out = layer(x)
    want = torch.arange(60) >= 36
    assert torch.equal(layer.mask().flatten(), want)
    assert torch.equal(out.t() != 0, want.view(5, 12))
    with torch.no_grad():
        layer.scores.neg_().add_(59)
    assert torch.equal(layer.mask().flatten(), torch.arange(60) < 24)
    assert torch.equal(layer(x).t() != 0, layer.mask())


def test_global_scope_keeps_its_mask_until_update_masks() -> None:
    layer = linear()
    before, x = layer.mask(), torch.randn(4, 12)
    out = layer(x)
    with torch.no_grad():
        layer.scores.copy_(layer.scores.flip(0))
    assert torch.equal(layer.mask(), before)
    assert torch.equal(layer(x), out)
    update_masks(layer)
    assert torch.equal(layer.mask(), before.flip(0))


def test_threshold_selection_is_fixed_and_lets_the_sparsity_drift() -> None:
    layer = linear(dataclasses.replace(LAYERWISE, selection="threshold"))
    cut = layer.threshold.clone()
    assert int(layer.mask().sum()) == 24
    with torch.no_grad():
        layer.scores.mul_(2)
    layer(torch.randn(2, 12))
    assert torch.equal(layer.threshold, cut)
    assert torch.equal(layer.mask(), layer.scores.abs() > cut)
    assert int(layer.mask().sum()) > 24
    layer.sparsity = 0.9
    assert int(layer.mask().sum()) == 6


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("make", MAKERS)
def test_state_dict_restores_the_mask(
    make: Callable[..., TicketLayer], scope: Any, selection: Any
) -> None:
    config = mpt.TicketConfig(sparsity=0.6, scope=scope, selection=selection)
    layer, other = make(config, bias=True), make(config, bias=True)
    with torch.no_grad():
        layer.scores.mul_((layer.scores * 4).round())
    update_masks(layer)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.mask(), layer.mask())
    assert torch.equal(other.gain(), layer.gain())
    assert torch.equal(other.code, layer.code)
    assert torch.equal(other.kept, layer.kept)
    x = sample(layer)
    assert torch.equal(other(x), layer(x))
    if selection == "threshold":
        update_masks(other)
        assert torch.equal(other.threshold, layer.threshold)


def test_loading_scores_alone_selects_anew() -> None:
    layer, other = linear(), linear()
    state = {k: v for k, v in layer.state_dict().items() if k in ("weight", "scores")}
    missing = other.load_state_dict(state, strict=False).missing_keys
    assert sorted(missing) == ["threshold", "tie_limit"]
    assert torch.equal(other.mask(), layer.mask())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("threshold", 1e9, "'head' keeps no weight"),
        ("threshold", float("nan"), "'head' has threshold nan"),
        ("scores", float("nan"), "'head' has scores that are NaN or infinite"),
    ],
)
def test_loading_an_unsound_state(key: str, value: float, message: str) -> None:
    model = nn.ModuleDict({"head": linear()})
    update_masks(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state[f"head.{key}"].fill_(value)
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)


def test_loading_another_shape() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for scores"):
        MPTLinear(3, 4).load_state_dict(linear().state_dict())


@pytest.mark.parametrize("config", [CONFIG, LAYERWISE], ids=["global", "layer"])
@pytest.mark.parametrize("make", MAKERS)
def test_copies_are_independent(make: Callable[..., TicketLayer], config: mpt.TicketConfig) -> None:
    layer = make(config)
    x = sample(layer)
    want = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), want)
        assert twin.config == layer.config
        with torch.no_grad():
            twin.scores.copy_(twin.scores.flip(0))
        update_masks(twin)
        assert not torch.equal(twin.mask(), layer.mask())
        assert torch.equal(layer(x), want)


def test_the_cut_is_handed_on_only_while_it_gives_the_code() -> None:
    layer = conv(dataclasses.replace(CONFIG, scope="global"))

    def gives_the_code() -> bool:
        code, *_, cut = layer._selected()
        if cut is None:
            return False
        shown = apply_threshold([layer.weight], [layer.scores], *(t.view(1) for t in cut))
        assert torch.equal(shown.codes[0], code)
        return True

    assert gives_the_code()
    with torch.no_grad():
        layer.scores.neg_().add_(0.1)
    assert not gives_the_code()
    update_masks(layer)
    assert gives_the_code()
    with torch.no_grad():
        layer.weight.neg_()
    assert not gives_the_code()
    layer.reset_parameters()
    assert gives_the_code()
    assert copy.deepcopy(layer)._selected()[3] is None
    layer.bfloat16().float()
    assert not gives_the_code()
    by_itself = conv(dataclasses.replace(CONFIG, scope="layer"))
    with torch.no_grad():
        by_itself.scores.neg_().add_(0.1)
    code, *_, cut = by_itself._selected()
    assert cut is not None
    shown = apply_threshold([by_itself.weight], [by_itself.scores], *(t.view(1) for t in cut))
    assert torch.equal(shown.codes[0], code)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("make", MAKERS)
def test_dtypes(make: Callable[..., TicketLayer], scope: Any) -> None:
    layer = make(dataclasses.replace(CONFIG, scope=scope), bias=True)
    gain, mask = layer.gain(), layer.mask()
    x = sample(layer)
    wide = copy.deepcopy(layer).double()
    assert wide(x.double()).dtype == torch.float64
    assert wide.threshold.dtype == torch.float64
    update_masks(wide)
    assert torch.equal(wide.mask(), mask)
    assert torch.equal(wide.gain(), gain)
    assert_close(wide(x.double()).float(), layer(x), 1e-6)
    narrow = copy.deepcopy(layer).bfloat16()
    assert narrow.gain().dtype == torch.float32
    assert narrow(x.bfloat16()).dtype == torch.bfloat16
    update_masks(narrow)
    assert int(narrow.mask().sum()) == int(mask.sum())
    narrow(x.bfloat16()).sum().backward()
    assert narrow.scores.grad is not None
    assert make(dtype=torch.float64).threshold.dtype == torch.float64


def test_sums_of_gains_are_exact_in_float64() -> None:
    """In float64 a layer on +-1 inputs equals (integer sum) * gain bit for bit, for packing."""
    layer = conv(mpt.TicketConfig(sparsity=0.3)).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64).sign()
    sums = F.conv2d(x, layer.sign_code().double(), padding=1)
    assert torch.equal(layer(x), sums * layer.gain().double())


def test_autocast_with_a_bias_stays_in_bfloat16() -> None:
    for layer in (conv(bias=True), linear(bias=True)):
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(sample(layer)).dtype == torch.bfloat16


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_channels_last(scope: Any) -> None:
    layer = conv(dataclasses.replace(CONFIG, scope=scope))
    x = sample(layer)
    want, mask = layer(x), layer.mask()
    layer = layer.to(memory_format=torch.channels_last)
    assert layer.scores.is_contiguous(memory_format=torch.channels_last)
    out = layer(x.contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, want, 1e-6)
    out.sum().backward()
    update_masks(layer)
    assert torch.equal(layer.mask(), mask)
    assert layer.scores.grad is not None
    assert layer.scores.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_compiled_training_step(scope: Any, selection: Any) -> None:
    """Forward, backward and state of a compiled network equal those of the eager one."""
    config = mpt.TicketConfig(sparsity=0.5, scope=scope, selection=selection, power=2.0)
    model = nn.Sequential(
        MPTConv2d(3, 4, 3, padding=1, config=config),
        batch_norm(4, "frozen"),
        BinaryActivation(),
        MPTConv2d(4, 4, 2, padding="same", bias=True, config=config),
        nn.Flatten(),
        MPTLinear(64, 5, config=config),
    )
    x = torch.randn(3, 3, 4, 4)
    grads = []
    for run in (copy.deepcopy(model), copy.deepcopy(model)):
        update_masks(run)
        step = torch.compile(run, fullgraph=True, backend="aot_eager") if grads else run
        loss = step(x).square().mean()
        loss.backward()
        masks = [m.mask() for m in run.modules() if isinstance(m, TicketLayer)]
        grads.append([loss, *(p.grad for p in run.parameters() if p.grad is not None), *masks])
    assert len(grads[0]) == 1 + 4 + 3
    for eager, compiled in zip(*grads, strict=True):
        assert_close(compiled, eager, 1e-6 if eager.is_floating_point() else None)


def test_compiled_layer_follows_its_scores() -> None:
    layer = linear(LAYERWISE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 12)
    for _ in range(3):
        with torch.no_grad():
            layer.scores.copy_(torch.randn_like(layer.scores))
        out = compiled(x)
        code = layer.code.clone()
        assert torch.equal(code, layer.sign_code())
        assert_close(out, layer(x), 1e-6)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_layer_used_twice_before_backward(scope: Any) -> None:
    layer = MPTLinear(6, 6, config=dataclasses.replace(CONFIG, scope=scope))
    x = torch.randn(3, 6)
    layer(layer(x).relu()).sum().backward()
    weight = layer.effective_weight().requires_grad_()
    F.linear(F.linear(x, weight).relu(), weight).sum().backward()
    assert weight.grad is not None
    want = weight.grad * layer.weight * layer.scores.detach().sign()
    assert_close(layer.scores.grad, want, 1e-5)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("make", MAKERS)
def test_finetuning(make: Callable[..., TicketLayer], scope: Any) -> None:
    layer = make(dataclasses.replace(CONFIG, scope=scope))
    mask = layer.mask()
    layer.finetune()
    assert layer.finetuning
    assert layer.weight.requires_grad
    assert not layer.scores.requires_grad
    optimizer = torch.optim.SGD([layer.weight], lr=0.5)
    x, before = sample(layer), layer.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        assert layer.scores.grad is None
        optimizer.step()
    changed = layer.weight.detach() != before
    assert bool(changed.any())
    assert not bool((changed & ~mask).any())
    assert bool((layer.weight.sign() != before.sign()).any())
    assert torch.equal(layer.mask(), mask)
    assert torch.equal(layer.sign_code(), (layer.weight.sign() * mask).to(torch.int8))
    want = layer.weight.detach().double().abs()[mask].mean()
    assert layer.gain().item() == pytest.approx(want.item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"is being fine-tuned .* finetune\(False\)"):
        layer.sparsity = 0.9
    layer.finetune(False)
    assert not layer.weight.requires_grad
    assert layer.scores.requires_grad
    assert layer.gain().item() == pytest.approx(want.item(), rel=1e-6)
    layer.sparsity = 0.9


def test_meta_device_and_empty_batch() -> None:
    assert conv(device="meta").weight.is_meta
    assert conv()(torch.randn(0, 3, 5, 5)).shape == (0, 8, 5, 5)
    assert linear()(torch.randn(0, 12)).shape == (0, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be one or two integers >= 1"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be one or two integers"),
        ({"kernel_size": 3, "stride": 0}, "stride must be one or two integers >= 1"),
        ({"kernel_size": 3, "padding": -1}, "padding must be one or two integers >= 0"),
        ({"kernel_size": 3, "padding": "full"}, "padding must be numbers, 'same' or 'valid'"),
        ({"kernel_size": 3, "padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ({"kernel_size": 3, "dilation": 0}, "dilation must be one or two integers >= 1"),
        ({"kernel_size": 3, "groups": 3}, r"must be divisible by groups \(3\)"),
        ({"kernel_size": 3, "groups": 0}, "must be at least 1"),
        ({"kernel_size": 3, "padding_mode": "wrap"}, "padding_mode must be one of zeros, reflect"),
    ],
)
def test_bad_geometry(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPTConv2d(4, 8, **arguments)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 3"):
        MPTLinear(0, 3)
    with pytest.raises(TypeError, match="config must be a TicketConfig, got dict"):
        MPTLinear(2, 3, config={"sparsity": 0.5})  # type: ignore[arg-type]  # the error is tested
    with pytest.raises(ValueError, match="batch norm must be 'affine' or 'frozen'"):
        batch_norm(3, "nonaffine")  # type: ignore[arg-type]  # the error is tested
    with pytest.raises(ValueError, match="dims must be 1 or 2, got 3"):
        batch_norm(3, dims=3)  # type: ignore[arg-type]  # the error is tested
    with pytest.raises(ValueError, match="sparsity is the fraction pruned"):
        linear().sparsity = 1.5


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match="the input has 2 channels, but the weight expects 3"):
        conv()(torch.randn(1, 2, 5, 5))
    with pytest.raises(ValueError, match=r"x must be \[..., 12\], got \(1, 11\)"):
        linear()(torch.randn(1, 11))


@pytest.mark.parametrize("make", MAKERS)
def test_scores_that_are_not_finite_name_the_layer(make: Callable[..., TicketLayer]) -> None:
    layer = make(LAYERWISE)
    with torch.no_grad():
        layer.scores.view(-1)[3] = float("nan")
    kind = type(layer).__name__
    with pytest.raises(ValueError, match=f"layer '{kind}\\(.*has scores that are NaN or infinite"):
        layer(sample(layer))
    layer.label = "stage1.0.conv2"
    with pytest.raises(ValueError, match=r"layer 'stage1\.0\.conv2' has scores"):
        layer(sample(layer))


def test_an_emptied_layer_is_named_in_the_forward() -> None:
    layer = linear(dataclasses.replace(LAYERWISE, selection="threshold"))
    layer.label = "head"
    with torch.no_grad():
        layer.scores.mul_(1e-3)
    with pytest.raises(ValueError, match="layer 'head' keeps no weight"):
        layer(torch.randn(2, 12))


def test_repr() -> None:
    text = repr(MPTConv2d(4, 6, 3, 2, 1, groups=2, padding_mode="circular", config=CONFIG))
    assert text == (
        "MPTConv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, "
        "padding_mode=circular, bias=False, sparsity=0.6, scope=global)"
    )
    assert repr(linear(LAYERWISE)) == "MPTLinear(12, 5, bias=False, sparsity=0.6, scope=layer)"


@pytest.mark.parametrize("kind", ["affine", "frozen"])
def test_batch_norm(kind: Any) -> None:
    norm = batch_norm(4, kind)
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.weight is not None) == (kind == "affine")
    norm(torch.randn(3, 4, 2, 2) + 5)
    assert norm.running_mean is not None
    assert bool((norm.running_mean > 0.3).all())
    assert isinstance(batch_norm(4, kind, dims=1), nn.BatchNorm1d)
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)


def test_binary_activation_module() -> None:
    x = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
    out = BinaryActivation()(x)
    assert out.tolist() == [-1.0, 1.0, 1.0]
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_layer_made_in_inference_mode_runs(scope: str) -> None:
    """Its tensors count no versions, so nothing can be told by those."""
    with torch.inference_mode():
        torch.manual_seed(0)
        made = mpt.MPTConv2d(3, 4, 3, config=mpt.TicketConfig(sparsity=0.5, scope=scope))
        x = torch.randn(2, 3, 6, 6)
        y = made(x)
    torch.manual_seed(0)
    layer = mpt.MPTConv2d(3, 4, 3, config=mpt.TicketConfig(sparsity=0.5, scope=scope))
    torch.testing.assert_close(y.clone(), layer(x.clone()).detach())
