"""A picture of a user's own with all that it holds: bit depth, alpha, colour profile and EXIF.

`read_picture` keeps what `image.read_own` drops; the colours of `read_own` are its high bytes. 16-bit samples are kept
of PNG, of gray and RGB TIFF, of PPM and PGM, and of gray JPEG 2000. Other formats are read with 8 bits. Alpha is
straight: the colours under it are taken as stored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, ImageFileDirectory_v2

from data.image import metadata_of, orientation_of, samples_of, upright
from data.opening import opened, pillow, silence
from data.png import HEADER_BYTES, check_complete, png_header

_EXTRA_SAMPLES, _ORIENTATION = 338, 274  # TIFF tags
_ASSOCIATED, _UNASSOCIATED = 1, 2  # kinds of alpha: colours are premultiplied, or not


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright.

    Args:
        pixels: uint8 or uint16 (H, W, C), C = 1 (gray) or 3 (RGB).
        alpha: (H, W, 1) of the same type, or None.
        metadata: "icc_profile" and "exif", where the file has them; the EXIF without its orientation and size.
        frames: how many the file has; this is the first.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    metadata: dict[str, bytes]
    frames: int = 1

    @property
    def largest(self) -> int:
        """The value of white, 255 or 65535."""
        return int(np.iinfo(self.pixels.dtype).max)

    @property
    def transparent(self) -> bool:
        """Whether any pixel is less than opaque."""
        return self.alpha is not None and bool((self.alpha < self.largest).any())


def read_picture(path: Path) -> Picture:
    """Decodes a picture, and turns it upright.

    Raises:
        UserError: as in `image.read_image`.
    """
    with opened(path, paired=False) as file:
        check_complete(file)
        with pillow(file) as image:
            frames = getattr(image, "n_frames", 1) if image.format != "PSD" else 1  # of a PSD: layers, shown at once
            samples, orientation = _deep_samples(file, image)
            if samples is None:
                pixels, alpha = _samples(image)
                orientation = orientation_of(image)  # Pillow has turned TIFF upright and reports 1 for it
            else:
                pixels, alpha = _split(samples)
            metadata = metadata_of(image)
    if orientation > 1:
        pixels, alpha = upright(pixels, orientation), None if alpha is None else upright(alpha, orientation)
    return Picture(pixels, alpha, metadata, frames)


def _samples(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and alpha as Pillow decodes them."""
    pixels = samples_of(image, deep=True)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if not image.has_transparency_data:
        return pixels, None
    if pixels.dtype == np.uint16:
        return pixels, None  # one gray value is transparent, which no format keeps but PNG, decoded elsewhere
    alpha = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))[..., 3:]
    return pixels, alpha


def _split(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours and alpha of samples (H, W, 1 to 4)."""
    colours = 3 if samples.shape[2] >= 3 else 1
    return samples[..., :colours], samples[..., colours:] if samples.shape[2] > colours else None


def _deep_samples(file: BinaryIO, image: Image.Image) -> tuple[np.ndarray | None, int]:
    """The 16-bit samples of a PNG or TIFF, of which Pillow would keep 8 bits, as uint16 (H, W, 1 to 4), and the
    orientation in which they are stored; None for any other file."""
    if image.format == "PNG":
        file.seek(0)
        header = png_header(file.read(HEADER_BYTES))
        if header is not None and header.bits == 16:
            return _deep_png(file), orientation_of(image)
    if image.format == "TIFF" and _is_deep_rgb(image.tag_v2):
        orientation = image.tag_v2.get(_ORIENTATION, 1)
        return _deep_tiff(file, image), orientation if orientation in range(1, 9) else 1
    return None, 1


def _is_deep_rgb(tags: ImageFileDirectory_v2) -> bool:
    """Whether a TIFF holds RGB in unsigned samples of 16 bits."""
    bits, kinds = tags.get(BITSPERSAMPLE, ()), tags.get(SAMPLEFORMAT, (1,))
    return tags.get(PHOTOMETRIC_INTERPRETATION) == 2 and set(bits) == {16} and set(kinds) == {1}


def _deep_png(file: BinaryIO) -> np.ndarray:
    import imagecodecs  # loads its libraries, which not every run needs

    file.seek(0)
    with silence():
        samples = imagecodecs.png_decode(file.read())
    return samples.reshape(*samples.shape[:2], -1)


def _deep_tiff(file: BinaryIO, image: Image.Image) -> np.ndarray:
    import tifffile

    extra = image.tag_v2.get(_EXTRA_SAMPLES, ())
    file.seek(0)
    with tifffile.TiffFile(file) as content:
        page = content.pages[0]
        samples = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            samples = np.moveaxis(samples, 0, -1)
    if not extra or extra[0] not in (_ASSOCIATED, _UNASSOCIATED):
        return samples[..., :3]
    samples = samples[..., :4]
    if extra[0] == _ASSOCIATED:
        alpha = samples[..., 3:].astype(np.float64)
        colours = samples[..., :3] * np.divide(65535, alpha, out=np.zeros_like(alpha), where=alpha > 0)
        samples = np.concatenate((colours.round().clip(0, 65535).astype(np.uint16), samples[..., 3:]), axis=-1)
    return samples
