"""A training set of subimages: each HR image at several sizes, cut into tiles.

    python subimages.py --images ../dataset/photos --out ../dataset/photos_sub
    python main.py --data_train photos_sub --data_test Set5 --scale 4

main.py draws each image equally often: of a set of small and large images most patches come from the small ones. Tiles
of one size give every part of every image the same share. The shrunk copies show objects at other sizes and finer
detail, which helps where images are few (BasicSR prepares its sets in the same two ways).
"""

from pathlib import Path

import numpy as np
from PIL import Image

from data.image import list_images, read_image, write_out
from data.parallel import for_each, usable_cores
from runtime.errors import UserError, run
from runtime.flags import Parser, number, path_flag, whole_number

MULTIPLE = 12  # sides of tiles are multiples of every scale, 2, 3 and 4


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="subimages.py",
        description="Make a training set of subimages: each HR image at several sizes, cut into tiles.",
        examples=(
            "python subimages.py --images ../dataset/DIV2K/DIV2K_train_HR --out ../dataset/DIV2K_sub",
            "python subimages.py --images ~/Pictures --out ../dataset/tiles --sizes 1 --tile 480",
        ),
    )
    parser.add_argument("--images", required=True, metavar="DIR", type=path_flag, help="folder of HR images")
    parser.add_argument(
        "--out", required=True, metavar="DIR", type=path_flag, help="folder for the subimages, PNG files"
    )
    parser.add_argument(
        "--sizes",
        type=number(above=0),
        nargs="+",
        default=[1, 0.7, 0.5, 0.35],
        metavar="F",
        help="factors by which each image is shrunk before it is cut, at most 1 (default 1 0.7 0.5 0.35)",
    )
    parser.add_argument(
        "--tile",
        type=whole_number(MULTIPLE),
        default=544,
        metavar="PIXELS",
        help="side of a tile, about: an image is cut into equal ones (default 544)",
    )
    parser.add_argument(
        "--least",
        type=whole_number(MULTIPLE),
        default=352,
        metavar="PIXELS",
        help="copies whose shorter side is below this are left out (default 352)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Makes the set; `errors.run` defines how failures end."""
    args = build_parser().parse_args(argv)
    if max(args.sizes) > 1:
        raise UserError(
            f"--sizes: got {max(args.sizes):g}, expected at most 1: enlarged copies have no detail to learn"
        )
    images, out = Path(args.images), Path(args.out)
    if not images.is_dir():
        raise UserError(f"--images {images}: there is no such folder: give the folder of the HR images")
    if out.resolve().is_relative_to(images.resolve()) or images.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out {out}: lies in --images or around it: give a folder beside it")
    if out.is_dir() and list_images(out):
        raise UserError(f"--out {out}: holds images already: give a new folder, or delete this one if it was made so")
    paths = list_images(images)
    if not paths:
        raise UserError(f"--images {images}: holds no images: give the folder of the HR images")
    stems = [path.stem for path in paths]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise UserError(f"--images {images}: has several images called {min(twice)}: rename them, or make two sets")

    def cut(path: Path) -> None:
        for name, pixels in subimages(read_image(path), args.sizes, tile=args.tile, least=args.least):
            write_out(out / f"{path.stem}_{name}.png", pixels)

    for_each(cut, paths, n_threads=usable_cores(), title="subimages")
    print(f"{out}: {len(list_images(out)):,} subimages of {len(paths):,} images")


def subimages(hr: np.ndarray, sizes: list[float], *, tile: int, least: int) -> list[tuple[str, np.ndarray]]:
    """The tiles of an image at several sizes.

    Args:
        hr: uint8 (H, W, C).
        sizes: factors, at most 1, by which it is shrunk (Lanczos, antialiased).
        tile: about the side of a tile; the image is cut into equal ones, whose sides are multiples of 12.
        least: shrunk copies whose shorter side is below this are left out; so is an image of less than 12 pixels.

    Returns:
        (name, uint8 (h, w, C)) of each; the name is `<percent>_<row>_<column>`.
    """
    found = []
    for size in sizes:
        height, width = (round(size * side) for side in hr.shape[:2])
        if min(height, width) < (least if size < 1 else MULTIPLE):
            continue
        copy = hr if size == 1 else shrink(hr, height, width)
        rows, columns = (max(1, round(side / tile)) for side in (height, width))
        step_y, step_x = height // rows, width // columns
        for row, column in np.ndindex(rows, columns):
            top, left = row * step_y, column * step_x
            bottom, right = top + step_y // MULTIPLE * MULTIPLE, left + step_x // MULTIPLE * MULTIPLE
            found.append((f"{100 * size:g}_{row}_{column}", copy[top:bottom, left:right]))
    return found


def shrink(hr: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, C) -> uint8 (height, width, C), antialiased."""
    image = Image.fromarray(hr[..., 0] if hr.shape[2] == 1 else hr)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return pixels.reshape(height, width, -1)


if __name__ == "__main__":
    run(main)
