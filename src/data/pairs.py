"""Pairs of HR and LR images: found or made, their sizes checked, opened as files or through decoded copies."""

import errno
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from data import cache, matching, resize
from data.folders import Located
from data.image import Header, Size, list_images, name_too_long, read_header, read_image, read_size, write_png
from data.parallel import for_each
from runtime.errors import UserError, printable

log = logging.getLogger("krgn")


@dataclass(frozen=True)
class Pair:
    """One image of a set.

    Args:
        hr: None for an image without ground truth.
        size: of HR; None until it is read.
        headers: of both files, as far as they were read.
    """

    name: str
    lr: Path
    hr: Path | None
    size: Size | None = None
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """Named pairs.

    Args:
        cache_root: the set's folder if its decoded copies are used; None if the files are decoded each time.
        own: whether they are a user's own pictures, which are turned upright and whose metadata the results get.
    """

    name: str
    pairs: list[Pair]
    cache_root: Path | None = None
    own: bool = False

    def open(self, path: Path) -> np.ndarray:
        """The pixels of one of the set's files, uint8 (H, W, C).

        Raises:
            UserError: if the file or its decoded copy cannot be read.
        """
        if self.cache_root is None:
            return read_image(path)
        return cache.open_cached(cache.cache_path(self.cache_root, path))


def pair_up(located: Located, scale: int, *, n_threads: int) -> list[Pair]:
    """The pairs of a set (`match`), with their sizes. Missing LR images are made, once.

    The log says which LR images were used, and how many were made.

    Raises:
        UserError: for a pair whose sizes do not fit, an unreadable file, or an LR folder that cannot be written.
    """
    pairs = match(located, scale)
    missing = [pair for pair in pairs if not pair.lr.exists()]
    if missing:
        _make_missing(missing, located.lr_folder / f"X{scale}", scale, n_threads)
    pairs = [checked(pair, scale) for pair in pairs]
    log.info(
        "HR images: %s; LR x%d images: %s%s",
        folders_of(pair.hr for pair in pairs),
        scale,
        folders_of(pair.lr for pair in pairs),
        f" ({len(missing)} of them made now)" if missing else "",
    )
    return pairs


def match(located: Located, scale: int, *, strict: bool = True) -> list[Pair]:
    """Pairs the HR images of a set with their LR images, as `matching.choose` finds them in the set's folder.

    An HR image without one is paired with `lr_folder`/X4/`name`x4.png, which is still to be made.

    Args:
        strict: see `matching.choose`.

    Raises:
        UserError: for two HR images of one name, and for LR images that are not understood.
    """
    folder = located.lr_folder / f"X{scale}"
    there = {path.stem: path for path in list_images(folder)} if folder.is_dir() else {}
    names = {path: located.name_of(path) for path in located.hr}
    chosen = {path: there[f"{name}x{scale}"] for path, name in names.items() if f"{name}x{scale}" in there}
    if located.low is not None:
        choice = matching.choose(located.low, located.hr, chosen, scale, read_size, strict=strict)
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
    """The folders of some files, each with its number of files, as in "6 of DIV2K/LR"."""
    counts = Counter(path.parent for path in paths).most_common()
    more = f" and {len(counts) - 3} folders more" if len(counts) > 3 else ""
    return ", ".join(f"{count} of {printable(folder)}" for folder, count in counts[:3]) + more


def _make_missing(pairs: list[Pair], folder: Path, scale: int, n_threads: int) -> None:
    """Makes the LR images of pairs, in `folder`.

    Raises:
        UserError: if HR cannot be read, or the folder cannot be written.
    """
    log.info("%s: making %d missing LR images (MATLAB bicubic, x%d) from HR", folder, len(pairs), scale)
    try:
        for_each(
            lambda pair: make_lr(pair, read_image(pair.hr), scale), pairs, n_threads=n_threads, title=f"LR x{scale}"
        )
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            longest = max((pair.lr for pair in pairs), key=lambda path: len(os.fsencode(path.name)))
            raise UserError(name_too_long(longest)) from None
        raise UserError(
            f"{folder}: cannot write LR images ({error.strerror}): copy the set to a disk that can be written "
            "and name it with --dir_data, or put the LR images there"
        ) from None


def make_lr(pair: Pair, pixels: np.ndarray, scale: int) -> None:
    """Writes the pair's LR image, made with MATLAB's bicubic recipe (`resize`) from HR's `pixels`, uint8 (H, W, C).

    Raises:
        UserError: if HR is smaller than one LR pixel.
        OSError: if the file cannot be written.
    """
    if min(pixels.shape[:2]) < scale:
        size = Size(*pixels.shape[:2])
        raise UserError(f"{pair.hr}: {size} pixels are too few for x{scale}: remove the image")
    write_png(pair.lr, resize.downscale(pixels, scale))


def checked(pair: Pair, scale: int) -> Pair:
    """The pair with HR's size and the headers of both files.

    Raises:
        UserError: if the sizes of LR and HR do not fit, or a file is unreadable.
    """
    headers = read_header(pair.hr), read_header(pair.lr)
    hr, lr = (header.size for header in headers)
    expected = Size(hr.height // scale, hr.width // scale)
    if lr == hr and scale > 1:
        raise UserError(
            f"{pair.lr}: has the size of its HR image, {lr} pixels; expected {expected} at x{scale}: do the HR images "
            "lie in the LR folder?"
        )
    if lr != expected:
        raise UserError(
            f"{pair.lr}: {lr} pixels do not fit {pair.hr.name}'s {hr} at x{scale}: expected {expected}; remove the LR "
            "image to have it made from HR"
        )
    return replace(pair, size=hr, headers=headers)


def cached(image_set: ImageSet, root: Path, *, reset: bool, n_threads: int) -> ImageSet:
    """The same set, opened through decoded copies below root/bin, which are made where missing or outdated.

    With `reset` all of them are made again. Where they cannot be written, the set is returned unchanged, with a warning
    in the log.

    Raises:
        UserError: if an image cannot be decoded.
    """
    paths = [path for pair in image_set.pairs for path in (pair.lr, pair.hr)]
    if not cache.fill(paths, root, name=image_set.name, reset=reset, n_threads=n_threads):
        return image_set
    return replace(image_set, cache_root=root)


def log_headers(image_set: ImageSet) -> None:
    """Logs once for the whole set what its files declare that the decoded pixels do not show."""
    own = image_set.own
    remarks = {
        "hold several frames, of which the first is taken": lambda header: header.frames,
        f"have an EXIF orientation, which is {'applied' if own else 'ignored: the stored pixels are taken'}": (
            lambda header: header.orientation > 1
        ),
        f"have a colour profile, which is {'kept in the results' if own else 'ignored'}": lambda header: header.profile,
    }
    for words, applies in remarks.items():
        names = [pair.name for pair in image_set.pairs for header in pair.headers if applies(header)]
        if names:
            few = ", ".join(printable(name) for name in dict.fromkeys(names[:5]))
            log.info("%s: %d files %s: %s%s", image_set.name, len(names), words, few, " …" * (len(names) > 5))
