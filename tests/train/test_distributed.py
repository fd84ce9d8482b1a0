"""Several processes on CPUs with gloo: the same training in 1, 2 and 3, every image scored once, one that dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import SRC, small_run
from forked import Program
from helpers import history, launch, scores, wait_for, weights

from model.weights import load_tensors
from runtime.distributed import unused_part


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ranks(n: int, *flags) -> list[Program]:
    """What torchrun starts."""
    together = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    environments = [together | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(n)]
    return [
        Program("main.py", *flags, env=os.environ | {name: str(value) for name, value in environment.items()})
        for environment in environments
    ]


def run(n: int, *flags) -> subprocess.CompletedProcess:
    """Waits for all of them; what they said, and the largest exit status."""
    processes = ranks(n, *flags)
    with ThreadPoolExecutor(n) as pool:
        said = list(pool.map(Program.communicate, processes))
    out, err = ("".join(parts) for parts in zip(*said, strict=True))
    return subprocess.CompletedProcess(flags, max(process.returncode for process in processes), out, err)


def test_any_number_of_processes_trains_the_same(small_set):
    """Batch 6 in 1, 2 and 3 processes, in parts of two; then one epoch more in another number of processes."""
    experiments = small_set.parent / "experiment"
    flags = ["--batch_size", "6", "--epochs", "1", "--ema", "0.5", "--split_batch", "2", "--loss", "1*L1+0.01*MSE"]
    for n in (1, 2, 3):
        run_flags = small_run(small_set, *flags, "--save", f"n{n}")
        if n == 1:
            launch(*run_flags)
        else:
            ended = run(n, *run_flags)
            assert ended.returncode == 0, ended.stderr[-2000:]
            # Rank 0 alone speaks.
            assert ended.stdout.count("[epoch 1] learning rate") == 1
    alone = weights(experiments / "n1")
    for n in (2, 3):
        together = weights(experiments / f"n{n}")
        assert all(torch.allclose(alone[name], together[name], atol=1e-4) for name in alone)
        for a, b in zip(history(experiments / "n1"), history(experiments / f"n{n}"), strict=True):
            assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)
            assert float(a["Small PSNR"]) == pytest.approx(float(b["Small PSNR"]), abs=1e-4)

    go_on = ("--cpu", "--epochs", "2", "--dir_experiment", experiments)
    launch(*go_on, "--load", "n3")
    assert run(2, *go_on, "--load", "n1").returncode == 0
    a, b = weights(experiments / "n1"), weights(experiments / "n3")
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)
    assert len(history(experiments / "n1")) == len(history(experiments / "n3")) == 2


def test_every_image_is_scored_once(small_set):
    """Five images on three processes: the same rows, in the same order, as one process gives."""
    experiments = small_set.parent / "experiment"
    launch(*small_run(small_set, "--epochs", "1"))
    flags = ("--cpu", "--test_only", "--pre_train", experiments / "small/model/model_best.pt", "--dir_data", small_set,
             "--data_test", "Small", "--data_range", "1-1/2-6", "--dir_experiment", experiments)  # fmt: skip
    launch(*flags, "--save", "alone")
    ended = run(3, *flags, "--save", "together", "--save_results")
    assert ended.returncode == 0, ended.stderr[-2000:]
    alone, together = scores(experiments / "alone"), scores(experiments / "together")
    assert [row[0] for row in together] == ["0002", "0003", "0004", "0005", "0006"]
    assert np.allclose([row[1:] for row in alone], [row[1:] for row in together], atol=1e-6)
    assert len(list((experiments / "together/results-Small").iterdir())) == 5
    assert ended.stdout.count("PSNR") == 1


def endless(small_set) -> list[str]:
    return small_run(small_set, "--test_every", "5000", "--print_every", "1", "--epochs", "1", "--batch_size", "6")


def state_is_good(small_set) -> None:
    state = load_tensors(small_set.parent / "experiment/small/state.pt")
    assert state["progress"]["batch"] >= 5
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_rank_that_dies_ends_the_run_with_an_error(small_set):
    survivor, victim = ranks(2, *endless(small_set))
    wait_for(survivor, "[5/")
    victim.kill()
    _, err = survivor.communicate(timeout=90)
    assert survivor.returncode == 1
    assert "another process of this run has ended" in err
    state_is_good(small_set)


def test_sigterm_to_the_launcher_saves_one_state_of_all(small_set):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    process = subprocess.Popen(
        [*torchrun, f"--master_port={free_port()}", "main.py", *endless(small_set)],
        cwd=SRC, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    wait_for(process, "[5/")
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert out.count("state saved after 0 epochs and") == 1
    state_is_good(small_set)


def test_a_signal_ends_a_process_whose_partner_never_comes(small_set):
    """It waits in C++, where Python's handlers are not called."""
    environment = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = Program("main.py", *small_run(small_set), env=os.environ | environment)
    wait_for(process, "device: CPU")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def test_processes_that_do_not_find_one_another_say_so(small_set):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        environment["MASTER_PORT"] = str(taken.getsockname()[1])
        process = Program("main.py", *small_run(small_set), env=os.environ | environment)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "do not find one another" in line
    assert "MASTER_PORT" in line
    assert "Traceback" not in err


def test_a_batch_that_does_not_divide(small_set):
    ended = run(2, *small_run(small_set, "--batch_size", "5"))
    assert ended.returncode != 0
    assert "--batch_size 5 does not divide evenly over 2 processes: use 4" in ended.stderr
    assert not (small_set.parent / "experiment").exists()


def test_an_attempt_reads_nothing_that_an_earlier_one_has_written():
    """torchrun gives the processes that it restarts the store of those before, with their addresses in it."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))

    def part(rank: int, world: int) -> dist.Store:
        return unused_part(store.clone(), rank, world)

    for world in (3, 2, 3):
        with ThreadPoolExecutor(world) as pool:
            others = [pool.submit(part, rank, world) for rank in range(1, world)]
            wait([others[0]], timeout=0.2)
            assert not others[0].done()  # what it finds is of the attempt before
            parts = [pool.submit(part, 0, world).result(20), *(each.result(20) for each in others)]
        assert not parts[0].check(["address"])
        parts[0].set("address", str(world))
        assert [each.get("address").decode() for each in parts] == [str(world)] * world
