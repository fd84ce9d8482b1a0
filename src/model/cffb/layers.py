"""The fused operators for layers of a network: whether they fit, and the call."""

from collections.abc import Sequence

import torch
from torch import nn

from .. import compat
from ..common import autocast_dtype
from ..recalibration import RecConv, kernel_of
from . import cpu, gpu, library, operators  # noqa: F401 (registers the operators)

LEAST_CHANNELS = 16  # those of the widest vector register


def fits(x: torch.Tensor, *branches: nn.Module) -> bool:
    """Whether `cffb` can take the place of a chain of CFFBs with these branches here; if not, torch's operators run.

    It can for branches that are `nn.Sequential(conv, PReLU(C))` without hooks. The convolutions are 3x3, C -> C with
    C >= 16, of one or two channels a group, of any dilation, with zero padding that keeps the size; every second one is
    alike. It runs on a CPU in float32, float64 and bfloat16 where the library was requested (`build`,
    `build_when_needed`), and on a GPU in half precision too. What is exported or traced keeps torch's own operators, so
    that it runs elsewhere.

    Args:
        x: (N, C, H, W).
        branches: near, far of the first CFFB, then of the next.
    """
    return (
        not (torch.jit.is_tracing() or torch.compiler.is_exporting())
        and all(_is_branch(branch, x) for branch in branches)
        and len({branch[0].groups for branch in branches}) == 1
        and all(branches[number][0].dilation == branches[number % 2][0].dilation for number in range(len(branches)))
        and _runs_on(x, _dtype_of_maps(x))
    )


def cffb(x: torch.Tensor, *branches: nn.Sequential, plus: torch.Tensor | None = None) -> torch.Tensor:
    """A CFFB, near(x) + far(x), or a chain of them, and + `plus` if it is given; only where `fits` says so.

    One pass over memory for all of them. Where gradients are wanted, what lies between them is written too.

    Args:
        x: (N, C, H, W) of any layout, any H, W.
        branches: near, far of the first CFFB, then of the next.
        plus: like `x`.

    Returns:
        (N, C, H, W), channels last in memory. Differentiable once.

    Raises:
        ValueError: if `plus` has another shape than `x`.
        MemoryError: if there is no memory for the CPU's buffers.
    """
    x = x.to(_dtype_of_maps(x))
    plus = None if plus is None else plus.to(x.dtype)
    parameters = [tensor for conv, act in branches for tensor in (kernel_of(conv), conv.bias, act.weight)]
    dilations = [branch[0].dilation[0] for branch in branches[:2]]
    tensors = [tensor for tensor in (x, plus, *parameters) if tensor is not None]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return torch.ops.krgn.cffb(x, parameters, dilations, plus, keep)[-1]


def var_mean(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance (divided by H * W) and mean of each channel: (N, C, H, W) -> twice (N, C, 1, 1). Differentiable once.

    They are float32 for maps in half precision, whose sums of squares would overflow or lose precision. Where the CPU's
    library can be used it takes the place of `torch.var_mean`, which over channels-last memory takes as long as ten
    CFFBs.
    """
    if not x.is_cuda and _runs_on(x, x.dtype) and x.numel():
        return tuple(torch.ops.krgn.var_mean(x))
    return torch.var_mean(x.to(cpu.arithmetic(x.dtype)), dim=(2, 3), correction=0, keepdim=True)


def taps_fit(x: torch.Tensor, conv1x1s: Sequence[nn.Sequential], fusion: nn.Sequential) -> bool:
    """Whether `taps` can take the place of a PMRB's 1x1 convolutions: without gradients, on a CPU where the library was
    requested, with numbers of channels that fill vector registers, and without hooks."""
    layers = (*conv1x1s, fusion)
    convs, acts = [layer[0] for layer in layers], [layer[1] for layer in layers]
    return (
        not (torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling())
        and x.device.type == "cpu"
        and x.numel() > 0
        and x.dtype == _dtype_of_maps(x)
        and (convs[0].weight.dtype == x.dtype or autocast_dtype(x))
        and _runs_on(x, x.dtype)
        and all(type(conv) is nn.Conv2d and conv.bias is not None for conv in convs)
        and all(type(act) in _SLOPES for act in acts)
        and not any(compat.has_forward_hooks(module) for module in (*convs, *acts, *layers))
        and all(conv.out_channels % cpu.taps_multiple(x.dtype) == 0 for conv in convs)
    )


def taps(
    maps: Sequence[torch.Tensor], conv1x1s: Sequence[nn.Sequential], fusion: nn.Sequential
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The taps of a PMRB, fused: fusion(cat(conv1x1s[0](maps[0]), ..., maps[3])), with the mean and variance of each
    channel. Only where `taps_fit` says so.

    One pass over memory: what lies between the convolutions stays in the cache.

    Args:
        maps: the feature before each of the three RCGs, (N, C, H, W), and the last tap, (N, C/2, H, W).
        conv1x1s, fusion: each a 1x1 convolution and its activation.

    Returns:
        (N, C, H, W), channels last in memory, and its (mean, variance), (N, C, 1, 1) each.
    """
    layers = [(conv.weight, conv.bias, _SLOPES[type(act)](act, conv)) for conv, act in (*conv1x1s, fusion)]
    out, variance, mean = torch.ops.krgn.taps(maps, [tensor for layer in layers for tensor in layer])
    return out, (mean, variance)


# The slope for negative values of each activation, one for each output channel.
_SLOPES = {
    nn.LeakyReLU: lambda act, conv: torch.full((conv.out_channels,), act.negative_slope, dtype=conv.weight.dtype),
    nn.ReLU: lambda act, conv: torch.zeros(conv.out_channels, dtype=conv.weight.dtype),
    nn.PReLU: lambda act, conv: act.weight.expand(conv.out_channels),
}


def _dtype_of_maps(x: torch.Tensor) -> torch.dtype:
    """The dtype in which `cffb` runs: the input's, or that of an autocast."""
    return autocast_dtype(x) or x.dtype


def _runs_on(x: torch.Tensor, dtype: torch.dtype) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or x.dim() != 4 or x.shape[1] < LEAST_CHANNELS:
        return False
    if x.is_cuda:
        return dtype in gpu.DTYPES and gpu.available()
    return x.device.type == "cpu" and dtype in library.DTYPES and library.available(dtype)


def _is_branch(branch: nn.Module, x: torch.Tensor) -> bool:
    if type(branch) is not nn.Sequential or len(branch) != 2:
        return False
    conv, act = branch
    return (
        type(conv) in (nn.Conv2d, RecConv)
        and type(act) is nn.PReLU
        and conv.in_channels == conv.out_channels == act.num_parameters == x.shape[1]
        and conv.groups in (conv.in_channels, conv.in_channels / 2)
        and conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == conv.dilation
        and conv.dilation[0] == conv.dilation[1]
        and conv.padding_mode == "zeros"
        and conv.bias is not None
        and (conv.weight.dtype == act.weight.dtype == x.dtype or autocast_dtype(x))
        and not any(compat.has_forward_hooks(module) for module in (branch, conv, act))
    )
