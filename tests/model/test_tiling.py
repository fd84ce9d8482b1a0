"""Tiles: the whole image's result, in the memory of a tile; and the ways a test runs and measures an image."""

import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_one_line, program, small_run
from helpers import launch, randomise, scores
from PIL import Image
from torch import nn

from data.image import write_png
from evaluation import pictures, runner
from evaluation.evaluate import evaluate
from evaluation.metrics import psnr, psnr_ssim, ssim
from evaluation.pictures import Writer
from evaluation.runner import ImageRunner
from model import tiling
from model.external import External
from model.krgn import KRGN
from model.recalibration import fold
from model.tiling import Tiles, bytes_per_pixel, peak_bytes, reach, windows
from runtime.errors import UserError


def krgn(scale: int, **options) -> KRGN:
    """A folded network whose attention and kernels are far from their initial values."""
    network = randomise(KRGN(scale=scale, n_feats=8, n_resgroups=2, **options), 0.3)
    for block in network.body:
        nn.init.normal_(block.cca.conv_du[2].weight, std=2)
    return fold(network).eval()


# Smaller than a tile, smaller than the halo, one row, no multiple of the tile, several tiles.
SIZES = [(1, 1), (5, 40), (21, 64), (33, 1), (70, 45)]


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("in_files", [False, True])
def test_tiles_are_the_whole_image(scale, in_files, monkeypatch):
    """KRGN with its global statistics, below 1e-3 of the 0-255 range; not so if each tile took its own statistics."""
    monkeypatch.setattr(tiling, "_IN_MEMORY", 0 if in_files else 2**29)
    network = krgn(scale)
    tiles = Tiles(network, scale=scale, tile=20)
    assert tiles.exact
    with torch.inference_mode():
        for size in SIZES:
            image = torch.rand(1, 3, *size) * 255
            expected = network(image)
            assert tiles(image).shape == expected.shape
            assert (tiles(image) - expected).abs().max() < 1e-3
        alone = torch.cat([network(image[..., window[0], :])[0, 0].flatten() for window in windows((70, 45), 20)])
        assert (alone[: 20 * scale] - expected[0, 0].flatten()[: 20 * scale]).abs().max() > 1e-2


def test_tiles_of_a_dilation_that_jumps_out_of_short_strips():
    """A halo that only the undilated convolutions were seen to need would leave seams."""
    network, image = krgn(2, dilation=20), torch.rand(1, 3, 24, 150) * 255
    with torch.inference_mode():
        assert (Tiles(network, scale=2, tile=40)(image) - network(image)).abs().max() < 1e-3


def test_the_halo_is_the_receptive_field():
    """A block: nine CFFBs that reach `dilation` pixels each, and one 3x3 convolution."""
    assert Tiles(krgn(2), scale=2, tile=8).halo == 9 * 3 + 1
    assert Tiles(krgn(2, dilation=2), scale=2, tile=8).halo == 9 * 2 + 1
    largest = KRGN(scale=2, n_feats=8, n_resgroups=1, dilation=64)  # of a file that is read
    assert Tiles(largest, scale=2, tile=8).halo == 9 * 64 + 1
    like = torch.zeros(1)
    assert reach(nn.Conv2d(3, 2, 5, padding=2), 3, like=like) == 2
    assert reach(nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2)), 3, like=like) == 0
    assert reach(nn.Conv2d(1, 1, (3, 7), padding=(1, 3)), 1, like=like) == 3
    assert reach(lambda x: x - x.mean(dim=(2, 3), keepdim=True), 1, like=like) is None


def test_tiles_of_other_networks():
    """Convolutions alone: exact. Global statistics that nobody knows how to run in stages: measured and said."""
    local = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))
    image = torch.rand(1, 3, 50, 41)
    with torch.inference_mode():
        tiles = Tiles(local, scale=2, tile=16)
        assert (tiles.exact, tiles.halo) == (True, 3)
        assert torch.allclose(tiles(image), local(image), atol=1e-5)

        class Gate(nn.Module):
            def forward(self, x):
                return x * x.mean(dim=(2, 3), keepdim=True)

        tiles = Tiles(nn.Sequential(local, Gate()), scale=2, tile=16)
        assert not tiles.exact
        assert tiles.deviation(image) > 0


def test_tiles_of_a_network_on_a_grid():
    """Merged pixels, as Real-ESRGAN x2 has them: tiles must lie on the network's own grid."""
    network = nn.Sequential(
        nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 48, 3, padding=1), nn.PixelShuffle(4)
    )
    described = SimpleNamespace(model=network, scale=2, architecture=SimpleNamespace(name="merged"), input_channels=3)
    external = External(described, rgb_range=1)
    external.described = network
    image = torch.rand(1, 3, 150, 134)
    with torch.inference_mode():
        tiles = Tiles(external, scale=2, tile=32)
        assert not tiles.exact
        assert (tiles(image) - external(image)).abs().max() < 1e-5


def test_inexact_tiles_are_announced(caplog, monkeypatch):
    monkeypatch.setattr(runner.log, "propagate", True)

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.shift(x) + x.mean()

    run = ImageRunner(Mean(), device=torch.device("cpu"), scale=1, tile=8).run
    with torch.inference_mode():
        run(torch.rand(1, 3, 90, 90) * 255)
    assert "not exact" in caplog.text


def test_memory_is_bounded_by_the_tile(monkeypatch):
    """Peak of live tensors beside input and output: the same for an image four times as large."""
    monkeypatch.setattr(tiling, "_IN_MEMORY", 0)
    network = krgn(2)
    tiles = Tiles(network, scale=2, tile=32)
    peaks = {}
    for side in (128, 256):
        image = torch.rand(1, 3, side, side)
        for name, run in (("tiles", tiles), ("whole", network)):
            with torch.inference_mode():
                peaks[name, side] = peak_bytes(run, image) - 4 * 3 * (2 * side) ** 2
    assert peaks["tiles", 256] < 1.1 * peaks["tiles", 128]
    assert peaks["whole", 256] > 3.5 * peaks["whole", 128]
    assert peaks["whole", 256] > 5 * peaks["tiles", 256]
    # What is predicted from two small images is what the large one takes.
    predicted = bytes_per_pixel(network, torch.zeros(1, 3, 1, 1)) * 256**2
    assert predicted == pytest.approx(peaks["whole", 256] + 4 * 3 * 4 * 256**2, rel=0.2)


def test_an_image_too_large_for_memory_runs_in_tiles(caplog, monkeypatch):
    """Predicted from what is free, and, where the prediction was wrong, after the allocation failed."""
    monkeypatch.setattr(runner.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="krgn")
    monkeypatch.setattr(runner, "AUTO_TILE", 24)
    network, image = krgn(2), torch.rand(1, 3, 60, 50) * 255
    with torch.inference_mode():
        expected = network(image)
        run = ImageRunner(network, device=torch.device("cpu"), scale=2).run
        assert torch.equal(run(image), expected)
        assert "tiles" not in caplog.text
        with monkeypatch.context() as patched:
            patched.setattr(tiling, "SURE_TO_FIT", 100)
            patched.setattr(tiling, "available_memory", lambda: 10**6)
            assert (run(image) - expected).abs().max() < 1e-3
        assert "50x60 pixels needs about" in caplog.text

        forward = KRGN.forward

        def full(self, x):
            if x.shape[-1] == 50:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            return forward(self, x)

        monkeypatch.setattr(KRGN, "forward", full)
        assert (run(image) - expected).abs().max() < 1e-3
        assert "does not fit into memory" in caplog.text


def test_testing_in_tiles(small_set, capsys, monkeypatch):
    """The command line's tiles: the scores of whole images, named beside them."""
    folder = small_set.parent / "experiment"
    launch(*small_run(small_set, "--epochs", "1"))
    test = small_run(small_set, "--test_only", "--pre_train", str(folder / "small/model/model_latest.pt"))
    launch(*test, "--save", "whole")
    launch(*test, "--save", "tiles", "--tile", "12", "--self_ensemble")
    launch(*test, "--save", "rgb", "--metric_channel", "rgb")
    said = capsys.readouterr().out
    assert "LR bicubic; tiles of 12, self-ensemble" in said
    assert "RGB, uint8-rounded" in said
    launch(*test, "--save", "ensemble", "--self_ensemble")
    for tiles, whole in zip(scores(folder / "tiles"), scores(folder / "ensemble"), strict=True):
        assert tiles[1] == pytest.approx(whole[1], abs=1e-3)
    assert all(a[1] != b[1] for a, b in zip(scores(folder / "whole"), scores(folder / "rgb"), strict=True))
    monkeypatch.setattr(tiling, "_IN_MEMORY", 0)
    monkeypatch.setattr(tiling.os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"temporary folder.*No space left.*TMPDIR"):
        launch(*test, "--save", "full", "--tile", "12")


@pytest.mark.parametrize("flags", [("--chop",), ("--tile", "9"), ("--self_ensemble",), ()])
@pytest.mark.parametrize("scale", ["2", "3"])
def test_odd_small_and_gray_images(tmp_path, photo, flags, scale):
    """Sizes that no scale divides, smaller than chop's margin, one gray: every way of running gives whole images."""
    root = tmp_path / "benchmark/Odd/HR"
    sizes = {"a": (47, 61), "b": (20, 35), "c": (34, 19)}
    for name, (height, width) in sizes.items():
        write_png(root / f"{name}.png", photo[:height, :width, : 1 if name == "c" else 3])
    network = KRGN(scale=int(scale), n_feats=8, n_resgroups=1)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    test = ("--cpu", "--test_only", "--scale", scale, "--pre_train", tmp_path / "weights.pt", "--save", "odd", *flags)
    folders = ("--dir_data", tmp_path, "--dir_experiment", tmp_path / "experiment", "--data_test", "Odd")
    launch(*test, *folders, "--save_results", "--save_gt", "--patch_size", "12")
    results = tmp_path / "experiment/odd/results-Odd"
    for name, (height, width) in sizes.items():
        fitted = (width // int(scale) * int(scale), height // int(scale) * int(scale))
        assert Image.open(results / f"{name}_x{scale}_SR.png").size == fitted
        assert Image.open(results / f"{name}_x{scale}_HR.png").size == fitted
        assert Image.open(results / f"{name}_x{scale}_LR.png").size == tuple(side // int(scale) for side in fitted)
    assert all(math.isfinite(psnr) for _, psnr, _ in scores(tmp_path / "experiment/odd", "Odd"))


# --- what is measured ---


def test_rgb_scores():
    sr, hr = (torch.randint(0, 256, (3, 40, 36), dtype=torch.uint8) for _ in range(2))
    inner = [image[:, 2:-2, 2:-2].double() for image in (sr, hr)]
    got = psnr_ssim(sr, hr, 2, "rgb")
    assert got[0] == pytest.approx(psnr(*inner))
    assert got[1] == pytest.approx(np.mean([ssim(inner[0][c : c + 1], inner[1][c : c + 1]) for c in range(3)]))


def test_learned_distances(small_set, monkeypatch, capsys):
    """The package gets RGB in 0..1 as (1, 3, H, W), and its columns stand beside the others; without it, one line."""
    seen = []

    class Distance(nn.Module):
        def forward(self, sr, hr):
            seen.append((tuple(sr.shape), sr.max().item()))
            return (sr - hr).abs().mean()

    folder = small_set.parent / "experiment"
    launch(*small_run(small_set, "--epochs", "1"))
    test = small_run(small_set, "--test_only", "--pre_train", str(folder / "small/model/model_latest.pt"))
    monkeypatch.setitem(sys.modules, "piq", SimpleNamespace(LPIPS=Distance, DISTS=Distance))
    launch(*test, "--perceptual", "lpips+dists", "--save", "learned")
    assert "LPIPS 0." in capsys.readouterr().out
    assert seen[0][0] == (1, 3, 60, 64)
    assert max(largest for _, largest in seen) <= 1
    assert (folder / "learned/scores-Small.csv").read_text().splitlines()[0] == "image,PSNR,SSIM,LPIPS,DISTS"
    monkeypatch.setitem(sys.modules, "piq", None)
    with pytest.raises(UserError, match=r"--perceptual lpips: piq cannot be used.*requirements-extra"):
        launch(*test, "--perceptual", "lpips", "--save", "none")
    assert_one_line(program("main.py", "--perceptual", "lpips+fid"), "lpips and dists")


def test_the_writer_is_bounded_and_its_errors_surface():
    running = []

    def slow(number):
        running.append(number)
        if number == 2:
            raise UserError("the disk is full")

    def write(*numbers, error=None):
        with Writer(threads=1, waiting=2) as writer:
            for number in numbers:
                writer.submit(slow, number)
            if error:
                raise error

    with pytest.raises(UserError, match="disk is full"):
        write(*range(50))
    assert len(running) < 50
    with pytest.raises(UserError, match="disk is full"):
        write(2)
    with pytest.raises(KeyError, match="the first error"):
        write(2, error=KeyError("the first error is the one that is seen"))


def test_an_image_that_cannot_be_written(small_set, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    folder = small_set.parent / "experiment"
    launch(*small_run(small_set, "--epochs", "1"))
    monkeypatch.setattr(pictures, "write_png", fail)
    test = ("--test_only", "--pre_train", str(folder / "small/model/model_latest.pt"), "--save", "t", "--save_results")
    with pytest.raises(UserError, match=r"SR.png: cannot be written \(No space left"):
        launch(*small_run(small_set, *test))


def test_published_scores_in_tiles(shared):
    """Set5 x4 with the published weights: tiles give the whole images' scores."""
    from data import build_test_sets
    from model.checkpoint import rebuild, unpack
    from model.weights import load_tensors
    from option import parse_args

    path = str(shared / "weights/CFGN_x4.pt")
    network = rebuild(unpack(load_tensors(Path(path)), path))
    flags = ["--test_only", "--pre_train", path, "--dir_data", str(shared), "--data_test", "Set5", "--ext", "img"]
    test_set = build_test_sets(parse_args(flags))[0]
    test_set.pairs = test_set.pairs[:2]
    whole, tiles = (evaluate(network, test_set, device=torch.device("cpu"), tile=tile) for tile in (0, 100))
    assert tiles.psnr == pytest.approx(whole.psnr, abs=1e-3)
    assert tiles.ssim == pytest.approx(whole.ssim, abs=1e-5)
