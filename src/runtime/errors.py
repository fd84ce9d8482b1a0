"""How a run ends early: one line for what the user can fix, a clean stop on Ctrl-C and SIGTERM, a traceback for bugs.

Nothing heavy is imported, so that main.py is ready for signals before its heavy imports.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress

from model.errors import UserError as UserError  # the library's error is the framework's
from model.errors import printable as printable
from model.errors import says_out_of_memory as says_out_of_memory


class ProcessLost(UserError):
    """Another process of the run has ended. What is left of their group cannot be taken apart: its destructor may wait
    for ever for a thread that needs the interpreter's lock, which the destructor holds. So this process ends at once.
    """


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP arrived: raised once, in the main thread wherever it is, except inside `held`."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _Signals:
    held = 0
    pending: int | None = None
    importing = False
    served = False  # the first signal is being handled; further ones change nothing

    @classmethod
    def handle(cls, signum, _frame):
        if cls.served or cls.pending is not None:
            return
        if cls.importing:
            with suppress(OSError):
                os.write(2, f"interrupted by {signal.Signals(signum).name}\n".encode())
            os._exit(128 + signum)
        if not cls.held:
            cls.served = True
            raise Interrupted(signum)
        cls.pending = signum
        with suppress(OSError):
            os.write(2, b"\nstopping after this step ...\n")

    @classmethod
    def again(cls, unraisable):
        """Python drops what is raised inside a weak reference's callback or a finalizer, of which an import has many.
        A signal that was served there comes again a moment later."""
        if not isinstance(unraisable.exc_value, Interrupted):
            sys.__unraisablehook__(unraisable)
            return
        cls.served = False
        signum = unraisable.exc_value.signum
        if hasattr(signal, "pthread_kill"):  # to the main thread, which it wakes up
            later = threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, signum))
        else:
            later = threading.Timer(0.01, signal.raise_signal, (signum,))
        later.daemon = True
        later.start()


@contextmanager
def held():
    """Inside, a signal waits until the block's end, so that steps that belong together are all done or none."""
    _Signals.held += 1
    try:
        yield
    finally:
        _Signals.held -= 1
        if not _Signals.held and _Signals.pending is not None:
            signum, _Signals.pending = _Signals.pending, None
            _Signals.served = True
            raise Interrupted(signum)


@contextmanager
def importing():
    """Inside, a signal ends the process where it is. What is raised within an import may be dropped by a module's C
    code, which then lacks a part, and the signal would be lost."""
    _Signals.importing = True
    try:
        yield
    finally:
        _Signals.importing = False


@contextmanager
def at_once():
    """Inside, a signal ends the process by itself: for waiting outside of Python, whose handlers are not called then,
    with nothing to save."""
    ours = [signum for signum in _stopping() if signal.getsignal(signum) == _Signals.handle]
    for signum in ours:
        signal.signal(signum, signal.SIG_DFL)
    try:
        yield
    finally:
        for signum in ours:
            signal.signal(signum, _Signals.handle)


def _stopping() -> list[int]:
    """The signals that end a run; Windows has no SIGHUP."""
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def pending() -> int | None:
    """The number of the signal that waits for the end of `held`, or None."""
    return _Signals.pending


class _Steady:
    """A stream whose reader may go away: neither a closed terminal nor `| head` ends the program."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function, *arguments) -> None:
        try:
            function(*arguments)
        except (OSError, ValueError):  # ValueError: it is closed
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def steady_streams() -> None:
    """Makes standard output and error survive their readers, and escape characters that the terminal's encoding lacks,
    as with LANG=C or the code pages of Windows."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put something else there
            stream.reconfigure(errors="backslashreplace")
        if stream is not None and not isinstance(stream, _Steady):
            setattr(sys, name, _Steady(stream))


def run(main: Callable[[], None]) -> None:
    """Runs an entry point and ends the process as its user expects.

    Exit status 0, or 1 with one line for what the user can fix, or 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP, of
    the first of them. Bugs keep their traceback.
    """
    steady_streams()
    sys.unraisablehook = _Signals.again
    for signum in _stopping():
        # nohup has SIGHUP ignored, and a shell the SIGINT of what it runs in the background.
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _Signals.handle)
    try:
        _run(main)
    finally:
        # Only the interpreter's shutdown is left, whose handlers must not be interrupted.
        _Signals.served = True


def _run(main: Callable[[], None]) -> None:
    try:
        main()
    except ProcessLost as error:  # the group lives as long as the error, in the variables of its traceback
        print(f"error: {printable(str(error))}", file=sys.stderr)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")
    except ModuleNotFoundError as error:
        if error.name is None or "." in error.name:
            raise
        sys.exit(
            f"error: this Python ({sys.executable}) has no {error.name}: activate the environment of the scripts "
            "(source .venv/bin/activate), or pip install -r requirements.txt"
        )
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"error: {printable(error.filename)}: {error.strerror}: check the path and its permissions")
    except Interrupted as interruption:
        print(f"interrupted by {interruption}", file=sys.stderr)
        sys.exit(128 + interruption.signum)
    except (RuntimeError, MemoryError) as error:
        if not says_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["MemoryError"])[0]
        sys.exit(
            f"error: out of memory ({reason}): lower --batch_size or --patch_size, raise --split_batch, "
            "or test with --chop"
        )
