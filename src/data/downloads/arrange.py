"""Images of downloads, copied to their places in the tree: which file becomes which image, and what is there already.

    plan      files of sources, recognised by `layouts` -> one `Target` for each image of the tree
    copy_all  each target's file is read, compared with what is there, and written where nothing is

Nothing is overwritten. What is wrong with single files is collected as text and never stops the other files.
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

LONGEST_NAME = 255  # bytes, of usual disks
MOST_BYTES = 1 << 30  # of files and their pixels that are in memory at once


@dataclass(frozen=True)
class Set:
    """A set's place in the tree, and the images that it has already: name -> file, and for LR (scale, name) -> file.

    `disputed` are names of HR images whose LR images were not understood, so that none are made.
    """

    name: str
    for_tests: bool
    root: Path
    hr_folder: Path
    lr_folder: Path
    hr: dict[str, Path]
    lr: dict[tuple[int, str], Path]
    disputed: set[str] = field(default_factory=set)


@dataclass
class Target:
    """One image of the tree, and the files that are to become it: one as a rule, several if HR comes with each scale.

    Args:
        path: of the file; without suffix as long as there is none.
        present: whether it was there before.
        each, name: the set, and the image's name in it.
        scale: of an LR image, None for HR.
        origin: the file it was copied from, or would have been in a dry run; None if it was not.
    """

    path: Path
    present: bool
    each: Set
    name: str
    scale: int | None
    candidates: list[tuple[Member, layouts.Image]] = field(default_factory=list)
    origin: Member | None = None


def locate(root: Path, for_tests: bool) -> folders.Located:
    """The files of a set, as main.py finds them."""
    return folders.locate_benchmark(root) if for_tests else folders.locate(root)


def place(dir_data: Path, name: str, for_tests: bool) -> Set:
    """Where the set lies or is to lie. A folder that main.py reads already keeps its shape."""
    root = dir_data / "benchmark" / name if for_tests else dir_data / name
    try:
        located = locate(root, for_tests)
        hr_folder, lr_folder = located.base, located.lr_folder
        hr = {located.name_of(path): path for path in located.hr}
        others = _low_images(located)
    except folders.NoImagesError:  # nothing there yet
        stem = "" if for_tests else f"{name}_train_"
        hr_folder, lr_folder, hr, others = root / f"{stem}HR", root / f"{stem}LR_bicubic", {}, {}
    return Set(name, for_tests, root, hr_folder, lr_folder, hr, others | lr_images(lr_folder))


def _low_images(located: folders.Located) -> dict[tuple[int, str], Path]:
    """(scale, name) -> file, of LR images in places of the user's own."""
    found = {}
    scales = {file.scale for file in located.low.files}
    for scale in range(2, 10) if None in scales else sorted(scales):
        for path, kinds in nearest(located.low, scale, read_size).of.items():
            found[scale, located.name_of(path)] = kinds.get("bicubic", next(iter(kinds.values())))[0]
    return found


def lr_images(lr_folder: Path) -> dict[tuple[int, str], Path]:
    """(scale, name) -> file, in the folders X2, X3, …"""
    found = {}
    for path in sorted(lr_folder.glob("X[2-9]/*")):
        scale = int(path.parent.name[1:])
        if is_image(path.name) and path.stem.endswith(f"x{scale}") and path.name[0] != ".":
            found[scale, path.stem.removesuffix(f"x{scale}")] = path
    return found


def plan(
    sources: list[Source], dir_data: Path, *, name: str | None, for_tests: bool | None, problems: list[str]
) -> tuple[list[Target], list[Set]]:
    """Every image's place in the tree, with a line in the log for what each source holds.

    Args:
        name, for_tests: of the set, where the user knows better than the names of folders; None if not.
        problems: what is wrong with single files is added here.

    Raises:
        UserError: for a source without images, or whose set has no name that main.py could be given.
    """
    found = [pair for source in sources for pair in recognised(source, name, for_tests)]
    sets = {key: place(dir_data, *key) for key in dict.fromkeys(_set_of(image) for _, image in found)}
    if name and len(sets) > 1:
        raise UserError(f"--name {name}: SOURCE holds sets to train on and to test on: add --benchmark or --train")
    hr = {(*_set_of(image), image.name): member for member, image in found if not image.lr}
    all_names = {key: set(each.hr) for key, each in sets.items()}
    for _, image in found:
        all_names[_set_of(image)].add(image.name)
    targets: dict[tuple, Target] = {}
    there = {key: _in_place(each) for key, each in sets.items()}
    for member, image in found:
        each, scale = sets[_set_of(image)], None
        if member.file and (known := there[_set_of(image)].get(_real(member.file))):  # it has its place and its name
            image = replace(image, scale=known[0] or image.scale, name=known[1])
        if image.lr:
            try:
                scale = image.scale or measured_scale(member, each, image.name, hr.get((*_set_of(image), image.name)))
            except UserError as error:
                problems.append(str(error))
                known_hr = image.name in each.hr or (*_set_of(image), image.name) in hr
                each.disputed.update([image.name] if known_hr else all_names[_set_of(image)])
                continue
        key = (each.root, scale, image.name)
        if key not in targets:
            old = each.lr.get((scale, image.name)) if scale else each.hr.get(image.name)
            new = each.lr_folder / f"X{scale}" / f"{image.name}x{scale}" if scale else each.hr_folder / image.name
            targets[key] = Target(old or new, old is not None, each, image.name, scale)
        targets[key].candidates.append((member, image))
    return list(targets.values()), list(sets.values())


def _in_place(each: Set) -> dict[Path, tuple[int | None, str]]:
    """File -> (scale or None for HR, name), of the images that the set has already."""
    return {_real(path): (None, name) for name, path in each.hr.items()} | {
        _real(path): key for key, path in each.lr.items()
    }


def _real(path: Path) -> Path:
    return _resolved(path.parent) / path.name


@functools.lru_cache(1024)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def _set_of(image: layouts.Image) -> tuple[str, bool]:
    return image.set_name, image.benchmark


def recognised(source: Source, name: str | None, for_tests: bool | None) -> list[tuple[Member, layouts.Image]]:
    """The images of a source, under the name and of the kind that the user wants, with lines in the log."""
    called = source.name if source.is_archive else layouts.context(source.path.resolve().parts[1:])
    members = {member.path: member for member in source.members}
    images, passed_over = layouts.recognise(
        called, list(members), is_archive=source.is_archive, size=lambda path: size_if_any(members[path])
    )
    if not images:
        counts = (
            "; ".join(f"{count} files: {reason}" for reason, count in passed_over.most_common(3)) or "no file at all"
        )
        raise UserError(
            f"{source.path}: holds no HR and no bicubic LR images ({counts}): give the folder or archive of the images"
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
            benchmark=image.benchmark if for_tests is None else for_tests,
        )
        for image in images
    ]
    for (set_name, is_test_set, lr), count in Counter((*_set_of(image), image.lr) for image in wanted).items():
        if not is_name(set_name):
            raise UserError(
                f"{source.path}: what is in it needs a name that --data_train can be given, "
                f"not {set_name!r}: add --name NAME"
            )
        kind = "to test on" if is_test_set else "to train on"
        log.info("%s: %d %s images of %s, %s", source.path, count, "LR" if lr else "HR", set_name, kind)
    for reason, count in passed_over.items():
        log.info("%s: %d files passed over: %s", source.path, count, printable(reason))
    if source.skipped:
        log.info("%s: %s", source.path, Listing([], source.skipped).summary())
    return [(members[image.path], image) for image in wanted]


def _refuse_other_low(source: Source, hr: list[PurePosixPath]) -> None:
    """LR images that are no bicubic ones are not arranged, but bicubic ones must not be made beside them either.

    Raises:
        UserError: if there are any.
    """
    for member in source.members:
        low = [part for part in member.path.parts[:-1] if role_of(part).lr and role_of(part).sure]
        if low and is_image(member.path.name) and "bin" not in member.path.parts and member.path not in hr:
            raise UserError(
                f"{source.path}: the LR images in {printable(low[0])} are not bicubic ones, and there are no others: "
                "put the HR folder and this one into the set's folder below --dir_data, where main.py takes them as "
                "they are; or leave it out, and bicubic LR images are made from HR"
            )


def size_if_any(member: Member) -> tuple[int, int]:
    """(height, width) of an image, (1, 1) of what cannot be read, which is named where it is."""
    try:
        return member.size()
    except UserError:
        return 1, 1


def measured_scale(lr: Member, each: Set, name: str, hr: Member | None) -> int:
    """The scale of an LR image whose path does not say it, from its size and that of its HR image.

    Raises:
        UserError: if there is no HR image, or no scale fits.
    """
    if hr is None and name not in each.hr:
        raise UserError(f"{lr.label}: is an LR image, but not said of which scale: put it in a folder X2, X3 or X4")
    height, width = lr.size()
    size = hr.size() if hr else read_size(each.hr[name])
    scale = round(size[0] / height)
    if scale < 2 or (size[0] // scale, size[1] // scale) != (height, width):
        raise UserError(
            f"{lr.label}: {width}x{height} pixels are no whole fraction of its HR image's {size[1]}x{size[0]}: "
            "leave it out, and it is made from HR"
        )
    return scale


def copy_all(targets: list[Target], *, n_threads: int, dry_run: bool, problems: list[str]) -> None:
    """Copies what is not there yet, or in a dry run says so. What cannot be used is added to `problems` and left out.

    Raises:
        UserError: if a file cannot be written.
    """

    def settle(target: Target) -> None:
        chosen = choose(target, problems)
        if chosen is None:
            return
        member, content = chosen
        path = target.path.with_name(target.path.name + member.path.suffix.lower())
        if (
            path.exists()
        ):  # written by somebody else meanwhile, or of a name that differs in case where that is no other
            problems.append(f"{member.label}: {path} is there, of another name or origin: rename one of the two")
            return
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            problems.append(name_too_long(path))
            return
        if not dry_run:
            write_bytes(path, content)
        target.path, target.origin = path, member

    room = Room(MOST_BYTES)

    def settle_in_turn(target: Target) -> None:
        sizes = [(member.bytes, *size_if_any(member)) for member, _ in target.candidates]
        # The content, once more while its parts are joined, and its pixels.
        with room.taken(sum(2 * content + 3 * height * width for content, height, width in sizes)):
            settle(target)

    for_each(settle_in_turn, targets, n_threads=n_threads, title="reading" if dry_run else "copying")
    for target in targets if dry_run else ():
        if target.origin:
            log.info("copy %s -> %s", target.origin.label, target.path)
        elif target.present:
            log.info("keep %s", target.path)


class Room:
    """Memory that several threads share: who needs more than is left waits, but whoever is alone goes on."""

    def __init__(self, limit: int):
        self.limit, self.used, self._changed = limit, 0, threading.Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Inside, `count` bytes are taken."""
        with self._changed:
            self._changed.wait_for(lambda: not self.used or self.used + count <= self.limit)
            self.used += count
        try:
            yield
        finally:
            with self._changed:
                self.used -= count
                self._changed.notify_all()


def choose(target: Target, problems: list[str]) -> tuple[Member, bytes] | None:
    """The file to copy, out of those that are to become one image; None if it is there already or cannot be used.

    All must hold the same pixels. HR images that were published for one scale may be cropped to a multiple of it: the
    largest is taken then, and the others must be its upper left part.
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
            decoded.append((read_image(member.label, content), member, image, content))
        except UserError as error:
            problems.append(str(error))
    decoded.sort(key=lambda one: -one[0].size)
    if not decoded:
        return None
    kept, label = decoded[0][0], decoded[0][1].label
    if target.present:
        try:
            kept, label = read_image(target.path), str(target.path)
        except UserError as error:
            problems.append(str(error))
            return None
    for pixels, member, image, _ in decoded:
        height, width = pixels.shape[:2]
        part = kept[:height, :width] if image.scale and not image.lr else kept
        if part.shape[:2] != pixels.shape[:2] or not (part == pixels).all():  # gray equals the same gray as RGB
            problems.append(
                f"{member.label}: differs from {label}, which has its place: remove the wrong one of the two"
            )
    return None if target.present else (decoded[0][1], decoded[0][3])


def is_name(text: str) -> bool:
    """Whether main.py's --data_train and --data_test would take this as the name of a set."""
    usual = text.isprintable() and re.fullmatch(r"[^/\\\s.+*][^/\\+*]*", text)
    return bool(usual) and text not in ("benchmark", "Demo")
