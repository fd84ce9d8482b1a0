"""Decoded pixels as tensors with the channels that the network takes."""

import numpy as np
import torch

from evaluation.metrics import rgb_to_y


def to_tensor(pixels: np.ndarray, n_colors: int) -> torch.Tensor:
    """uint8 (H, W, 1 or 3) -> uint8 (n_colors, H, W): gray is repeated to RGB, RGB becomes luma Y, rounded."""
    tensor = torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)
    if n_colors == 3:
        return tensor.expand(3, -1, -1).contiguous()
    if tensor.shape[0] == 3:
        tensor = rgb_to_y(tensor).round().to(torch.uint8)
    return tensor.contiguous()
