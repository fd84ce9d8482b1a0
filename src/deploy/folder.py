"""A folder with all exported files of one checkpoint, written by `export_checkpoint` and compared by `check_folder`."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from tqdm import tqdm

from deploy import card, report
from deploy.context import ExportContext
from deploy.fold import describe_input, write_folded
from deploy.formats import FORMATS, require
from deploy.isolated import isolated_reader
from deploy.measure import (
    TIMED_SIDE,
    Accuracy,
    ImagePair,
    Latency,
    accuracy,
    comparison_images_of,
    inaccurate,
    latency,
    photographs,
    too_slow,
)
from deploy.onnx_form import OPSET
from deploy.report import CARD, REPORT, SAFETENSORS
from deploy.rewrite import mean_shift_notes
from model.checkpoint import model_of, rebuild, unpack
from model.networks import count_parameters
from model.recalibration import fold
from model.weights import load_tensors
from runtime.errors import UserError
from runtime.files import digest, write_bytes
from runtime.provenance import git_commit

log = logging.getLogger("krgn")


# --- writing ---


def export_checkpoint(
    source: Path, out: Path, *, formats: tuple[str, ...], images: Path | None = None, **unseen: float | None
) -> None:
    """Writes the folded file of a checkpoint, the other formats, and the report.

    Args:
        formats: names in `FORMATS`.
        images: folder of HR images to calibrate and test on; None for scikit-image's photographs.
        unseen: hyper-parameters that a bare state dict does not show, as `model.checkpoint.rebuild` takes them.

    Raises:
        UserError: for a file of somebody else in the way, a wrong fold or a missing package; and, at the end, if a file
            missed its tolerance and was not written.
    """
    for name in formats:
        require(name)
    checkpoint = unpack(load_tensors(source), str(source))
    trained = rebuild(checkpoint, **unseen).eval()
    stem = f"{model_of(checkpoint)}_x{trained.hyperparameters['scale']}"
    report.refuse_foreign(out, stem, formats)
    for name in formats:
        FORMATS[name].prepare(trained.hyperparameters)
    pictures = photographs(images, trained.hyperparameters)

    target = out / f"{stem}.safetensors"
    facts = card.gather(source, checkpoint, trained, fold(trained), stem)
    deviation = write_checked_fold(source, target, stem, formats, about=facts.metadata(), **unseen)
    network = rebuild(unpack(load_tensors(target), str(target))).eval()
    form = f" ({count_parameters(trained):,} in training form)" if checkpoint.recalibrated else ""
    log.info(
        "%s: %s parameters%s; largest difference %.1e of 255", target, f"{count_parameters(network):,}", form, deviation
    )
    entries, rejected = {target.name: report.folded_entry(target, deviation)}, []
    context = ExportContext(comparison_images_of(network)[1], describe_input(network), pictures.calibration)
    for name in tqdm(formats, desc="formats", disable=None, leave=False):
        result = write_format(name, network, out, stem, context, pictures.test)
        if result.complaint:
            rejected.append(result.complaint)
            log.warning("%s", result.complaint)
        else:
            entries[result.paths[0].name] = report.format_entry(name, result.paths, result.accuracy, result.latency)
            log_result(result, len(pictures.test))
    kinds = {part: described(entry["format"]) for entry in entries.values() for part in entry["files"]}
    text = card.render(facts, kinds | {REPORT: "hashes, and what was measured of each file"})
    content = summary(source, model_of(checkpoint), network, pictures.test) | {"files": entries}
    kept = report.write_with_card(out, content, text)
    log.info("report: %s; model card: %s", out / REPORT, out / CARD if kept else "not written")
    if rejected:
        raise UserError(f"not written: {'; '.join(rejected)}")


def described(form: str) -> str:
    """A format in a few words, for the model card."""
    if form == SAFETENSORS:
        return "the weights, folded, with all that is needed to rebuild the network; for `krgn.load`"
    return f"the same network as `export.py --formats {form}` writes it"


def write_checked_fold(
    source: Path,
    target: Path,
    stem: str,
    formats: tuple[str, ...],
    about: dict[str, str] | None = None,
    **unseen: float | None,
) -> float:
    """Writes the folded file, and makes its folder only once the fold has passed its check.

    Args:
        about: more metadata of the file.

    Returns:
        The largest difference from the training form, of the 0-255 range.
    """
    with tempfile.TemporaryDirectory() as folder:
        checked = Path(folder) / target.name
        deviation = write_folded(source, checked, about=about, **unseen)
        report.announce(target.parent, stem, formats)
        write_bytes(target, checked.read_bytes())
    return deviation


@dataclass(frozen=True)
class FormatResult:
    """One format's files, what was measured, and why they were not kept; "" if they were."""

    paths: list[Path]
    accuracy: Accuracy
    latency: Latency
    complaint: str


def write_format(
    name: str, network: nn.Module, out: Path, stem: str, context: ExportContext, test: list[ImagePair]
) -> FormatResult:
    """Writes one format into a temporary folder, measures it, and moves it to `out` if it is within its tolerance."""
    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        written = [Path(folder) / name for name in form.files(stem)]
        form.write(network, written[0], context)
        run = form.read(written[0], network.hyperparameters)
        found, speed = accuracy(network, run, test), latency(network, run)
        complaint = inaccurate(name, found) or too_slow(name, found, speed)
        targets = [out / path.name for path in written]
        if not complaint:
            for path, target in zip(written, targets, strict=True):
                write_bytes(target, path.read_bytes())
    return FormatResult(targets, found, speed, f"{targets[0].name} {complaint}" if complaint else "")


def log_result(result: FormatResult, n_images: int) -> None:
    """Logs what was measured of a file that was kept."""
    log.info(
        "%s: largest difference %.1e of 255, PSNR %+.4f dB on %d images; %.0f ms for %dx%d LR pixels (torch: %.0f)",
        result.paths[0],
        result.accuracy.max_error,
        result.accuracy.psnr_change,
        n_images,
        result.latency.milliseconds,
        TIMED_SIDE,
        TIMED_SIDE,
        result.latency.milliseconds_torch,
    )


def summary(source: Path, model: str, network: nn.Module, test: list[ImagePair]) -> dict:
    """The part of the report that all files share.

    Args:
        model: the network's name on the command line.
        network: the folded one.
    """
    return {
        "source": str(source),
        "source_sha256": digest(source),
        "model": {"name": model, **network.hyperparameters},
        "input": describe_input(network),
        "mean_shifts": mean_shift_notes(network),
        "opset": OPSET,
        "ncnn": "blobs in0 and out0; the files state neither range nor layout, see input",
        "compared_at": [list(image.shape[2:]) for image in comparison_images_of(network)],
        "test_images": [f"{pair.lr.shape[3]}x{pair.lr.shape[2]} LR" for pair in test],
        "git_commit": git_commit(),
        "versions": report.versions(),
    }


# --- checking ---


def check_folder(out: Path) -> None:
    """Compares every file of an export folder again with the folded file beside it.

    Raises:
        UserError: naming every file that is missing, changed or wrong.
    """
    files = report.read_report(out)
    folded = next((out / file.name for file in files if file.form == SAFETENSORS), None)
    if folded is None:
        raise UserError(f"{out / REPORT}: lists no safetensors file: export again")
    network = rebuild(unpack(load_tensors(folded), str(folded))).eval()
    test = photographs(None, network.hyperparameters).test
    problems = []
    for file in files:
        changed = [reason for part, sha256 in file.hashes.items() if (reason := changed_since(out / part, sha256))]
        problems += changed
        if not changed and file.form != SAFETENSORS:
            require(file.form)
            if problem := compared_again(file.form, out / file.name, network, test):
                problems.append(problem)
    if problems:
        raise UserError(f"{out}: {'; '.join(problems)}: export again")
    log.info("%s: all %d files are as they were exported", out, sum(len(file.hashes) for file in files))


def changed_since(path: Path, sha256: str) -> str:
    """What happened to a file since it was exported, "" if nothing."""
    try:
        return "" if digest(path) == sha256 else f"{path.name} is changed"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"


def compared_again(form: str, path: Path, network: nn.Module, test: list[ImagePair]) -> str:
    """What is wrong with a file that anybody may have changed, "" if nothing.

    A plain state dict is read here; every other format is read in a process of its own.
    """
    try:
        if form == "pt":
            found = accuracy(network, FORMATS[form].read(path, network.hyperparameters), test)
        else:
            with isolated_reader(form, path, network.hyperparameters) as run:
                found = accuracy(network, run, test)
    except UserError as error:
        reason = str(error).removesuffix(": export again")
        return reason if path.name in reason else f"{path.name}: {reason}"
    log.info("%s: largest difference %.1e of 255, PSNR %+.4f dB", path, found.max_error, found.psnr_change)
    complaint = inaccurate(form, found)
    return f"{path.name} {complaint}" if complaint else ""
