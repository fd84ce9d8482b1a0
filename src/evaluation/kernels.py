"""Measures of a network's kernels: how different those of a layer are from one another, and what a pixel depends on."""

from pathlib import Path

import numpy as np
import skimage
import torch
from torch import nn

from data import resize
from data.image import read_image
from data.srdata import to_tensor
from model.recalibration import fold

FIELD = 129  # LR pixels, the side of the square in which the receptive field is measured
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png")  # that scikit-image ships


def kl_matrix(kernels: torch.Tensor) -> torch.Tensor:
    """KL divergences between all pairs of kernels (Figure 4 of the paper).

    Entry (i, j), i < j, is sum_k p_i log(p_i / p_j), where p is the softmax of the flattened kernel; entry (j, i) is
    the same.

    Args:
        kernels: (n, ...), one kernel per output channel.

    Returns:
        (n, n) float64, symmetric, >= 0, zero on the diagonal.
    """
    log_p = torch.log_softmax(kernels.double().flatten(1), dim=1)
    p = log_p.exp()
    upper = torch.triu((p * log_p).sum(dim=1, keepdim=True) - p @ log_p.T, diagonal=1).clamp(min=0)
    return upper + upper.T


def mean_divergence(matrix: np.ndarray) -> float:
    """The mean of a KL matrix (n, n) over all pairs of different channels; 0 for a single channel."""
    n = len(matrix)
    return float(matrix.sum() / (n * (n - 1))) if n > 1 else 0.0


def effective_rank(kernels: torch.Tensor) -> float:
    """The exponential of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007).

    Args:
        kernels: (n, ...), one kernel per output channel; flattened to (n, k).

    Returns:
        From 1, where all kernels are multiples of one, to min(n, k).
    """
    singular = torch.linalg.svdvals(kernels.double().flatten(1))
    p = singular / singular.sum()
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum()))


def effective_receptive_field(network: nn.Module) -> np.ndarray:
    """The share of each input pixel in the gradient of the middle output pixels (arXiv 1701.04128).

    The absolute gradient is summed over colours and averaged over three photographs, each downscaled by 2.

    Returns:
        (FIELD, FIELD) float64 with the sum 1.
    """
    shape = network.hyperparameters
    folded = fold(network).eval()
    total = torch.zeros(FIELD, FIELD, dtype=torch.float64)
    for name in PHOTOGRAPHS:
        pixels = resize.downscale(read_image(Path(skimage.__file__).parent / "data" / name), 2)
        top, left = ((side - FIELD) // 2 for side in pixels.shape[:2])
        photo = to_tensor(pixels[top : top + FIELD, left : left + FIELD], shape["n_colors"])
        image = (photo[None].float() * (shape["rgb_range"] / 255)).requires_grad_()
        start = FIELD // 2 * shape["scale"]
        middle = slice(start, start + shape["scale"])
        folded(image)[..., middle, middle].sum().backward()
        total += image.grad[0].abs().sum(dim=0)
    return (total / total.sum()).numpy()


def half_width(share: np.ndarray, part: float) -> int:
    """The least h for which the square of 2h + 1 pixels around the middle of `share`, (n, n), holds `part` of it."""
    middle, half = len(share) // 2, 0
    while share[middle - half : middle + half + 1, middle - half : middle + half + 1].sum() < part:
        half += 1
    return half
