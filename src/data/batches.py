"""Batches of training patches, loaded ahead by worker processes."""

import itertools
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.parallel import usable_cores
from data.patches import Batch, TrainSet
from model.compat import end_workers
from runtime.errors import UserError

log = logging.getLogger("krgn")


def train_batches(
    train_set: TrainSet,
    *,
    batch_size: int,
    n_threads: int,
    first: int = 0,
    part: tuple[int, int] = (0, 1),
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Batches number `first`, `first` + 1, … without end.

    Batch b holds the samples from b * batch_size on. Closing the iterator ends the worker processes.

    Args:
        n_threads: worker processes, at most one a core; 0 loads in this process.
        part: (rank, n): only the rank-th of n equal parts of each batch is loaded.
        pin_memory: whether batches lie in page-locked memory, from which copies to a GPU are faster.

    Raises:
        UserError: if an image cannot be read, or a worker process ends.
    """
    rank, n_ranks = part
    share = batch_size // n_ranks
    starts = (batch * batch_size + rank * share for batch in itertools.count(first))
    numbers = (range(start, start + share) for start in starts)
    loader = DataLoader(
        train_set,
        batch_sampler=numbers,
        collate_fn=_unchanged,
        num_workers=min(n_threads, usable_cores()),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # not the global one, whose state a resumed run must find unchanged
    )
    with _signals_blocked():
        batches = iter(loader)
    through_pipes = False
    try:
        while True:
            block, names = _next(batches)
            if isinstance(block, np.ndarray):
                if not through_pipes:
                    log.info("/dev/shm has no room for batches: they come through pipes, which is slower (--shm-size)")
                    through_pipes = True
                block = torch.from_numpy(block)
            yield train_set.unpack(block, names)
    finally:
        end_workers(batches)


def _unchanged(batch):
    """The set collates its batches itself."""
    return batch


def _next(batches) -> tuple[torch.Tensor | np.ndarray, list[str]]:
    """The next block of a loader.

    Raises:
        UserError: in one line, for an error of the set in a worker process, or if that process ended.
    """
    try:
        return next(batches)
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


@contextmanager
def _signals_blocked():
    """Blocks Ctrl-C, SIGTERM and SIGHUP in the processes that are started inside.

    Signals sent to the process group reach workers too. The parent ends them once it has saved its state; a worker that
    died earlier would be an error in the middle of a step.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
