"""Decoded copies of images, <set>/bin/<path below the set>.npy, read as memory maps: a patch costs only its own bytes.

A copy has its image's time of modification, which is how an outdated one is recognised.
"""

import errno
import logging
import math
import os
import time
from pathlib import Path

import numpy as np
import torch

from data.image import name_too_long, read_image, read_size
from data.parallel import for_each
from model.files import open_regular
from runtime.errors import UserError
from runtime.files import atomic_path

log = logging.getLogger("krgn")


def cache_path(root: Path, image: Path, kind: str = "") -> Path:
    """Where the decoded copy of an image of the set at `root` lies: root/bin/<path below root>.npy.

    Args:
        kind: a folder below bin/, for what is made from the image instead of a copy of it.
    """
    return root / "bin" / kind / image.relative_to(root).with_name(image.name + ".npy")


def is_fresh(cache: Path, image: Path, scale: int = 1) -> bool:
    """Whether the decoded copy exists, is complete, and has the image's size, times `scale`, and the time that `write`
    gave it.

    A copy that is newer is outdated too: the image may have been replaced by an older one, from an archive.
    """
    try:
        # Some file systems store microseconds or seconds only.
        time_ns = image.stat().st_mtime_ns
        if cache.stat().st_mtime_ns not in (time_ns, time_ns // 10**3 * 10**3, time_ns // 10**9 * 10**9):
            return False
        size = read_size(image)
        return open_cached(cache).shape[:2] == (scale * size.height, scale * size.width)
    except (FileNotFoundError, NotADirectoryError, UserError):
        return False


def convert(image: Path, cache: Path) -> None:
    """Decodes `image` into `cache`, atomically: several processes may do the same at once.

    Raises:
        UserError: if the image cannot be decoded.
        OSError: if the copy cannot be written.
    """
    time_ns = image.stat().st_mtime_ns  # before the pixels are read: a change in between makes the copy outdated
    write(cache, read_image(image), time_ns)


def write(cache: Path, pixels: np.ndarray, time_ns: int) -> None:
    """Writes uint8 (H, W, C) as a decoded copy, with the time of modification of the image that it belongs to.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_path(cache) as temporary:
        with open(temporary, "wb") as file:
            np.save(file, pixels, allow_pickle=False)
        os.utime(temporary, ns=(time_ns, time_ns))


def open_cached(cache: Path) -> np.ndarray:
    """The decoded copy as a read-only memory map, uint8 (H, W, C): slicing reads only that part of the file.

    The file does not stay open, as it would with NumPy's own maps, whose number the limit on open files would bound.

    Raises:
        UserError: if the file is missing, damaged or not a regular file.
    """
    try:
        with open_regular(cache) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the .npy format, expected 1.0")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset, there = file.tell(), os.fstat(file.fileno()).st_size
        if dtype != np.uint8 or fortran or len(shape) != 3 or shape[2] not in (1, 3) or not math.prod(shape):
            raise ValueError(f"{dtype} of shape {shape}, expected uint8 (H, W, 1 or 3)")
        size = offset + math.prod(shape)
        if there < size:
            raise ValueError(f"{there} bytes, expected {size}")
        try:
            pixels = torch.from_file(str(cache), size=size, dtype=torch.uint8).numpy()[offset:].reshape(shape)
        except UnicodeError:  # torch takes only paths that are valid UTF-8
            pixels = np.load(cache, mmap_mode="r", allow_pickle=False)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{cache}: is not a decoded image ({reason}): make it again with --ext sep_reset") from None
    pixels.flags.writeable = False  # the map is private: writing to it would not reach the file
    return pixels


def fill(paths: list[Path], root: Path, *, name: str, reset: bool, n_threads: int) -> bool:
    """Makes the decoded copies of a set's images below root/bin, where they are missing or outdated.

    Args:
        name: the set's, for the log and the progress bar.
        reset: make all of them again.

    Returns:
        Whether all copies exist: False, with a warning in the log, where they cannot be written.

    Raises:
        UserError: if an image cannot be decoded.
    """
    caches = {path: cache_path(root, path) for path in paths}
    stale = [path for path in paths if reset or not is_fresh(caches[path], path)]
    if not stale:
        return True
    log.info("%s: decoding %d images into %s", name, len(stale), root / "bin")
    begun = time.perf_counter()
    try:
        for_each(lambda path: convert(path, caches[path]), stale, n_threads=n_threads, title=name)
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.ENAMETOOLONG:
            reason = name_too_long(max(caches.values(), key=lambda path: len(os.fsencode(path.name))))
        log.warning(
            "%s: cannot write decoded copies into %s (%s): decoding the images each time, as with --ext img",
            name,
            root / "bin",
            reason,
        )
        return False
    seconds = time.perf_counter() - begun
    log.info("%s: decoded %d images in %.1f s, %.0f a second", name, len(stale), seconds, len(stale) / seconds)
    return True
