"""The page that shows pictures of a user's own before and after: bicubic enlargement beside the network's.

It is the comparison page (`page.py`) without HR, and so without scores and error maps. Pictures are shown with 8 bits,
transparent ones on white.
"""

from pathlib import Path
from urllib.parse import quote

import numpy as np

from data.encode import to_8_bits
from data.image import write_out
from data.parallel import for_each
from data.picture import Picture, read_picture
from evaluation.pictures import bicubic
from reporting.comparison import BICUBIC
from reporting.output import list_pictures, listed_pictures
from reporting.page import render, worst_point
from runtime.errors import UserError, printable
from runtime.files import write_bytes


def make_before_after(pairs: list[tuple[Path, Path]], out: Path, *, scale: int, method: str) -> None:
    """Writes index.html and its pictures into `out`; then pictures of an older page there are deleted.

    Args:
        pairs: (picture, the enlarged picture).
        method: what the page calls the network.

    Raises:
        UserError: if a picture cannot be read, is not `scale` times as large, or the page cannot be written.
    """
    before, written, entries = listed_pictures(out), set(), []
    list_pictures(out, before)

    def make(numbered: tuple[int, tuple[Path, Path]]) -> None:
        number, (source, enlarged) = numbered
        entry, files = _write_pictures(number, source, enlarged, out, scale=scale, method=method)
        entries.append(entry)
        written.update(files)

    # One at a time: pictures may be large.
    for_each(make, list(enumerate(pairs, start=1)), n_threads=1, title="page")
    list_pictures(out, before | written)
    title = f"{len(pairs)} pictures" if len(pairs) > 1 else printable(pairs[0][0].name)
    facts = {"images": entries, "scored": False, "errorMax": 0, "errorColors": "transparent, transparent"}
    page = render(f"{title}, enlarged x{scale}", f"Bicubic enlargement on the left, {method} on the right.", facts)
    write_bytes(out / "index.html", page.encode())
    for name in before - written:
        (out / name).unlink(missing_ok=True)
    list_pictures(out, written)
    print(f"before and after: {printable(out / 'index.html')}")


def _write_pictures(
    number: int, source: Path, enlarged: Path, out: Path, *, scale: int, method: str
) -> tuple[dict, set[str]]:
    """Writes the pictures of one image; returns its entry in the page's data, and the files' names below `out`."""
    written = set()

    def write(kind: str, pixels: np.ndarray) -> str:
        # Numbers: names of pictures may hold what file systems or addresses do not take.
        name = f"images/{number:04}_{kind}.png"
        write_out(out / name, pixels)
        written.add(name)
        return quote(name)

    lr, sr = shown(read_picture(source)), shown(read_picture(enlarged))
    plain = bicubic(lr, scale)
    if plain.shape[:2] != sr.shape[:2]:
        raise UserError(
            f"{printable(enlarged)}: has {sr.shape[1]}x{sr.shape[0]} pixels, expected {scale} times those of "
            f"{printable(source)}: give --overwrite to make it again"
        )
    difference = np.abs(plain.mean(axis=2) - sr.mean(axis=2))
    entry = {
        "set": "",
        "name": printable(source.name),
        "scale": scale,
        "width": sr.shape[1],
        "height": sr.shape[0],
        "point": worst_point(difference),  # where the two differ most
        "thumb": write("LR", lr),
        "views": [{"label": BICUBIC, "src": write(BICUBIC, plain)}, {"label": method, "src": write("enlarged", sr)}],
    }
    return entry, written


def shown(picture: Picture) -> np.ndarray:
    """A picture as the page shows it: uint8 (H, W, 1 or 3), on white where it is transparent."""
    pixels, alpha = picture.pixels, picture.alpha
    if pixels.dtype == np.uint16:
        pixels, alpha = to_8_bits(pixels), None if alpha is None else to_8_bits(alpha)
    if alpha is None:
        return pixels
    opacity = alpha.astype(np.float32) / 255
    return (pixels * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
