"""The log: one line a message on the terminal, and the same with times in a run's log.txt."""

import logging
import os
import sys
from contextlib import suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm

from runtime import distributed
from runtime.errors import printable

LOG = logging.getLogger("krgn")


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
