"""Pairs of LR and HR images, and the two data sets made of them: random patches to train on, whole images to test.

Samples stay uint8 until they are on the device. What a training sample is depends on its number and the seed alone,
never on who loads it or when, so any number of workers gives the same batches and a run can go on at any batch.

A batch is cut in one call, out of decoded copies that stay mapped, into one block of bytes: only the patches are read,
each is copied once, flipped and rotated on the way, and a worker process hands over one message a batch.
"""

import errno
import logging
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from data import image as files
from data import pairing, resize
from data.degradation import BICUBIC, Degradation
from data.div2k import name_of
from evaluation.metrics import rgb_to_y
from runtime.errors import UserError, printable

log = logging.getLogger("krgn")

# Decoded copies that a training set keeps mapped. They take address space, no open files, and memory only where the
# system counts what private maps might take (vm.overcommit_memory=2). Linux allows 65,530 maps.
MAPS = 4096


@dataclass(frozen=True)
class Pair:
    """One image of a set: `hr` is None for images without ground truth."""

    name: str
    lr: Path
    hr: Path | None
    size: tuple[int, int] | None = None  # (height, width) of HR
    headers: tuple[files.Header, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """Named pairs; `cache_root` is the set's folder if its decoded copies are used, None if files are decoded.

    `own`: they are a user's own pictures, which are turned upright, and whose metadata the results get.
    """

    name: str
    pairs: list[Pair]
    cache_root: Path | None = None
    own: bool = False

    def open(self, path: Path) -> np.ndarray:
        """The pixels of one of the set's files, uint8 (H, W, C)."""
        if self.cache_root is None:
            return files.read_image(path)
        return files.open_cached(files.cache_path(self.cache_root, path))


def match(
    hr_paths: list[Path],
    lr_folder: Path,
    scale: int,
    base: Path | None = None,
    low: pairing.LowImages | None = None,
    *,
    strict: bool = True,
) -> list[Pair]:
    """Pairs HR images `name.png` with their LR images, as `pairing.choose` finds them below the set's folder, or with
    `lr_folder`/X4/`namex4.png`, whether that is there or still to be made.

    Args:
        base: the folder where names begin, for nested images; see `name_of`.
        low: LR images in other places; None if there are none.
        strict: see `pairing.choose`.

    Raises:
        UserError: for two HR images of one name, and for LR images that are not understood.
    """
    folder = lr_folder / f"X{scale}"
    there = {path.stem: path for path in files.list_images(folder)} if folder.is_dir() else {}
    names = {path: name_of(path, base, low) for path in hr_paths}
    standard = {path: there[f"{name}x{scale}"] for path, name in names.items() if f"{name}x{scale}" in there}
    chosen = standard
    if low is not None:
        choice = pairing.choose(low, hr_paths, standard, scale, files.read_size, strict=strict)
        chosen = choice.of
        if choice.unused:
            log.info(
                "%s: LR x%d images there are not used, but those of %s",
                choice.unused,
                scale,
                folders_of(chosen.values()),
            )
    pairs = [Pair(name, chosen.get(path, folder / f"{name}x{scale}.png"), path) for path, name in names.items()]
    for before, after in pairwise(sorted(pairs, key=lambda pair: pair.name)):
        if before.name == after.name:
            raise UserError(f"{before.hr} and {after.hr} have one name: rename or remove one of them")
    return pairs


def folders_of(paths: Iterable[Path]) -> str:
    """The folders of some files, each with their number, as in "6 of DIV2K/LR"."""
    counts = Counter(path.parent for path in paths).most_common()
    more = f" and {len(counts) - 3} folders more" if len(counts) > 3 else ""
    return ", ".join(f"{count} of {printable(folder)}" for folder, count in counts[:3]) + more


def make_lr(pair: Pair, pixels: np.ndarray, scale: int) -> None:
    """Writes the pair's LR image, made of HR's `pixels` (H, W, C) with MATLAB's bicubic recipe (`resize`).

    Raises:
        UserError: if HR is smaller than one LR pixel.
    """
    if min(pixels.shape[:2]) < scale:
        raise UserError(f"{pair.hr}: {_size(pixels.shape)} pixels are too few for x{scale}: remove the image")
    files.write_png(pair.lr, resize.downscale(pixels, scale))


def checked(pair: Pair, scale: int) -> Pair:
    """The pair with its size.

    Raises:
        UserError: if the sizes of LR and HR do not fit, or a file is unreadable.
    """
    headers = files.read_header(pair.hr), files.read_header(pair.lr)
    (height, width), lr_size = ((header.height, header.width) for header in headers)
    if lr_size == (height, width) and scale > 1:
        raise UserError(
            f"{pair.lr}: has the size of its HR image, {_size(lr_size)} pixels; expected "
            f"{_size((height // scale, width // scale))} at x{scale}: do the HR images lie in the LR folder?"
        )
    if lr_size != (height // scale, width // scale):
        raise UserError(
            f"{pair.lr}: {_size(lr_size)} pixels do not fit {pair.hr.name}'s {_size((height, width))} at x{scale}: "
            f"expected {_size((height // scale, width // scale))}; remove the LR image to have it made from HR"
        )
    return replace(pair, size=(height, width), headers=headers)


def log_headers(image_set: ImageSet) -> None:
    """Says once of the whole set what of its files is not in the pixels that are taken."""
    own = image_set.own
    said = {
        "hold several frames, of which the first is taken": lambda header: header.frames,
        f"have an EXIF orientation, which is {'applied' if own else 'ignored: the stored pixels are taken'}": (
            lambda header: header.orientation > 1
        ),
        f"have a colour profile, which is {'kept in the results' if own else 'ignored'}": lambda header: header.profile,
    }
    for words, applies in said.items():
        names = [pair.name for pair in image_set.pairs for header in pair.headers if applies(header)]
        if names:
            few = ", ".join(printable(name) for name in dict.fromkeys(names[:5]))
            log.info("%s: %d files %s: %s%s", image_set.name, len(names), words, few, " …" * (len(names) > 5))


def pair_up(
    hr_paths: list[Path],
    lr_folder: Path,
    scale: int,
    n_threads: int,
    base: Path | None = None,
    low: pairing.LowImages | None = None,
) -> list[Pair]:
    """Pairs of LR and HR images (`match`), whose sizes fit. Missing LR images are made, once. The log says which LR
    images there are, and how many were made.

    Raises:
        UserError: for a pair whose sizes do not fit, an unreadable file, or an LR folder that cannot be written.
    """
    folder = lr_folder / f"X{scale}"
    pairs = match(hr_paths, lr_folder, scale, base, low)
    missing = [pair for pair in pairs if not pair.lr.exists()]
    if missing:
        log.info("%s: making %d missing LR images (MATLAB bicubic, x%d) from HR", folder, len(missing), scale)
        try:
            files.for_each(
                lambda pair: make_lr(pair, files.read_image(pair.hr), scale),
                missing,
                n_threads=n_threads,
                title=f"LR x{scale}",
            )
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                longest = max((pair.lr for pair in missing), key=lambda path: len(os.fsencode(path.name)))
                raise UserError(too_long(longest)) from None
            raise UserError(
                f"{folder}: cannot write LR images ({error.strerror}): copy the set to a disk that can be written "
                "and name it with --dir_data, or put the LR images there"
            ) from None
    pairs = [checked(pair, scale) for pair in pairs]
    log.info(
        "HR images: %s; LR x%d images: %s%s",
        folders_of(pair.hr for pair in pairs),
        scale,
        folders_of(pair.lr for pair in pairs),
        f" ({len(missing)} of them made now)" if missing else "",
    )
    return pairs


def too_long(path: Path) -> str:
    """What is wrong with the name of a file that is to be made, and what to do."""
    return (
        f"{printable(path)}: this name of {len(os.fsencode(path.name))} bytes is too long for the disk, which usually "
        "takes 255: shorten the name of the image that it is made of"
    )


def cached(image_set: ImageSet, root: Path, *, reset: bool, n_threads: int) -> ImageSet:
    """The same set, opened through decoded .npy copies below `root`/bin, which are made where missing or outdated.

    With `reset` all of them are made anew. Where they cannot be written the set is returned as it was, with a line
    in the log.
    """
    paths = [path for pair in image_set.pairs for path in (pair.lr, pair.hr)]
    caches = {path: files.cache_path(root, path) for path in paths}
    stale = [path for path in paths if reset or not files.is_fresh(caches[path], path)]
    if stale:
        try:
            log.info("%s: decoding %d images into %s", image_set.name, len(stale), root / "bin")
            begun = time.perf_counter()
            files.for_each(
                lambda path: files.convert(path, caches[path]), stale, n_threads=n_threads, title=image_set.name
            )
            seconds = time.perf_counter() - begun
            log.info(
                "%s: decoded %d images in %.1f s, %.0f a second",
                image_set.name,
                len(stale),
                seconds,
                len(stale) / seconds,
            )
        except OSError as error:
            log.warning(
                "%s: cannot write decoded copies into %s (%s): decoding the images each time, as with --ext img",
                image_set.name,
                root / "bin",
                too_long(max(caches.values(), key=lambda path: len(os.fsencode(path.name))))
                if error.errno == errno.ENAMETOOLONG
                else error.strerror,
            )
            return image_set
    return replace(image_set, cache_root=root)


class TrainSet(Dataset):
    """Aligned random patches. Sample number k (any k >= 0) is a pure function of k and the seed.

    An item is (lr, hr, name): uint8 tensors (n_colors, p/scale, p/scale) and (n_colors, p, p) for HR patches of side
    p = `patch_size`, and the image's name. Each pass of k over the number of images takes every image once, in an
    order of its own. Loaders take whole batches (`__getitems__`, `unpack`).

    Args:
        weights: shares of the sets, one positive number for each: an image is then drawn from a set that is drawn by
            these. None: every image counts the same.
        degradation: how LR patches come from HR, if not by the set's LR images.

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
        self._maps: dict[Path, np.ndarray] = {}
        for pair, _ in self.images:
            if min(pair.size) // scale * scale < patch_size:
                raise UserError(
                    f"{pair.hr}: {_size(pair.size)} pixels are smaller than a patch of {patch_size}: "
                    "lower --patch_size or remove the image"
                )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        block, names = self.__getitems__([k])
        lr, hr = self.unpack(block)
        return lr[0], hr[0], names[0]

    def __getitems__(self, numbers: Sequence[int]) -> tuple[torch.Tensor, list[str]]:
        """The samples of these numbers as one block of bytes, which `unpack` takes apart, and their images' names."""
        block, shared = torch.empty(len(numbers) * self._sample_bytes(), dtype=torch.uint8), True
        if get_worker_info() is not None:
            try:
                block.share_memory_()  # written where the other process reads it
            except RuntimeError:  # a container's small /dev/shm is full
                shared = False
        lr, hr = (part.numpy() for part in self.unpack(block))
        names = [self._cut(k, lr[position], hr[position]) for position, k in enumerate(numbers)]
        return (block if shared else block.numpy()), names  # an array goes through the pipe itself

    def unpack(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The LR and HR patches of a batch, (N, n_colors, p/scale, p/scale) and (N, n_colors, p, p), as views of it."""
        side = self.patch_size // self.scale
        count = block.numel() // self._sample_bytes()
        lr, hr = block.split([count * self.n_colors * side**2, count * self.n_colors * self.patch_size**2])
        return lr.view(count, -1, side, side), hr.view(count, -1, self.patch_size, self.patch_size)

    def _sample_bytes(self) -> int:
        return self.n_colors * ((self.patch_size // self.scale) ** 2 + self.patch_size**2)

    def _cut(self, k: int, lr_patch: np.ndarray, hr_patch: np.ndarray) -> str:
        """Writes sample number k into two arrays (n_colors, side, side); returns its image's name."""
        random = np.random.default_rng((self.seed, 1, k))
        if self.shares is None:
            # A fresh permutation for each pass costs microseconds even for 100,000 images spread over their samples.
            turn, position = divmod(k, len(self.images))
            index = self._order(turn)[position]
        else:
            index = random.integers(*self.spans[np.searchsorted(self.shares, random.random(), side="right")])
        pair, image_set = self.images[index]

        lr, hr = self._pixels(image_set, pair.lr), self._pixels(image_set, pair.hr)
        side = self.patch_size // self.scale
        top = int(random.integers(lr.shape[0] - side + 1))
        left = int(random.integers(lr.shape[1] - side + 1))
        turns, mirrored = (int(random.integers(4)), bool(random.integers(2))) if self.augment else (0, False)

        box = slice(top, top + side), slice(left, left + side)
        hr_box = tuple(slice(self.scale * part.start, self.scale * part.stop) for part in box)
        degraded = self.degradation.window(lr, hr, box, self.scale, random)
        for patch, target in ((degraded, lr_patch), (hr[hr_box], hr_patch)):
            _copy(_turned(np.ascontiguousarray(patch), turns, mirrored), target)
        return pair.name

    def _pixels(self, image_set: ImageSet, path: Path) -> np.ndarray:
        """The image's pixels. Maps are kept, the oldest give way; decoded images would fill the memory."""
        if image_set.cache_root is None:
            return image_set.open(path)
        if path not in self._maps:
            if len(self._maps) >= MAPS:
                del self._maps[next(iter(self._maps))]
            self._maps[path] = image_set.open(path)
        return self._maps[path]

    def __getstate__(self) -> dict:
        return vars(self) | {"_maps": {}}  # a process that is spawned maps for itself

    def _order(self, turn: int) -> np.ndarray:
        if getattr(self, "_turn", None) != turn:
            self._turn, self._permutation = turn, np.random.default_rng((self.seed, 0, turn)).permutation(len(self))
        return self._permutation


class TestSet(Dataset):
    """Whole images: an item is (lr, hr, name), uint8 (n_colors, h, w) and (n_colors, scale * h, scale * w).

    HR is cropped to scale times LR's size, from the bottom and the right; it is None where there is no ground truth.

    Args:
        degradation: how LR comes from HR, where there is HR; what is random depends on `seed` and the image's name.
    """

    __test__ = False  # no test class, whatever pytest thinks of its name

    def __init__(
        self,
        image_set: ImageSet,
        *,
        scale: int,
        n_colors: int = 3,
        degradation: Degradation = BICUBIC,
        seed: int = 1,
    ):
        self.name, self.pairs, self.own, self._open = image_set.name, image_set.pairs, image_set.own, image_set.open
        self.metadata: dict[str, dict[str, bytes]] = {}  # of own pictures, by name, as `image.write_png` takes it
        self.scale, self.n_colors = scale, n_colors
        self.degradation, self.seed = degradation, seed

    @property
    def label(self) -> str:
        """Name and scale, as in "Set5 x4"."""
        return f"{self.name} x{self.scale}"

    @property
    def scored(self) -> bool:
        """Whether there is ground truth to score against."""
        return all(pair.hr is not None for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None, str]:
        lr, hr, name = self.pixels(index)
        return to_tensor(lr, self.n_colors), None if hr is None else to_tensor(hr, self.n_colors), name

    def pixels(self, index: int) -> tuple[np.ndarray, np.ndarray | None, str]:
        """The same with the files' own channels, uint8 (h, w, 1 or 3) and (scale * h, scale * w, 1 or 3)."""
        pair = self.pairs[index]
        if self.own:
            lr, self.metadata[pair.name] = files.read_own(pair.lr)
        else:
            lr = self._open(pair.lr)
        if pair.hr is None:
            return lr, None, pair.name
        height, width = (self.scale * side for side in lr.shape[:2])
        hr = self._open(pair.hr)[:height, :width]
        random = np.random.default_rng((self.seed, 2, zlib.crc32(pair.name.encode())))
        return self.degradation.whole(lr, hr, self.scale, random), hr, pair.name


def _turned(pixels: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    """`np.rot90` by `turns` quarters, then mirrored left to right: a view, without the checks that take longer."""
    if turns % 2:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if turns in (1, 2) else 1
    right = -1 if (turns in (2, 3)) != mirrored else 1
    return pixels[::down, ::right]


def _copy(pixels: np.ndarray, target: np.ndarray) -> None:
    """`to_tensor` into an array that is there, in one pass over the pixels where colours need no arithmetic."""
    if len(target) == 1 and pixels.shape[2] == 3:
        target[:] = to_tensor(pixels, 1).numpy()
        return
    for channel, plane in enumerate(target):
        plane[:] = pixels[..., channel % pixels.shape[2]]


def to_tensor(pixels: np.ndarray, n_colors: int) -> torch.Tensor:
    """uint8 (H, W, 1 or 3) -> uint8 (n_colors, H, W): gray is repeated to RGB; RGB becomes luma Y, rounded."""
    tensor = torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)
    if n_colors == 3:
        return tensor.expand(3, -1, -1).contiguous()
    if tensor.shape[0] == 3:
        tensor = rgb_to_y(tensor).round().to(torch.uint8)
    return tensor.contiguous()


def _size(shape) -> str:
    return f"{shape[1]}x{shape[0]}"
