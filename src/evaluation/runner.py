"""One image through a network: LR -> network input -> whole, quadrants, tiles or self-ensemble -> SR, rounded.

LR and SR are uint8, or both uint16 for pictures with 16 bits.
"""

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
from model.tiling import AUTO_TILE, SURE_TO_FIT, Function, Progress, Tiles, memory_shortage
from runtime.errors import UserError, printable, says_out_of_memory

log = logging.getLogger("krgn")

_GRAY = (0.299, 0.587, 0.114)  # weights of red, green and blue in BT.601's luma


class Upscaled(NamedTuple):
    """An SR image (C, scale * h, scale * w) of LR's type, and whether the network's output was finite everywhere."""

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
        progress: called while an image runs in tiles; the shares of an image add up to 1.
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
        progress: Progress | None = None,
    ):
        self.network, self.device = network, device
        self.scale, self.n_colors, self.rgb_range = scale, n_colors, rgb_range
        self.chop, self.tile, self.self_ensemble = chop, tile, self_ensemble
        self.progress = progress

    def upscale(self, lr: torch.Tensor, name: str = "the image") -> Upscaled:
        """Upscales one image, uint8 or uint16 (n_colors, h, w); the SR image is on the device.

        A gray image (1, h, w) may be given to a network of three colours, and stays gray: luma of the output.

        Raises:
            UserError: if the image, or the features of its tiles, have no room; the message has its name.
        """
        self._check_room(lr, name)
        gray = lr.shape[0] < self.n_colors
        finish = _Finish(self.rgb_range, lr.dtype, gray=gray)
        image = to_network(lr[None], self.device, self.rgb_range)
        if gray:
            image = image.expand(-1, self.n_colors, -1, -1).contiguous(memory_format=torch.channels_last)
        if self.self_ensemble:
            sr = finish(inference.self_ensemble(self.run, image, batched=not self.tile))
        else:
            sr = self._run(image, finish)
        return Upscaled(sr[0], finish.finite)

    def run(self, image: torch.Tensor) -> torch.Tensor:
        """Runs the network once over (N, n_colors, h, w) in its own range, as a whole, in quadrants or in tiles."""
        return self._run(image, None)

    def _run(self, image: torch.Tensor, finish: Function | None) -> torch.Tensor:
        if self.tile and not self.chop:
            return self._in_tiles(image, finish)
        sr = inference.chop(self.network, image, self.scale) if self.chop else self._whole(image)
        if sr is None:  # it does not fit into memory
            return self._in_tiles(image, finish)
        return finish(sr) if finish else sr

    def _whole(self, image: torch.Tensor) -> torch.Tensor | None:
        """The output for the whole image; None, with a line in the log, if it does not fit into memory."""
        reason = memory_shortage(self.network, image)
        if reason is None:
            try:
                return self.network(image)
            except (MemoryError, RuntimeError) as error:
                if not says_out_of_memory(error):
                    raise
                reason = "does not fit into memory"
        log.info("an image of %s pixels %s: running tiles of %d instead (--tile)", _size(image), reason, AUTO_TILE)
        return None

    def _in_tiles(self, image: torch.Tensor, finish: Function | None) -> torch.Tensor:
        try:
            if not self._tiles.exact:
                self._warn_of_deviation(image)
            runs = 8 if self.self_ensemble else 1
            progress = (lambda share: self.progress(share / runs)) if self.progress else None
            return torch.cat([self._tiles(one, finish=finish, progress=progress) for one in image.split(1)])
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
        # Input and output in float32, of which self-ensemble has three at a time, and the output in whole values.
        per_sample = 4 + ((12 if self.self_ensemble else 4) + lr.itemsize) * self.scale**2
        needed = lr.shape[0] * pixels * per_sample
        if room is not None and needed > room:
            raise UserError(
                f"{printable(name)}: {_size(lr)} pixels and their {_size(lr)} times {self.scale} need "
                f"{needed / 2**30:.1f} GiB of memory, {room / 2**30:.1f} are free: cut the image into parts, or free "
                "memory"
            )


class _Finish:
    """Turns a network's output (N, C, H, W), or a part of it, into whole values of LR's type.

    Attributes:
        finite: whether all outputs so far were.
    """

    def __init__(self, rgb_range: float, dtype: torch.dtype, *, gray: bool):
        self.rgb_range, self.dtype, self.gray, self.finite = rgb_range, dtype, gray, True

    def __call__(self, out: torch.Tensor) -> torch.Tensor:
        self.finite = self.finite and bool(out.isfinite().all())
        if self.gray:
            weights = torch.tensor(_GRAY, device=out.device).view(3, 1, 1)
            out = (out.float() * weights).sum(dim=1, keepdim=True)
        return quantise(out, self.rgb_range, self.dtype)


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
