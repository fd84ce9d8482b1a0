"""Opens image files safely: regular files only, nothing that does not fit into memory, every failure in one line.

A picture may come from anywhere. `opened` turns whatever goes wrong with a file into a `UserError` that names it,
`check_room` compares its declared size with the free memory before anything is decoded, and `pillow` hands it to Pillow
without Pillow's warnings, its limit on pixels, and the formats that it would pass to other programs.
"""

import errno
import functools
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from data.listing import NO_PICTURES
from model.files import open_regular
from model.memory import available_memory
from runtime.errors import UserError, printable

# Tried in this order, before the other formats that Pillow reads.
USUAL = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

BYTES_PER_PIXEL = 12  # the most that decoding takes: Pillow's image in RGB, its copy as bytes, and parts of that
SURE_TO_FIT = 2**24  # pixels or bytes that are never checked
ROOM = 2**32  # bytes of memory assumed to be free where the system does not report it


@contextmanager
def opened(path: Path | str, content: bytes | None = None, *, paired: bool = True) -> Iterator[BinaryIO]:
    """Opens a regular image file for reading.

    Args:
        content: the file's bytes, for a member of an archive; `path` then only names it in errors.
        paired: whether the message for a broken file speaks of an LR or HR image that belongs to it.

    Raises:
        UserError: one line that names the file, if it cannot be opened or if anything done with it inside fails.
    """
    try:
        with io.BytesIO(content) if content is not None else open_regular(path) as file:
            yield file
    except UserError as error:
        raise UserError(printable(error)) from None
    except FileNotFoundError:
        raise UserError(f"{printable(path)}: there is no such image") from None
    except Exception as error:  # decoders raise many types for a broken file: OSError, SyntaxError, struct.error …
        raise UserError(f"{printable(path)}: {_complaint(error, paired)}") from None


def _complaint(error: Exception, paired: bool) -> str:
    """What is wrong with an image, and what to do."""
    if isinstance(error, _TooLarge):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is too little memory to decode it: free memory, or cut the image into parts"
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE):
        return f"cannot be read ({error.strerror}): raise the limit on open files (ulimit -n 1024) or lower --n_threads"
    if number:
        return f"cannot be read ({error.strerror}): check the path and its permissions"
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image of a known format"
    partner = " together with its LR/HR partner" if paired else ""
    return f"cannot be decoded ({printable(reason)}): replace the file, or remove it{partner}"


class _TooLarge(ValueError):
    """An image that does not fit into memory."""


def check_room(file: BinaryIO, width: int = 0, height: int = 0) -> None:
    """Checks that the file, and an image of `width` x `height` pixels while it is decoded, fit into memory.

    Leaves the file at its beginning.

    Raises:
        ValueError: if they do not; the message gives the memory needed and the memory free.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if max(size, width * height) <= SURE_TO_FIT:
        return
    room = available_memory()
    room = ROOM if room is None else room
    for needed, what in ((size, f"its {size:,} bytes"), (BYTES_PER_PIXEL * width * height, f"{width}x{height} pixels")):
        if needed > room:
            raise _TooLarge(
                f"{what} need {needed / 2**30:.1f} GiB of memory to be decoded, {room / 2**30:.1f} are free: "
                "free memory, or cut the image into parts"
            )


class _Shared:
    """A context that many threads enter at once: the first one changes the process's settings, the last restores them.

    `warnings`, Pillow's module variables and the file descriptor of standard error belong to the whole process.
    """

    def __init__(self, settings):
        self._settings, self._lock, self._users, self._stack = settings, threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._stack.enter_context(self._settings())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._stack.close()


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are decoded: no vector drawings, some of which Pillow passes to programs such as Ghostscript."""
    Image.init()  # loads its plugins
    return USUAL + tuple(kind for kind in Image.ID if kind not in NO_PICTURES | set(USUAL))


@_Shared
@contextmanager
def pillow_settings() -> Iterator[None]:
    """Pillow neither warns nor logs, leaves the number of pixels to `check_room`, and leaves TIFF to libtiff.

    Pillow's own reader of uncompressed TIFF decodes planes of 16 bits wrongly.
    """
    logger = logging.getLogger("PIL")
    before = logger.level, Image.MAX_IMAGE_PIXELS, TiffImagePlugin.READ_LIBTIFF
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        Image.MAX_IMAGE_PIXELS, TiffImagePlugin.READ_LIBTIFF = None, True
        try:
            yield
        finally:
            logger.setLevel(before[0])
            Image.MAX_IMAGE_PIXELS, TiffImagePlugin.READ_LIBTIFF = before[1:]


@_Shared
@contextmanager
def silence() -> Iterator[None]:
    """Discards what C libraries write to standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def pillow(file: BinaryIO) -> Iterator[Image.Image]:
    """The open file as a Pillow image, with its header read and its declared size checked; nothing is decoded yet.

    Raises:
        ValueError: if it does not fit into memory (`check_room`).
        Exception: what Pillow raises for a broken file; `opened` reports it.
    """
    with pillow_settings():
        check_room(file)
        with Image.open(file, formats=formats()) as image:
            position = file.tell()
            check_room(file, image.width, image.height)
            file.seek(position)
            yield image
