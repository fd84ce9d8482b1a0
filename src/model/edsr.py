"""EDSR: "Enhanced Deep Residual Networks for Single Image Super-Resolution" (Lim et al., arXiv 1707.02921).

    head   3x3 conv
    body   residual blocks, 3x3 conv, plus the head's output
    tail   upsampling by steps, 3x3 conv to colours

    residual block  3x3 conv, ReLU, 3x3 conv, times `res_scale`, plus the input

Baseline: 16 blocks of 64 features. The full network: 32 blocks of 256, res_scale 0.1. Parameters have the names of
EDSR-PyTorch's published state dicts. Features are (N, C, H, W) throughout, C = `n_feats`.
"""

import re

import torch
from torch import nn

from .common import HeadBodyTail, range_of_shift, scale_of_upsampler

TAIL = "tail."  # names of the layers that depend on the scale
UNSEEN = {"res_scale": 1.0}  # hyper-parameters that a state dict does not show


class ResBlock(nn.Module):
    """Residual block without normalisation: its two convolutions' output times `res_scale`, plus the input."""

    def __init__(self, *, n_feats: int, res_scale: float):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_feats, n_feats, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(n_feats, n_feats, 3, padding=1)
        )
        self.res_scale = res_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.res_scale + x


class EDSR(HeadBodyTail):
    """Enhanced deep super-resolution network.

    (N, n_colors, H, W) in 0..`rgb_range`, float -> (N, n_colors, scale * H, scale * W), not clamped. Any H, W >= 1.

    Args:
        scale: upscaling factor, 3 or a power of 2.
        n_resblocks: the number of residual blocks.
        n_feats: C, the number of feature channels.
        res_scale: factor of each block's output, below 1 so that wide networks train stably.
        n_colors: channels of the image.
        rgb_range: the image's value range, for the mean shift.

    Raises:
        ValueError: for another `scale`.
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        n_resblocks: int = 16,
        n_feats: int = 64,
        res_scale: float = 1.0,
        n_colors: int = 3,
        rgb_range: float = 255,
    ):
        blocks = (ResBlock(n_feats=n_feats, res_scale=res_scale) for _ in range(n_resblocks))
        super().__init__(blocks, scale=scale, n_feats=n_feats, n_colors=n_colors, rgb_range=rgb_range)
        # What the network must be rebuilt from, kept for checkpoints.
        self.hyperparameters = {
            "scale": scale,
            "n_resblocks": n_resblocks,
            "n_feats": n_feats,
            "res_scale": res_scale,
            "n_colors": n_colors,
            "rgb_range": rgb_range,
        }


NETWORK = EDSR


def structure(state: dict[str, torch.Tensor]) -> dict:
    """The hyper-parameters that can be read off a state dict: all but `UNSEEN`.

    Raises:
        KeyError: if `state` is not an EDSR's.
    """
    n_feats, n_colors = state["head.0.weight"].shape[:2]
    state["body.0.body.0.weight"]  # a KeyError for other networks with such a head
    return {
        "scale": scale_of_upsampler(state, "tail.0."),
        "n_resblocks": len({name for name in state if re.fullmatch(r"body\.\d+\.body\.0\.weight", name)}),
        "n_feats": n_feats,
        "n_colors": n_colors,
        "rgb_range": range_of_shift(state),
    }


def kernel_sets(model: EDSR, block: int) -> list[nn.Conv2d]:
    """The two convolutions of residual block number `block`, counted from 1."""
    return [layer for layer in model.body[block - 1].body if isinstance(layer, nn.Conv2d)]
