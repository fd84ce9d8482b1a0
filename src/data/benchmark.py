"""Where the files of the benchmark sets lie, Set5, Set14, B100, Urban100, Manga109 and any other folder there:

<dir_data>/benchmark/Set5/HR/baby.png
<dir_data>/benchmark/Set5/LR_bicubic/X4/babyx4.png
"""

from pathlib import Path

from data.div2k import Located, files_of
from errors import UserError


def locate(root: Path) -> Located:
    """The files of the set in the folder `root`.

    Raises:
        UserError: if there is no HR folder, or no images in it.
    """
    if not (root / "HR").is_dir():
        raise UserError(
            f"{root}: has no folder HR, expected {root / 'HR'}/NAME.png and {root / 'LR_bicubic/X4'}/NAMEx4.png"
        )
    return Located(files_of(root / "HR"), root / "LR_bicubic", root / "HR")
