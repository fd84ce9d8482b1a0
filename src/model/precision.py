"""The precision in which a network runs, `--precision single, half, bf16, auto`, and what it costs on this processor.

Mixed precision is torch's autocast: weights stay float32, products are computed in the lower precision, and operations
that need float32 keep it (`common.in_float32`, the statistics of the attention, the recalibration of kernels).
"""

import logging
import time
from functools import cache

import torch
from torch import nn

from .compat import cpu_capabilities

log = logging.getLogger("krgn")

AUTOCAST = {"half": torch.float16, "bf16": torch.bfloat16}
SIDE = 192  # of the matrices that are timed; a CPU that emulates a dtype takes tens of milliseconds for them
NATIVE = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "arm_bf16")  # names in torch's list of a CPU's capabilities


class InPrecision(nn.Module):
    """A network that runs in the context of `autocast`, also in DataParallel's threads, which do not inherit it."""

    def __init__(self, network: nn.Module, device: torch.device, precision: str):
        super().__init__()
        self.network, self.device, self.precision = network, device, precision

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.precision):
            return self.network(image)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network runs in the precision "single", "half" or "bf16"."""
    return torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def to_network(images: torch.Tensor, device: torch.device, rgb_range: float) -> torch.Tensor:
    """uint8 or uint16 (N, C, H, W) -> float32 in 0..`rgb_range` on the device, channels last in memory."""
    largest = torch.iinfo(images.dtype).max
    images = images.to(device, non_blocking=True).to(torch.float32, memory_format=torch.channels_last)
    return images * (rgb_range / largest) if rgb_range != largest else images


def resolve(precision: str, device: torch.device) -> str:
    """The precision "single", "half" or "bf16" that is meant: "auto" is bf16 where the device has instructions for it,
    else single.

    The log says which, and what a lower precision costs on a CPU that emulates it.
    """
    asked = precision
    if asked == "auto":
        precision = "bf16" if is_native(device) else "single"
    if device.type == "cpu" and (asked == "auto" or precision != "single"):
        dtype = AUTOCAST.get(precision, torch.bfloat16)
        how = "native" if dtype == torch.bfloat16 and is_native(device) else "emulated"
        name = "bfloat16" if dtype == torch.bfloat16 else "float16"
        slower = "; --precision single is faster" if asked == precision and speed(dtype) < 1 else ""
        log.info("%s: %s, products run at %.2g times float32's speed here%s", name, how, speed(dtype), slower)
    # "single" means float32 throughout; with half precision cuDNN may round the factors of its products to TF32.
    torch.backends.cudnn.allow_tf32 = precision != "single"
    if asked == "auto":
        log.info("--precision auto: %s", precision)
    return precision


def is_native(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(set(NATIVE) & set(cpu_features()))


@cache
def cpu_features() -> tuple[str, ...]:
    """The CPU's instruction sets that matter here, in torch's names: avx2, avx512_bf16, amx_tile, vnni and others."""
    names = cpu_capabilities()
    shown: tuple[str, ...] = (
        "avx2",
        "avx512_f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_fp16",
    )
    shown += ("neon", "asimd", "sve", "sve2", "i8mm", *NATIVE)
    return tuple(name for name in dict.fromkeys(shown) if name in names)


@cache
def speed(dtype: torch.dtype) -> float:
    """How many times faster than in float32 a product of two matrices runs in `dtype` on this CPU, measured once."""
    seconds = {}
    for kind in (torch.float32, dtype):
        a, b = (torch.full((SIDE, SIDE), 0.5, dtype=kind) for _ in range(2))  # random numbers belong to the run
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - begun)
        seconds[kind] = min(times)
    return seconds[torch.float32] / seconds[dtype]
