"""Enlarges pictures: photographs, drawings, whole folders of them.

    python upscale.py photo.jpg
    python upscale.py ~/Pictures/holiday scan.tif --out ~/Pictures/large --compare

photo.jpg becomes photo_x4.png beside it; the pictures in the folder `holiday`, and in the folders below it, become
holiday_x4/…_x4.png beside that. --out names another folder. Nothing is ever written over an input. Pictures that are
there already are skipped, so the same command goes on where a stopped one ended.

Any format that Pillow reads is read. Gray stays gray, 16 bits stay 16 bits, alpha is enlarged bicubically. The EXIF
orientation is applied; colour profile and EXIF are kept. A picture that does not fit into memory runs in tiles, with
the same result.
"""

import os
from logging import Logger
from pathlib import Path

import torch

from data.encode import QUALITY
from data.targets import SAME, Plan, folder_of, plan
from evaluation.runner import ImageRunner
from evaluation.upscaling import Outcome, upscale_all
from model import cffb, describe
from model.checkpoint import model_of, rebuild, unpack
from model.recalibration import fold
from model.weights import load_tensors
from reporting.before_after import make_before_after
from reporting.output import refuse_foreign
from runtime.errors import Interrupted, UserError, printable, run
from runtime.flags import Parser, path_flag, weights_file, weights_name, whole_number
from runtime.hardware import choose_device, keep_memory
from runtime.log import start_log


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="upscale.py",
        description="Enlarge pictures with a network: photo.jpg becomes photo_x4.png beside it, the folder pictures "
        "becomes pictures_x4.",
        examples=(
            "python upscale.py photo.jpg",
            "python upscale.py ~/Pictures/holiday --out ~/Pictures/large --compare",
        ),
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="PHOTO|FOLDER",
        type=path_flag,
        help="pictures of any format that Pillow reads, and folders of them, with the folders below",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path_flag,
        help="folder for the enlarged pictures; folders below an input keep their names (default: beside the input)",
    )
    parser.add_argument(
        "--model",
        default="KRGN_x4",
        metavar="NAME|FILE",
        help="KRGN_x2, KRGN_x3, KRGN_x4, or a .pt or .safetensors file of weights, which states its scale "
        "(default KRGN_x4)",
    )
    parser.add_argument(
        "--self_ensemble",
        action="store_true",
        help="average over eight flips and rotations: slightly better, eight times slower",
    )
    parser.add_argument(
        "--tile",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="run in tiles of N pixels a side, with the same result; 0: only where a picture does not fit into memory "
        "(default 0)",
    )
    parser.add_argument(
        "--format",
        choices=("png", "jpg", "webp", SAME),
        default="png",
        help=f"format of the files; jpg and webp have 8 bits and quality {QUALITY}; same keeps JPEG, PNG, WebP and "
        "TIFF, all others become PNG (default png)",
    )
    parser.add_argument("--overwrite", action="store_true", help="make pictures again that are there already")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also write a page that shows each picture beside bicubic enlargement: compare/index.html",
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Enlarges the pictures; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    log = start_log()
    inputs, out = [Path(given) for given in args.inputs], Path(args.out) if args.out else None
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {printable(out)}: is a file, expected a folder, which is made where it is missing")
    cffb.build_when_needed()
    keep_memory()
    network, name = load(args.model)
    config = network.hyperparameters
    found = plan(inputs, out=out, scale=config["scale"], format=args.format, overwrite=args.overwrite)
    page = page_folder(inputs[0], out, config["scale"])
    if args.compare:
        refuse_foreign(page)
    device = choose_device(cpu=args.cpu, n_gpus=1, asked=False)
    log.info("%s", describe(network, name))
    if found.skipped:
        log.info("%s", found.skipped)
    runner = ImageRunner(
        network.to(device, memory_format=torch.channels_last),
        device=device,
        scale=config["scale"],
        n_colors=config["n_colors"],
        rgb_range=config["rgb_range"],
        tile=args.tile,
        self_ensemble=args.self_ensemble,
    )
    try:
        outcome = upscale_all(runner, found.jobs, overwrite=args.overwrite)
    except Interrupted:
        log.info("stopped: the same command goes on with the pictures that are left")
        raise
    report(log, outcome, found)
    shown = [job for job in found.jobs if job.source not in outcome.failed]
    if args.compare and shown:
        pairs = [(job.source, job.target) for job in shown]
        make_before_after(pairs, page, scale=runner.scale, method=weights_name(weights_file(args.model)))
    fail_if_any(log, outcome)


def load(model: str) -> tuple[torch.nn.Module, str]:
    """The network of a released name or a file, folded and in eval mode, and the name of its architecture.

    Raises:
        UserError: if there is no such file, or it is of no known network.
    """
    path = weights_file(model)
    checkpoint = unpack(load_tensors(Path(path)), path)
    return fold(rebuild(checkpoint)).eval(), model_of(checkpoint)


def page_folder(given: Path, out: Path | None, scale: int) -> Path:
    """The folder of --compare's page: compare/ in the folder of the results; NAME_x4_compare/ beside a picture."""
    if out is None and not given.is_dir():
        return given.with_name(f"{given.stem}_x{scale}_compare")
    return folder_of(given, out, scale) / "compare"


def report(log: Logger, outcome: Outcome, found: Plan) -> None:
    """Says what was done, and where it is."""
    done, present = len(outcome.done), len(outcome.present)
    if done:
        rate = outcome.megapixels / outcome.seconds
        log.info(
            "%d %s of %.2f megapixels enlarged in %.1f s, %.3g megapixels a second",
            *(done, "pictures" if done > 1 else "picture", outcome.megapixels, outcome.seconds, rate),
        )
    if present:
        log.info("%d %s already there and skipped (--overwrite makes them again)", present, _were(present))
    if places := {os.path.abspath(job.target.parent) for job in (*outcome.done, *outcome.present)}:
        log.info("results are in %s", os.path.commonpath(places))


def fail_if_any(log: Logger, outcome: Outcome) -> None:
    """Names the pictures that failed; UserError if there are any, so that the exit status is 1."""
    for message in outcome.failed.values():
        log.info("failed: %s", message)
    if count := len(outcome.failed):
        raise UserError(
            f"{count} {'pictures' if count > 1 else 'picture'} could not be enlarged, named above: replace or remove "
            f"{'them' if count > 1 else 'it'} and give the same command again; the others are done"
        )


def _were(count: int) -> str:
    return "pictures were" if count > 1 else "picture was"


if __name__ == "__main__":
    run(main)
