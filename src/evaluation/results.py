"""What a test left: scores-<Set>.json, written by main.py --test_only and read by everything that shows scores.

    {
     "format": "KRGN framework scores", "version": 1,
     "set": "Set5", "scale": 4,
     "network": "KRGN x4 (...): plain kernels; 528,016 parameters",
     "protocol": {"channel": "y", "crop_border": 4, "chop": false, ...},      the fields of `metrics.Protocol`
     "versions": {"torch": "2.13.0+cpu", "git commit": "..."},
     "seconds": 0.7,                                                          of the whole set, decoding included
     "mean": {"PSNR": 31.907, "SSIM": 0.8905},
     "images": [{"image": "baby", "PSNR": 33.1, "SSIM": 0.9}, ...]
    }

Numbers are not rounded. A number that JSON does not have is text: "inf", "-inf" or "nan".
"""

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from evaluation.metrics import CHANNELS, Protocol, Score, Scores
from runtime.errors import UserError
from runtime.files import read_json
from runtime.provenance import git_commit

FORMAT, VERSION = "KRGN framework scores", 1
TEST_AGAIN = "test again with main.py --test_only --pre_train FILE --save_results --save_gt"


def current_versions() -> dict[str, str]:
    """The versions that scores depend on."""
    return {"torch": torch.__version__, "git commit": git_commit()}


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """The test of one network on one set.

    Attributes:
        network: the network in one line, as `model.describe` gives it.
        scores: a row per image, which has at least "image", "PSNR" and "SSIM".
        seconds: duration of the test, decoding and writing included.
    """

    set_name: str
    scale: int
    network: str
    protocol: Protocol
    scores: Scores
    seconds: float
    versions: dict[str, str] = field(default_factory=current_versions)

    @property
    def by_image(self) -> dict[str, Score]:
        """PSNR and SSIM of each image, in the order of the set."""
        return {row["image"]: Score(row["PSNR"], row["SSIM"]) for row in self.scores.rows}

    def to_json(self) -> str:
        """The text of scores-<Set>.json."""
        columns = [name for name in self.scores.rows[0] if name != "image"]
        content = {
            "format": FORMAT,
            "version": VERSION,
            "set": self.set_name,
            "scale": self.scale,
            "network": self.network,
            "protocol": asdict(self.protocol),
            "versions": self.versions,
            "seconds": round(self.seconds, 3),
            "mean": {name: self.scores.mean(name) for name in columns},
            "images": self.scores.rows,
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def _plain(value):
    """The value as strict JSON has it; bytes of a file name that are not UTF-8 are escaped."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_result(path: Path) -> SetResult:
    """Reads one scores-<Set>.json.

    Raises:
        UserError: if the file is missing, or not of this form and version.
    """
    content = read_json(path)
    try:
        result = _parsed(content)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: is not what main.py writes ({_reason(error)}): {TEST_AGAIN}") from None
    if path.name != f"scores-{result.set_name}.json":
        raise UserError(f"{path}: has scores of {result.set_name}, expected those of the set it is named after")
    return result


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _parsed(content) -> SetResult:
    """Raises ValueError, TypeError, KeyError, AttributeError or OverflowError if the content has another form."""
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError(f"expected version {VERSION} of {FORMAT!r}")
    rows = [_row(row) for row in content["images"]]
    if not rows or len({row["image"] for row in rows}) < len(rows) or len({tuple(row) for row in rows}) > 1:
        raise ValueError("expected images of different names with the same scores")
    versions = content["versions"]
    return SetResult(
        set_name=_file_name(content["set"]),
        scale=_whole(content["scale"], 1),
        network=_text(content["network"]),
        protocol=_protocol(content["protocol"]),
        scores=Scores(rows),
        seconds=_number(content["seconds"]),
        versions={_text(name): _text(version) for name, version in versions.items()},
    )


def _row(row: dict) -> dict:
    values = {name: _number(value) for name, value in row.items() if name != "image"}
    return {"image": _file_name(row["image"]), "PSNR": values["PSNR"], "SSIM": values["SSIM"]} | values


def _protocol(content: dict) -> Protocol:
    if content.keys() != {one.name for one in fields(Protocol)}:
        raise ValueError("protocol has other fields")
    kinds = {"crop_border": _whole, "tile": _whole, "n_colors": _whole, "chop": _flag, "self_ensemble": _flag}
    protocol = Protocol(**{name: kinds.get(name, _text)(value) for name, value in content.items()})
    if protocol.channel not in CHANNELS:
        raise ValueError(f"unknown channel {protocol.channel!r}")
    return protocol


def _number(value) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("inf", "-inf", "nan")):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return float(value)


def _whole(value, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= 2**16:
        raise ValueError(f"{str(value)[:40]!r} is no whole number of {least} to {2**16}")
    return value


def _flag(value) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{str(value)[:40]!r} is neither true nor false")
    return value


def _text(value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value


def _file_name(value) -> str:
    """Names of sets and images are parts of paths, below which files are read and written."""
    if not _text(value) or "/" in value or "\0" in value or value in (".", ".."):
        raise ValueError(f"{value[:40]!r} is no name of a file")
    return value


def read_results(folder: Path) -> dict[str, SetResult]:
    """What a test left in an experiment's folder, by set, Set5 before Set14.

    Raises:
        UserError: if there is no such folder, it was not tested, or it was tested before there was scores-<Set>.json.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder: name one below experiment/ that main.py tested into")
    for table in sorted(folder.glob("scores-*.csv")):
        if not table.with_suffix(".json").exists():
            raise UserError(
                f"{folder}: has {table.name} of an older version, but no {table.stem}.json: {TEST_AGAIN} --data_test "
                f"{table.stem.removeprefix('scores-')} --save {folder.name}"
            )
    paths = sorted(folder.glob("scores-*.json"), key=_natural)
    if not paths:
        raise UserError(f"{folder}: has no scores-<Set>.json: {TEST_AGAIN} --save {folder.name}")
    results = [read_result(path) for path in paths]
    return {result.set_name: result for result in results}


def _natural(path: Path) -> list:
    """A key that puts Set5 before Set14."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.stem)]
