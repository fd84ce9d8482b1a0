"""What a user downloaded, a folder or an archive, as one list of files with a way to read each.

Archives (.zip, .tar, .tar.gz and what else `tarfile` reads) are recognised by their content, not by their name.
Nothing is ever unpacked: a member is read as bytes, and whoever reads it decides where they go. An archive with a
member that points outside its folder, or is a link or a device, is refused whole.
"""

import lzma
import os
import re
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from errors import UserError

LARGEST = 1 << 30  # bytes of one image: more is a damaged header or a file made to fill the memory
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Member:
    """One file of a source.

    Args:
        path: below the folder, or in the archive.
        label: for messages: where it is, archive included.
    """

    path: PurePosixPath
    label: str
    _read: Callable[[], bytes]

    def read(self) -> bytes:
        """Its whole content.

        Raises:
            UserError: if it cannot be read: damaged, encrypted, or out of all proportion.
        """
        try:
            content = self._read()
        except MemoryError:
            raise
        except _BROKEN as error:
            raise UserError(f"{self.label}: cannot be read ({_reason(error)}): download or copy it again") from None
        if len(content) > LARGEST:
            raise UserError(f"{self.label}: is larger than {LARGEST >> 30} GiB, which no image is: remove it")
        return content


@dataclass(frozen=True)
class Source:
    """The files of one SOURCE, in the order in which they are best read.

    Args:
        path: as the user gave it.
        name: of the folder, or of the archive without its suffix.
        sequential: whether reading in another order, as several threads do, would begin at the archive's start again.
    """

    path: Path
    name: str
    members: list[Member]
    is_archive: bool = False
    sequential: bool = False


def open_source(path: Path) -> Source:
    """Lists what is in a folder or an archive; hidden files, and what macOS adds to archives, are passed over.

    Raises:
        UserError: if there is nothing at `path`, if it is neither a folder nor an archive, if it is damaged, or if a
            member points outside of it or is no plain file.
    """
    source = _folder(path) if path.is_dir() else _archive(path)
    for member in source.members:
        try:
            member.label.encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}: the name of a file in it is no text, {member.label!r}: rename the file") from None
    return source


def _archive(path: Path) -> Source:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file or folder: check the path")
    try:
        if zipfile.is_zipfile(path):
            return _zip(path)
        if tarfile.is_tarfile(path):
            return _tar(path)
    except _BROKEN as error:
        raise UserError(f"{path}: {_damaged(_reason(error))}") from None
    with open(path, "rb") as file:
        head = file.read(2)
    if head in (b"PK", b"\x1f\x8b"):
        raise UserError(f"{path}: {_damaged('its end or its beginning is missing')}")
    raise UserError(
        f"{path}: is neither a folder nor an archive that can be read here, expected .zip, .tar, .tar.gz or .tgz: "
        "unpack it and give the folder"
    )


def _damaged(reason: str) -> str:
    return f"the archive is damaged or not whole ({reason}): download it again"


def _reason(error: Exception) -> str:
    """What went wrong, without the file's name, which is said already."""
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


def _folder(path: Path) -> Source:
    members = []
    for folder, below, names in os.walk(path, onerror=_raise):
        below[:] = sorted(name for name in below if not _hidden(PurePosixPath(name)))
        for name in sorted(names):
            file = Path(folder, name)
            inside = PurePosixPath(file.relative_to(path).as_posix())
            # A broken link is kept, to be named; a pipe would be waited for.
            if not _hidden(inside) and (file.is_file() or file.is_symlink()):
                members.append(Member(inside, str(file), partial(_read_file, file)))
    return Source(path, path.resolve().name, members)


def _raise(error: OSError) -> None:
    raise error


def _read_file(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(LARGEST + 1)


def _zip(path: Path) -> Source:
    archive = zipfile.ZipFile(path)  # reads of several threads take turns inside it
    members = []
    for info in archive.infolist():
        inside = _inside(path, info.filename)
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(_refusal(path, info.filename, "is a link or a device"))
        if not info.is_dir() and not _hidden(inside):
            members.append(Member(inside, f"{path}:{inside}", partial(_read_zipped, archive, info)))
    return Source(path, _stem(path), members, is_archive=True)


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(LARGEST + 1)


def _tar(path: Path) -> Source:
    archive, lock = tarfile.open(path), threading.Lock()  # noqa: SIM115 (read as long as the program runs)
    members = []
    for info in archive:
        inside = _inside(path, info.name)
        if not info.isfile() and not info.isdir():
            raise UserError(_refusal(path, info.name, "is a link or a device"))
        if info.isfile() and not _hidden(inside):
            members.append(Member(inside, f"{path}:{inside}", partial(_read_tarred, archive, info, lock)))
    with open(path, "rb") as file:
        compressed = file.read(262)[257:] != b"ustar"
    return Source(path, _stem(path), members, is_archive=True, sequential=compressed)


def _read_tarred(archive: tarfile.TarFile, info: tarfile.TarInfo, lock: threading.Lock) -> bytes:
    with lock, archive.extractfile(info) as file:
        content = file.read(LARGEST + 1)
    if len(content) < min(info.size, LARGEST):
        raise EOFError("cut off")
    return content


def _inside(path: Path, name: str) -> PurePosixPath:
    """A member's path, which is below the archive's folder; some zip files have backslashes."""
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or re.match(r"[A-Za-z]:", name):
        raise UserError(_refusal(path, name, "points outside the archive's folder"))
    return inside


def _refusal(path: Path, name: str, reason: str) -> str:
    return f"{path}: its member {name} {reason}: refused, nothing of it was read; use an archive of another origin"


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in path.parts)


def _stem(path: Path) -> str:
    return re.sub(r"(\.tar)?\.[A-Za-z0-9]{1,5}$", "", path.name)
