"""The first and the last step of the demo: its data set, and a table and pictures of the results.

    python -m studies.demo data      scikit-image's photographs -> dataset/Photos, in DIV2K's shape
    python -m studies.demo report    scores and pictures of what was trained and folded

`scripts/demo.sh` runs the whole demo.
"""

from pathlib import Path

import numpy as np
import skimage

from data import resize
from data.image import read_image, write_png
from data.sets import Opening, open_test_sets
from data.testset import TestSet
from evaluation.evaluate import evaluate
from evaluation.metrics import Protocol, Score, psnr_ssim
from evaluation.results import read_results
from model import cffb
from model.checkpoint import rebuild, unpack
from model.weights import load_tensors
from option import build_parser as training_parser
from reporting import figures
from reporting.comparison import mean_table, to_tensor
from reporting.tables import as_text
from runtime.errors import UserError, run
from runtime.files import write_bytes
from runtime.flags import Parser, path_flag
from runtime.hardware import choose_device

NAME = "Photos"
# Photographs in the scikit-image package; the held-out ones are tested, never trained on.
TRAINING = ("brick", "camera", "coins", "grass", "gravel", "hubble_deep_field", "ihc", "moon", "motorcycle_left")
TRAINING += ("retina", "rocket")
HELD_OUT = ("astronaut", "chelsea", "coffee")

# The square of each held-out photograph that the report shows: (left, top) and side in HR pixels.
CROPS = {"12_astronaut": (170, 60), "13_chelsea": (120, 80), "14_coffee": (320, 220)}
CROP_SIDE = 110


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="studies.demo",
        description="Data for the demo, and its report.",
        examples=(
            "python -m studies.demo data",
            "python -m studies.demo report --pre_train ../experiment/demo/model/model_best.pt "
            "--folded demo_folded --released demo_released --out ../experiment/demo/crops.png",
        ),
    )
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
        folders = [Path(args.dir_experiment) / name for name in (args.folded, args.released)]
        make_report(Path(args.dir_data), Path(args.pre_train), *folders, Path(args.out))


def make_data(root: Path) -> None:
    """Writes the photographs as <root>/Photos_train_HR/NN_name.png, held-out ones last; existing files stay.

    Raises:
        UserError: if scikit-image does not have one of them, or the folder cannot be written.
    """
    folder = Path(skimage.__file__).parent / "data"
    shipped = {path.stem: path for path in folder.iterdir() if path.suffix in (".png", ".jpg")}
    for number, name in enumerate(TRAINING + HELD_OUT, start=1):
        path = root / f"{NAME}_train_HR" / f"{number:02}_{name}.png"
        if path.exists():
            continue
        if name not in shipped:
            raise UserError(f"scikit-image has no photograph {name}: install the version in requirements.txt")
        try:
            write_png(path, read_image(shipped[name]))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): choose another --dir_data") from None
    print(f"{root}: {len(TRAINING)} photographs to train on, {len(HELD_OUT)} held out")


def make_report(dir_data: Path, pre_train: Path, folded: Path, released: Path, out: Path) -> None:
    """Prints mean scores of bicubic, the network, the folded network and the released one, and draws the crops.

    Args:
        pre_train: checkpoint of the network in training form.
        folded, released: experiments that tested the folded file and the released network.
        out: PNG file for the crops.

    Raises:
        UserError: if the checkpoint is missing or a test has not been run.
    """
    cffb.build_when_needed()
    device = choose_device(cpu=False, n_gpus=1, asked=False)  # the one that main.py took for the folded file
    network = rebuild(unpack(load_tensors(pre_train), str(pre_train))).to(device)
    scale = network.hyperparameters["scale"]
    test_set = held_out(dir_data, scale)
    # main.py folds before it tests; here the training form itself is run, so that the table compares the two.
    rows = evaluate(network, test_set, device=device, rgb_range=network.hyperparameters["rgb_range"]).rows
    scores = {
        "bicubic": {},
        "KRGN, training form": {row["image"]: Score(row["PSNR"], row["SSIM"]) for row in rows},
        "KRGN, folded": read_scores(folded),
        f"KRGN_x{scale}, released": read_scores(released),
    }
    pictures = []
    for lr, hr, name in test_set:
        lr, hr_pixels = (image.permute(1, 2, 0).numpy() for image in (lr, hr))
        enlarged = resize.upscale(lr, scale)
        scores["bicubic"][name] = psnr_ssim(to_tensor(enlarged), hr, scale)
        images = {
            "LR": np.kron(lr, np.ones((scale, scale, 1), np.uint8)),
            f"bicubic\n{caption(scores['bicubic'][name])}": enlarged,
            f"the demo's KRGN\n{caption(scores['KRGN, folded'][name])}": read_image(result(folded, name, scale)),
            f"KRGN_x{scale}\n{caption(scores[f'KRGN_x{scale}, released'][name])}": read_image(
                result(released, name, scale)
            ),
            "HR": hr_pixels,
        }
        left, top = CROPS[name]
        window = (slice(top, top + CROP_SIDE), slice(left, left + CROP_SIDE))
        pictures.append((name.split("_")[1], [(label, pixels[window]) for label, pixels in images.items()]))
    write_bytes(out, figures.crops(pictures))
    print("\n" + as_text(score_table(scores, test_set)))
    print(f"\n  crops            {out}")


def held_out(dir_data: Path, scale: int) -> TestSet:
    """The photographs that are tested."""
    first = len(TRAINING) + 1
    images = (first, first + len(HELD_OUT) - 1)
    return open_test_sets([NAME], dir_data=dir_data.resolve(), opening=Opening(scale), images=images)[0]


def score_table(scores: dict[str, dict[str, Score]], test_set: TestSet) -> dict:
    """Mean scores of each method, with four digits, because the training form and its fold differ little."""
    names = [pair.name for pair in test_set.pairs]
    table = mean_table(
        {(NAME, name): {method: of[name] for method, of in scores.items()} for name in names},
        title=f"{test_set.label}, {len(names)} held-out photographs",
        notes=[str(Protocol(crop_border=test_set.scale))],
    )
    return table | {"rows": [[method, *(f"{mean:.4f}" for mean in means)] for method, *means in table["rows"]]}


def result(folder: Path, name: str, scale: int) -> Path:
    """The SR image that a test with --save_results wrote."""
    return folder / f"results-{NAME}" / f"{name}_x{scale}_SR.png"


def caption(score: Score) -> str:
    """As under the pictures of papers."""
    return f"{score.psnr:.2f} dB / {score.ssim:.4f}"


def read_scores(folder: Path) -> dict[str, Score]:
    """Scores of each image, from the experiment in which `main.py --test_only` wrote them.

    Raises:
        UserError: if the set was not tested there.
    """
    results = read_results(folder)
    if NAME not in results:
        raise UserError(f"{folder}: has no scores-{NAME}.json: run the tests first, as scripts/demo.sh does")
    return results[NAME].by_image


if __name__ == "__main__":
    run(main)
