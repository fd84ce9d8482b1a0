"""A user's own images, in --dir_demo and the folders below, to be upscaled: there is no HR, so there are no scores."""

import logging
import os
import zlib
from collections import Counter
from pathlib import Path

from data.div2k import name_of
from data.image import read_header
from data.listing import scan
from data.srdata import ImageSet, Pair
from runtime.errors import UserError

log = logging.getLogger("krgn")

LONGEST = 200  # bytes of a name, to which results add theirs


def image_set(folder: Path) -> ImageSet:
    """The images of `folder` as LR images, with a line in the log of what was read and what was skipped.

    Raises:
        UserError: if the folder is missing or holds no images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder: name the folder of your images with --dir_demo")
    listing = scan(folder)
    skipped = f"; {listing.summary()}" if listing.skipped else ""
    if not listing.images:
        raise UserError(f"{folder}: the folder holds no images, expected files such as {folder / '0001.png'}{skipped}")
    log.info("Demo: %d images of %s%s", len(listing.images), folder, skipped)
    names = result_names(listing.images, folder)
    found = zip(names, listing.images, strict=True)
    return ImageSet("Demo", [Pair(name, path, None, headers=(read_header(path),)) for name, path in found], own=True)


def result_names(paths: list[Path], folder: Path) -> list[str]:
    """A name for each image's results: a/b.png gives a__b. Names that would be one, also where a disk does not tell
    letters of either case apart, keep their suffix, b_png and b_jpg, and then a number; long ones are shortened."""
    plain = [name_of(path, folder) for path in paths]
    count = Counter(name.casefold() for name in plain)
    taken: set[str] = {name.casefold() for name in plain if count[name.casefold()] == 1}
    names = []
    for path, name in zip(paths, plain, strict=True):
        wanted = name
        if count[name.casefold()] > 1:
            wanted = f"{name}_{path.suffix[1:]}"
            number = 2
            while wanted.casefold() in taken:
                wanted = f"{name}_{path.suffix[1:]}_{number}"
                number += 1
            taken.add(wanted.casefold())
        names.append(shortened(wanted))
    return names


def shortened(name: str) -> str:
    """A name to which a suffix may still be added: one of more than LONGEST bytes ends in its checksum."""
    content = os.fsencode(name)
    if len(content) <= LONGEST:
        return name
    return f"{content[: LONGEST - 9].decode(errors='ignore')}_{zlib.crc32(content):08x}"
