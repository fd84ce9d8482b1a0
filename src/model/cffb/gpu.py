"""Whether Triton's kernels can be used on this GPU: they are compared with torch's operators once, on a small map."""

import logging
import math
from functools import cache

import torch
import torch.nn.functional as F

from ..compat import assume_constant
from .cpu import PER_LAYER
from .library import DTYPES as CPU_DTYPES
from .library import Unavailable, refuse_if_switched_off

log = logging.getLogger("krgn")

DTYPES = (*CPU_DTYPES, torch.float16)
TOLERANCE = 1e-4
CHANNELS = 16
DILATIONS = (1, 3)


@assume_constant
def available() -> bool:
    """Whether Triton's kernels can be used on this GPU, after a comparison; the log says so once."""
    return _passes()


@cache
def _passes() -> bool:
    try:
        refuse_if_switched_off()
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            difference = largest_difference("cuda")
        if not difference < TOLERANCE:
            raise Unavailable(f"the fused ones are off by {difference:.1g}")
    except Exception as error:  # whatever Triton, its compiler and the driver raise
        log.info("the GPU runs torch's separate operators: %s", (str(error).splitlines() or [type(error).__name__])[0])
        return False
    log.info("the GPU runs fused operators (Triton)")
    return True


def largest_difference(device: str) -> float:
    """The largest difference between a CFFB on `device` and torch's operators on the CPU, in values and gradients."""
    shapes = [(1, CHANNELS, 5, 7), *[(CHANNELS, 1, 3, 3), (CHANNELS,), (CHANNELS,)] * 2, (1, CHANNELS, 5, 7)]
    # No random numbers: the generator's state belongs to the run.
    tensors = [torch.arange(math.prod(shape)).mul(i + 2.0).sin().view(shape) for i, shape in enumerate(shapes)]
    x, *parameters, grad = (tensor.requires_grad_() for tensor in tensors)
    y = 0
    for branch, dilation in enumerate(DILATIONS):
        weight, bias, slope = parameters[branch * PER_LAYER : (branch + 1) * PER_LAYER]
        y = y + F.prelu(F.conv2d(x, weight, bias, padding=dilation, dilation=dilation, groups=CHANNELS), slope)
    expected = [y, *torch.autograd.grad(y, [x, *parameters], grad)]
    x, *parameters, grad = (tensor.detach().to(device) for tensor in tensors)
    got = [
        *torch.ops.krgn.cffb(x, parameters, DILATIONS, None, True),
        *torch.ops.krgn.cffb_backward(grad, x, parameters, DILATIONS),
    ]
    return max((one.cpu() - other).abs().max().item() for one, other in zip(got, expected, strict=True))
