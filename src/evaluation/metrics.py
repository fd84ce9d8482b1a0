"""The measuring protocol of published super-resolution scores; it is stated here and nowhere else.

1. The network's output is clamped to its value range, scaled to 0..255 and rounded to uint8 (`quantise`).
2. Both images are turned to luma Y, ITU-R BT.601 in the range 16..235, not rounded (`rgb_to_y`). An image of one
   channel is Y already. With `channel="rgb"` the three colours are compared instead.
3. `scale` pixels are shaved from every border.
4. PSNR = 10 log10(255^2 / MSE). SSIM (Wang et al. 2004) has an 11x11 Gaussian window with sigma 1.5, population
   covariance, data range 255, and is averaged over the positions where the whole window fits, and over the channels.

All arithmetic is float64.
"""

import math
from collections.abc import Callable

import torch

CHANNELS = {"y": "Y channel (BT.601)", "rgb": "RGB"}
LUMA_NETWORK = "network of luma, chroma enlarged bicubically"
PERCEPTUAL = ("lpips", "dists")

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def quantise(image: torch.Tensor, rgb_range: float = 255) -> torch.Tensor:
    """Float image in 0..`rgb_range` (any shape) -> uint8 in 0..255: clamped, rounded half to even."""
    out = torch.empty(image.shape, dtype=torch.uint8, device=image.device)
    rows = -2 if image.dim() > 1 else 0
    # In bands, so that a large image needs no second one in float32 beside it.
    for source, target in zip(image.split(1024, rows), out.split(1024, rows), strict=True):
        target.copy_((source.float() * (255 / rgb_range)).clamp_(0, 255).round_())
    return out


def rgb_to_y(image: torch.Tensor) -> torch.Tensor:
    """RGB in 0..255, (..., 3, H, W) -> luma Y in 16..235, (..., 1, H, W), float64, not rounded."""
    weights = torch.tensor((65.481, 128.553, 24.966), dtype=torch.float64, device=image.device) / 255
    return (image.double() * weights.view(3, 1, 1)).sum(dim=-3, keepdim=True) + 16


# Cb and Cr of BT.601, 16..240 around 128, by red, green and blue in 0..255; `rgb_to_y` has the weights of Y.
_CHROMA = ((-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))


def rgb_to_chroma(image: torch.Tensor) -> torch.Tensor:
    """RGB in 0..255, (3, H, W) -> Cb and Cr in 16..240, (2, H, W), float64, not rounded."""
    weights = torch.tensor(_CHROMA, dtype=torch.float64, device=image.device) / 255
    return torch.einsum("kc,chw->khw", weights, image.double()) + 128


def with_chroma(y: torch.Tensor, chroma: torch.Tensor) -> torch.Tensor:
    """Luma Y in 16..235, (1, H, W), with Cb and Cr, (2, H, W) -> RGB, uint8 (3, H, W), rounded and clamped."""
    weights = torch.tensor(((65.481, 128.553, 24.966), *_CHROMA), dtype=torch.float64, device=y.device) / 255
    centred = torch.cat((y.double() - 16, chroma.double() - 128))
    return quantise(torch.einsum("kc,chw->khw", weights.inverse(), centred))


def protocol(channel: str) -> str:
    """What `psnr_ssim` measures, in a few words to stand beside scores."""
    return f"{CHANNELS[channel]}, uint8-rounded, scale pixels shaved"


def psnr_ssim(sr: torch.Tensor, hr: torch.Tensor, scale: int, channel: str = "y") -> tuple[float, float]:
    """PSNR in dB and SSIM of `sr` against `hr`, both uint8 (C, H, W) of the same size with C = 3 or 1.

    `channel` is one of `CHANNELS`.

    PSNR is infinite for equal images. SSIM is NaN where less than the 11x11 window is left after shaving, and so are
    both where nothing is left.

    Raises:
        ValueError: if the shapes differ.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"images differ in shape: {tuple(sr.shape)} and {tuple(hr.shape)}")
    if sr.shape[0] == 3 and channel == "y":
        sr, hr = rgb_to_y(sr), rgb_to_y(hr)
    sr, hr = (y[:, scale:-scale, scale:-scale].double() for y in (sr, hr))
    return psnr(sr, hr), ssim(sr, hr)


def smallest_scored(scale: int) -> int:
    """The shortest side in pixels of an image that can be scored: one whole window is left after shaving."""
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

    A sum of shifted maps: torch has no fast float64 convolution, and a product with a band matrix takes longer too.
    """
    weights = [math.exp(-((k - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for k in range(_WINDOW)]
    shifted = [maps.narrow(axis, k, maps.shape[axis] - _WINDOW + 1) for k in range(_WINDOW)]
    total = shifted[0] * (weights[0] / sum(weights))
    for part, weight in zip(shifted[1:], weights[1:], strict=True):
        total.add_(part, alpha=weight / sum(weights))
    return total


def perceptual_metrics(names: tuple[str, ...], device: torch.device) -> dict[str, Callable]:
    """Learned distances, lower is better: the piq package's LPIPS (VGG16; arXiv 1801.03924), DISTS (arXiv 2004.07728).

    Args:
        names: of `PERCEPTUAL`.

    Returns:
        Column title -> a function of (sr, hr), uint8 (3, H, W) on `device`, of all pixels.

    Raises:
        ImportError: if piq, or the torchvision that it needs, cannot be imported.
        OSError: if the weights cannot be downloaded.
    """
    import piq  # an extra requirement, which needs torchvision

    def measure(metric):
        return lambda sr, hr: metric(sr[None] / 255, hr[None] / 255).item()

    classes = {"lpips": piq.LPIPS, "dists": piq.DISTS}
    return {name.upper(): measure(classes[name]().to(device)) for name in names}
