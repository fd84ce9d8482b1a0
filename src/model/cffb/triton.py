"""The CFFB on a GPU, forward and backward, as Triton kernels; `operators.py` registers them.

Imported only when a tensor on a GPU first needs it: Triton comes with torch's CUDA builds, and with no other. Maps are
(N, H, W, C) in memory, float32, float64, float16 or bfloat16; sums are taken in float32 (float64 for float64).

    forward       one pass: 17 neighbours of a pixel are read, out of the cache, for both branches
    backward 1    one pass: the two branches' gradients before their activations, and each program's share of the
                  parameters' gradients
    backward 2    one pass: the input's gradient from these

Deterministic: shares are summed in one order, without atomics.

In the kernels, `pixels` and `channels` are the indices that a program computes, pixels counted over all images; `sizes`
is (n_pixels, height, width, n_channels), `wide` the type of the arithmetic, `per_group` the number of channels a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .cpu import PER_CFFB, PER_LAYER, arithmetic


@dataclass(frozen=True)
class Block:
    """What a program computes: at most so many pixels times channels that each thread's values stay in registers."""

    pixels: int  # consecutive, over all images
    channels: int  # at most


FORWARD = Block(pixels=16, channels=64)  # also of backward 2
BACKWARD = Block(pixels=64, channels=16)
WARPS = 8
TAPS = tl.constexpr(9)  # weights of a kernel


@triton.jit
def _at_offset(maps, pixels, down, right, channels, sizes, wide: tl.constexpr):
    """The values `down` and `right` of the pixels, (pixels, channels), zeros outside their image."""
    n_pixels, height, width, n_channels = sizes
    rows, columns = pixels // width % height + down, pixels % width + right
    inside = (pixels < n_pixels) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    at = (pixels + down * width + right).to(tl.int64)[:, None] * n_channels + channels[None, :]
    return tl.load(maps + at, mask=inside[:, None] & (channels < n_channels)[None, :], other=0.0).to(wide)


@triton.jit
def _vector(values, channels, n_channels, wide: tl.constexpr):
    """One value a channel, (1, channels)."""
    return tl.load(values + channels, mask=channels < n_channels, other=0.0).to(wide)[None, :]


@triton.jit
def _branch(x, weight, bias, dilation, pixels, channels, sizes, per_group: tl.constexpr, wide: tl.constexpr):
    """A branch before its activation: (pixels, channels)."""
    _n_pixels, _height, _width, n_channels = sizes
    sums = tl.zeros((pixels.shape[0], channels.shape[0]), dtype=wide) + _vector(bias, channels, n_channels, wide)
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            for member in tl.static_range(per_group):
                at = (channels * per_group + member) * TAPS + dy * 3 + dx
                kernel = tl.load(weight + at, mask=channels < n_channels, other=0.0).to(wide)[None, :]
                source = channels // per_group * per_group + member
                sums += _at_offset(x, pixels, (dy - 1) * dilation, (dx - 1) * dilation, source, sizes, wide) * kernel
    return sums


@triton.jit
def _store(maps, pixels, channels, sizes, values):
    n_pixels, _height, _width, n_channels = sizes
    inside = (pixels < n_pixels)[:, None] & (channels < n_channels)[None, :]
    at = pixels.to(tl.int64)[:, None] * n_channels + channels[None, :]
    tl.store(maps + at, values.to(maps.dtype.element_ty), mask=inside)


@triton.jit
def _forward(
    x, near_weight, near_bias, near_slope, far_weight, far_bias, far_slope, plus, y, near_dilation, far_dilation,
    n_pixels, height, width, n_channels, add: tl.constexpr, per_group: tl.constexpr, block_pixels: tl.constexpr,
    block_channels: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    sizes = (n_pixels, height, width, n_channels)
    pixels = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channels = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    near = _branch(x, near_weight, near_bias, near_dilation, pixels, channels, sizes, per_group, wide)
    far = _branch(x, far_weight, far_bias, far_dilation, pixels, channels, sizes, per_group, wide)
    out = tl.where(near > 0, near, near * _vector(near_slope, channels, n_channels, wide))
    out += tl.where(far > 0, far, far * _vector(far_slope, channels, n_channels, wide))
    if add:
        out += _at_offset(plus, pixels, 0, 0, channels, sizes, wide)
    _store(y, pixels, channels, sizes, out)


@triton.jit
def _before_activation(
    x, weight, bias, slope, grad, before, shares, dilation, n_pixels, height, width, n_channels,
    per_group: tl.constexpr, block_pixels: tl.constexpr, block_channels: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Backward 1, of one branch. A program's shares are (per_group * TAPS + 2, C): kernel, bias, slope."""
    sizes = (n_pixels, height, width, n_channels)
    bias_row: tl.constexpr = per_group * TAPS
    slope_row: tl.constexpr = bias_row + 1
    pixels = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channels = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    exists = channels < n_channels
    pre = _branch(x, weight, bias, dilation, pixels, channels, sizes, per_group, wide)
    outer = _at_offset(grad, pixels, 0, 0, channels, sizes, wide)  # zeros for pixels beyond the last
    inner = tl.where(pre > 0, outer, outer * _vector(slope, channels, n_channels, wide))
    _store(before, pixels, channels, sizes, inner)
    share = shares + tl.program_id(0).to(tl.int64) * (slope_row + 1) * n_channels + channels
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            for member in tl.static_range(per_group):
                source = channels // per_group * per_group + member
                seen = _at_offset(x, pixels, (dy - 1) * dilation, (dx - 1) * dilation, source, sizes, wide)
                row = member * TAPS + dy * 3 + dx
                tl.store(share + row * n_channels, tl.sum(inner * seen, axis=0), mask=exists)
    tl.store(share + bias_row * n_channels, tl.sum(inner, axis=0), mask=exists)
    negative = tl.where(pre > 0, tl.zeros_like(pre), pre * outer)
    tl.store(share + slope_row * n_channels, tl.sum(negative, axis=0), mask=exists)


@triton.jit
def _to_input(
    near_before, far_before, near_weight, far_weight, grad_x, near_dilation, far_dilation,
    n_pixels, height, width, n_channels, per_group: tl.constexpr, block_pixels: tl.constexpr,
    block_channels: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Backward 2: both transposed convolutions, summed."""
    sizes = (n_pixels, height, width, n_channels)
    pixels = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channels = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    exists = channels < n_channels
    first = channels // per_group * per_group
    sums = tl.zeros((block_pixels, block_channels), dtype=wide)
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            for member in tl.static_range(per_group):
                source = first + member
                at = (source * per_group + channels - first) * TAPS + dy * 3 + dx
                kernel = tl.load(near_weight + at, mask=exists, other=0.0).to(wide)[None, :]
                down, right = (1 - dy) * near_dilation, (1 - dx) * near_dilation
                sums += _at_offset(near_before, pixels, down, right, source, sizes, wide) * kernel
                kernel = tl.load(far_weight + at, mask=exists, other=0.0).to(wide)[None, :]
                down, right = (1 - dy) * far_dilation, (1 - dx) * far_dilation
                sums += _at_offset(far_before, pixels, down, right, source, sizes, wide) * kernel
    _store(grad_x, pixels, channels, sizes, sums)


def forward(
    x: torch.Tensor, parameters: Sequence[torch.Tensor], dilations: Sequence[int], plus: torch.Tensor | None
) -> list[torch.Tensor]:
    """The output of each CFFB of a chain, `plus` added to the last one's.

    All tensors are on one device, maps (N, C, H, W) channels last, parameters contiguous, six for each CFFB.
    """
    outputs, last = [], len(parameters) - PER_CFFB
    for first in range(0, len(parameters), PER_CFFB):
        y = torch.empty_like(x)
        if x.numel():
            own, add = parameters[first : first + PER_CFFB], plus is not None and first == last
            launch = _launch(FORWARD, x, own)
            _forward[launch.grid](x, *own, plus if add else x, y, *dilations, *_sizes(x), add=add, **launch.options)
        outputs.append(y)
        x = y
    return outputs


def backward(
    grad: torch.Tensor, x: torch.Tensor, parameters: Sequence[torch.Tensor], dilations: Sequence[int]
) -> list[torch.Tensor]:
    """The gradients of a CFFB's input and of each of its six parameters, from that of its output."""
    if not x.numel():
        return [torch.empty_like(x), *(torch.zeros_like(parameter) for parameter in parameters)]
    near, far = parameters[:PER_LAYER], parameters[PER_LAYER:]
    grads, before = [], []
    for layer, dilation in zip((near, far), dilations, strict=True):
        before.append(torch.empty_like(x))
        grads += _backward_of_layer(grad, x, layer, dilation, before[-1])
    grad_x = torch.empty_like(x)
    launch = _launch(FORWARD, x, parameters)
    _to_input[launch.grid](*before, near[0], far[0], grad_x, *dilations, *_sizes(x), **launch.options)
    return [grad_x, *grads]


def _backward_of_layer(
    grad: torch.Tensor, x: torch.Tensor, layer: Sequence[torch.Tensor], dilation: int, before: torch.Tensor
) -> list[torch.Tensor]:
    """Backward 1 of one branch: writes the gradient before its activation to `before`, and returns those of the weight,
    bias and slope."""
    weight, bias, _slope = layer
    launch = _launch(BACKWARD, x, layer)
    n_weights = launch.options["per_group"] * TAPS.value  # for each channel
    shares = x.new_empty(launch.grid.pixel_blocks, n_weights + 2, x.shape[1], dtype=arithmetic(x.dtype))
    _before_activation[launch.grid](x, *layer, grad, before, shares, dilation, *_sizes(x), **launch.options)
    total = shares.sum(0)
    of_weight = total[:n_weights].view(-1, TAPS.value, x.shape[1]).permute(2, 0, 1).reshape(weight.shape)
    # An operator's outputs must not share memory.
    of_bias, of_slope = (total[n_weights + row].to(bias.dtype, copy=True) for row in (0, 1))
    return [of_weight.to(weight.dtype).contiguous(), of_bias, of_slope]


class Sizes(NamedTuple):
    """The last arguments of every kernel that are not compiled in."""

    n_pixels: int  # of all images
    height: int
    width: int
    n_channels: int


class Grid(NamedTuple):
    """The number of programs along each axis."""

    pixel_blocks: int
    channel_blocks: int


class Launch(NamedTuple):
    """How a kernel is started: its programs, and what it is compiled for."""

    grid: Grid
    options: dict[str, object]


def _sizes(x: torch.Tensor) -> Sizes:
    n, c, h, w = x.shape
    return Sizes(n * h * w, h, w, c)


def _launch(block: Block, x: torch.Tensor, parameters: Sequence[torch.Tensor]) -> Launch:
    n_channels, channels_per_group = x.shape[1], parameters[0].shape[1]
    block_channels = min(block.channels, triton.next_power_of_2(n_channels))
    grid = Grid(triton.cdiv(_sizes(x).n_pixels, block.pixels), triton.cdiv(n_channels, block_channels))
    return Launch(
        grid,
        {
            "per_group": channels_per_group,
            "block_pixels": block.pixels,
            "block_channels": block_channels,
            "wide": tl.float64 if arithmetic(x.dtype) == torch.float64 else tl.float32,
            "num_warps": WARPS,
        },
    )
