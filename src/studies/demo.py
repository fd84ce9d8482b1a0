"""The demo's two ends: a small data set out of scikit-image's photographs, and a table and pictures of what came out.

    python -m studies.demo data      photographs -> dataset/Photos, in DIV2K's shape
    python -m studies.demo report    scores and pictures of what was trained and folded

`scripts/demo.sh` shows the whole way between them.
"""

from pathlib import Path

import numpy as np
import skimage
import torch

from data import build_test_sets, resize
from data.image import read_image, write_png
from evaluation.evaluate import evaluate, protocol
from evaluation.metrics import psnr_ssim
from model import cffb
from model.checkpoint import rebuild, unpack
from option import build_parser as training_parser
from option import parse_args
from reporting import figures
from reporting.tables import read_csv
from runtime.errors import UserError, run
from runtime.files import write_bytes
from runtime.flags import Parser, path_flag
from runtime.hardware import choose_device
from runtime.tensor_files import load_tensors

NAME = "Photos"
# Photographs that the scikit-image package itself ships; the held-out ones are tested, never trained on.
TRAINING = ("brick", "camera", "coins", "grass", "gravel", "hubble_deep_field", "ihc", "moon", "motorcycle_left")
TRAINING += ("retina", "rocket")
HELD_OUT = ("astronaut", "chelsea", "coffee")

# What each picture of the report shows of a held-out photograph: (left, top) in HR pixels, and the side.
CROPS = {"12_astronaut": (170, 60), "13_chelsea": (120, 80), "14_coffee": (320, 220)}
CROP_SIDE = 110


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="studies.demo", description="Data for the demo, and its report.")
    default = training_parser().get_default
    parser.add_argument(
        "--dir_data", default=default("dir_data"), metavar="DIR", type=path_flag, help="folder of the data sets"
    )
    parser.add_argument(
        "--dir_experiment",
        default=default("dir_experiment"),
        metavar="DIR",
        type=path_flag,
        help="folder of experiments",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="make the data set Photos")
    report = commands.add_parser("report", help="table and pictures of the trained network beside the released one")
    report.add_argument(
        "--pre_train", required=True, metavar="FILE", type=path_flag, help="checkpoint in training form"
    )
    report.add_argument("--folded", required=True, metavar="NAME", help="experiment that tested the folded file")
    report.add_argument(
        "--released", required=True, metavar="NAME", help="experiment that tested the released network of this scale"
    )
    report.add_argument("--out", required=True, metavar="FILE", type=path_flag, help="PNG file for the crops")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs one of the two commands; `errors.run` says how failures end."""
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
    """Prints mean scores of bicubic, the network, the folded network and the released one, and draws the crops.

    Raises:
        UserError: if the checkpoint is missing or the test has not been run.
    """
    cffb.build_when_needed()
    device = choose_device(cpu=False, n_gpus=1, asked=False)  # the one that main.py took for the folded file
    network = rebuild(unpack(load_tensors(Path(args.pre_train)), args.pre_train)).to(device)
    scale = network.hyperparameters["scale"]
    first = len(TRAINING) + 1
    options = parse_args(
        [
            *("--test_only", "--pre_train", "-", "--dir_data", args.dir_data, "--data_test", NAME),
            *("--scale", str(scale), "--data_range", f"1-{len(TRAINING)}/{first}-{first + len(HELD_OUT) - 1}"),
        ]
    )
    test_set = build_test_sets(options)[0]
    # main.py folds before it tests; here the training form itself is run, so that the table compares the two.
    rows = evaluate(network, test_set, device=device, rgb_range=network.hyperparameters["rgb_range"]).rows
    trained = {row["image"]: (row["PSNR"], row["SSIM"]) for row in rows}
    folded, released = (Path(args.dir_experiment) / name for name in (args.folded, args.released))
    scores = {folder: read_scores(folder) for folder in (folded, released)}
    bicubic, pictures = {}, []
    for lr, hr, name in test_set:
        lr, hr_pixels = (image.permute(1, 2, 0).numpy() for image in (lr, hr))
        enlarged = resize.upscale(lr, scale)
        bicubic[name] = psnr_ssim(torch.from_numpy(enlarged).permute(2, 0, 1), hr, scale)
        images = {
            "LR": np.kron(lr, np.ones((scale, scale, 1), np.uint8)),
            f"bicubic\n{score(bicubic[name])}": enlarged,
            f"the demo's KRGN\n{score(scores[folded][name])}": read_image(result(folded, name, scale)),
            f"KRGN_x{scale}\n{score(scores[released][name])}": read_image(result(released, name, scale)),
            "HR": hr_pixels,
        }
        left, top = CROPS[name]
        window = (slice(top, top + CROP_SIDE), slice(left, left + CROP_SIDE))
        pictures.append((name.split("_")[1], [(label, pixels[window]) for label, pixels in images.items()]))
    write_bytes(Path(args.out), figures.crops(pictures))

    print(f"\n{NAME}, {len(test_set)} held-out photographs, x{scale} ({protocol(options)})\n")
    print(f"  {'':22}{'PSNR (dB)':>12}{'SSIM':>10}")
    methods = {"bicubic": bicubic, "KRGN, training form": trained, "KRGN, folded": scores[folded]}
    for label, rows in (methods | {f"KRGN_x{scale}, released": scores[released]}).items():
        psnr, ssim = np.mean(list(rows.values()), axis=0)
        print(f"  {label:22}{psnr:12.4f}{ssim:10.4f}")
    print(f"\n  crops            {args.out}")


def result(folder: Path, name: str, scale: int) -> Path:
    """The SR image that a test with --save_results wrote."""
    return folder / f"results-{NAME}" / f"{name}_x{scale}_SR.png"


def score(psnr_and_ssim: tuple[float, float]) -> str:
    """As under the pictures of papers."""
    return f"{psnr_and_ssim[0]:.2f} dB / {psnr_and_ssim[1]:.4f}"


def read_scores(folder: Path) -> dict[str, tuple[float, float]]:
    """(PSNR, SSIM) of each image, from the experiment in which `main.py --test_only` wrote them."""
    path = folder / f"scores-{NAME}.csv"
    try:
        rows = read_csv(path, ("image", "PSNR", "SSIM"))
        return {row["image"]: (float(row["PSNR"]), float(row["SSIM"])) for row in rows}
    except (UserError, ValueError) as error:
        raise UserError(f"{path}: {error}: run the tests first, as scripts/demo.sh does") from None


if __name__ == "__main__":
    run(main)
