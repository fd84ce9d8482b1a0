"""MATLAB's bicubic, bit for bit."""

import numpy as np
import pytest

from data import resize
from data.image import list_images, read_image


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_bit_identical_to_the_benchmark(shared, name, scale):
    differing = compared = 0
    for path in list_images(shared / "benchmark" / name / "HR"):
        expected = read_image(shared / "benchmark" / name / f"LR_bicubic/X{scale}/{path.stem}x{scale}.png")
        got = resize.downscale(read_image(path), scale)
        if expected.shape[2] > got.shape[2]:
            got = got.repeat(3, axis=2)
        assert got.shape == expected.shape
        differing += np.count_nonzero(got != expected)
        compared += expected.size
    assert compared > 10_000
    assert differing == 0


def keys(x: np.ndarray) -> np.ndarray:
    """The cubic kernel of Keys (1981) with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def imresize_line(line: np.ndarray, factor: float) -> np.ndarray:
    """One dimension of MATLAB's imresize, written from its documentation: widened kernel, mirrored borders."""
    n = int(np.ceil(len(line) * factor))
    widen = min(factor, 1)
    out = np.zeros(n)
    for i in range(n):
        centre = (i + 0.5) / factor - 0.5
        reach = np.arange(int(np.floor(centre - 2 / widen)) - 1, int(np.ceil(centre + 2 / widen)) + 2)
        weights = keys((reach - centre) * widen)
        mirrored = np.concatenate((np.arange(len(line)), np.arange(len(line))[::-1]))[reach % (2 * len(line))]
        out[i] = (weights / weights.sum()) @ line[mirrored]
    return out


@pytest.mark.parametrize(("up", "down"), [(1, 2), (1, 3), (1, 4), (1, 8), (2, 1), (3, 1), (4, 1)])
@pytest.mark.parametrize("length", [24, 48])
def test_against_the_definition(up, down, length):
    line = np.random.default_rng(0).random(length)
    image = np.tile(line[:, None, None], (1, down, 1))
    got = resize.upscale(image, up) if up > 1 else resize.downscale(image, down)
    assert np.allclose(got[:, 0, 0], imresize_line(line, up / down), atol=1e-12)


def test_sizes_and_types(photo):
    assert resize.downscale(photo, 4).shape == (75, 112, 3)
    assert resize.downscale(photo, 4).dtype == np.uint8
    assert resize.upscale(photo[:5, :7], 3).shape == (15, 21, 3)
    assert resize.downscale(photo.astype(float), 2).dtype == np.float64
    # An image smaller than the kernel is mirrored more than once.
    assert (resize.downscale(np.full((2, 2, 1), 7, np.uint8), 2) == 7).all()
