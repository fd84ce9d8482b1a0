"""What a user downloaded, a folder or an archive, as one list of files with a way to read each.

Archives (.zip, .tar, .tar.gz and whatever else `tarfile` reads) are recognised by their content, not by their name.
Nothing is unpacked: a member is read as bytes, and the caller decides where they go. An archive is refused as a whole
if a member points outside its folder, is a link or a device, or has another member's name, and if the archive is cut
off, even exactly between two members. Of a large file only the beginning is read first.
"""

import contextlib
import lzma
import re
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from data.image import read_size
from data.listing import BROKEN, EMPTY, hidden, is_image, walk
from model.files import open_regular
from runtime.errors import UserError, printable

LARGEST = 1 << 30  # bytes of one image: more means a damaged header or a file made to exhaust the memory
HEAD = 1 << 16  # bytes that contain an image's size
BYTES_A_PIXEL = 16  # twice those of the least compact format
OVERHEAD = 1 << 24  # bytes of a file besides its pixels: profiles, thumbnails
LONGEST_NAME = 1 << 20  # bytes of the special tar member that holds the next member's name
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
        path: relative to the folder, or in the archive.
        label: where it is, archive included, for messages.
        bytes: the size of its content, as the folder or archive declares it.
        file: the file itself, if it lies in a folder.
    """

    path: PurePosixPath
    label: str
    bytes: int
    _open: Callable[[], AbstractContextManager[BinaryIO]]
    file: Path | None = None
    _size: list[tuple[int, int]] = field(default_factory=list)

    def size(self) -> tuple[int, int]:
        """(height, width) of the image, from the beginning of its content where that is enough.

        Raises:
            UserError: if it cannot be read, or is not an image.
        """
        if not self._size:
            with self._opened() as file:
                self._size.append(self._size_of(file.read(HEAD), file))
        return self._size[0]

    def read(self) -> bytes:
        """Its whole content.

        Raises:
            UserError: if it cannot be read: damaged, encrypted, or far too large for the image's size.
        """
        with self._opened() as file:
            head = file.read(HEAD)
            if self.bytes > OVERHEAD:
                self._check(head, file)
            content = head + file.read(LARGEST + 1 - len(head))
        if len(content) > LARGEST:
            raise UserError(_too_large(self.label))
        if len(content) < self.bytes:
            raise UserError(f"{self.label}: cannot be read (cut off): download or copy it again")
        return content

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self.bytes > LARGEST:
            raise UserError(_too_large(self.label))
        try:
            with self._open() as file:
                yield file
        except MemoryError:
            raise
        except _BROKEN as error:
            raise UserError(f"{self.label}: cannot be read ({_reason(error)}): download or copy it again") from None

    def _size_of(self, head: bytes, file: BinaryIO) -> tuple[int, int]:
        if len(head) == HEAD and _needs_all(head):
            head += file.read(LARGEST)
        return read_size(self.label, head)

    def _check(self, head: bytes, file: BinaryIO) -> None:
        """Refuses a file that is not an image, or has many times the bytes of its pixels, before it is read.

        Raises:
            UserError: if it is one.
        """
        if not self._size:
            try:
                self._size.append(read_size(self.label, head))
            except UserError:
                if not _needs_all(head):
                    raise
                return
        height, width = self._size[0]
        if self.bytes > BYTES_A_PIXEL * height * width + OVERHEAD:
            raise UserError(
                f"{self.label}: has {self.bytes:,} bytes, too many for its {width}x{height} pixels: remove it"
            )


def _needs_all(head: bytes) -> bool:
    """Whether the size may come later: TIFF may have it at its end; WebP, AVIF and JPEG 2000 are not read in parts."""
    return head[:2] in (b"II", b"MM") or head[:4] == b"RIFF" or head[4:8] in (b"ftyp", b"jP  ")


def _too_large(label: str) -> str:
    return f"{label}: is larger than {LARGEST >> 30} GiB, expected an image: remove it"


@dataclass(frozen=True)
class Source:
    """The files of one SOURCE, in the order in which they are best read.

    Args:
        path: as the user gave it.
        name: of the folder, or of the archive without its suffix.
        sequential: whether reading in another order, as several threads do, starts over at the archive's beginning.
        skipped: what is not a regular file in a folder: path -> what it is.
    """

    path: Path
    name: str
    members: list[Member]
    is_archive: bool = False
    sequential: bool = False
    skipped: dict[Path, str] = field(default_factory=dict)


def open_source(path: Path) -> Source:
    """Lists the files in a folder or an archive; hidden files, and what macOS adds to archives, are ignored.

    Raises:
        UserError: if there is nothing at `path`, if it is neither a folder nor an archive, if it is damaged, or if a
            member points outside of it, is not a plain file or has a name that is not valid UTF-8.
    """
    source = _folder(path) if path.is_dir() else _archive(path)
    for member in source.members:
        try:
            str(member.path).encode()
        except UnicodeEncodeError:
            label = member.label
            raise UserError(
                f"{printable(path)}: the name of a file in it is not valid UTF-8, {label}: rename the file"
            ) from None
    return source


def _archive(path: Path) -> Source:
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder: check the path")
    with open_regular(path) as file:  # refuses a pipe, which would be waited for
        head = file.read(2)
    try:
        if zipfile.is_zipfile(path):
            return _zip(path)
        if tarfile.is_tarfile(path):
            return _tar(path)
    except _BROKEN as error:
        raise UserError(f"{path}: {_damaged(_reason(error))}") from None
    if head in (b"PK", b"\x1f\x8b"):
        raise UserError(f"{path}: {_damaged('its end or its beginning is missing')}")
    raise UserError(
        f"{path}: is neither a folder nor a known archive, expected .zip, .tar, .tar.gz or .tgz: unpack it and give "
        "the folder"
    )


def _damaged(reason: str) -> str:
    return f"the archive is damaged or incomplete ({reason}): download it again"


def _reason(error: Exception) -> str:
    """What went wrong, without the name of the file, which the message has already."""
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


def _folder(path: Path) -> Source:
    files, others = walk(path)
    # Broken links stay in the list: reading one reports it.
    files += [file for file, reason in others.items() if reason == BROKEN]
    members = []
    for file in sorted(files):
        inside = PurePosixPath(file.relative_to(path).as_posix())
        members.append(Member(inside, printable(file), _bytes(file), partial(open_regular, file), file))
    skipped = {file: reason for file, reason in others.items() if reason not in (BROKEN, EMPTY)}
    return Source(path, path.resolve().name, members, skipped=skipped)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # reported when it is read
        return 0


def _zip(path: Path) -> Source:
    archive = zipfile.ZipFile(path)  # reads of several threads take turns inside it
    members, seen = [], set()
    for info in archive.infolist():
        inside = _inside(path, info.filename)
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(_refusal(path, info.filename, "is a link or a device"))
        if not info.is_dir() and not _hidden(inside):
            _once(path, inside, seen)
            members.append(Member(inside, _label(path, inside), info.file_size, partial(archive.open, info)))
    return Source(path, _stem(path), members, is_archive=True)


def _tar(path: Path) -> Source:
    with open(path, "rb") as file:
        compressed = file.read(262)[257:] != b"ustar"
    archive, lock = tarfile.open(path, tarinfo=_Info), threading.Lock()  # noqa: SIM115 (read as long as the program runs)
    members, seen = [], set()
    for info in archive:
        inside = _inside(path, info.name)
        if not info.isfile() and not info.isdir():
            raise UserError(_refusal(path, info.name, "is a link or a device"))
        if info.isfile() and not _hidden(inside):
            _once(path, inside, seen)
            member = Member(inside, _label(path, inside), info.size, partial(_open_tarred, archive, info, lock))
            if compressed and is_image(inside.name):  # later, this would read the archive from its beginning again
                with contextlib.suppress(UserError):
                    member.size()
            members.append(member)
    _check_end(archive, compressed)
    return Source(path, _stem(path), members, is_archive=True, sequential=compressed)


class _Info(tarfile.TarInfo):
    """A member's header. `tarfile` reads the special members before it, with long names and notes, into memory: their
    size is limited here."""

    def _proc_member(self, archive):
        notes = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
        if self.type in notes and self.size > LONGEST_NAME:
            raise tarfile.ReadError(f"a name of {self.size:,} bytes")
        return super()._proc_member(archive)


def _check_end(archive: tarfile.TarFile, compressed: bool) -> None:
    """Checks for the zeros that end an archive: `tarfile` does not notice a cut between two members.

    Raises:
        EOFError: if they are missing. Reading on to the checksum of compressed data raises the errors of `_BROKEN`.
    """
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise EOFError("its end is missing, as if the download had stopped" if not block else "a member is damaged")
    left = LARGEST if compressed else 0  # reading on to the end makes the decompressor check its checksum
    while left > 0 and archive.fileobj.read(1 << 20):
        left -= 1 << 20


@contextmanager
def _open_tarred(archive: tarfile.TarFile, info: tarfile.TarInfo, lock: threading.Lock) -> Iterator[BinaryIO]:
    with lock, archive.extractfile(info) as file:
        yield file


def _once(path: Path, inside: PurePosixPath, seen: set) -> None:
    if inside in seen:
        raise UserError(_refusal(path, str(inside), "is in it twice"))
    seen.add(inside)


def _label(path: Path, inside: PurePosixPath) -> str:
    return f"{path}:{inside}" if str(inside).isprintable() else f"{path}:{printable(inside)}"


def _inside(path: Path, name: str) -> PurePosixPath:
    """A member's path relative to the archive's folder; some zip files have backslashes.

    Raises:
        UserError: if it points outside the folder.
    """
    if not name:  # zipfile cannot read it
        raise UserError(_refusal(path, "without a name", "is not a file"))
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or re.match(r"[A-Za-z]:", name):
        raise UserError(_refusal(path, name, "points outside the archive's folder"))
    return inside


def _refusal(path: Path, name: str, reason: str) -> str:
    name = printable(name)
    return f"{path}: its member {name} {reason}: nothing was read; use an archive from another source"


def _hidden(path: PurePosixPath) -> bool:
    return any(hidden(part) for part in path.parts)


def _stem(path: Path) -> str:
    return re.sub(r"(\.tar)?\.[A-Za-z0-9]{1,5}$", "", path.name)
