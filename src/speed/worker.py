"""Cases timed in turn, each in a process of its own, with the allocator and the operators that it is about."""

import os
import statistics
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from tqdm import tqdm

from model import cffb
from runtime.errors import UserError
from runtime.hardware import fresh_processes, timed
from speed.cases import Case
from speed.workloads import Cost, prepare_copy, prepare_product

CEILINGS = (Case("ceiling", "product", prepare_product), Case("ceiling", "copy", prepare_copy))


@dataclass(frozen=True)
class Answer:
    """What a case's process sends: the cost of its workload first, then the seconds of each run, or an error."""

    cost: Cost | None = None
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Timing:
    """What was measured of a case: its seconds in each turn."""

    case: Case
    cost: Cost
    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds of the median turn."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Ceilings:
    """What the machine did at best in the turns of a group: FLOP/s of a matrix product, bytes/s of a copy."""

    flop: float
    bytes: float


@dataclass(frozen=True)
class Group:
    """The timings of the cases of a group, in their order, and the ceilings that were measured beside them."""

    timings: list[Timing]
    ceilings: Ceilings


def run_group(cases: list[Case], device: str, n_runs: int) -> Group:
    """Times the cases of one group and the ceilings in turn.

    Only the processes of one group exist at a time, because a training step takes gigabytes.

    Raises:
        UserError: if a case fails.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(started(case, device)) for case in [*cases, *CEILINGS]]
        for turn in tqdm(range(-warm_up_turns(device), n_runs), desc="turns", disable=None, leave=False):
            for worker in workers:
                seconds = worker.run()
                if turn >= 0:
                    worker.timing.seconds.append(seconds)
    *timings, product, copied = [worker.timing for worker in workers]
    ceilings = Ceilings(flop=product.cost.flop / product.median, bytes=copied.cost.bytes / copied.median)
    return Group(timings, ceilings)


def warm_up_turns(device: str) -> int:
    """Turns that are not counted: a GPU's compiled networks record their graphs in the second."""
    return 3 if device == "cuda" else 1


@dataclass(frozen=True)
class Worker:
    """Our end of the pipe to a case's process."""

    timing: Timing
    pipe: Connection

    def run(self) -> float:
        """Seconds of one run."""
        case = self.timing.case
        try:
            self.pipe.send("run")
        except BrokenPipeError:
            raise UserError(
                f"{case.group}, {case.name}: its process was ended, perhaps because memory ran out"
            ) from None
        return receive(self.pipe, case).seconds


@contextmanager
def started(case: Case, device: str) -> Iterator[Worker]:
    """Starts a case's process, waits until its workload is ready, and ends the process afterwards."""
    context = fresh_processes("speed.cases")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, case, device))
    process.start()
    theirs.close()
    try:
        yield Worker(Timing(case, receive(ours, case).cost, []), ours)
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()


def receive(pipe: Connection, case: Case) -> Answer:
    """The next answer of a case's process; UserError with the case's name if it failed."""
    try:
        answer = pipe.recv()
    except EOFError:
        answer = Answer(error="its process ended")
    if answer.error:
        raise UserError(f"{case.group}, {case.name}: {answer.error}")
    return answer


def serve(pipe: Connection, case: Case, device: str) -> None:
    """Runs in the case's process: prepares the workload, then times one run per request until the pipe closes."""
    os.environ.update(case.environment)
    try:
        cffb.build_when_needed()
        # As in main.py, "float32" excludes TF32, to which cuDNN rounds the factors of products by default.
        torch.backends.cudnn.allow_tf32 = False
        workload = case.prepare(**case.options, device=device)
        pipe.send(Answer(cost=workload.cost))
        while True:
            pipe.recv()
            pipe.send(Answer(seconds=timed(workload.run, torch.device(device))))
    except EOFError:
        pass
    except BaseException as error:
        reason = str(error) if isinstance(error, UserError) else traceback.format_exc(limit=3).strip().splitlines()[-1]
        pipe.send(Answer(error=reason or type(error).__name__))
