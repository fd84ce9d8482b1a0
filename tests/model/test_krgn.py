"""The network: shapes at every scale, published parameter counts and names, every size, one step of training."""

import pytest
import torch

from model.krgn import CCA, KRGN, kernel_sets, structure
from model.networks import count_parameters
from model.recalibration import RecConv, fold, recalibrate
from model.tiling import Tiles


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(7, 12), (1, 1), (2, 5)])
def test_any_size_at_every_scale(scale, height, width):
    network = KRGN(scale=scale, n_feats=8, n_resgroups=2)
    assert network(torch.rand(1, 3, height, width) * 255).shape == (1, 3, scale * height, scale * width)


@pytest.mark.parametrize(
    "options",
    [
        {"n_feats": 12, "groups": 4},
        {"n_feats": 5, "n_resgroups": 1},
        {"n_colors": 1},
        {"n_colors": 4},
        {"act": "prelu"},
        {"act": "relu", "dilation": 2},
        {"recalibrated": False},
        {"rgb_range": 1},
    ],
)
def test_one_training_step_of_every_variant(options):
    network = KRGN(**{"scale": 3, "n_feats": 8, "n_resgroups": 1, **options})
    image = torch.rand(2, network.hyperparameters["n_colors"], 6, 5)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = (network(image) - 0.5).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("scale", "groups", "count"), [(2, 32, 600_556), (3, 32, 609_211), (4, 32, 621_328), (4, 0, 528_016)]
)
def test_published_parameter_counts(scale, groups, count):
    network = KRGN(scale=scale, groups=groups, recalibrated=False)
    assert count_parameters(network) == count
    assert count_parameters(fold(KRGN(scale=scale, groups=groups))) == count


def test_training_form_holds_about_six_million_more():
    network = KRGN(scale=4)
    transforms = sum(p.numel() for name, p in network.named_parameters() if name.endswith(".transform"))
    assert transforms == 162 * 36_864


def test_names_of_the_published_state_dict(shared):
    published = torch.load(shared / "weights/CFGN_x4.pt", weights_only=True, map_location="cpu")
    network = KRGN(scale=4, groups=32, recalibrated=False)
    assert {name: t.shape for name, t in network.state_dict().items()} == {n: t.shape for n, t in published.items()}
    # The fixed mean shift is the published one, too.
    for name in ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"):
        assert torch.allclose(network.state_dict()[name], published[name])


@pytest.mark.parametrize("recalibrated", [True, False])
def test_structure_is_read_off_the_state_dict(recalibrated):
    options = {"scale": 3, "n_feats": 12, "n_resgroups": 2, "groups": 4, "n_colors": 1, "rgb_range": 1.0}
    network = KRGN(**options, recalibrated=recalibrated)
    assert structure(network.state_dict()) == options


def test_attention_has_a_gradient_on_a_flat_map():
    """The standard deviation of a constant has an infinite slope; without the epsilon the gradient is NaN."""
    image = torch.full((1, 8, 4, 4), 3.0, requires_grad=True)
    CCA(n_feats=8)(image).sum().backward()
    assert image.grad.isfinite().all()


def test_attention_is_standard_deviation_plus_mean():
    cca = CCA(n_feats=8).double()
    image = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    statistic = image.std(dim=(2, 3), correction=0, keepdim=True) + image.mean(dim=(2, 3), keepdim=True)
    assert torch.allclose(cca(image), image * cca.conv_du(statistic), atol=1e-6)


def test_features_must_be_divisible_by_groups():
    with pytest.raises(ValueError, match="n_feats"):
        KRGN(n_feats=10, groups=4)


def test_half_precision_does_not_overflow():
    """A standard deviation of 2000 fits float16, its square does not."""
    cca = CCA(n_feats=8).half()
    image = torch.randn(1, 8, 16, 16) * 2000
    statistics = []
    cca.conv_du.register_forward_pre_hook(lambda _module, inputs: statistics.append(inputs[0]))
    assert cca(image.half()).isfinite().all()
    assert statistics[0].isfinite().all()


def test_kernel_sets_are_the_recalibrated_convolutions():
    network = KRGN(scale=2, n_feats=8, n_resgroups=2)
    layers = kernel_sets(network, 2)
    assert len(layers) == 18
    assert [layer.dilation[0] for layer in layers] == [1, 3] * 9
    assert layers[0] is network.body[1].blocks[0].conv_acts[0][0]


def test_the_fusion_layer_may_be_recalibrated_or_have_hooks():
    """Dense fusion reads this layer's kernel itself, where it is a plain one."""
    image = torch.rand(1, 3, 9, 8, dtype=torch.float64) * 255
    network = recalibrate(
        KRGN(scale=2, n_feats=8, n_resgroups=2, recalibrated=False).double(), "features_fusion_module.0"
    )
    fusion = network.features_fusion_module[0]
    assert type(fusion) is RecConv
    for module in network.modules():
        if isinstance(module, RecConv):
            torch.nn.init.normal_(module.transform, std=0.1)
    out = network(image)
    out.sum().backward()
    assert fusion.transform.grad.abs().max() > 0
    deployed = fold(network)
    with torch.no_grad():
        assert torch.allclose(deployed(image), out, atol=1e-8)
        tiles = Tiles(network.float(), scale=2, tile=4)(image.float())
        assert torch.allclose(tiles.double(), out, atol=1e-2)
    seen = []
    hook = deployed.features_fusion_module[0].register_forward_hook(lambda *_: seen.append(1))
    again = deployed(image)
    hook.remove()
    assert seen == [1]
    assert torch.allclose(again, out, atol=1e-8)


@pytest.mark.parametrize("recalibrated", [True, False])
@pytest.mark.parametrize("converted", [True, False], ids=["bfloat16 itself", "autocast"])
def test_a_network_in_bfloat16(recalibrated, converted):
    """Its image is that of float32 to a rounding of features, with and without gradients, and each layer learns."""
    torch.manual_seed(0)
    network = KRGN(scale=2, n_resgroups=2, recalibrated=recalibrated)
    x = torch.rand(2, 3, 13, 17) * 255
    expected = network(x)
    half = network.bfloat16() if converted else network
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not converted):
        got = half(x.bfloat16().float())
        with torch.no_grad():
            folded = fold(half)(x.bfloat16().float())
    for image in (got, folded):
        assert image.dtype == torch.float32
        assert (image - expected).norm() <= 0.01 * (expected - expected.mean()).norm()
    got.mean().backward()
    for name, parameter in half.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == parameter.dtype, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
