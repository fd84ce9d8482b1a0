"""export.json: the files of an export folder, with their hashes, what was measured, and what they were made from.

While an export runs, the report lists under "begun" the files that it may write, so that an interrupted export can be
started again; files that no report lists are somebody else's and are left alone.
"""

import hashlib
import json
import logging
import os
import re
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deploy.formats import FORMATS
from deploy.measure import Accuracy, Latency
from runtime.errors import UserError, printable
from runtime.files import digest, read_json, write_bytes

log = logging.getLogger("krgn")

REPORT = "export.json"
BEGUN = "begun"
CARD = "README.md"
SAFETENSORS = "safetensors"


@dataclass(frozen=True)
class ListedFile:
    """A file as a report lists it.

    Args:
        form: "safetensors" or a name of `FORMATS`.
        hashes: SHA-256 of each of its parts, by their names; the first part is the file itself.
    """

    name: str
    form: str
    hashes: dict[str, str]


def suffixes_of(form: str) -> tuple[str, ...]:
    """The suffixes of a format's parts."""
    return (".safetensors",) if form == SAFETENSORS else FORMATS[form].suffixes


def names_of(stem: str, formats: tuple[str, ...]) -> list[str]:
    """The names of all files that an export may write; those that have no stem only of the `formats` that are asked."""
    with_stem = [f"{stem}{suffix}" for form in (SAFETENSORS, *FORMATS) for suffix in suffixes_of(form)]
    return with_stem + [name for form in formats for name in FORMATS[form].beside]


# --- writing ---


def write_report(out: Path, report: dict) -> None:
    """Writes a folder's export.json."""
    write_bytes(out / REPORT, (json.dumps(report, indent=1) + "\n").encode())


def write_with_card(out: Path, report: dict, text: str) -> bool:
    """Writes export.json and the model card, README.md; returns whether it wrote the card.

    A README.md that no export wrote, or that was edited since, is left alone, with a line in the log. The report lists
    under "card" the SHA-256 of those that are an export's own, before they are written, so that a kill does no harm.
    """
    content, own = text.encode(), _own_cards(out)
    free = not os.path.lexists(out / CARD)
    if not free:
        try:
            free = digest(out / CARD) in own
        except (UserError, OSError):  # a folder, say
            free = False
    write_report(out, report | {"card": sorted({*own, hashlib.sha256(content).hexdigest()}) if free else own})
    if not free:
        log.warning("%s: was not written by export.py, or was edited since: it is left alone", out / CARD)
        return False
    write_bytes(out / CARD, content)
    return True


def _own_cards(out: Path) -> list[str]:
    """The SHA-256 of the model cards that exports have written into a folder."""
    listed = read_json(out / REPORT).get("card", []) if (out / REPORT).exists() else []
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []


def announce(out: Path, stem: str, formats: tuple[str, ...]) -> None:
    """Makes the folder, and lists in its report the files that are about to be written."""
    before = read_json(out / REPORT) if (out / REPORT).exists() else {}
    begun = sorted({*before.get(BEGUN, []), *names_of(stem, formats)})
    out.mkdir(parents=True, exist_ok=True)
    write_report(out, before | {BEGUN: begun})


def folded_entry(path: Path, max_error: float) -> dict:
    """The report's entry for the folded file; by definition it loses no PSNR."""
    return _entry(SAFETENSORS, [path]) | {"max_error": max_error, "psnr_change": 0.0}


def format_entry(form: str, paths: list[Path], found: Accuracy, speed: Latency) -> dict:
    """The report's entry for a file of one of `FORMATS`."""
    return _entry(form, paths) | asdict(found) | asdict(speed)


def _entry(form: str, paths: list[Path]) -> dict:
    parts = {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in paths}
    return {"format": form, "files": parts}


def versions() -> dict[str, str]:
    """The versions of the packages that wrote and read the files."""
    found = {}
    for package in ("torch", "safetensors", "onnx", "onnxruntime", "onnxscript", "pnnx", "ncnn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# --- reading ---


def refuse_foreign(out: Path, stem: str, formats: tuple[str, ...]) -> None:
    """Raises UserError if a file in the way was not written by an earlier export, complete or interrupted."""
    known = set()
    if (out / REPORT).exists():
        report = read_json(out / REPORT)
        begun = report.get(BEGUN, []) if isinstance(report, dict) else None
        if isinstance(begun, list) and all(isinstance(name, str) for name in begun):
            known |= set(begun)
        if not known or "files" in report:
            known |= {part for file in read_report(out) for part in file.hashes}
    for path in (out / name for name in names_of(stem, formats)):
        if path.exists() and path.name not in known:
            raise UserError(f"{path}: exists and is not listed in {REPORT}, so it is left alone: give another --out")


def read_report(out: Path) -> list[ListedFile]:
    """The files that a folder's export.json lists.

    Raises:
        UserError: if the report is missing, or lists anything but files of this folder, each with its format and the
            SHA-256 of its parts.
    """
    if not (out / REPORT).exists():
        raise UserError(f"{out / REPORT}: there is no such file: give a folder that export.py --out made")
    report = read_json(out / REPORT)
    files = report.get("files") if isinstance(report, dict) else None
    try:
        if not isinstance(files, dict) or not files:
            raise ValueError("lists no files")
        return [_listed(name, entry) for name, entry in files.items()]
    except ValueError as error:
        raise UserError(f"{out / REPORT}: {error}: export again") from None


def _listed(name: str, entry: object) -> ListedFile:
    """One entry of a report; ValueError if it is not one that an export writes."""
    if not isinstance(entry, dict) or entry.get("format") not in [SAFETENSORS, *FORMATS]:
        raise ValueError(f"{printable(name)[:60]} has no known format")
    form, parts = entry["format"], entry.get("files")
    suffixes = suffixes_of(form)
    stem = name.removesuffix(suffixes[0])
    if not re.fullmatch(r"[\w.-]{1,100}", stem) or stem.startswith(".") or stem + suffixes[0] != name:
        raise ValueError(f"{printable(name)[:60]} is not the name of a {form} file")
    expected = [stem + suffixes[0]] if form == SAFETENSORS else FORMATS[form].files(stem)
    if not isinstance(parts, dict) or list(parts) != expected:
        raise ValueError(f"{name} does not have the parts {', '.join(expected)}")
    hashes = {part: facts.get("sha256") if isinstance(facts, dict) else None for part, facts in parts.items()}
    for part, sha256 in hashes.items():
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"{part} has no SHA-256")
    return ListedFile(name, form, hashes)
