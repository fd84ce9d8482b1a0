"""MATLAB's `imresize(image, factor, 'bicubic')` on top of torch's interpolation, bit for bit.

Published LR images and published bicubic scores were made with it, so anything that is only close to it shifts every
number. In torch as in MATLAB the kernel is that of Keys (1981) with a = -0.5, widened when shrinking. Three things make
torch's antialiased bicubic equal to MATLAB's:

- the image is mirrored at its borders, including the edge pixel, where torch repeats the edge pixel;
- it is resized along the height first, then along the width;
- uint8 images are rounded half up and clamped to 0..255 after each of the two passes.
"""

import numpy as np
import torch
import torch.nn.functional as F

_SUPPORT = 4  # samples on either side; the cubic kernel reaches two, the rest is margin


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """`imresize(image, 1/scale)` of an image (H, W, C), which is cropped to a multiple of `scale` first.

    Returns:
        (H // scale, W // scale, C): uint8 for uint8, and float64, neither rounded nor clamped, for float.
    """
    height, width = (side // scale * scale for side in image.shape[:2])
    return _resize(image[:height, :width], down=scale)


def upscale(image: np.ndarray, scale: int) -> np.ndarray:
    """`imresize(image, scale)` of an image (H, W, C): (scale * H, scale * W, C), of a type as in `downscale`."""
    return _resize(image, up=scale)


def _resize(image: np.ndarray, up: int = 1, down: int = 1) -> np.ndarray:
    return _pass(_pass(image, 0, up, down), 1, up, down)


def _pass(image: np.ndarray, axis: int, up: int, down: int) -> np.ndarray:
    """One MATLAB pass along `axis`, through torch on a symmetrically padded copy."""
    pad = _SUPPORT * down  # a multiple of `down` keeps the sampling grid where it was
    length = image.shape[axis] * up // down
    widths = [(0, 0)] * image.ndim
    widths[axis] = (pad, pad)
    padded = np.moveaxis(np.pad(image, widths, mode="symmetric"), axis, -1)
    lines = torch.from_numpy(padded.astype(np.float64)).reshape(1, 1, -1, padded.shape[-1])
    size = (lines.shape[2], lines.shape[3] * up // down)
    resized = F.interpolate(lines, size=size, mode="bicubic", antialias=True, align_corners=False)
    start = pad * up // down
    resized = resized[0, 0, :, start : start + length].numpy()
    if image.dtype == np.uint8:
        resized = np.clip(np.floor(resized + 0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(resized.reshape(*padded.shape[:-1], length), -1, axis))
