"""Several processes that train one network, as `torchrun` starts them; alone, every function is trivial.

Each process, a rank, has its part of every batch and its own device; DistributedDataParallel averages the gradients.
Rank 0 alone logs and writes.
"""

import os
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from runtime.errors import ProcessLost, UserError, at_once

T = TypeVar("T")


def launched() -> bool:
    """Whether torchrun (or anything that sets its variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """The number of this process, from 0; that of torchrun's variables before `begin`."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0)) if launched() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that logs and writes."""
    return rank() == 0


@contextmanager
def processes(device: torch.device):
    """Inside, torchrun's processes form a group, nccl on GPUs and gloo on CPUs.

    Raises:
        ProcessLost: if the processes do not find one another, or one ends while this one waits for it.
    """
    if not launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        with at_once():  # a process whose partner was killed waits here, and torchrun would wait 30 s for its end
            _form_group("nccl" if device.type == "cuda" else "gloo")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ProcessLost(
            f"the processes of this run do not find one another ({reason}): see the output of the others, and check "
            "that MASTER_ADDR and MASTER_PORT are the first one's and free"
        ) from None
    try:
        yield
    except BaseException as error:
        if lost(error):
            raise ProcessLost(f"another process of this run has ended ({error}): see its output") from None
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _form_group(backend: str) -> None:
    # A rank that waits this long for another one takes it for dead; torchrun notices a dead process at once.
    timeout = timedelta(minutes=30)
    store, number, world = next(dist.rendezvous("env://", timeout=timeout))
    store = unused_part(store, number, world)
    dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=timeout)


def unused_part(store: dist.Store, rank: int, world: int) -> dist.Store:
    """A part of the store that no earlier attempt has written to; the same in all processes of this attempt.

    A torchrun that restarts its processes gives them the store of those before, and they would look for one another
    where those have been. So rank 0 writes a new name for this attempt, every other rank answers to the name that it
    reads with one of its own, and goes on when rank 0 has confirmed that: an old name is confirmed to others alone.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("attempt", mine)
        answers = [store.get(f"{mine}/{other}").decode() for other in range(1, world)]  # each waits until it is there
        store.set(f"{mine}/confirmed", " ".join(answers))
        return dist.PrefixStore(mine, store)
    while True:
        name = store.get("attempt").decode()
        store.set(f"{name}/{rank}", mine)
        confirmed = f"{name}/confirmed"
        if store.check([confirmed]) and mine in store.get(confirmed).decode():
            return dist.PrefixStore(name, store)
        time.sleep(0.02)


def local_device(visible: int) -> torch.device:
    """The GPU of this process on its node.

    Raises:
        UserError: if the node has more processes than visible GPUs.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= visible:
        raise UserError(
            f"torchrun started process {local} of this node, but {visible} GPUs are visible: "
            f"lower --nproc_per_node to {visible}, or use --cpu"
        )
    return torch.device("cuda", local)


@contextmanager
def main_first():
    """Rank 0 runs the block before the others do, so that files are made once."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def share(batch_size: int) -> int:
    """The patches of each process in a batch of all processes.

    Raises:
        UserError: if they do not divide evenly.
    """
    world = world_size()
    if batch_size % world:
        # Those up to twice as many processes as there are, or a node's usual eight.
        fitting = [str(n) for n in range(1, min(batch_size, max(2 * world, 8)) + 1) if batch_size % n == 0]
        raise UserError(
            f"--batch_size {batch_size} does not divide evenly over {world} processes: "
            f"use {batch_size // world * world or world}, it counts the patches of all of them, "
            f"or start {' or '.join(', '.join(fitting).rsplit(', ', 1))} processes"
        )
    return batch_size // world


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        dist.barrier()


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of each value over the processes; the same on all of them."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def average_gradients(module: torch.nn.Module) -> None:
    """Makes each gradient the mean over the processes, for a module without DistributedDataParallel."""
    if world_size() > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()


def gather(value) -> list:
    """What every process gave, in the order of their ranks; the same on all of them."""
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def of_main(value):
    """What rank 0 gave; the same on all of them."""
    return gather(value)[0]


def from_main(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, which alone calls it; the same on all of them.

    Raises:
        UserError: on all of them, if it does so on rank 0.
    """
    if world_size() == 1:
        return make()
    outcome: list = [None]
    if is_main():
        try:
            outcome = [make()]
        except UserError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]


def lost(error: BaseException) -> bool:
    """Whether an error says that another process of the group is gone."""
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "broken pipe", "nccl", "timed out waiting", "gloo")
    return world_size() > 1 and isinstance(error, RuntimeError) and any(sign in text for sign in signs)
