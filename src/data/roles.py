"""Which files are LR images and which are HR images, recognised by the names of folders and files below a set's folder.

    HR/0001.png             LR_bicubic/X2/0001x2.png, X2/0001.png, LR_unknown/0001_x2.png …  (DIV2K, Flickr2K, EDSR)
    GTmod12/baby.png        LRbicx4/baby.png, X4_sub/baby.png                                (BasicSR)
    HR/Set5/x2/a_HR_x2.png  LR/LRBI/Set5/x2/a_LRBI_x2.png                                    (RCAN)
    trainH/0001.png         trainL/0001.png                                                  (KAIR)
    2/Canon_001_HR.png      2/Canon_001_LR2.png                                              (RealSR)
    sharp/a.png             blur/a.png, and other words of this kind

Some words, such as "blur" or "x2", may also be names that a user chose. They count only where the other side of a pair
exists: x2/beach.jpg is LR beside beach.jpg. Upper and lower case are equal. `matching` then finds the pairs.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import NamedTuple

SizeOf = Callable[[PurePath], tuple[int, int]]  # gives (height, width) of an image

_GAP = r"[-_. ]?"
_HIGH = rf"hr|gt|hq|high{_GAP}(?:res(?:olution)?|quality)|ground{_GAP}truth"
_LOW = rf"lr|lq|low{_GAP}(?:res(?:olution)?|quality)"
_WEAK_HIGH = "sharp|clean|clear|targets?|originals?|orig|high|large|big|refs?|references?|labels?|truth"
_WEAK_LOW = (
    "blur|blurry|blurred|noisy|inputs?|low|small|degraded|down|downsampled|downscaled|compressed|bicubic|bic|"
    "sources?|src|hazy|rainy|lowlight|thumbs?|thumbnails?"
)
_SPLIT = "train(?:ing)?|valid(?:ation)?|val|test(?:ing)?"
_DEGRADED = "bicubic|bic|bi|bd|dn|unknown|mild|difficult|wild|blur|noise|jpeg"
_FOLDER = re.compile(
    rf"(?:.+?_)?(?:(?P<split>{_SPLIT})_?)?(?:(?P<high>{_HIGH})|(?P<low>{_LOW}))"
    rf"(?P<rest>(?:_.*|(?:{_DEGRADED}|{_SPLIT}|mod|sub|images?|x|\d).*)?)"
)
_KAIR = re.compile(rf"(?:.+?_)?(?P<split>{_SPLIT})_?(?:(?P<high>h)|(?P<low>l))(?P<rest>)")
_WEAK = re.compile(
    rf"(?:.+?_)?(?:(?P<split>{_SPLIT})_?)?(?:(?P<high>{_WEAK_HIGH})|(?P<low>{_WEAK_LOW}))"
    rf"(?P<rest>(?:_?(?:x_?\d|images?|img|{_SPLIT}|res|quality))*)"
)
_SCALE = re.compile(r"(?:image_srf_|srf_|scale_?|x_?)(\d)(?:_?sub)?|(\d)x(?:_?sub)?")

_MARK = rf"(?:(?P<high>{_HIGH})|(?P<low>{_LOW})|(?P<weak_high>{_WEAK_HIGH})|(?P<weak_low>{_WEAK_LOW}))"
_BEHIND = re.compile(rf"(?P<name>.+?)[-_. ]{_MARK}{_GAP}(?:{_DEGRADED})?{_GAP}x?(?P<scale>\d)?", re.I)
_BEFORE = re.compile(rf"{_MARK}(?:{_DEGRADED})?(?:x?(?P<scale>\d))?[-_. ](?P<name>.+)", re.I)
_GLUED = re.compile(r"(?P<name>.*[0-9a-z])(?:(?P<high>HR|GT|HQ)|(?P<low>LR|LQ))(?:x?(?P<scale>\d))?")
_SCALED = re.compile(r"(?P<name>.+?)(?:_srf_(?P<a>\d)|[-_. @]?x(?P<b>\d)(?:d|m|w\d?)?|[-_. @](?P<c>\d)x)", re.I)


@dataclass(frozen=True)
class Role:
    """What the name of a folder says about the images in it.

    Args:
        lr: True for LR, False for HR, None if it says neither.
        sure: whether the name is enough; otherwise it counts only beside a folder of the other kind.
        scale: None if the name has none.
        kind: of the degradation, as in "bicubic" and "unknown"; "" if the name has none.
        split: "train", "valid", "test" or "".
        sub: whether it holds parts of images (BasicSR's X2_sub).
    """

    lr: bool | None = None
    sure: bool = True
    scale: int | None = None
    kind: str = ""
    split: str = ""
    sub: bool = False

    @property
    def says_nothing(self) -> bool:
        """Whether the name says nothing about the images."""
        return self.lr is None and self.scale is None


class Mark(NamedTuple):
    """What a file's name says: ("baby", True, True, 4) for baby_LRBI_x4.

    Args:
        name: without the marks.
        lr: True for LR, False for HR, None if it says neither.
        sure: whether the mark is enough; otherwise it counts only beside its counterpart.
        scale: None if the name has none.
    """

    name: str
    lr: bool | None
    sure: bool
    scale: int | None


class _Place(NamedTuple):
    """What a file's folders say; the fields are those of `File`."""

    lr: bool | None
    folders: tuple[str, ...]
    role: Role
    group: tuple[str, ...]
    doubtful: bool
    whole: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """An image below a set's folder.

    Args:
        path: as it was given.
        lr: True for LR, False for HR; None, which counts as HR, if nothing says either.
        folders: below the set's, without those that say what the image is.
        stem: of its name.
        name: the stem without marks such as _HR, _LR4 and x2.
        mark: True or False if such a mark says LR or HR; None without one.
        sure: whether the mark is enough by itself.
        scale: None if neither folders nor name have one.
        role: what its folders say.
        group: the folder that says so, or the set's.
        doubtful: whether the role counts only beside its counterpart.
        whole: all its folders, which are used instead of `folders` if a doubtful role does not count.
    """

    path: PurePath
    lr: bool | None
    folders: tuple[str, ...]
    stem: str
    name: str
    mark: bool | None
    sure: bool
    scale: int | None
    role: Role
    group: tuple[str, ...]
    doubtful: bool
    whole: tuple[str, ...]

    def key(self, stem: str | None = None) -> tuple[tuple[str, ...], str]:
        """What the images of a pair have in common; `stem` replaces the file's own."""
        return self.folders, (self.stem if stem is None else stem).casefold()


@functools.cache
def role_of(folder: str) -> Role:
    """What the name of a folder says."""
    text = re.sub(r"[-_. ()]+", "_", folder.lower()).strip("_")
    if found := _SCALE.fullmatch(text):
        return Role(scale=int(found[1] or found[2]), sub=text.endswith("sub"), sure=False)
    sure = True
    found = _KAIR.fullmatch(text) or _FOLDER.fullmatch(text)
    if not found:
        found, sure = _WEAK.fullmatch(text), False
    if not found:
        return Role()
    lr = found["low"] is not None
    rest = re.sub(r"_?mod_?\d+", "", found["rest"])
    numbers = re.search(r"x_?(\d)(?![0-9])|(?<![0-9a-z])(\d)x|(?:^|_)(\d)$", rest) or re.search(r"(?:^|_)x(\d)_", text)
    scale = next((int(digit) for digit in numbers.groups() if digit), None) if numbers else None
    sub = re.search(r"sub(?:_?images?)?(?:_|$)", rest) is not None
    kind = re.sub(rf"x_?\d|\d+x?|sub|images?|{_SPLIT}|s$|_", "", rest) if lr else ""
    kind = "bicubic" if kind in ("bicubic", "bic", "bi") or (lr and found["low"] in ("bicubic", "bic")) else kind
    split = found["split"] or (re.search(_SPLIT, rest) or [""])[0]
    split = {"tr": "train", "va": "valid", "te": "test"}.get(split[:2], "")
    return Role(lr, sure, scale, kind, split, sub)


def unmark(stem: str) -> Mark:
    """Takes the marks off a file's stem, up to three of them, from either end."""
    name, lr, sure, scale = stem, None, False, None
    for _ in range(3):
        if lr is None and (found := _BEHIND.fullmatch(name) or _BEFORE.fullmatch(name) or _GLUED.fullmatch(name)):
            words = found.groupdict()
            lr = bool(words["low"] or words.get("weak_low"))
            sure = bool(words["low"] or words["high"])
            scale = scale or (int(found["scale"]) if found["scale"] else None)
        elif scale is None and (found := _SCALED.fullmatch(name)):
            scale = int(found["a"] or found["b"] or found["c"])
        else:
            break
        name = found["name"]
    return Mark(name, lr, sure, scale)


def before_role(folder: str) -> str:
    """The part of a folder's name before its word for LR or HR: "div2k" for DIV2K_train_HR."""
    text = re.sub(r"[-_. ()]+", "_", folder.lower()).strip("_")
    words = rf"(?:{_SPLIT}|{_HIGH}|{_LOW}|{_WEAK_HIGH}|{_WEAK_LOW})"
    return re.split(rf"(?:^|_){words}", text)[0]


@functools.lru_cache(4096)
def _place(parts: tuple[str, ...], set_name: str) -> _Place:
    """What the folders of a file say, read from the outermost inwards."""
    role, group, folders, whole, doubtful = Role(), (), [], [], False
    for depth, part in enumerate(parts):
        found = role_of(part)
        settled = role.lr is not None and role.sure
        if found.says_nothing or (settled and not found.sure and found.lr not in (None, role.lr)):
            if part.casefold() != set_name.casefold():
                folders.append(part)
                whole.append(part)
            continue
        if found.lr is None:  # a scale
            role = replace(role, scale=found.scale, sub=role.sub or found.sub)
        elif found.sure or role.lr is None or doubtful:
            kind, split = found.kind or role.kind, found.split or role.split
            role = replace(found, scale=found.scale or role.scale, kind=kind, split=split, sub=found.sub or role.sub)
        else:  # LR/bicubic_x2
            role = replace(role, scale=found.scale or role.scale, kind=found.kind or role.kind)
        doubtful = not (role.lr is not None and role.sure)
        group = group if doubtful and group and found.lr is None else parts[: depth + 1]
        if not found.sure:
            whole.append(part)
    lr, doubtful = None if doubtful else role.lr, doubtful and bool(group)
    return _Place(lr, tuple(folders), role, group, doubtful, tuple(whole))


def _read(path: PurePath, parts: tuple[str, ...], set_name: str) -> File:
    """What the path of one file says by itself."""
    place, stem = _place(parts, set_name), path.stem
    mark = unmark(stem)
    if mark.lr and not mark.sure and not place.lr:
        # A word of its own, as in a_blur and a_noisy: each is another degradation.
        kind = f"*{stem.casefold().replace(mark.name.casefold(), '')}"
        place = place._replace(role=replace(place.role, kind=kind))
    return File(
        path,
        stem=stem,
        name=mark.name,
        mark=mark.lr,
        sure=mark.sure,
        scale=place.role.scale or mark.scale,
        **place._asdict(),
    )


def sort_out(paths: Iterable[PurePath], base: PurePath | None, size_of: SizeOf, set_name: str = "") -> list[File]:
    """What each image of a set is, in the order of `paths`.

    Args:
        paths: the images of the set.
        base: the set's folder; None if `paths` are relative to it.
        size_of: called only where names leave open what an image is.
        set_name: folders below with this name are ignored.
    """
    parts = functools.cache(lambda folder: (folder.relative_to(base) if base else folder).parts)
    files = [_read(path, parts(path.parent), set_name) for path in paths]
    plain = {file.key(): file for file in files if file.lr is False or (file.lr is None and not _may_be_lr(file))}
    marked = {
        file.key(file.name): file
        for file in files
        if file.mark is False and file.lr is not True and not (file.doubtful and file.role.lr)
    }
    high = {key for key, file in [*marked.items(), *plain.items()] if not file.doubtful or file.role.lr is False}
    known_high = {
        key
        for file in files
        if (file.lr is False or (file.doubtful and file.role.lr is False))
        for key in (file.key(), file.key(file.name))
    }
    groups = defaultdict(list)
    for file in files:
        if file.doubtful and file.role.lr is not False:
            groups[file.group].append(file)
    low_groups = {
        group
        for group, members in groups.items()
        if any({file.key(), file.key(file.name)} & (known_high if file.role.lr else high) for file in members)
    }
    return [_decided(file, low_groups, plain, marked, size_of) for file in files]


def _may_be_lr(file: File) -> bool:
    """Whether its name or its folders say that it might be LR."""
    return bool(file.mark and file.sure) or (file.doubtful and file.role.lr is not False)


def _decided(file: File, low_groups: set, plain: dict, marked: dict, size_of: SizeOf) -> File:
    """The file with its `lr` settled, given all the others."""
    if file.lr:
        return file
    if file.doubtful and file.role.lr is not False:
        if file.group in low_groups:
            return replace(file, lr=True)
        return replace(_marked(file, plain, marked, size_of), folders=file.whole)  # the folder's name means nothing
    return _marked(file, plain, marked, size_of)


def _marked(file: File, plain: dict, marked: dict, size_of: SizeOf) -> File:
    """The file, as LR if its name says so and its HR image exists."""
    key = file.key(file.name)
    if file.mark:
        partner = marked.get(key) or (plain.get(key) if file.sure else None)
        return replace(file, lr=True) if partner else file
    if file.mark is None and file.name != file.stem and (partner := plain.get(key)) and partner is not file:
        height, width = size_of(partner.path)  # img_x2 beside img may be any other picture
        if file.scale and size_of(file.path) == (height // file.scale, width // file.scale) and file.scale > 1:
            return replace(file, lr=True)
    return file
