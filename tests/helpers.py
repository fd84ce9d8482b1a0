"""Functions that tests of several folders use: start a run in this process, and read what it left."""

import csv
from pathlib import Path

import torch
from forked import Program
from torch import nn

from main import main
from model.checkpoint import Checkpoint, facts_of
from model.recalibration import RecConv
from model.weights import load_tensors
from option import Options, follow_file, parse_args


def launch(*flags: str) -> None:
    """`python main.py` with these flags, in this process."""
    main(parse_args(list(map(str, flags))))


def history(folder: Path) -> list[dict]:
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path, name: str = "latest") -> dict[str, torch.Tensor]:
    return load_tensors(folder / f"model/model_{name}.pt")["model"]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scores(folder: Path, name: str = "Small") -> list[tuple]:
    with open(folder / f"scores-{name}.csv", newline="") as file:
        return [(row["image"], float(row["PSNR"]), float(row["SSIM"])) for row in csv.DictReader(file)]


def wait_for(process: Program, words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"{words!r} never came: {process.stderr.read()}")


def randomise(model: nn.Module, scale: float = 0.3) -> nn.Module:
    """Random non-zero transforms: with zeros a fold that forgets T would pass."""
    for module in model.modules():
        if isinstance(module, RecConv):
            nn.init.normal_(module.transform, std=scale)
    return model


def followed(options: Options, checkpoint: Checkpoint) -> Options:
    """The options of a run that starts from this checkpoint, or tests it."""
    return follow_file(options, facts_of(checkpoint, options.model))
