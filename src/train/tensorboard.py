"""TensorBoard: the numbers of each epoch, and the same crops of the same validation images, epoch by epoch."""

import logging
from contextlib import contextmanager
from pathlib import Path

import torch

log = logging.getLogger("krgn")

IMAGES, SIDE = 4, 192  # how many SR crops an epoch shows, and their side in pixels


class Board:
    """Writes TensorBoard's event file in <folder>/tensorboard.

    Args:
        first: the first epoch that will be written: a run that goes on hides what a killed one wrote after it.
        wanted: False writes nothing.
    """

    def __init__(self, folder: Path, *, first: int, wanted: bool):
        self._writer, self._images = None, {}
        if wanted and folder.is_dir():
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                log.info("no TensorBoard file: the package tensorboard is not installed")
                return
            with self._or_without():
                self._writer = SummaryWriter(folder / "tensorboard", purge_step=first)

    def keep(self, name: str, sr: torch.Tensor, _lr: torch.Tensor, _hr: torch.Tensor | None) -> None:
        """Keeps the middle of an SR image, uint8 (C, H, W), if it is among the first of the epoch."""
        if self._writer is not None and (len(self._images) < IMAGES or name in self._images):
            top, left = ((side - min(side, SIDE)) // 2 for side in sr.shape[1:])
            self._images[name] = sr[:, top : top + SIDE, left : left + SIDE]

    def write(self, epoch: int, numbers: dict) -> None:
        """Writes the numbers and the crops of an epoch."""
        if self._writer is None:
            return
        with self._or_without():
            for name, value in numbers.items():
                if name != "epoch":
                    self._writer.add_scalar(name.replace(" ", "_"), value, epoch)
            for name, crop in self._images.items():
                self._writer.add_image(f"SR/{name}", crop, epoch)
            self._writer.flush()
        self._images = {}

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            with self._or_without():
                self._writer.close()

    @contextmanager
    def _or_without(self):
        """A disk that is full, say, must not end a training: it goes on without the board."""
        try:
            yield
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("TensorBoard's file cannot be written (%s): the run goes on without it", reason)
            self._writer = None
