"""Where the files of DIV2K lie, and of any set in a folder of its shape:

    <dir_data>/DIV2K/DIV2K_train_HR/0001.png
    <dir_data>/DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png

Another set `NAME` may call its folders NAME_train_HR, NAME_HR (Flickr2K) or HR, each with LR_bicubic for HR beside it.
A folder without any of these is a set of HR images, of any names and nested; their LR images are made in its bin/.
LR images of the user's own are found wherever they lie in the set's folder; `pairing` tells them from HR images.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from data import image as files
from data import pairing
from data.listing import BROKEN, EMPTY, NO_IMAGE, READ_ALREADY, Listing, is_image, scan
from runtime.errors import UserError, printable


class NoImagesError(UserError):
    """There are no images of a set, or none yet."""


@dataclass(frozen=True)
class Located:
    """The files of a set.

    Args:
        hr: in the order of their names.
        lr_folder: where X2, X3, … lie, or are made.
        base: the folder that names begin at.
        in_tree: whether the set has the shape of DIV2K.
        low: the LR images that lie in the set's folder, wherever.
        skipped: what was passed over, in words; "" if nothing was.
    """

    hr: list[Path]
    lr_folder: Path
    base: Path
    in_tree: bool = True
    low: pairing.LowImages | None = None
    skipped: str = ""

    def name_of(self, hr: Path) -> str:
        """The name of one of the HR images."""
        return name_of(hr, self.base, self.low)


def name_of(hr: Path, base: Path | None = None, low: pairing.LowImages | None = None) -> str:
    """The name of an HR image: base/a/b.png is called a__b, and without `base` b. Where HR and LR images of a user's
    own lie beside one another, without the words that tell them apart."""
    if low is not None and hr in low.names:
        return low.names[hr]
    return "__".join(hr.relative_to(base or hr.parent).with_suffix("").parts)


def locate(root: Path) -> Located:
    """The files of the set in the folder `root`: a tree of DIV2K's shape, or images of any names, nested or not.

    Raises:
        UserError: if there is no such folder, or no images in it, or some that may be LR or HR images.
    """
    names = [f"{root.name}_train_HR", "DIV2K_train_HR", f"{root.name}_HR", "HR"]
    for name in names:
        if (root / name).is_dir():
            return in_folder(root, root / name, root / (name.removesuffix("HR") + "LR_bicubic"))
    found = "nothing"
    if root.is_dir():
        if located := own_images(root):
            return located
        found = "no images"
    raise NoImagesError(
        f"{root}: found {found}, expected {root / names[0]}/0001.png and so on, or a folder of HR images: "
        "check --dir_data and the set's name"
    )


def in_folder(root: Path, hr_folder: Path, lr_folder: Path) -> Located:
    """The set at `root` with its HR images in one folder, and LR images wherever else.

    Raises:
        UserError: if there are no HR images, or images elsewhere that look like their LR images but are not called so.
    """
    inside = scan(hr_folder)
    _refuse_broken(inside)
    rest = scan(root, without=frozenset({root / "bin", hr_folder}))
    images = pairing.sort_out(inside.images + rest.images, root, files.read_size, root.name)
    hr = [file for file in images[: len(inside.images)] if not file.lr]
    if not hr:
        files_of(hr_folder)  # says so where there are none
        raise UserError(f"{hr_folder}: found LR images alone, expected HR images such as {hr_folder / '0001.png'}")
    lr, others = ([file for file in images if file.lr], [file for file in images[len(inside.images) :] if not file.lr])
    pairing.refuse_unnamed_low(hr, others, files.read_size)
    low = pairing.LowImages(lr, hr, _odd(root, rest, lr_folder, hr), aside=False)
    return Located([file.path for file in hr], lr_folder, hr_folder, low=low, skipped=inside.summary())


def own_images(root: Path) -> Located | None:
    """The set of a folder of images of any names, nested or not; None if there are no images in it.

    Raises:
        UserError: if it holds LR images alone, or what may be LR or HR images.
    """
    lr_folder = root / "bin" / "LR_bicubic"
    listing = scan(root, without=frozenset({root / "bin"}))
    _refuse_broken(listing)
    images = pairing.sort_out(listing.images, root, files.read_size, root.name)
    hr, lr = [file for file in images if not file.lr], [file for file in images if file.lr]
    if not hr:
        if any(file.role.kind != "bicubic" for file in lr):  # else they may wait for their HR images
            raise UserError(
                f"{root}: found {len(lr)} LR images, {printable(lr[0].path.name)} and so on, and no HR images: "
                "put those into a folder HR beside them"
            )
        return None
    pairing.refuse_likely_pairs(hr, files.read_size, printable(root))
    _refuse_low_beside(root, lr)
    names = {file.path: "__".join((*file.folders, file.name if file.mark is False else file.stem)) for file in hr}
    if not lr or len(set(names.values())) < len(names):
        names = {}
    low = pairing.LowImages(lr, hr, _odd(root, listing, lr_folder, hr), aside=True, names=names)
    return Located([file.path for file in hr], lr_folder, root, in_tree=False, low=low, skipped=listing.summary())


def _refuse_broken(listing: Listing) -> None:
    """An image that is a link to nothing, as where a disk is missing, must not make a set smaller without a word."""
    for path, reason in listing.skipped.items():
        if is_image(path.name) and reason == BROKEN:
            raise UserError(f"{printable(path)}: is {reason}: copy the image there, or remove the link")


def _odd(root: Path, listing: Listing, lr_folder: Path, hr: list[pairing.File]) -> list[tuple[Path, str, int | None]]:
    """What lies in LR folders and may be meant as LR images, but is none: pipes, broken links, files of the images'
    names that are no images, and folders that are empty, but for those where LR is made. With its scale, if known."""
    names = {name for file in hr for name in (file.stem, file.name)}
    found = []
    for path, reason in listing.skipped.items():
        if path == root:
            continue
        parts = path.relative_to(root).parts
        roles = [pairing.role_of(part) for part in (parts if reason in (EMPTY, READ_ALREADY) else parts[:-1])]
        scale = next((role.scale for role in reversed(roles) if role.scale), None)
        if not any(role.lr or role.scale for role in roles):
            continue
        if reason == EMPTY and (path == lr_folder or lr_folder in path.parents):
            continue
        if reason == NO_IMAGE and not names & {path.stem, pairing.unmark(path.stem)[0]}:
            continue
        found.append((path, reason, scale))
    return found


def _refuse_low_beside(root: Path, lr: list[pairing.File]) -> None:
    """A set called NAME_HR, whose LR images lie in NAME_LR beside it."""
    role = pairing.role_of(root.name)
    if lr or role.lr is not False:
        return
    for other in sorted(root.absolute().parent.iterdir()):
        found = pairing.role_of(other.name)
        same = (found.split, found.sure, found.sub) == (role.split, role.sure, role.sub)
        if found.lr and same and other.is_dir() and pairing.before_role(other.name) == pairing.before_role(root.name):
            parent = root.absolute().parent
            raise UserError(
                f"{printable(other)}: holds LR images, as it seems, but lies outside the set {printable(root)}: give "
                f"--dir_data {printable(parent.parent)} and {printable(parent.name)} as the set, or rename the folder"
            )


def files_of(folder: Path) -> list[Path]:
    """The images right in `folder`, by name; UserError if there are none."""
    paths = files.list_images(folder)
    if not paths:
        raise NoImagesError(f"{folder}: the folder holds no images, expected files such as {folder / '0001.png'}")
    return paths


def select(located: Located, span: tuple[int, int], *, complete: bool) -> Located:
    """The images from position span[0] to span[1], counted from 1, both included.

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
