"""Image files: decoded to one form, and written.

Every image becomes uint8 (H, W, C), C = 1 (gray) or 3 (RGB):

- palettes and other colour models are converted to RGB; black-and-white becomes gray with 0 and 255;
- alpha is dropped: the stored colours count, nothing is blended;
- of 16-bit values the high byte is taken (value // 256);
- of several frames the first is taken; colour profiles change nothing;
- the EXIF orientation is ignored, which keeps data sets pixel for pixel, but it is applied to a user's own pictures
  (`read_own`).
"""

import itertools
import math
import os
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from data.listing import scan
from data.opening import check_room, opened, pillow, pillow_settings, silence
from data.png import HEADER_BYTES, check_complete, decode_usual, png_chunks, png_header
from runtime.errors import UserError, printable
from runtime.files import atomic_path


def list_images(folder: Path, *, nested: bool = False) -> list[Path]:
    """The image files directly in `folder`, or with `nested` also in the folders below it, sorted; see `listing.scan`.

    Raises:
        UserError: if a folder cannot be read, or a name is not valid UTF-8.
    """
    return scan(folder, nested=nested).images


class Size(NamedTuple):
    """The size of an image, in the order of an array's shape."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Header:
    """What an image file declares.

    Args:
        height, width: as stored, before any orientation is applied.
        orientation: EXIF's, 1 to 8; 1 means upright.
        profile: whether it has a colour profile.
        frames: whether it has more than one frame.
    """

    height: int
    width: int
    orientation: int = 1
    profile: bool = False
    frames: bool = False

    @property
    def size(self) -> Size:
        """The stored size."""
        return Size(self.height, self.width)


def read_header(path: Path | str, content: bytes | None = None) -> Header:
    """The header of an image file; `content` as in `read_image`.

    Raises:
        UserError: if the file is missing or not an image.
    """
    with opened(path, content) as file:
        if header := png_header(file.read(HEADER_BYTES)):
            before = dict(itertools.takewhile(lambda chunk: chunk[0] != b"IDAT", png_chunks(file)))
            orientation = orientation_of(before[b"eXIf"]) if b"eXIf" in before else 1
            return Header(header.height, header.width, orientation, b"iCCP" in before, b"acTL" in before)
        file.seek(0)
        with pillow(file) as image:
            width, height = image.size
            orientation = orientation_of(image)
            if image.format == "TIFF" and orientation >= 5:  # Pillow gives the size of the upright picture
                width, height = height, width
            # All layers of a layered picture are shown at once: they are not frames.
            frames = getattr(image, "is_animated", False) and image.format != "PSD"
            return Header(height, width, orientation, bool(image.info.get("icc_profile")), frames)


def read_size(path: Path | str, content: bytes | None = None) -> Size:
    """The stored size of an image, from the file's header alone; `content` as in `read_image`.

    Raises:
        UserError: if the file is missing or not an image.
    """
    if content is None:
        with opened(path) as file:
            header = png_header(file.read(HEADER_BYTES))
    else:
        header = png_header(content)
    return Size(header.height, header.width) if header else read_header(path, content).size


def read_image(path: Path | str, content: bytes | None = None) -> np.ndarray:
    """Decodes an image file into uint8 (H, W, C) as this module's docstring describes.

    Args:
        content: the file's bytes, for a member of an archive; `path` then only names it in errors.

    Raises:
        UserError: if the file is missing, broken or not a regular file, does not fit into memory, or holds other values
            than whole numbers of up to 16 bits.
    """
    with opened(path, content) as file:
        orientation = 1
        pixels = decode_usual(file)
        if pixels is None:
            check_complete(file)
            with pillow(file) as image:
                if image.format == "TIFF":
                    applied = orientation_of(image)  # Pillow turns TIFF upright: this is undone below
                    orientation = {6: 8, 8: 6}.get(applied, applied)  # the others are their own inverse
                pixels = samples_of(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return upright(pixels, orientation) if orientation > 1 else pixels


def read_own(path: Path) -> tuple[np.ndarray, dict[str, bytes]]:
    """Decodes a user's own picture and turns it upright.

    Returns:
        uint8 (H, W, C), and the colour profile and EXIF as the keyword arguments that `write_png` takes.

    Raises:
        UserError: as in `read_image`.
    """
    with opened(path) as file:
        check_complete(file)
        with pillow(file) as image:
            pixels = samples_of(image)
            pixels = pixels.reshape(*pixels.shape[:2], -1)
            orientation = orientation_of(image)  # Pillow has turned TIFF upright and reports 1 for it
            metadata = metadata_of(image)
    return upright(pixels, orientation) if orientation > 1 else pixels, metadata


def read_bytes(path: Path) -> bytes:
    """The whole content of an image file.

    Raises:
        UserError: if it is missing, not a regular file, or does not fit into memory.
    """
    with opened(path) as file:
        check_room(file)
        return file.read()


def write_png(path: Path, pixels: np.ndarray, *, icc_profile: bytes = b"", exif: bytes = b"") -> None:
    """Writes uint8 (H, W, C), C = 1 or 3, as PNG, atomically.

    A colour profile is written only where it is one of such pixels, gray or RGB.

    Raises:
        OSError: if the file cannot be written.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    icc_profile = fitting_profile(icc_profile, pixels)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", icc_profile=icc_profile, exif=exif)


def write_out(path: Path, pixels: np.ndarray) -> None:
    """`write_png` of a picture below a command's --out.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        write_png(path, pixels)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): choose another --out") from None


def fitting_profile(icc_profile: bytes, pixels: np.ndarray) -> bytes:
    """The colour profile if it is one of such pixels (H, W, 1 or 3), gray or RGB; else nothing."""
    return icc_profile if icc_profile[16:20] == (b"GRAY" if pixels.shape[2] == 1 else b"RGB ") else b""


def name_too_long(path: Path) -> str:
    """The message for a file whose name is too long for the disk."""
    return (
        f"{printable(path)}: this name of {len(os.fsencode(path.name))} bytes is too long for the disk, which usually "
        "takes 255: shorten the name of the image that it is made of"
    )


# --- pixels ---


def samples_of(image: Image.Image, *, deep: bool = False) -> np.ndarray:
    """Decodes a Pillow image: uint8 (H, W) or (H, W, 3).

    Args:
        deep: samples of more than 8 bits become uint16 in 0..65535 where Pillow keeps them: of gray images and of PPM.

    Raises:
        ValueError: for values that are not whole numbers of up to 16 bits.
    """
    tags = getattr(image, "tag_v2", {})  # TIFF's
    bits, signed = tags.get(BITSPERSAMPLE, (8,))[0], 2 in tags.get(SAMPLEFORMAT, ())
    if image.mode == "F" or (signed and bits <= 16):
        kind = "floating-point" if image.mode == "F" else "signed"
        raise ValueError(f"{kind} pixels, expected 8 or 16 bits, unsigned")
    codec, _, offset, args = image.tile[0] if len(image.tile) == 1 else (None, None, 0, ())
    if codec in ("ppm", "ppm_plain") and image.mode == "RGB" and args[-1] > 255:
        values = _deep_ppm(image, plain=codec == "ppm_plain", offset=offset, largest=args[-1])
        return values if deep else (values >> 8).astype(np.uint8)
    if image.format == "JPEG2000" and image.mode in ("RGB", "RGBA", "LA") and _jpeg2000_bits(image) > 8:
        raise ValueError("more than 8 bits a colour in JPEG 2000: save it as PNG or TIFF")  # Pillow rounds them
    with silence() if image.format == "TIFF" else nullcontext():  # libtiff prints what it finds wrong
        image.load()
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values of {values.min()} to {values.max()}, expected 0 to 65535 at most")
        if deep:
            values = (values << 4 | values >> 8 if bits == 12 else values).astype(np.uint16)
        else:
            values = (values >> (4 if bits == 12 else 8)).astype(np.uint8)
        white_is_zero = tags.get(PHOTOMETRIC_INTERPRETATION) == 0
        return np.iinfo(values.dtype).max - values if white_is_zero else values
    if args == "LA;16B":  # 16-bit gray with alpha in a PNG, which Pillow decodes as colours
        return np.asarray(image)[..., 0]
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _jpeg2000_bits(image: Image.Image) -> int:
    """The bits of the first colour of a JPEG 2000 image, from the SIZ marker of its code stream; 0 if unknown."""
    position = image.fp.tell()
    image.fp.seek(0)
    beginning = image.fp.read(2**16)
    image.fp.seek(position)
    at = beginning.find(b"\xff\x4f\xff\x51") + 42
    return (beginning[at] & 127) + 1 if 42 <= at < len(beginning) else 0


def _deep_ppm(image: Image.Image, *, plain: bool, offset: int, largest: int) -> np.ndarray:
    """The samples of a PPM of more than 8 bits, which Pillow would round: uint16 (H, W, 3) in 0..65535."""
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
    return (values * 65535 // largest).astype(np.uint16).reshape(shape)


# --- EXIF ---

# EXIF tags that describe the file rather than the picture: size, layout, orientation, thumbnail, other metadata blocks.
_OF_THE_FILE = {*range(0xFE, 0x104), 0x106, 0x10A, *range(0x111, 0x11A), 0x11C, 0x11D, *range(0x120, 0x126), 0x12D}
_OF_THE_FILE |= {0x13D, *range(0x140, 0x15C), *range(0x200, 0x215), 0x2BC, 0x83BB, 0x8649, 0x8773, 0xA002, 0xA003}


def orientation_of(image: Image.Image | bytes) -> int:
    """The EXIF orientation of an image, or of a block of EXIF, 1 to 8; 1 if there is none or an invalid one."""
    try:
        if isinstance(image, bytes):
            exif = Image.Exif()
            with pillow_settings():
                exif.load(image)
        else:
            exif = image.getexif()
        found = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, of an image that may be whole
        return 1
    return found if found in range(1, 9) else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels (H, W, C) upright, given EXIF's orientation."""
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    down = -1 if orientation in (3, 4, 7, 8) else 1
    right = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::down, ::right])


def metadata_of(image: Image.Image) -> dict[str, bytes]:
    """The colour profile and the descriptive EXIF of an image, as the keyword arguments that `write_png` takes."""
    kept = {"icc_profile": image.info.get("icc_profile"), "exif": descriptive_exif(image)}
    return {name: value for name, value in kept.items() if value}


def descriptive_exif(image: Image.Image) -> bytes:
    """The EXIF that describes the picture, without its orientation and size; empty if it is damaged."""
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
