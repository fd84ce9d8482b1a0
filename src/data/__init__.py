"""Data for a run, from its flags: `build_train_set` and `build_test_sets`, and batches of them, `train_batches`.

The only module of this folder that reads `args`. Below it: `sets` (a set by its name), `folders` (where files lie),
`pairs` (LR/HR pairs), `cache` (decoded copies), `patches` and `testset` (the two data sets), `batches` (worker
processes).
"""

from pathlib import Path

from data.batches import train_batches
from data.degradation import Degradation
from data.parallel import usable_cores
from data.patches import TrainSet
from data.provenance import describe_data
from data.sets import Opening, open_test_sets, open_train_set
from data.testset import TestSet

__all__ = [
    "TestSet",
    "TrainSet",
    "build_test_sets",
    "build_train_set",
    "describe_data",
    "train_batches",
    "usable_cores",
]


def build_train_set(args) -> TrainSet:
    """The training patches of all sets in --data_train.

    Raises:
        UserError: for missing folders and for images that cannot be used.
    """
    opening, given = Opening(args.scale, args.ext, args.n_threads), "data_range" in args.given
    weights = [weight for weight, _ in args.data_train]
    return TrainSet(
        [
            open_train_set(name, Path(args.dir_data), opening, images=args.data_range[0], given=given)
            for _, name in args.data_train
        ],
        weights=None if None in weights else weights,
        scale=args.scale,
        patch_size=args.patch_size,
        n_colors=args.n_colors,
        augment=not args.no_augment,
        seed=args.seed,
        degradation=Degradation.parse(args.degradation),
    )


def build_test_sets(args) -> list[TestSet]:
    """The sets of --data_test; see `sets.open_test_sets`."""
    return open_test_sets(
        args.data_test,
        dir_data=Path(args.dir_data),
        opening=Opening(args.scale, args.ext, args.n_threads),
        dir_demo=Path(args.dir_demo),
        n_colors=args.n_colors,
        images=args.data_range[1] if "data_range" in args.given else None,
        trained_on=() if args.test_only else [name for _, name in args.data_train],
        degradation=args.degradation,
        seed=args.seed,
    )
