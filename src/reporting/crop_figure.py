"""The crop comparison that papers print, of one image of several tests."""

from argparse import ArgumentTypeError
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reporting import figures
from reporting.comparison import COLUMNS, HR, Experiment, ImageName, best_scores, load, printed, size_text
from reporting.output import list_pictures, listed_pictures
from runtime.errors import UserError, printable
from runtime.files import write_bytes
from runtime.flags import whole_number


class Box(NamedTuple):
    """A rectangle in HR pixels."""

    x: int
    y: int
    width: int
    height: int

    def lies_in(self, pixels: np.ndarray) -> bool:
        """Whether it is not empty and within an image (H, W, C)."""
        height, width = pixels.shape[:2]
        return (
            min(self.x, self.y) >= 0
            and min(self.width, self.height) >= 1
            and self.x + self.width <= width
            and self.y + self.height <= height
        )


def make_figure(experiments: list[Experiment], images: list[ImageName], request: list[str], out: Path) -> None:
    """Writes figure_<set>_<image>_<x>_<y>_<w>_<h>.png and .pdf into `out`.

    Args:
        request: the five words of --figure: IMAGE X Y W H.

    Raises:
        UserError: if there is no such image, or the box does not lie in it.
    """
    set_name, image = _find(images, request[0])
    try:
        box = Box(*map(whole_number(-(2**31)), request[1:]))
    except ArgumentTypeError:
        raise UserError(
            f"--figure {' '.join(request)}: expected IMAGE X Y W H, the last four whole numbers of HR pixels"
        ) from None
    compared = load(experiments, set_name, image)
    hr = compared.pictures[HR]
    if not box.lies_in(hr):
        raise UserError(
            f"--figure {' '.join(request)}: the box X Y W H does not lie within {set_name}/{image}, "
            f"which has {size_text(hr)} pixels (width x height)"
        )
    best, crops = best_scores(compared.scores), []
    for label in (HR, *compared.scores):
        texts = printed(compared.scores[label]) if label != HR else COLUMNS
        crop = _rgb(compared.pictures[label])[box.y : box.y + box.height, box.x : box.x + box.width]
        crops.append((label, list(zip(texts, best.get(label, (False, False)), strict=True)), crop))
    whole = f"{image} ({set_name} x{experiments[0].results[set_name].scale})"
    drawn = figures.crop_comparison(whole, _rgb(hr), box, crops)
    list_pictures(out, listed_pictures(out))
    for form, content in drawn.items():
        path = out / f"figure_{set_name}_{image}_{'_'.join(map(str, box))}.{form}"
        write_bytes(path, content)
        print(printable(path))


def _find(images: list[ImageName], text: str) -> ImageName:
    found = [(set_name, image) for set_name, image in images if text in (image, f"{set_name}/{image}")]
    if len(found) == 1:
        return found[0]
    if found:
        choice = " or ".join("/".join(image) for image in found)
        raise UserError(f"--figure {text}: several sets have this image: give {choice}")
    have = ", ".join("/".join(image) for image in images[:8]) + " …" * (len(images) > 8)
    raise UserError(f"--figure {text}: no image of this name is in all experiments: give one of {have}")


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
