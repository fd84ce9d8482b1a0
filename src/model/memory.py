"""How much main memory this process may still take. Only the standard library is imported."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that this process may still take; None if unknown.

    The minimum of what is free on the machine, in each control group above this process (of a container or a batch job;
    versions 1 and 2), and under `ulimit -v` and `-d`.

    Args:
        root: where /proc and /sys/fs/cgroup are looked for.
    """
    try:
        words = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        free = [1024 * int(words["MemAvailable"].split()[0])]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for group, limit, usage, cache in _memory_groups(root):
        with suppress(OSError, ValueError):
            most = (group / limit).read_text().strip()
            if most != "max" and int(most) < 2**60:  # version 1 writes a huge number for no limit
                kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                # The cache of files is dropped when memory is needed.
                free.append(int(most) - int((group / usage).read_text()) + int(kept.get(cache, 0)))
    free += _left_of_limits(root)
    return max(0, min(free))


def _memory_groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """The control groups of this process for memory, innermost first: folder, names of the files with limit and usage,
    and name in memory.stat of the cache that can be dropped."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup/memory"]
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for mount in mounts:
            # In a container the path is the host's, and the mounted folder is the group itself.
            group = mount / path.strip("/")
            while group != mount and mount in group.parents:
                yield group, *names
                group = group.parent
            yield mount, *names


def _left_of_limits(root: Path) -> list[int]:
    """Bytes that `ulimit -v` and `ulimit -d` leave of address space and data."""
    try:
        import resource  # not on Windows

        total, _, _, _, _, data, *_ = map(int, (root / "proc/self/statm").read_text().split())
    except (ImportError, OSError, ValueError):
        return []
    limits = ((resource.RLIMIT_AS, total), (resource.RLIMIT_DATA, data))
    return [
        most - taken * resource.getpagesize()
        for limit, taken in limits
        if (most := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY
    ]
