"""Image files: decoded to one form, written, and cached as memory-mapped .npy.

Every image becomes uint8 (H, W, C), C = 1 (gray) or 3 (RGB):

- palette and other colour models are turned to RGB; black-and-white is gray with 0 and 255;
- alpha is dropped: the stored colours count, nothing is blended;
- of 16-bit values the high byte is taken (value // 256);
- the EXIF orientation is ignored; of several frames the first is taken.
"""

import io
import math
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.listing import scan
from errors import UserError
from utility import atomic_path

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def list_images(folder: Path, *, nested: bool = False) -> list[Path]:
    """The image files right in `folder`, or also in the folders below it, by name; see `listing.scan`.

    Raises:
        UserError: if a folder cannot be read, or a name is no text.
    """
    return scan(folder, nested=nested).images


@contextmanager
def _readable(path: Path | str, content: bytes | None = None):
    """Opens `path` with Pillow; whatever Pillow says about a broken file becomes one line that names it."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such image") from None
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # Pillow's decoders raise many types for a broken file: OSError, SyntaxError, struct.error …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: cannot be decoded ({reason}): replace the file, or remove it together with its LR/HR partner"
        ) from None


def read_size(path: Path | str, content: bytes | None = None) -> tuple[int, int]:
    """(height, width) from the file's header alone; `content` as in `read_image`.

    Raises:
        UserError: if the file is missing or no image.
    """
    if content is None and (header := _png_header(_beginning(path))):
        width, height, *_ = header
        return height, width
    with _readable(path, content) as image:
        return image.height, image.width


def _beginning(path: Path | str) -> bytes:
    """The bytes of a file that hold a PNG's header; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(33)
    except OSError:
        return b""


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
        UserError: if the file is missing, broken, or holds floating-point values.
    """
    pixels = _fast_png(path, content)
    if pixels is not None:
        return pixels
    with _readable(path, content) as image:
        if image.mode == "F":
            raise ValueError("floating-point pixels, expected 8 or 16 bits")
        if image.mode.startswith("I"):
            pixels = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        else:
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def _fast_png(path: Path | str, content: bytes | None) -> np.ndarray | None:
    """The usual PNG, 8 bits of gray or RGB, by imagecodecs, in two thirds of Pillow's time; None for anything else.

    Also for a broken file: what is wrong with it is Pillow's to say.
    """
    if content is None:
        if Path(path).suffix.lower() != ".png":
            return None
        try:
            content = Path(path).read_bytes()
        except OSError:
            return None
    header = _png_header(content)
    if header is None:
        return None
    width, height, depth, colours, interlaced = header
    usual = depth == 8 and colours in (0, 2) and not interlaced
    if not usual or width * height > Image.MAX_IMAGE_PIXELS:  # a bomb, perhaps: Pillow warns of it, or refuses it
        return None
    import imagecodecs  # loads its libraries, which not every run needs

    try:
        pixels = imagecodecs.png_decode(content)
    except imagecodecs.PngError:
        return None
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return pixels if pixels.shape[2] == (1 if colours == 0 else 3) else None  # a transparent colour makes a channel


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes uint8 (H, W, C), C = 1 or 3, as PNG, atomically."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


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
        with open(cache, "rb") as file:
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
