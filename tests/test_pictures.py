"""What becomes of pictures in a test: colours of a network for luma, users' own pictures, scores that mean nothing."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import report
from data import resize
from data.image import read_image, write_png
from main import main
from metrics import psnr_ssim, rgb_to_chroma, rgb_to_y
from model.checkpoint import pack
from model.krgn import KRGN
from option import parse_args
from utility import save_tensors

KEPT = ("--save_results", "--save_gt")


def launch(*flags) -> None:
    main(parse_args(list(map(str, flags))))


def scores(folder: Path, name: str) -> dict[str, float]:
    with open(folder / f"scores-{name}.csv", newline="") as file:
        return {row["image"]: float(row["PSNR"]) for row in csv.DictReader(file)}


def luma_test(small_set: Path, *flags) -> Path:
    """Tests a small network for luma; returns the experiment's folder."""
    torch.manual_seed(0)
    save_tensors(small_set / "y.pt", pack(KRGN(scale=2, n_feats=8, n_resgroups=1, n_colors=1), "KRGN"))
    launch("--cpu", "--test_only", "--n_colors", "1", "--scale", "2", "--pre_train", small_set / "y.pt", "--dir_data",
           small_set, "--dir_experiment", small_set / "experiment", "--save", "luma", *flags)  # fmt: skip
    return small_set / "experiment/luma"


def test_a_network_for_luma_gives_coloured_pictures(small_set, photo, monkeypatch):
    """Its Y, and the chroma of LR enlarged bicubically; gray pictures stay gray; Y is scored before it is coloured."""
    for name, pixels in (("colour", photo[100:161, 200:270]), ("gray", photo[100:161, 200:270, :1])):
        write_png(small_set / f"benchmark/Both/HR/{name}.png", pixels)
        write_png(small_set / f"mine/{name}.png", pixels)
    monkeypatch.setattr(evaluate, "BAND", 9)
    folder = luma_test(
        small_set, "--data_test", "Both+Demo", "--dir_demo", small_set / "mine", "--save_results", "--save_gt"
    )
    read = lambda of, name, kind: read_image(folder / f"results-{of}/{name}_x2_{kind}.png")  # noqa: E731
    sr, lr, hr = (read("Both", "colour", kind) for kind in ("SR", "LR", "HR"))
    assert sr.shape == hr.shape == (60, 70, 3)
    assert lr.shape == (30, 35, 3)
    there, enlarged = (rgb_to_chroma(torch.tensor(one).permute(2, 0, 1)) for one in (sr, resize.upscale(lr, 2)))
    assert (there - enlarged).abs().mean() < 1  # but where RGB had to be clamped
    assert read("Both", "gray", "SR").shape == (60, 70, 1)
    assert read("Demo", "colour", "SR").shape == (122, 140, 3)
    assert read("Demo", "gray", "SR").shape == (122, 140, 1)
    report.main([str(folder), "--out", str(small_set / "page")])  # the pictures' scores are those of the table
    luma = scores(folder, "Both")
    assert luma["colour"] == pytest.approx(psnr_ssim(*map(to_luma, (sr, hr)), 2)[0], abs=0.5)

    luma_test(small_set, "--data_test", "Both", "--metric_channel", "rgb", "--save_results")
    in_rgb = scores(folder, "Both")
    as_tensors = (torch.tensor(one).permute(2, 0, 1) for one in (sr, hr))
    assert in_rgb["colour"] == pytest.approx(psnr_ssim(*as_tensors, 2, "rgb")[0], abs=1e-9)
    assert in_rgb["colour"] != pytest.approx(luma["colour"], abs=0.01)
    assert in_rgb["gray"] == pytest.approx(luma["gray"], abs=1e-9)


def to_luma(pixels: np.ndarray) -> torch.Tensor:
    return rgb_to_y(torch.tensor(pixels).permute(2, 0, 1)).round().to(torch.uint8)
