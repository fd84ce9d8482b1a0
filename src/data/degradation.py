"""LR images worse than bicubic ones, made on the fly: HR is blurred before it is shrunk, LR is JPEG-compressed.

    bicubic              the LR images of the set
    bicubic+jpeg40       these, JPEG-compressed at quality 40
    blur+bicubic         HR blurred by a Gaussian with a random standard deviation of 0.2 to `scale` HR pixels, then
                         shrunk by MATLAB's recipe (`resize`)
    blur1.6+bicubic      the same with a standard deviation of 1.6
    blur+bicubic+jpeg40  both

The blur is SRMD's (arXiv 1712.06116): isotropic, 15x15. The caller seeds the random generator.
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
    """How LR is made from HR.

    Args:
        blurred: whether HR is blurred first.
        width: the blur's standard deviation in HR pixels; None for a random one.
        quality: JPEG's, 1 to 100; None for no compression.
    """

    blurred: bool = False
    width: float | None = None
    quality: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Degradation":
        """From the value of --degradation, whose form `option.py` has checked."""
        found = re.fullmatch(r"((blur)([\d.]*)\+)?bicubic(\+jpeg(\d+))?", text)
        return cls(bool(found[2]), float(found[3]) if found[3] else None, int(found[5]) if found[5] else None)

    def window(
        self, lr: np.ndarray, hr: np.ndarray, box: tuple[slice, slice], scale: int, rng: np.random.Generator
    ) -> np.ndarray:
        """A part of the degraded LR image; nothing else of it is computed.

        Args:
            lr, hr: the set's images, uint8 (h, w, C) and (at least scale * h, at least scale * w, C).
            box: the rows and columns of LR that are wanted.

        Returns:
            uint8 (rows, columns, C), equal to that part of the whole degraded image, except with JPEG, whose blocks
            begin at the window's corner.
        """
        pixels = lr[box]
        if self.blurred:
            width = rng.uniform(LEAST_WIDTH, scale) if self.width is None else self.width
            pixels = _blurred_and_shrunk(hr, lr.shape, box, scale, width)
        return pixels if self.quality is None else jpeg(pixels, self.quality)

    def whole(self, lr: np.ndarray, hr: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
        """The degraded LR image, uint8 like `lr`."""
        return self.window(lr, hr, (slice(0, lr.shape[0]), slice(0, lr.shape[1])), scale, rng)


BICUBIC = Degradation()


def _blurred_and_shrunk(hr: np.ndarray, lr_shape, box: tuple[slice, slice], scale: int, width: float) -> np.ndarray:
    """The pixels of LR in `box`, from HR blurred with standard deviation `width`."""
    # Pixels beside the window that it depends on: the blur's radius, and the 2 * scale that bicubic shrinking reaches.
    margin = math.ceil(RADIUS / scale) + 3
    inner, outer = [], []
    for wanted, length in zip(box, lr_shape, strict=False):
        first, last = max(0, wanted.start - margin), min(length, wanted.stop + margin)
        outer.append(slice(first * scale, last * scale))
        inner.append(slice(wanted.start - first, wanted.stop - first))
    # The image is sliced before anything else, so of a memory-mapped HR image only this part is read.
    blurred = gaussian_filter(hr[tuple(outer)].astype(np.float64), width, mode="reflect", radius=RADIUS, axes=(0, 1))
    blurred = np.floor(blurred + 0.5).astype(np.uint8)
    return resize.downscale(blurred, scale)[tuple(inner)]


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Pixels, uint8 (H, W, 1 or 3), encoded as JPEG and decoded again."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)).save(
        buffer, format="JPEG", quality=quality
    )
    return np.asarray(Image.open(buffer)).reshape(pixels.shape)
