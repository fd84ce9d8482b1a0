"""Which image of which set a downloaded file is, recognised by its path: published layouts, and folders of any images.

    DIV2K_train_LR_bicubic/X4/0001x4.png    DIV2K, Flickr2K and any NAME_train_HR, NAME_valid_HR, NAME_HR
    benchmark/Set5/LR_bicubic/X2/babyx2.png EDSR's tree
    Set14/baboon.bmp                        folders of HR images, as the sets were published
    Set5/image_SRF_4/img_001_SRF_4_LR.png   pairs in one folder (SelfExSR), also NAME_HR.png beside NAME_LR.png
    LR/LRBI/Set5/x4/baby_LRBI_x4.png        RCAN's test data
    Set5/GTmod12/baby.png, Set5/LRbicx4/…   BasicSR's test data
    Urban100_LR_x2/img_001.png              Hugging Face's
    holiday/2019/beach.jpg                  anything else: a training set, named after its folder

Only paths are read here, upper and lower case alike. Sizes of images are asked for where paths leave open which are LR
(`roles` and `matching`, which main.py uses too). Names of sets are those of main.py's --data_train and --data_test.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import NamedTuple

from data.listing import is_image
from data.matching import pairs_in, refuse_likely_pairs, refuse_unnamed_low
from data.roles import File, SizeOf, sort_out

BENCHMARKS = {
    "set5": "Set5",
    "set14": "Set14",
    "b100": "B100",
    "bsd100": "B100",
    "bsds100": "B100",
    "urban100": "Urban100",
    "manga109": "Manga109",
    "kodak24": "Kodak24",
}
TRAINING = {"div2k": "DIV2K", "flickr2k": "Flickr2K"}

# Names of folders. A known set's name may be followed by a role, as in DIV2K_train_HR and Urban100_LR_x2.
_KNOWN = re.compile(rf"({'|'.join([*BENCHMARKS, *TRAINING])})(?:[-_ .(](.*))?", re.I)
_SPLIT = r"(?:(?:train|valid|val)_)?"
_HR = re.compile(rf"{_SPLIT}(?:HR|GT(?:mod\d+)?)", re.I)
_LR = re.compile(rf"{_SPLIT}LR_?(?:bicubic|bic|BI)?_?(?:X(\d))?", re.I)
_OTHER = re.compile(r"(?:(?:train|valid|val|test)_)?(?:HR|LR)(?:_.*|BD|DN)", re.I)  # LR_unknown, LR_mild, HR_sub …
_SCALE = re.compile(r"(?:image_SRF_|X)(\d)", re.I)
_NAMED = re.compile(r"(.+?)_((?:(?:train|valid|val)_)?(?:HR|LR(?:_bicubic)?(?:_X\d)?))", re.I)

# Names of files, without suffix.
_SRF = re.compile(r"(.+?)_SRF_(\d)_(\w+)", re.I)
_MARKED = re.compile(r"(.+?)_(HR|LR|LRBI)_x(\d)", re.I)
_PAIRED = re.compile(r"(.+)_(HR|GT|LR)", re.I)


class SetKey(NamedTuple):
    """A set: its name, and whether it is one to test on."""

    name: str
    benchmark: bool


@dataclass(frozen=True)
class Image:
    """What a file is.

    Args:
        path: in its source.
        set_name: "" if its path does not say.
        benchmark: whether the set is one to test on.
        name: of the image, the same for LR and HR: nested/beach.png is called nested__beach.
        lr: True for LR, False for HR.
        scale: of an LR image, None if its path does not say; of an HR image that was published for one scale, so that
            it may be cropped to a multiple of it, else None.
    """

    path: PurePosixPath
    set_name: str
    benchmark: bool
    name: str
    lr: bool
    scale: int | None

    @property
    def set_key(self) -> SetKey:
        """The set that it belongs to."""
        return SetKey(self.set_name, self.benchmark)


@dataclass(frozen=True)
class _Guess:
    """What the path of one file says by itself.

    Args:
        known: whether the set is a published one.
        folders: that say nothing, from the one that named the set inwards.
        stem: without marks.
        lr: True for LR, False for HR, None if the path says neither.
    """

    path: PurePosixPath
    set_name: str = ""
    benchmark: bool = False
    known: bool = False
    folders: tuple[str, ...] = ()
    stem: str = ""
    lr: bool | None = None
    scale: int | None = None


class _Skipped(Exception):
    """A file is not an image of a set; the message says why."""


def recognise(
    name: str, paths: list[PurePosixPath], *, is_archive: bool = False, size_of: SizeOf | None = None
) -> tuple[list[Image], Counter[str]]:
    """What the files of a source are.

    Args:
        name: of the source: the archive, or the folder with as many of its parents as say something (`context`).
        paths: of all its files.
        size_of: gives (height, width) of an image, and (1, 1) for what is not an image; None to go by paths alone.

    Returns:
        The images, in the order of `paths`, and what was skipped: reason -> number of files.

    Raises:
        UserError: if LR and HR images cannot be told apart.
    """
    skipped: Counter[str] = Counter()
    images = []
    for path in paths:
        if not is_image(path.name):
            skipped[f"not images (*{path.suffix.lower() or path.name})"] += 1
        elif "bin" in path.parts[:-1]:
            skipped["in bin/, which holds what is made from a set"] += 1
        else:
            images.append(path)
    tops = {path.parts[0] if len(path.parts) > 1 else "" for path in images}
    # An archive may have any name, such as "download (1)"; if all its files lie in one folder, that one's name counts.
    outer = [] if is_archive and not _KNOWN.fullmatch(name) and len(tops) == 1 and "" not in tops else name.split("/")
    guesses = []
    for path in images:
        try:
            guesses.append(_guess(outer, path))
        except _Skipped as reason:
            skipped[str(reason)] += 1
    size_of = size_of or (lambda path: (1, 1))
    guesses = _by_counterparts(guesses, sort_out([guess.path for guess in guesses], None, size_of))
    images, unused = _settle(guesses, skipped)
    _refuse_unnamed([image.path for image in images if not image.lr], unused, size_of)
    return images, skipped


def _by_counterparts(guesses: list[_Guess], files: list[File]) -> list[_Guess]:
    """The guesses, changed where the paths of an LR and an HR image say together what one of them does not."""
    pairs = pairs_in(files)
    guess_of = {guess.path: guess for guess in guesses}
    sure = {pairs[file.path].hr.path for file in files if file.lr and file.path in pairs and file.role.kind[:1] != "*"}
    vague = {file.path for file in files if file.lr and file.role.kind[:1] == "*"}  # cat_blur beside cat_HR and cat_LR
    pairs = {path: pair for path, pair in pairs.items() if path not in vague or pair.hr.path not in sure}
    told_apart = {pair.hr.path for path, pair in pairs.items() if _disagree(guess_of[path], guess_of[pair.hr.path])}
    settled = []
    for guess, file in zip(guesses, files, strict=True):
        hr, name = pairs.get(guess.path, (None, file.name))
        if hr and hr.path in told_apart:
            of = guess_of[hr.path]
            folders = tuple(part for part in of.folders if part in hr.folders)
            guess = replace(guess, set_name=of.set_name, benchmark=of.benchmark, known=of.known)
            guess = replace(guess, lr=bool(file.lr), stem=name, folders=folders, scale=file.scale or guess.scale)
        elif file.lr and guess.lr is None and file.role.lr:
            folders = tuple(part for part in guess.folders if part in file.folders)
            guess = replace(guess, lr=True, stem=name, folders=folders, scale=file.scale or guess.scale)
        settled.append(guess)
    return settled


def _disagree(one: _Guess, hr: _Guess) -> bool:
    """Whether the guesses for an LR and an HR image, or for one HR image, do not make them a pair."""
    if one.path == hr.path:
        return one.lr is None
    return one.lr is None or (one.set_name, one.folders, one.stem) != (hr.set_name, hr.folders, hr.stem)


def _refuse_unnamed(hr: list[PurePosixPath], unused: list[PurePosixPath], size_of: SizeOf) -> None:
    """Refuses HR images, or files beside them, that look like LR images by their sizes.

    Raises:
        UserError: if there are any.
    """
    files = sort_out([*hr, *unused], None, size_of)
    refuse_likely_pairs(files[: len(hr)], size_of, "SOURCE")
    refuse_unnamed_low(files[: len(hr)], files[len(hr) :], size_of)


def context(parts: tuple[str, ...]) -> str:
    """The end of a folder's path that says what the folder holds: Set5/LR_bicubic/X4 of /data/Set5/LR_bicubic/X4.

    Parents count only where the last folder alone does not name the set.
    """
    kept = [parts[-1]] if parts else []
    for part in reversed(parts[:-1]):
        inner = kept[0]
        if part.lower() != "benchmark" and not any(rule.fullmatch(inner) for rule in (_HR, _LR, _SCALE, _OTHER)):
            break
        kept.insert(0, part)
        if part.lower() == "benchmark":
            break
    return "/".join(kept)


def _guess(outer: list[str], path: PurePosixPath) -> _Guess:
    """What one path says, its folders read from the outermost inwards.

    Raises:
        _Skipped: if it is not an image of a set.
    """
    guess = _Guess(path)
    below_benchmark = False
    for part in [*outer, *path.parts[:-1]]:
        if part.lower() == "benchmark":
            below_benchmark = True
            guess = replace(guess, folders=())
            continue
        guess = _with_folder(guess, part, below_benchmark)
        below_benchmark = False
    if not guess.set_name and guess.folders:
        guess = replace(guess, set_name=guess.folders[0], folders=guess.folders[1:])
    return _with_stem(guess)


def _with_folder(guess: _Guess, part: str, below_benchmark: bool) -> _Guess:
    """The guess, with what the next folder inwards says.

    Raises:
        _Skipped: if the folder holds neither HR nor bicubic LR images.
    """
    names_set, rest = True, ""  # what follows the set's name in this folder's
    if found := _KNOWN.fullmatch(part):
        key, rest = found[1].lower(), found[2] or ""
        name = {**BENCHMARKS, **TRAINING}[key]
        guess = replace(guess, set_name=name, benchmark=key in BENCHMARKS, known=True)
    elif below_benchmark:
        guess = replace(guess, set_name=part, benchmark=True, known=True)
    elif not guess.set_name and (found := _NAMED.fullmatch(part)):
        guess = replace(guess, set_name=found[1])
        rest = found[2]
    else:
        names_set, rest = False, part
    if names_set:
        guess = replace(guess, folders=())
    rest = re.sub(r" ?\(\d+\)$", "", rest)  # what browsers add to a second download

    if _HR.fullmatch(rest):
        guess = replace(guess, lr=False)
    elif found := _LR.fullmatch(rest):
        guess = replace(guess, lr=True, scale=int(found[1]) if found[1] else guess.scale)
    elif _OTHER.fullmatch(rest) and guess.set_name:
        raise _Skipped(f"{part}/ is neither HR nor bicubic LR")
    elif (found := _SCALE.fullmatch(rest)) and (
        guess.known or guess.lr is not None or rest.lower().startswith("image")
    ):
        guess = replace(guess, scale=int(found[1]))  # in a folder of own images x2 may mean anything
    else:
        return guess if names_set else replace(guess, folders=(*guess.folders, part))
    if not guess.set_name and guess.folders:  # my_set/HR
        guess = replace(guess, set_name=guess.folders[-1], folders=())
    return guess


def _with_stem(guess: _Guess) -> _Guess:
    """The guess, with what the file's own name says.

    Raises:
        _Skipped: if that is neither HR nor LR.
    """
    stem, scale, lr = guess.path.stem, guess.scale, guess.lr
    if found := _SRF.fullmatch(stem):
        if found[3].upper() not in ("HR", "LR"):
            raise _Skipped(f"*_SRF_{found[2]}_{found[3]}{guess.path.suffix}, neither HR nor LR")
        stem, scale, lr = found[1], int(found[2]), found[3].upper() == "LR"
    elif found := _MARKED.fullmatch(stem):
        stem, scale, lr = found[1], int(found[3]), found[2].upper() != "HR"
    elif lr and (found := re.fullmatch(r"(.+?)x(\d)", stem, re.I)) and int(found[2]) == (scale or int(found[2])):
        stem, scale = found[1], int(found[2])
    return replace(guess, stem=stem, scale=scale, lr=lr)


def _settle(guesses: list[_Guess], skipped: Counter[str]) -> tuple[list[Image], list[PurePosixPath]]:
    """The images, and the files that are skipped, once all files are known: NAME_HR counts beside NAME_LR, and in a set
    with pairs a file that is neither HR nor LR is skipped."""
    seen = {_marked(guess) for guess in guesses}
    settled = []
    for guess in guesses:
        if marked := _marked(guess):
            if marked._replace(lr=not marked.lr) in seen:
                guess = replace(guess, stem=marked.stem, lr=marked.lr)
            elif guess.benchmark and guess.known and not marked.lr:  # baby_GT.bmp, as SRCNN's authors called it
                guess = replace(guess, stem=marked.stem)
        settled.append(guess)
    has_hr = {guess.set_name for guess in settled if guess.lr is False}
    used, unused = [], []
    for guess in settled:
        if guess.lr is None and (guess.scale or guess.set_name in has_hr):
            skipped[f"in {guess.path.parent}/, beside the HR and LR images of {guess.set_name}"] += 1
            unused.append(guess.path)
        else:
            used.append(guess)
    # Set5/images/baby.png is called baby: in a known set, folders count only where they distinguish images.
    common: dict[str, tuple[str, ...]] = {}
    for guess in used:
        common[guess.set_name] = _common(common.get(guess.set_name, guess.folders), guess.folders)
    images = []
    for guess in used:
        folders = guess.folders[len(common[guess.set_name]) :] if guess.known else guess.folders
        name = "__".join((*folders, guess.stem))
        images.append(Image(guess.path, guess.set_name, guess.benchmark, name, bool(guess.lr), guess.scale))
    return images, unused


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """The folders that two paths begin with."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return one[: same.index(False)] if False in same else one[: len(same)]


class _Marked(NamedTuple):
    """A file called NAME_HR, NAME_GT or NAME_LR; `stem` is NAME."""

    lr: bool
    set_name: str
    folders: tuple[str, ...]
    stem: str


def _marked(guess: _Guess) -> _Marked | None:
    found = _PAIRED.fullmatch(guess.stem)
    return _Marked(found[2].upper() == "LR", guess.set_name, guess.folders, found[1]) if found else None
