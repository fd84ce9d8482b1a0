"""Files: regular ones read within limits, JSON, and atomic writes that survive a kill or a full disk."""

import functools
import hashlib
import io
import json
import os
import platform
import re
import time
import uuid
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from model.files import open_regular
from runtime.errors import UserError


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
