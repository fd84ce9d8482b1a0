"""Command lines of main.py with odd values, alone and together, on a set of three small images."""

import json
import random
import shutil
from pathlib import Path

from fuzz import states

ODD = [
    *(
        "",
        "0",
        "1",
        "2",
        "3",
        "-1",
        "1e9",
        "99999999999999999999",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "0x10",
        "1_000",
        " 4",
    ),
    *(
        "a",
        "é",
        "\x1b[31m",
        "new\nline",
        "../x",
        "/",
        ".",
        "~",
        "Small",
        "Small+Small",
        "None",
        "1+2",
        "1/2",
        "1-1/2-2",
    ),
    *("2*Small", "0*Small", "1*L1", "1*L1+nan*MSE", "krgn", "x" * 300, "half", "bf16", "step", "cosine", "-", "+", "*"),
]
# What makes a run short and keeps it here comes last, so that it counts.
LAST = "--cpu --n_threads 0 --no_tensorboard --epochs 1 --test_every 1 --print_every 1 --n_GPUs 1"
# Sizes that are right but take longer than a test may.
SMALL = {"batch_size": 4, "patch_size": 32, "n_feats": 16, "n_resgroups": 2, "n_resblocks": 2, "dilation": 9}


def make(folder: Path, seed: int, count: int) -> None:
    from option import build_parser

    chance = random.Random(seed)
    states.trained(folder, chance)
    actions = [action for action in build_parser()._actions if action.dest not in ("help", "dir_experiment", "compile")]
    for number in range(count):
        flags: list[str] = []
        for action in chance.sample(actions, chance.randrange(1, 5)):
            flags.append(action.option_strings[-1])
            if action.nargs == 0:
                continue
            values = [*map(str, action.choices or ()), *ODD]
            if action.dest in SMALL and chance.random() < 0.7:
                values = [str(chance.randrange(1, SMALL[action.dest] + 1))]
            flags += [chance.choice(values) for _ in range(action.nargs or 1)]
        (folder / "inputs" / f"{number:06}.json").write_text(json.dumps(flags))


def take(path: Path) -> None:
    from reporting import figures

    figures.curves = lambda history: {}
    work = path.parent.parent / "work"
    shutil.rmtree(work)
    work.mkdir()
    first = [*states.NEW.split(), "--dir_data", str(work.parent / "dataset")]
    states.run(work, *first, *json.loads(path.read_text()), *LAST.split(), "--dir_experiment", str(work / "experiment"))
