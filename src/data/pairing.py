"""Which files are LR images and which are HR images, told from names of folders and files below one set's folder.

    HR/0001.png             LR_bicubic/X2/0001x2.png, X2/0001.png, LR_unknown/0001_x2.png …  (DIV2K, Flickr2K, EDSR)
    GTmod12/baby.png        LRbicx4/baby.png, X4_sub/baby.png                                (BasicSR)
    HR/Set5/x2/a_HR_x2.png  LR/LRBI/Set5/x2/a_LRBI_x2.png                                    (RCAN)
    trainH/0001.png         trainL/0001.png                                                  (KAIR)
    2/Canon_001_HR.png      2/Canon_001_LR2.png                                              (RealSR)
    sharp/a.png             blur/a.png, and other words of this kind

A word that may also be a name of the user's own counts only where the other side of a pair is there: x2/beach.jpg is LR
beside beach.jpg. Letters may be of either case. What looks like pairs by the images' sizes alone is refused.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path, PurePath

from runtime.errors import UserError, printable

Size = Callable[[PurePath], tuple[int, int]]  # (height, width) of an image

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
_AROUND = (
    r"(?P<name>.+)(?P<mark>[-_. ][^-_. ]+)",
    r"(?P<mark>[^-_. ]+[-_. ])(?P<name>.+)",
    r"(?P<name>.*\d)(?P<mark>[A-Za-z]+)",
    r"(?P<mark>[A-Za-z]+)(?P<name>\d.*)",
)  # a mark of any kind
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
    """What the name of a folder says.

    Args:
        lr: LR or HR; None if it says neither.
        sure: whether it says so by itself, or only beside folders of the other kind.
        scale: None if it says none.
        kind: of the degradation, as in "bicubic" and "unknown"; "" if it says none.
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
        """Whether the folder is any folder."""
        return self.lr is None and self.scale is None


@dataclass(frozen=True)
class File:
    """An image below a set's folder.

    Args:
        path: as it was given.
        lr: LR or HR; None, which counts as HR, if nothing says either.
        folders: below the set's, without those that say what the image is.
        stem: of its name.
        name: the same without marks such as _HR, _LR4 and x2.
        mark: what such a mark says, LR or HR; None without one.
        sure: whether the mark says so by itself.
        role: what its folders say.
        group: the folder that says so, or the set's.
        doubtful: whether its folders' role counts only beside its counterparts; `whole` are all its folders then.
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
        """What the images of a pair have in common, for a form of the name."""
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


def unmark(stem: str) -> tuple[str, bool | None, bool, int | None]:
    """(name, LR or HR or None, whether that is sure, scale or None): ("baby", True, True, 4) of baby_LRBI_x4."""
    name, lr, sure, scale = stem, None, False, None
    for _ in range(3):
        if lr is None and (found := _BEHIND.fullmatch(name) or _BEFORE.fullmatch(name) or _GLUED.fullmatch(name)):
            said = found.groupdict()
            lr = bool(said["low"] or said.get("weak_low"))
            sure = bool(said["low"] or said["high"])
            scale = scale or (int(found["scale"]) if found["scale"] else None)
        elif scale is None and (found := _SCALED.fullmatch(name)):
            scale = int(found["a"] or found["b"] or found["c"])
        else:
            break
        name = found["name"]
    return name, lr, sure, scale


@functools.lru_cache(4096)
def _folders(parts: tuple[str, ...], set_name: str) -> dict:
    """What the folders of a file say, as fields of `File`."""
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
    found = {"lr": lr, "folders": tuple(folders), "role": role, "group": group}
    return found | {"doubtful": doubtful, "whole": tuple(whole)}


def _read(path: PurePath, parts: tuple[str, ...], set_name: str) -> File:
    """What the path of one file says by itself."""
    said, stem = _folders(parts, set_name), path.stem
    role = said["role"]
    name, mark, sure, scale = unmark(stem)
    if mark and not sure and not said["lr"]:  # a word of its own, as in a_blur and a_noisy: each another problem
        said = said | {"role": replace(role, kind=f"*{stem.casefold().replace(name.casefold(), '')}")}
    return File(path, stem=stem, name=name, mark=mark, sure=sure, scale=role.scale or scale, **said)


def sort_out(paths: Iterable[PurePath], base: PurePath | None, size: Size, set_name: str = "") -> list[File]:
    """What each image of a set is, in the order of `paths`.

    Args:
        paths: of its images.
        base: the set's folder; None if paths begin there.
        size: of an image, asked only where names leave it open.
        set_name: a folder below that is called so says nothing.
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
    return [_decided(file, low_groups, plain, marked, size) for file in files]


def _may_be_lr(file: File) -> bool:
    """Whether something says that it might be LR."""
    return bool(file.mark and file.sure) or (file.doubtful and file.role.lr is not False)


def _decided(file: File, low_groups: set, plain: dict, marked: dict, size: Size) -> File:
    if file.lr:
        return file
    if file.doubtful and file.role.lr is not False:
        if file.group in low_groups:
            return replace(file, lr=True)
        return replace(_marked(file, plain, marked, size), folders=file.whole)  # the folder is any folder
    return _marked(file, plain, marked, size)


def _marked(file: File, plain: dict, marked: dict, size: Size) -> File:
    """The file, LR if its name says so and its HR image is there."""
    key = file.key(file.name)
    if file.mark:
        partner = marked.get(key) or (plain.get(key) if file.sure else None)
        return replace(file, lr=True) if partner else file
    if file.mark is None and file.name != file.stem and (partner := plain.get(key)) and partner is not file:
        height, width = size(partner.path)  # img_x2 beside img may be anything
        if file.scale and size(file.path) == (height // file.scale, width // file.scale) and file.scale > 1:
            return replace(file, lr=True)
    return file


def refuse_likely_pairs(files: list[File], size: Size, where: str) -> None:
    """Refuses a set of HR images in which some are others made smaller: two folders of the same names, or pairs of
    names in one folder.

    Raises:
        UserError: if all images of one kind are those of another, divided by the same whole number.
    """
    for kinds in (_by_folder(files), _by_mark(files)):
        for one, other in permutations(kinds, 2):
            shared = kinds[one].keys() & kinds[other].keys()
            if len(shared) < 2 or len(shared) < len(kinds[other]):
                continue
            ratio = None
            for name in sorted(shared):
                found = ratio_of(size(kinds[one][name].path), size(kinds[other][name].path))
                ratio = found if ratio in (None, found) else 0
                if not ratio:
                    break
            if ratio:
                large, small = (kinds[kind][min(shared)].path for kind in (one, other))
                raise UserError(
                    f"{where}: {printable(small.name)} in {printable(small.parent)} and {len(shared) - 1} more are "
                    f"{printable(large.name)} in {printable(large.parent)} and so on, {ratio} times smaller: are they "
                    "LR images? Then call the folders HR and LR; if not, rename them or move one kind away"
                )


def _by_folder(files: list[File]) -> dict:
    kinds: dict = defaultdict(dict)
    for file in files:
        kinds[file.path.parent][file.stem.casefold()] = file
    return kinds if len(kinds) <= 64 else {}


def _by_mark(files: list[File]) -> dict:
    """Of a_big.png and a_small.png, and of big_a.png and small_a.png."""
    kinds: dict = defaultdict(dict)
    for file in files:
        for pattern in _AROUND:
            if found := re.fullmatch(pattern, file.stem):
                kinds[file.path.parent, pattern, found["mark"].casefold()][found["name"].casefold()] = file
    kinds = {kind: names for kind, names in kinds.items() if len(names) > 1}
    return kinds if len(kinds) <= 64 else {}


def ratio_of(high: tuple[int, int], low: tuple[int, int]) -> int:
    """The scale at which a pair's sizes fit, 0 if there is none."""
    scale = round(high[0] / low[0])
    return scale if scale > 1 and low == (high[0] // scale, high[1] // scale) else 0


def refuse_unnamed_low(hr: list[File], others: list[File], size: Size) -> None:
    """Refuses images beside a folder of HR images that are the same ones made smaller, in a folder of any name.

    Raises:
        UserError: if there is one of a name and a size that fit an HR image.
    """
    index = {(file.folders, stem.casefold()): file for file in hr for stem in (file.stem, file.name)}
    looked_at: dict[PurePath, int] = defaultdict(int)
    for file in others:
        # Any folder may be the one that says LR in words which are not known here.
        keys = [(folders, stem) for folders in (file.folders, ()) for stem in (file.key()[1], file.name.casefold())]
        partner = next((index[key] for key in keys if key in index), None)
        if partner is None or looked_at[file.path.parent] > 3:
            continue
        looked_at[file.path.parent] += 1
        if ratio := ratio_of(size(partner.path), size(file.path)):
            raise UserError(
                f"{printable(file.path)}: looks like the LR image x{ratio} of {printable(partner.path)}: call its "
                f"folder LR_bicubic/X{ratio}, or another if it is not bicubic, as LR; if it is none, move it away"
            )


def pairs_in(files: list[File]) -> dict[PurePath, tuple[File, str]]:
    """LR and HR image -> its HR image, and the name that both share, for all LR images that have an HR image."""
    index = _index([file for file in files if not file.lr])
    found: dict[PurePath, tuple[File, str]] = {}
    for file in files:
        if not file.lr:
            continue
        scale = file.scale or 0
        hr = next((hr for form in _forms(scale) if (hr := _match(file, index, form(file)))), None)
        if hr is not None:
            name = hr.name if hr.mark is False else hr.stem
            found[file.path] = found[hr.path] = (hr, name)
    return found


def _index(hr: list[File]) -> dict[tuple, list[File]]:
    """HR images by what they share with their LR images."""
    index = defaultdict(list)
    for file in hr:
        for stem in dict.fromkeys((file.stem, file.name) if file.mark is False else (file.stem,)):
            index[file.key(stem)].append(file)
    return index


def before_role(folder: str) -> str:
    """What a folder's name begins with, before its word for LR or HR: "div2k" of DIV2K_train_HR."""
    text = re.sub(r"[-_. ()]+", "_", folder.lower()).strip("_")
    words = rf"(?:{_SPLIT}|{_HIGH}|{_LOW}|{_WEAK_HIGH}|{_WEAK_LOW})"
    return re.split(rf"(?:^|_){words}", text)[0]


# --- LR images for HR images ---


@dataclass(frozen=True)
class LowImages:
    """The LR images that a set's folder holds, and all HR images that they may be of.

    Args:
        files: with their scales as far as they are known.
        hr: all HR images of the set.
        odd: what lies in LR folders and is no image, what it is, and its scale if that is known.
        aside: whether LR images that are made lie in bin/, where nobody else puts any.
        names: of HR images, where not their paths but what they share with LR images names them.
    """

    files: list[File]
    hr: list[File]
    odd: list[tuple[Path, str, int | None]]
    aside: bool
    names: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Matched:
    """LR images of one scale.

    Args:
        of: HR image -> kind of degradation -> its LR images.
        alone: those that belong to no HR image.
        elsewhere: those that sizes show to be of another scale, which no name says: with that scale.
    """

    of: dict[PurePath, dict[str, list[PurePath]]]
    alone: list[File]
    elsewhere: list[tuple[File, int]]


def nearest(low: LowImages, scale: int, size: Size) -> Matched:
    """The LR images of one scale and of each HR image. Where no name says the scale, sizes do."""
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
            said = file.scale or ratio_of(size(hr.path), size(file.path)) or scale  # what fits nowhere is named later
            if said == scale:
                found.of[hr.path][file.role.kind].append(file.path)
            else:
                found.elsewhere.append((file, said))
    return found


def _forms(scale: int) -> list[Callable[[File], str]]:
    return [
        lambda file: file.stem.removesuffix(f"x{scale}") if file.stem.endswith(f"x{scale}") else "",
        lambda file: file.stem,
        lambda file: file.name,
    ]


def _match(file: File, index: dict, stem: str) -> File | None:
    found = index.get(file.key(stem), [])
    if len(found) > 1:  # trainH and testH may hold the same names
        found = [hr for hr in found if hr.role.split == file.role.split]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Choice:
    """LR images of one scale for some HR images.

    Args:
        of: HR image -> LR image, where there is one.
        may_make: whether those that are missing may be made: not beside others that have another place or name.
        unused: what else is there for the same HR images, in words; "" if nothing.
    """

    of: dict[Path, Path]
    may_make: bool
    unused: str


def choose(
    low: LowImages, hr: list[Path], standard: dict[Path, Path], scale: int, size: Size, *, strict: bool
) -> Choice:
    """The LR image of each HR image, out of all that lie there.

    Args:
        hr: the images that are wanted.
        standard: HR image -> LR image, of the place where they are made.
        strict: whether LR images are a mistake that are of another scale, which no name says, or that belong to no HR
            image but lie where LR images are made.

    Raises:
        UserError: if there are several for one, or some are not understood and LR images would be made beside them.
    """
    found = nearest(low, scale, size)
    standards = set(standard.values())
    kinds = {kind: None for path in hr for kind in found.of.get(path, ())}
    if low.aside:
        standard = {} if kinds else standard
    elif standard:
        kinds = {"bicubic": None, **kinds}
    if len(kinds) > 1 and "bicubic" not in kinds:
        examples = [min(found.of[path][kind][0] for path in hr if kind in found.of.get(path, ())) for kind in kinds]
        raise UserError(
            f"{_names(examples)}: {len(kinds)} kinds of LR x{scale} images of the same HR images: keep one kind"
        )
    kind = "bicubic" if "bicubic" in kinds else next(iter(kinds), None)
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
    others = [path for path in (chosen[path] for path in hr if path in chosen) if path not in standards]
    if missing or (low.aside and not kinds):
        _refuse_to_make(low, scale, hr, missing, others, alone, found.elsewhere if strict else [])
    unused = [
        str(paths[0].parent)
        for path in hr
        for of, paths in found.of.get(path, {}).items()
        if chosen.get(path) not in paths
    ]
    return Choice(chosen, not others, ", ".join(printable(folder) for folder in dict.fromkeys(unused)))


def _not_understood(low: LowImages, found: Matched, kind: str | None) -> list[File]:
    """LR images of a kind, of any for None, that belong to no HR image, but may: of the same split and form."""
    splits, subs = {file.role.split for file in low.hr} | {""}, {file.role.sub for file in low.hr}
    return [
        file
        for file in found.alone
        if (kind is None or file.role.kind == kind)
        and (splits == {""} or file.role.split in splits)
        and file.role.sub in subs
    ]


def _refuse_to_make(low: LowImages, scale: int, hr, missing, others, alone, elsewhere) -> None:
    """LR images are never made beside some that were not understood.

    Raises:
        UserError: if there are any such.
    """
    wanted = hr[0] if not missing else missing[0]
    expected = f"expected one called {printable(wanted.stem)}x{scale}.png or {printable(wanted.stem)}.png"
    way_out = "rename them, or move them away to have LR made from HR"
    if alone:
        raise UserError(
            f"{_names([file.path for file in alone])}: {len(alone)} LR images x{scale} belong to no HR image, and "
            f"{printable(wanted)} has none, {expected}: {way_out}"
            if missing
            else f"{_names([file.path for file in alone])}: {len(alone)} LR images belong to no HR image: {way_out}"
        )
    odd = [(path, reason) for path, reason, of in low.odd if of in (None, scale)]
    if odd and missing:
        path, reason = odd[0]
        raise UserError(
            f"{printable(path)}: is {reason} where LR images are expected, and {printable(wanted)} has none: put "
            "them there, or remove it"
        )
    if elsewhere and missing:
        file, said = elsewhere[0]
        raise UserError(
            f"{printable(file.path)}: is LR x{said} by its size, not x{scale}: give --scale {said}, put LR "
            f"x{scale} images into a folder X{scale}, or call this one X{said} to have LR x{scale} made from HR"
        )
    if others and missing:
        raise UserError(
            f"{printable(others[0].parent)}: has LR x{scale} images of {len(hr) - len(missing)} of {len(hr)} HR "
            f"images, none of {printable(wanted)}, {expected}: put the others there, or {way_out}"
        )


def _names(paths: list[PurePath]) -> str:
    return f"{', '.join(printable(path) for path in paths[:3])}{' …' if len(paths) > 3 else ''}"
