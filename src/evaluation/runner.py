"""One image through a network: uint8 LR -> network input -> whole, quadrants, tiles or self-ensemble -> uint8 SR."""

import functools
import logging
import tempfile
from typing import NamedTuple

import torch
from torch import nn

from evaluation.metrics import quantise
from model import inference
from model.memory import available_memory
from model.precision import to_network
from model.tiling import AUTO_TILE, SURE_TO_FIT, Tiles, memory_shortage
from runtime.errors import UserError, printable, says_out_of_memory

log = logging.getLogger("krgn")


class Upscaled(NamedTuple):
    """An SR image, uint8 (C, scale * h, scale * w), and whether the network's output was finite everywhere."""

    sr: torch.Tensor
    finite: bool


class ImageRunner:
    """Upscales images with one network, on the device and in the autocast context of the caller.

    Args:
        network: (N, n_colors, h, w) in 0..`rgb_range` -> (N, n_colors, scale * h, scale * w), in eval mode.
        chop: run four overlapping quadrants (`model.inference.chop`).
        tile: side of the tiles in LR pixels (`model.tiling`); 0: the whole image, or tiles of `AUTO_TILE` if it does
            not fit into memory.
        self_ensemble: average over the eight flips and rotations.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device,
        scale: int,
        n_colors: int = 3,
        rgb_range: float = 255,
        chop: bool = False,
        tile: int = 0,
        self_ensemble: bool = False,
    ):
        self.network, self.device = network, device
        self.scale, self.n_colors, self.rgb_range = scale, n_colors, rgb_range
        self.chop, self.tile, self.self_ensemble = chop, tile, self_ensemble

    def upscale(self, lr: torch.Tensor, name: str = "the image") -> Upscaled:
        """Upscales one image, uint8 (n_colors, h, w); the SR image is on the device.

        Raises:
            UserError: if the image, or the features of its tiles, have no room; the message has its name.
        """
        self._check_room(lr, name)
        image = to_network(lr[None], self.device, self.rgb_range)
        sr = inference.self_ensemble(self.run, image, batched=not self.tile) if self.self_ensemble else self.run(image)
        return Upscaled(quantise(sr[0], self.rgb_range), bool(sr.isfinite().all()))

    def run(self, image: torch.Tensor) -> torch.Tensor:
        """Runs the network once over (N, n_colors, h, w) in its own range, as a whole, in quadrants or in tiles."""
        if self.chop:
            return inference.chop(self.network, image, self.scale)
        return self._in_tiles(image) if self.tile else self._whole(image)

    def _whole(self, image: torch.Tensor) -> torch.Tensor:
        reason = memory_shortage(self.network, image)
        if reason is None:
            try:
                return self.network(image)
            except (MemoryError, RuntimeError) as error:
                if not says_out_of_memory(error):
                    raise
                reason = "does not fit into memory"
        log.info("an image of %s pixels %s: running tiles of %d instead (--tile)", _size(image), reason, AUTO_TILE)
        return self._in_tiles(image)

    def _in_tiles(self, image: torch.Tensor) -> torch.Tensor:
        try:
            if not self._tiles.exact:
                self._warn_of_deviation(image)
            return torch.cat([self._tiles(one) for one in image.split(1)])
        except OSError as error:
            raise UserError(
                f"features of {_size(image)} pixels do not fit into the temporary folder {tempfile.gettempdir()} "
                f"({error.strerror}): set TMPDIR to a larger disk"
            ) from None

    @functools.cached_property
    def _tiles(self) -> Tiles:
        return Tiles(self.network, scale=self.scale, tile=self.tile or AUTO_TILE, n_colors=self.n_colors)

    _warned = False

    def _warn_of_deviation(self, image: torch.Tensor) -> None:
        """Measures how far tiles are off, once, on the first image."""
        if self._warned:
            return
        self._warned = True
        log.warning(
            "tiles are not exact for this network, which may have global statistics: in the middle of the first image "
            "they are off by %.2g of 255",
            self._tiles.deviation(image) * 255 / self.rgb_range,
        )

    def _check_room(self, lr: torch.Tensor, name: str) -> None:
        """UserError if main memory cannot even hold the network's input and output; tiles need little more."""
        pixels = lr.shape[1] * lr.shape[2]
        room = available_memory() if self.device.type == "cpu" and pixels > SURE_TO_FIT else None
        needed = lr.shape[0] * pixels * (4 + 5 * self.scale**2)  # both in float32, and the output in uint8
        if room is not None and needed > room:
            raise UserError(
                f"{printable(name)}: {_size(lr)} pixels and their {_size(lr)} times {self.scale} need "
                f"{needed / 2**30:.1f} GiB of memory, {room / 2**30:.1f} are free: cut the image into parts, or free "
                "memory"
            )


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
