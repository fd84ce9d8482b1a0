"""Writes pictures as PNG, JPEG, WebP or TIFF, atomically, with alpha, colour profile and EXIF, of 8 or 16 bits."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.image import fitting_profile
from data.picture import Picture
from data.png import HEADER_BYTES
from runtime.files import atomic_path

QUALITY = 95  # of JPEG and WebP


@dataclass(frozen=True)
class Form:
    """A file format.

    Args:
        name: as Pillow calls it.
        longest: the longest side that it can hold, in pixels.
        deep: whether it holds 16 bits.
        alpha: whether it holds alpha.
    """

    name: str
    longest: int
    deep: bool
    alpha: bool


FORMS = {
    "png": Form("PNG", 2**31 - 1, deep=True, alpha=True),
    "jpg": Form("JPEG", 65500, deep=False, alpha=False),
    "webp": Form("WEBP", 16383, deep=False, alpha=True),
    "tif": Form("TIFF", 2**31 - 1, deep=True, alpha=True),
}
# Suffixes that --format same keeps; pictures with any other suffix become PNG.
KEPT_SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp", ".tif": "tif", ".tiff": "tif"}


def write_picture(path: Path, picture: Picture, form: str) -> None:
    """Writes a picture in one of `FORMS`; 16 bits become 8 where the format has no more, and full alpha is left out
    where it has none.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the format cannot hold the picture (`misfit`).
    """
    chosen = FORMS[form]
    height, width = picture.pixels.shape[:2]
    if reason := misfit(form, width, height, transparent=picture.transparent):
        raise ValueError(reason)
    samples = picture.pixels
    if picture.alpha is not None and chosen.alpha:
        samples = np.concatenate((samples, picture.alpha), axis=-1)
    profile = fitting_profile(picture.metadata.get("icc_profile", b""), picture.pixels)
    exif = picture.metadata.get("exif", b"")
    if samples.dtype == np.uint16 and not chosen.deep:
        samples = to_8_bits(samples)
    with atomic_path(path) as temporary:
        if form == "tif":
            temporary.write_bytes(_tiff(samples, profile, exif))
        elif samples.dtype == np.uint16:
            temporary.write_bytes(_deep_png(samples, profile, exif))
        else:
            _save(samples, temporary, form, profile, exif)


def misfit(form: str, width: int, height: int, *, transparent: bool = False) -> str | None:
    """Why a format cannot hold a picture, in a few words and with what to do; None if it can."""
    chosen = FORMS[form]
    if max(width, height) > chosen.longest:
        return f"{width}x{height} pixels, but {chosen.name} takes {chosen.longest} a side: give --format png"
    if transparent and not chosen.alpha:
        return f"is partly transparent, which {chosen.name} cannot hold: give --format png or webp"
    return None


def to_8_bits(samples: np.ndarray) -> np.ndarray:
    """uint16 in 0..65535 -> uint8 in 0..255, rounded."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _save(samples: np.ndarray, path: Path, form: str, profile: bytes, exif: bytes) -> None:
    options: dict[str, object] = {"icc_profile": profile}
    if form == "jpg":
        options |= {"quality": QUALITY, "subsampling": 0}
        exif = exif if len(exif) < 65534 else b""  # a segment of a JPEG is no longer
    elif form == "webp":
        options |= {"quality": QUALITY, "exact": True}  # the colours of transparent pixels stay
    if exif:
        options["exif"] = exif
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[samples.shape[2]]
    image = Image.fromarray(samples[..., 0] if mode == "L" else np.ascontiguousarray(samples))
    assert image.mode == mode
    image.save(path, format=FORMS[form].name, **{name: value for name, value in options.items() if value != b""})


def _deep_png(samples: np.ndarray, profile: bytes, exif: bytes) -> bytes:
    """A 16-bit PNG, of which Pillow writes gray without alpha alone; imagecodecs writes no metadata."""
    import imagecodecs  # loads its libraries, which not every run needs

    content = imagecodecs.png_encode(np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples))
    chunks = b""
    if profile:
        chunks += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    if exif:
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return content[:HEADER_BYTES] + chunks + content[HEADER_BYTES:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def _tiff(samples: np.ndarray, profile: bytes, exif: bytes) -> bytes:
    """A TIFF in one deflated strip. EXIF is a TIFF directory already: the picture's tags join it. Pillow writes no
    16-bit colours, and no EXIF into compressed files."""
    height, width, channels = samples.shape
    strip = zlib.compress(samples.astype(samples.dtype.newbyteorder("<")).tobytes())
    tags = Image.Exif()
    if exif:
        tags.load(exif)
    tags.endian = "<"
    tags[256], tags[257] = width, height
    tags[258] = (8 * samples.dtype.itemsize,) * channels  # BitsPerSample
    tags[259] = 8  # Compression: deflate
    tags[262] = 2 if channels >= 3 else 1  # PhotometricInterpretation: RGB, or black is zero
    tags[273] = 0  # StripOffsets, counted from the end of the directory, which Pillow adds
    tags[277] = channels  # SamplesPerPixel
    tags[278] = height  # RowsPerStrip
    tags[279] = len(strip)  # StripByteCounts
    if channels in (2, 4):
        tags[338] = 2  # ExtraSamples: unassociated alpha
    if profile:
        tags[34675] = profile
    return tags.tobytes().removeprefix(b"Exif\0\0") + strip
