"""An exported file compared with the folded network in torch: largest difference, PSNR, latency.

Every form runs on the comparison images of `fold.py`, which have several sizes, and on test photographs.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import skimage
import torch
from torch import nn

from data import resize
from data.image import list_images, read_image
from data.srdata import to_tensor
from deploy.context import Runner, torch_runner
from deploy.fold import comparison_images
from deploy.formats import FORMATS
from evaluation.metrics import psnr_ssim, quantise
from runtime.errors import UserError
from runtime.hardware import timed

# Photographs that scikit-image ships: quantisation is calibrated on some, every format's PSNR is taken on the others.
CALIBRATION = ("rocket", "motorcycle_left", "ihc", "brick", "grass", "gravel")
TEST = ("astronaut", "chelsea", "coffee")
CROP = 192  # HR pixels, the side of the middle crop of each photograph that is used
TIMED_SIDE = 96  # LR pixels, the side of the image that is timed


@dataclass(frozen=True)
class ImagePair:
    """A test image: LR and HR, uint8 (1, C, h, w) and (C, scale * h, scale * w)."""

    lr: torch.Tensor
    hr: torch.Tensor


@dataclass(frozen=True)
class Photographs:
    """What an export is calibrated and tested on.

    Args:
        calibration: LR images as the network takes them, (1, C, h, w) float32.
        test: pairs to take the PSNR on.
    """

    calibration: list[np.ndarray]
    test: list[ImagePair]


@dataclass(frozen=True)
class Accuracy:
    """How far a form is from torch.

    Args:
        max_error: largest difference on the comparison images, of the 0-255 range; infinite if an output is not finite.
        psnr: mean over the test images, in dB.
        psnr_change: the same minus torch's, in dB.
    """

    max_error: float
    psnr: float
    psnr_change: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image of `TIMED_SIDE` x `TIMED_SIDE` LR pixels, by the form and by torch in float32."""

    milliseconds: float
    milliseconds_torch: float


def photographs(folder: Path | None, hyperparameters: dict) -> Photographs:
    """Images from a folder, every second one to test on, or scikit-image's.

    Args:
        hyperparameters: of the network: its scale, colours and value range.

    Raises:
        UserError: if the folder holds fewer than two images, or one that is smaller than `CROP`.
    """
    if folder is None:
        shipped = Path(skimage.__file__).parent / "data"
        calibration, test = ([next(shipped.glob(f"{name}.*")) for name in names] for names in (CALIBRATION, TEST))
    else:
        paths = list_images(folder, nested=True) if folder.is_dir() else []
        if len(paths) < 2:
            raise UserError(f"--images {folder}: holds {len(paths)} images, at least 2 are needed")
        calibration, test = paths[1::2], paths[::2]
    scale, n_colors = hyperparameters["scale"], hyperparameters["n_colors"]
    to_range = hyperparameters["rgb_range"] / 255
    return Photographs(
        calibration=[(_pair(path, scale, n_colors).lr.float() * to_range).numpy() for path in calibration],
        test=[_pair(path, scale, n_colors) for path in test],
    )


def _pair(path: Path, scale: int, n_colors: int) -> ImagePair:
    """The middle crop of an image, and its LR image by bicubic downscaling."""
    pixels, side = read_image(path), CROP // scale * scale
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    if min(top, left) < 0:
        raise UserError(
            f"{path}: has {pixels.shape[1]}x{pixels.shape[0]} pixels, expected at least {side}x{side}: "
            "remove it from --images"
        )
    hr = pixels[top : top + side, left : left + side]
    return ImagePair(lr=to_tensor(resize.downscale(hr, scale), n_colors)[None], hr=to_tensor(hr, n_colors))


def comparison_images_of(network: nn.Module) -> list[torch.Tensor]:
    """The comparison images in a network's colours and value range."""
    return comparison_images(network.hyperparameters["n_colors"], network.hyperparameters["rgb_range"])


def accuracy(network: nn.Module, run: Runner, test: list[ImagePair]) -> Accuracy:
    """Compares a form with the folded network that it was made from.

    Raises:
        UserError: if it gives images of another shape.
    """
    scale, rgb_range = network.hyperparameters["scale"], network.hyperparameters["rgb_range"]
    reference = torch_runner(network)
    max_error = 0.0
    for image in comparison_images_of(network):
        found, expected = _outputs(run, reference, image.numpy())
        difference = float(np.abs(found - expected).max() * 255 / rgb_range)
        max_error = max(max_error, difference if np.isfinite(difference) else float("inf"))
    scores = []
    for pair in test:
        outputs = _outputs(run, reference, (pair.lr.float() * (rgb_range / 255)).numpy())
        images = [quantise(torch.from_numpy(np.nan_to_num(output))[0], rgb_range) for output in outputs]
        scores.append([psnr_ssim(image, pair.hr, scale)[0] for image in images])
    psnr, expected = np.mean(scores, axis=0)
    return Accuracy(max_error, round(float(psnr), 4), round(float(psnr - expected), 4))


def _outputs(run: Runner, reference: Runner, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output of a form and of torch for an image; UserError if the shapes differ."""
    found, expected = run(image), reference(image)
    if found.shape != expected.shape:
        raise UserError(f"a file gives images of shape {found.shape}, expected {expected.shape}: export again")
    return found, expected


def latency(network: nn.Module, run: Runner) -> Latency:
    """Times a form and torch in turn: one warm-up, then the least of three runs each."""
    shape = network.hyperparameters
    image = np.full((1, shape["n_colors"], TIMED_SIDE, TIMED_SIDE), shape["rgb_range"] / 2, np.float32)
    calls = [partial(run, image), partial(torch_runner(network), image)]
    turns = [[1000 * timed(call, torch.device("cpu")) for call in calls] for _ in range(4)]
    return Latency(*(round(min(times), 1) for times in zip(*turns[1:], strict=True)))


def inaccurate(name: str, found: Accuracy) -> str:
    """Why a file of this format misses its tolerance, "" if it does not."""
    form = FORMATS[name]
    if form.tolerance is not None and not found.max_error < form.tolerance:
        return f"differs by {found.max_error:.1e} of 255, allowed is {form.tolerance:.0e}"
    if not found.psnr_change > -form.tolerance_db:
        return f"loses {-found.psnr_change:.3f} dB, allowed is {form.tolerance_db:g}"
    return ""


def too_slow(name: str, found: Accuracy, speed: Latency) -> str:
    """Why a file of a format that is made for speed is of no use on this machine, "" if it is."""
    if not FORMATS[name].for_speed or speed.milliseconds < speed.milliseconds_torch:
        return ""
    return (
        f"takes {speed.milliseconds:.0f} ms for {TIMED_SIDE}x{TIMED_SIDE} LR pixels where torch's float32 takes "
        f"{speed.milliseconds_torch:.0f}, and differs by up to {found.max_error:.0f} of 255: it is of use only where "
        "it is faster"
    )
