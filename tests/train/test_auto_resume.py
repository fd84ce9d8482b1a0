"""--auto_resume: the same command line begins a run, goes on with it, and finds it finished; torchrun restarts it."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SRC, small_run
from helpers import equal, history, launch, wait_for, weights
from test_distributed import free_port, ranks, run

from model.weights import load_tensors
from option import continue_with, parse_args
from runtime.errors import UserError

BATCHES = 12  # in an epoch
FLAGS = ("--auto_resume", "--test_every", str(BATCHES), "--batch_size", "6", "--save_every", "0.002")
FLAGS += ("--print_every", "1", "--tracker", "none", "--ema", "0.9")


def progress(folder: Path) -> tuple[int, int]:
    found = load_tensors(folder / "state.pt")["progress"]
    return found["epoch"], found["batch"]


def test_the_same_command_line_begins_goes_on_and_ends(small_set, capsys):
    folder = small_set.parent / "experiment/small"
    line = small_run(small_set, *FLAGS, "--precision", "auto", "--ext", "sep_reset")
    launch(*line, "--epochs", "1")
    copies = {path: path.stat().st_mtime_ns for path in small_set.rglob("*.npy")}
    launch(*line)
    assert progress(folder) == (2, 0)
    assert copies
    assert all(path.stat().st_mtime_ns == made for path, made in copies.items())  # --ext sep_reset has been done
    launch(*line)
    assert "nothing to do: 2 of 2 epochs are done" in capsys.readouterr().out
    assert [row["epoch"] for row in history(folder)] == ["1", "2"]

    # Flags that differ follow the rules of --load.
    with pytest.raises(
        UserError, match=r"--lr 0\.5, but --auto_resume --save small was started with 0\.001.*--overrid"
    ):
        launch(*line, "--lr", "0.5")
    with pytest.raises(UserError, match=r"--n_feats 16, but .* started with 8: .*--pre_train .*small/model/model_la"):
        launch(*line, "--n_feats", "16")
    launch(*line, "--lr", "1e-4", "--override", "lr", "--epochs", "3")
    assert float(history(folder)[-1]["lr"]) == 1e-4
    launch("--load", "small", "--epochs", "4", "--cpu", "--dir_experiment", folder.parent)
    assert progress(folder) == (4, 0)


def test_a_run_without_a_state_begins_again(small_set):
    """It was killed before its first state; but weights without a state are not thrown away."""
    folder = small_set.parent / "experiment/small"
    (folder / "model").mkdir(parents=True)
    for name in (".experiment", ".lock", "config.txt", "log.txt"):
        (folder / name).touch()
    launch(*small_run(small_set, *FLAGS, "--epochs", "1"))
    assert progress(folder) == (1, 0)
    (folder / "state.pt").unlink()
    with pytest.raises(UserError, match=r"has weights, but no state\.pt .*--save small --reset"):
        launch(*small_run(small_set, *FLAGS, "--epochs", "1"))


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(1)
"""


def test_it_waits_for_the_process_that_is_still_saving(small_set, capsys):
    launch(*small_run(small_set, *FLAGS, "--epochs", "1"))
    lock = small_set.parent / "experiment/small/.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    launch(*small_run(small_set, *FLAGS, "--epochs", "2"))
    assert holder.wait() == 0
    assert "is training in it: waiting up to" in capsys.readouterr().out
    assert progress(lock.parent) == (2, 0)


def workers(launcher: int) -> dict[int, int]:
    """The processes that a torchrun has started, by rank."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(entry[5:]): int(pid) for entry in environment if entry.startswith(b"RANK=")}
    return found


def test_torchrun_restarts_a_killed_process(small_set):
    """Rank 0, which has the lock and saves, is killed within an epoch: same weights as undisturbed."""
    experiments = small_set.parent / "experiment"
    line = small_run(small_set, *FLAGS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max_restarts=3"]
    process = subprocess.Popen(
        [*torchrun, "--master_addr=127.0.0.1", f"--master_port={free_port()}", "main.py", *line],
        cwd=SRC, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    wait_for(process, "[4/")
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, err[-3000:]
    assert out.count(f"[{BATCHES}/{BATCHES}]") == 2
    assert run(2, *line, "--save", "undisturbed").returncode == 0
    assert equal(weights(experiments / "small"), weights(experiments / "undisturbed"))
    assert [row["loss"] for row in history(experiments / "small")] == [
        row["loss"] for row in history(experiments / "undisturbed")
    ]


def killed(n: int, line: list[str], words: str, victim: int) -> None:
    """Starts n processes and kills one of them when rank 0 has said `words`; the others end by themselves."""
    processes = ranks(n, *line)
    wait_for(processes[0], words)
    processes[victim].kill()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode != 0


def test_two_processes_three_and_two_again(small_set):
    experiments = small_set.parent / "experiment"
    line = small_run(small_set, *FLAGS)
    killed(2, line, "[4/", victim=1)
    assert (0, 4) <= progress(experiments / "small") < (0, BATCHES)
    killed(3, line, "[9/", victim=2)
    assert progress(experiments / "small") >= (0, 9)
    assert run(2, *line).returncode == 0
    launch(*line, "--save", "alone")
    a, b = weights(experiments / "small"), weights(experiments / "alone")
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)
    for one, other in zip(history(experiments / "small"), history(experiments / "alone"), strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)


def test_three_processes_resume_bit_for_bit(small_set):
    """Sums over three depend on their order, which must not depend on where the run was killed."""
    experiments = small_set.parent / "experiment"
    line = small_run(small_set, *FLAGS, "--epochs", "1")
    killed(3, line, "[5/", victim=1)
    assert run(3, *line).returncode == 0
    assert run(3, *line, "--save", "undisturbed").returncode == 0
    assert equal(weights(experiments / "small"), weights(experiments / "undisturbed"))


def test_a_world_that_does_not_divide_the_batch(small_set):
    ended = run(4, *small_run(small_set, *FLAGS))
    assert ended.returncode != 0
    assert "--batch_size 6 does not divide evenly over 4 processes: use 4, " in ended.stderr
    assert "or start 1, 2, 3 or 6 processes" in ended.stderr


def test_what_is_wrong_with_the_state_is_one_line_of_each_process(small_set):
    """Rank 0 alone reads it."""
    launch(*small_run(small_set, *FLAGS, "--epochs", "1"))
    (small_set.parent / "experiment/small/state.pt").write_bytes(b"nonsense")
    ended = run(2, *small_run(small_set, *FLAGS))
    lines = [line for line in ended.stderr.splitlines() if line]
    assert ended.returncode == 1
    assert len(lines) == 2, ended.stderr
    assert all(line.startswith("error: ") and "state.pt: " in line for line in lines)


def test_the_slurm_script_has_flags_that_parse():
    """Its bash is valid, and the same flags begin a run and go on with it."""
    script = ROOT / "scripts/train.slurm"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    flags = shlex.split(re.search(r"^flags=\((.*?)\)$", text, flags=re.S | re.M)[1])
    options = parse_args(flags)
    assert (options.auto_resume, options.save, options.batch_size % 8) == (True, "my_krgn_x4", 0)
    again = continue_with(options, options.values(), sorted(options.given))
    assert (again.load, again.lr) == ("my_krgn_x4", 0.0005)
    assert "#SBATCH --requeue" in text
    assert re.search(r"srun torchrun .*--max_restarts=\d", text)
