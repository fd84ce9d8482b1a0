"""A figure of what --degradation makes of a photograph.

    python -m studies.degrade --image ../photo.png --scale 2 --out ../experiment/degradations.png

A row for each of three seeds, a column for each degradation: the middle of the image, LR pixels enlarged as they are.
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
    parser = Parser(prog="studies.degrade", description="A figure of degraded LR images.")
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
    """Draws the figure; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    if not args.out.lower().endswith(".png"):
        raise UserError(f"--out {args.out}: expected a PNG file: give a name that ends in .png")
    hr = read_image(Path(args.image))
    if min(hr.shape[:2]) < args.scale:
        raise UserError(f"{args.image}: {hr.shape[1]}x{hr.shape[0]} pixels are too few for x{args.scale}")
    write_bytes(Path(args.out), figures.crops([row(hr, args, seed) for seed in SEEDS]))
    print(args.out)


def row(hr: np.ndarray, args, seed: int) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """The crops of one seed, with their labels."""
    lr = downscale(hr, args.scale)
    hr = hr[: args.scale * lr.shape[0], : args.scale * lr.shape[1]]
    images = {"HR": hr}
    for text in args.degradations:
        made = Degradation.parse(text).whole(lr, hr, args.scale, np.random.default_rng(seed))
        images[text] = np.kron(made, np.ones((args.scale, args.scale, 1), np.uint8))
    top, left = (max(0, (side - args.size) // 2) // args.scale * args.scale for side in hr.shape[:2])
    window = slice(top, top + args.size), slice(left, left + args.size)
    crops = [
        (label, np.broadcast_to(pixels[window], (*pixels[window].shape[:2], 3))) for label, pixels in images.items()
    ]
    return f"seed {seed}", crops


if __name__ == "__main__":
    run(main)
