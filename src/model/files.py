"""Opening files that may be anything. Only the standard library is imported."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import UserError


@contextmanager
def open_regular(path: Path | str) -> Iterator[BinaryIO]:
    """Opens a regular file, or a link to one, for reading: a pipe may never come to its end, nor a device.

    Raises:
        UserError: if it is anything else.
        OSError: as raised by `open`, for a folder, a missing file or missing permissions.
    """
    path = os.fspath(path)
    kind = os.stat(path).st_mode  # before it is opened: opening may already act on a device
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UserError(f"{path}: is {_kind(kind)}, expected a regular file: copy what it holds into one")
    # O_NONBLOCK: a pipe may have replaced the file since then.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(kind := os.fstat(file.fileno()).st_mode):
            raise UserError(f"{path}: is {_kind(kind)}, expected a regular file: copy what it holds into one")
        yield file


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "no regular file")
