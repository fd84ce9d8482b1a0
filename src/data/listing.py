"""What lies in a folder: images, also in the folders below and behind links, and what is skipped.

One walk for every program, so that all of them see the same images. Each folder is read once, however many links lead
to it, and only regular files are ever opened: opening a pipe would wait for its writer.
"""

import functools
import os
import stat
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from runtime.errors import UserError, printable

# Formats that Pillow knows but that are not pictures, or pictures without stored pixels.
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
READ_ALREADY = "a link to a folder that is already read"
BROKEN = "a broken link"
EMPTY = "an empty folder"
NO_IMAGE = "not an image of a known format"


@dataclass
class Listing:
    """What a folder holds.

    Args:
        images: sorted.
        skipped: path -> why it is not an image, in a few words; hidden files are not among them.
    """

    images: list[Path] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)

    def summary(self) -> str:
        """What was skipped, as in "1 skipped: notes.txt (not an image of a known format)"; "" if nothing was."""
        if not self.skipped:
            return ""
        parts = []
        for reason, count in Counter(self.skipped.values()).most_common():
            names = sorted(path.name for path, why in self.skipped.items() if why == reason)
            more = f" and {count - 10} more" if count > 10 else ""
            parts.append(f"{', '.join(printable(name) for name in names[:10])}{more} ({reason})")
        return f"{len(self.skipped)} skipped: {'; '.join(parts)}"


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of all pictures that Pillow reads, as in ".png"."""
    Image.init()  # loads its plugins, which not every run needs
    known = Image.registered_extensions().items()
    return frozenset(
        suffix for suffix, kind in known if (kind in Image.OPEN or kind == "MPO") and kind not in NO_PICTURES
    )


def is_image(name: str) -> bool:
    """Whether the name of a file has the suffix of a picture."""
    return os.path.splitext(name)[1].lower() in suffixes()


def hidden(name: str) -> bool:
    """Whether a file or folder is ignored silently: hidden, or what macOS and Windows leave in folders."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def scan(folder: Path, *, nested: bool = True, without: frozenset[Path] = frozenset()) -> Listing:
    """The images directly in `folder`, or with `nested` also in the folders below it, and what is not an image.

    Args:
        without: folders that are not read.

    Raises:
        UserError: if a folder cannot be read, or if the name of an image is not valid UTF-8: tables and some libraries
            could not name what is made from it.
    """
    files, skipped = walk(folder, nested=nested, without=without)
    images = []
    for path in files:
        if is_image(path.name):
            _refuse_bytes(path)
            images.append(path)
        else:
            skipped[path] = NO_IMAGE
    return Listing(sorted(images), skipped)


def _refuse_bytes(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{printable(path)}: the name is not valid UTF-8: rename it, as convmv -f latin1 -t utf8 does"
        ) from None


def walk(
    folder: Path, *, nested: bool = True, without: frozenset[Path] = frozenset()
) -> tuple[list[Path], dict[Path, str]]:
    """The regular files of a folder, and everything else in it: path -> what it is. Hidden names are left out.

    Links to folders are followed after everything else is read, unless the folder was read already or holds this one.

    Raises:
        UserError: if a folder cannot be read.
    """
    files: list[Path] = []
    others: dict[Path, str] = {}
    try:
        seen = {_identity(parent) for parent in folder.resolve().parents}
        waiting, links = deque([folder]), deque()
        while waiting or links:
            here = waiting.popleft() if waiting else links.popleft()
            if (identity := _identity(here)) in seen:
                others[here] = READ_ALREADY
                continue
            seen.add(identity)
            with os.scandir(here) as entries:
                found = sorted((entry for entry in entries if not hidden(entry.name)), key=lambda entry: entry.name)
            if not found:
                others[here] = EMPTY
            for entry in found:
                path = here / entry.name
                try:
                    is_folder, is_regular = entry.is_dir(), entry.is_file()
                except OSError:  # a link to itself, or to something that may not be read
                    others[path] = BROKEN
                    continue
                if is_folder:
                    if nested and path not in without:
                        (links if entry.is_symlink() else waiting).append(path)
                elif is_regular:
                    files.append(path)
                else:
                    others[path] = _kind(entry)
    except OSError as error:
        raise UserError(
            f"{printable(error.filename or folder)}: cannot be read ({error.strerror}): change its permissions, or "
            "name another folder"
        ) from None
    return files, others


def _identity(folder: Path) -> tuple[int, int]:
    """What stays the same however a folder is reached: (device, inode)."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _kind(entry: os.DirEntry) -> str:
    """What an entry is that is neither a file nor a folder."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return BROKEN
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
