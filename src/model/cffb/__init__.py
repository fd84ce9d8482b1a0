"""The CFFB as one operator: two 3x3 convolutions of the same input, each with its PReLU, summed in one pass; and, on
CPUs without gradients, the taps of a PMRB, four 1x1 convolutions with what lies between them.

torch's separate operators pass over memory six times, which takes longer than the arithmetic.

CPU: its C++ is compiled for the user's processor when it is first needed, by one call of the C++ compiler, and
kept in torch's folder of extensions (`TORCH_EXTENSIONS_DIR`, by default `~/.cache/torch_extensions`). GPU: the Triton
kernels of `kernels.py`, compared with the plain operators on a small map before they are first used. Where either
cannot be had, and with `KRGN_FUSED=0` in the environment, the plain operators run; the log says in one line which do.

Deterministic: the same inputs give the same bits on the same processor, for any number of threads.
"""

import ctypes
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from ..common import autocast_dtype
from ..recalibration import RecConv, kernel_of

log = logging.getLogger("krgn")

SOURCES = [Path(__file__).parent / name for name in ("vectors.h", "cffb.cpp", "pmrb.cpp")]
COMPILE = "-O3 -march=native -std=c++17 -ffp-contract=fast -fopenmp -fPIC -shared -Wno-psabi".split()
# The C++ types of the maps and of the arithmetic on them. Each has a library of its own, which takes a few seconds to
# build: few people need more than one.
DTYPES = {
    torch.float32: ("float", "float"),
    torch.float64: ("double", "double"),
    torch.bfloat16: ("bfloat16", "float"),
}
GPU_DTYPES = (*DTYPES, torch.float16)
LEAST_CHANNELS = 16  # those of the widest vector register


def fits(x: torch.Tensor, *branches: nn.Module) -> bool:
    """Whether `cffb` can stand for a chain of CFFBs with these branches here; if not, plain operators do.

    It does for branches that are `nn.Sequential(conv, PReLU(C))` without hooks, the convolutions 3x3, C -> C with
    C >= 16, of one or two channels a group, of any dilation, keeping the size, every second one alike; on a CPU in
    float32, float64 and bfloat16, on a GPU also in half precision. What is exported or traced keeps torch's own
    operators, so that it runs elsewhere.
    """
    return (
        not (torch.jit.is_tracing() or torch.compiler.is_exporting())
        and all(_is_branch(branch, x) for branch in branches)
        and len({branch[0].groups for branch in branches}) == 1
        and all(branches[number][0].dilation == branches[number % 2][0].dilation for number in range(len(branches)))
        and _runs_on(x, _dtype_of_maps(x))
    )


def _dtype_of_maps(x: torch.Tensor) -> torch.dtype:
    """The dtype in which `cffb` runs: the input's, or that of an autocast."""
    return autocast_dtype(x) or x.dtype


def _runs_on(x: torch.Tensor, dtype: torch.dtype) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or x.dim() != 4 or x.shape[1] < LEAST_CHANNELS:
        return False
    if x.is_cuda:
        return dtype in GPU_DTYPES and available_on_gpu()
    return x.device.type == "cpu" and dtype in DTYPES and available(dtype)


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
        and not (branch._forward_hooks or branch._forward_pre_hooks or conv._forward_hooks or conv._forward_pre_hooks)
        and not (act._forward_hooks or act._forward_pre_hooks)
    )


def cffb(x: torch.Tensor, *branches: nn.Sequential, plus: torch.Tensor | None = None) -> torch.Tensor:
    """A CFFB, near(x) + far(x), or a chain of them, and + `plus` if it is given; only where `fits` says so.

    One pass over memory for all of them; where gradients are wanted, it writes what lies between them too.

    Args:
        x: (N, C, H, W) of any layout, any H, W.
        branches: near, far of the first CFFB, then of the next.

    Returns:
        (N, C, H, W), channels last in memory. Differentiable once.
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

    They are float32 for maps in half precision, whose sums of squares would overflow or lose what counts.
    `torch.var_mean` with the operator of this file where that can run: over channels-last memory torch's takes as long
    as ten CFFBs.
    """
    if not x.is_cuda and _runs_on(x, x.dtype) and x.numel():
        return tuple(torch.ops.krgn.var_mean(x))
    return torch.var_mean(x.to(_arithmetic(x.dtype)), dim=(2, 3), correction=0, keepdim=True)


def taps_fit(x: torch.Tensor, conv1x1s: Sequence[nn.Sequential], fusion: nn.Sequential) -> bool:
    """Whether `taps` can take the place of a PMRB's 1x1 convolutions: without gradients, on a CPU, where the numbers of
    channels fill vector registers and nobody looks in between."""
    convs, acts = [pair[0] for pair in (*conv1x1s, fusion)], [pair[1] for pair in (*conv1x1s, fusion)]
    return (
        not (torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling())
        and x.device.type == "cpu"
        and x.numel() > 0
        and x.dtype == _dtype_of_maps(x)
        and (convs[0].weight.dtype == x.dtype or autocast_dtype(x))
        and _runs_on(x, x.dtype)
        and all(type(conv) is nn.Conv2d and conv.bias is not None for conv in convs)
        and all(type(act) in _SLOPES for act in acts)
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in (*convs, *acts, *conv1x1s, fusion))
        and all(conv.out_channels % library(x.dtype).pmrb_multiple() == 0 for conv in convs)
    )


_SLOPES = {
    nn.LeakyReLU: lambda act, conv: torch.full((conv.out_channels,), act.negative_slope, dtype=conv.weight.dtype),
    nn.ReLU: lambda act, conv: torch.zeros(conv.out_channels, dtype=conv.weight.dtype),
    nn.PReLU: lambda act, conv: act.weight.expand(conv.out_channels),
}


def taps(
    maps: Sequence[torch.Tensor], conv1x1s: Sequence[nn.Sequential], fusion: nn.Sequential
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The taps of a PMRB, fused: fusion(cat(conv1x1s[0](maps[0]), ..., maps[3])), with the mean and variance of each
    channel. Only where `taps_fit` says so.

    One pass over memory: what lies between the convolutions stays in the cache.

    Args:
        maps: the feature before each of the three groups, (N, C, H, W), and the last tap, (N, C/2, H, W).
        conv1x1s, fusion: each a 1x1 convolution and its activation.

    Returns:
        (N, C, H, W), channels last in memory, and its (mean, variance), (N, C, 1, 1) each.
    """
    layers = [(conv.weight, conv.bias, _SLOPES[type(act)](act, conv)) for conv, act in (*conv1x1s, fusion)]
    out, variance, mean = torch.ops.krgn.taps(maps, [tensor for layer in layers for tensor in layer])
    return out, (mean, variance)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on maps of `dtype`."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


# --- the operators; `parameters` are weight (C, C/groups, 3, 3), bias (C) and slope (C) of both branches of a CFFB, and
# of those that follow it. `cffb` returns the last one's output, with `keep` those of all. Maps in half precision may
# have parameters in float32, of an autocast, which stay as they are ---


# Not torch.library.custom_op: its functions import torch's compiler at their first call, a second of each start.
_DEFINED = {
    "cffb": "(Tensor x, Tensor[] parameters, int[] dilations, Tensor? plus, bool keep) -> Tensor[]",
    "cffb_backward": "(Tensor grad, Tensor x, Tensor[] parameters, int[] dilations) -> Tensor[]",
    "var_mean": "(Tensor x) -> Tensor[]",
    "taps": "(Tensor[] maps, Tensor[] parameters) -> Tensor[]",
}
for _name, _schema in _DEFINED.items():
    torch.library.define(f"krgn::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)


@torch.library.impl("krgn::cffb", "cpu")
def _forward(
    x: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    dilations: Sequence[int],
    plus: torch.Tensor | None,
    keep: bool,
) -> list[torch.Tensor]:
    x, plus, parameters = _laid_out(x, plus, _widened(parameters, x))
    stages = len(parameters) // 6
    outputs = [torch.empty_like(x) if keep or stage == stages - 1 else None for stage in range(stages)]
    sizes = _sizes(x, parameters, dilations)
    _call("cffb_forward", x, _at(x), _each(parameters), ctypes.c_int64(stages), _at(plus), _each(outputs), sizes)
    return [output for output in outputs if output is not None]


@torch.library.impl("krgn::cffb", "cuda")
def _(x, parameters, dilations, plus, keep):
    from . import triton as kernels  # Triton comes with torch's CUDA builds alone

    x, plus, parameters = _laid_out(x, plus, parameters)
    with torch.cuda.device(x.device):
        outputs = kernels.forward(x, parameters, dilations, plus)
    return outputs if keep else outputs[-1:]


@torch.library.impl("krgn::cffb_backward", "cpu")
def _backward(
    grad: torch.Tensor, x: torch.Tensor, parameters: Sequence[torch.Tensor], dilations: Sequence[int]
) -> list[torch.Tensor]:
    """The gradients of `x` and of each parameter; the convolutions' outputs are computed again, not kept."""
    x, grad, wide = _laid_out(x, grad, _widened(parameters, x))
    grad_x, grads = torch.empty_like(x), [torch.empty_like(tensor) for tensor in wide]
    sizes = _sizes(x, wide, dilations)
    _call("cffb_backward", x, _at(x), _each(wide), _at(grad), _at(grad_x), _each(grads), sizes)
    return [grad_x, *(grad.to(tensor.dtype) for grad, tensor in zip(grads, parameters, strict=True))]


@torch.library.impl("krgn::cffb_backward", "cuda")
def _(grad, x, parameters, dilations):
    from . import triton as kernels

    x, grad, parameters = _laid_out(x, grad, parameters)
    with torch.cuda.device(x.device):
        return kernels.backward(grad, x, parameters, dilations)


@torch.library.register_fake("krgn::cffb")
def _(x, parameters, dilations, plus, keep):
    count = len(parameters) // 6 if keep else 1
    return [torch.empty_like(x, memory_format=torch.channels_last) for _ in range(count)]


@torch.library.register_fake("krgn::cffb_backward")
def _(grad, x, parameters, dilations):
    contiguous = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in parameters]
    return [torch.empty_like(x, memory_format=torch.channels_last), *contiguous]


def _keep(ctx, inputs, output):
    x, parameters, ctx.dilations, plus, _ = inputs
    ctx.plus, ctx.stages = plus is not None, len(parameters) // 6
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *output[:-1], *parameters)


def _differentiate(ctx, grads):
    *between, last = grads
    stages = ctx.stages
    if any(grad is not None for grad in between):
        raise NotImplementedError("only the last CFFB's output of a chain has a gradient")
    inputs, parameters = ctx.saved_tensors[: -6 * stages], ctx.saved_tensors[-6 * stages :]
    if len(inputs) < stages:
        raise NotImplementedError("a chain of CFFBs that were not kept has no gradient: call it with keep=True")
    if last is None:
        return None, [None] * len(parameters), None, None, None
    grad, of_parameters = last, []
    for stage in reversed(range(stages)):
        grad, *own = torch.ops.krgn.cffb_backward(
            grad, inputs[stage], parameters[6 * stage : 6 * stage + 6], ctx.dilations
        )
        of_parameters = own + of_parameters
    return grad, of_parameters, None, last if ctx.plus else None, None


torch.library.register_autograd("krgn::cffb", _differentiate, setup_context=_keep)


@torch.library.impl("krgn::var_mean", "cpu")
def _var_mean(x: torch.Tensor) -> list[torch.Tensor]:
    x = _channels_last(x)
    variance, mean = _per_channel(x)
    _call("var_mean", x, _at(x), _at(variance), _at(mean), (ctypes.c_int64 * 4)(*_nhwc(x)))
    return [variance, mean]


@torch.library.register_fake("krgn::var_mean")
def _(x):
    return _per_channel(x)


def _differentiate_var_mean(ctx, grads):
    x, mean = ctx.saved_tensors
    of_variance, of_mean = (grad / (x.shape[2] * x.shape[3]) for grad in grads)
    return torch.addcmul(of_mean - 2 * of_variance * mean, x.to(mean.dtype), 2 * of_variance).to(x.dtype)


torch.library.register_autograd(
    "krgn::var_mean",
    _differentiate_var_mean,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0], output[1]),
)


class _TapsShape(ctypes.Structure):
    """`Shape` of pmrb.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("n", "pixels", "c", "tap")]


@torch.library.impl("krgn::taps", "cpu")
def _taps(maps: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    maps = [_channels_last(each) for each in maps]
    x = maps[0]
    parameters = [tensor.contiguous() for tensor in _widened(parameters, x)]
    n, h, w, c = _nhwc(x)
    out, (variance, mean) = torch.empty_like(x), _per_channel(x)
    shape = _TapsShape(n, h * w, c, maps[3].shape[1])
    _call("pmrb_taps", x, _each(maps), _each(parameters), _at(out), _at(variance), _at(mean), ctypes.byref(shape))
    return [out, variance, mean]


@torch.library.register_fake("krgn::taps")
def _(maps, parameters):
    out = torch.empty_like(maps[0], memory_format=torch.channels_last)
    return [out, *_per_channel(out)]


@register_flop_formula(torch.ops.krgn.taps)
def _taps_flops(map_shapes, parameter_shapes, *_, **__) -> int:
    n, _, h, w = map_shapes[0]
    return 2 * n * h * w * sum(math.prod(parameter_shapes[3 * layer]) for layer in range(4))


@register_flop_formula(torch.ops.krgn.cffb)
def _flops(x_shape, parameter_shapes, *_, **__) -> int:
    stages = len(parameter_shapes) // 6
    return 4 * math.prod(x_shape) * math.prod(parameter_shapes[0][1:]) * stages  # two convolutions; a sum, a product


@register_flop_formula(torch.ops.krgn.cffb_backward)
def _backward_flops(_, x_shape, parameter_shapes, *__, **___) -> int:
    return 2 * _flops(x_shape, parameter_shapes)  # as torch counts: the outputs computed again are left out


def _laid_out(x: torch.Tensor, other: torch.Tensor | None, parameters: Sequence[torch.Tensor]) -> tuple:
    """`x`, another map of its shape or None, and the parameters, as the kernels read them."""
    if other is not None:
        if (other.shape, other.dtype) != (x.shape, x.dtype):
            raise ValueError(f"got {other.dtype} {tuple(other.shape)}, expected the input's {x.dtype} {tuple(x.shape)}")
        other = _channels_last(other)
    return _channels_last(x), other, [tensor.contiguous() for tensor in parameters]


def _widened(parameters: Sequence[torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The parameters in the dtype of the arithmetic on `x`."""
    return [tensor.to(_arithmetic(x.dtype)) for tensor in parameters]


def _per_channel(x: torch.Tensor) -> list[torch.Tensor]:
    """Room for two statistics of each channel of `x`."""
    return [x.new_empty((*x.shape[:2], 1, 1), dtype=_arithmetic(x.dtype)) for _ in range(2)]


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _at(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _each(tensors: Sequence[torch.Tensor | None]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(_at(tensor) for tensor in tensors))


def _sizes(x: torch.Tensor, parameters: Sequence[torch.Tensor], dilations: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * 7)(*_nhwc(x), parameters[0].shape[1], *dilations)


def _nhwc(x: torch.Tensor) -> list[int]:
    return [x.shape[axis] for axis in (0, 2, 3, 1)]


def _call(name: str, x: torch.Tensor, *arguments) -> None:
    """Calls a function of the library, for maps of `x`'s dtype."""
    if getattr(library(x.dtype), name)(*arguments):
        raise MemoryError(
            f"no memory for the buffers of a CFFB of a map {tuple(x.shape)}: use --tile or smaller batches"
        )


# --- building it ---


class Unavailable(Exception):
    """Why the kernel cannot be used here, in a few words."""


def _constant(function):
    """`torch.compiler.assume_constant_result`, which would import the whole compiler: a second of each start."""
    function._dynamo_marked_constant = True
    return function


@_constant
def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether the kernel can be used for maps of a dtype, after building it if need be; the log says so once."""
    return _tried(dtype)


@cache
def _tried(dtype: torch.dtype) -> bool:
    try:
        library(dtype)
    except Unavailable as error:
        log.info("the CPU runs torch's separate operators, which is slower: %s", error)
        return False
    return True


@_constant
def available_on_gpu() -> bool:
    """Whether Triton's kernels can be used on this GPU, after a comparison; the log says so once."""
    return _tried_on_gpu()


@cache
def _tried_on_gpu() -> bool:
    try:
        if os.environ.get("KRGN_FUSED") == "0":
            raise Unavailable("KRGN_FUSED=0")
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            difference = _difference("cuda")
        if not difference < 1e-4:
            raise Unavailable(f"the fused ones are off by {difference:.1g}")
    except Exception as error:  # whatever Triton, its compiler and the driver raise
        log.info("the GPU runs torch's separate operators: %s", (str(error).splitlines() or [type(error).__name__])[0])
        return False
    log.info("the GPU runs fused operators (Triton)")
    return True


def _difference(device: str) -> float:
    """The largest difference of values and gradients from those of plain operators on the CPU, on a small map."""
    shapes = [(1, 16, 5, 7), *[(16, 1, 3, 3), (16,), (16,)] * 2, (1, 16, 5, 7)]
    # No random numbers: a run's must stay as they are.
    tensors = [torch.arange(math.prod(shape)).mul(i + 2.0).sin().view(shape) for i, shape in enumerate(shapes)]
    x, *parameters, grad = (tensor.requires_grad_() for tensor in tensors)
    expected = 0
    for number, rate in enumerate((1, 3)):
        weight, bias, slope = parameters[3 * number : 3 * number + 3]
        convolved = torch.nn.functional.conv2d(x, weight, bias, padding=rate, dilation=rate, groups=16)
        expected = expected + torch.nn.functional.prelu(convolved, slope)
    wanted = [expected, *torch.autograd.grad(expected, [x, *parameters], grad)]
    there, *rest, grad = (tensor.detach().to(device) for tensor in tensors)
    got = [
        *torch.ops.krgn.cffb(there, rest, [1, 3], None, True),
        *torch.ops.krgn.cffb_backward(grad, there, rest, [1, 3]),
    ]
    return max((a.cpu() - b).abs().max().item() for a, b in zip(got, wanted, strict=True))


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The kernel for maps of a dtype, loaded; it is built if it is not there for this source, torch and processor.

    Raises:
        Unavailable: if it is switched off or cannot be built or loaded.
    """
    if os.environ.get("KRGN_FUSED") == "0":
        raise Unavailable("KRGN_FUSED=0")
    names = [os.environ.get("CXX"), "g++", "c++", "clang++"]
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.expanduser("~/.cache/torch_extensions")
    # Code for this processor may be none for the next machine that shares the folder.
    stored, computed = DTYPES[dtype]
    options = [*COMPILE, f"-DSTORED={stored}", f"-DCOMPUTED={computed}"]
    identity = [*(path.read_text() for path in SOURCES), *options, str(compiler), torch.__version__, _processor()]
    path = Path(root, "krgn", f"cffb-{stored}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so")
    if not path.exists():
        _build(compiler, options, path)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded ({error})") from None
    log.info("the CPU runs fused operators: %s", path)
    return loaded


def _build(compiler: str | None, options: list[str], path: Path) -> None:
    """Compiles the source to `path`. Several processes may do so at once: each file is renamed when it is whole."""
    if compiler is None:
        raise Unavailable("there is no C++ compiler (install g++, or name one in CXX)")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    begun = time.perf_counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [str(source) for source in SOURCES if source.suffix == ".cpp"]
        run = subprocess.run([compiler, *options, *files, "-o", str(temporary)], capture_output=True, text=True)
        if run.returncode:
            said = [line for line in run.stderr.splitlines() if "error" in line] or [f"status {run.returncode}"]
            raise Unavailable(f"{compiler} failed ({said[0][:200]})")
        os.replace(temporary, path)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written ({error.strerror})") from None
    finally:
        if temporary.exists():
            temporary.unlink()
    log.info("fused operators compiled with %s in %.1f s", compiler, time.perf_counter() - begun)


def _processor() -> str:
    """What decides which instructions the compiler may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        return platform.machine() + platform.processor()
