"""What the benchmark times: inference, training steps and tests of a network, and the machine's two ceilings.

A `prepare_…` function is called once, in the case's own process; the workload that it returns runs once per turn.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data import folders
from data.pairs import ImageSet, pair_up
from data.testset import TestSet
from evaluation.evaluate import evaluate
from model.external import import_spandrel
from model.krgn import KRGN
from model.networks import count_parameters
from model.precision import InPrecision, autocast
from model.recalibration import RecConv, fold
from runtime.hardware import keep_memory, timed
from train.optim import OptimizerConfig, make_optimizer

SCALE = 4
LR_SIZE = (180, 320)  # (H, W): a 1280x720 image at x4
BATCH, PATCH = 16, 48  # of a training step: patches, and the side of each in LR pixels
TEST_SETS = ("Set5", "Set14")


@dataclass(frozen=True)
class Peer:
    """Another network at x4 with its published hyper-parameters, as the package spandrel has it."""

    architecture: str
    options: dict


# RCAN is left out: it would take a minute a turn.
PEERS = {
    "SPAN": Peer("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 48, "upscale": SCALE}),
    "SAFMN": Peer("SAFMN", {"dim": 36, "n_blocks": 8, "ffn_scale": 2.0, "upscaling_factor": SCALE}),
    "SeemoRe-T": Peer("SeemoRe", {"scale": SCALE, "num_experts": 3, "num_layers": 6, "embedding_dim": 36}),
    "PLKSR-tiny": Peer(
        "PLKSR", {"n_blocks": 12, "upscaling_factor": SCALE, "ccm_type": "DCCM", "kernel_size": 13, "use_ea": False}
    ),
    "Compact": Peer("Compact", {"num_feat": 64, "num_conv": 16, "upscale": SCALE}),
    "OmniSR": Peer("OmniSR", {"num_feat": 64, "res_num": 5, "up_scale": SCALE}),
}


@dataclass(frozen=True)
class Cost:
    """What is known of a workload beside its time; None where it is not counted.

    Args:
        parameters: of the network.
        mult_adds: multiply-accumulates of convolutions and matrix products.
        flop: floating-point operations, to compare with the arithmetic ceiling.
        bytes: least traffic to main memory, to compare with the bandwidth ceiling.
    """

    parameters: int | None = None
    mult_adds: float | None = None
    flop: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Workload:
    """What is timed, and what it costs."""

    run: Callable[[], object]
    cost: Cost = field(default_factory=Cost)


# --- networks ---


class Published(KRGN):
    """KRGN as released: the outputs of all blocks are concatenated before they are fused."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shallow = self.shallow(x)
        features = torch.cat(list(self.features(shallow)), dim=1)
        return self.tail(self.features_fusion_module[0](features), shallow)


def make_network(groups: int, published: bool, kernels: str = "plain") -> nn.Module:
    """KRGN x4 of the standard size with random weights.

    The published form has the default memory format and allocator. Recalibrated kernels have non-zero transforms.

    Args:
        groups: of the convolutions in a CFFB; 0 for depth-wise.
        published: whether to make the form of the release.
        kernels: "plain" or "recalibrated".
    """
    torch.manual_seed(0)
    kind = Published if published else KRGN
    network = kind(scale=SCALE, groups=groups, recalibrated=kernels == "recalibrated")
    for module in network.modules():
        if isinstance(module, RecConv):
            torch.nn.init.normal_(module.transform, std=0.01)
    if published:
        return network
    keep_memory()
    return network.to(memory_format=torch.channels_last)


def prepare_inference(
    *,
    device: str,
    groups: int = 0,
    published: bool = False,
    folded: bool = True,
    precision: str = "single",
    compiled: bool = False,
) -> Workload:
    """One image of `LR_SIZE` through the network."""
    network = make_network(groups, published, "plain" if published or groups else "recalibrated")
    network = (fold(network) if folded else network).eval().to(device)
    image = torch.rand(1, 3, *LR_SIZE, device=device) * 255
    if not published:
        image = image.contiguous(memory_format=torch.channels_last)
    running = torch.compile(network, mode="max-autotune") if compiled else network

    def run():
        with torch.inference_mode(), autocast(torch.device(device), precision):
            running(image)

    # The ceilings are measured in float32, so other precisions are not compared with them.
    return Workload(run, cost_of_krgn(network, image) if precision == "single" else cost_of(network, image))


def prepare_peer(*, device: str, peer: str, precision: str = "single") -> Workload:
    """One image through another network with random weights, in the memory format in which it is faster."""
    import_spandrel("--peers")
    torch.manual_seed(0)
    architecture = PEERS[peer].architecture
    module = import_module(f"spandrel.architectures.{architecture}")
    network = getattr(module, architecture)(**PEERS[peer].options).eval().to(device)
    keep_memory()
    image = torch.rand(1, 3, *LR_SIZE, device=device)
    cost = cost_of(network, image)
    runs = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out, given = copy.deepcopy(network).to(memory_format=layout), image.contiguous(memory_format=layout)

        def run(network=laid_out, image=given):
            with torch.inference_mode(), autocast(torch.device(device), precision):
                network(image)

        run()
        runs[min(timed(run, torch.device(device)) for _ in range(2))] = run
    return Workload(runs[min(runs)], cost)


def prepare_training(
    *,
    device: str,
    groups: int = 0,
    published: bool = False,
    kernels: str = "recalibrated",
    batch: int = BATCH,
    precision: str = "single",
    compiled: bool = False,
) -> Workload:
    """Forward, backward and Adam on one batch.

    The published form uses torch's default Adam, which updates one tensor at a time on the CPU.
    """
    network = make_network(groups, published, "plain" if published else kernels).train().to(device)
    lr = torch.rand(batch, 3, PATCH, PATCH, device=device) * 255
    hr = torch.rand(batch, 3, SCALE * PATCH, SCALE * PATCH, device=device) * 255
    if published:
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    else:
        optimizer = make_optimizer(network, OptimizerConfig())
        lr = lr.contiguous(memory_format=torch.channels_last)
    loss = torch.nn.L1Loss()
    running = InPrecision(torch.compile(network) if compiled else network, torch.device(device), precision)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss(running(lr).float(), hr).backward()
        optimizer.step()

    return Workload(run)


def prepare_test(*, device: str, dir_data: Path, groups: int = 0, published: bool = False) -> Workload:
    """What `main.py --test_only` does with both sets after its start: decoding, network, scores."""
    sets = [test_set(dir_data / "benchmark" / name) for name in TEST_SETS]
    network = fold(make_network(groups, published)).eval().to(device)

    def run():
        for images in sets:
            evaluate(network, images, device=torch.device(device))

    return Workload(run)


def test_set(folder: Path) -> TestSet:
    """A benchmark set whose files are decoded each time, as with --ext img."""
    found = folders.locate_benchmark(folder)
    pairs = pair_up(found, SCALE, n_threads=1)
    return TestSet(ImageSet(folder.name, pairs), scale=SCALE)


# --- ceilings ---


def prepare_product(*, device: str) -> Workload:
    """The arithmetic ceiling: a product of two large matrices."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.rand(n, n, device=device) for _ in range(2))
    return Workload(lambda: a @ b, Cost(flop=2 * n**3))


def prepare_copy(*, device: str) -> Workload:
    """The bandwidth ceiling: a copy of a large block into memory that is already allocated."""
    n = 2**28 if device == "cuda" else 2**26
    a, b = torch.rand(n, device=device), torch.empty(n, device=device)
    return Workload(lambda: b.copy_(a), Cost(bytes=8 * n))


# --- costs ---


def cost_of(network: nn.Module, image: torch.Tensor) -> Cost:
    """Parameters of any network, and its multiply-accumulates for this image."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network(image)
    return Cost(parameters=count_parameters(network), mult_adds=counter.get_total_flops() / 2)


def cost_of_krgn(network: KRGN, image: torch.Tensor) -> Cost:
    """The same for a KRGN, with its operations and its least memory traffic.

    The traffic assumes that every layer that computes across pixels or channels reads its input and writes its output
    once, that pointwise operations are free, and that a CFFB is one layer.
    """
    size = cost_of(network, image)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        # On the meta device the fast operators are not used, so all operations are counted.
        copy.deepcopy(network).to("meta")(image.to("meta"))
    pixels, channels = LR_SIZE[0] * LR_SIZE[1], network.head_conv.out_channels
    cffbs = sum(len(group.conv_acts) // 2 for block in network.body for group in block.blocks)
    # Feature maps read and written in a PMRB: taps 4 and 4 halves, fusion 4 halves and 1, attention 2 and 1, and 1
    # before that for its statistics.
    maps = 2 * cffbs + len(network.body) * (4 + 2 + 2 + 1 + 4) + 2 * len(network.body) + 6
    return Cost(size.parameters, size.mult_adds, counter.get_total_flops(), 4 * pixels * channels * maps)
