"""One process at a time: a file that a process holds locked until it ends."""

import errno
import logging
import os
import platform
import time
from pathlib import Path

from runtime.errors import UserError, printable

log = logging.getLogger("krgn")


def lock_file(path: Path, *, wait: float = 0) -> int | None:
    """Locks the file, which is made, for this process, and writes into it who that is.

    Its copies, such as data loaders, do not hold the lock, and may outlive it by some seconds.

    Args:
        wait: seconds to wait for another process that holds it.

    Returns:
        The open file, whose end ends the lock; no file object, of which the interpreter would complain at its own end.
        None where there are no such locks (Windows).

    Raises:
        UserError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline, waiting = time.monotonic() + wait, False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                reason = error.strerror
                log.warning(
                    "%s: no locks there (%s): make sure that no other process trains in it", path.parent, reason
                )
                break
        who = printable(os.pread(file, 200, 0).decode(errors="replace").strip()) or "another process"
        if time.monotonic() >= deadline:
            os.close(file)
            raise UserError(
                f"{path.parent}: {who} is training in it: wait until that has ended, stop it, or choose another --save"
            )
        if not waiting:
            log.info("%s: %s is training in it: waiting up to %.0f s for its end", path.parent, who, wait)
        waiting = True
        time.sleep(0.2)
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
    return file
