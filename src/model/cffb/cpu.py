"""The CPU's kernels: calls of the C++ library (`cffb.cpp`, `pmrb.cpp`) with CPU tensors.

The structures mirror those of the C++ files, field by field. The parameters of a CFFB are six tensors: weight
(C, C/groups, 3, 3), bias (C) and slope (C) of the near branch, then of the far one.
"""

import ctypes
from collections.abc import Iterator, Sequence

import torch

from . import library

PER_LAYER = 3  # parameters: weight, bias, slope
PER_CFFB = 2 * PER_LAYER


class MapSizes(ctypes.Structure):
    """`MapSizes` of cffb.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "h", "w", "c", "channels_per_group")),
        ("dilation", ctypes.c_int64 * 2),
    ]


class TapSizes(ctypes.Structure):
    """`TapSizes` of pmrb.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("n", "pixels", "c", "tap")]


class Layer(ctypes.Structure):
    """`Layer` of vectors.h: the addresses of a layer's parameters."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias", "slope")]


def forward(
    x: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    dilations: Sequence[int],
    plus: torch.Tensor | None,
    keep: bool,
) -> list[torch.Tensor]:
    """The output of the last CFFB of a chain, + `plus`; with `keep` those of all.

    Args:
        x: (N, C, H, W).
        parameters: six for each CFFB.
        dilations: of the near and of the far branch.
        plus: like `x`.

    Raises:
        ValueError: if `plus` is not like `x`.
        MemoryError: if there is no memory for the buffers.
    """
    x, plus, parameters = laid_out(x, plus, _widened(parameters, x))
    stages = len(parameters) // PER_CFFB
    outputs = [torch.empty_like(x) if keep or stage == stages - 1 else None for stage in range(stages)]
    sizes = _map_sizes(x, parameters[0].shape[1], dilations)
    _call("cffb_forward", x, _at(x), _layers(parameters), ctypes.c_int64(stages), _at(plus), _each(outputs), sizes)
    return [output for output in outputs if output is not None]


def backward(
    grad: torch.Tensor, x: torch.Tensor, parameters: Sequence[torch.Tensor], dilations: Sequence[int]
) -> list[torch.Tensor]:
    """The gradients of a CFFB's input and of each parameter, from that of its output; the convolutions' outputs are
    computed again, not kept. Arguments and errors are those of `forward`."""
    x, grad, wide = laid_out(x, grad, _widened(parameters, x))
    grad_x, grads = torch.empty_like(x), [torch.empty_like(tensor) for tensor in wide]
    sizes = _map_sizes(x, wide[0].shape[1], dilations)
    _call("cffb_backward", x, _at(x), _layers(wide), _at(grad), _at(grad_x), _layers(grads), sizes)
    return [grad_x, *(grad.to(tensor.dtype) for grad, tensor in zip(grads, parameters, strict=True))]


def var_mean(x: torch.Tensor) -> list[torch.Tensor]:
    """Variance (divided by H * W) and mean of each channel: (N, C, H, W) -> twice (N, C, 1, 1)."""
    x = _channels_last(x)
    variance, mean = empty_statistics(x)
    _call("var_mean", x, _at(x), _at(variance), _at(mean), _map_sizes(x))
    return [variance, mean]


def taps(maps: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The fused taps of a PMRB, (N, C, H, W), and their channels' variance and mean, (N, C, 1, 1) each.

    Args:
        maps: the feature before each of the three RCGs, (N, C, H, W), and the last tap, (N, C/2, H, W).
        parameters: weight, bias and slope of the first three taps' 1x1 convolutions and of the fusion.
    """
    maps = [_channels_last(each) for each in maps]
    x = maps[0]
    parameters = [tensor.contiguous() for tensor in _widened(parameters, x)]
    n, c, h, w = x.shape
    out, (variance, mean) = torch.empty_like(x), empty_statistics(x)
    sizes = ctypes.byref(TapSizes(n=n, pixels=h * w, c=c, tap=maps[3].shape[1]))
    _call("pmrb_taps", x, _each(maps), _layers(parameters), _at(out), _at(variance), _at(mean), sizes)
    return [out, variance, mean]


def taps_multiple(dtype: torch.dtype) -> int:
    """What the numbers of channels of `taps` must be multiples of, for maps of `dtype`.

    Raises:
        Unavailable: if the library cannot be built or loaded.
    """
    return library.load(dtype).pmrb_channel_multiple()


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on maps of `dtype`."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def laid_out(x: torch.Tensor, other: torch.Tensor | None, parameters: Sequence[torch.Tensor]) -> tuple:
    """`x`, another map of its shape or None, and the parameters, as the kernels read them: channels last, contiguous.

    Raises:
        ValueError: if the other map has another shape or dtype.
    """
    if other is not None:
        if (other.shape, other.dtype) != (x.shape, x.dtype):
            raise ValueError(f"got {other.dtype} {tuple(other.shape)}, expected the input's {x.dtype} {tuple(x.shape)}")
        other = _channels_last(other)
    return _channels_last(x), other, [tensor.contiguous() for tensor in parameters]


def empty_statistics(x: torch.Tensor) -> list[torch.Tensor]:
    """Two uninitialised tensors for statistics of the channels of `x`: (N, C, 1, 1), in the dtype of the arithmetic."""
    return [x.new_empty((*x.shape[:2], 1, 1), dtype=arithmetic(x.dtype)) for _ in range(2)]


def _widened(parameters: Sequence[torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The parameters in the dtype of the arithmetic on `x`."""
    return [tensor.to(arithmetic(x.dtype)) for tensor in parameters]


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _at(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _each(tensors: Sequence[torch.Tensor | None]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(_at(tensor) for tensor in tensors))


def _layers(parameters: Sequence[torch.Tensor]) -> ctypes.Array:
    """An array of `Layer`, from three parameters for each."""
    layers = [Layer(*(tensor.data_ptr() for tensor in own)) for own in _in_threes(parameters)]
    return (Layer * len(layers))(*layers)


def _in_threes(parameters: Sequence[torch.Tensor]) -> Iterator[Sequence[torch.Tensor]]:
    return (parameters[first : first + PER_LAYER] for first in range(0, len(parameters), PER_LAYER))


def _map_sizes(x: torch.Tensor, channels_per_group: int = 0, dilations: Sequence[int] = (0, 0)):
    """A reference to the `MapSizes` of `x`; `var_mean` needs neither groups nor dilations."""
    n, c, h, w = x.shape
    return ctypes.byref(MapSizes(n, h, w, c, channels_per_group, tuple(dilations)))


def _call(name: str, x: torch.Tensor, *arguments) -> None:
    """Calls a function of the library for maps of `x`'s dtype.

    Raises:
        MemoryError: if there is no memory for its buffers.
    """
    if getattr(library.load(x.dtype), name)(*arguments):
        raise MemoryError(
            f"no memory for the buffers of a CFFB of a map {tuple(x.shape)}: use --tile or smaller batches"
        )
