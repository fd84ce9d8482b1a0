"""The machine a program runs on: its devices, memory, processors, and the seeds of its generators."""

import ctypes
import logging
import multiprocessing
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from runtime import distributed
from runtime.errors import UserError

log = logging.getLogger("krgn")


def choose_device(*, cpu: bool, n_gpus: int, asked: bool) -> torch.device:
    """CUDA where a GPU is visible and `cpu` is False, else the CPU, with a line in the log.

    Args:
        asked: whether the user gave --n_GPUs, so that too few GPUs are an error and no surprise.

    Raises:
        UserError: if fewer GPUs are visible than asked for.
    """
    visible = 0 if cpu else torch.cuda.device_count()
    # "single" means float32 all through: by default cuDNN would round the factors of its products to TF32.
    torch.backends.cudnn.allow_tf32 = False
    if distributed.launched():
        if n_gpus > 1:
            raise UserError(
                f"--n_GPUs {n_gpus}: under torchrun each process uses one GPU: give --nproc_per_node instead"
            )
        log.info("device: %s", f"a GPU for each process ({torch.cuda.get_device_name()})" if visible else "CPU")
        return distributed.local_device(visible) if visible else torch.device("cpu")
    if not cpu and n_gpus > visible and (asked or visible):
        setting = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise UserError(
            f"--n_GPUs {n_gpus}, but {visible} GPUs are visible (CUDA_VISIBLE_DEVICES is {setting}): "
            f"lower --n_GPUs, change CUDA_VISIBLE_DEVICES, or use --cpu"
        )
    if visible:
        log.info("device: %d x %s", n_gpus, torch.cuda.get_device_name())
        return torch.device("cuda")
    log.info("device: CPU, %d threads%s", torch.get_num_threads(), "" if cpu else " (no GPU is visible)")
    return torch.device("cpu")


def keep_memory() -> bool:
    """Tells glibc's allocator to keep freed blocks for the next ones; returns whether there is such an allocator.

    Left alone it gives freed megabytes back to the system again and again, and the next layer's feature maps begin with
    page faults. Afterwards blocks of up to 32 MiB (the most glibc takes) come from the heap, and up to 2 GiB at its top
    are kept.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    return bool(mallopt(m_mmap_threshold, 32 * 2**20) and mallopt(m_trim_threshold, 2**31 - 1))


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, those of all GPUs included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def timed(function: Callable, device: torch.device) -> float:
    """Seconds of one call, the GPU's work included."""
    if device.type == "cuda":
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        function()
        ended.record()
        torch.cuda.synchronize(device)
        return begun.elapsed_time(ended) / 1000
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def fresh_processes(module: str) -> multiprocessing.context.BaseContext:
    """A context of `multiprocessing` whose processes have computed nothing yet. Where possible they are forked off one
    that has imported torch and `module`, so that only the first waits for that."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["torch", module])
    return context


def load_of_others() -> float:
    """How many processes were running on this machine in the last minute, on average, or 0.0 where nothing tells."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        return 0.0


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
