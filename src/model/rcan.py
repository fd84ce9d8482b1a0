"""RCAN: "Image Super-Resolution Using Very Deep Residual Channel Attention Networks" (Zhang et al., arXiv 1807.02758).

    head   3x3 conv
    body   residual groups, 3x3 conv, plus the head's output
    tail   upsampling by steps, 3x3 conv to colours

    residual group  RCABs, 3x3 conv, plus the input
    RCAB            residual channel attention block: 3x3 conv, ReLU, 3x3 conv, channel attention, plus the input

Parameters have the names of the published state dicts. Features are (N, C, H, W) throughout, C = `n_feats`.
"""

import re

import torch
from torch import nn

from .common import HeadBodyTail, range_of_shift, scale_of_upsampler

TAIL = "tail."  # names of the layers that depend on the scale
UNSEEN: dict = {}  # hyper-parameters that a state dict does not show: none


class ChannelAttention(nn.Module):
    """Weights each channel by its mean over H and W: C -> C / `reduction` -> C, sigmoid.

    The mean is global, so the output for a tile differs from that part of the whole image's.
    """

    def __init__(self, *, n_feats: int, reduction: int):
        super().__init__()
        squeezed = n_feats // reduction
        self.conv_du = nn.Sequential(
            nn.Conv2d(n_feats, squeezed, 1), nn.ReLU(inplace=True), nn.Conv2d(squeezed, n_feats, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv_du(x.mean(dim=(2, 3), keepdim=True))


class RCAB(nn.Module):
    """Residual channel attention block."""

    def __init__(self, *, n_feats: int, reduction: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_feats, n_feats, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_feats, n_feats, 3, padding=1),
            ChannelAttention(n_feats=n_feats, reduction=reduction),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + x


class ResidualGroup(nn.Module):
    """RCABs in a chain and a convolution, plus the input."""

    def __init__(self, *, n_resblocks: int, n_feats: int, reduction: int):
        super().__init__()
        self.body = nn.Sequential(
            *(RCAB(n_feats=n_feats, reduction=reduction) for _ in range(n_resblocks)),
            nn.Conv2d(n_feats, n_feats, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + x


class RCAN(HeadBodyTail):
    """Residual channel attention network.

    (N, n_colors, H, W) in 0..`rgb_range`, float -> (N, n_colors, scale * H, scale * W), not clamped. Any H, W >= 1.

    Args:
        scale: upscaling factor, 3 or a power of 2.
        n_resgroups: the number of residual groups.
        n_resblocks: RCABs in each group.
        n_feats: C, the number of feature channels.
        reduction: factor by which the attention reduces the channels.
        n_colors: channels of the image.
        rgb_range: the image's value range, for the mean shift.

    Raises:
        ValueError: for another `scale`, or if `reduction` leaves no channel.
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        n_resgroups: int = 10,
        n_resblocks: int = 20,
        n_feats: int = 64,
        reduction: int = 16,
        n_colors: int = 3,
        rgb_range: float = 255,
    ):
        if n_feats < reduction:
            raise ValueError(f"reduction: got {reduction}, expected at most n_feats ({n_feats})")
        blocks = (
            ResidualGroup(n_resblocks=n_resblocks, n_feats=n_feats, reduction=reduction) for _ in range(n_resgroups)
        )
        super().__init__(blocks, scale=scale, n_feats=n_feats, n_colors=n_colors, rgb_range=rgb_range)
        # What the network must be rebuilt from, kept for checkpoints.
        self.hyperparameters = {
            "scale": scale,
            "n_resgroups": n_resgroups,
            "n_resblocks": n_resblocks,
            "n_feats": n_feats,
            "reduction": reduction,
            "n_colors": n_colors,
            "rgb_range": rgb_range,
        }


NETWORK = RCAN


def structure(state: dict[str, torch.Tensor]) -> dict:
    """The hyper-parameters that can be read off a state dict: all of them.

    A `reduction` that does not divide `n_feats` is read as the largest one that builds the same network.

    Raises:
        KeyError: if `state` is not an RCAN's.
    """
    n_feats, n_colors = state["head.0.weight"].shape[:2]
    squeezed = state["body.0.body.0.body.3.conv_du.0.weight"].shape[0]
    blocks = {found[0] for name in state if (found := re.match(r"body\.\d+\.body\.\d+\.body\.0\.weight", name))}
    groups = {name.split(".")[1] for name in blocks}
    return {
        "scale": scale_of_upsampler(state, "tail.0."),
        "n_resgroups": len(groups),
        "n_resblocks": len(blocks) // len(groups),
        "n_feats": n_feats,
        "reduction": n_feats // squeezed,
        "n_colors": n_colors,
        "rgb_range": range_of_shift(state),
    }


def kernel_sets(model: RCAN, block: int) -> list[nn.Conv2d]:
    """The 3x3 convolutions of residual group number `block`, counted from 1, in the order of execution."""
    layers = model.body[block - 1].modules()
    return [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
