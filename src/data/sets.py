"""The sets of images that a run uses, by name: found, paired, and opened through decoded copies or not."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data import folders
from data.degradation import Degradation
from data.image import read_header
from data.pairs import ImageSet, Pair, cached, log_headers, pair_up
from data.testset import TestSet
from runtime.errors import UserError

log = logging.getLogger("krgn")

DIV2K_TEST = (801, 810)  # the images that EDSR validates on


@dataclass(frozen=True)
class Opening:
    """How the images of a set are opened.

    Args:
        scale: upscaling factor.
        ext: "sep" through decoded copies in the set's bin/, made where missing or outdated, "sep_reset" made all anew,
            "img" decoded each time.
        n_threads: for decoding.
    """

    scale: int
    ext: str = "sep"
    n_threads: int = 6

    def open(self, name: str, root: Path, located: folders.Located) -> ImageSet:
        """The pairs of a set; UserError for images that cannot be used."""
        n_threads = max(self.n_threads, 1)
        if located.skipped:
            log.info("%s: %s", root, located.skipped)
        image_set = ImageSet(name, pair_up(located, self.scale, n_threads=n_threads))
        log_headers(image_set)
        if self.ext == "img":
            return image_set
        return cached(image_set, root, reset=self.ext == "sep_reset", n_threads=n_threads)


def open_train_set(name: str, dir_data: Path, opening: Opening, *, images: tuple[int, int], given: bool) -> ImageSet:
    """A training set.

    Args:
        images: first and last image, from 1, of a set in DIV2K's shape; a smaller set simply has fewer.
        given: whether the user chose these images: then they must be there, and a plain folder has a range too.

    Raises:
        UserError: for a missing folder and for images that cannot be used.
    """
    root = dir_data / name
    located = folders.locate(root)
    if located.in_tree or given:
        located = folders.select(located, images, complete=given)
    return opening.open(name, root, located)


def open_test_sets(
    names: Sequence[str],
    *,
    dir_data: Path,
    opening: Opening,
    dir_demo: Path = Path(),
    n_colors: int = 3,
    images: tuple[int, int] | None = None,
    trained_on: Sequence[str] = (),
    degradation: str = "bicubic",
    seed: int = 1,
) -> list[TestSet]:
    """Test sets, in this order: Demo, a folder of dir_data/benchmark, or a set in DIV2K's shape.

    Args:
        dir_demo: the folder of Demo's pictures, which have no HR.
        n_colors: 3 for RGB, 1 for luma Y.
        images: first and last image, from 1, of sets that are no benchmark; None for DIV2K's, or a whole folder.
        trained_on: sets whose images are trained on, which must not be tested whole.

    Raises:
        UserError: for missing folders and for images that cannot be used.
    """
    return [
        TestSet(
            _demo(dir_demo) if name == "Demo" else _test_images(name, dir_data, opening, images, name in trained_on),
            scale=opening.scale,
            n_colors=n_colors,
            degradation=Degradation.parse(degradation),
            seed=seed,
        )
        for name in names
    ]


def _test_images(
    name: str, dir_data: Path, opening: Opening, images: tuple[int, int] | None, trained_on: bool
) -> ImageSet:
    folder, root = dir_data / "benchmark" / name, dir_data / name
    if folder.is_dir():
        return opening.open(name, folder, folders.locate_benchmark(folder))
    if not root.is_dir():
        joined = " (names are joined by +)" if "," in name else ""
        raise UserError(
            f"--data_test {name}{joined}: there is neither {folder}, with HR and LR_bicubic, nor {root}, with "
            f"{name}_train_HR: check --dir_data, or drop {name}"
        )
    located = folders.locate(root)
    ranged = located.in_tree or images is not None  # else a folder of images is taken whole
    if not ranged and trained_on:
        raise UserError(
            f"--data_test {name}: all of its {len(located.hr)} images are trained on: give --data_range "
            "TRAIN/TEST, as in 1-90/91-100, or another --data_test"
        )
    if ranged:
        located = folders.select(located, images or DIV2K_TEST, complete=True)
    return opening.open(name, root, located)


def _demo(folder: Path) -> ImageSet:
    """A user's own pictures as LR images without HR, with a line in the log of what was read and what was skipped."""
    found, skipped = folders.locate_demo(folder)
    log.info("Demo: %d images of %s%s", len(found), folder, f"; {skipped}" if skipped else "")
    pairs = [Pair(name, path, None, headers=(read_header(path),)) for name, path in found]
    image_set = ImageSet("Demo", pairs, own=True)
    log_headers(image_set)
    return image_set
