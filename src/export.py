"""From a checkpoint to files that deploy: folded, in several forms, each compared with torch before it is kept.

    python export.py --pre_train ../experiment/my_krgn_x4/model/model_best.pt --out ../experiment/my_krgn_x4/export
    python export.py --check ../experiment/my_krgn_x4/export

Always written: <model>_x<scale>.safetensors, which says in its metadata all it takes to rebuild the network, and
export.json, with what was measured. `--formats` names more forms (`formats.py`). A file that misses its tolerance is
not written.
"""

import argparse
import json
import logging
import re
import tempfile
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import skimage
import torch
from torch import nn
from tqdm import tqdm

from data import resize
from data.color import to_tensor
from data.image import list_images, read_image
from deploy import formats
from deploy.fold import comparison_images, describe_input, write_folded
from deploy.formats import FORMATS, Runner, Use
from evaluation.metrics import psnr_ssim, quantise
from model import count_parameters
from model.checkpoint import model_of, rebuild, unpack
from option import Parser, number, path_flag, weights_file, whole_number
from runtime.errors import UserError, printable, run
from runtime.files import digest, read_json, write_bytes
from runtime.hardware import timed
from runtime.log import start_log
from runtime.provenance import git_commit
from runtime.tensor_files import load_tensors

log = logging.getLogger("krgn")

REPORT = "export.json"
BEGUN = "begun"  # in the report, while an export runs: the files that it may write
# Photographs that scikit-image ships; quantisation is calibrated on some, and every form's PSNR taken on the others.
CALIBRATION = ("rocket", "motorcycle_left", "ihc", "brick", "grass", "gravel")
TEST = ("astronaut", "chelsea", "coffee")
TIMED = 96  # LR pixels of the sides of the image that is timed
SIDE = 192  # HR pixels of the part of each photograph that is used


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="export.py", description="Fold a checkpoint, and write it in forms that deploy.")
    parser.add_argument("--pre_train", type=weights_file, metavar="FILE", help="checkpoint to fold, or KRGN_x4")
    parser.add_argument("--out", metavar="DIR", type=path_flag, help="folder for the files")
    parser.add_argument(
        "--formats",
        type=_formats,
        default=("pt",),
        metavar="A,B",
        help=f"forms beside safetensors, of {', '.join(FORMATS)}, or all (default pt)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        type=path_flag,
        help="HR images: every second one for the PSNR, the others to calibrate int8 (default: scikit-image's)",
    )
    parser.add_argument(
        "--dilation", type=whole_number(1), metavar="N", help="for a bare state dict, which does not say it (default 3)"
    )
    parser.add_argument(
        "--res_scale",
        type=number(above=0),
        metavar="F",
        help="likewise, of an EDSR: 0.1 for the full network (default 1)",
    )
    parser.add_argument(
        "--check",
        metavar="DIR",
        type=path_flag,
        help="compare again what is in a folder that export.py made. An exported program (.pt2, .onnx, ncnn) is a "
        "program: run none of a source that you do not trust; hashes in its folder say nothing about where it is from",
    )
    return parser


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for name in text.split(",") if name not in ("safetensors", "")))
    names = tuple(FORMATS) if names == ("all",) else names
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected safetensors, {', '.join(FORMATS)}, or all")
    return names


def main(argv: list[str] | None = None) -> None:
    """Exports or checks; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    start_log()
    if args.check:
        check(Path(args.check))
    elif args.pre_train and args.out:
        export(args)
    else:
        raise UserError("give --pre_train FILE and --out DIR to export, or --check DIR")


def export(args) -> None:
    """Writes the files of one checkpoint, and the report.

    Raises:
        UserError: for files of others in the way, a wrong fold, missing packages; and, at the end, if a form missed its
            tolerance.
    """
    for name in args.formats:
        formats.require(name)
    source, out = Path(args.pre_train), Path(args.out)
    checkpoint = unpack(load_tensors(source), str(source))
    unseen = {"dilation": args.dilation, "res_scale": args.res_scale}
    trained = rebuild(checkpoint, **unseen).eval()
    model, scale = model_of(checkpoint), trained.hyperparameters["scale"]
    stem = f"{model}_x{scale}"
    refuse_foreign(out, stem)
    calibration, test = photographs(args.images, trained.hyperparameters)

    target = out / f"{stem}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        checked = Path(folder) / target.name
        deviation = write_folded(source, checked, **unseen)
        announce(out, stem)
        write_bytes(target, checked.read_bytes())
    network = rebuild(unpack(load_tensors(target), str(target))).eval()
    form = f", {count_parameters(trained):,} in training form" if checkpoint.recalibrated else ""
    said = f"{count_parameters(network):,} parameters{form}"
    log.info("%s: %s; largest difference %.1e of 255", target, said, deviation)
    files = {target.name: entry("safetensors", [target], {"max_error": deviation, "psnr_change": 0.0})}
    missed, use = [], Use(compared(network)[1], describe_input(network), calibration)
    for name in tqdm(args.formats, desc="formats", disable=None, leave=False):
        made, measured, complaint = write_format(name, network, out, stem, use, test)
        if complaint:
            missed.append(complaint)
            log.warning("%s", complaint)
            continue
        files[made[0].name] = entry(name, made, measured)
        log.info(
            "%s: largest difference %.1e of 255, PSNR %+.4f dB on %d images; %.0f ms for %dx%d LR pixels (torch: %.0f)",
            made[0],
            measured["max_error"],
            measured["psnr_change"],
            len(test),
            measured["milliseconds"],
            TIMED,
            TIMED,
            measured["milliseconds_torch"],
        )
    report = {
        "source": str(source),
        "source_sha256": digest(source),
        "model": {"name": model, **network.hyperparameters},
        "input": describe_input(network),
        "mean_shifts": formats.for_deployment(network)[1],
        "opset": formats.OPSET,
        "ncnn": "blobs in0 and out0; the files state neither range nor layout, see input",
        "compared_at": [list(image.shape[2:]) for image in compared(network)],
        "test_images": [f"{image.shape[3]}x{image.shape[2]} LR" for image, _ in test],
        "git_commit": git_commit(),
        "versions": versions(),
        "files": files,
    }
    write_bytes(out / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    log.info("%s: what was measured", out / REPORT)
    if missed:
        raise UserError(f"not written: {'; '.join(missed)}")


def write_format(name: str, network: nn.Module, out: Path, stem: str, use: Use, test: list):
    """Writes one form into a temporary folder, compares it, and moves it to its place if it is within its tolerance.

    Returns:
        The files, what was measured, and why they were not kept, "" if they were.
    """
    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        made = [Path(folder) / f"{stem}{suffix}" for suffix in form.suffixes]
        form.write(network, made[0], use)
        reader = form.read(made[0], network.hyperparameters)
        measured = measure(network, reader, test) | latency(network, reader)
        complaint = verdict(name, measured) or too_slow(name, measured)
        targets = [out / path.name for path in made]
        if not complaint:
            for path, target in zip(made, targets, strict=True):
                write_bytes(target, path.read_bytes())
    return targets, measured, f"{targets[0].name} {complaint}" if complaint else ""


def verdict(name: str, measured: dict) -> str:
    """What is wrong with a form's figures, "" if nothing."""
    form = FORMATS[name]
    if form.tolerance is not None and not measured["max_error"] < form.tolerance:
        return f"differs by {measured['max_error']:.1e} of 255, allowed is {form.tolerance:.0e}"
    if not measured["psnr_change"] > -form.tolerance_db:
        return f"loses {-measured['psnr_change']:.3f} dB, allowed are {form.tolerance_db:g}"
    return ""


def too_slow(name: str, measured: dict) -> str:
    """Why a form that is made for speed is of no use here, "" if it is."""
    took, torch_took = measured["milliseconds"], measured["milliseconds_torch"]
    if not FORMATS[name].for_speed or took < torch_took:
        return ""
    return (
        f"takes {took:.0f} ms for {TIMED}x{TIMED} LR pixels where torch's float32 takes {torch_took:.0f}, and is off "
        f"by up to {measured['max_error']:.0f} of 255: it is of use only where it is faster"
    )


def latency(network: nn.Module, reader: Runner) -> dict:
    """{"milliseconds", "milliseconds_torch"} of a form and of torch in float32 for one image, the least of three runs,
    in turn."""
    shape = network.hyperparameters
    image = np.full((1, shape["n_colors"], TIMED, TIMED), shape["rgb_range"] / 2, np.float32)
    runs = {"milliseconds": reader, "milliseconds_torch": formats.torch_runner(network)}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(4):  # the first warms up
        for name, runner in runs.items():
            found[name].append(1000 * timed(partial(runner, image), torch.device("cpu")))
    return {name: round(min(times[1:]), 1) for name, times in found.items()}


def compared(network: nn.Module) -> list[torch.Tensor]:
    """The images of three sizes on which outputs are compared."""
    return comparison_images(network.hyperparameters["n_colors"], network.hyperparameters["rgb_range"])


def measure(network: nn.Module, reader: Runner, test: list[tuple[torch.Tensor, torch.Tensor]]) -> dict:
    """{"max_error": of the 0-255 range, "psnr": in dB, "psnr_change": against torch, in dB} of a form."""
    top, scale = network.hyperparameters["rgb_range"], network.hyperparameters["scale"]
    reference = formats.torch_runner(network)
    worst = 0.0
    for image in compared(network):
        found, expected = _of_one_shape(reader, reference, image.numpy())
        difference = np.abs(found - expected).max() * 255 / top
        worst = max(worst, float(difference) if np.isfinite(difference) else float("inf"))
    scores = []
    for lr, hr in test:
        image = (lr.float() * (top / 255)).numpy()
        pair = []
        for found in _of_one_shape(reader, reference, image):
            sr = torch.from_numpy(np.nan_to_num(found))[0]
            pair.append(psnr_ssim(quantise(sr, top), hr, scale)[0])
        scores.append(pair)
    psnr, expected = np.mean(scores, axis=0)
    return {"max_error": worst, "psnr": round(float(psnr), 4), "psnr_change": round(float(psnr - expected), 4)}


def _of_one_shape(reader: Runner, reference: Runner, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What both make of an image. UserError if the shapes differ."""
    found, expected = reader(image), reference(image)
    if found.shape != expected.shape:
        raise UserError(f"a file gives images of {found.shape}, expected {expected.shape}: export again")
    return found, expected


def photographs(folder: str | None, shape: dict):
    """LR images to calibrate on, as the network takes them, and (lr, hr) pairs to test on, uint8.

    Raises:
        UserError: if the folder holds less than two images that are large enough.
    """
    if folder:
        paths = list_images(Path(folder), nested=True) if Path(folder).is_dir() else []
        names = paths[1::2], paths[::2]
        if len(paths) < 2:
            raise UserError(f"--images {folder}: holds {len(paths)} images, at least 2 are needed")
    else:
        shipped = Path(skimage.__file__).parent / "data"
        names = ([next(shipped.glob(f"{name}.*")) for name in group] for group in (CALIBRATION, TEST))
    scale, side = shape["scale"], SIDE // shape["scale"] * shape["scale"]
    groups = []
    for paths in names:
        pairs = []
        for path in paths:
            pixels = read_image(path)
            top, left = ((length - side) // 2 for length in pixels.shape[:2])
            if min(top, left) < 0:
                raise UserError(f"{path}: {pixels.shape[1]}x{pixels.shape[0]} pixels are less than {side}: remove it")
            hr = pixels[top : top + side, left : left + side]
            lr = resize.downscale(hr, scale)
            pairs.append((to_tensor(lr, shape["n_colors"])[None], to_tensor(hr, shape["n_colors"])))
        groups.append(pairs)
    calibration, test = groups
    return [(lr.float() * (shape["rgb_range"] / 255)).numpy() for lr, _ in calibration], test


def entry(name: str, paths: list[Path], measured: dict) -> dict:
    """A file's part of the report."""
    return {
        "format": name,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in paths},
        **measured,
    }


def versions() -> dict[str, str]:
    """Of the packages that wrote and read the files."""
    found = {}
    for package in ("torch", "safetensors", "onnx", "onnxruntime", "onnxscript", "pnnx", "ncnn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def names_of(stem: str) -> list[str]:
    """All files that an export may write."""
    return [f"{stem}{suffix}" for suffix in (".safetensors", *(s for form in FORMATS.values() for s in form.suffixes))]


def announce(out: Path, stem: str) -> None:
    """Has the report say which files are about to be written, so that one that is interrupted can be started again."""
    before = read_json(out / REPORT) if (out / REPORT).exists() else {}
    begun = sorted({*before.get(BEGUN, []), *names_of(stem)})
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / REPORT, (json.dumps(before | {BEGUN: begun}, indent=1) + "\n").encode())


def refuse_foreign(out: Path, stem: str) -> None:
    """UserError if a file in the way was not written by an earlier export, a finished or an interrupted one."""
    known = set()
    if (out / REPORT).exists():
        report = read_json(out / REPORT)
        begun = report.get(BEGUN, []) if isinstance(report, dict) else None
        if isinstance(begun, list) and all(isinstance(name, str) for name in begun):
            known |= set(begun)
        if not known or "files" in report:
            known |= {name for file in read_report(out)["files"].values() for name in file["files"]}
    for path in (out / name for name in names_of(stem)):
        if path.exists() and path.name not in known:
            raise UserError(
                f"{path}: exists and is of no export listed in {REPORT}, so it is left alone: give another --out"
            )


def read_report(out: Path) -> dict:
    """export.json of a folder.

    Raises:
        UserError: if it is missing, or is not what `export` writes: of names of files in this folder, each with its
            form, its parts' SHA-256, and what was measured.
    """
    if not (out / REPORT).exists():
        raise UserError(f"{out / REPORT}: there is no such file: give a folder that export.py --out made")
    report = read_json(out / REPORT)
    wrong = _wrong(report)
    if wrong:
        raise UserError(f"{out / REPORT}: {wrong}: export again")
    return report


def _wrong(report: object) -> str:
    """What is wrong with the part of a report that is read again, "" if nothing."""
    files = report.get("files") if isinstance(report, dict) else None
    if not isinstance(files, dict) or not files:
        return "lists no files"
    for name, file in files.items():
        if not isinstance(file, dict) or file.get("format") not in ["safetensors", *FORMATS]:
            return f"{printable(name)[:60]} is of no known format"
        suffixes = (".safetensors",) if file["format"] == "safetensors" else FORMATS[file["format"]].suffixes
        parts = file.get("files")
        stem = name.removesuffix(suffixes[0])
        if not re.fullmatch(r"[\w.-]{1,100}", stem) or stem.startswith(".") or stem + suffixes[0] != name:
            return f"{printable(name)[:60]} is no name of a {file['format']} file"
        if not isinstance(parts, dict) or list(parts) != [stem + suffix for suffix in suffixes]:
            return f"{name} does not have the parts {', '.join(stem + suffix for suffix in suffixes)}"
        for part, facts in parts.items():
            stamp = facts.get("sha256") if isinstance(facts, dict) else None
            if not isinstance(stamp, str) or not re.fullmatch(r"[0-9a-f]{64}", stamp):
                return f"{part} has no SHA-256"
    return ""


def check(out: Path) -> None:
    """Compares every file of an export again with the folded safetensors beside it.

    Every form but torch's own tensors is read in a process of its own (`formats.apart`).

    Raises:
        UserError: with all that is missing, changed or wrong.
    """
    report = read_report(out)
    target = next((out / name for name, file in report["files"].items() if file["format"] == "safetensors"), None)
    if target is None:
        raise UserError(f"{out / REPORT}: lists no safetensors file: export again")
    network = rebuild(unpack(load_tensors(target), str(target))).eval()
    _, test = photographs(None, network.hyperparameters)
    problems = []
    for name, file in report["files"].items():
        broken = [said for part, facts in file["files"].items() if (said := _changed(out / part, facts["sha256"]))]
        problems += broken
        if broken or file["format"] == "safetensors":
            continue
        formats.require(file["format"])
        try:
            measured = _measure_again(file["format"], out / name, network, test)
        except UserError as error:
            said = str(error).removesuffix(": export again")
            problems.append(said if name in said else f"{name}: {said}")
            continue
        complaint = verdict(file["format"], measured)
        problems += [f"{name} {complaint}"] if complaint else []
        log.info(
            "%s: largest difference %.1e of 255, PSNR %+.4f dB",
            out / name,
            measured["max_error"],
            measured["psnr_change"],
        )
    if problems:
        raise UserError(f"{out}: {'; '.join(problems)}: export again")
    log.info(
        "%s: all %d files are as they were exported", out, sum(len(file["files"]) for file in report["files"].values())
    )


def _changed(path: Path, sha256: str) -> str:
    """What happened to a file since it was exported, "" if nothing."""
    try:
        return "" if digest(path) == sha256 else f"{path.name} is changed"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"


def _measure_again(form: str, path: Path, network: nn.Module, test: list) -> dict:
    """`measure` of a file that may be anything."""
    if form == "pt":
        return measure(network, FORMATS[form].read(path, network.hyperparameters), test)
    with formats.apart(form, path, network.hyperparameters) as reader:
        return measure(network, reader, test)


if __name__ == "__main__":
    run(main)
