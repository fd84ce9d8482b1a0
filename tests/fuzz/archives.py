"""Downloaded archives that are damaged, or whose members point elsewhere, collide, or are no files, for prepare.py."""

import io
import random
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

from fuzz.changes import damaged

NAMES = [
    *("Set/HR/a.png", "Set/HR/b.png", "Set/LR/X2/ax2.png", "Set_train_HR/0001.png", "a.png", "GT/1.png", "LQ/1.png"),
    *("../out.png", "/tmp/out.png", "a/../../out.png", "x\\..\\out.png", "C:\\out.png", "Set/HR/a.PNG", "a/" * 300),
    *(
        "\x1b[31m.png",
        "new\nline.png",
        "n" * 250 + ".png",
        ".hidden.png",
        "__MACOSX/a.png",
        "Set/HR/",
        "Set",
        "写真.png",
    ),
    *("bin/HR/a.npy", "Set/HR/a.png/b.png", "", ".", "a_HR.png", "a_LR4.png", "readme.txt", "b.gif", "c.tif"),
]


def make(folder: Path, seed: int, count: int) -> None:
    from PIL import Image

    chance = random.Random(seed)
    images = []
    for side in (8, 24, 48):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (side, side), chance.randbytes(3 * side * side)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    images += [b"", images[0][:60], b"no image"]
    for number in range(count):
        suffix = chance.choice([".zip", ".tar", ".tar.gz"])
        members = [("Set/HR/a.png", images[2]), ("Set/HR/b.png", images[2]), ("Set/LR/X2/ax2.png", images[1])]
        members += [(name, chance.choice(images)) for name in chance.choices(NAMES, k=chance.randrange(3))]
        chance.shuffle(members)
        content = (zipped if suffix == ".zip" else tarred)(members, suffix, chance)
        if chance.random() < 0.4:
            content = damaged(content, chance)
        (folder / "inputs" / f"{number:06}{suffix}").write_bytes(content)


def zipped(members: list, suffix: str, chance: random.Random) -> bytes:
    buffer = io.BytesIO()
    method = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            if chance.random() < 0.05:
                info.external_attr = chance.choice([stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR]) << 16
                content = b"/etc/passwd"
            archive.writestr(info, content if chance.random() > 0.03 else bytes(2**26))
    return buffer.getvalue()


def tarred(members: list, suffix: str, chance: random.Random) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if suffix == ".tar.gz" else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if chance.random() < 0.05:
                info.type = chance.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
                info.linkname, info.size = chance.choice(["/etc/passwd", "../../x", names_of(members)]), 0
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def names_of(members: list) -> str:
    return members[0][0]


def take(path: Path) -> None:
    import prepare

    work = path.parent.parent / "work"
    shutil.rmtree(work)
    work.mkdir()
    prepare.main([str(path), "--dir_data", str(work / "dataset"), "--scale", "2", "--n_threads", "2"])
    assert {entry.name for entry in work.iterdir()} <= {"dataset"}
