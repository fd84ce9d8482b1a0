"""Parts that several super-resolution networks share."""

import math
import re
from collections.abc import Iterable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from .compat import convolve, has_forward_hooks
from .names import ACTIVATIONS

# Mean colour of DIV2K's training images, R G B, in 0..1 (EDSR, arXiv 1707.02921).
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
# The weights of R, G and B in luma (ITU-R BT.601), for the mean of a gray image.
LUMA = (0.299, 0.587, 0.114)


class MeanShift(nn.Conv2d):
    """Adds `sign` times the DIV2K mean to an image (N, n_colors, H, W) in 0..`rgb_range`: a fixed 1x1 convolution.

    Images with a number of colours other than three get the mean luma in every channel.
    It is a convolution because published state dicts have its weights.
    """

    def __init__(self, *, n_colors: int, rgb_range: float, sign: int):
        super().__init__(n_colors, n_colors, kernel_size=1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(n_colors).view(n_colors, n_colors, 1, 1))
            self.bias.copy_(sign * rgb_range * torch.tensor(mean_colour(n_colors)))
        self.requires_grad_(False)


def in_float32(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """`conv(x)` with float32 arithmetic and a float32 result, also under an autocast or with weights in half precision.

    Images need it: with bfloat16's 8 bits a value in 0..255 is off by up to half a gray level.
    """
    half = (torch.float16, torch.bfloat16)
    if isinstance(conv, nn.Identity):  # a mean shift that was folded into its neighbour
        return x
    autocast = autocast_dtype(x)
    if autocast is None and conv.weight.dtype not in half:
        return conv(x)
    with torch.autocast(x.device.type, enabled=False) if autocast else nullcontext():
        bias = None if conv.bias is None else conv.bias.float()
        return convolve(conv, x.float(), conv.weight.float(), bias)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype of the autocast that is active on `x`'s device, or None; on "meta", which has none, torch raises."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def mean_colour(n_colors: int) -> list[float]:
    """The DIV2K mean in 0..1, one value for each colour channel."""
    if n_colors == 3:
        return list(DIV2K_MEAN)
    return [sum(weight * mean for weight, mean in zip(LUMA, DIV2K_MEAN, strict=True))] * n_colors


def range_of_shift(state: dict[str, torch.Tensor]) -> float:
    """The `rgb_range` for which the `sub_mean` of a state dict was made, rounded to three decimals.

    Raises:
        KeyError: if there is no `sub_mean`.
    """
    bias = state["sub_mean.bias"].double()
    return round(-bias.sum().item() / sum(mean_colour(len(bias))), 3)


def leaky_relu() -> nn.LeakyReLU:
    """KRGN's LeakyReLU, with the slope 0.05."""
    return nn.LeakyReLU(0.05, inplace=True)


def activation(name: str, channels: int) -> nn.Module:
    """The activation called `name` (one of `ACTIVATIONS`); a PReLU has one slope per channel, initially 0.05.

    Raises:
        ValueError: for an unknown name.
    """
    if name == "lrelu":
        return leaky_relu()
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "prelu":
        return nn.PReLU(channels, init=0.05)
    raise ValueError(f"activation: got {name!r}, expected one of {', '.join(ACTIVATIONS)}")


def conv1x1_of_parts(conv: nn.Conv2d, parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """`conv(torch.cat(parts, dim=1))` of a 1x1 convolution, as a sum to which each part adds its share when it comes.

    This saves the memory of the concatenation, the largest feature map of all, and of the parts themselves. Exported
    graphs concatenate, and so does a `conv` that is more than a plain convolution: recalibrated, or with hooks.
    """
    plain = type(conv) is nn.Conv2d and not has_forward_hooks(conv)
    if not plain or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return conv(torch.cat(list(parts), dim=1))
    total, done = None, 0
    for part in parts:
        share = conv.weight[:, done : done + part.shape[1]]
        done += part.shape[1]
        if total is None:
            first = F.conv2d(part, share, conv.bias)
            # Sixteen bits are too few for a running sum.
            total = first.float() if first.dtype in (torch.float16, torch.bfloat16) else first
        else:
            total.add_(F.conv2d(part, share))
    return total.to(first.dtype)


def upsampler(channels: int, n_colors: int, scale: int) -> nn.Sequential:
    """Sub-pixel upsampling (ESPCN, arXiv 1609.05158): one 3x3 convolution to n_colors * scale^2 channels, shuffled.

    (N, channels, H, W) -> (N, n_colors, scale * H, scale * W).
    """
    return nn.Sequential(nn.Conv2d(channels, n_colors * scale**2, 3, padding=1), nn.PixelShuffle(scale))


def stepwise_upsampler(channels: int, scale: int) -> nn.Sequential:
    """EDSR's upsampling of features: a 3x3 convolution and a pixel shuffle for each factor 2, or one of both for 3.

    (N, channels, H, W) -> (N, channels, scale * H, scale * W).

    Raises:
        ValueError: if `scale` is neither 3 nor a power of 2.
    """
    steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    if math.prod(steps) != scale:
        raise ValueError(f"scale: got {scale}, expected 3 or a power of 2")
    layers = [
        layer
        for factor in steps
        for layer in (nn.Conv2d(channels, factor**2 * channels, 3, padding=1), nn.PixelShuffle(factor))
    ]
    return nn.Sequential(*layers)


def scale_of_upsampler(state: dict[str, torch.Tensor], prefix: str) -> int:
    """The scale of the `stepwise_upsampler` whose names in a state dict start with `prefix`."""
    weights = [tensor for name, tensor in state.items() if re.fullmatch(re.escape(prefix) + r"\d+\.weight", name)]
    return math.prod(math.isqrt(weight.shape[0] // weight.shape[1]) for weight in weights)


class HeadBodyTail(nn.Module):
    """The frame of EDSR and RCAN: 3x3 convolution, blocks and a 3x3 convolution with a skip around them, upsampling.

    (N, n_colors, H, W) in 0..`rgb_range`, float -> (N, n_colors, scale * H, scale * W), not clamped.

    Args:
        blocks: made one after the other when the body is, so that initial weights depend on the seed alone.
    """

    def __init__(self, blocks: Iterable[nn.Module], *, scale: int, n_feats: int, n_colors: int, rgb_range: float):
        super().__init__()
        self.sub_mean = MeanShift(n_colors=n_colors, rgb_range=rgb_range, sign=-1)
        self.head = nn.Sequential(nn.Conv2d(n_colors, n_feats, 3, padding=1))
        self.body = nn.Sequential(*blocks, nn.Conv2d(n_feats, n_feats, 3, padding=1))
        self.tail = nn.Sequential(stepwise_upsampler(n_feats, scale), nn.Conv2d(n_feats, n_colors, 3, padding=1))
        self.add_mean = MeanShift(n_colors=n_colors, rgb_range=rgb_range, sign=+1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shallow = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(shallow) + shallow))
