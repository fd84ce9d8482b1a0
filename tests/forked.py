"""Programs of src/ in processes forked off one that has torch loaded: to import it takes a fresh one four seconds.

`Program("main.py", "--cpu", ...)` behaves as a `subprocess.Popen` of `python main.py --cpu ...` in src/ does, and
`Program("studies.demo", ...)` as one of `python -m studies.demo ...`. What an interpreter looks at when it starts
(PYTHONPATH, an encoding, OMP_NUM_THREADS) needs a real one.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"
# What most programs import; nothing of it starts a thread.
LOADED = ["forked", "torch._dynamo", "skimage", "matplotlib.figure", "train.trainer", "evaluation.evaluate"]

_forkserver = multiprocessing.get_context("forkserver")


def process(target, *arguments) -> multiprocessing.Process:
    """A process that calls a function of a module, not yet started."""
    paths = [str(SRC), str(Path(__file__).parent)]
    before = os.environ.get("PYTHONPATH")
    _forkserver.set_forkserver_preload(LOADED)  # where it is not running yet
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *([before] if before else [])])  # read when the server starts
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before:
            os.environ["PYTHONPATH"] = before
    return _forkserver.Process(target=target, args=arguments)


class Program:
    """A started program; `stdout` and `stderr` are streams of text, read by `communicate` or line by line."""

    def __init__(self, name: str, *arguments, env: dict[str, str] | None = None):
        self.args = [name, *map(str, arguments)]
        (out, theirs), (err, their_errors) = (_forkserver.Pipe(duplex=False) for _ in range(2))
        environment = dict(os.environ if env is None else env)
        self._process = process(_run, self.args, theirs, their_errors, environment)
        self._process.start()
        theirs.close()
        their_errors.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end in (out, err))
        out.close()
        err.close()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of `subprocess`: None while it runs, minus the signal that ended it."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            TimeoutError: if it still runs.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"{self.args} still runs after {timeout} s")
        return self.returncode

    def communicate(self, timeout: float = 150) -> tuple[str, str]:
        """Waits for its end and returns the rest of both streams; it is killed after `timeout` seconds."""
        said = {}
        readers = [
            threading.Thread(target=lambda stream=stream: said.update({stream: stream.read()}), daemon=True)
            for stream in (self.stdout, self.stderr)
        ]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            raise
        for reader in readers:
            reader.join(20)
        return said[self.stdout], said[self.stderr]

    def send_signal(self, signum: int) -> None:
        """Sends it a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._process.kill()


def _run(argv: list[str], out, err, environment: dict[str, str]) -> None:
    multiprocessing.set_start_method(None, force=True)  # the platform's own, as in a process that was not forked
    os.setsid()
    for end, number in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), number)
        end.close()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(SRC)
    sys.argv = argv
    sys.path[0] = str(SRC)
    if argv[0].endswith(".py"):
        runpy.run_path(str(SRC / argv[0]), run_name="__main__")
    else:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
