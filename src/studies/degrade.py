"""A figure of an image degraded in each way of --degradation.

    python -m studies.degrade --image ../photo.png --scale 2 --out ../experiment/degradations.png

It has a row for each of three seeds and a column for each degradation: the middle crop, LR pixels enlarged as squares.
"""

from pathlib import Path

import numpy as np

from data.degradation import Degradation
from data.image import read_image
from data.resize import downscale
from reporting import figures
from runtime.errors import UserError, run
from runtime.files import write_bytes
from runtime.flags import Parser, degradation, path_flag, scale_factor, whole_number

SEEDS = (1, 2, 3)


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="studies.degrade",
        description="A figure of degraded LR images.",
        examples=(
            "python -m studies.degrade --image ../imgs/demo_crops.png --out ../experiment/degraded.png",
            "python -m studies.degrade --image ../imgs/demo_crops.png --out ../experiment/degradations.png",
            "python -m studies.degrade --image ../imgs/demo_crops.png "
            "--degradations bicubic blur2+bicubic --out ../experiment/blurred.png",
        ),
    )
    parser.add_argument("--image", required=True, metavar="FILE", type=path_flag, help="HR image")
    parser.add_argument("--out", required=True, metavar="FILE", type=path_flag, help="PNG file to write")
    parser.add_argument("--scale", type=scale_factor, default=2, metavar="S", help="downscaling factor (default 2)")
    parser.add_argument(
        "--degradations",
        type=degradation,
        nargs="+",
        default=["bicubic", "bicubic+jpeg20", "blur+bicubic", "blur+bicubic+jpeg20"],
        metavar="D",
        help="as main.py --degradation takes them (default: one of each kind)",
    )
    parser.add_argument(
        "--size",
        type=whole_number(8),
        default=120,
        metavar="PIXELS",
        help="side of the crop in HR pixels (default 120)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Draws the figure; `errors.run` defines how failures end."""
    args = build_parser().parse_args(argv)
    if not args.out.lower().endswith(".png"):
        raise UserError(f"--out {args.out}: expected a PNG file: give a name that ends in .png")
    hr = read_image(Path(args.image))
    if min(hr.shape[:2]) < args.scale:
        raise UserError(
            f"{args.image}: has {hr.shape[1]}x{hr.shape[0]} pixels, expected at least {args.scale}x{args.scale}: "
            "give a larger image"
        )
    rows = [row(hr, scale=args.scale, degradations=args.degradations, size=args.size, seed=seed) for seed in SEEDS]
    write_bytes(Path(args.out), figures.crops(rows))
    print(args.out)


def row(
    hr: np.ndarray, *, scale: int, degradations: list[str], size: int, seed: int
) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """A row as `figures.crops` takes it.

    Args:
        hr: uint8 (H, W, C).
        degradations: as --degradation takes them.
        size: side of the crop in HR pixels.
    """
    lr = downscale(hr, scale)
    hr = hr[: scale * lr.shape[0], : scale * lr.shape[1]]
    images = {"HR": hr}
    for text in degradations:
        degraded = Degradation.parse(text).whole(lr, hr, scale, np.random.default_rng(seed))
        images[text] = np.kron(degraded, np.ones((scale, scale, 1), np.uint8))
    top, left = (max(0, (side - size) // 2) // scale * scale for side in hr.shape[:2])
    window = slice(top, top + size), slice(left, left + size)
    crops = [
        (label, np.broadcast_to(pixels[window], (*pixels[window].shape[:2], 3))) for label, pixels in images.items()
    ]
    return f"seed {seed}", crops


if __name__ == "__main__":
    run(main)
