"""Work on many images at once: how many cores there are, and a loop on threads."""

import os
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(function, items: list, *, n_threads: int, title: str) -> None:
    """Calls `function(item)` for all items on `n_threads` threads, with a progress bar called `title`.

    Threads suffice because decoding releases the GIL. The first exception is raised; calls that have not started by
    then are dropped.
    """
    pool = ThreadPoolExecutor(max(1, n_threads))
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in tqdm(futures, desc=title, unit="image", disable=None, leave=False):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
