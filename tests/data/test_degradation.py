"""Degradations on the fly: patches are parts of whole degraded images, seeds decide, logs name the degradation."""

import numpy as np
import pytest
from conftest import assert_one_line, program, small_run
from helpers import launch, scores
from PIL import Image

from data import build_test_sets, build_train_set, resize
from data.degradation import Degradation, jpeg
from data.image import write_png
from option import parse_args
from studies import degrade


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("width", ["", "0.3", "3.5"])
def test_a_window_is_that_part_of_the_whole_image(photo, scale, width):
    """At every corner and in the middle."""
    degradation = Degradation.parse(f"blur{width}+bicubic")
    lr = resize.downscale(photo, scale)
    hr = photo[: scale * lr.shape[0], : scale * lr.shape[1]]
    whole = degradation.whole(lr, hr, scale, generator())
    height, width = lr.shape[:2]
    for top in (0, 3, height // 2, height - 16):
        for left in (0, width // 3, width - 16):
            box = slice(top, top + 16), slice(left, left + 16)
            assert np.array_equal(degradation.window(lr, hr, box, scale, generator()), whole[box])


def test_blur_against_the_definition(photo):
    """A Gaussian of the stated width over 15x15 pixels, then MATLAB's recipe."""
    hr = photo[:60, :64]
    offsets = np.arange(-7, 8)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.6**2))
    weights /= weights.sum()
    padded = np.pad(hr.astype(float), ((7, 7), (7, 7), (0, 0)), mode="symmetric")
    blurred = sum(weights[i, j] * padded[i : i + 60, j : j + 64] for i in range(15) for j in range(15))
    expected = resize.downscale(np.floor(blurred + 0.5).astype(np.uint8), 2)
    got = Degradation.parse("blur1.6+bicubic").whole(resize.downscale(hr, 2), hr, 2, generator())
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert (got != expected).mean() < 1e-3


def test_the_random_width_is_seeded(photo):
    hr, lr = photo[:60, :64], resize.downscale(photo[:60, :64], 2)
    one, same, other = (Degradation.parse("blur+bicubic").whole(lr, hr, 2, generator(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg(photo, channels):
    pixels = photo[:40, :50, :channels]
    errors = [np.abs(jpeg(pixels, quality).astype(int) - pixels).mean() for quality in (5, 40, 100)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert jpeg(pixels, 40).shape == pixels.shape


def test_samples(small_set):
    """HR patches, their positions and views are those of plain training; LR is worse; seeds decide."""

    def samples(*flags):
        train_set = build_train_set(parse_args(small_run(small_set, *flags)))
        return [train_set[k] for k in range(6)]

    plain, plain_again = samples(), samples("--degradation", "bicubic")
    worse, again = (samples("--degradation", "blur+bicubic+jpeg30") for _ in range(2))
    for a, b, c, d in zip(plain, plain_again, worse, again, strict=True):
        assert a[0].equal(b[0])
        assert c[0].equal(d[0])
        assert a[1].equal(c[1])
        assert not a[0].equal(c[0])
        assert a[0].shape == c[0].shape


def test_test_images(small_set):
    """Each image has a degradation of its own, which is the same in every run."""
    flags = small_run(small_set, "--degradation", "blur+bicubic")
    one, again = (build_test_sets(parse_args(flags))[0] for _ in range(2))
    plain = build_test_sets(parse_args(small_run(small_set)))[0]
    for index in range(len(one)):
        assert one[index][0].equal(again[index][0])
        assert not one[index][0].equal(plain[index][0])
        assert one[index][1].equal(plain[index][1])


def test_training_and_testing(small_set, capsys):
    folder = small_set.parent / "experiment"
    launch(*small_run(small_set, "--epochs", "1", "--degradation", "blur+bicubic+jpeg30"))
    test = ("--test_only", "--pre_train", folder / "small/model/model_latest.pt")
    launch(*small_run(small_set, *test, "--save", "plain"))
    launch(*small_run(small_set, *test, "--save", "worse", "--degradation", "bicubic+jpeg30"))
    assert "LR bicubic+jpeg30;" in capsys.readouterr().out
    assert all(a[1] != b[1] for a, b in zip(scores(folder / "plain"), scores(folder / "worse"), strict=True))
    with pytest.raises(Exception, match=r"--degradation bicubic.*--override degradation"):
        launch("--load", "small", "--degradation", "bicubic", "--dir_experiment", folder, "--epochs", "2")


def test_the_figure(tmp_path, photo):
    write_png(tmp_path / "photo.png", photo)
    write_png(tmp_path / "gray.png", photo[:, :, :1])
    for name in ("photo", "gray"):
        degrade.main(["--image", str(tmp_path / f"{name}.png"), "--out", str(tmp_path / "out" / f"{name}_figure.png")])
        assert Image.open(tmp_path / "out" / f"{name}_figure.png").size[0] > 1000
    assert_one_line(program("studies.degrade", "--image", tmp_path / "none.png", "--out", "x.png"), "none.png")
    assert_one_line(program("studies.degrade", "--image", tmp_path / "none.png", "--out", "x.jpg"), "x.jpg", ".png")
    assert_one_line(
        program("studies.degrade", "--image", "x", "--out", "y", "--degradations", "blur"), "'blur'", "blur+bicubic"
    )
