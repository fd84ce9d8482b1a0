"""What lies in a folder: regular files, also in the folders below and behind links, and what is passed over.

One walk for every program, so that all of them see the same images: each folder is read once, however many links lead
to it, and what is no regular file (a pipe would be waited for) is never opened.
"""

import functools
import os
import stat
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from runtime.errors import UserError, printable

# Formats that Pillow knows and that are no pictures, or pictures of which no pixels are stored.
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
READ_ALREADY = "a link to a folder that is read already"
BROKEN = "a link to nothing"
EMPTY = "an empty folder"
NO_IMAGE = "no image that can be read here"


@dataclass
class Listing:
    """What a folder holds.

    Args:
        images: sorted.
        skipped: path -> why it is no image, in a few words; hidden files are not among them.
    """

    images: list[Path] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)

    def summary(self) -> str:
        """ "2 skipped: notes.txt (no image that can be read here) …", or nothing if none was."""
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
    """Whether a file's name has the suffix of a picture."""
    return os.path.splitext(name)[1].lower() in suffixes()


def hidden(name: str) -> bool:
    """Whether a file or folder is passed over without a word: hidden, or what macOS and Windows leave in folders."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def scan(folder: Path, *, nested: bool = True, without: frozenset[Path] = frozenset()) -> Listing:
    """The images right in `folder`, or also in the folders below it, and what is no image.

    Args:
        without: folders that are not looked into.

    Raises:
        UserError: if a folder cannot be read, or the name of an image is no text (UTF-8): what is made of it could not
            be named in tables and by all libraries.
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
            f"{printable(path)}: the name is no text (UTF-8): rename it, as convmv -f latin1 -t utf8 does"
        ) from None


def walk(
    folder: Path, *, nested: bool = True, without: frozenset[Path] = frozenset()
) -> tuple[list[Path], dict[Path, str]]:
    """The regular files of a folder, and what else lies there: path -> what it is. Hidden ones are left out.

    Links are followed, after all that lies there itself; one to a folder that was read, or that holds this one, is not.

    Raises:
        UserError: if a folder cannot be read.
    """
    files: list[Path] = []
    odd: dict[Path, str] = {}
    try:
        seen = {_identity(parent) for parent in folder.resolve().parents}
        waiting, links = deque([folder]), deque()
        while waiting or links:
            here = waiting.popleft() if waiting else links.popleft()
            if (identity := _identity(here)) in seen:
                odd[here] = READ_ALREADY
                continue
            seen.add(identity)
            with os.scandir(here) as entries:
                found = sorted((entry for entry in entries if not hidden(entry.name)), key=lambda entry: entry.name)
            if not found:
                odd[here] = EMPTY
            for entry in found:
                path = here / entry.name
                try:
                    is_folder, is_regular = entry.is_dir(), entry.is_file()
                except OSError:  # a link to itself, or to what may not be seen
                    odd[path] = BROKEN
                    continue
                if is_folder:
                    if nested and path not in without:
                        (links if entry.is_symlink() else waiting).append(path)
                elif is_regular:
                    files.append(path)
                else:
                    odd[path] = _kind(entry)
    except OSError as error:
        raise UserError(
            f"{printable(error.filename or folder)}: cannot be read ({error.strerror}): change its permissions, or "
            "name another folder"
        ) from None
    return files, odd


def _identity(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _kind(entry: os.DirEntry) -> str:
    try:
        mode = entry.stat().st_mode
    except OSError:
        return BROKEN
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
