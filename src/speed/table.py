"""The benchmark's table: medians, their spread, ratios to the baseline, and shares of the ceilings."""

import platform
import statistics

import torch

from model.precision import cpu_features
from runtime.hardware import processor
from runtime.provenance import git_commit
from speed.worker import Ceilings, Group, Timing, warm_up_turns

COLUMNS = [
    *("case", "parameters (K)", "mult-adds (G)", "median (ms)", "least (ms)", "most (ms)", "times faster"),
    *("per cent of the arithmetic ceiling", "per cent of the bandwidth ceiling"),
]


def make_table(title: str, groups: list[Group], *, device: str, n_runs: int, load: float) -> dict:
    """A table as `reporting.tables` takes it.

    Args:
        load: processes of others that were running before.
    """
    rows = [row_of(timing, group) for group in groups for timing in group.timings]
    return {
        "title": title,
        "columns": COLUMNS,
        "rows": rows,
        "notes": notes([group.ceilings for group in groups], device=device, n_runs=n_runs, load=load),
    }


def row_of(timing: Timing, group: Group) -> list:
    """A row of the table, in the order of `COLUMNS`."""
    cost = timing.cost
    baseline = next(other for other in group.timings if other.case.baseline)
    # Each turn gives a ratio of two times measured close together; their median is steadier than the ratio of medians.
    ratio = statistics.median(a / b for a, b in zip(baseline.seconds, timing.seconds, strict=True))
    milliseconds = [1000 * seconds for seconds in (timing.median, min(timing.seconds), max(timing.seconds))]
    return [
        f"{timing.case.group}: {timing.case.name}",
        None if cost.parameters is None else round(cost.parameters / 1e3, 1),
        None if cost.mult_adds is None else round(cost.mult_adds / 1e9, 1),
        *(round(time, 2) for time in milliseconds),
        round(ratio, 2),
        None if cost.flop is None else 100 * cost.flop / group.ceilings.flop / timing.median,
        None if cost.bytes is None else 100 * cost.bytes / group.ceilings.bytes / timing.median,
    ]


def notes(ceilings: list[Ceilings], *, device: str, n_runs: int, load: float) -> list[str]:
    """How and where the times were measured."""
    flops, bandwidths = [one.flop for one in ceilings], [one.bytes for one in ceilings]
    where = torch.cuda.get_device_name() if device == "cuda" else processor()
    return [
        f"{n_runs} turns after {warm_up_turns(device)} of warm-up, the cases of a group in turn, each in its own "
        "process; float32 without TF32 unless the case names another precision",
        "times faster: than the first case of the group, the median over the turns",
        f"ceilings, measured in the same turns: {min(flops) / 1e9:.0f} to {max(flops) / 1e9:.0f} GFLOP/s in a matrix "
        f"product, {min(bandwidths) / 1e9:.1f} to {max(bandwidths) / 1e9:.1f} GB/s in a copy",
        f"{where} ({', '.join(cpu_features())}), {torch.get_num_threads()} threads; {platform.platform()}; "
        f"{load:.2f} other processes were running before",
        f"Python {platform.python_version()}, torch {torch.__version__}, git commit {git_commit()}",
    ]
