"""LR images worse than bicubic ones, made on the fly: blurred before they are shrunk, or JPEG-compressed afterwards.

    bicubic              the LR images of the set
    bicubic+jpeg40       these, JPEG-compressed at quality 40
    blur+bicubic         HR blurred by a Gaussian, then shrunk by MATLAB's recipe; its standard deviation is random,
                         0.2 to `scale` HR pixels
    blur1.6+bicubic      the same with a standard deviation of 1.6
    blur+bicubic+jpeg40  both

The blur is SRMD's (arXiv 1712.06116): isotropic, 15x15. What is random comes from a generator that the caller seeds.
"""

import io
import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from data import resize

RADIUS = 7  # of the blur, in HR pixels
LEAST_WIDTH = 0.2  # standard deviation of the narrowest blur, in HR pixels


@dataclass(frozen=True)
class Degradation:
    """How LR comes from HR.

    Args:
        blurred: whether HR is blurred first.
        width: the blur's standard deviation in HR pixels, None for a random one.
        quality: JPEG's, 1..100, None for no compression.
    """

    blurred: bool = False
    width: float | None = None
    quality: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Degradation":
        """From --degradation, whose form `option.py` has checked."""
        found = re.fullmatch(r"((blur)([\d.]*)\+)?bicubic(\+jpeg(\d+))?", text)
        return cls(bool(found[2]), float(found[3]) if found[3] else None, int(found[5]) if found[5] else None)

    def window(self, lr: np.ndarray, hr: np.ndarray, box: tuple[slice, slice], scale: int, random) -> np.ndarray:
        """A part of the degraded LR image, of which nothing else is computed.

        Args:
            lr, hr: the set's images, uint8 (h, w, C) and (at least scale * h, at least scale * w, C).
            box: the rows and columns of LR that are wanted.
            random: a NumPy generator.

        Returns:
            uint8 (rows, columns, C). But for JPEG, whose blocks begin at the window's corner, it is that part of the
            whole degraded image.
        """
        pixels = lr[box]
        if self.blurred:
            width = random.uniform(LEAST_WIDTH, scale) if self.width is None else self.width
            pixels = _blurred_and_shrunk(hr, lr.shape, box, scale, width)
        return pixels if self.quality is None else jpeg(pixels, self.quality)

    def whole(self, lr: np.ndarray, hr: np.ndarray, scale: int, random) -> np.ndarray:
        """The degraded LR image, uint8 like `lr`."""
        return self.window(lr, hr, (slice(0, lr.shape[0]), slice(0, lr.shape[1])), scale, random)


BICUBIC = Degradation()


def _blurred_and_shrunk(hr: np.ndarray, lr_shape, box: tuple[slice, slice], scale: int, width: float) -> np.ndarray:
    # Pixels that the window's edge depends on: the blur's, and the 2 * scale that bicubic shrinking reaches.
    margin = math.ceil(RADIUS / scale) + 3
    inner, outer = [], []
    for wanted, length in zip(box, lr_shape, strict=False):
        first, last = max(0, wanted.start - margin), min(length, wanted.stop + margin)
        outer.append(slice(first * scale, last * scale))
        inner.append(slice(wanted.start - first, wanted.stop - first))
    # The part is taken out of the image only here, so a memory-mapped HR image is read no further.
    blurred = gaussian_filter(hr[tuple(outer)].astype(np.float64), width, mode="reflect", radius=RADIUS, axes=(0, 1))
    blurred = np.floor(blurred + 0.5).astype(np.uint8)
    return resize.downscale(blurred, scale)[tuple(inner)]


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 (H, W, 1 or 3), encoded as JPEG and decoded."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)).save(
        buffer, format="JPEG", quality=quality
    )
    return np.asarray(Image.open(buffer)).reshape(pixels.shape)
