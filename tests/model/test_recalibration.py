"""RecConv and fold: equation (1), gradients, and folding as the same function."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from pytorchcv.models.mobilenetv2 import mobilenetv2_wd4
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import CheckpointError, checkpoint

from model.common import MeanShift
from model.krgn import KRGN
from model.recalibration import RecConv, basis_is_frozen, fold, is_recalibrated, recalibrate, unbatch_kernels

CASES = list(itertools.product((64, 32, 1), (1, 3), (True, False)))


@pytest.mark.parametrize(("groups", "dilation", "bias"), CASES)
def test_fold_is_the_same_function(groups, dilation, bias):
    channels = 64 if groups > 1 else 6
    conv = RecConv(channels, channels, 3, padding=dilation, dilation=dilation, groups=groups, bias=bias)
    conv = randomise(conv.double())
    plain = conv.fold()
    image = torch.randn(2, channels, 13, 17, dtype=torch.float64)
    assert type(plain) is nn.Conv2d
    assert torch.allclose(conv(image), plain(image), rtol=0, atol=1e-12)
    # The test can fail: without T the difference is large.
    without = F.conv2d(image, conv.weight, conv.bias, padding=dilation, dilation=dilation, groups=groups)
    assert (without - plain(image)).abs().max() > 0.1


def test_kernel_is_equation_1_written_out():
    """W_t against loops over the definition: T is a k x k cross-correlation over W_b seen as one image."""
    conv = randomise(RecConv(4, 8, 3, groups=2).double())
    n, groups_of_t = 8 * 2, 4 * 8 // 2**2
    assert conv.transform.shape == (n, n // groups_of_t, 3, 3)
    basis = conv.weight.detach().reshape(n, 3, 3)
    padded = F.pad(basis, (1, 1, 1, 1))
    width = n // groups_of_t
    expected = basis.clone()
    for out, source, row, column in itertools.product(range(n), range(width), range(3), range(3)):
        channel = out // width * width + source
        window = padded[channel, row : row + 3, column : column + 3]
        expected[out] += conv.transform.detach()[out, source, row, column] * window
    assert torch.allclose(conv.kernel().reshape(n, 3, 3), expected, atol=1e-12)


def test_depthwise_transform_is_dense_across_channels():
    """At C = 64 T has 64*64*9 weights, as the facts say, and a kernel depends on every other channel's basis."""
    for groups in (64, 32):
        assert RecConv(64, 64, 3, groups=groups).transform.numel() == 36_864
    conv = randomise(RecConv(64, 64, 3, groups=64))
    (gradient,) = torch.autograd.grad(conv.kernel()[0].sum(), conv.weight)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_zero_transform_is_the_plain_convolution_bit_for_bit():
    conv = RecConv(8, 8, 3, padding=1, groups=8)
    plain = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    plain.load_state_dict({"weight": conv.weight.detach(), "bias": conv.bias.detach()})
    image = torch.randn(1, 8, 9, 7)
    assert torch.equal(conv(image), plain(image))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"kernel_size": (3, 5), "padding": (1, 2)},
        {"padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 1},
        {"transform_size": 5, "padding": 2},
    ],
)
def test_any_convolution_folds(options):
    conv = randomise(RecConv(6, 9, **{"kernel_size": 3, "groups": 3, **options}).double())
    image = torch.randn(2, 6, 11, 8, dtype=torch.float64)
    assert torch.allclose(conv(image), conv.fold()(image), atol=1e-12)


def test_gradients_reach_basis_and_transform():
    conv = randomise(RecConv(2, 2, 3, padding=1, groups=2).double())
    image = torch.randn(1, 2, 4, 4, dtype=torch.float64)

    def run(weight, transform):
        return torch.func.functional_call(conv, {"weight": weight, "transform": transform}, (image,))

    inputs = [conv.weight.detach().requires_grad_(), conv.transform.detach().requires_grad_()]
    assert torch.autograd.gradcheck(run, inputs)


def test_a_fresh_layer_is_not_dead():
    """W_b = 0 with T = 0 would never learn; ours starts with a random basis, and T has a gradient at zero."""
    conv = RecConv(8, 8, 3, padding=1, groups=8)
    conv(torch.randn(1, 8, 6, 6)).square().mean().backward()
    assert conv.weight.abs().max() > 0
    assert conv.transform.abs().max() == 0
    assert conv.transform.grad.abs().max() > 0
    assert conv.weight.grad.abs().max() > 0


def test_all_kernels_at_once_are_those_of_each_layer():
    """One batched product for layers of several shapes: the same outputs and gradients as each layer by itself."""
    network = randomise(KRGN(scale=2, n_feats=8, n_resgroups=1, groups=4)).double()
    network.body[0].blocks[0].conv_acts[0][0] = randomise(RecConv(8, 8, 3, padding=1, groups=2)).double()
    image = torch.rand(1, 3, 9, 8, dtype=torch.float64) * 255
    results = []
    for batched in (True, False):
        if not batched:
            network._forward_pre_hooks.clear()
        network.zero_grad()
        network(image).square().mean().backward()
        results.append([p.grad.clone() for p in network.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*results, strict=True))
    assert all(module.computed is None for module in network.modules() if isinstance(module, RecConv))


def test_kernels_are_those_of_the_fold_under_autocast():
    layer = randomise(RecConv(8, 8, 3, padding=1, groups=8))
    folded = layer.fold().weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.kernel(), folded)
    assert randomise(RecConv(8, 8, 3)).to("meta").kernel().shape == (8, 8, 3, 3)


def test_kernels_of_a_pass_do_not_outlive_it():
    """Also after a pass that failed: the next one must not use kernels of other weights."""
    network = randomise(KRGN(scale=2, n_feats=8, n_resgroups=1)).eval()
    image = torch.rand(1, 3, 8, 8) * 255
    with pytest.raises(RuntimeError):
        network(image[:, :2])
    with torch.no_grad():
        before = network(image)
        randomise(network, 1.0)
        assert not torch.equal(network(image), before)
        folded = fold(network)
        assert torch.allclose(network(image), folded(image), atol=1e-3)
    assert not folded._forward_pre_hooks
    assert not folded._forward_hooks


def test_frozen_basis_is_not_trained():
    conv = RecConv(8, 8, 3, groups=8, train_basis=False)
    conv(torch.randn(1, 8, 6, 6)).sum().backward()
    assert conv.weight.grad is None
    assert conv.transform.grad is not None
    assert basis_is_frozen(conv)


def test_even_transform_is_refused():
    with pytest.raises(ValueError, match="odd"):
        RecConv(4, 4, 3, transform_size=2)


def test_fold_copies_and_leaves_the_original_alone():
    model = randomise(nn.Sequential(RecConv(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model)
    assert is_recalibrated(model)
    assert not is_recalibrated(folded)
    for tensor in folded.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_shared_layer_stays_shared():
    conv = randomise(RecConv(4, 4, 3, padding=1, groups=4))
    folded = fold(nn.ModuleDict({"a": conv, "b": nn.Sequential(conv)}))
    assert folded["a"] is folded["b"][0]


@pytest.mark.parametrize("groups", [0, 32, 1])
@pytest.mark.parametrize("dilation", [1, 3])
def test_whole_network_folds(groups, dilation):
    """Training form against folded form, float32, within 1e-3 of the 0-255 range; wrong if T is left out."""
    n_feats = 64 if groups == 32 else 16
    network = KRGN(scale=2, n_feats=n_feats, n_resgroups=2, groups=groups, dilation=dilation).eval()
    randomise(network, 0.05)
    image = torch.rand(1, 3, 21, 14) * 255
    with torch.no_grad():
        expected, got = network(image), fold(network)(image)
        assert (expected - got).abs().max() < 1e-3
        for module in network.modules():
            if isinstance(module, RecConv):
                module.transform.zero_()
        assert (expected - network(image)).abs().max() > 1e-2


def test_averaging_and_folding_do_not_commute():
    """W_b + T(W_b) is bilinear: weights must be averaged first and folded afterwards."""
    one, two = (randomise(RecConv(4, 4, 3, groups=4)) for _ in range(2))
    mean = RecConv(4, 4, 3, groups=4)
    mean.load_state_dict({name: (one.state_dict()[name] + two.state_dict()[name]) / 2 for name in mean.state_dict()})
    assert not torch.allclose(mean.fold().weight, (one.fold().weight + two.fold().weight) / 2, atol=1e-3)


# --- recalibrate: any network ---


def depthwise(**options) -> nn.Conv2d:
    return nn.Conv2d(6, 6, **({"kernel_size": 3, "padding": 1, "groups": 6} | options))


def layers_of(model: nn.Module) -> dict[str, RecConv]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RecConv)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "groups": 3},
        {"dilation": 3, "padding": 3, "groups": 2, "bias": False},
        {"padding": "same", "padding_mode": "circular"},
        {"padding_mode": "reflect", "groups": 1},
        {"padding_mode": "replicate", "padding": (1, 2), "stride": (1, 2)},
        {"groups": 1, "dtype": torch.float64},
        {"groups": 1},
        {"kernel_size": 1, "groups": 1, "padding": 0},
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_convolution_is_inherited_bit_for_bit(options, memory_format):
    conv = depthwise(**options).to(memory_format=memory_format)
    network = nn.Sequential(conv, nn.ReLU()).eval()
    image = torch.randn(2, 6, 11, 8, dtype=conv.weight.dtype)
    changed = recalibrate(network, "0")
    assert type(changed[0]) is RecConv
    assert not changed[0].training
    assert torch.equal(changed(image), network(image))
    assert torch.equal(fold(changed)(image), network(image))
    assert fold(changed)[0].extra_repr() == conv.extra_repr()
    assert changed[0].kernel().stride() == fold(changed)[0].weight.stride() == conv.weight.stride()
    # Trained, it is another function, which folds.
    changed = randomise(changed).double()
    assert torch.allclose(changed(image.double()), fold(changed)(image.double()), atol=1e-12)
    assert not torch.allclose(changed(image.double()).to(image.dtype), network(image), atol=1e-2)


def test_a_public_depthwise_network():
    """MobileNetV2 out of pytorchcv: inherits, trains only T over a frozen basis, folds back under its own names."""
    network = mobilenetv2_wd4(in_size=(64, 64)).eval()
    network.features.final_pool = nn.AdaptiveAvgPool2d(1)  # its own wants 224 pixels
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    image = torch.rand(2, 3, 64, 64)
    changed = recalibrate(network, train_basis=False)
    depthwise_layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert list(layers_of(changed)) == depthwise_layers
    assert len(depthwise_layers) == 17
    assert not is_recalibrated(network)
    assert basis_is_frozen(changed)
    with torch.no_grad():
        assert torch.equal(changed(image), network(image))

    trained = [parameter for parameter in changed.parameters() if parameter.requires_grad]
    changed(image).square().mean().backward()
    with torch.no_grad():
        for parameter in trained:
            parameter -= 0.1 * parameter.grad
    assert all(layer.transform.abs().max() > 0 for layer in layers_of(changed).values())
    assert all(torch.equal(layer.weight, before[f"{name}.weight"]) for name, layer in layers_of(changed).items())

    folded = fold(changed)
    with torch.no_grad():
        expected = changed(image)
        assert torch.allclose(folded(image), expected, atol=1e-5 * expected.abs().max().item())
        assert not torch.allclose(network(image), expected, atol=1e-3 * expected.abs().max().item())
    mobilenetv2_wd4().load_state_dict(folded.state_dict(), strict=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_where_chooses_by_name_and_by_predicate():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(depthwise(), nn.Conv2d(6, 6, 1)), nn.Linear(2, 2))
    assert list(layers_of(recalibrate(network))) == ["1.0"]
    assert list(layers_of(recalibrate(network, "1.*"))) == ["1.0", "1.1"]
    assert list(layers_of(recalibrate(network, lambda name, conv: conv.in_channels == 3))) == ["0"]
    assert list(layers_of(recalibrate(recalibrate(network), "*"))) == ["0", "1.0", "1.1"]
    assert list(layers_of(recalibrate(network, transform_size=5))) == ["1.0"]
    assert recalibrate(network, transform_size=5)[1][0].transform.shape == (6, 6, 5, 5)


def test_what_is_inherited():
    """Values, dtypes, devices and what is trained; nothing is shared with the original."""
    network = nn.Sequential(depthwise(dtype=torch.bfloat16), depthwise(device="meta"), depthwise())
    network[2].weight.requires_grad_(False)
    changed = recalibrate(network)
    assert changed[0].transform.dtype == torch.bfloat16
    assert changed[1].transform.device.type == "meta"
    assert [layer.weight.requires_grad for layer in changed] == [True, True, False]
    assert all(layer.transform.requires_grad for layer in changed)
    assert changed[0].weight.data_ptr() != network[0].weight.data_ptr()
    assert basis_is_frozen(recalibrate(network, train_basis=False))
    # Neither the weights nor the state of the random numbers depend on it.
    before = torch.get_rng_state()
    fold(recalibrate(nn.Sequential(network[0])))
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_already_recalibrated_stay_as_they_are():
    once = randomise(recalibrate(nn.Sequential(depthwise(), nn.Conv2d(6, 2, 3))))
    twice = recalibrate(once)
    assert list(layers_of(twice)) == ["0"]
    assert torch.equal(twice[0].transform, once[0].transform)
    wrapped = recalibrate(nn.Sequential(once, depthwise()))
    hooked = [name for name, module in wrapped.named_modules() if module._forward_pre_hooks]
    assert hooked == [""]
    assert [len(wrapped._forward_pre_hooks), len(wrapped._forward_hooks)] == [1, 1]
    # Parts of a recalibrated network are networks, too.
    image = torch.rand(1, 6, 9, 9)
    assert torch.allclose(wrapped[0](image), once(image))
    conv = recalibrate(depthwise())
    assert type(conv) is RecConv
    assert type(fold(conv)) is nn.Conv2d


def test_a_shared_convolution_stays_shared():
    conv = depthwise()
    network = nn.ModuleDict({"a": conv, "b": nn.Sequential(conv)})
    for where in (None, "b.*"):
        changed = recalibrate(network, where)
        assert type(changed["a"]) is RecConv
        assert changed["a"] is changed["b"][0]


def test_a_network_that_checkpoints_its_activations():
    """Its parts run again in the backward pass, when the kernels of the pass are gone: each layer computes its own."""

    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    network = randomise(recalibrate(Checkpointed(depthwise())))
    image = torch.rand(1, 6, 8, 8)
    with pytest.raises(CheckpointError):
        network(image).sum().backward()
    unbatch_kernels(network)(image).sum().backward()
    gradient = network[0].transform.grad.clone()
    network[0](image).sum().backward()
    assert torch.allclose(network[0].transform.grad, 2 * gradient)


class SamePadding(nn.Conv2d):
    """As in EfficientNets ported from TensorFlow: the padding is in the forward."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def hooked() -> nn.Conv2d:
    conv = depthwise()
    conv.register_forward_hook(lambda module, inputs, output: 2 * output)
    return conv


def buffered() -> nn.Conv2d:
    conv = depthwise()
    conv.register_buffer("mask", torch.ones(3, 3))
    return conv


REFUSED = {
    "Conv1d": (lambda: nn.Conv1d(6, 6, 3, groups=6), TypeError, "is a Conv1d, but only nn.Conv2d"),
    "Conv3d": (lambda: nn.Conv3d(6, 6, 3, groups=6), TypeError, "is a Conv3d"),
    "transposed": (lambda: nn.ConvTranspose2d(6, 6, 3, groups=6), TypeError, "is a ConvTranspose2d"),
    "subclass": (lambda: SamePadding(6, 6, 3, groups=6), TypeError, "SamePadding, a subclass"),
    "mean shift": (lambda: MeanShift(n_colors=3, rgb_range=1, sign=1), TypeError, "MeanShift, a subclass"),
    "hook": (hooked, ValueError, "has hooks"),
    "buffer": (buffered, ValueError, "mask beside"),
    "parametrization": (lambda: parametrizations.weight_norm(depthwise()), ValueError, "has parametrizations"),
    "old weight norm": (lambda: weight_norm(depthwise()), ValueError, "has hooks"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_what_cannot_be_kept_is_refused_by_name(kind):
    make, error, words = REFUSED[kind]
    network = nn.Sequential(nn.ReLU(), nn.Sequential(make(), depthwise()))
    with pytest.raises(error, match=words) as raised:
        recalibrate(network, "1.*")
    assert str(raised.value).startswith("1.0: ")
    assert str(raised.value).endswith("leave it out with `where`")
    if error is TypeError:  # no grouped nn.Conv2d, so it was not meant
        assert list(layers_of(recalibrate(network))) == ["1.1"]
    else:
        with pytest.raises(error, match=words):
            recalibrate(network)


def test_a_kernel_shared_with_another_module_is_refused():
    network = nn.Sequential(depthwise(), depthwise(), depthwise())
    network[2].weight = network[0].weight
    with pytest.raises(ValueError, match="0: shares its weight or bias"):
        recalibrate(network)
    assert list(layers_of(recalibrate(network, "1"))) == ["1"]
    changed = recalibrate(network, "1")
    assert changed[2].weight is changed[0].weight


@pytest.mark.parametrize(
    ("network", "where", "error", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 6, 3)), None, ValueError, r"no grouped or depth-wise.*0 \(Conv2d\).*`where`"),
        (nn.Sequential(nn.Conv2d(3, 6, 3)), "body.*", ValueError, r"name matches 'body\.\*'"),
        (nn.Sequential(nn.Conv2d(3, 6, 3)), lambda name, conv: False, ValueError, "`where` is true"),
        (nn.Sequential(SamePadding(6, 6, 3, groups=6)), None, ValueError, r"0 \(SamePadding\)"),
        (nn.Sequential(nn.Linear(3, 3)), None, ValueError, "it has no convolution"),
        (nn.Sequential(nn.Conv2d(3, 6, 3)), 3, TypeError, "where: got 3"),
    ],
)
def test_nothing_to_recalibrate_is_said(network, where, error, words):
    with pytest.raises(error, match=words):
        recalibrate(network, where)


def test_dense_convolutions_have_a_cheap_transform():
    """One channel in each of T's groups: as many weights as the kernels have, and equation (1) as elsewhere."""
    conv = randomise(RecConv(6, 9, 3, groups=1).double())
    assert conv.transform.shape == (54, 1, 3, 3)
    basis = conv.weight.detach().reshape(1, 54, 3, 3)
    expected = basis + F.conv2d(basis, conv.transform, padding=1, groups=54)
    assert torch.allclose(conv.kernel(), expected.reshape(9, 6, 3, 3), atol=1e-12)
