"""Pictures that a test writes: the colours of a luma network's output, and PNG files written beside the inference."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from data import resize
from data.image import write_png
from evaluation.metrics import rgb_to_chroma, with_chroma
from runtime.errors import UserError

BAND = 256  # LR rows that are coloured at once
MARGIN = 4  # LR rows above and below that bicubic enlargement reads


def with_lr_chroma(y: torch.Tensor, lr: torch.Tensor, scale: int) -> torch.Tensor:
    """Colours the luma of an SR image with the chroma of LR, enlarged by MATLAB's bicubic recipe.

    This is how publications show a network of luma.

    Args:
        y: uint8 (1, scale * h, scale * w).
        lr: RGB, uint8 (3, h, w) on the CPU.

    Returns:
        RGB, uint8 (3, scale * h, scale * w) on the CPU.
    """
    y, height = y.cpu(), lr.shape[1]
    out = torch.empty(3, *y.shape[1:], dtype=torch.uint8)
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        first = max(0, top - MARGIN)
        chroma = rgb_to_chroma(lr[:, first : bottom + MARGIN]).permute(1, 2, 0).numpy()
        enlarged = torch.from_numpy(resize.upscale(chroma, scale)).permute(2, 0, 1)
        rows = slice(scale * top, scale * bottom)
        out[:, rows] = with_chroma(y[:, rows], enlarged[:, scale * (top - first) :][:, : scale * (bottom - top)])
    return out


class Writer:
    """Runs calls that write images on a few threads, so that the network need not wait for PNG compression.

    At most `waiting` calls are queued; then `submit` blocks. An error in a call is raised by a later `submit` or at the
    end of the context.
    """

    def __init__(self, threads: int = 2, waiting: int = 4):
        self._pool, self._waiting, self._calls = ThreadPoolExecutor(threads), waiting, deque()

    def submit(self, function: Callable, *args) -> None:
        """Schedules function(*args)."""
        while self._calls and (self._calls[0].done() or len(self._calls) >= self._waiting):
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(function, *args))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, *_) -> None:
        with self._pool:
            if kind is None:
                while self._calls:
                    self._calls.popleft().result()


def write_image(path: Path, pixels: torch.Tensor, metadata: dict[str, bytes]) -> None:
    """Writes uint8 (C, H, W) as PNG with the metadata that `write_png` takes.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        write_png(path, pixels.permute(1, 2, 0).numpy(), **metadata)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): free disk space or choose another --dir_experiment"
        ) from None
