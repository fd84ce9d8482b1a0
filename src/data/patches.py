"""The training set: random aligned patches of LR and HR, cut by their number.

Samples stay uint8 until they are on the device. A sample depends on its number and the seed alone, not on who loads it
or when, so any number of workers gives the same batches, and a run can go on at any batch.

A batch is cut in one call, out of decoded copies that stay mapped, into one block of bytes: only the patches are read,
each is copied once, flipped and rotated on the way, and a worker process sends one message a batch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from data.cache import cache_path, open_cached
from data.color import to_tensor
from data.degradation import BICUBIC, Degradation
from data.pairs import ImageSet
from runtime.errors import UserError

# Decoded copies that a training set keeps mapped. They take address space, no open files, and memory only where the
# system counts what private maps might take (vm.overcommit_memory=2). Linux allows 65,530 maps.
MAPS = 4096


class Batch(NamedTuple):
    """Training patches.

    Args:
        lr, hr: uint8 (N, n_colors, p/scale, p/scale) and (N, n_colors, p, p).
        names: of their images.
        taught: the teacher's SR patches, as `hr`; None without a teacher.
    """

    lr: torch.Tensor
    hr: torch.Tensor
    names: list[str]
    taught: torch.Tensor | None = None


class TrainSet(Dataset):
    """Aligned random patches. Sample number k (any k >= 0) is a pure function of k and the seed.

    An item is (lr, hr, name): uint8 tensors (n_colors, p/scale, p/scale) and (n_colors, p, p) for HR patches of side
    p = `patch_size`, and the image's name; with a teacher its patch comes last. Each pass of k over the number of
    images takes every image once, in an order of its own. Loaders take whole batches (`__getitems__`, `unpack`).

    Args:
        augment: whether patches are flipped and rotated, to one of eight views.
        weights: one positive number for each set, its share of the samples; a sample's set is drawn by these, and its
            image from that set. None: every image counts the same.
        degradation: how LR patches are made from HR; by default they are cut out of the set's LR images.

    Attributes:
        teacher: the folder below bin/ with a teacher's SR images (`train.teacher`), of which patches are cut too; empty
            without a teacher.

    Raises:
        UserError: if an image is smaller than a patch.
    """

    def __init__(
        self,
        sets: list[ImageSet],
        *,
        scale: int,
        patch_size: int,
        n_colors: int = 3,
        augment: bool = True,
        seed: int = 1,
        weights: list[float] | None = None,
        degradation: Degradation = BICUBIC,
    ):
        ends = np.cumsum([len(image_set.pairs) for image_set in sets])
        self.spans = [(int(end) - len(image_set.pairs), int(end)) for image_set, end in zip(sets, ends, strict=True)]
        self.shares = None if weights is None else np.cumsum(weights) / np.sum(weights)
        self.images = [(pair, image_set) for image_set in sets for pair in image_set.pairs]
        self.scale, self.patch_size, self.n_colors = scale, patch_size, n_colors
        self.augment, self.seed, self.degradation = augment, seed, degradation
        self.teacher = ""
        self._maps: dict[Path, np.ndarray] = {}
        for pair, _ in self.images:
            if min(pair.size) // scale * scale < patch_size:
                raise UserError(
                    f"{pair.hr}: {pair.size} pixels are smaller than a patch of {patch_size}: "
                    "lower --patch_size or remove the image"
                )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple:
        batch = self.unpack(*self.__getitems__([k]))
        return tuple(part[0] for part in batch if part is not None)

    def __getitems__(self, numbers: Sequence[int]) -> tuple[torch.Tensor | np.ndarray, list[str]]:
        """The samples of these numbers as one block of bytes, for `unpack`, and the names of their images.

        In a worker process the block lies in shared memory; it is an array where that is full.
        """
        block, shared = torch.empty(len(numbers) * self._sample_bytes(), dtype=torch.uint8), True
        if get_worker_info() is not None:
            try:
                block.share_memory_()  # written where the other process reads it
            except RuntimeError:  # a container's small /dev/shm is full
                shared = False
        parts = [part.numpy() for part in self._parts(block)]
        names = [self._cut(k, [part[position] for part in parts]) for position, k in enumerate(numbers)]
        return (block if shared else block.numpy()), names  # an array goes through the pipe itself

    def unpack(self, block: torch.Tensor, names: list[str]) -> Batch:
        """The patches of a block of `__getitems__`, as views of it."""
        lr, hr, *taught = self._parts(block)
        return Batch(lr, hr, names, *taught)

    def _parts(self, block: torch.Tensor) -> list[torch.Tensor]:
        count, sides = block.numel() // self._sample_bytes(), self._sides()
        parts = block.split([count * self.n_colors * side**2 for side in sides])
        return [part.view(count, -1, side, side) for part, side in zip(parts, sides, strict=True)]

    def _sides(self) -> list[int]:
        """Of the patches of LR, HR and, where there is one, the teacher."""
        return [self.patch_size // self.scale, self.patch_size, *[self.patch_size] * bool(self.teacher)]

    def _sample_bytes(self) -> int:
        return self.n_colors * sum(side**2 for side in self._sides())

    def _cut(self, k: int, targets: list[np.ndarray]) -> str:
        """Writes sample number k into arrays (n_colors, side, side) of `_sides`; returns the name of its image."""
        rng = np.random.default_rng((self.seed, 1, k))
        if self.shares is None:
            # A fresh permutation for each pass costs microseconds even for 100,000 images spread over their samples.
            turn, position = divmod(k, len(self.images))
            index = self._order(turn)[position]
        else:
            index = rng.integers(*self.spans[np.searchsorted(self.shares, rng.random(), side="right")])
        pair, image_set = self.images[index]

        lr, hr = self._pixels(image_set, pair.lr), self._pixels(image_set, pair.hr)
        side = self.patch_size // self.scale
        top = int(rng.integers(lr.shape[0] - side + 1))
        left = int(rng.integers(lr.shape[1] - side + 1))
        turns, mirrored = (int(rng.integers(4)), bool(rng.integers(2))) if self.augment else (0, False)

        box = slice(top, top + side), slice(left, left + side)
        hr_box = tuple(slice(self.scale * part.start, self.scale * part.stop) for part in box)
        patches = [self.degradation.window(lr, hr, box, self.scale, rng), hr[hr_box]]
        if self.teacher:
            patches.append(self._mapped(cache_path(image_set.cache_root, pair.lr, self.teacher), open_cached)[hr_box])
        for patch, target in zip(patches, targets, strict=True):
            _copy(_turned(np.ascontiguousarray(patch), turns, mirrored), target)
        return pair.name

    def _pixels(self, image_set: ImageSet, path: Path) -> np.ndarray:
        """The pixels of an image. The latest MAPS maps are kept; decoded images are not, they would fill the memory."""
        if image_set.cache_root is None:
            return image_set.open(path)
        return self._mapped(path, image_set.open)

    def _mapped(self, path: Path, open_map: Callable[[Path], np.ndarray]) -> np.ndarray:
        if path not in self._maps:
            if len(self._maps) >= MAPS:
                del self._maps[next(iter(self._maps))]
            self._maps[path] = open_map(path)
        return self._maps[path]

    def __getstate__(self) -> dict:
        return vars(self) | {"_maps": {}}  # a process that is spawned maps for itself

    def _order(self, turn: int) -> np.ndarray:
        """The permutation of the images in pass number `turn`."""
        if getattr(self, "_turn", None) != turn:
            self._turn, self._permutation = turn, np.random.default_rng((self.seed, 0, turn)).permutation(len(self))
        return self._permutation


def _turned(pixels: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    """`np.rot90` by `turns` quarters, then mirrored left to right: a view, without the checks that take longer."""
    if turns % 2:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if turns in (1, 2) else 1
    right = -1 if (turns in (2, 3)) != mirrored else 1
    return pixels[::down, ::right]


def _copy(pixels: np.ndarray, target: np.ndarray) -> None:
    """`to_tensor` into an existing array (n_colors, H, W), in one pass over the pixels where Y is not computed."""
    if len(target) == 1 and pixels.shape[2] == 3:
        target[:] = to_tensor(pixels, 1).numpy()
        return
    for channel, plane in enumerate(target):
        plane[:] = pixels[..., channel % pixels.shape[2]]
