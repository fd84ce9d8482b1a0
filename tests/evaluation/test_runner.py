"""ImageRunner against the same steps taken by hand."""

import pytest
import torch
from helpers import randomise

from evaluation.metrics import quantise
from evaluation.runner import ImageRunner
from model import inference
from model.krgn import KRGN

CPU = torch.device("cpu")


@pytest.fixture
def network():
    return randomise(KRGN(scale=2, n_feats=8, n_resgroups=1)).eval()


@pytest.fixture
def lr():
    return torch.randint(0, 256, (3, 30, 25), dtype=torch.uint8)


@pytest.mark.parametrize("rgb_range", [255, 1])
def test_every_way_to_run_an_image(network, lr, rgb_range):
    image = lr[None].float() * (rgb_range / 255)
    whole = network
    quadrants = lambda x: inference.chop(network, x, 2)  # noqa: E731
    ways = {
        (): whole(image),
        ("chop",): quadrants(image),
        ("tile",): whole(image),
        ("self_ensemble",): inference.self_ensemble(whole, image),
        ("chop", "self_ensemble"): inference.self_ensemble(quadrants, image),
        ("tile", "self_ensemble"): inference.self_ensemble(whole, image),
    }
    with torch.inference_mode():
        for flags, expected in ways.items():
            values = {"chop": True, "tile": 16, "self_ensemble": True}
            runner = ImageRunner(
                network, device=CPU, scale=2, rgb_range=rgb_range, **{flag: values[flag] for flag in flags}
            )
            sr, finite = runner.upscale(lr)
            assert finite
            assert sr.dtype == torch.uint8
            assert sr.shape == (3, 60, 50)
            difference = sr.int() - quantise(expected[0].detach(), rgb_range).int()
            assert difference.abs().max() <= ("tile" in flags), flags  # tiles may round to another whole value


def test_an_output_that_is_not_finite_is_reported(network, lr):
    with torch.no_grad():
        network.add_mean.bias[0] = torch.nan
    with torch.inference_mode():
        assert not ImageRunner(network, device=CPU, scale=2).upscale(lr).finite
