"""Which image of which set a downloaded file is, told from its path: the published layouts, and folders of any images.

    DIV2K_train_LR_bicubic/X4/0001x4.png    DIV2K, Flickr2K and any NAME_train_HR, NAME_valid_HR, NAME_HR
    benchmark/Set5/LR_bicubic/X2/babyx2.png EDSR's tree
    Set14/baboon.bmp                        folders of HR images, as the sets were published
    Set5/image_SRF_4/img_001_SRF_4_LR.png   pairs in one folder (SelfExSR), also NAME_HR.png beside NAME_LR.png
    LR/LRBI/Set5/x4/baby_LRBI_x4.png        RCAN's test data
    Set5/GTmod12/baby.png, Set5/LRbicx4/…   BasicSR's test data
    Urban100_LR_x2/img_001.png              Hugging Face's
    holiday/2019/beach.jpg                  anything else: a training set, named after its folder

Only paths are read here, in any case of letters; sizes of images are asked for where paths leave open which are LR
(`pairing`, which main.py goes by too). Names of sets are those of main.py's --data_train and --data_test.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

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


@dataclass(frozen=True)
class Image:
    """What a file is.

    Args:
        path: in its source.
        set_name, benchmark: the set, and whether it is one to test on; "" if its path does not say.
        name: of the image, the same for LR and HR: nested/beach.png is called nested__beach.
        lr: LR or HR.
        scale: of an LR image; None if its path does not say. Of an HR image that was published for this scale alone and
            so may be cropped to a multiple of it; else None.
    """

    path: PurePosixPath
    set_name: str
    benchmark: bool
    name: str
    lr: bool
    scale: int | None


@dataclass(frozen=True)
class _Guess:
    """What the path of one file says by itself; `lr` is None if it says neither LR nor HR."""

    path: PurePosixPath
    set_name: str
    benchmark: bool
    known: bool
    folders: tuple[str, ...]
    stem: str
    lr: bool | None
    scale: int | None


def recognise(
    name: str, paths: list[PurePosixPath], *, is_archive: bool = False, size: SizeOf | None = None
) -> tuple[list[Image], Counter[str]]:
    """What the files of a source are.

    Args:
        name: of the source: of the folder with its parents, as far as they say something (`context`), or the archive.
        paths: of all its files.
        size: (height, width) of an image, (1, 1) of what is none; None where files are not looked at.

    Returns:
        The images, in the order of `paths`, and what was passed over: reason -> number of files.

    Raises:
        UserError: for images that may be LR or HR images.
    """
    passed_over: Counter[str] = Counter()
    images = []
    for path in paths:
        if not is_image(path.name):
            passed_over[f"no images (*{path.suffix.lower() or path.name})"] += 1
        elif "bin" in path.parts[:-1]:
            passed_over["in bin/, which holds what is made of a set"] += 1
        else:
            images.append(path)
    tops = {path.parts[0] if len(path.parts) > 1 else "" for path in images}
    # An archive's own name may be anything, "download (1)"; where all lies in one folder, that is what it is called.
    outer = [] if is_archive and not _KNOWN.fullmatch(name) and len(tops) == 1 and "" not in tops else name.split("/")
    guesses = []
    for path in images:
        guess = _guess(outer, path)
        if isinstance(guess, str):
            passed_over[guess] += 1
        else:
            guesses.append(guess)
    size = size or (lambda path: (1, 1))
    guesses = _by_counterparts(guesses, sort_out([guess.path for guess in guesses], None, size))
    images, unused = _settle(guesses, passed_over)
    _refuse_unnamed([image.path for image in images if not image.lr], unused, size)
    return images, passed_over


def _by_counterparts(guesses: list[_Guess], files: list[File]) -> list[_Guess]:
    """What paths of LR and HR images say together, where one of them alone does not say what it is."""
    pairs = pairs_in(files)
    guess_of = {guess.path: guess for guess in guesses}
    sure = {pairs[file.path][0].path for file in files if file.lr and file.path in pairs and file.role.kind[:1] != "*"}
    vague = {file.path for file in files if file.lr and file.role.kind[:1] == "*"}  # cat_blur beside cat_HR and cat_LR
    pairs = {path: pair for path, pair in pairs.items() if path not in vague or pair[0].path not in sure}
    told_apart = {hr.path for path, (hr, _) in pairs.items() if _disagree(guess_of[path], guess_of[hr.path])}
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
    """Whether what paths of an LR and an HR image say by themselves does not make them a pair."""
    if one.path == hr.path:
        return one.lr is None
    return one.lr is None or (one.set_name, one.folders, one.stem) != (hr.set_name, hr.folders, hr.stem)


def _refuse_unnamed(hr: list[PurePosixPath], unused: list[PurePosixPath], size: SizeOf) -> None:
    files = sort_out([*hr, *unused], None, size)
    refuse_likely_pairs(files[: len(hr)], size, "SOURCE")
    refuse_unnamed_low(files[: len(hr)], files[len(hr) :], size)


def context(parts: tuple[str, ...]) -> str:
    """The end of a folder's path that says what is in it: Set5/LR_bicubic/X4 of /data/Set5/LR_bicubic/X4.

    Folders above count only where the last one alone is no set's name.
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


def _guess(outer: list[str], path: PurePosixPath) -> _Guess | str:
    """What one path says, read from the outermost folder inwards; a text if it is to be passed over, and why."""
    set_name, benchmark, known = "", False, False
    lr = scale = None
    folders: list[str] = []  # that say nothing, since the one that named the set
    below_benchmark = False
    for part in [*outer, *path.parts[:-1]]:
        if part.lower() == "benchmark":
            below_benchmark, folders = True, []
            continue
        names_set, rest = True, ""  # what follows the set's name in this folder's
        if found := _KNOWN.fullmatch(part):
            key, rest = found[1].lower(), found[2] or ""
            set_name, benchmark, known = {**BENCHMARKS, **TRAINING}[key], key in BENCHMARKS, True
        elif below_benchmark:
            set_name, benchmark, known = part, True, True
        elif not set_name and (found := _NAMED.fullmatch(part)):
            set_name, rest = found[1], found[2]
        else:
            names_set, rest = False, part
        below_benchmark = False
        folders = [] if names_set else folders
        rest = re.sub(r" ?\(\d+\)$", "", rest)  # what browsers call a second download

        says_role = True
        if _HR.fullmatch(rest):
            lr = False
        elif found := _LR.fullmatch(rest):
            lr, scale = True, int(found[1]) if found[1] else scale
        elif _OTHER.fullmatch(rest) and set_name:
            return f"{part}/ is neither HR nor bicubic LR"
        elif (found := _SCALE.fullmatch(rest)) and (known or lr is not None or rest.lower().startswith("image")):
            scale = int(found[1])  # in a folder of own images x2 may mean anything
        else:
            says_role = False
        if says_role and not set_name and folders:  # my_set/HR
            set_name, folders = folders[-1], []
        if not says_role and not names_set:
            folders.append(part)
    if not set_name and folders:
        set_name, folders = folders[0], folders[1:]

    stem = path.stem
    if found := _SRF.fullmatch(stem):
        if found[3].upper() not in ("HR", "LR"):
            return f"*_SRF_{found[2]}_{found[3]}{path.suffix}, neither HR nor LR"
        stem, scale, lr = found[1], int(found[2]), found[3].upper() == "LR"
    elif found := _MARKED.fullmatch(stem):
        stem, scale, lr = found[1], int(found[3]), found[2].upper() != "HR"
    elif lr and (found := re.fullmatch(r"(.+?)x(\d)", stem, re.I)) and int(found[2]) == (scale or int(found[2])):
        stem, scale = found[1], int(found[2])
    return _Guess(path, set_name, benchmark, known, tuple(folders), stem, lr, scale)


def _settle(guesses: list[_Guess], passed_over: Counter[str]) -> tuple[list[Image], list[PurePosixPath]]:
    """What only a look at other files tells: NAME_HR beside NAME_LR, and files that are neither in a set of pairs."""
    seen = {_paired(guess) for guess in guesses}
    settled = []
    for guess in guesses:
        pair = _paired(guess)
        if pair:
            lr, *key = pair
            if (not lr, *key) in seen:
                guess = replace(guess, stem=key[-1], lr=lr)
            elif guess.benchmark and guess.known and not lr:  # baby_GT.bmp, as SRCNN's authors called it
                guess = replace(guess, stem=key[-1])
        settled.append(guess)
    has_hr = {guess.set_name for guess in settled if guess.lr is False}
    used, unused = [], []
    for guess in settled:
        if guess.lr is None and (guess.scale or guess.set_name in has_hr):
            passed_over[f"in {guess.path.parent}/, beside the HR and LR images of {guess.set_name}"] += 1
            unused.append(guess.path)
        else:
            used.append(guess)
    # Set5/images/baby.png is Set5's baby: in a known set, folders count where they tell images from one another.
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
    """What two paths begin with."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return one[: same.index(False)] if False in same else one[: len(same)]


def _paired(guess: _Guess) -> tuple | None:
    """(is LR, set, folders, stem without the mark) of a file called NAME_HR, NAME_GT or NAME_LR."""
    found = _PAIRED.fullmatch(guess.stem)
    return found and (found[2].upper() == "LR", guess.set_name, guess.folders, found[1])
