"""The cases of the benchmark, in groups; every group has one baseline."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from speed import loading, workloads
from speed.workloads import LR_SIZE, PATCH, PEERS, SCALE, Workload

PUBLISHED = {"groups": 32, "published": True}
BF16 = {"precision": "bf16"}
PLAIN_OPERATORS = {"KRGN_FUSED": "0"}  # an environment in which torch's own operators run


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        prepare: makes the workload in the case's process, from `options` and `device`.
        environment: variables that are set before.
        baseline: whether the ratios of the group refer to this case.
    """

    group: str
    name: str
    prepare: Callable[..., Workload]
    options: dict = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    baseline: bool = False


def inference_cases(*, cuda: bool, bf16: bool, peers: bool) -> list[Case]:
    """One image through KRGN in several forms and, with `peers`, through other networks."""
    group, prepare = f"inference {LR_SIZE[1]}x{LR_SIZE[0]} x{SCALE}", workloads.prepare_inference
    cases = [
        Case(group, "published form", prepare, PUBLISHED, PLAIN_OPERATORS, baseline=True),
        Case(group, "groups 32", prepare, {"groups": 32}),
        Case(group, "depth-wise", prepare),
        Case(group, "depth-wise, plain operators", prepare, {}, PLAIN_OPERATORS),
        Case(group, "depth-wise, training form", prepare, {"folded": False}),
    ]
    if bf16:
        cases.append(Case(group, "depth-wise, bf16", prepare, BF16))
    if cuda:
        cases.append(Case(group, "depth-wise, bf16, compiled", prepare, BF16 | {"compiled": True}))
    for peer in PEERS if peers else ():
        cases.append(Case(group, peer, workloads.prepare_peer, {"peer": peer}))
        if bf16:
            cases.append(Case(group, f"{peer}, bf16", workloads.prepare_peer, {"peer": peer} | BF16))
    return cases


def training_cases(*, batch: int, cuda: bool, bf16: bool) -> list[Case]:
    """Forward, backward and optimizer on a batch of `batch` patches."""
    group, prepare = f"training step, {batch} patches {PATCH}x{PATCH} LR", workloads.prepare_training
    size = {"batch": batch}
    cases = [
        Case(group, "published form", prepare, PUBLISHED | size, PLAIN_OPERATORS, baseline=True),
        Case(group, "plain kernels", prepare, {"kernels": "plain"} | size),
        Case(group, "recalibrated", prepare, size),
    ]
    if bf16:
        cases.append(Case(group, "recalibrated, bf16", prepare, BF16 | size))
    if cuda:
        cases.append(Case(group, "recalibrated, bf16, compiled", prepare, BF16 | size | {"compiled": True}))
    return cases


def loading_cases(folder: Path) -> list[Case]:
    """Batches of training patches from the photographs that `loading.make_photos` wrote into `folder`."""
    cases = []
    for workers in (0, 2):
        group = f"loading, {loading.N_BATCHES} batches of {loading.BATCH} patches of {loading.PATCH}, {workers} workers"
        options = {"workers": workers, "folder": folder}
        cases += [
            Case(group, "EDSR's way", loading.prepare_edsr_loading, options, baseline=True),
            Case(group, "ours", loading.prepare_loading, options),
        ]
    return cases


def test_cases(dir_data: Path) -> list[Case]:
    """A whole test of two benchmark sets."""
    group, prepare = f"test {'+'.join(workloads.TEST_SETS)} x{SCALE}", workloads.prepare_test
    options = {"dir_data": dir_data}
    return [
        Case(group, "published form", prepare, PUBLISHED | options, PLAIN_OPERATORS, baseline=True),
        Case(group, "groups 32", prepare, {"groups": 32} | options),
        Case(group, "depth-wise", prepare, options),
    ]
