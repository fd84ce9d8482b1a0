"""Losses: each term against its definition, and runs that train with perceptual and adversarial ones."""

import re

import numpy as np
import pytest
import torch
from conftest import assert_one_line, program, small_run
from helpers import equal, history, launch, weights

from loss import perceptual
from loss.adversarial import Adversarial
from loss.names import ADVERSARIAL
from loss.perceptual import Perceptual, load_vgg19, vgg19
from loss.weighted import Charbonnier, FrequencyL1, Loss
from model.weights import load_tensors
from runtime.errors import UserError
from runtime.files import save_tensors
from train import monitor


def test_weighted_terms():
    sr, hr = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 3.0)
    terms = Loss(((2.0, "L1"), (0.5, "MSE")))(sr, hr)
    assert terms.tolist() == pytest.approx([6.0, 4.5])


def test_terms_have_gradients():
    sr = torch.zeros(1, 1, 2, 2, requires_grad=True)
    Loss(((1.0, "L1"), (1.0, "MSE")))(sr, torch.ones(1, 1, 2, 2)).sum().backward()
    assert (sr.grad < 0).all()


def test_charbonnier_is_a_smooth_l1():
    sr, hr = torch.tensor([0.0, 3.0]), torch.tensor([0.0, -1.0])
    assert Charbonnier(0.5)(sr, hr).item() == pytest.approx((0.5 + (16.25) ** 0.5) / 2)
    sr.requires_grad_()
    Charbonnier()(sr, hr).backward()
    assert sr.grad.isfinite().all()


def test_frequency_loss_against_numpy():
    sr, hr = torch.rand(2, 3, 8, 6), torch.rand(2, 3, 8, 6)
    difference = np.fft.rfft2((sr - hr).numpy(), norm="ortho")
    expected = np.mean([np.abs(difference.real), np.abs(difference.imag)])
    assert FrequencyL1()(sr, hr).item() == pytest.approx(expected, rel=1e-5)
    assert FrequencyL1()(sr, sr).item() == 0


# --- perceptual ---


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """VGG19's convolutions with random weights, as torchvision names them."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    save_tensors(path, {f"features.{name}": tensor for name, tensor in vgg19(5, 4).state_dict().items()})
    return path


def test_vgg_layers_are_torchvisions():
    """The indices of torchvision's convolutions, and the last ones of VGG22 and VGG54."""
    found = sorted({int(name.split(".")[0]) for name in vgg19(5, 4).state_dict()})
    assert found == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    assert len(vgg19(2, 2)) == 8
    assert sum(tensor.numel() for tensor in vgg19(5, 4).state_dict().values()) == 20_024_384


@pytest.mark.parametrize("rgb_range", [255, 1])
def test_perceptual_against_its_definition(vgg_file, rgb_range):
    state = load_vgg19(str(vgg_file), load_tensors)
    sr, hr = (torch.rand(1, 3, 12, 12, requires_grad=grad) for grad in (True, False))
    features = []
    for images in (sr, hr):
        x = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
        for index in (0, 2, 5, 7):
            x = torch.nn.functional.conv2d(
                x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1
            )
            x = x.relu() if index < 7 else x
            x = torch.nn.functional.max_pool2d(x, 2) if index == 2 else x
        features.append(x)
    expected = (features[0] - features[1]).square().mean()
    term = Perceptual("VGG22", rgb_range=rgb_range, load=lambda: state)
    got = term(sr * rgb_range, hr * rgb_range)
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)
    got.backward()
    assert sr.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in term.parameters())


def test_training_with_vgg(small_set, vgg_file):
    """The network alone is trained and saved; VGG19 is in no file."""
    flags = ("--epochs", "1", "--loss", "1*L1+5*VGG54", "--vgg_weights", str(vgg_file))
    launch(*small_run(small_set, *flags))
    folder = small_set.parent / "experiment/small"
    row = history(folder)[0]
    assert float(row["VGG54"]) > 0
    assert float(row["loss"]) == pytest.approx(float(row["L1"]) + float(row["VGG54"]))
    assert (folder / "state.pt").stat().st_size < 5e6


def test_vgg_that_cannot_be_had(small_set, tmp_path, monkeypatch):
    flags = small_run(small_set, "--loss", "VGG22")
    assert_one_line(program("main.py", *flags, "--vgg_weights", tmp_path / "none.pth"), "none.pth", "no such file")
    save_tensors(tmp_path / "other.pth", {"features.0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=re.escape("features.0.weight is (1,), expected (64, 3, 3, 3)")):
        load_vgg19(str(tmp_path / "other.pth"), load_tensors)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(perceptual, "URL", "http://127.0.0.1:9/vgg19-dcbb9e9d.pth")
    with pytest.raises(UserError, match=r"cannot be downloaded .*refused.*--vgg_weights"):
        load_vgg19("", load_tensors)


# --- adversarial ---


def adversarial(kind: str) -> tuple[Adversarial, torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return Adversarial(kind, n_colors=3, rgb_range=255, patch_size=32), *(torch.rand(2, 2, 3, 32, 32) * 255)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_each_side_of_an_adversarial_loss_trains_its_own_weights(kind):
    term, sr, hr = adversarial(kind)
    sr.requires_grad_()
    term(sr, hr).backward()
    assert sr.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in term.parameters())
    sr.grad = None
    term.critic_loss(sr, hr).backward()
    assert sr.grad is None
    assert all(parameter.grad.isfinite().all() for parameter in term.parameters())
    assert sum(parameter.grad.abs().sum() for parameter in term.parameters()) > 0


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_a_discriminator_learns_to_tell_sr_from_hr(kind):
    term, sr, hr = adversarial(kind)
    hr = hr / 4
    optimizer = torch.optim.Adam(term.parameters(), lr=1e-4)
    before = term(sr, hr).item()
    for _ in range(8):
        optimizer.zero_grad()
        loss = term.critic_loss(sr, hr)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert term._judge(hr).mean() > term._judge(sr).mean()
        assert term(sr, hr) > before  # the better it tells, the more the network has to do
        assert term(hr, hr) < term(sr, hr)


def test_adversarial_losses_against_their_formulas():
    sigmoid = torch.sigmoid
    for kind in ADVERSARIAL:
        term, sr, hr = adversarial(kind)
        with torch.no_grad():
            fake, real = term._judge(sr), term._judge(hr)
            expected = {
                "GAN": -sigmoid(fake).log().mean(),
                "WGAN_GP": -fake.mean(),
                "RGAN": -sigmoid(fake - real.mean()).log().mean() - (1 - sigmoid(real - fake.mean())).log().mean(),
            }[kind]
            assert term(sr, hr).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_gradient_penalty_of_a_linear_discriminator():
    """For D(x) = w.x the gradient is w at every point."""
    term, sr, hr = adversarial("WGAN_GP")
    term.discriminator = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 1))
    norm = term.discriminator[1].weight.norm()
    assert term._gradient_penalty(sr, hr).item() == pytest.approx((norm - 1).square().item(), rel=1e-4)


def test_adversarial_training_goes_on_exactly(small_set):
    """The discriminator, its optimizer and the random points of the penalty are in the state too."""
    experiments = small_set.parent / "experiment"
    flags = small_run(
        small_set, "--loss", "1*L1+0.1*WGAN-GP", "--patch_size", "32", "--test_every", "2", "--batch_size", "2"
    )
    launch(*flags, "--save", "at_once", "--epochs", "2")
    launch(*flags, "--save", "in_parts", "--epochs", "1")
    launch("--cpu", "--load", "in_parts", "--epochs", "2", "--dir_experiment", experiments)
    assert equal(weights(experiments / "at_once"), weights(experiments / "in_parts"))
    one, other = (load_tensors(experiments / name / "state.pt") for name in ("at_once", "in_parts"))
    assert one["discriminator"]
    assert equal(one["discriminator"], other["discriminator"])
    for a, b in zip(history(experiments / "at_once"), history(experiments / "in_parts"), strict=True):
        assert float(a["discriminator"]) == float(b["discriminator"])
        assert float(a["loss"]) == pytest.approx(float(a["L1"]) + float(a["WGAN_GP"]))


def test_a_discriminator_that_is_not_finite_skips_the_batch(small_set, monkeypatch):
    critic_loss = Adversarial.critic_loss
    monkeypatch.setattr(Adversarial, "critic_loss", lambda *given: critic_loss(*given) * torch.nan)
    monkeypatch.setattr(monitor, "MAX_SKIPPED", 3)
    with pytest.raises(monitor.Diverged):
        launch(*small_run(small_set, "--loss", "1*L1+0.1*GAN", "--patch_size", "32"))
    skipped = (small_set.parent / "experiment/small/skipped.csv").read_text()
    assert skipped.count("its discriminator's loss is not finite") == 3
