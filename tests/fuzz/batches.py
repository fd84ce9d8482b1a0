"""Runs one function over many hostile inputs in processes that may die, hang or fill their memory, and counts what
happened."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
RUN = TESTS / "fuzz/run.py"
WRONG = ("tracebacks", "hangs", "code_run", "outside", "crashed")
KEYS = ("inputs", "refused", "accepted", *WRONG)
MEMORY = 12 * 2**30  # bytes of addresses a process may take; torch's own are some of them
PATIENCE = 60  # seconds for one input, the start of a process included


def said(counts: dict[str, int]) -> str:
    """Counts in one line."""
    return ", ".join(f"{key.replace('_', ' ')} {number}" for key, number in counts.items())


def tally(kind: str, folder: Path) -> dict[str, int]:
    """Counts over the inputs, the entries of `folder`/inputs, each given to the function `take` of a kind's module.

    Args:
        folder: beside inputs/ it has what they need, trace/ for what they would run and work/ to write in. Anything
            that appears anywhere else in it is counted as "outside".
    """
    inputs = sorted((folder / "inputs").iterdir())
    scratch = folder / "scratch"
    scratch.mkdir()
    told, before = folder / "told", {*folder.iterdir(), folder / "told", folder / "errors"}
    counts = dict.fromkeys(KEYS, 0) | {"inputs": len(inputs)}
    done = 0
    while done < len(inputs):
        told.write_text("")
        ended = _watch(kind, folder, done, told)
        lines = told.read_text().splitlines()
        for line in lines:
            counts[line.split(" ", 1)[0]] += 1
            if line.startswith(("tracebacks", "code_run")):
                print(line, file=sys.stderr)
        done += len(lines)
        if done < len(inputs):
            counts[ended] += 1
            print(ended, inputs[done].name, (folder / "errors").read_text()[-300:], file=sys.stderr)
            done += 1
    counts["outside"] += len({*folder.iterdir()} - before) + len(list(scratch.iterdir()))
    return counts


def _watch(kind: str, folder: Path, done: int, told: Path) -> str:
    """One process, until it ends or does not get on; returns what to count for the input that ended it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent / "src", TESTS)))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with open(folder / "errors", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(RUN), "--serve", kind, str(folder), str(done)],
            cwd=folder / "scratch",
            env=environment,
            stdout=errors,
            stderr=errors,
        )
        size, since = 0, time.monotonic()
        while process.poll() is None:
            time.sleep(0.05)
            if (now := told.stat().st_size) != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                process.kill()
                process.wait()
                return "hangs"
    return "crashed"


def serve(folder: Path, first: int, take: Callable[[Path], None]) -> None:
    """In the process: `take` for each input from `first` on. A UserError is a refusal, and so is what the
    parsers of flags do: status 2 and a usage line."""
    from runtime.errors import UserError, printable

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    trace = folder / "trace/it_ran"
    for path in sorted((folder / "inputs").iterdir())[first:]:
        try:
            take(path)
            said = "accepted"
        except UserError:  # which errors.run prints as one line, whatever is in it
            said = "refused"
        except SystemExit as error:
            said = "refused" if error.code == 2 else f"tracebacks {path.name} status {error.code!r:.200}"
        except BaseException as error:
            said = f"tracebacks {path.name} {type(error).__name__}: {printable(error)[:200]}"
        if trace.exists():
            trace.unlink()
            said = f"code_run {path.name}"
        with open(folder / "told", "a") as told:
            told.write(said + "\n")
