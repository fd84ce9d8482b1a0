"""Ways to run a super-resolution network over an image, as plain functions of (model, image).

`model` is anything that maps (N, C, H, W) to (N, C', scale * H, scale * W).
"""

from collections.abc import Callable

import torch

Network = Callable[[torch.Tensor], torch.Tensor]

CHOP_MARGIN = 10  # LR pixels that each quadrant reaches beyond the middle


def chop(model: Network, image: torch.Tensor, scale: int) -> torch.Tensor:
    """EDSR's memory-saving inference: four overlapping quadrants, each run alone, pasted at the middle.

    Published scores with `--chop` were taken this way. A network with global statistics, such as KRGN's channel
    attention, gives other values than on the whole image, so this is part of the protocol, not only a saving.
    A side of 2 * `CHOP_MARGIN` pixels or less is not cut at all: there each "half" is the whole side.

    Args:
        image: (N, C, H, W), any H, W >= 1.
    """
    height, width = image.shape[-2:]
    rows = []
    for top, bottom, start, end in _halves(height):
        row = []
        for left, right, first, last in _halves(width):
            quadrant = model(image[..., top:bottom, left:right])
            row.append(
                quadrant[
                    ..., scale * (start - top) : scale * (end - top), scale * (first - left) : scale * (last - left)
                ]
            )
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def _halves(size: int) -> list[tuple[int, int, int, int]]:
    """Two (window start, window end, kept start, kept end) along a side; both windows have the same length."""
    middle = size // 2
    window = min(size, middle + CHOP_MARGIN)
    return [(0, window, 0, middle), (size - window, size, middle, size)] if middle else [(0, size, 0, size)]


def self_ensemble(model: Network, image: torch.Tensor) -> torch.Tensor:
    """The mean of the network's outputs over the eight flips and rotations of the image (EDSR+), undone again.

    Runs on the image's device; averages in float32 at least.
    """
    total = None
    for turns in range(4):
        for mirrored in (False, True):
            view = torch.rot90(image.flip(-1) if mirrored else image, turns, dims=(-2, -1))
            out = torch.rot90(model(view), -turns, dims=(-2, -1))
            out = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out
            out = out.flip(-1) if mirrored else out
            total = out if total is None else total + out
    return total / 8
