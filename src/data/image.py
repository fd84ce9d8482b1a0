"""Image files: decoded to one form, written, and cached as memory-mapped .npy.

Every image becomes uint8 (H, W, C), C = 1 (gray) or 3 (RGB):

- palette and other colour models are turned to RGB; black-and-white is gray with 0 and 255;
- alpha is dropped: the stored colours count, nothing is blended;
- of 16-bit values the high byte is taken (value // 256);
- of several frames the first is taken; colour profiles change nothing;
- the EXIF orientation is ignored, which keeps data sets pixel for pixel, but for a user's own pictures (`read_own`).

Every image file is opened by `_opened`, so that whatever is wrong with one is told in one line.
"""

import errno
import functools
import io
import itertools
import logging
import math
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT
from tqdm import tqdm

from data.listing import NO_PICTURES, scan
from runtime.errors import UserError, printable
from runtime.files import atomic_path, open_regular
from runtime.hardware import available_memory

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Tried in this order, before what else Pillow reads.
USUAL = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

BYTES_PER_PIXEL = 12  # that decoding takes at most: Pillow's own image in RGB, its copy as bytes, and parts of that
SURE_TO_FIT = 2**24  # pixels
ROOM = 2**32  # bytes of memory that are thought to be free where the system does not tell


def list_images(folder: Path, *, nested: bool = False) -> list[Path]:
    """The image files right in `folder`, or also in the folders below it, by name; see `listing.scan`.

    Raises:
        UserError: if a folder cannot be read, or a name is no text.
    """
    return scan(folder, nested=nested).images


@contextmanager
def _opened(path: Path | str, content: bytes | None = None) -> Iterator[BinaryIO]:
    """An image file for reading, a regular one; `content` as in `read_image`.

    Raises:
        UserError: one line that names the file, if it cannot be opened or whatever is done with it inside fails.
    """
    try:
        with io.BytesIO(content) if content is not None else open_regular(path) as file:
            yield file
    except UserError as error:
        raise UserError(printable(error)) from None
    except FileNotFoundError:
        raise UserError(f"{printable(path)}: there is no such image") from None
    except Exception as error:  # decoders raise many types for a broken file: OSError, SyntaxError, struct.error …
        raise UserError(f"{printable(path)}: {_complaint(error)}") from None


def _complaint(error: Exception) -> str:
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
        reason = "no image of a known format"
    return f"cannot be decoded ({printable(reason)}): replace the file, or remove it together with its LR/HR partner"


class _TooLarge(ValueError):
    """An image that does not fit into memory."""


def _check_room(file: BinaryIO, width: int = 0, height: int = 0) -> None:
    """Raises `_TooLarge` if the file, or an image of this size while it is decoded, does not fit into memory."""
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
    """A context for many threads at once: the first to enter makes a setting of the process, the last takes it back."""

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
    """The formats that are decoded: no drawings, some of which Pillow hands to programs such as Ghostscript."""
    Image.init()  # loads its plugins
    return USUAL + tuple(kind for kind in Image.ID if kind not in NO_PICTURES | set(USUAL))


@_Shared
@contextmanager
def our_pillow() -> Iterator[None]:
    """Pillow neither warns nor logs, leaves the number of pixels to `_check_room`, and TIFF to libtiff: its own reader
    of uncompressed TIFF takes planes of 16 bits for something else."""
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
    """Nothing that a library writes to standard error by itself gets there."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _pillow(file: BinaryIO) -> Iterator[Image.Image]:
    """The file as Pillow's image: its header is read, and what it says of its size fits into memory."""
    with our_pillow():
        _check_room(file)
        with Image.open(file, formats=formats()) as image:
            position = file.tell()
            _check_room(file, image.width, image.height)
            file.seek(position)
            yield image


@dataclass(frozen=True)
class Header:
    """What an image file says of itself: its stored size, how it is to be turned (EXIF's 1 to 8, 1: not at all), and
    whether it has a colour profile, and further frames."""

    height: int
    width: int
    orientation: int = 1
    profile: bool = False
    frames: bool = False


def read_header(path: Path | str, content: bytes | None = None) -> Header:
    """The header of an image file; `content` as in `read_image`.

    Raises:
        UserError: if the file is missing or no image.
    """
    with _opened(path, content) as file:
        if header := _png_header(file.read(33)):
            width, height, *_ = header
            before = dict(itertools.takewhile(lambda chunk: chunk[0] != b"IDAT", _png_chunks(file)))
            turned = _orientation(before[b"eXIf"]) if b"eXIf" in before else 1
            return Header(height, width, turned, b"iCCP" in before, b"acTL" in before)
        file.seek(0)
        with _pillow(file) as image:
            width, height = image.size
            turned = _orientation(image)
            if image.format == "TIFF" and turned >= 5:  # Pillow says the size of the upright picture
                width, height = height, width
            # Of a layered picture, all layers are shown at once.
            frames = getattr(image, "is_animated", False) and image.format != "PSD"
            return Header(height, width, turned, bool(image.info.get("icc_profile")), frames)


def read_size(path: Path | str, content: bytes | None = None) -> tuple[int, int]:
    """(height, width) from the file's header alone; `content` as in `read_image`.

    Raises:
        UserError: if the file is missing or no image.
    """
    if content is None:
        with _opened(path) as file:
            header = _png_header(file.read(33))
    else:
        header = _png_header(content)
    if header:
        return header[1], header[0]
    found = read_header(path, content)
    return found.height, found.width


def _orientation(image: Image.Image | bytes) -> int:
    """The EXIF orientation of an image, or of EXIF's bytes, 1 to 8; 1 if nothing or nonsense is said."""
    try:
        if isinstance(image, bytes):
            exif = Image.Exif()
            with our_pillow():
                exif.load(image)
        else:
            exif = image.getexif()
        found = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, of an image that may be whole
        return 1
    return found if found in range(1, 9) else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C) turned upright, as EXIF's orientation says."""
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    down = -1 if orientation in (3, 4, 7, 8) else 1
    right = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::down, ::right])


def _png_header(content: bytes) -> tuple[int, int, int, int, int] | None:
    """(width, height, bits, colour type, interlacing) of a PNG, None if there is no whole header.

    It says the size in less time than Pillow, for 100,000 images.
    """
    chunk = content[12:29]
    if content[:8] != PNG_SIGNATURE or chunk[:4] != b"IHDR" or content[29:33] != zlib.crc32(chunk).to_bytes(4, "big"):
        return None
    return struct.unpack(">IIBBxxB", chunk[4:])


def read_image(path: Path | str, content: bytes | None = None) -> np.ndarray:
    """Decodes an image file into uint8 (H, W, C) as this module's docstring says.

    Args:
        content: the file's bytes, of a member of an archive; `path` then only names it in errors.

    Raises:
        UserError: if the file is missing, broken, no regular file, does not fit into memory, or holds other values than
            whole numbers of up to 16 bits.
    """
    with _opened(path, content) as file:
        pixels = _fast_png(file)
        if pixels is None:
            _check_png(file)
            with _pillow(file) as image:
                turned = _orientation(image) if image.format == "TIFF" else 1
                pixels = _pixels(image)
        else:
            turned = 1
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return _turned(pixels, {6: 8, 8: 6}.get(turned, turned)) if turned > 1 else pixels  # Pillow turns TIFF upright


def read_own(path: Path) -> tuple[np.ndarray, dict[str, bytes]]:
    """A user's own picture, turned upright: uint8 (H, W, C), and its colour profile and EXIF as `write_png` takes them.

    Raises:
        UserError: as in `read_image`.
    """
    with _opened(path) as file:
        _check_png(file)
        with _pillow(file) as image:
            pixels = _pixels(image)
            pixels = pixels.reshape(*pixels.shape[:2], -1)
            turned = _orientation(image)  # of TIFF nothing is left to do
            kept = {"icc_profile": image.info.get("icc_profile"), "exif": _descriptive_exif(image)}
    return _turned(pixels, turned) if turned > 1 else pixels, {name: value for name, value in kept.items() if value}


# EXIF that describes not the picture but the file that it lay in: size, layout, orientation, thumbnail, whole other
# blocks of metadata.
_OF_THE_FILE = {*range(0xFE, 0x104), 0x106, 0x10A, *range(0x111, 0x11A), 0x11C, 0x11D, *range(0x120, 0x126), 0x12D}
_OF_THE_FILE |= {0x13D, *range(0x140, 0x15C), *range(0x200, 0x215), 0x2BC, 0x83BB, 0x8649, 0x8773, 0xA002, 0xA003}


def _descriptive_exif(image: Image.Image) -> bytes:
    """What EXIF says of the picture, without its orientation and size; nothing if it is damaged."""
    try:
        found, kept = image.getexif(), Image.Exif()
        blocks = {ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}
        for tag, value in found.items():
            if tag not in _OF_THE_FILE | blocks:
                kept[tag] = value
        for tag in blocks & found.keys():
            block = {name: value for name, value in found.get_ifd(tag).items() if name not in _OF_THE_FILE}
            if block:
                kept[tag] = block
        return kept.tobytes() if len(kept) else b""
    except Exception:  # Pillow raises many types for it
        return b""


def read_bytes(path: Path) -> bytes:
    """The whole content of an image file.

    Raises:
        UserError: if it is missing, no regular file, or does not fit into memory.
    """
    with _opened(path) as file:
        _check_room(file)
        return file.read()


def _pixels(image: Image.Image) -> np.ndarray:
    """The pixels of Pillow's image, uint8 (H, W) or (H, W, 3)."""
    tags = getattr(image, "tag_v2", {})  # TIFF's
    bits, signed = tags.get(BITSPERSAMPLE, (8,))[0], 2 in tags.get(SAMPLEFORMAT, ())
    if image.mode == "F" or (signed and bits <= 16):
        kind = "floating-point" if image.mode == "F" else "signed"
        raise ValueError(f"{kind} pixels, expected 8 or 16 bits, unsigned")
    codec, _, offset, args = image.tile[0] if len(image.tile) == 1 else (None, None, 0, ())
    if codec in ("ppm", "ppm_plain") and image.mode == "RGB" and args[-1] > 255:
        return _deep_ppm(image, plain=codec == "ppm_plain", offset=offset, largest=args[-1])
    if image.format == "JPEG2000" and image.mode in ("RGB", "RGBA", "LA") and _jpeg2000_bits(image) > 8:
        raise ValueError("more than 8 bits a colour in JPEG 2000: save it as PNG or TIFF")  # Pillow rounds them
    with silence() if image.format == "TIFF" else nullcontext():  # libtiff prints what it finds wrong
        image.load()
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values of {values.min()} to {values.max()}, expected 0 to 65535 at most")
        values = (values >> (4 if bits == 12 else 8)).astype(np.uint8)
        return 255 - values if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else values  # 0: white is zero
    if args == "LA;16B":  # gray with alpha in a PNG, which Pillow takes for colours
        return np.asarray(image)[..., 0]
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _jpeg2000_bits(image: Image.Image) -> int:
    """The bits of the first colour of a JPEG 2000 image, from the beginning of its code stream; 0 if unknown."""
    position = image.fp.tell()
    image.fp.seek(0)
    beginning = image.fp.read(2**16)
    image.fp.seek(position)
    at = beginning.find(b"\xff\x4f\xff\x51") + 42
    return (beginning[at] & 127) + 1 if 42 <= at < len(beginning) else 0


def _deep_ppm(image: Image.Image, *, plain: bool, offset: int, largest: int) -> np.ndarray:
    """The high bytes of a PPM of more than 8 bits, uint8 (H, W, 3); Pillow rounds."""
    shape = (image.height, image.width, 3)
    image.fp.seek(offset)
    if plain:
        words = re.sub(rb"#[^\r\n]*", b"", image.fp.read()).split()[: math.prod(shape)]
        values = np.array(words, dtype=np.int64)
    else:
        values = np.frombuffer(image.fp.read(2 * math.prod(shape)), ">u2").astype(np.int64)
    if values.size < math.prod(shape):
        raise ValueError("the pixels end early")
    if values.min() < 0 or values.max() > largest:
        raise ValueError(f"values of {values.min()} to {values.max()}, expected 0 to {largest}")
    return (values * 65535 // largest >> 8).astype(np.uint8).reshape(shape)


def _fast_png(file: BinaryIO) -> np.ndarray | None:
    """The usual PNG, 8 bits of gray or RGB, by imagecodecs, in two thirds of Pillow's time; None for anything else.

    Also for a broken file: what is wrong with it is Pillow's to say.
    """
    header = _png_header(file.read(33))
    if header is None:
        return None
    width, height, depth, colours, interlaced = header
    if depth != 8 or colours not in (0, 2) or interlaced:
        return None
    _check_room(file, width, height)
    import imagecodecs  # loads its libraries, which not every run needs

    try:
        # Of its two decoders this one prints nothing.
        pixels = imagecodecs.spng_decode(file.read())
    except Exception:  # its own errors, those of text that is none in them, a build without it
        return None
    return pixels if pixels.dtype == np.uint8 and pixels.shape[2:] == (3,) * (colours == 2) else None


def _check_png(file: BinaryIO) -> None:
    """ValueError if the compressed pixels of a PNG end early: Pillow leaves the rest black without a word."""
    file.seek(0)
    header = _png_header(file.read(33))
    if header is None:
        return
    width, height, depth, colours, interlaced = header
    _check_room(file, width, height)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colours, 0)
    passes = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))  # Adam7
    expected = 0
    for left, across, top, down in passes if interlaced else [(0, 1, 0, 1)]:
        columns, rows = len(range(left, width, across)), len(range(top, height, down))
        expected += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    inflate = zlib.decompressobj()
    for kind, content in _png_chunks(file):
        while kind == b"IDAT" and content and not inflate.eof and expected > 0:
            expected -= len(inflate.decompress(content, 2**20))
            content = inflate.unconsumed_tail
    if expected > 0:
        raise ValueError(f"the pixels end {expected:,} bytes early")


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of a PNG's chunks after the header, to the end or to what is no chunk."""
    file.seek(33)
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        yield head[4:], file.read(int.from_bytes(head[:4], "big"))
        file.seek(4, os.SEEK_CUR)


def write_png(path: Path, pixels: np.ndarray, *, icc_profile: bytes = b"", exif: bytes = b"") -> None:
    """Writes uint8 (H, W, C), C = 1 or 3, as PNG, atomically; a colour profile only where it is one of such pixels."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if icc_profile[16:20] != (b"GRAY" if pixels.shape[2] == 1 else b"RGB "):
        icc_profile = b""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", icc_profile=icc_profile, exif=exif)


def cache_path(root: Path, image: Path) -> Path:
    """Where the decoded copy of an image of the set at `root` lies: root/bin/<path below root>.npy."""
    return root / "bin" / image.relative_to(root).with_name(image.name + ".npy")


def is_fresh(cache: Path, image: Path) -> bool:
    """Whether the decoded copy is there, whole, of the image's size, and has the image's time, which `convert` gave it.

    A copy that is newer is outdated too: the image may have been replaced by one that is older, out of an archive.
    """
    try:
        # Some file systems keep microseconds or seconds only.
        time = image.stat().st_mtime_ns
        if cache.stat().st_mtime_ns not in (time, time // 10**3 * 10**3, time // 10**9 * 10**9):
            return False
        return open_cached(cache).shape[:2] == read_size(image)
    except (FileNotFoundError, NotADirectoryError, UserError):
        return False


def convert(image: Path, cache: Path) -> None:
    """Decodes `image` into `cache`. Atomic: several processes may do the same at once, and a killed one leaves no
    half-written copy under the final name."""
    time = image.stat().st_mtime_ns  # before the pixels are read: what is written meanwhile makes the copy outdated
    pixels = read_image(image)
    with atomic_path(cache) as temporary:
        with open(temporary, "wb") as file:
            np.save(file, pixels, allow_pickle=False)
        os.utime(temporary, ns=(time, time))


def open_cached(cache: Path) -> np.ndarray:
    """The decoded copy as a read-only memory map, uint8 (H, W, C): slicing it reads only that part of the file.

    The file does not stay open, as it would for NumPy's own maps: of these there may be no more than open files.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        with open_regular(cache) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("a format that is not written here")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset, there = file.tell(), os.fstat(file.fileno()).st_size
        if dtype != np.uint8 or fortran or len(shape) != 3 or shape[2] not in (1, 3) or not math.prod(shape):
            raise ValueError(f"{dtype} of shape {shape}, expected uint8 (H, W, 1 or 3)")
        size = offset + math.prod(shape)
        if there < size:
            raise ValueError(f"{there} bytes, expected {size}")
        try:
            pixels = torch.from_file(str(cache), size=size, dtype=torch.uint8).numpy()[offset:].reshape(shape)
        except UnicodeError:  # torch takes no path of other bytes than UTF-8
            pixels = np.load(cache, mmap_mode="r", allow_pickle=False)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{cache}: is no decoded image ({reason}): make it anew with --ext sep_reset") from None
    pixels.flags.writeable = False  # the map is private: nothing would reach the file
    return pixels


def for_each(function, items: list, *, n_threads: int, title: str) -> None:
    """Calls function(item) for all items on `n_threads` threads (decoding releases the GIL), with a progress bar.

    The first exception ends it; calls that have not started are dropped.
    """
    pool = ThreadPoolExecutor(max(1, n_threads))
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in tqdm(futures, desc=title, unit="image", disable=None, leave=False):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
