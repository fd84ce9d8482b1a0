"""Where the files of DIV2K lie, and of any set in a folder of its shape:

    <dir_data>/DIV2K/DIV2K_train_HR/0001.png
    <dir_data>/DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png

Another set `NAME` may call its folders NAME_train_HR, NAME_HR (Flickr2K) or HR, each with LR_bicubic for HR beside it.
"""

from itertools import pairwise
from pathlib import Path

from data import image as files
from errors import UserError


def locate(root: Path) -> tuple[list[Path], Path]:
    """(HR images in the order of their names, LR folder that holds X2, X3, …) of the set in the folder `root`.

    Raises:
        UserError: if there is no such folder, or no images in it.
    """
    names = [f"{root.name}_train_HR", "DIV2K_train_HR", f"{root.name}_HR", "HR"]
    for name in dict.fromkeys(names):
        if (root / name).is_dir():
            return files_of(root / name), root / (name.removesuffix("HR") + "LR_bicubic")
    found = "another tree" if root.is_dir() else "nothing"
    raise UserError(
        f"{root}: found {found}, expected {root / names[0]}/0001.png and so on: check --dir_data and the set's name"
    )


def files_of(folder: Path) -> list[Path]:
    """The images right in `folder`, by name.

    Raises:
        UserError: if there are none, or two of one name.
    """
    paths = files.list_images(folder)
    if not paths:
        raise UserError(f"{folder}: the folder holds no images, expected files such as {folder / '0001.png'}")
    for before, after in pairwise(paths):
        if before.stem == after.stem:
            raise UserError(f"{folder}: {before.name} and {after.name} have one name: rename or remove one of them")
    return paths


def select(paths: list[Path], span: tuple[int, int], *, complete: bool) -> list[Path]:
    """The images from position span[0] to span[1], counted from 1, both included.

    Raises:
        UserError: if none is left, or if `complete` and the range goes beyond the last image.
    """
    first, last = span
    if first > len(paths) or (complete and last > len(paths)):
        raise UserError(
            f"--data_range {first}-{last}: {paths[0].parent} holds {len(paths)} images: "
            f"give TRAIN/TEST ranges within 1-{len(paths)}"
        )
    return paths[first - 1 : last]
