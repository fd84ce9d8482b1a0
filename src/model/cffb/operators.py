"""The operators krgn::cffb, cffb_backward, var_mean and taps, as torch knows them: schemas, the kernels of each device,
shapes without data (`register_fake`), gradients, and counts of operations.

`parameters` are those of `cpu.py`. Maps in half precision may have parameters in float32, those of an autocast, which
stay as they are.
"""

import math

import torch
from torch.utils.flop_counter import register_flop_formula

from . import cpu

# Not torch.library.custom_op: its functions import torch's compiler at their first call, a second of each start.
_SCHEMAS = {
    "cffb": "(Tensor x, Tensor[] parameters, int[] dilations, Tensor? plus, bool keep) -> Tensor[]",
    "cffb_backward": "(Tensor grad, Tensor x, Tensor[] parameters, int[] dilations) -> Tensor[]",
    "var_mean": "(Tensor x) -> Tensor[]",
    "taps": "(Tensor[] maps, Tensor[] parameters) -> Tensor[]",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"krgn::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)

torch.library.impl("krgn::cffb", "cpu", cpu.forward)
torch.library.impl("krgn::cffb_backward", "cpu", cpu.backward)
torch.library.impl("krgn::var_mean", "cpu", cpu.var_mean)
torch.library.impl("krgn::taps", "cpu", cpu.taps)


@torch.library.impl("krgn::cffb", "cuda")
def _(x, parameters, dilations, plus, keep):
    from . import triton  # Triton comes with torch's CUDA builds alone

    x, plus, parameters = cpu.laid_out(x, plus, parameters)
    with torch.cuda.device(x.device):
        outputs = triton.forward(x, parameters, dilations, plus)
    return outputs if keep else outputs[-1:]


@torch.library.impl("krgn::cffb_backward", "cuda")
def _(grad, x, parameters, dilations):
    from . import triton

    x, grad, parameters = cpu.laid_out(x, grad, parameters)
    with torch.cuda.device(x.device):
        return triton.backward(grad, x, parameters, dilations)


# --- shapes ---


@torch.library.register_fake("krgn::cffb")
def _(x, parameters, dilations, plus, keep):
    count = len(parameters) // cpu.PER_CFFB if keep else 1
    return [torch.empty_like(x, memory_format=torch.channels_last) for _ in range(count)]


@torch.library.register_fake("krgn::cffb_backward")
def _(grad, x, parameters, dilations):
    contiguous = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in parameters]
    return [torch.empty_like(x, memory_format=torch.channels_last), *contiguous]


@torch.library.register_fake("krgn::var_mean")
def _(x):
    return cpu.empty_statistics(x)


@torch.library.register_fake("krgn::taps")
def _(maps, parameters):
    out = torch.empty_like(maps[0], memory_format=torch.channels_last)
    return [out, *cpu.empty_statistics(out)]


# --- gradients ---


def _save_chain(ctx, inputs, output):
    x, parameters, ctx.dilations, plus, _ = inputs
    ctx.has_plus, ctx.stages = plus is not None, len(parameters) // cpu.PER_CFFB
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *output[:-1], *parameters)


def _differentiate_chain(ctx, grads):
    *between, last = grads
    if any(grad is not None for grad in between):
        raise NotImplementedError("only the last CFFB's output of a chain has a gradient")
    n_parameters = ctx.stages * cpu.PER_CFFB
    inputs, parameters = ctx.saved_tensors[:-n_parameters], ctx.saved_tensors[-n_parameters:]
    if len(inputs) < ctx.stages:
        raise NotImplementedError("a chain of CFFBs that were not kept has no gradient: call it with keep=True")
    if last is None:
        return None, [None] * n_parameters, None, None, None
    grad, of_parameters = last, []
    for stage in reversed(range(ctx.stages)):
        own = parameters[stage * cpu.PER_CFFB : (stage + 1) * cpu.PER_CFFB]
        grad, *of_own = torch.ops.krgn.cffb_backward(grad, inputs[stage], own, ctx.dilations)
        of_parameters = of_own + of_parameters
    return grad, of_parameters, None, last if ctx.has_plus else None, None


torch.library.register_autograd("krgn::cffb", _differentiate_chain, setup_context=_save_chain)


def _differentiate_var_mean(ctx, grads):
    x, mean = ctx.saved_tensors
    of_variance, of_mean = (grad / (x.shape[2] * x.shape[3]) for grad in grads)
    return torch.addcmul(of_mean - 2 * of_variance * mean, x.to(mean.dtype), 2 * of_variance).to(x.dtype)


torch.library.register_autograd(
    "krgn::var_mean",
    _differentiate_var_mean,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0], output[1]),
)


# --- operations, counted as torch counts those of convolutions: a sum and a product for each ---


@register_flop_formula(torch.ops.krgn.cffb)
def _chain_flops(x_shape, parameter_shapes, *_, **__) -> int:
    stages = len(parameter_shapes) // cpu.PER_CFFB
    convolutions, per_output = 2 * stages, math.prod(parameter_shapes[0][1:])
    return 2 * convolutions * math.prod(x_shape) * per_output


@register_flop_formula(torch.ops.krgn.cffb_backward)
def _backward_flops(_, x_shape, parameter_shapes, *__, **___) -> int:
    return 2 * _chain_flops(x_shape, parameter_shapes)  # without the outputs that are computed again


@register_flop_formula(torch.ops.krgn.taps)
def _taps_flops(map_shapes, parameter_shapes, *_, **__) -> int:
    n, _, h, w = map_shapes[0]
    return 2 * n * h * w * sum(math.prod(weight) for weight in parameter_shapes[:: cpu.PER_LAYER])
