"""How a run ends early: one line for what the user can mend, a clean stop on Ctrl-C and SIGTERM, a traceback for bugs.

Only the standard library is imported, so that main.py is ready for signals before its heavy imports.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from signal import SIGTERM


class UserError(Exception):
    """A failure the user can mend.

    The message is a single line that says what was got, what was expected, and which flag or command mends it.
    """


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM arrived: raised wherever the main thread is, but not inside `held`."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def printable(text: object) -> str:
    """`text` on one line, for a terminal, a log or a table: what is no visible character (control characters, line
    breaks, marks that turn the direction of writing, bytes that are no text) is escaped, as in \\x1b or \\udcff."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in str(text)
    )


class _Signals:
    held = 0
    pending: int | None = None

    @classmethod
    def handle(cls, signum, _frame):
        if not cls.held:
            raise Interrupted(signum)
        if cls.pending is None:
            os.write(2, b"\nstopping after this step ...\n")
        cls.pending = signum


@contextmanager
def held():
    """Inside, a signal waits until the block's end, so that what belongs together is done wholly or not at all."""
    _Signals.held += 1
    try:
        yield
    finally:
        _Signals.held -= 1
        if not _Signals.held and _Signals.pending is not None:
            signum, _Signals.pending = _Signals.pending, None
            raise Interrupted(signum)


def pending() -> int | None:
    """The signal that waits for the end of `held`, if there is one."""
    return _Signals.pending


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that there was no memory. torch has a class for it only where its own allocator on a
    GPU gives up; elsewhere only words say it, which "illegal memory access" must not be taken for."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = (
        "out of memory",
        "allocate memory",
        "not enough memory",
        "could not create a memory object",
        "ALLOC_FAILED",
    )
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def escape_unknown_characters() -> None:
    """Has standard output and error escape what a terminal's encoding cannot say, as LANG=C or Windows' code pages."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put something else there
            stream.reconfigure(errors="backslashreplace")


def run(main: Callable[[], None]) -> None:
    """Runs an entry point and ends the process as its user expects.

    Exit status 0, or 1 with one line for what the user can mend, or 130 / 143 after Ctrl-C / SIGTERM. Bugs keep their
    traceback.
    """
    escape_unknown_characters()
    for signum in (signal.SIGINT, SIGTERM):
        signal.signal(signum, _Signals.handle)
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {printable(' '.join(str(error).split(' ')))}")
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
