"""Signals at any moments of a training: one line, the signal's exit status, no children, a state that goes on."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

from forked import Program
from fuzz import states

STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def make(folder: Path, seed: int, count: int) -> None:
    chance = random.Random(seed)
    states.trained(folder, chance)
    for number in range(count):
        plan = {
            "workers": chance.choice([0, 0, 0, 1]),
            "after": chance.choice(["", "HR images", "[epoch 1]", "[3/", "[epoch 2]"]),
            "signals": [
                (chance.choice(list(STATUS)), chance.random() * chance.choice([0.02, 0.3]))
                for _ in range(chance.randrange(1, 4))
            ],
        }
        (folder / "inputs" / f"{number:06}.json").write_text(json.dumps(plan))


def take(path: Path) -> None:
    from main import main
    from option import parse_args

    plan, work = json.loads(path.read_text()), path.parent.parent / "work"
    shutil.rmtree(work)
    work.mkdir()
    flags = [*states.FLAGS.split(), *states.NEW.split(), "--dir_data", str(work.parent / "dataset")]
    flags += ["--dir_experiment", str(work / "experiment"), "--n_threads", str(plan["workers"])]
    program = Program("main.py", *flags, "--epochs", "400", "--test_every", "4", "--save_every", "0.001")
    said = ""
    for line in program.stdout:
        said += line
        if plan["after"] in line:
            break
    for name, delay in plan["signals"]:
        time.sleep(delay)
        if program.returncode is None:
            program.send_signal(getattr(signal, name))
    out, err = program.communicate(timeout=50)
    # Of signals that come at almost the same time, Python serves any first.
    first = {status: name for name, status in STATUS.items()}.get(program.returncode)
    assert first in [name for name, _ in plan["signals"]], (program.returncode, err)
    assert err.strip().splitlines()[-1:] == [f"interrupted by {first}"], err
    assert "Traceback" not in err, err
    deadline = time.monotonic() + 10
    while left := [pid for pid in os.listdir("/proc") if pid.isdigit() and _session(pid) == program.pid]:
        assert time.monotonic() < deadline, f"children {left}"
        time.sleep(0.05)
    if (work / "experiment/run/state.pt").exists():
        epochs = "1" if "[epoch 2]" not in said + out else "2"
        main(parse_args(["--cpu", "--dir_experiment", str(work / "experiment"), "--load", "run", "--epochs", epochs]))


def _session(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[3])
    except (OSError, IndexError):
        return 0
