"""Where the files of a set lie. Nothing is decoded here; `pairs` makes LR/HR pairs of what is found.

    <dir_data>/DIV2K/DIV2K_train_HR/0001.png                 a set to train on (`locate`)
    <dir_data>/DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png
    <dir_data>/my_photos/2019/beach.jpg                      a folder of any images (`locate`)
    <dir_data>/benchmark/Set5/HR/baby.png                    a set to test on (`locate_benchmark`)
    <dir_data>/benchmark/Set5/LR_bicubic/X4/babyx4.png
    <dir_demo>/any/name.jpg                                  a user's own pictures, to be upscaled (`locate_demo`)

A set `NAME` in DIV2K's shape may call its folders NAME_train_HR, NAME_HR (Flickr2K) or HR, each with LR_bicubic for HR
beside it. A folder without any of these is a set of HR images, of any names and nested; its LR images are made in bin/.
The user's own LR images are found anywhere in the set's folder: `roles` tells them from HR images.
"""

import os
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from data.image import list_images, read_size
from data.listing import BROKEN, EMPTY, NO_IMAGE, READ_ALREADY, Listing, is_image, scan
from data.matching import LowImages, Stray, refuse_likely_pairs, refuse_unnamed_low
from data.roles import File, before_role, role_of, sort_out, unmark
from runtime.errors import UserError, printable

LONGEST = 200  # bytes of a result's name, to which suffixes are added


class NoImagesError(UserError):
    """A set has no images, or none yet."""


@dataclass(frozen=True)
class Located:
    """The files of a set.

    Args:
        hr: in the order of their names.
        lr_folder: holds the folders X2, X3, … of LR images, or will hold them once they are made.
        base: the folder that names begin at: base/a/b.png is called a__b.
        in_tree: whether the set has DIV2K's shape.
        low: the LR images anywhere in the set's folder; None if nobody has looked for them.
        skipped: what was skipped, for the log; "" if nothing was.
    """

    hr: list[Path]
    lr_folder: Path
    base: Path
    in_tree: bool = True
    low: LowImages | None = None
    skipped: str = ""

    def name_of(self, hr: Path) -> str:
        """The name of one of the HR images; without the words for LR and HR where the two kinds lie side by side."""
        if self.low is not None and hr in self.low.names:
            return self.low.names[hr]
        return joined_name(hr, self.base)


def joined_name(path: Path, base: Path) -> str:
    """The name of an image: base/a/b.png is called a__b."""
    return "__".join(path.relative_to(base).with_suffix("").parts)


def select(located: Located, span: tuple[int, int], *, complete: bool) -> Located:
    """The set's images from position span[0] to span[1], counted from 1, both included.

    Raises:
        UserError: if none is left, or if `complete` and the range goes beyond the last image.
    """
    first, last = span
    count = len(located.hr)
    if first > count or (complete and last > count):
        raise UserError(
            f"--data_range {first}-{last}: {located.base} holds {count} images: give TRAIN/TEST ranges within 1-{count}"
        )
    return replace(located, hr=located.hr[first - 1 : last])


# --- sets in DIV2K's shape, benchmark sets, folders of images ---


def locate(root: Path) -> Located:
    """The files of the set in the folder `root`: DIV2K's shape, or images of any names, nested or not.

    Raises:
        UserError: if there is no such folder, if it holds no images, or if LR and HR cannot be told apart.
    """
    names = [f"{root.name}_train_HR", "DIV2K_train_HR", f"{root.name}_HR", "HR"]
    for name in names:
        if (root / name).is_dir():
            return _in_folder(root, root / name, root / (name.removesuffix("HR") + "LR_bicubic"))
    found = "nothing"
    if root.is_dir():
        if located := _own_images(root):
            return located
        found = "no images"
    raise NoImagesError(
        f"{root}: found {found}, expected {root / names[0]}/0001.png and so on, or a folder of HR images: "
        "check --dir_data and the set's name"
    )


def locate_benchmark(root: Path) -> Located:
    """The files of the benchmark set in the folder `root`. HR may have another usual name, such as GTmod12 (BasicSR).

    Raises:
        UserError: if there is no HR folder, or more than one, or no images in it.
    """
    folder = root / "HR"
    if not root.is_dir():
        raise NoImagesError(f"{root}: there is no such folder, expected {folder}/NAME.png")
    if not folder.is_dir():
        roles = {path: role_of(path.name) for path in sorted(root.iterdir()) if path.is_dir()}
        named = [path for path, role in roles.items() if role.lr is False and role.sure]
        if len(named) != 1:
            joined = " and ".join(path.name for path in named)
            found = f"{len(named)} HR folders, {joined}" if named else "no folder HR"
            raise (UserError if named else NoImagesError)(
                f"{root}: has {found}, expected {folder}/NAME.png and {root / 'LR_bicubic/X4'}/NAMEx4.png: "
                "`python prepare.py --benchmark SOURCE` arranges other layouts"
            )
        folder = named[0]
    return _in_folder(root, folder, root / "LR_bicubic")


def _in_folder(root: Path, hr_folder: Path, lr_folder: Path) -> Located:
    """The set at `root` with its HR images in one folder, and LR images anywhere else.

    Raises:
        UserError: if there are no HR images, or if images elsewhere look like their LR images but are not named so.
    """
    inside = scan(hr_folder)
    _refuse_broken(inside)
    rest = scan(root, without=frozenset({root / "bin", hr_folder}))
    images = sort_out(inside.images + rest.images, root, read_size, root.name)
    hr = [file for file in images[: len(inside.images)] if not file.lr]
    if not hr:
        if not list_images(hr_folder):
            expected = f"expected files such as {hr_folder / '0001.png'}"
            raise NoImagesError(f"{hr_folder}: the folder holds no images, {expected}")
        raise UserError(f"{hr_folder}: found only LR images, expected HR images such as {hr_folder / '0001.png'}")
    lr = [file for file in images if file.lr]
    others = [file for file in images[len(inside.images) :] if not file.lr]
    refuse_unnamed_low(hr, others, read_size)
    low = LowImages(lr, hr, _strays(root, rest, lr_folder, hr), aside=False)
    return Located([file.path for file in hr], lr_folder, hr_folder, low=low, skipped=inside.summary())


def _own_images(root: Path) -> Located | None:
    """The set of a folder of images of any names, nested or not; None if there are no images in it.

    Raises:
        UserError: if it holds only LR images, or if LR and HR cannot be told apart.
    """
    lr_folder = root / "bin" / "LR_bicubic"
    listing = scan(root, without=frozenset({root / "bin"}))
    _refuse_broken(listing)
    images = sort_out(listing.images, root, read_size, root.name)
    hr, lr = [file for file in images if not file.lr], [file for file in images if file.lr]
    if not hr:
        if any(file.role.kind != "bicubic" for file in lr):  # bicubic ones may have come before their HR images
            raise UserError(
                f"{root}: found {len(lr)} LR images, {printable(lr[0].path.name)} and so on, and no HR images: "
                "put those into a folder HR beside them"
            )
        return None
    refuse_likely_pairs(hr, read_size, printable(root))
    _refuse_low_beside(root, lr)
    names = {file.path: "__".join((*file.folders, file.name if file.mark is False else file.stem)) for file in hr}
    if not lr or len(set(names.values())) < len(names):
        names = {}
    low = LowImages(lr, hr, _strays(root, listing, lr_folder, hr), aside=True, names=names)
    return Located([file.path for file in hr], lr_folder, root, in_tree=False, low=low, skipped=listing.summary())


def _refuse_broken(listing: Listing) -> None:
    """Refuses images that are broken links, as where a disk is missing: the set would silently become smaller.

    Raises:
        UserError: if there are any.
    """
    for path, reason in listing.skipped.items():
        if is_image(path.name) and reason == BROKEN:
            raise UserError(f"{printable(path)}: is {reason}: copy the image there, or remove the link")


def _strays(root: Path, listing: Listing, lr_folder: Path, hr: list[File]) -> list[Stray]:
    """What lies in LR folders, may be meant as LR images and is not an image: pipes, broken links, files with an HR
    image's name, and empty folders, except for the one where LR images are made."""
    names = {name for file in hr for name in (file.stem, file.name)}
    found = []
    for path, reason in listing.skipped.items():
        if path == root:
            continue
        parts = path.relative_to(root).parts
        roles = [role_of(part) for part in (parts if reason in (EMPTY, READ_ALREADY) else parts[:-1])]
        scale = next((role.scale for role in reversed(roles) if role.scale), None)
        if not any(role.lr or role.scale for role in roles):
            continue
        if reason == EMPTY and (path == lr_folder or lr_folder in path.parents):
            continue
        if reason == NO_IMAGE and not names & {path.stem, unmark(path.stem).name}:
            continue
        found.append(Stray(path, reason, scale))
    return found


def _refuse_low_beside(root: Path, lr: list[File]) -> None:
    """Refuses a set called NAME_HR whose LR images lie beside it, in NAME_LR.

    Raises:
        UserError: if there is such a folder.
    """
    role = role_of(root.name)
    if lr or role.lr is not False:
        return
    parent = root.absolute().parent
    for other in sorted(parent.iterdir()):
        found = role_of(other.name)
        same = (found.split, found.sure, found.sub) == (role.split, role.sure, role.sub)
        if found.lr and same and other.is_dir() and before_role(other.name) == before_role(root.name):
            raise UserError(
                f"{printable(other)}: seems to hold LR images, but lies outside the set {printable(root)}: give "
                f"--dir_data {printable(parent.parent)} and {printable(parent.name)} as the set, or rename the folder"
            )


# --- a user's own pictures ---


def locate_demo(folder: Path) -> tuple[list[tuple[str, Path]], str]:
    """The pictures in --dir_demo and the folders below it, which have no HR.

    Returns:
        (name of the results, file) of each picture, and what was skipped, for the log.

    Raises:
        UserError: if the folder is missing or holds no images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder: name the folder of your images with --dir_demo")
    listing = scan(folder)
    if not listing.images:
        expected = f"expected files such as {folder / '0001.png'}"
        skipped = f"; {listing.summary()}" if listing.skipped else ""
        raise UserError(f"{folder}: the folder holds no images, {expected}{skipped}")
    return list(zip(_result_names(listing.images, folder), listing.images, strict=True)), listing.summary()


def _result_names(paths: list[Path], folder: Path) -> list[str]:
    """A unique name for each image's results: a/b.png gives a__b.

    Equal names keep their suffix, b_png and b_jpg, and then get a number. Names that differ only in case count as
    equal, because some disks do not distinguish them. Long names are shortened.
    """
    plain = [joined_name(path, folder) for path in paths]
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
    """A name short enough for suffixes to be added: one of more than LONGEST bytes is cut and ends in its checksum."""
    content = os.fsencode(name)
    if len(content) <= LONGEST:
        return name
    return f"{content[: LONGEST - 9].decode(errors='ignore')}_{zlib.crc32(content):08x}"
