"""Several tests side by side: the images that all of them have, with pictures and scores that belong together.

The page (`page.py`) and the crop figure (`crop_figure.py`) show them. Bicubic is made here, from LR.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data import resize
from data.image import read_image
from evaluation.metrics import Score, psnr_ssim, scoring
from evaluation.results import TEST_AGAIN, SetResult, read_results
from reporting.tables import SIGNS, best_cells, shown
from runtime.errors import UserError, printable

BICUBIC, HR = "bicubic", "HR"
COLUMNS = ("PSNR", "SSIM")

ImageName = tuple[str, str]  # (set, image)


@dataclass(frozen=True)
class Experiment:
    """A tested experiment under the name that the comparison gives it, with its result on each set."""

    name: str
    folder: Path
    results: dict[str, SetResult]

    def path(self, set_name: str, image: str, kind: str) -> Path:
        """Where main.py wrote an image of the test; `kind` is SR, LR or HR."""
        return self.folder / f"results-{set_name}" / f"{image}_x{self.results[set_name].scale}_{kind}.png"


@dataclass(frozen=True)
class Compared:
    """One image: `pictures` is {label: uint8 (H, W, C)} of bicubic, each method and HR; `scores` leaves out HR."""

    lr: np.ndarray
    pictures: dict[str, np.ndarray]
    scores: dict[str, Score]


def read_experiments(named: Iterable[tuple[str, Path]]) -> list[Experiment]:
    """Reads the results in (name, folder) of each experiment.

    Raises:
        UserError: if one was not tested, or two have one name.
    """
    experiments = [Experiment(name, folder, read_results(folder)) for name, folder in named]
    names = [BICUBIC, HR, *(one.name for one in experiments)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two columns would be called {name!r}: give the experiment another name, NAME=FOLDER")
    return experiments


def common_images(experiments: list[Experiment]) -> list[ImageName]:
    """Every image that all experiments scored, in the order of the first one's results; says which are left out.

    Raises:
        UserError: if there is none, or a set was tested at different scales.
    """
    scored = [
        [(set_name, image) for set_name, result in one.results.items() for image in result.by_image]
        for one in experiments
    ]
    common = set.intersection(*map(set, scored))
    if not common:
        have = "; ".join(f"{one.name}: {', '.join(one.results)}" for one in experiments)
        raise UserError(f"no image was scored in all experiments ({have}): test them on one set with --data_test")
    left_out = sorted("/".join(image) for image in set().union(*scored) - common)
    if left_out:
        few = printable(", ".join(left_out[:8]))
        print(f"left out, because not every experiment has them: {few}{' …' * (len(left_out) > 8)}")
    for set_name in sorted({set_name for set_name, _ in common}):
        if len({one.results[set_name].scale for one in experiments}) > 1:
            have = ", ".join(f"{one.name} x{one.results[set_name].scale}" for one in experiments)
            raise UserError(f"{set_name} was tested at different scales ({have}): compare experiments of one scale")
    return [image for image in scored[0] if image in common]


def load(experiments: list[Experiment], set_name: str, image: str) -> Compared:
    """Reads the pictures of one image, makes bicubic, and checks that all of them belong together.

    Raises:
        UserError: if a file is missing, sizes differ, experiments had different LR or HR, or a score is not that of
            the picture.
    """
    scale = experiments[0].results[set_name].scale
    lr, hr = (_read_shared(experiments, set_name, image, kind) for kind in ("LR", HR))
    pictures = {BICUBIC: resize.upscale(lr, scale)}
    for one in experiments:
        path = one.path(set_name, image, "SR")
        if not path.is_file():
            raise UserError(f"{path}: is missing: {TEST_AGAIN}")
        pictures[one.name] = read_image(path)
    for label, picture in pictures.items():
        if picture.shape != hr.shape:
            raise UserError(
                f"{set_name}/{image}: {label} has {size_text(picture)} pixels, expected {size_text(hr)} as HR has: "
                f"{TEST_AGAIN}"
            )
    measured = {label: psnr_ssim(to_tensor(picture), to_tensor(hr), scale) for label, picture in pictures.items()}
    scores = {BICUBIC: measured[BICUBIC]}
    for one in experiments:
        scores[one.name] = one.results[set_name].by_image[image]
        _check_score(one, set_name, image, measured[one.name], gray=hr.shape[2] == 1)
    return Compared(lr, pictures | {HR: hr}, scores)


def _read_shared(experiments: list[Experiment], set_name: str, image: str, kind: str) -> np.ndarray:
    """The LR or HR image, which must be the same in every experiment that wrote it."""
    paths = [path for one in experiments if (path := one.path(set_name, image, kind)).is_file()]
    if not paths:
        raise UserError(f"{experiments[0].path(set_name, image, kind)}: is missing: {TEST_AGAIN}")
    pixels = read_image(paths[0])
    for path in paths[1:]:
        if not np.array_equal(pixels, read_image(path)):
            raise UserError(f"{paths[0]} and {path} differ: compare experiments that were tested on the same images")
    return pixels


def _check_score(one: Experiment, set_name: str, image: str, measured: Score, *, gray: bool) -> None:
    """Scores of one test beside pictures of another would mislead: they must agree in every printed digit."""
    result = one.results[set_name]
    if result.protocol.channel != "y":
        return  # `measured` is of luma
    # A network of luma is scored before its picture is converted to RGB, which rounds and clamps its colours.
    converted = result.protocol.n_colors == 1 and not gray
    tolerances = (0.5, 0.005) if converted else (0.005, 0.00005)
    for recorded, found, tolerance in zip(result.by_image[image], measured, tolerances, strict=True):
        if math.isfinite(recorded) and not abs(recorded - found) < tolerance:
            raise UserError(
                f"{one.folder}/scores-{set_name}.json: has {recorded:.4f} for {image}, but the score of "
                f"{one.path(set_name, image, 'SR')} is {found:.4f}, so they are of different tests: {TEST_AGAIN}"
            )


def protocol_lines(experiments: list[Experiment], sets: list[str]) -> list[str]:
    """How the scores were taken: one line if all were taken in one way, else a line for each way."""
    ways: dict[str, dict[str, list[str]]] = {}
    for one in experiments:
        for set_name in sets:
            protocol = one.results[set_name].protocol
            way = f"{protocol}; {protocol.precision} precision" if protocol.precision != "single" else str(protocol)
            ways.setdefault(way, {}).setdefault(one.name, []).append(set_name)
    if len(ways) == 1:
        lines = [f"Protocol: {next(iter(ways))}."]
    else:
        lines = ["The methods were not all scored in the same way:"]
        for way, methods in ways.items():
            who = "; ".join(f"{method} on {', '.join(on)}" for method, on in methods.items())
            lines.append(f"{who}: {way}.")
    return [*lines, f"Bicubic is made from the LR image, in colour, and scored here: {scoring('y')}."]


def mean_table(scores: dict[ImageName, dict[str, Score]], *, title: str, notes: list[str]) -> dict:
    """Mean PSNR and SSIM of each method on each set, as a table of `tables.py`.

    Args:
        scores: (set, image) -> the scores of each method, in the same order for all images.
    """
    rows, columns = {method: [method] for method in next(iter(scores.values()))}, ["method"]
    for set_name in dict.fromkeys(set_name for set_name, _ in scores):
        columns += [f"{set_name} PSNR", f"{set_name} SSIM"]
        for method, row in rows.items():
            row += np.mean([of[method] for (other, _), of in scores.items() if other == set_name], axis=0).tolist()
    return {"title": title, "columns": columns, "rows": list(rows.values()), "notes": notes}


def printed(score: Score) -> list[str]:
    """PSNR and SSIM in the digits of publications."""
    texts = [shown(value, column) for value, column in zip(score, COLUMNS, strict=True)]
    return [SIGNS.get(text, text) for text in texts]


def best_scores(scores: dict[str, Score]) -> dict[str, list[bool]]:
    """Whether a method's PSNR, and its SSIM, is the best, as far as printed digits tell: several may be."""
    return dict(zip(scores, best_cells(list(COLUMNS), [list(score) for score in scores.values()]), strict=True))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, C) -> uint8 (C, H, W)."""
    return torch.tensor(pixels).permute(2, 0, 1)


def size_text(pixels: np.ndarray) -> str:
    """Width x height, as in "90x60"."""
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
