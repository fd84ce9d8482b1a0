"""Which LR image belongs to which HR image of a set, out of all that lie in its folder.

`roles` says what each image is. Here pairs are found by names, and by sizes where no name says the scale. Anything
that is not certain is refused: LR images are never trained on as HR, and none are made beside the user's own.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path, PurePath
from typing import NamedTuple

from data.roles import File, SizeOf
from runtime.errors import UserError, printable

MOST_KINDS = 64  # folders or marks that are compared with one another
LOOKED_AT = 4  # images of a folder whose sizes are read to find out whether they are LR images

# The parts of a name of which one may be a mark: before or after it, separated by a character or by digits.
_AROUND = (
    r"(?P<name>.+)(?P<mark>[-_. ][^-_. ]+)",
    r"(?P<mark>[^-_. ]+[-_. ])(?P<name>.+)",
    r"(?P<name>.*\d)(?P<mark>[A-Za-z]+)",
    r"(?P<mark>[A-Za-z]+)(?P<name>\d.*)",
)


# --- HR images that look like LR images ---


def refuse_likely_pairs(files: list[File], size_of: SizeOf, where: str) -> None:
    """Refuses a set of HR images of which some seem to be others made smaller: two folders of the same names, or pairs
    of names in one folder.

    Args:
        where: names the set in the error.

    Raises:
        UserError: if all images of one kind have the sizes of another kind divided by the same whole number.
    """
    for kinds in (_by_folder(files), _by_mark(files)):
        for one, other in permutations(kinds, 2):
            shared = kinds[one].keys() & kinds[other].keys()
            if len(shared) < 2 or len(shared) < len(kinds[other]):
                continue
            if ratio := _common_ratio(kinds[one], kinds[other], sorted(shared), size_of):
                large, small = (kinds[kind][min(shared)].path for kind in (one, other))
                raise UserError(
                    f"{where}: {printable(small.name)} in {printable(small.parent)} and {len(shared) - 1} more are "
                    f"{printable(large.name)} in {printable(large.parent)} and so on, {ratio} times smaller: are they "
                    "LR images? Then call the folders HR and LR; otherwise rename them or move one kind away"
                )


def _common_ratio(large: dict[str, File], small: dict[str, File], names: list[str], size_of: SizeOf) -> int:
    """The scale at which the sizes of all pairs fit; 0 if there is none."""
    ratio = 0
    for name in names:
        found = ratio_of(size_of(large[name].path), size_of(small[name].path))
        if not found or ratio not in (0, found):
            return 0
        ratio = found
    return ratio


def _by_folder(files: list[File]) -> dict:
    """Folder -> stem -> file; empty if there are too many folders to compare."""
    kinds: dict = defaultdict(dict)
    for file in files:
        kinds[file.path.parent][file.stem.casefold()] = file
    return kinds if len(kinds) <= MOST_KINDS else {}


def _by_mark(files: list[File]) -> dict:
    """(folder, place of the mark, mark) -> rest of the name -> file, for a_big.png, a_small.png and big_a.png; empty if
    there are too many kinds to compare."""
    kinds: dict = defaultdict(dict)
    for file in files:
        for pattern in _AROUND:
            if found := re.fullmatch(pattern, file.stem):
                kinds[file.path.parent, pattern, found["mark"].casefold()][found["name"].casefold()] = file
    kinds = {kind: names for kind, names in kinds.items() if len(names) > 1}
    return kinds if len(kinds) <= MOST_KINDS else {}


def ratio_of(high: tuple[int, int], low: tuple[int, int]) -> int:
    """The scale at which the sizes (height, width) of a pair fit; 0 if there is none."""
    scale = round(high[0] / low[0])
    return scale if scale > 1 and low == (high[0] // scale, high[1] // scale) else 0


def refuse_unnamed_low(hr: list[File], others: list[File], size_of: SizeOf) -> None:
    """Refuses images beside a folder of HR images that seem to be the same ones made smaller, in a folder of any name.

    Args:
        others: images outside the HR folder whose names say nothing.

    Raises:
        UserError: if the name and the size of one fit an HR image.
    """
    index = {(file.folders, stem.casefold()): file for file in hr for stem in (file.stem, file.name)}
    looked_at: dict[PurePath, int] = defaultdict(int)
    for file in others:
        # Any folder may be the one that means LR, in words that are not known here.
        keys = [(folders, stem) for folders in (file.folders, ()) for stem in (file.key()[1], file.name.casefold())]
        partner = next((index[key] for key in keys if key in index), None)
        if partner is None or looked_at[file.path.parent] >= LOOKED_AT:
            continue
        looked_at[file.path.parent] += 1
        if ratio := ratio_of(size_of(partner.path), size_of(file.path)):
            raise UserError(
                f"{printable(file.path)}: looks like the LR image x{ratio} of {printable(partner.path)}: rename its "
                f"folder to LR_bicubic/X{ratio}, or to LR if it is not bicubic; if it is not an LR image, move it away"
            )


# --- pairs ---


class Partner(NamedTuple):
    """The HR image of a pair, and the name that both images share."""

    hr: File
    name: str


def pairs_in(files: list[File]) -> dict[PurePath, Partner]:
    """Path -> partner, for all LR images that have an HR image, and for these HR images."""
    index = _index([file for file in files if not file.lr])
    found: dict[PurePath, Partner] = {}
    for file in files:
        if not file.lr:
            continue
        hr = next((hr for form in _forms(file.scale or 0) if (hr := _match(file, index, form(file)))), None)
        if hr is not None:
            found[file.path] = found[hr.path] = Partner(hr, hr.name if hr.mark is False else hr.stem)
    return found


def _index(hr: list[File]) -> dict[tuple, list[File]]:
    """HR images, by what they share with their LR images."""
    index = defaultdict(list)
    for file in hr:
        for stem in dict.fromkeys((file.stem, file.name) if file.mark is False else (file.stem,)):
            index[file.key(stem)].append(file)
    return index


# --- LR images for HR images ---


class Stray(NamedTuple):
    """Something in an LR folder that is not an image: what it is, and the scale of its folder if that is known."""

    path: Path
    reason: str
    scale: int | None


@dataclass(frozen=True)
class LowImages:
    """The LR images in a set's folder, and all HR images that they may belong to.

    Args:
        files: with their scales as far as they are known.
        hr: all HR images of the set.
        strays: what lies in LR folders and is not an image.
        aside: whether missing LR images are made in bin/, where the user has none.
        names: HR image -> name, where what it shares with its LR images names it, and not its path.
    """

    files: list[File]
    hr: list[File]
    strays: list[Stray]
    aside: bool
    names: dict[Path, str] = field(default_factory=dict)


class OtherScale(NamedTuple):
    """An LR image whose name has no scale and whose size shows another one than was asked for."""

    file: File
    scale: int


@dataclass(frozen=True)
class Matched:
    """LR images of one scale.

    Args:
        of: HR image -> kind of degradation -> its LR images.
        alone: those without an HR image.
        elsewhere: those of other scales.
    """

    of: dict[PurePath, dict[str, list[PurePath]]]
    alone: list[File]
    elsewhere: list[OtherScale]


def nearest(low: LowImages, scale: int, size_of: SizeOf) -> Matched:
    """The LR images of each HR image at one scale. Where no name has the scale, sizes decide."""
    members_of = defaultdict(list)
    for file in low.files:
        if file.scale in (None, scale):
            members_of[file.group, file.path.parent].append(file)
    index = _index(low.hr)
    found = Matched(defaultdict(lambda: defaultdict(list)), [], [])
    for members in members_of.values():
        forms = [[_match(file, index, form(file)) for file in members] for form in _forms(scale)]
        best = max(forms, key=lambda form: sum(hr is not None for hr in form))  # the first of the best
        for file, hr in zip(members, best, strict=True):
            hr = hr or _match(file, index, file.name)
            if hr is None:
                found.alone.append(file)
                continue
            # A size that fits no scale is reported when the pair is checked.
            known = file.scale or ratio_of(size_of(hr.path), size_of(file.path)) or scale
            if known == scale:
                found.of[hr.path][file.role.kind].append(file.path)
            else:
                found.elsewhere.append(OtherScale(file, known))
    return found


def _forms(scale: int) -> list[Callable[[File], str]]:
    """The forms of an LR image's name that may equal its HR image's, in the order in which they are tried."""
    return [
        lambda file: file.stem.removesuffix(f"x{scale}") if file.stem.endswith(f"x{scale}") else "",
        lambda file: file.stem,
        lambda file: file.name,
    ]


def _match(file: File, index: dict, stem: str) -> File | None:
    """The one HR image with this form of the name; None if there is none, or more than one."""
    found = index.get(file.key(stem), [])
    if len(found) > 1:  # trainH and testH may hold the same names
        found = [hr for hr in found if hr.role.split == file.role.split]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Choice:
    """LR images of one scale for some HR images.

    Args:
        of: HR image -> LR image, where there is one.
        unused: the folders of other LR images of the same HR images, for a message; "" if there are none.
    """

    of: dict[Path, Path]
    unused: str


def choose(
    low: LowImages, hr: list[Path], standard: dict[Path, Path], scale: int, size_of: SizeOf, *, strict: bool
) -> Choice:
    """Chooses the LR image of each HR image, out of all that lie in the set's folder: bicubic ones first.

    Args:
        hr: the images that are wanted.
        standard: HR image -> LR image, in the folder where missing ones are made.
        strict: whether to refuse LR images that only their size shows to be of another scale, and LR images without an
            HR image in the folder where missing ones are made.

    Raises:
        UserError: if an HR image has several, or if some are missing and would be made beside LR images that are not
            understood.
    """
    found = nearest(low, scale, size_of)
    standards = set(standard.values())
    kinds = {kind: None for path in hr for kind in found.of.get(path, ())}
    if low.aside:
        standard = {} if kinds else standard
    elif standard:
        kinds = {"bicubic": None, **kinds}
    kind = _kind(kinds, found, hr, scale)
    chosen = dict(standard)
    for path in hr:
        there = found.of.get(path, {}).get(kind, [])
        if path not in chosen and there:
            if len(there) > 1:
                raise UserError(f"{_names(there)}: {len(there)} LR x{scale} images of {printable(path)}: keep one")
            chosen[path] = there[0]
    alone = _not_understood(low, found, kind)
    if standard and not strict:  # prepare.py names these one by one
        alone = [file for file in alone if file.path.parent not in {path.parent for path in standard.values()}]
    missing = [path for path in hr if path not in chosen]
    if missing or (low.aside and not kinds):
        others = [chosen[path] for path in hr if path in chosen and chosen[path] not in standards]
        _refuse_to_make(low, scale, hr, missing, others, alone, found.elsewhere if strict else [])
    unused = [
        str(paths[0].parent)
        for path in hr
        for paths in found.of.get(path, {}).values()
        if chosen.get(path) not in paths
    ]
    return Choice(chosen, ", ".join(printable(folder) for folder in dict.fromkeys(unused)))


def _kind(kinds: dict[str, None], found: Matched, hr: list[Path], scale: int) -> str | None:
    """The kind of degradation whose LR images are taken; None if there is none.

    Raises:
        UserError: if there are several and none is bicubic.
    """
    if "bicubic" in kinds:
        return "bicubic"
    if len(kinds) > 1:
        examples = [min(found.of[path][kind][0] for path in hr if kind in found.of.get(path, ())) for kind in kinds]
        raise UserError(
            f"{_names(examples)}: {len(kinds)} kinds of LR x{scale} images of the same HR images: keep one kind"
        )
    return next(iter(kinds), None)


def _not_understood(low: LowImages, found: Matched, kind: str | None) -> list[File]:
    """LR images without an HR image that could belong to this set's: of the same split and form, and of `kind` unless
    that is None."""
    splits, subs = {file.role.split for file in low.hr} | {""}, {file.role.sub for file in low.hr}
    return [
        file
        for file in found.alone
        if (kind is None or file.role.kind == kind)
        and (splits == {""} or file.role.split in splits)
        and file.role.sub in subs
    ]


def _refuse_to_make(low: LowImages, scale: int, hr, missing, others, alone, elsewhere) -> None:
    """Refuses to make LR images beside LR images that are not understood.

    Raises:
        UserError: if there are any.
    """
    wanted = hr[0] if not missing else missing[0]
    expected = f"expected one called {printable(wanted.stem)}x{scale}.png or {printable(wanted.stem)}.png"
    way_out = "rename them, or move them away to have LR made from HR"
    if alone:
        raise UserError(
            f"{_names([file.path for file in alone])}: {len(alone)} LR images x{scale} have no HR image, and "
            f"{printable(wanted)} has none, {expected}: {way_out}"
            if missing
            else f"{_names([file.path for file in alone])}: {len(alone)} LR images have no HR image: {way_out}"
        )
    strays = [stray for stray in low.strays if stray.scale in (None, scale)]
    if strays and missing:
        raise UserError(
            f"{printable(strays[0].path)}: is {strays[0].reason} where LR images are expected, and {printable(wanted)} "
            "has none: put them there, or remove it"
        )
    if elsewhere and missing:
        file, other = elsewhere[0]
        raise UserError(
            f"{printable(file.path)}: is LR x{other} by its size, not x{scale}: give --scale {other}, put LR "
            f"x{scale} images into a folder X{scale}, or call this one X{other} to have LR x{scale} made from HR"
        )
    if others and missing:
        raise UserError(
            f"{printable(others[0].parent)}: has LR x{scale} images of {len(hr) - len(missing)} of {len(hr)} HR "
            f"images, none of {printable(wanted)}, {expected}: put the others there, or {way_out}"
        )


def _names(paths: list[PurePath]) -> str:
    return f"{', '.join(printable(path) for path in paths[:3])}{' …' if len(paths) > 3 else ''}"
