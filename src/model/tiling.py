"""Inference over tiles, in the memory of a tile, with the result of the whole image.

A tile is computed with a halo as wide as the network's receptive field, which is measured, so that its own pixels see
all they would see in the whole image. That is exact for a network of convolutions. KRGN's channel attention has global
statistics: it is run block by block over all tiles, with the features of the whole image in files between the blocks,
and sums over the tiles give the statistics. Any other network with global statistics is not exact in tiles, and how far
it is off is measured.
"""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model.external import External
from model.krgn import KRGN
from model.recalibration import kernel_of

from .compat import DispatchMode, storage_key, tensors_in

Window = tuple[slice, slice]  # rows and columns
Function = Callable[[torch.Tensor], torch.Tensor]

GRID = 64  # LR pixels; the windows and merged pixels of published networks divide it
GLOBAL_HALO = 32  # LR pixels around a tile where no halo would be enough
LONGEST_COMPARED = 512  # LR pixels of the part on which a deviation is measured
_LONGEST_PROBE = 1025
_IN_MEMORY = 2**29  # bytes of feature maps that are kept in memory rather than in files


class Tiles:
    """Runs `network` over tiles of `tile` x `tile` LR pixels: (1, C, H, W) -> (1, C', scale * H, scale * W).

    Attributes:
        halo: LR pixels that a tile reaches beyond its own; of one block, where the network runs block by block.
        exact: whether the result is that of the whole image, to rounding.
    """

    def __init__(self, network: nn.Module, *, scale: int, tile: int, n_colors: int = 3):
        self.network, self.scale, self.tile = network, scale, tile
        self.in_stages = isinstance(network, KRGN)
        parameter = next(network.parameters())
        if self.in_stages:
            features = network.head_conv.out_channels
            reaches = [
                reach(lambda x, block=block: block.local(x)[0], features, like=parameter) for block in network.body
            ]
            self.halo = max(reaches, default=0)
            self.head_halo = reach(network.shallow, n_colors, like=parameter)
            self.tail_halo = reach(lambda fused: network.tail(fused, torch.zeros_like(fused)), features, like=parameter)
            self.exact = True
        else:
            try:
                halo = reach(network, n_colors, like=parameter)
            except RuntimeError:  # a network that takes no strips
                halo = None
            self.halo, self.exact = (GLOBAL_HALO, False) if halo is None else (halo, True)
            if isinstance(network, External):
                # It may work on a grid of windows or of merged pixels, which every tile must meet in the same place.
                self.halo, self.tile, self.exact = _up(self.halo), _up(tile), False

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return self._block_by_block(image) if self.in_stages else self._independently(image)

    def deviation(self, image: torch.Tensor) -> float:
        """The largest difference from the whole-image result, in the network's range, on the middle of `image`."""
        height, width = image.shape[-2:]
        side = min(2 * (self.tile + self.halo), LONGEST_COMPARED)
        top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
        part = image[..., top : top + side, left : left + side]
        return (self(part) - self.network(part)).abs().max().item()

    def _independently(self, image: torch.Tensor) -> torch.Tensor:
        out = None
        for window in windows(image.shape[-2:], self.tile):
            wide, inner = widened(window, self.halo, image.shape[-2:])
            piece = cut(self.network(cut(image, wide)), scaled(inner, self.scale))
            if out is None:
                sides = (self.scale * side for side in image.shape[-2:])
                out = piece.new_empty(*piece.shape[:2], *sides)
            cut(out, scaled(window, self.scale)).copy_(piece)
        return out

    def _block_by_block(self, image: torch.Tensor) -> torch.Tensor:
        network, size = self.network, image.shape[-2:]
        channels = network.head_conv.out_channels
        # DFF's 1x1 convolution over all blocks' outputs is a sum of one product for each, so none needs to be kept.
        fusion = network.features_fusion_module[0]
        shares = kernel_of(fusion).split(channels, dim=1)
        with Features(size, channels, ("shallow", "feature", "taps", "fused"), device=image.device) as maps:
            for window in windows(size, self.tile):
                wide, inner = widened(window, self.head_halo, size)
                shallow = cut(network.shallow(cut(image, wide)), inner)
                maps.write("shallow", window, shallow)
                maps.write("feature", window, shallow)
                maps.write("fused", window, F.conv2d(shallow, shares[0], fusion.bias))
            for block, share in zip(network.body, shares[1:], strict=True):
                total = squares = 0.0
                for window in windows(size, self.tile):
                    wide, inner = widened(window, self.halo, size)
                    taps = cut(block.local(maps.read("feature", wide))[0], inner)
                    maps.write("taps", window, taps)
                    total = total + taps.sum(dim=(2, 3), keepdim=True, dtype=torch.float64)
                    squares = squares + taps.double().square().sum(dim=(2, 3), keepdim=True)
                mean = total / (size[0] * size[1])
                variance = (squares / (size[0] * size[1]) - mean.square()).clamp(min=0)
                # In half precision a variance may be out of range; the attention itself, in 0..1, is not.
                wide = torch.promote_types(taps.dtype, torch.float32)
                attention = block.cca.attention(mean.to(wide), variance.to(wide))
                for window in windows(size, self.tile):
                    feature = maps.read("taps", window) * attention + maps.read("feature", window)
                    maps.write("feature", window, feature)
                    maps.write("fused", window, maps.read("fused", window) + F.conv2d(feature, share))
            out = None
            for window in windows(size, self.tile):
                wide, inner = widened(window, self.tail_halo, size)
                piece = network.tail(maps.read("fused", wide), maps.read("shallow", wide))
                if out is None:
                    out = piece.new_empty(1, piece.shape[1], *(self.scale * side for side in size))
                cut(out, scaled(window, self.scale)).copy_(cut(piece, scaled(inner, self.scale)))
        return out


class Features:
    """Feature maps (1, channels, H, W) of a whole image, float32, by name, read and written by windows.

    Small ones are in memory, large ones in temporary files that are mapped only while a window is read or written.

    Raises:
        OSError: if there is no room on the disk of the temporary folder.
    """

    def __init__(self, size: tuple[int, int], channels: int, names: tuple[str, ...], *, device: torch.device):
        self.shape, self.device = (*size, channels), device
        n_bytes = 4 * size[0] * size[1] * channels
        self.folder = None
        if len(names) * n_bytes <= _IN_MEMORY:
            self.arrays = {name: np.empty(self.shape, np.float32) for name in names}
            return
        self.folder = tempfile.TemporaryDirectory(prefix="feature_maps_")
        for name in names:
            with open(Path(self.folder.name, name), "wb") as file:
                # All at once: a disk that is full when a mapped page is written would kill the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
                file.truncate(n_bytes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.folder is not None:
            self.folder.cleanup()

    def read(self, name: str, window: Window) -> torch.Tensor:
        """A copy of a window, (1, channels, h, w) on the device, channels last in memory."""
        pixels = torch.from_numpy(np.array(self._map(name, "r")[window]))
        return pixels.to(self.device).permute(2, 0, 1)[None]

    def write(self, name: str, window: Window, features: torch.Tensor) -> None:
        """Puts (1, channels, h, w) into the window."""
        self._map(name, "r+")[window] = features[0].permute(1, 2, 0).float().cpu().numpy()

    def _map(self, name: str, mode: str) -> np.ndarray:
        if self.folder is None:
            return self.arrays[name]
        return np.memmap(Path(self.folder.name, name), np.float32, mode, shape=self.shape)


def _up(length: int) -> int:
    return -(-length // GRID) * GRID


def windows(size: tuple[int, int], tile: int) -> Iterator[Window]:
    """The tiles of an image of `size` = (H, W), row by row; those at the end are smaller."""
    for top in range(0, size[0], tile):
        for left in range(0, size[1], tile):
            yield slice(top, min(top + tile, size[0])), slice(left, min(left + tile, size[1]))


def widened(window: Window, halo: int, size: tuple[int, int]) -> tuple[Window, Window]:
    """The window with its halo, cut off at the image's border where the network pads, and the window inside that."""
    wide = tuple(
        slice(max(0, part.start - halo), min(side, part.stop + halo)) for part, side in zip(window, size, strict=True)
    )
    inner = tuple(
        slice(part.start - outer.start, part.stop - outer.start) for part, outer in zip(window, wide, strict=True)
    )
    return wide, inner


def cut(image: torch.Tensor, window: Window) -> torch.Tensor:
    """The part (..., h, w) of an image (..., H, W), as a view."""
    return image[..., window[0], window[1]]


def scaled(window: Window, scale: int) -> Window:
    """The same window in an image `scale` times as large."""
    return tuple(slice(scale * part.start, scale * part.stop) for part in window)


@torch.no_grad()
def reach(function: Function, channels: int, *, like: torch.Tensor) -> int | None:
    """How many input pixels away an output pixel of `function` may depend on; None if on the whole image.

    A NaN in one pixel reaches exactly those outputs that read it, whatever the weights. Strips one pixel wide, lying
    and standing, make this cheap; they grow until their ends are not reached.

    Args:
        function: (1, channels, H, W) -> (1, C', s * H, s * W).
        like: a tensor of the dtype and on the device to use.
    """
    found = 0
    for lying in (True, False):
        length = 17
        while True:
            probe = torch.zeros(1, channels, length, 1, dtype=like.dtype, device=like.device)
            middle = length // 2
            probe[0, :, middle] = torch.nan
            out = function(probe.transpose(2, 3) if lying else probe)[0].isnan().any(dim=0)
            out = out.any(dim=0 if lying else 1)
            scale = len(out) // length
            touched = out.nonzero().flatten() // scale
            radius = int((touched - middle).abs().max()) if len(touched) else 0
            if radius < middle:
                break
            length = 2 * length - 1
            if length > _LONGEST_PROBE:
                return None
        found = max(found, radius)
    return found


class _LiveBytes(DispatchMode):
    """Counts the bytes of the tensors that operators return for as long as they live, and their peak."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            storage = tensor.untyped_storage()
            key, size = storage_key(storage), storage.nbytes()
            if key not in self.seen:
                self.seen.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, key, size)
        return out

    def _freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def peak_bytes(function: Function, *inputs: torch.Tensor) -> int:
    """Bytes of the tensors that `function(*inputs)` makes and that live at one time, at most, without the inputs."""
    with _LiveBytes() as counter:
        function(*inputs)
    return counter.peak


@torch.inference_mode()
def bytes_per_pixel(network: nn.Module, like: torch.Tensor) -> float:
    """Memory that the network's features need at most at one time, in bytes for each pixel of its input.

    Measured on two small inputs; what operators use inside themselves is not counted.

    Args:
        like: an image as the network takes it, (1, C, H, W), for its channels, dtype and device.
    """
    images = (like.new_zeros(1, like.shape[1], 64, width) for width in (64, 128))
    small, large = (peak_bytes(network, image) for image in images)
    return (large - small) / (64 * 64)
