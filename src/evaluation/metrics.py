"""The evaluation protocol of published super-resolution scores; it is stated here and nowhere else.

1. The network's output is clamped to its value range, scaled to 0..255 and rounded to uint8 (`quantise`).
2. Both images are converted to luma Y, ITU-R BT.601 in the range 16..235, not rounded (`rgb_to_y`). An image of one
   channel is Y already. With `channel="rgb"` all three channels are compared instead. BasicSR calls this
   `test_y_channel`.
3. `scale` pixels are cropped from every border. BasicSR calls this `crop_border`.
4. PSNR = 10 log10(255^2 / MSE). SSIM (Wang et al. 2004, doi:10.1109/TIP.2003.819861) has an 11x11 Gaussian window with
   sigma 1.5, population covariance and data range 255. It is averaged over the positions where the whole window fits,
   and over the channels.

All arithmetic is float64. `Protocol` holds the choices of one test, `Scores` its results.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

CHANNELS = {"y": "Y channel (BT.601)", "rgb": "RGB"}
PERCEPTUAL = ("lpips", "dists")

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a test runs its images and what its scores measure: "protocol" in scores-<Set>.json, field by field.

    Attributes:
        channel: what is compared, one of `CHANNELS`.
        crop_border: pixels cropped from every border before scoring; the scale.
        chop, tile, self_ensemble: how an image is run; `tile` in LR pixels, 0 for whole images.
        degradation: how LR comes from HR, as --degradation names it.
        precision: arithmetic of the network: single, half or bf16.
        n_colors: channels of the network. With 1 it upscales luma, and colour images get their chroma bicubically.
    """

    channel: str = "y"
    crop_border: int
    chop: bool = False
    tile: int = 0
    self_ensemble: bool = False
    degradation: str = "bicubic"
    precision: str = "single"
    n_colors: int = 3

    def __str__(self) -> str:
        """A few words to print beside every score. The precision is not among them."""
        mode = "four quadrants" if self.chop else f"tiles of {self.tile}" if self.tile else "whole image"
        ensemble = ", self-ensemble" if self.self_ensemble else ""
        luma = "; network of luma, chroma enlarged bicubically" if self.n_colors == 1 else ""
        return f"{scoring(self.channel)}; LR {self.degradation}; {mode}{ensemble}{luma}"


class Score(NamedTuple):
    """PSNR in dB and SSIM of one image."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Scores:
    """Scores of one set: a row per image, {"image", "PSNR", "SSIM", ...}; no rows if there is no ground truth."""

    rows: list[dict]

    @property
    def psnr(self) -> float:
        """Mean PSNR in dB, NaN without rows."""
        return self.mean("PSNR")

    @property
    def ssim(self) -> float:
        """Mean SSIM, NaN without rows."""
        return self.mean("SSIM")

    def mean(self, name: str) -> float:
        """Mean of a column, NaN without rows."""
        return sum(row[name] for row in self.rows) / len(self.rows) if self.rows else math.nan


def scoring(channel: str) -> str:
    """What `psnr_ssim` measures, in a few words."""
    return f"{CHANNELS[channel]}, uint8-rounded, scale pixels shaved"


def quantise(image: torch.Tensor, rgb_range: float = 255, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Float image in 0..`rgb_range` (any shape) -> uint8 in 0..255: clamped, rounded half to even.

    Args:
        dtype: torch.uint16 gives 0..65535, for pictures with 16 bits; scores are always those of 8 bits.
    """
    largest = torch.iinfo(dtype).max
    out = torch.empty(image.shape, dtype=dtype, device=image.device)
    rows = -2 if image.dim() > 1 else 0
    # In bands, so that a large image needs no second copy in float32.
    for source, target in zip(image.split(1024, rows), out.split(1024, rows), strict=True):
        target.copy_((source.float() * (largest / rgb_range)).clamp_(0, largest).round_())
    return out


def rgb_to_y(image: torch.Tensor) -> torch.Tensor:
    """RGB in 0..255, (..., 3, H, W) -> luma Y in 16..235, (..., 1, H, W), float64, not rounded."""
    weights = torch.tensor((65.481, 128.553, 24.966), dtype=torch.float64, device=image.device) / 255
    return (image.double() * weights.view(3, 1, 1)).sum(dim=-3, keepdim=True) + 16


# Weights of red, green and blue (0..255) in BT.601's Cb and Cr (16..240, around 128); those of Y are in `rgb_to_y`.
_CHROMA = ((-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))


def rgb_to_chroma(image: torch.Tensor) -> torch.Tensor:
    """RGB in 0..255, (3, H, W) -> Cb and Cr in 16..240, (2, H, W), float64, not rounded."""
    weights = torch.tensor(_CHROMA, dtype=torch.float64, device=image.device) / 255
    return torch.einsum("kc,chw->khw", weights, image.double()) + 128


def with_chroma(y: torch.Tensor, chroma: torch.Tensor, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Luma Y in 16..235, (1, H, W), with Cb and Cr, (2, H, W) -> RGB (3, H, W), as `quantise` gives it."""
    weights = torch.tensor(((65.481, 128.553, 24.966), *_CHROMA), dtype=torch.float64, device=y.device) / 255
    centred = torch.cat((y.double() - 16, chroma.double() - 128))
    return quantise(torch.einsum("kc,chw->khw", weights.inverse(), centred), dtype=dtype)


def psnr_ssim(sr: torch.Tensor, hr: torch.Tensor, scale: int, channel: str = "y") -> Score:
    """PSNR in dB and SSIM of `sr` against `hr`.

    Args:
        sr, hr: uint8 (C, H, W) of the same size, C = 3 or 1.
        scale: pixels cropped from every border.
        channel: one of `CHANNELS`.

    PSNR is infinite for equal images. SSIM is NaN if less than the 11x11 window is left after cropping. Both are NaN
    if nothing is left.

    Raises:
        ValueError: if the shapes differ.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"images differ in shape: {tuple(sr.shape)} and {tuple(hr.shape)}")
    if sr.shape[0] == 3 and channel == "y":
        sr, hr = rgb_to_y(sr), rgb_to_y(hr)
    sr, hr = (y[:, scale:-scale, scale:-scale].double() for y in (sr, hr))
    return Score(psnr(sr, hr), ssim(sr, hr))


def smallest_scored(scale: int) -> int:
    """Shortest side in HR pixels of an image that can be scored: one SSIM window is left after cropping."""
    return _WINDOW + 2 * scale


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two tensors of the same shape in 0..255."""
    mse = (a.double() - b.double()).square().mean().item()
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity of two images (C, H, W) in 0..255, the mean over C; NaN for a side below 11 pixels."""
    if min(a.shape[-2:]) < _WINDOW:
        return math.nan
    # Four local averages in one batch: of a, b, a^2 + b^2 and ab.
    a, b = a.double(), b.double()
    maps = torch.stack((a, b, a * a + b * b, a * b))
    mean_a, mean_b, squares, product = _blurred(_blurred(maps, -1), -2)
    variances, covariance = squares - mean_a**2 - mean_b**2, product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    return (luminance * structure).mean().item()


def _blurred(maps: torch.Tensor, axis: int) -> torch.Tensor:
    """Gaussian averages along an axis, float64, where the whole window fits: n values -> n - 10.

    A sum of shifted maps: torch has no fast float64 convolution, and multiplying by a band matrix is slower too.
    """
    weights = [math.exp(-((k - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for k in range(_WINDOW)]
    shifted = [maps.narrow(axis, k, maps.shape[axis] - _WINDOW + 1) for k in range(_WINDOW)]
    total = shifted[0] * (weights[0] / sum(weights))
    for part, weight in zip(shifted[1:], weights[1:], strict=True):
        total.add_(part, alpha=weight / sum(weights))
    return total


def perceptual_metrics(names: tuple[str, ...], device: torch.device) -> dict[str, Callable]:
    """Learned distances, lower is better: piq's LPIPS (VGG16; arXiv 1801.03924) and DISTS (arXiv 2004.07728).

    Args:
        names: some of `PERCEPTUAL`.

    Returns:
        Column title -> a function of (sr, hr), uint8 (3, H, W) on `device`, over all pixels.

    Raises:
        ImportError: if piq, or the torchvision that it needs, cannot be imported.
        OSError: if the weights cannot be downloaded.
    """
    import piq  # in requirements-extra.txt; needs torchvision

    def measure(metric):
        return lambda sr, hr: metric(sr[None] / 255, hr[None] / 255).item()

    classes = {"lpips": piq.LPIPS, "dists": piq.DISTS}
    return {name.upper(): measure(classes[name]().to(device)) for name in names}
