"""The C++ library: when it may be built, how it is built and kept, and whether it can be used.

Nothing is built without a request, so that importing a network and running it compiles nothing. `build` builds now;
`build_when_needed`, which the commands call, lets the first forward pass on a CPU build.

Each dtype has a library of its own, which takes a few seconds to compile for this processor. It is kept in torch's
folder of extensions: `TORCH_EXTENSIONS_DIR`, by default `~/.cache/torch_extensions`. Its file name has a digest of
everything that decides its content.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import time
import uuid
from functools import cache
from pathlib import Path

import torch

from ..compat import assume_constant

log = logging.getLogger("krgn")

SOURCES = [Path(__file__).parent / name for name in ("vectors.h", "cffb.cpp", "pmrb.cpp")]
OPTIONS = "-O3 -march=native -std=c++17 -ffp-contract=fast -fopenmp -fPIC -shared -Wno-psabi".split()
# For each dtype of the maps, the C++ types in which they are stored and computed.
DTYPES = {
    torch.float32: ("float", "float"),
    torch.float64: ("double", "double"),
    torch.bfloat16: ("bfloat16", "float"),
}

_requested: set[torch.dtype] = set()


class Unavailable(Exception):
    """Why the fused operators cannot be used here, in a few words."""


def build(dtype: torch.dtype = torch.float32) -> bool:
    """Builds and loads the library for maps of `dtype` now, if need be; networks on the CPU use it from then on.

    The log (logger "krgn") says what was done, or why it was not. Call this before `torch.compile`, which keeps what it
    found when it traced.

    Args:
        dtype: float32, float64 or bfloat16, the dtype in which the network runs: under autocast, that of the autocast.

    Returns:
        Whether it can be used; if not, torch's separate operators run, which is slower.

    Raises:
        ValueError: for another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype}, expected one of {', '.join(map(str, DTYPES))}")
    _requested.add(dtype)
    return _loads(dtype)


def build_when_needed() -> None:
    """Requests the libraries of all dtypes for this process: each is built when a network on the CPU first needs it."""
    _requested.update(DTYPES)


@assume_constant
def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether the library for maps of `dtype` was requested and can be used, after building it if need be; the log says
    so once."""
    return dtype in _requested and _loads(dtype)


@cache
def _loads(dtype: torch.dtype) -> bool:
    try:
        load(dtype)
    except Unavailable as error:
        log.info("the CPU runs torch's separate operators, which is slower: %s", error)
        return False
    return True


def refuse_if_switched_off() -> None:
    """Raises `Unavailable` if the environment has `KRGN_FUSED=0`."""
    if os.environ.get("KRGN_FUSED") == "0":
        raise Unavailable("KRGN_FUSED=0")


@cache
def load(dtype: torch.dtype) -> ctypes.CDLL:
    """The library for maps of `dtype`; it is built if there is none for this source, compiler, torch and processor.

    Raises:
        Unavailable: if it is switched off, or cannot be built or loaded.
    """
    refuse_if_switched_off()
    names = [os.environ.get("CXX"), "g++", "c++", "clang++"]
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.expanduser("~/.cache/torch_extensions")
    stored, computed = DTYPES[dtype]
    options = [*OPTIONS, f"-DSTORED={stored}", f"-DCOMPUTED={computed}"]
    # The processor too: another machine that shares the folder may not have this one's instructions.
    identity = [*(path.read_text() for path in SOURCES), *options, str(compiler), torch.__version__, _processor()]
    path = Path(root, "krgn", f"cffb-{stored}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so")
    if not path.exists():
        _compile(compiler, options, path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded ({error})") from None
    log.info("the CPU runs fused operators: %s", path)
    return library


def _compile(compiler: str | None, options: list[str], path: Path) -> None:
    """Compiles the sources to `path`. Several processes may do so at once: a file gets its name when it is complete."""
    if compiler is None:
        raise Unavailable("there is no C++ compiler (install g++, or name one in CXX)")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    begun = time.perf_counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [str(source) for source in SOURCES if source.suffix == ".cpp"]
        run = subprocess.run([compiler, *options, *files, "-o", str(temporary)], capture_output=True, text=True)
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if "error" in line] or [f"status {run.returncode}"]
            raise Unavailable(f"{compiler} failed ({errors[0][:200]})")
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
