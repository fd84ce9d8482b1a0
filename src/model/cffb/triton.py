"""The CFFB on a GPU, forward and backward, as Triton kernels; `cffb.py` registers them as its operator.

Imported only when a tensor on a GPU first needs it: Triton comes with torch's CUDA builds, and with no other. Maps are
(N, H, W, C) in memory, float32, float64, float16 or bfloat16; sums are taken in float32 (float64 for float64).

    forward       one pass: 17 neighbours of a pixel are read, out of the cache, for both branches
    backward 1    one pass: the two branches' gradients before their activations, and each program's share of the
                  parameters' gradients
    backward 2    one pass: the input's gradient from these

Deterministic: shares are summed in one order, without atomics.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

# The values that a program computes at a time: so few for each thread that they stay in its registers.
PIXELS = {"forward": 16, "backward": 64}  # of all the images' in a row
CHANNELS = {"forward": 64, "backward": 16}  # at most
WARPS = 8
TAPS = 9


@triton.jit
def _tap(maps, pixels, down, right, channels, shape, wide: tl.constexpr):
    """The values `down` and `right` of the pixels, (pixels, channels), zeros outside their image."""
    n_pixels, height, width, n_channels = shape
    rows, columns = pixels // width % height + down, pixels % width + right
    inside = (pixels < n_pixels) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    at = (pixels + down * width + right).to(tl.int64)[:, None] * n_channels + channels[None, :]
    return tl.load(maps + at, mask=inside[:, None] & (channels < n_channels)[None, :], other=0.0).to(wide)


@triton.jit
def _vector(values, channels, n_channels, wide: tl.constexpr):
    """One value a channel, (1, channels)."""
    return tl.load(values + channels, mask=channels < n_channels, other=0.0).to(wide)[None, :]


@triton.jit
def _branch(x, weight, bias, rate, pixels, channels, shape, per_group: tl.constexpr, wide: tl.constexpr):
    """A branch before its activation: (pixels, channels)."""
    n_channels = shape[3]
    sums = tl.zeros((pixels.shape[0], channels.shape[0]), dtype=wide) + _vector(bias, channels, n_channels, wide)
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            for member in tl.static_range(per_group):
                at = (channels * per_group + member) * 9 + dy * 3 + dx
                kernel = tl.load(weight + at, mask=channels < n_channels, other=0.0).to(wide)[None, :]
                source = channels // per_group * per_group + member
                sums += _tap(x, pixels, (dy - 1) * rate, (dx - 1) * rate, source, shape, wide) * kernel
    return sums


@triton.jit
def _store(maps, pixels, channels, shape, values):
    inside = (pixels < shape[0])[:, None] & (channels < shape[3])[None, :]
    at = pixels.to(tl.int64)[:, None] * shape[3] + channels[None, :]
    tl.store(maps + at, values.to(maps.dtype.element_ty), mask=inside)


@triton.jit
def _forward(
    x, weight0, bias0, slope0, weight1, bias1, slope1, plus, y, rate0, rate1, n_pixels, height, width, n_channels,
    add: tl.constexpr, per_group: tl.constexpr, many: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    shape = (n_pixels, height, width, n_channels)
    pixels = tl.program_id(0) * many + tl.arange(0, many)
    channels = tl.program_id(1) * block + tl.arange(0, block)
    near = _branch(x, weight0, bias0, rate0, pixels, channels, shape, per_group, wide)
    far = _branch(x, weight1, bias1, rate1, pixels, channels, shape, per_group, wide)
    out = tl.where(near > 0, near, near * _vector(slope0, channels, n_channels, wide))
    out += tl.where(far > 0, far, far * _vector(slope1, channels, n_channels, wide))
    if add:
        out += _tap(plus, pixels, 0, 0, channels, shape, wide)
    _store(y, pixels, channels, shape, out)


@triton.jit
def _before_activation(
    x, weight, bias, slope, grad, before, shares, rate, n_pixels, height, width, n_channels,
    per_group: tl.constexpr, many: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Backward 1, of one branch. A program's shares are (per_group * 9 + 2, C): kernel's taps, bias, slope."""
    shape = (n_pixels, height, width, n_channels)
    pixels = tl.program_id(0) * many + tl.arange(0, many)
    channels = tl.program_id(1) * block + tl.arange(0, block)
    there = channels < n_channels
    pre = _branch(x, weight, bias, rate, pixels, channels, shape, per_group, wide)
    outer = _tap(grad, pixels, 0, 0, channels, shape, wide)  # zeros for pixels that there are not
    inner = tl.where(pre > 0, outer, outer * _vector(slope, channels, n_channels, wide))
    _store(before, pixels, channels, shape, inner)
    share = shares + tl.program_id(0).to(tl.int64) * (per_group * 9 + 2) * n_channels + channels
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            for member in tl.static_range(per_group):
                source = channels // per_group * per_group + member
                seen = _tap(x, pixels, (dy - 1) * rate, (dx - 1) * rate, source, shape, wide)
                tl.store(share + (member * 9 + dy * 3 + dx) * n_channels, tl.sum(inner * seen, axis=0), mask=there)
    tl.store(share + per_group * 9 * n_channels, tl.sum(inner, axis=0), mask=there)
    negative = tl.where(pre > 0, tl.zeros_like(pre), pre * outer)
    tl.store(share + (per_group * 9 + 1) * n_channels, tl.sum(negative, axis=0), mask=there)


@triton.jit
def _to_input(
    before0, before1, weight0, weight1, grad_x, rate0, rate1, n_pixels, height, width, n_channels,
    per_group: tl.constexpr, many: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Backward 2: both transposed convolutions, summed."""
    shape = (n_pixels, height, width, n_channels)
    pixels = tl.program_id(0) * many + tl.arange(0, many)
    channels = tl.program_id(1) * block + tl.arange(0, block)
    there = channels < n_channels
    first = channels // per_group * per_group
    sums = tl.zeros((many, block), dtype=wide)
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            for member in tl.static_range(per_group):
                source = first + member
                at = (source * per_group + channels - first) * 9 + dy * 3 + dx
                kernel = tl.load(weight0 + at, mask=there, other=0.0).to(wide)[None, :]
                sums += _tap(before0, pixels, (1 - dy) * rate0, (1 - dx) * rate0, source, shape, wide) * kernel
                kernel = tl.load(weight1 + at, mask=there, other=0.0).to(wide)[None, :]
                sums += _tap(before1, pixels, (1 - dy) * rate1, (1 - dx) * rate1, source, shape, wide) * kernel
    _store(grad_x, pixels, channels, shape, sums)


def forward(
    x: torch.Tensor, parameters: Sequence[torch.Tensor], dilations: Sequence[int], plus: torch.Tensor | None
) -> list[torch.Tensor]:
    """The output of each CFFB of a chain, `plus` added to the last one's.

    All tensors are on one device, maps channels last, parameters contiguous.
    """
    outputs, last = [], len(parameters) - 6
    for first in range(0, len(parameters), 6):
        y = torch.empty_like(x)
        if x.numel():
            own, add = parameters[first : first + 6], plus is not None and first == last
            grid, sizes = _layout("forward", x, own)
            _forward[grid](x, *own, plus if add else x, y, *dilations, *_shape(x), add=add, **sizes)
        outputs.append(y)
        x = y
    return outputs


def backward(
    grad: torch.Tensor, x: torch.Tensor, parameters: Sequence[torch.Tensor], dilations: Sequence[int]
) -> list[torch.Tensor]:
    """The gradients of `x` and of each parameter."""
    if not x.numel():
        return [torch.empty_like(x), *(torch.zeros_like(parameter) for parameter in parameters)]
    grid, sizes = _layout("backward", x, parameters)
    taps = sizes["per_group"] * TAPS
    grads, before = [], []
    for number, rate in enumerate(dilations):
        weight, bias, slope = parameters[3 * number : 3 * number + 3]
        shares = x.new_empty(grid[0], taps + 2, x.shape[1], dtype=_wide(x))
        before.append(torch.empty_like(x))
        _before_activation[grid](x, weight, bias, slope, grad, before[-1], shares, rate, *_shape(x), **sizes)
        total = shares.sum(0)
        of_weight = total[:taps].view(-1, TAPS, x.shape[1]).permute(2, 0, 1).reshape(weight.shape)
        # An operator's outputs must not share memory.
        of_bias, of_slope = (total[taps + at].to(bias.dtype, copy=True) for at in (0, 1))
        grads += [of_weight.to(weight.dtype).contiguous(), of_bias, of_slope]
    grad_x = torch.empty_like(x)
    grid, sizes = _layout("forward", x, parameters)
    _to_input[grid](*before, parameters[0], parameters[3], grad_x, *dilations, *_shape(x), **sizes)
    return [grad_x, *grads]


def _shape(x: torch.Tensor) -> tuple[int, int, int, int]:
    n, c, h, w = x.shape
    return n * h * w, h, w, c


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _layout(direction: str, x: torch.Tensor, parameters: Sequence[torch.Tensor]) -> tuple[tuple[int, int], dict]:
    """The programs (groups of pixels, of channels), and what the kernels are compiled for."""
    n_pixels, *_, channels = _shape(x)
    many, block = PIXELS[direction], min(CHANNELS[direction], triton.next_power_of_2(channels))
    wide = tl.float64 if x.dtype == torch.float64 else tl.float32
    sizes = {"per_group": parameters[0].shape[1], "many": many, "block": block, "wide": wide, "num_warps": WARPS}
    return (triton.cdiv(n_pixels, many), triton.cdiv(channels, block)), sizes
