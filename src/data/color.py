"""Decoded pixels as tensors with the channels that the network takes."""

import numpy as np
import torch

from evaluation.metrics import rgb_to_y


def to_tensor(pixels: np.ndarray, n_colors: int) -> torch.Tensor:
    """(H, W, 1 or 3) -> (n_colors, H, W), both uint8 or uint16: gray is repeated to RGB, RGB becomes luma Y, rounded.

    Luma of 16 bits is that of 8 bits, 16..235, times 257.
    """
    tensor = torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)
    if n_colors == 3:
        return tensor.expand(3, -1, -1).contiguous()
    if tensor.shape[0] == 3:
        unit = torch.iinfo(tensor.dtype).max // 255
        tensor = (rgb_to_y(tensor.double() / unit) * unit).round().to(tensor.dtype)
    return tensor.contiguous()
