"""Which file each picture of a command line is enlarged into: beside it, or in a folder, and never over an input."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data.encode import KEPT_SUFFIXES
from data.folders import shortened
from data.listing import NO_IMAGE, Listing, is_image, walk
from runtime.errors import UserError, printable

SAME = "same"  # the format of the input


@dataclass(frozen=True)
class Job:
    """A picture, the file it is enlarged into, and that file's format, one of `encode.FORMS`."""

    source: Path
    target: Path
    form: str


@dataclass
class Plan:
    """The jobs of a command line, in its order; `skipped` says why other files in its folders are no pictures."""

    jobs: list[Job] = field(default_factory=list)
    skipped: str = ""


def plan(inputs: list[Path], *, out: Path | None, scale: int, format: str, overwrite: bool = False) -> Plan:
    """Finds the pictures and names their files.

    photo.jpg becomes photo_x4.png beside it, and pictures/a/b.jpg, of the folder `pictures`, becomes
    pictures_x4/a/b_x4.png; with `out`, that folder takes the place of both. Where two names would be equal, they keep
    their suffixes: photo_jpg_x4.png.

    Args:
        inputs: pictures and folders.
        format: one of `encode.FORMS`, or `SAME`: JPEG, PNG, WebP and TIFF keep theirs, all others become PNG.
        overwrite: whether files that are there already are made again. One that is an input as well is left out
            otherwise: it is a result of an earlier run.

    Raises:
        UserError: if an input is missing, there is no picture, or an input would be written over.
    """
    found, skipped = _pictures(inputs, out, scale)
    if not found:
        also = f" ({skipped})" if skipped else ""
        names = ", ".join(printable(path) for path in inputs)
        raise UserError(f"{names}: found no pictures{also}: name a picture, or a folder of pictures")
    jobs = _named(found, scale, format)
    sources = {os.path.realpath(job.source) for job in jobs}
    over = {os.path.realpath(job.target) for job in jobs} & sources
    if over and overwrite:
        raise UserError(
            f"{printable(min(over))}: would be written over, but is among the pictures to enlarge: give another --out, "
            "or drop --overwrite"
        )
    return Plan([job for job in jobs if os.path.realpath(job.source) not in over], skipped)


def folder_of(given: Path, out: Path | None, scale: int) -> Path:
    """The folder for what is made of an input, a picture or a folder."""
    if out is not None:
        return out
    absolute = Path(os.path.abspath(given))
    if not given.is_dir():
        return given.parent
    if not absolute.name:
        raise UserError(f"{given}: has no folder above it for the enlarged pictures: give --out DIR")
    return absolute.with_name(f"{absolute.name}_x{scale}")


def _pictures(inputs: list[Path], out: Path | None, scale: int) -> tuple[list[tuple[Path, Path]], str]:
    """(picture, path of its result without the suffix and the scale) of each input, and what was skipped."""
    found: dict[str, tuple[Path, Path]] = {}
    skipped: dict[Path, str] = {}
    for given in inputs:
        base = folder_of(given, out, scale)
        if not given.is_dir():
            if not os.path.lexists(given):
                raise UserError(f"{printable(given)}: there is no such picture or folder: check the path")
            found.setdefault(os.path.abspath(given), (given, base / given.stem))
            continue
        # Results of an earlier run into a folder inside the input are no pictures to enlarge.
        inside = out is not None and Path(os.path.abspath(given)) in Path(os.path.abspath(out)).parents
        own = given / Path(os.path.abspath(out)).relative_to(os.path.abspath(given)) if inside else None
        files, others = walk(given, without=frozenset({own}) if own else frozenset())
        skipped |= others
        for path in sorted(files):
            if not is_image(path.name):
                skipped[path] = NO_IMAGE
                continue
            found.setdefault(os.path.abspath(path), (path, base / path.relative_to(given).with_suffix("")))
    return list(found.values()), Listing(skipped=skipped).summary()


def _named(found: list[tuple[Path, Path]], scale: int, format: str) -> list[Job]:
    """The jobs of (picture, result without suffix); names are compared without case, as some disks do."""

    def suffix(source: Path) -> str:
        if format != SAME:
            return f".{format}"
        return source.suffix.lower() if source.suffix.lower() in KEPT_SUFFIXES else ".png"

    def target(source: Path, stem: Path, added: str = "") -> Path:
        return stem.with_name(f"{shortened(stem.name + added)}_x{scale}{suffix(source)}")

    def key(path: Path) -> str:
        return os.path.abspath(path).casefold()

    targets = [target(*each) for each in found]
    count = Counter(map(key, targets))
    taken = {name for name, times in count.items() if times == 1}
    jobs = []
    for (source, stem), wanted in zip(found, targets, strict=True):
        if count[key(wanted)] > 1:
            number, kind = 1, source.suffix[1:]
            while key(wanted) in taken or number == 1:
                wanted = target(source, stem, f"_{kind}" + (f"_{number}" if number > 1 else ""))
                number += 1
            taken.add(key(wanted))
        jobs.append(Job(source, wanted, KEPT_SUFFIXES.get(suffix(source), "png")))
    return jobs
