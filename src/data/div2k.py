"""Where the files of DIV2K lie, and of any set in a folder of its shape:

    <dir_data>/DIV2K/DIV2K_train_HR/0001.png
    <dir_data>/DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png

Another set `NAME` may call its folders NAME_train_HR, NAME_HR (Flickr2K) or HR, each with LR_bicubic for HR beside it.
A folder without any of these is a set of HR images, of any names and nested; their LR images are made in its bin/.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from data import image as files
from errors import UserError


@dataclass(frozen=True)
class Located:
    """HR images in the order of their names, the LR folder that holds X2, X3, …, and the folder that names begin at."""

    hr: list[Path]
    lr_folder: Path
    base: Path
    in_tree: bool = True


def locate(root: Path) -> Located:
    """The files of the set in the folder `root`: a tree of DIV2K's shape, or images of any names, nested or not.

    Raises:
        UserError: if there is no such folder, or no images in it.
    """
    names = [f"{root.name}_train_HR", "DIV2K_train_HR", f"{root.name}_HR", "HR"]
    lr_folders = [root / (name.removesuffix("HR") + "LR_bicubic") for name in names]
    for name, lr_folder in zip(names, lr_folders, strict=True):
        if (root / name).is_dir():
            return Located(files_of(root / name), lr_folder, root / name)
    made = root / "bin"  # what this program makes of a set lies there, the LR images of such a folder too
    # LR images that wait for their HR images are no HR images of a folder's own.
    apart = {made, *lr_folders}
    own = (
        [path for path in files.list_images(root, nested=True) if apart.isdisjoint(path.parents)]
        if root.is_dir()
        else []
    )
    if own:
        return Located(own, made / "LR_bicubic", root, in_tree=False)
    found = "no images" if root.is_dir() else "nothing"
    raise UserError(
        f"{root}: found {found}, expected {root / names[0]}/0001.png and so on, or a folder of HR images: "
        "check --dir_data and the set's name"
    )


def files_of(folder: Path) -> list[Path]:
    """The images right in `folder`, by name; UserError if there are none."""
    paths = files.list_images(folder)
    if not paths:
        raise UserError(f"{folder}: the folder holds no images, expected files such as {folder / '0001.png'}")
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
