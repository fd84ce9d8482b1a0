"""Ways to run a super-resolution network over an image, as plain functions of (model, image).

`model` is anything that maps (N, C, H, W) to (N, C', scale * H, scale * W).
"""

from collections.abc import Callable

import torch

from .errors import says_out_of_memory

Network = Callable[[torch.Tensor], torch.Tensor]

CHOP_MARGIN = 10  # LR pixels that each quadrant reaches beyond the middle
# LR pixels of a batch at most: four images of 24x24 run twice as fast together, four of 128x128 no faster.
BATCHED = 2**16


def chop(model: Network, image: torch.Tensor, scale: int) -> torch.Tensor:
    """EDSR's memory-saving inference: four overlapping quadrants, each run alone, pasted at the middle.

    Published scores with `--chop` were measured this way (EDSR-PyTorch's `forward_chop`). A network with global
    statistics, such as KRGN's channel attention, gives other values than on the whole image, so this is part of the
    protocol and not only a saving. A side of 2 * `CHOP_MARGIN` pixels or less is not cut: both "halves" are all of it.

    Args:
        image: (N, C, H, W), any H, W >= 1.

    Returns:
        (N, C', scale * H, scale * W).
    """
    height, width = image.shape[-2:]
    across, down = _halves(width), _halves(height)
    quadrants = [image[..., top:bottom, left:right] for top, bottom, *_ in down for left, right, *_ in across]
    outs = iter(together(model, quadrants))
    rows = []
    for top, _, first_row, last_row in down:
        row = []
        for left, _, first, last in across:
            out = next(outs)[..., scale * (first_row - top) : scale * (last_row - top), :]
            row.append(out[..., scale * (first - left) : scale * (last - left)])
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def together(model: Network, images: list[torch.Tensor]) -> list[torch.Tensor]:
    """The model's outputs for images of one shape; small images run as one batch."""
    if len(images) * images[0][:, 0].numel() <= BATCHED:
        try:
            return list(model(torch.cat(images)).split(len(images[0])))
        except (MemoryError, RuntimeError) as error:
            if not says_out_of_memory(error):
                raise
    return [model(image) for image in images]


def _halves(size: int) -> list[tuple[int, int, int, int]]:
    """Two (window start, window end, kept start, kept end) along a side; both windows have the same length."""
    middle = size // 2
    window = min(size, middle + CHOP_MARGIN)
    return [(0, window, 0, middle), (size - window, size, middle, size)] if middle else [(0, size, 0, size)]


def self_ensemble(model: Network, image: torch.Tensor, batched: bool = True) -> torch.Tensor:
    """The mean of the network's outputs for the eight flips and rotations of the image, each undone: EDSR's geometric
    self-ensemble (arXiv 1707.02921, section 3.4).

    Args:
        image: (N, C, H, W), on the network's device.
        batched: small images run four at a time.

    Returns:
        (N, C', scale * H, scale * W), in float32 at least, in which the mean is taken.
    """
    total: torch.Tensor | None = None
    for quarter in (0, 1):  # a quarter turn exchanges height and width
        ways = [(turns, mirrored) for turns in (quarter, quarter + 2) for mirrored in (False, True)]
        views = [torch.rot90(image.flip(-1) if mirrored else image, turns, dims=(-2, -1)) for turns, mirrored in ways]
        outs = together(model, views) if batched else map(model, views)
        for out, (turns, mirrored) in zip(outs, ways, strict=True):
            out = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out
            out = torch.rot90(out, -turns, dims=(-2, -1))
            out = out.flip(-1) if mirrored else out
            total = out if total is None else total + out
    assert total is not None
    return total / 8
