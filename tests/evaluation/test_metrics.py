"""The measuring protocol against scikit-image and against published scores."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from data import resize
from data.image import read_image
from evaluation.metrics import psnr, psnr_ssim, quantise, rgb_to_chroma, rgb_to_y, ssim, with_chroma


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def test_against_scikit_image(photo):
    noise = np.random.default_rng(0).normal(0, 12, photo.shape)
    noisy = np.clip(photo + noise, 0, 255).astype(np.uint8)
    a, b = (rgb_to_y(tensor(image)) for image in (photo, noisy))
    reference = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(a, b) == pytest.approx(structural_similarity(a[0].numpy(), b[0].numpy(), **reference), abs=1e-9)
    expected = peak_signal_noise_ratio(a[0].numpy(), b[0].numpy(), data_range=255)
    assert psnr(a, b) == pytest.approx(expected, abs=1e-9)
    # psnr_ssim is both of them on the shaved luma.
    scores = psnr_ssim(tensor(photo), tensor(noisy), 3)
    shaved = [y[0, 3:-3, 3:-3].numpy() for y in (a, b)]
    assert scores[0] == pytest.approx(peak_signal_noise_ratio(*shaved, data_range=255), abs=1e-9)
    assert scores[1] == pytest.approx(structural_similarity(*shaved, **reference), abs=1e-9)


def test_luma_of_the_primaries():
    """BT.601 in 16..235: black 16, white 235, and the three weights."""
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]).T.reshape(3, 1, 5)
    expected = [16, 235, 16 + 65.481, 16 + 128.553, 16 + 24.966]
    assert rgb_to_y(colours).flatten().tolist() == pytest.approx(expected, abs=1e-9)


def test_chroma_and_the_way_back():
    """White, black and gray have none; blue has all the Cb there is; luma and chroma give the colours again."""
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [99, 99, 99], [0, 0, 255], [255, 0, 0]]).T.reshape(3, 1, 5)
    chroma = rgb_to_chroma(colours)
    assert chroma[:, 0, :3].flatten().tolist() == pytest.approx([128] * 6)
    assert chroma[0, 0, 3].item() == pytest.approx(240)
    assert chroma[1, 0, 4].item() == pytest.approx(240)
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    assert torch.equal(with_chroma(rgb_to_y(image), rgb_to_chroma(image)), image)


def test_quantise_clamps_rounds_and_scales():
    assert quantise(torch.tensor([-3.0, 0.49, 0.51, 254.6, 300.0])).tolist() == [0, 0, 1, 255, 255]
    assert quantise(torch.tensor([0.5]), rgb_range=1).tolist() == [128]
    assert quantise(torch.tensor([0.0])).dtype == torch.uint8


def test_edges_of_the_protocol():
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    assert psnr_ssim(image, image, 4) == (math.inf, pytest.approx(1))
    assert math.isnan(psnr_ssim(image[:, :12], image[:, :12], 2)[1])
    # What lies in the shaved border does not count.
    other = image.clone()
    other[:, :4] = 0
    assert psnr_ssim(image, other, 4)[0] == math.inf
    with pytest.raises(ValueError, match="shape"):
        psnr_ssim(image, image[:, 1:], 4)
    # One channel is luma already.
    assert psnr_ssim(image[:1], 255 - image[:1], 2)[0] == pytest.approx(
        psnr(image[:1, 2:-2, 2:-2], 255 - image[:1, 2:-2, 2:-2])
    )


PUBLISHED_BICUBIC = {
    ("Set5", 2): (33.66, 0.9299),
    ("Set5", 3): (30.39, 0.8682),
    ("Set5", 4): (28.42, 0.8104),
    ("Set14", 2): (30.23, 0.8687),
    ("Set14", 3): (27.54, 0.7736),
    ("Set14", 4): (26.00, 0.7019),
}


@pytest.mark.parametrize(("name", "scale"), list(PUBLISHED_BICUBIC))
def test_published_bicubic_scores(shared, name, scale):
    """The SRCNN protocol: rounded luma, shrunk and enlarged without rounding in between; gray is its own luma."""
    scores = []
    for path in sorted((shared / "benchmark" / name / "HR").glob("*.png")):
        pixels = read_image(path)
        luma = pixels.astype(np.float64)
        if pixels.shape[2] == 3:
            luma = rgb_to_y(tensor(pixels)).round().numpy().transpose(1, 2, 0)
        height, width = (side // scale * scale for side in luma.shape[:2])
        luma = luma[:height, :width]
        enlarged = resize.upscale(resize.downscale(luma, scale), scale).round().clip(0, 255)
        scores.append(psnr_ssim(tensor(enlarged), tensor(luma), scale))
    means = np.mean(scores, axis=0)
    assert means[0] == pytest.approx(PUBLISHED_BICUBIC[name, scale][0], abs=0.005)
    assert means[1] == pytest.approx(PUBLISHED_BICUBIC[name, scale][1], abs=0.00005)
