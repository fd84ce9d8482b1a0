"""Data for a run: `build_test_sets` and `train_batches`, from the options to uint8 batches."""

import itertools
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from data import benchmark, demo, div2k
from data.degradation import Degradation
from data.srdata import ImageSet, TestSet, TrainSet, cached, log_headers, pair_up
from model.compat import end_workers
from runtime.errors import UserError

log = logging.getLogger("krgn")


def build_train_set(args) -> TrainSet:
    """The training patches of all sets in --data_train.

    Raises:
        UserError: for missing folders and for images that cannot be used.
    """
    sets = []
    for _, name in args.data_train:
        root = Path(args.dir_data) / name
        located = div2k.locate(root)
        # The default range is DIV2K's: a smaller set simply has fewer images, and a folder of images is taken whole,
        # but a range that was given is meant.
        if located.in_tree or "data_range" in args.given:
            located = div2k.select(located, args.data_range[0], complete="data_range" in args.given)
        sets.append(_image_set(args, name, root, located))
    weights = [weight for weight, _ in args.data_train]
    return TrainSet(
        sets,
        weights=weights if any(weights) else None,
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
    sets = []
    for name in args.data_test:
        folder, root = Path(args.dir_data) / "benchmark" / name, Path(args.dir_data) / name
        if name == "Demo":
            image_set = demo.image_set(Path(args.dir_demo))
            log_headers(image_set)
        elif folder.is_dir():
            image_set = _image_set(args, name, folder, benchmark.locate(folder))
        elif root.is_dir():
            located = div2k.locate(root)
            trained_on = not args.test_only and name in (trained for _, trained in args.data_train)
            given = located.in_tree or "data_range" in args.given
            if trained_on and not given:
                raise UserError(
                    f"--data_test {name}: all of its {len(located.hr)} images are trained on: give --data_range "
                    "TRAIN/TEST, as in 1-90/91-100, or another --data_test"
                )
            if given:  # else a folder of images is taken whole
                located = div2k.select(located, args.data_range[1], complete=True)
            image_set = _image_set(args, name, root, located)
        else:
            joined = " (names are joined by +)" if "," in name else ""
            raise UserError(
                f"--data_test {name}{joined}: there is neither {folder}, with HR and LR_bicubic, nor {root}, with "
                f"{name}_train_HR: check --dir_data, or drop {name}"
            )
        sets.append(
            TestSet(
                image_set,
                scale=args.scale,
                n_colors=args.n_colors,
                degradation=Degradation.parse(args.degradation),
                seed=args.seed,
            )
        )
    return sets


def train_batches(
    train_set: TrainSet,
    *,
    batch_size: int,
    n_threads: int,
    first: int = 0,
    part: tuple[int, int] = (0, 1),
    pin_memory: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    """Batches number `first`, `first` + 1, … without end.

    A batch is (lr, hr, names): uint8 (N, C, p/scale, p/scale) and (N, C, p, p), and the names of the images. Batch b
    holds the samples b * batch_size and on. Loaded ahead by `n_threads` processes, no more than there are cores; 0
    loads in this one. Closing the iterator ends the processes. With `part` = (rank, n) only the rank-th of n equal
    parts of each batch is loaded.
    """
    rank, n_ranks = part
    share = batch_size // n_ranks
    starts = (batch * batch_size + rank * share for batch in itertools.count(first))
    numbers = (range(start, start + share) for start in starts)
    loader = DataLoader(
        train_set,
        batch_sampler=numbers,
        collate_fn=_as_it_is,
        num_workers=min(n_threads, usable_cores()),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # not the global one, whose state a run that goes on must find unchanged
    )
    with _signals_blocked():
        batches = iter(loader)
    through_pipes = False
    try:
        while True:
            try:
                block, names = next(batches)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"a process that loads data has ended ({reason}): if its memory or /dev/shm was full, give more "
                    "(docker run --shm-size 1g), or load in this process with --n_threads 0"
                ) from None
            except UserError as error:
                # A worker's exception arrives with its traceback in the message; its last line is the message itself.
                last = str(error).strip().splitlines()[-1]
                raise UserError(last.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")) from None
            if isinstance(block, np.ndarray):
                if not through_pipes:
                    log.info("/dev/shm has no room for batches: they come through pipes, which is slower (--shm-size)")
                    through_pipes = True
                block = torch.from_numpy(block)
            yield *train_set.unpack(block), names
    finally:
        end_workers(batches)


def _as_it_is(batch):
    """The set collates its batches itself."""
    return batch


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _signals_blocked():
    """Processes started inside never see Ctrl-C and SIGTERM, which reach them too when they are sent to the group: the
    parent ends them when it has saved its state, and one that died before would be an error in the middle of a step."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _image_set(args, name: str, root: Path, located: div2k.Located) -> ImageSet:
    n_threads = max(args.n_threads, 1)
    if located.skipped:
        log.info("%s: %s", root, located.skipped)
    pairs = pair_up(located.hr, located.lr_folder, args.scale, n_threads, located.base, located.low)
    log_headers(ImageSet(name, pairs))
    if args.ext == "img":
        return ImageSet(name, pairs)
    return cached(ImageSet(name, pairs), root, reset=args.ext == "sep_reset", n_threads=n_threads)
