"""What any program of this framework needs around its work: the device, seeds, atomic files, the log."""

import ctypes
import functools
import hashlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import platform
import random
import re
import stat
import subprocess
import sys
import time
import uuid
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors.torch
import torch
from tqdm import tqdm

from runtime import distributed
from runtime.errors import UserError, printable, says_out_of_memory

LOG = logging.getLogger("krgn")


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
        LOG.info("device: %s", f"a GPU for each process ({torch.cuda.get_device_name()})" if visible else "CPU")
        return distributed.local_device(visible) if visible else torch.device("cpu")
    if not cpu and n_gpus > visible and (asked or visible):
        setting = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise UserError(
            f"--n_GPUs {n_gpus}, but {visible} GPUs are visible (CUDA_VISIBLE_DEVICES is {setting}): "
            f"lower --n_GPUs, change CUDA_VISIBLE_DEVICES, or use --cpu"
        )
    if visible:
        LOG.info("device: %d x %s", n_gpus, torch.cuda.get_device_name())
        return torch.device("cuda")
    LOG.info("device: CPU, %d threads%s", torch.get_num_threads(), "" if cpu else " (no GPU is visible)")
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


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that this process may still take; None if unknown.

    The least of what the machine has, what each control group above this process has left (a container's, a batch
    system's job; versions 1 and 2), and what `ulimit -v` and `-d` leave.

    Args:
        root: where /proc and /sys/fs/cgroup are looked for.
    """
    try:
        words = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        free = [1024 * int(words["MemAvailable"].split()[0])]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for group, limit, usage, cache in _memory_groups(root):
        with suppress(OSError, ValueError):
            most = (group / limit).read_text().strip()
            if most != "max" and int(most) < 2**60:  # version 1 writes a number of pages that no machine has
                kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                # A cache of files gives way.
                free.append(int(most) - int((group / usage).read_text()) + int(kept.get(cache, 0)))
    free += _left_of_limits(root)
    return max(0, min(free))


def _memory_groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """The control groups of this process for memory, innermost first: folder, names of the files with limit and usage,
    and name of the cache that gives way in memory.stat."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup/memory"]
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for mount in mounts:
            # In a container the path is that of the host, and what is mounted is the group itself.
            group = mount / path.strip("/")
            while group != mount and mount in group.parents:
                yield group, *names
                group = group.parent
            yield mount, *names


def _left_of_limits(root: Path) -> list[int]:
    """What `ulimit -v` and `ulimit -d` leave of address space and data."""
    try:
        import resource  # not on Windows

        total, _, _, _, _, data, *_ = map(int, (root / "proc/self/statm").read_text().split())
    except (ImportError, OSError, ValueError):
        return []
    limits = ((resource.RLIMIT_AS, total), (resource.RLIMIT_DATA, data))
    return [
        most - taken * resource.getpagesize()
        for limit, taken in limits
        if (most := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY
    ]


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


@functools.cache
def git_commit() -> str:
    """The commit of this code, with "+" if files were changed since; "unknown" outside a git checkout."""
    try:
        said = [
            subprocess.run(
                ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said[0] + ("+" if said[1] else "")


@contextmanager
def open_regular(path: Path | str) -> Iterator[BinaryIO]:
    """Opens a regular file, or a link to one, for reading: a pipe would be waited for, and some devices never end.

    Raises:
        UserError: if it is anything else.
        OSError: as `open` raises it, if it is a folder, is not there or may not be read.
    """
    path = os.fspath(path)
    kind = os.stat(path).st_mode  # before it is opened, which may mean something to a device
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UserError(f"{path}: is {_kind(kind)}, expected a regular file: copy what it holds into one")
    # A pipe may have taken its place since: it is not waited for.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(kind := os.fstat(file.fileno()).st_mode):
            raise UserError(f"{path}: is {_kind(kind)}, expected a regular file: copy what it holds into one")
        yield file


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def read_regular(path: Path | str, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        UserError: if it is larger, or no regular file.
        OSError: as in `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most:
            content = file.read(most + 1)  # it may have grown
            size = len(content)
        if size > most:
            raise UserError(f"{path}: has {size:,} bytes, expected at most {most:,}: give the right file")
        return content


def read_json(path: Path, most: int = 16 * 2**20) -> object:
    """What a JSON file of at most `most` bytes holds.

    Raises:
        UserError: if it is missing, unreadable, no regular file, too large, nested too deeply, or no JSON: a name
            twice in an object and halves of characters are none here. NaN and infinity are read.
    """
    try:
        text = read_regular(path, most).decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_object)
        json.dumps(content, ensure_ascii=False).encode()
        return content
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file: check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give a file that may be read") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply: give the file as it was written") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}): give the file as it was written") from None


def _object(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return content


@contextmanager
def atomic_path(path: Path):
    """Yields a temporary path beside `path` that takes its place when the block ends well, and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of a length of its own, as the target's name may be as long as a name can be.
    temporary = path.with_name(f".krgn-{_place()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_TEMPORARY = re.compile(r"\.krgn-([0-9a-f]{8})-(\d+)-[0-9a-f]{12}\.tmp|\..+\.[0-9a-f]{32}\.tmp")  # the second: once


@functools.cache
def _place() -> str:
    """Where process numbers mean the same: the machine, since it was started, and the container."""
    said = [platform.node()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            said.append(read())
    return f"{zlib.crc32(' '.join(said).encode()):08x}"


def is_temporary(path: Path) -> bool:
    """Whether a file has a name as `atomic_path` gives them."""
    return bool(_TEMPORARY.fullmatch(path.name))


def remove_abandoned(folder: Path) -> None:
    """Removes from `folder` the temporary files of processes that are gone; of other machines, those of an hour ago."""
    for path in folder.glob(".*.tmp") if folder.is_dir() else ():
        if not (found := _TEMPORARY.fullmatch(path.name)):
            continue
        with suppress(OSError):
            here = found[1] == _place()
            if not (_runs(int(found[2])) if here else time.time() - path.stat().st_mtime < 3600):
                path.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is somebody else's
        return True
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file atomically and waits until it is on the disk.

    Raises:
        UserError: if it cannot be written; whatever stood there before still does.
    """
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): free the disk or choose another folder; "
            "what stood there before is unchanged"
        ) from None


def digest(path: Path) -> str:
    """SHA-256 of a regular file; UserError or OSError as in `open_regular`."""
    found = hashlib.sha256()
    with open_regular(path) as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def save_tensors(path: Path, content: dict) -> None:
    """Writes tensors and plain values as a torch file, atomically; UserError if it cannot be written."""
    # In memory first: torch turns a full disk into a RuntimeError of its own when it writes to the file itself.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def parse_safetensors(content: bytes) -> dict:
    """A safetensors file in the form of this framework's checkpoints; a bare state dict if its metadata has no facts.

    Raises:
        safetensors.SafetensorError, ValueError: if it is damaged, or its tensors have another SHA-256 than it says.
    """
    state = safetensors.torch.load(content)
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    if metadata.get("sha256", said := hashlib.sha256(memoryview(content)[8 + size :]).hexdigest()) != said:
        raise ValueError("its tensors have another SHA-256 than it says")
    if "facts" not in metadata:
        return state
    return {"format": metadata.get("format"), "facts": json.loads(metadata["facts"]), "model": state}


MOST_WEIGHTS = 16 * 2**30  # bytes of a file


def load_tensors(path: Path) -> dict:
    """Reads a torch or safetensors file of tensors and plain values onto the CPU, told by its content, not its name.

    Nothing in the file is ever run. Checksums are verified. Of more types than tensors and plain values, only those of
    `_HARMLESS` are read.

    Raises:
        UserError: if the file is missing, damaged, no regular file, or holds anything else.
    """
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which load or are refused all the same
            size = os.fstat(file.fileno()).st_size
            if size > MOST_WEIGHTS:
                raise UserError(
                    f"{path}: has {size:,} bytes, expected at most {MOST_WEIGHTS:,}: give a file of weights"
                )
            head = file.read(9)
            file.seek(0)
            if head[8:] == b"{" and int.from_bytes(head[:8], "little") < size:
                return parse_safetensors(file.read())
            if head[:4] == b"PK\x03\x04":
                _check_archive(file, size)
                file.seek(0)
            with torch.serialization.safe_globals(_HARMLESS):
                return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        released = "" if path.suffix else "; released weights are named like KRGN_x4"
        raise UserError(f"{path}: there is no such file: check the path{released}") from None
    except PermissionError:
        raise UserError(f"{path}: may not be read: change its permissions") from None
    except IsADirectoryError:
        best = "model/model_best.pt" if (path / "model").is_dir() else "model_best.pt"
        raise UserError(f"{path}: is a folder, expected a file of weights such as {path / best}") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # the name of a class or function, which loading would have called
            raise UserError(
                f"{path}: refused, because it holds more than tensors and plain values, and could run code: "
                "save the state dict alone, torch.save(model.state_dict(), FILE)"
            ) from None
        raise UserError(_damaged(path)) from None
    except UserError:
        raise
    except (Exception, RecursionError) as error:  # torch raises many types for a damaged file: EOFError, KeyError …
        if says_out_of_memory(error):
            raise
        raise UserError(_damaged(path)) from None


def _damaged(path: Path) -> str:
    size = path.stat().st_size
    return f"{path}: is damaged, cut short, or no file of tensors ({size:,} bytes): use another copy"


def _check_archive(file: BinaryIO, size: int) -> None:
    """Raises an exception unless the members of torch's zip archive are what it says of them: their sizes, which are
    read before their content, and their checksums, which torch itself does not look at."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two members have one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("members are compressed, as torch never does")
        if sum(member.file_size for member in members) > size:
            raise ValueError("members are larger than the file")
        for member in members:
            with archive.open(member) as content:  # raises BadZipFile at the end of one whose checksum is another
                while content.read(2**20):
                    pass


# --- types that trainers leave beside the weights, read as plain values ---


class _Dtype:
    """NumPy's dtype, of numbers and text alone."""

    def __init__(self, text: str = "f8", *_):
        self.kind = np.dtype(text)
        if self.kind.kind not in "biufSU":
            raise pickle.UnpicklingError(f"NumPy's {text} holds objects")

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.kind = self.kind.newbyteorder(state[1])


class _Array:
    """NumPy's array, whose values are not needed."""

    def __setstate__(self, _state):
        pass


class _Plain:
    """An object with attributes, which are not needed."""

    def __setstate__(self, _state):
        pass


def _scalar(dtype: _Dtype, content: bytes | str = b""):
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype.kind, 1)[0].item()


def _joined(*parts) -> str:
    return os.path.join("", *map(str, parts))


_HARMLESS = [
    (lambda text, _encoding: text.encode("latin1"), "_codecs.encode"),
    (_Plain, "argparse.Namespace"),
    (_Plain, "types.SimpleNamespace"),
    (lambda *_: {}, "collections.defaultdict"),
    (OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (_Dtype, "numpy.dtype"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((lambda *_: _Array(), f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (_Array, "numpy.ndarray"),
    *(
        (kind, f"{module}.{kind.__name__}")
        for kind in (list, dict, int, float)
        for module in ("builtins", "__builtin__")
    ),
    *(
        (_joined, f"{module}.{name}Path")
        for module in ("pathlib", "pathlib._local")
        for name in ("Posix", "Windows", "Pure")
    ),
    *(
        (_joined, f"{module}.Pure{name}Path")
        for module in ("pathlib", "pathlib._local")
        for name in ("Posix", "Windows")
    ),
]


class _OneLine(logging.Formatter):
    """A record is one line, whatever the names in it hold (`errors.printable`)."""

    def formatMessage(self, record):
        record.message = printable(record.message)
        return super().formatMessage(record)


class _Terminal(logging.Handler):
    """Lines on standard output that do not break a progress bar."""

    gone = False

    def emit(self, record):
        if self.gone or sys.stdout is None:
            return
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except (OSError, ValueError):  # `| head` has seen enough, or the terminal was closed; the run goes on
            self.gone = True
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _File(logging.FileHandler):
    """The log's file. Where the disk is full the run goes on, and the terminal says so once."""

    failed = False

    def handleError(self, record):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed:
            self.failed = True
            LOG.warning("%s: cannot be written (%s): lines are missing there", self.baseFilename, error.strerror)


def start_log() -> logging.Logger:
    """The log "krgn" on the terminal, of rank 0 alone; its lines are kept until `log_to` names their file."""
    for handler in list(LOG.handlers):
        LOG.removeHandler(handler)
        handler.close()
    LOG.setLevel(logging.INFO if distributed.is_main() else logging.ERROR)
    LOG.propagate = False
    terminal = _Terminal()
    terminal.setFormatter(_OneLine())
    LOG.addHandler(terminal)
    LOG.addHandler(MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False))
    return LOG


def log_to(path: Path) -> None:
    """Appends the log to `path` from now on, beginning with the lines since `start_log`."""
    file = _File(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(_OneLine("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    for handler in list(LOG.handlers):
        if isinstance(handler, MemoryHandler):
            handler.setTarget(file)
            handler.flush()
            LOG.removeHandler(handler)
    LOG.addHandler(file)
