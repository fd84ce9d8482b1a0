"""The demo's two ends: a small data set out of scikit-image's photographs, and a table and pictures of what came out.

    python demo.py data      photographs -> dataset/Photos, in DIV2K's shape
    python demo.py report    scores and pictures of what was trained and folded

`scripts/demo.sh` shows the whole way between them.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import skimage
import torch

import figures
from data import build_test_sets, resize
from data.image import read_image, write_png
from errors import UserError, run
from evaluate import protocol
from metrics import psnr_ssim
from option import build_parser as training_parser
from option import parse_args
from utility import write_bytes

NAME = "Photos"
# Photographs that the scikit-image package itself ships; the held-out ones are tested, never trained on.
TRAINING = ("brick", "camera", "coins", "grass", "gravel", "hubble_deep_field", "ihc", "moon", "motorcycle_left")
TRAINING += ("retina", "rocket")
HELD_OUT = ("astronaut", "chelsea", "coffee")

# What each picture of the report shows of a held-out photograph: (left, top) in HR pixels, and the side.
CROPS = {"12_astronaut": (170, 60), "13_chelsea": (120, 80), "14_coffee": (225, 20)}
CROP_SIDE = 110


def build_parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    parser = argparse.ArgumentParser(prog="demo.py", description="Data for the demo, and its report.")
    default = training_parser().get_default
    parser.add_argument("--dir_data", default=default("dir_data"), metavar="DIR", help="folder of the data sets")
    parser.add_argument(
        "--dir_experiment", default=default("dir_experiment"), metavar="DIR", help="folder of experiments"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="make the data set Photos")
    report = commands.add_parser("report", help="table and pictures of a test of a trained and of its folded network")
    report.add_argument("--trained", required=True, metavar="NAME", help="experiment that tested the training form")
    report.add_argument("--folded", required=True, metavar="NAME", help="experiment that tested the folded form")
    report.add_argument("--scale", type=int, default=2)
    report.add_argument("--out", required=True, metavar="FILE", help="PNG file for the crops")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs one of the two commands; `utility.run` says how failures end."""
    args = build_parser().parse_args(argv)
    if args.command == "data":
        make_data(Path(args.dir_data) / NAME)
    else:
        make_report(args)


def make_data(root: Path) -> None:
    """Writes the photographs as <root>/Photos_train_HR/NN_name.png, held-out ones last; those there already stay.

    Raises:
        UserError: if scikit-image does not ship one of them, or the folder cannot be written.
    """
    folder = Path(skimage.__file__).parent / "data"
    shipped = {path.stem: path for path in folder.iterdir() if path.suffix in (".png", ".jpg")}
    for number, name in enumerate(TRAINING + HELD_OUT, start=1):
        path = root / f"{NAME}_train_HR" / f"{number:02}_{name}.png"
        if path.exists():
            continue
        if name not in shipped:
            raise UserError(f"scikit-image ships no {name}: install the version that requirements.txt names")
        try:
            write_png(path, read_image(shipped[name]))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): name another --dir_data") from None
    print(f"{root}: {len(TRAINING)} photographs to train on, {len(HELD_OUT)} held out")


def make_report(args) -> None:
    """Prints mean scores of bicubic, the network and the folded network, and draws the crops.

    Raises:
        UserError: if one of the two tests has not been run.
    """
    first = len(TRAINING) + 1
    options = parse_args(
        [
            *("--test_only", "--pre_train", "-", "--dir_data", args.dir_data, "--data_test", NAME),
            *("--scale", str(args.scale), "--data_range", f"1-{len(TRAINING)}/{first}-{first + len(HELD_OUT) - 1}"),
        ]
    )
    test_set = build_test_sets(options)[0]
    experiments = Path(args.dir_experiment)
    rows, pictures = [], []
    for lr, hr, name in test_set:
        bicubic = resize.upscale(lr.permute(1, 2, 0).numpy(), args.scale)
        rows.append(psnr_ssim(torch.from_numpy(bicubic).permute(2, 0, 1), hr, args.scale))
        sr_path = experiments / args.folded / f"results-{NAME}" / f"{name}_x{args.scale}_SR.png"
        sr = read_image(sr_path)
        nearest = np.kron(lr.permute(1, 2, 0).numpy(), np.ones((args.scale, args.scale, 1), np.uint8))
        left, top = CROPS[name]
        images = {"LR": nearest, "bicubic": bicubic, "KRGN (folded)": sr, "HR": hr.permute(1, 2, 0).numpy()}
        window = (slice(top, top + CROP_SIDE), slice(left, left + CROP_SIDE))
        pictures.append((name.split("_")[1], [(label, pixels[window]) for label, pixels in images.items()]))

    table = {
        "bicubic": np.mean(rows, axis=0),
        "KRGN, training form": read_scores(experiments / args.trained / f"scores-{NAME}.csv"),
        "KRGN, folded": read_scores(experiments / args.folded / f"scores-{NAME}.csv"),
    }
    write_bytes(Path(args.out), figures.crops(pictures))
    print(f"\n{NAME}, {len(test_set)} held-out photographs, x{args.scale} ({protocol(options)})\n")
    print(f"  {'':22}{'PSNR (dB)':>12}{'SSIM':>10}")
    for label, (psnr, ssim) in table.items():
        print(f"  {label:22}{psnr:12.4f}{ssim:10.4f}")
    print(f"\n  crops            {args.out}")


def read_scores(path: Path) -> np.ndarray:
    """Mean (PSNR, SSIM) of a scores-<Set>.csv that `main.py --test_only` wrote."""
    try:
        with open(path, newline="") as file:
            return np.mean([(float(row["PSNR"]), float(row["SSIM"])) for row in csv.DictReader(file)], axis=0)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file: run the tests first, as scripts/demo.sh does") from None


if __name__ == "__main__":
    run(main)
