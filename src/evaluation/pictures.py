"""Pictures that a test writes: the colours of a luma network's output, and PNG files written beside the inference."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
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
        y: uint8 or uint16 (1, scale * h, scale * w).
        lr: RGB of the same type, (3, h, w) on the CPU.

    Returns:
        RGB of the same type, (3, scale * h, scale * w) on the CPU.
    """
    y, unit = y.cpu(), torch.iinfo(y.dtype).max // 255  # 1 or 257
    out = torch.empty(3, *y.shape[1:], dtype=y.dtype)
    for wide, rows, inner in bands(lr.shape[1], scale):
        chroma = rgb_to_chroma(lr[:, wide].double() / unit).permute(1, 2, 0).numpy()
        enlarged = torch.from_numpy(resize.upscale(chroma, scale)).permute(2, 0, 1)
        out[:, rows] = with_chroma(y[:, rows].double() / unit, enlarged[:, inner], y.dtype)
    return out


def bicubic(pixels: np.ndarray, scale: int) -> np.ndarray:
    """`resize.upscale` of uint8 or uint16 (H, W, C), rounded, in the memory of a part of the image."""
    out = np.empty((scale * pixels.shape[0], scale * pixels.shape[1], pixels.shape[2]), pixels.dtype)
    for wide, rows, inner in bands(pixels.shape[0], scale):
        part = pixels[wide] if pixels.dtype == np.uint8 else pixels[wide].astype(np.float64)
        enlarged = resize.upscale(part, scale)[inner]
        if enlarged.dtype != pixels.dtype:
            enlarged = np.clip(np.floor(enlarged + 0.5), 0, np.iinfo(pixels.dtype).max)
        out[rows] = enlarged
    return out


def bands(height: int, scale: int) -> Iterator[tuple[slice, slice, slice]]:
    """Bands of rows for bicubic enlargement: the rows of LR with their margin, the rows of SR, and those within the
    enlarged band."""
    for top in range(0, height, BAND):
        bottom, first = min(top + BAND, height), max(0, top - MARGIN)
        inner = slice(scale * (top - first), scale * (bottom - first))
        yield slice(first, bottom + MARGIN), slice(scale * top, scale * bottom), inner


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
