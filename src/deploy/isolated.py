"""A format's reader in a process of its own: a damaged file may crash its reader, or make it run forever."""

import contextlib
import io
import multiprocessing.connection
import multiprocessing.process
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.context import Runner
from deploy.formats import FORMATS
from model import cffb
from runtime.errors import UserError, printable
from runtime.hardware import fresh_processes

try:
    import resource
except ImportError:  # Windows
    resource = None

MAX_MEMORY = 32 * 2**30  # bytes of address space that a reader's process may take, torch's own included
OK, FAILED = b".", b"!"  # the first byte of an answer; the rest is an array, or the reason


@contextlib.contextmanager
def isolated_reader(name: str, path: Path, hyperparameters: dict, timeout: float = 300) -> Iterator[Runner]:
    """Reads a file in a new process and yields a function that runs it there; ends the process afterwards.

    Args:
        name: of the format, as in `FORMATS`.
        timeout: seconds for reading the file, and for each image.

    Raises:
        UserError: in one line, whatever happens to that process.
    """
    context = fresh_processes("deploy.isolated")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, name, path, hyperparameters), daemon=True)
    process.start()
    theirs.close()
    reader = _Reader(path, process, ours, timeout)
    try:
        reader.receive()
        yield reader.run
    finally:
        ours.close()
        process.kill()
        process.join()


@dataclass(frozen=True)
class _Reader:
    """Our end of the pipe to a reader's process."""

    path: Path
    process: multiprocessing.process.BaseProcess
    pipe: multiprocessing.connection.Connection
    timeout: float

    def run(self, image: np.ndarray) -> np.ndarray:
        """The network's output for an image, (1, C, H, W) float32."""
        try:
            self.pipe.send_bytes(_packed(image))
        except OSError:
            self.receive()  # raises the reason
        return np.load(io.BytesIO(self.receive()), allow_pickle=False)

    def receive(self) -> bytes:
        """The next answer; UserError for a failure, a timeout, and a process that has ended."""
        try:
            if not self.pipe.poll(self.timeout):
                raise UserError(f"{self.path}: its reader does not answer within {self.timeout:g} s: export again")
            answer = self.pipe.recv_bytes()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            reason = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with status {code}"
            raise UserError(f"{self.path}: its reader ended {reason}, the file is damaged: export again") from None
        if answer.startswith(FAILED):
            raise UserError(f"{self.path}: {answer[1:].decode()}")
        return answer[1:]


def _packed(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _serve(pipe: multiprocessing.connection.Connection, name: str, path: Path, hyperparameters: dict) -> None:
    """Runs in the reader's process: reads the file, then answers each image until the pipe closes."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # compiled readers print warnings about a file
        os.dup2(nowhere, number)
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        cffb.build_when_needed()
        run = FORMATS[name].read(path, hyperparameters)
        pipe.send_bytes(OK)
        while True:
            image = np.load(io.BytesIO(pipe.recv_bytes()), allow_pickle=False)
            pipe.send_bytes(OK + _packed(np.asarray(run(image), dtype=np.float32)))
    except (EOFError, BrokenPipeError):
        return
    except UserError as error:
        pipe.send_bytes(FAILED + str(error).removeprefix(f"{path}: ").encode("utf-8", "replace"))
    except Exception as error:  # runtimes raise exceptions of any kind
        reason = printable(error)[:200] or type(error).__name__
        pipe.send_bytes(FAILED + f"cannot be read ({reason}): export again".encode("utf-8", "replace"))
