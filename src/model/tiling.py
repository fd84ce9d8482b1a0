"""Inference over tiles, in the memory of a tile, with the result of the whole image.

A tile is computed with a halo as wide as the network's receptive field, which is measured, so that its own pixels see
all that they would see in the whole image. That is exact for a network of convolutions. KRGN's channel attention has
global statistics: KRGN runs block by block over all tiles. Between the blocks the features of the whole image lie in
memory or in files, and the statistics are sums over the tiles. Any other network with global statistics is not exact in
tiles; `Tiles.deviation` measures by how much.
"""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .compat import DispatchMode, storage_key, tensors_in
from .external import External
from .krgn import KRGN, PMRB
from .memory import available_memory
from .recalibration import kernel_of

Window = tuple[slice, slice]  # rows and columns
Size = tuple[int, int]  # height and width
Function = Callable[[torch.Tensor], torch.Tensor]
Progress = Callable[[float], None]  # called with the share of the work that was done since the last call

AUTO_TILE = 256  # LR pixels: the side of the tiles of an image that does not fit into memory
SURE_TO_FIT = 2**18  # LR pixels that fit into any memory: nothing is measured for them
RESERVE = 1.5  # a factor for what operators need inside themselves and allocators on top
GRID = 64  # LR pixels; the windows and merged pixels of published networks divide it
GLOBAL_HALO = 32  # LR pixels around a tile where no halo would be enough
LONGEST_COMPARED = 512  # LR pixels of the part on which a deviation is measured
_LONGEST_PROBE = 2049  # LR pixels; a block of KRGN reaches 577 at the largest dilation, 64
_IN_MEMORY = 2**29  # bytes of feature maps that are kept in memory and not in files


class Tiles:
    """Runs `network` over tiles of `tile` x `tile` LR pixels: (N, C, H, W) -> (N, C', scale * H, scale * W), with N = 1
    for a KRGN.

    Attributes:
        halo: LR pixels that a tile reaches beyond its own; of one block where the network runs block by block.
        exact: whether the result is that of the whole image, to rounding.
        in_stages: whether the network runs block by block; then `head_halo` and `tail_halo` are those of its ends.

    Raises:
        OSError: when it runs, if the features of a KRGN do not fit on the disk of the temporary folder.
    """

    def __init__(self, network: nn.Module, *, scale: int, tile: int, n_colors: int = 3):
        self.network, self.scale, self.tile = network, scale, tile
        self.in_stages = isinstance(network, KRGN)
        like, step = next(network.parameters()), longest_step(network)
        if isinstance(network, KRGN):
            features = network.head_conv.out_channels
            reaches = [_reach_of(_fused_taps(block), features, like, step) for block in network.body]
            self.halo, self.exact = max(reaches, default=0), True
            self.head_halo = _reach_of(network.shallow, n_colors, like, step)
            self.tail_halo = _reach_of(lambda dense: network.tail(dense, torch.zeros_like(dense)), features, like, step)
            return
        try:
            halo = reach(network, n_colors, like=like, step=step)
        except RuntimeError:  # a network that takes no strips
            halo = None
        self.halo, self.exact = (GLOBAL_HALO, False) if halo is None else (halo, True)
        if isinstance(network, External):
            # It may work on a grid of windows or of merged pixels, which every tile must meet in the same place.
            self.halo, self.tile, self.exact = _rounded_up(self.halo), _rounded_up(tile), False

    def __call__(
        self, image: torch.Tensor, *, finish: Function | None = None, progress: Progress | None = None
    ) -> torch.Tensor:
        """The network's output for the whole image.

        Args:
            finish: applied to the output of each tile before it is put in its place; pixelwise, such as rounding to 8
                bits, which saves the memory of the whole output in float32.
            progress: see `Progress`.
        """
        finish, progress = finish or _unchanged, progress or _ignored
        if isinstance(self.network, KRGN):
            return self._block_by_block(self.network, image, finish, progress)
        return self._independently(image, finish, progress)

    def deviation(self, image: torch.Tensor) -> float:
        """The largest difference from the whole-image result, in the network's range, on the middle of `image`."""
        height, width = image.shape[-2:]
        side = min(2 * (self.tile + self.halo), LONGEST_COMPARED)
        top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
        part = image[..., top : top + side, left : left + side]
        return (self(part) - self.network(part)).abs().max().item()

    def _independently(self, image: torch.Tensor, finish: Function, progress: Progress) -> torch.Tensor:
        out, size = _Output(_size(image), self.scale, finish), _size(image)
        for window in windows(size, self.tile):
            wide, inner = widened(window, self.halo, size)
            out.put(self.network(cut(image, wide)), window, inner)
            progress(_share(window, size))
        return out.image

    def _block_by_block(self, network: KRGN, image: torch.Tensor, finish: Function, progress: Progress) -> torch.Tensor:
        size = _size(image)
        # DFF's 1x1 convolution over all blocks' outputs is a sum of one product for each, so none needs to be kept.
        fusion = network.features_fusion_module[0]
        shares = kernel_of(fusion).split(network.head_conv.out_channels, dim=1)
        names = ("shallow", "feature", "taps", "dense")
        with Features(size, network.head_conv.out_channels, names, device=image.device) as maps:
            for window in windows(size, self.tile):
                wide, inner = widened(window, self.head_halo, size)
                shallow = cut(network.shallow(cut(image, wide)), inner)
                maps.write("shallow", window, shallow)
                maps.write("feature", window, shallow)
                maps.write("dense", window, F.conv2d(shallow, shares[0], fusion.bias))
            for block, share in zip(network.body, shares[1:], strict=True):
                # The blocks take nearly all of the time.
                attention = self._attention(block, maps, size, lambda part: progress(part / len(network.body)))
                for window in windows(size, self.tile):
                    feature = maps.read("taps", window) * attention + maps.read("feature", window)
                    maps.write("feature", window, feature)
                    maps.write("dense", window, maps.read("dense", window) + F.conv2d(feature, share))
            out = _Output(size, self.scale, finish)
            for window in windows(size, self.tile):
                wide, inner = widened(window, self.tail_halo, size)
                out.put(network.tail(maps.read("dense", wide), maps.read("shallow", wide)), window, inner)
        return out.image

    def _attention(self, block: PMRB, maps: "Features", size: Size, progress: Progress) -> torch.Tensor:
        """The weights of a block's channels, (1, C, 1, 1), after writing its fused taps."""
        dtype = torch.float32
        total = torch.zeros((), dtype=torch.float64)
        squares = torch.zeros((), dtype=torch.float64)
        for window in windows(size, self.tile):
            wide, inner = widened(window, self.halo, size)
            taps = cut(block.local(maps.read("feature", wide)).fused, inner)
            maps.write("taps", window, taps)
            total = total + taps.sum(dim=(2, 3), keepdim=True, dtype=torch.float64)
            squares = squares + taps.double().square().sum(dim=(2, 3), keepdim=True)
            # In half precision a variance may be out of range; the attention itself, in 0..1, is not.
            dtype = torch.promote_types(taps.dtype, torch.float32)
            progress(_share(window, size))
        mean = total / (size[0] * size[1])
        variance = (squares / (size[0] * size[1]) - mean.square()).clamp(min=0)
        return block.cca.attention(mean.to(dtype), variance.to(dtype))


class _Output:
    """The output for a whole image of `size`, put together from those of its tiles, `finish`ed; allocated like the
    first."""

    def __init__(self, size: Size, scale: int, finish: Function):
        self.size, self.scale, self.finish = size, scale, finish
        self.image = torch.empty(0)

    def put(self, piece: torch.Tensor, window: Window, inner: Window) -> None:
        """Copies what a tile's output has for `window`, its `inner` part, to its place."""
        piece = self.finish(cut(piece, scaled(inner, self.scale)))
        if not self.image.numel():
            self.image = piece.new_empty(*piece.shape[:2], *(self.scale * side for side in self.size))
        cut(self.image, scaled(window, self.scale)).copy_(piece)


def _unchanged(piece: torch.Tensor) -> torch.Tensor:
    return piece


def _ignored(_share: float) -> None:
    pass


def _share(window: Window, size: Size) -> float:
    """The part of an image's pixels that a window has."""
    (rows, columns), (height, width) = window, size
    return (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


def _fused_taps(block: PMRB) -> Function:
    return lambda x: block.local(x).fused


class Features:
    """Feature maps (1, channels, H, W) of a whole image, float32, by name, read and written by windows.

    Small ones are in memory, large ones in temporary files that are mapped only while a window is read or written.

    Raises:
        OSError: if they do not fit on the disk of the temporary folder.
    """

    def __init__(self, size: Size, channels: int, names: tuple[str, ...], *, device: torch.device):
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

    def __enter__(self) -> "Features":
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None:
            self.folder.cleanup()

    def read(self, name: str, window: Window) -> torch.Tensor:
        """A copy of a window, (1, channels, h, w) on the device, channels last in memory."""
        pixels = torch.from_numpy(np.array(self._map(name, "r")[window]))
        return pixels.to(self.device).permute(2, 0, 1)[None]

    def write(self, name: str, window: Window, features: torch.Tensor) -> None:
        """Puts (1, channels, h, w) into the window."""
        self._map(name, "r+")[window] = features[0].permute(1, 2, 0).float().cpu().numpy()

    def _map(self, name: str, mode: Literal["r", "r+"]) -> np.ndarray:
        if self.folder is None:
            return self.arrays[name]
        return np.memmap(Path(self.folder.name, name), np.float32, mode, shape=self.shape)


def _rounded_up(length: int) -> int:
    return -(-length // GRID) * GRID


def _size(image: torch.Tensor) -> Size:
    return image.shape[-2], image.shape[-1]


def windows(size: Size, tile: int) -> Iterator[Window]:
    """The tiles of an image of `size` = (H, W), row by row; those at the end are smaller."""
    for top in range(0, size[0], tile):
        for left in range(0, size[1], tile):
            yield slice(top, min(top + tile, size[0])), slice(left, min(left + tile, size[1]))


def widened(window: Window, halo: int, size: Size) -> tuple[Window, Window]:
    """The window with its halo, cut off at the image's border where the network pads, and the window inside that."""
    (rows, inner_rows), (columns, inner_columns) = (
        _widened_side(part, halo, side) for part, side in zip(window, size, strict=True)
    )
    return (rows, columns), (inner_rows, inner_columns)


def _widened_side(part: slice, halo: int, side: int) -> tuple[slice, slice]:
    wide = slice(max(0, part.start - halo), min(side, part.stop + halo))
    return wide, slice(part.start - wide.start, part.stop - wide.start)


def cut(image: torch.Tensor, window: Window) -> torch.Tensor:
    """The part (..., h, w) of an image (..., H, W), as a view."""
    return image[..., window[0], window[1]]


def scaled(window: Window, scale: int) -> Window:
    """The same window in an image `scale` times as large."""
    rows, columns = (slice(scale * part.start, scale * part.stop) for part in window)
    return rows, columns


@torch.no_grad()
def reach(function: Function, channels: int, *, like: torch.Tensor, step: int = 1) -> int | None:
    """How many input pixels away from an output pixel `function` may look; None if at the whole image.

    A NaN in one pixel reaches exactly those outputs that read it, whatever the weights. Strips one pixel wide,
    horizontal and vertical, make this cheap. They grow until nothing comes so near to their ends that one more `step`
    would leave them: a dilated convolution jumps out of a strip that is too short, and nothing would be seen.

    Args:
        function: (1, channels, H, W) -> (1, C', s * H, s * W).
        like: a tensor of the dtype and on the device to use.
        step: how far a single layer of it looks, in pixels, at most.
    """
    found = 0
    for horizontal in (True, False):
        length = 17
        while True:
            probe = torch.zeros(1, channels, length, 1, dtype=like.dtype, device=like.device)
            middle = length // 2
            probe[0, :, middle] = torch.nan
            out = function(probe.transpose(2, 3) if horizontal else probe)[0].isnan().any(dim=0)
            out = out.any(dim=0 if horizontal else 1)
            scale = len(out) // length
            touched = out.nonzero().flatten() // scale
            radius = int((touched - middle).abs().max()) if len(touched) else 0
            if radius + step <= middle:
                break
            length = 2 * length - 1
            if length > _LONGEST_PROBE:
                return None
        found = max(found, radius)
    return found


def longest_step(network: nn.Module) -> int:
    """How far a single convolution of the network looks, in its own pixels, at most; 1 at least."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    steps = (
        rate * (side - 1) // 2
        for conv in convolutions
        for rate, side in zip(conv.dilation, conv.kernel_size, strict=True)
    )
    return max((1, *steps))


def _reach_of(stage: Function, channels: int, like: torch.Tensor, step: int) -> int:
    """The `reach` of a part of KRGN, all of which are local."""
    found = reach(stage, channels, like=like, step=step)
    if found is None:
        raise ValueError(f"tiles: got a dilation for which a block reaches more than {_LONGEST_PROBE // 2} pixels")
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
    """Peak of the bytes of all tensors that `function(*inputs)` makes and that live at one time, without the inputs."""
    with _LiveBytes() as counter:
        function(*inputs)
    return counter.peak


@torch.inference_mode()
def bytes_per_pixel(network: nn.Module, like: torch.Tensor) -> float:
    """Peak memory of the network's features, in bytes for each pixel of its input.

    Measured on two small inputs; what operators use inside themselves is not counted.

    Args:
        like: an image as the network takes it, (1, C, H, W), for its channels, dtype and device.
    """
    images = (like.new_zeros(1, like.shape[1], 64, width) for width in (64, 128))
    small, large = (peak_bytes(network, image) for image in images)
    return (large - small) / (64 * 64)


def memory_shortage(network: nn.Module, images: torch.Tensor) -> str | None:
    """Why `network(images)` would need more main memory than is free, in a few words.

    None if it fits, or is small, or the free memory is not known (on a GPU: the allocator raises an error there, while
    a process that takes too much main memory is killed without a word).

    Args:
        images: (N, C, H, W), as the network takes it.
    """
    pixels = images.shape[0] * images.shape[2] * images.shape[3]
    if images.device.type != "cpu" or pixels <= SURE_TO_FIT or (free := available_memory()) is None:
        return None
    needed = RESERVE * pixels * bytes_per_pixel(network, images)
    return f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free" if needed > free else None
