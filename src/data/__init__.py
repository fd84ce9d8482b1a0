"""Data for a run, from its flags: `build_train_set` and `build_test_sets`, and batches of them, `train_batches`.

The only module of this folder that reads `args`. Below it: `folders` (where files lie), `pairs` (LR/HR pairs), `cache`
(decoded copies), `patches` and `testset` (the two data sets), `batches` (worker processes).
"""

import logging
from pathlib import Path

from data import folders
from data.batches import train_batches
from data.degradation import Degradation
from data.image import read_header
from data.pairs import ImageSet, Pair, cached, log_headers, pair_up
from data.parallel import usable_cores
from data.patches import TrainSet
from data.testset import TestSet
from runtime.errors import UserError

__all__ = ["TestSet", "TrainSet", "build_test_sets", "build_train_set", "train_batches", "usable_cores"]

log = logging.getLogger("krgn")


def build_train_set(args) -> TrainSet:
    """The training patches of all sets in --data_train.

    Raises:
        UserError: for missing folders and for images that cannot be used.
    """
    sets = []
    for _, name in args.data_train:
        root = Path(args.dir_data) / name
        located = folders.locate(root)
        # The default range is DIV2K's: a smaller set simply has fewer images, and a folder of images is taken whole.
        # A range that the user gave must fit.
        if located.in_tree or "data_range" in args.given:
            located = folders.select(located, args.data_range[0], complete="data_range" in args.given)
        sets.append(_image_set(args, name, root, located))
    weights = [weight for weight, _ in args.data_train]
    return TrainSet(
        sets,
        weights=None if None in weights else weights,
        scale=args.scale,
        patch_size=args.patch_size,
        n_colors=args.n_colors,
        augment=not args.no_augment,
        seed=args.seed,
        degradation=Degradation.parse(args.degradation),
    )


def build_test_sets(args) -> list[TestSet]:
    """The sets of --data_test, in that order: Demo, a folder of --dir_data/benchmark, or a set in DIV2K's shape.

    Raises:
        UserError: for missing folders and for images that cannot be used.
    """
    return [
        TestSet(
            _test_images(args, name),
            scale=args.scale,
            n_colors=args.n_colors,
            degradation=Degradation.parse(args.degradation),
            seed=args.seed,
        )
        for name in args.data_test
    ]


def _test_images(args, name: str) -> ImageSet:
    """The images of one set of --data_test."""
    if name == "Demo":
        return _demo_images(Path(args.dir_demo))
    folder, root = Path(args.dir_data) / "benchmark" / name, Path(args.dir_data) / name
    if folder.is_dir():
        return _image_set(args, name, folder, folders.locate_benchmark(folder))
    if not root.is_dir():
        joined = " (names are joined by +)" if "," in name else ""
        raise UserError(
            f"--data_test {name}{joined}: there is neither {folder}, with HR and LR_bicubic, nor {root}, with "
            f"{name}_train_HR: check --dir_data, or drop {name}"
        )
    located = folders.locate(root)
    ranged = located.in_tree or "data_range" in args.given  # else a folder of images is taken whole
    if not ranged and not args.test_only and name in (trained for _, trained in args.data_train):
        raise UserError(
            f"--data_test {name}: all of its {len(located.hr)} images are trained on: give --data_range "
            "TRAIN/TEST, as in 1-90/91-100, or another --data_test"
        )
    if ranged:
        located = folders.select(located, args.data_range[1], complete=True)
    return _image_set(args, name, root, located)


def _image_set(args, name: str, root: Path, located: folders.Located) -> ImageSet:
    """The pairs of a set, opened as --ext says."""
    n_threads = max(args.n_threads, 1)
    if located.skipped:
        log.info("%s: %s", root, located.skipped)
    image_set = ImageSet(name, pair_up(located, args.scale, n_threads=n_threads))
    log_headers(image_set)
    if args.ext == "img":
        return image_set
    return cached(image_set, root, reset=args.ext == "sep_reset", n_threads=n_threads)


def _demo_images(folder: Path) -> ImageSet:
    """A user's own pictures as LR images without HR, with a line in the log of what was read and what was skipped."""
    found, skipped = folders.locate_demo(folder)
    log.info("Demo: %d images of %s%s", len(found), folder, f"; {skipped}" if skipped else "")
    pairs = [Pair(name, path, None, headers=(read_header(path),)) for name, path in found]
    image_set = ImageSet("Demo", pairs, own=True)
    log_headers(image_set)
    return image_set
