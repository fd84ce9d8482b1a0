"""Repeats the fuzzing of what users' files, flags and signals may be: `python tests/fuzz/run.py --seed 1`.

Each kind is a module beside this one with two functions: `make(folder, seed, count)` writes inputs into folder/inputs,
and `take(path)` does with one of them what the programs do. Printed are counts, and on stderr each input that ended
wrongly. Exit status 0 only if all are in order: accepted, or refused with one line.
"""

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
import warnings
from pathlib import Path

# Instead of this folder, whose modules have names that others use.
sys.path[:1] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "src")]

from fuzz import batches, images

# How many inputs of each kind there are without --count; exports and signals take seconds each.
KINDS = {"weights": 300, "states": 150, "archives": 150, "exports": 60, "tables": 150, "flags": 150, "signals": 40}


def fuzz(kind: str, seed: int, count: int) -> dict[str, int]:
    """Counts over `count` inputs of a kind made from `seed`."""
    if kind == "images":
        counts = images.images(seed, count)
        return dict.fromkeys(batches.KEYS, 0) | {
            "inputs": counts["inputs"],
            "accepted": counts["decoded"],
            "refused": counts["refused"],
            "tracebacks": counts["tracebacks"] + counts["noisy"],
            "hangs": counts["hangs"],
            "crashed": counts["crashed"],
        }
    with tempfile.TemporaryDirectory(prefix=f"fuzz_{kind}_") as name:
        folder = Path(name)
        for part in ("inputs", "trace", "work"):
            (folder / part).mkdir()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of zipfile, about names that stand twice
            importlib.import_module(f"fuzz.{kind}").make(folder, seed, count)
        return batches.tally(kind, folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of images, {', '.join(KINDS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default 0)")
    parser.add_argument(
        "--count", type=int, metavar="N", help="inputs of each kind (default: as many as take a minute)"
    )
    flags = parser.parse_args()
    total = dict.fromkeys(batches.KEYS, 0)
    for kind in flags.kinds or ["images", *KINDS]:
        counts = fuzz(kind, flags.seed, flags.count or KINDS.get(kind, 300))
        total = {key: total[key] + counts[key] for key in total}
        print(f"{kind}: {batches.said(counts)}", flush=True)
    print(f"all: {batches.said(total)}")
    sys.exit(any(total[key] for key in batches.WRONG))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:  # a process of batches.tally
        batches.serve(Path(sys.argv[3]), int(sys.argv[4]), importlib.import_module(f"fuzz.{sys.argv[2]}").take)
    else:
        main()
