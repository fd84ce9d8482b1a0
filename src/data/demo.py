"""A user's own images, right in --dir_demo, to be upscaled: there is no HR, so there are no scores."""

from pathlib import Path

from data.div2k import files_of
from data.image import read_header
from data.srdata import ImageSet, Pair
from errors import UserError


def image_set(folder: Path) -> ImageSet:
    """The images of `folder` as LR images.

    Raises:
        UserError: if the folder is missing or holds no images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder: name the folder of your images with --dir_demo")
    pairs = [Pair(path.stem, path, None, headers=(read_header(path),)) for path in files_of(folder)]
    return ImageSet("Demo", pairs, own=True)
