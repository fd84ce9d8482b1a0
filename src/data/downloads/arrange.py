"""Copies downloaded images to their places in the tree: which file becomes which image, and which exist already.

    plan      files of sources, recognised by `layouts` -> one `Target` for each image of the tree
    copy_all  reads each target's file, compares it with the image that exists, and writes it where there is none

Nothing is overwritten. A problem of a single file is collected as a line of text and does not stop the other files.
"""

import functools
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from data import folders
from data.downloads import layouts
from data.downloads.sources import Member, Source
from data.image import name_too_long, read_bytes, read_image, read_size
from data.listing import Listing, is_image
from data.matching import nearest
from data.parallel import for_each
from data.roles import role_of
from runtime.errors import UserError, printable
from runtime.files import write_bytes

log = logging.getLogger("krgn")

LONGEST_NAME = 255  # bytes, on usual disks
MOST_BYTES = 1 << 30  # of files and their pixels that are in memory at once


@dataclass(frozen=True)
class SetPlace:
    """A set's place in the tree, and the images that it has already.

    Args:
        benchmark: whether it is a set to test on.
        hr: name -> file.
        lr: (scale, name) -> file.
        disputed: names of HR images whose LR images were not understood: none are made for them.
    """

    name: str
    benchmark: bool
    root: Path
    hr_folder: Path
    lr_folder: Path
    hr: dict[str, Path]
    lr: dict[tuple[int, str], Path]
    disputed: set[str] = field(default_factory=set)


@dataclass
class Target:
    """One image of the tree, and the files that may become it: usually one, several if HR comes with each scale.

    Args:
        path: of the image; without suffix until it exists.
        present: whether it existed before.
        place, name: its set, and its name there.
        scale: of an LR image, None for HR.
        origin: the file it was copied from, or in a dry run would be; None if it was not copied.
    """

    path: Path
    present: bool
    place: SetPlace
    name: str
    scale: int | None
    candidates: list[tuple[Member, layouts.Image]] = field(default_factory=list)
    origin: Member | None = None


def locate(root: Path, benchmark: bool) -> folders.Located:
    """The files of a set, as main.py finds them.

    Raises:
        UserError: if there are none, or if LR and HR cannot be told apart.
    """
    return folders.locate_benchmark(root) if benchmark else folders.locate(root)


def place_of(dir_data: Path, name: str, benchmark: bool) -> SetPlace:
    """Where a set lies or will lie. A folder that main.py reads already keeps its shape."""
    root = dir_data / "benchmark" / name if benchmark else dir_data / name
    try:
        located = locate(root, benchmark)
        hr_folder, lr_folder = located.base, located.lr_folder
        hr = {located.name_of(path): path for path in located.hr}
        others = _low_images(located)
    except folders.NoImagesError:  # nothing there yet
        stem = "" if benchmark else f"{name}_train_"
        hr_folder, lr_folder, hr, others = root / f"{stem}HR", root / f"{stem}LR_bicubic", {}, {}
    return SetPlace(name, benchmark, root, hr_folder, lr_folder, hr, others | lr_images(lr_folder))


def _low_images(located: folders.Located) -> dict[tuple[int, str], Path]:
    """(scale, name) -> file, for the user's own LR images anywhere in the set's folder."""
    found = {}
    scales = {file.scale for file in located.low.files}
    for scale in range(2, 10) if None in scales else sorted(scales):
        for path, kinds in nearest(located.low, scale, read_size).of.items():
            found[scale, located.name_of(path)] = kinds.get("bicubic", next(iter(kinds.values())))[0]
    return found


def lr_images(lr_folder: Path) -> dict[tuple[int, str], Path]:
    """(scale, name) -> file, for LR images in the folders X2, X3, …"""
    found = {}
    for path in sorted(lr_folder.glob("X[2-9]/*")):
        scale = int(path.parent.name[1:])
        if is_image(path.name) and path.stem.endswith(f"x{scale}") and path.name[0] != ".":
            found[scale, path.stem.removesuffix(f"x{scale}")] = path
    return found


def plan(
    sources: list[Source], dir_data: Path, *, name: str | None, benchmark: bool | None, problems: list[str]
) -> tuple[list[Target], list[SetPlace]]:
    """Gives every image its place in the tree, and logs what each source holds.

    Args:
        name, benchmark: of the set, where the user gave them; None to go by the names of folders.
        problems: one line is added for each image that has no place.

    Raises:
        UserError: for a source without images, or with a set whose name main.py would not take.
    """
    found = [pair for source in sources for pair in recognised(source, name, benchmark)]
    places = {key: place_of(dir_data, *key) for key in dict.fromkeys(image.set_key for _, image in found)}
    if name and len(places) > 1:
        raise UserError(f"--name {name}: SOURCE holds sets to train on and to test on: add --benchmark or --train")
    hr = {(image.set_key, image.name): member for member, image in found if not image.lr}
    in_place = {key: _in_place(place) for key, place in places.items()}
    targets: dict[tuple, Target] = {}
    for member, image in found:
        place, scale = places[image.set_key], None
        if member.file and (known := in_place[image.set_key].get(_real(member.file))):  # it has its place and its name
            image = replace(image, scale=known[0] or image.scale, name=known[1])
        if image.lr:
            hr_member = hr.get((image.set_key, image.name))
            try:
                scale = image.scale or measured_scale(member, place, image.name, hr_member)
            except UserError as error:
                problems.append(str(error))
                if image.name in place.hr or hr_member:
                    place.disputed.add(image.name)
                else:  # it may belong to any of them
                    place.disputed.update(place.hr, (other for key, other in hr if key == image.set_key))
                continue
        key = (place.root, scale, image.name)
        if key not in targets:
            targets[key] = _target(place, image.name, scale)
        targets[key].candidates.append((member, image))
    return list(targets.values()), list(places.values())


def _target(place: SetPlace, name: str, scale: int | None) -> Target:
    """The image of this name, HR if `scale` is None, without candidates."""
    old = place.lr.get((scale, name)) if scale else place.hr.get(name)
    new = place.lr_folder / f"X{scale}" / f"{name}x{scale}" if scale else place.hr_folder / name
    return Target(old or new, old is not None, place, name, scale)


def _in_place(place: SetPlace) -> dict[Path, tuple[int | None, str]]:
    """File -> (scale or None for HR, name), for the images that the set has already."""
    return {_real(path): (None, name) for name, path in place.hr.items()} | {
        _real(path): key for key, path in place.lr.items()
    }


def _real(path: Path) -> Path:
    return _resolved(path.parent) / path.name


@functools.lru_cache(1024)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def recognised(source: Source, name: str | None, benchmark: bool | None) -> list[tuple[Member, layouts.Image]]:
    """The images of a source, with the name and kind of set that the user gave, and lines in the log.

    Raises:
        UserError: if there are none, if there are several sets for one `name`, or if a set's name is not usable.
    """
    called = source.name if source.is_archive else layouts.context(source.path.resolve().parts[1:])
    members = {member.path: member for member in source.members}
    images, skipped = layouts.recognise(
        called, list(members), is_archive=source.is_archive, size_of=lambda path: size_if_any(members[path])
    )
    if not images:
        reasons = "; ".join(f"{count} files: {reason}" for reason, count in skipped.most_common(3)) or "no file at all"
        raise UserError(
            f"{source.path}: holds no HR and no bicubic LR images ({reasons}): give the folder or archive of the images"
        )
    if not any(image.lr for image in images):
        _refuse_other_low(source, [image.path for image in images])
    names = sorted({image.set_name for image in images})
    if name and len(names) > 1:
        raise UserError(
            f"--name {name}: {source.path} holds {len(names)} sets, {' and '.join(names)}: "
            "give the folder of one of them, or drop --name"
        )
    wanted = [
        replace(
            image,
            set_name=name or image.set_name,
            benchmark=image.benchmark if benchmark is None else benchmark,
        )
        for image in images
    ]
    _log_recognised(source, wanted, skipped)
    return [(members[image.path], image) for image in wanted]


def _log_recognised(source: Source, images: list[layouts.Image], skipped: Counter[str]) -> None:
    """Logs which images of which sets a source holds, and what was skipped.

    Raises:
        UserError: if main.py would not take a set's name.
    """
    for (key, lr), count in Counter((image.set_key, image.lr) for image in images).items():
        if not is_name(key.name):
            raise UserError(
                f"{source.path}: the set needs a name that --data_train takes, not {key.name!r}: add --name NAME"
            )
        purpose = "to test on" if key.benchmark else "to train on"
        log.info("%s: %d %s images of %s, %s", source.path, count, "LR" if lr else "HR", key.name, purpose)
    for reason, count in skipped.items():
        log.info("%s: %d files skipped: %s", source.path, count, printable(reason))
    if source.skipped:
        log.info("%s: %s", source.path, Listing([], source.skipped).summary())


def _refuse_other_low(source: Source, hr: list[PurePosixPath]) -> None:
    """Refuses LR images that are not bicubic: they are not arranged, and bicubic ones must not be made beside them.

    Raises:
        UserError: if there are any.
    """
    for member in source.members:
        low = [part for part in member.path.parts[:-1] if role_of(part).lr and role_of(part).sure]
        if low and is_image(member.path.name) and "bin" not in member.path.parts and member.path not in hr:
            raise UserError(
                f"{source.path}: the LR images in {printable(low[0])} are not bicubic, and there are no others: put "
                "the HR folder and this one into the set's folder below --dir_data, where main.py uses them as they "
                "are; or leave it out, and bicubic LR images are made from HR"
            )


def size_if_any(member: Member) -> tuple[int, int]:
    """(height, width) of an image; (1, 1) if it cannot be read, which is reported where it is read."""
    try:
        return member.size()
    except UserError:
        return 1, 1


def measured_scale(lr: Member, place: SetPlace, name: str, hr: Member | None) -> int:
    """The scale of an LR image whose path does not say it, from its size and the size of its HR image.

    Args:
        name: of the image.
        hr: its HR image, if that is among the sources; else it is looked up in `place`.

    Raises:
        UserError: if there is no HR image, or no scale fits.
    """
    if hr is None and name not in place.hr:
        raise UserError(f"{lr.label}: is an LR image of an unknown scale: put it in a folder X2, X3 or X4")
    height, width = lr.size()
    size = hr.size() if hr else read_size(place.hr[name])
    scale = round(size[0] / height)
    if scale < 2 or (size[0] // scale, size[1] // scale) != (height, width):
        raise UserError(
            f"{lr.label}: {width}x{height} pixels are not a whole fraction of its HR image's {size[1]}x{size[0]}: "
            "leave it out, and it is made from HR"
        )
    return scale


def copy_all(targets: list[Target], *, n_threads: int, dry_run: bool, problems: list[str]) -> None:
    """Copies the images that do not exist yet; in a dry run logs what would be copied.

    Args:
        problems: one line is added for each file that cannot be used.

    Raises:
        UserError: if a file cannot be written.
    """
    room = Room(MOST_BYTES)

    def settle_in_turn(target: Target) -> None:
        sizes = [(member.bytes, *size_if_any(member)) for member, _ in target.candidates]
        # The content, once more while its parts are joined, and its pixels.
        with room.taken(sum(2 * content + 3 * height * width for content, height, width in sizes)):
            _settle(target, dry_run, problems)

    for_each(settle_in_turn, targets, n_threads=n_threads, title="reading" if dry_run else "copying")
    for target in targets if dry_run else ():
        if target.origin:
            log.info("copy %s -> %s", target.origin.label, target.path)
        elif target.present:
            log.info("keep %s", target.path)


def _settle(target: Target, dry_run: bool, problems: list[str]) -> None:
    """Copies one image if it does not exist yet, and notes its path and origin."""
    chosen = choose(target, problems)
    if chosen is None:
        return
    member, content = chosen
    path = target.path.with_name(target.path.name + member.path.suffix.lower())
    # Another program may have written it meanwhile, or the disk may not distinguish its name from another's by case.
    if path.exists():
        problems.append(f"{member.label}: {path} exists, with another name or origin: rename one of the two")
        return
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        problems.append(name_too_long(path))
        return
    if not dry_run:
        write_bytes(path, content)
    target.path, target.origin = path, member


class Room:
    """A budget of memory for several threads: one that needs more than is left waits, unless it is the only one.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.used, self._changed = limit, 0, threading.Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Takes `count` bytes of the budget, and gives them back at the end."""
        with self._changed:
            self._changed.wait_for(lambda: not self.used or self.used + count <= self.limit)
            self.used += count
        try:
            yield
        finally:
            with self._changed:
                self.used -= count
                self._changed.notify_all()


class _Decoded(NamedTuple):
    """A candidate that was read: pixels uint8 (H, W, C), and the file's content."""

    pixels: np.ndarray
    member: Member
    image: layouts.Image
    content: bytes


def choose(target: Target, problems: list[str]) -> tuple[Member, bytes] | None:
    """The file to copy, with its content; None if the image exists already or no file can be used.

    All candidates must hold the same pixels. HR images that were published for one scale may be cropped to a multiple
    of it: then the largest is taken, and the others must be its upper left part.
    """
    if target.present and len(target.candidates) == 1:
        member = target.candidates[0][0]
        try:
            if member.read() == read_bytes(target.path):
                return None
        except UserError as error:
            problems.append(str(error))
            return None
    decoded = []
    for member, image in target.candidates:
        try:
            content = member.read()
            decoded.append(_Decoded(read_image(member.label, content), member, image, content))
        except UserError as error:
            problems.append(str(error))
    if not decoded:
        return None
    decoded.sort(key=lambda candidate: -candidate.pixels.size)
    kept, label = decoded[0].pixels, decoded[0].member.label
    if target.present:
        try:
            kept, label = read_image(target.path), str(target.path)
        except UserError as error:
            problems.append(str(error))
            return None
    for candidate in decoded:
        height, width = candidate.pixels.shape[:2]
        part = kept[:height, :width] if candidate.image.scale and not candidate.image.lr else kept
        # Gray equals the same gray as RGB.
        if part.shape[:2] != candidate.pixels.shape[:2] or not (part == candidate.pixels).all():
            problems.append(f"{candidate.member.label}: differs from {label}: remove the wrong one of the two")
    return None if target.present else (decoded[0].member, decoded[0].content)


def is_name(text: str) -> bool:
    """Whether main.py's --data_train and --data_test would take this as the name of a set."""
    usual = text.isprintable() and re.fullmatch(r"[^/\\\s.+*][^/\\+*]*", text)
    return bool(usual) and text not in ("benchmark", "Demo")
