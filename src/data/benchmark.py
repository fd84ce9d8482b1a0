"""Where the files of the benchmark sets lie, Set5, Set14, B100, Urban100, Manga109 and any other folder there:

<dir_data>/benchmark/Set5/HR/baby.png
<dir_data>/benchmark/Set5/LR_bicubic/X4/babyx4.png
"""

from pathlib import Path

from data.div2k import Located, NoImagesError, in_folder
from data.pairing import role_of
from runtime.errors import UserError


def locate(root: Path) -> Located:
    """The files of the set in the folder `root`. The HR folder may also have another usual name, as GTmod12 (BasicSR).

    Raises:
        UserError: if there is no HR folder, or no images in it, or several.
    """
    folder = root / "HR"
    if not root.is_dir():
        raise NoImagesError(f"{root}: there is no such folder, expected {folder}/NAME.png")
    if not folder.is_dir():
        roles = {path: role_of(path.name) for path in sorted(root.iterdir()) if path.is_dir()}
        named = [path for path, role in roles.items() if role.lr is False and role.sure]
        if len(named) != 1:
            found = f"{len(named)} of them, " + " and ".join(path.name for path in named) if named else "no folder HR"
            raise (UserError if named else NoImagesError)(
                f"{root}: has {found}, expected {folder}/NAME.png and {root / 'LR_bicubic/X4'}/NAMEx4.png: "
                "`python prepare.py --benchmark SOURCE` arranges other layouts"
            )
        folder = named[0]
    return in_folder(root, folder, root / "LR_bicubic")
