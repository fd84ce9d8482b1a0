"""The project's benchmark: each case against what the published release computes, in turn, in one run.

    python bench.py all --cpu --out ../experiment/bench
    python bench.py infer --device cuda

A case lives in a process of its own, with the allocator and the operators that it is about. The processes run one at a
time, each once per turn, so that a machine that slows down slows all cases alike. The table gives medians, their
spread, ratios to the published form of the same group, and how far a case is from two ceilings measured in the same
turns: the arithmetic of a large matrix product and the bandwidth of a large copy.

The published form is KRGN as released: plain kernels, groups 32, NCHW, eager, torch's operators, the C library's
allocator. The loader's is EDSR's: whole images out of pickles, Python's `random`, float tensors out of the workers.
This is the only place where speed is claimed.
"""

import copy
import os
import pickle
import platform
import random
import statistics
import tempfile
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from data import build_test_sets, build_train_set, train_batches
from data.image import read_image, write_png
from evaluation.evaluate import evaluate
from model import cffb
from model.external import import_spandrel
from model.krgn import KRGN
from model.precision import InPrecision, autocast, cpu_features, is_native
from model.recalibration import RecConv, fold
from option import build_parser as training_parser
from option import parse_args
from reporting.tables import as_text, refuse_foreign, write_all
from runtime.errors import UserError
from runtime.errors import run as run_program
from runtime.flags import Parser, path_flag, whole_number
from runtime.hardware import fresh_processes, keep_memory, load_of_others, processor, timed
from runtime.provenance import git_commit
from train.optim import OptimizerConfig, make_optimizer

SCALE = 4
LR_SIZE = (180, 320)  # (H, W): a 1280x720 image at x4
BATCH, PATCH = 16, 48  # training: LR patches of this side
PHOTO = (1400, 2040)  # (H, W) of the loader's images, DIV2K's usual size
N_PHOTOS = 8
LOADED = 30  # batches a run of the loader


@dataclass
class Case:
    """One row: what runs, where, and the baseline of its group.

    Args:
        setup: name of the function of this file that prepares the case in its process.
        options: for that function.
        environment: set before the case is prepared.
        baseline: whether the ratios of the group refer to it.
    """

    group: str
    name: str
    setup: str
    options: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    baseline: bool = False


PLAIN_OPERATORS = {"KRGN_FUSED": "0"}

# name -> (spandrel's architecture, its class, options of the published x4 network); RCAN would take a minute a turn.
PEERS = {
    "SPAN": ("SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 48, "upscale": SCALE}),
    "SAFMN": ("SAFMN", "SAFMN", {"dim": 36, "n_blocks": 8, "ffn_scale": 2.0, "upscaling_factor": SCALE}),
    "SeemoRe-T": ("SeemoRe", "SeemoRe", {"scale": SCALE, "num_experts": 3, "num_layers": 6, "embedding_dim": 36}),
    "PLKSR-tiny": (
        "PLKSR",
        "PLKSR",
        {"n_blocks": 12, "upscaling_factor": SCALE, "ccm_type": "DCCM", "kernel_size": 13, "use_ea": False},
    ),
    "Compact": ("Compact", "Compact", {"num_feat": 64, "num_conv": 16, "upscale": SCALE}),
    "OmniSR": ("OmniSR", "OmniSR", {"num_feat": 64, "res_num": 5, "up_scale": SCALE}),
}
QUIET = 0.6  # processes of others that may run in the last minute before ratios mean nothing


def cases(which: str, args) -> list[Case]:
    """The cases of a command."""
    published = {"groups": 32, "published": True}
    found = []
    if which in ("infer", "all"):
        name = f"inference {LR_SIZE[1]}x{LR_SIZE[0]} x{SCALE}"
        found += [
            Case(name, "published form", "prepare_inference", published, PLAIN_OPERATORS, True),
            Case(name, "groups 32", "prepare_inference", {"groups": 32}),
            Case(name, "depth-wise", "prepare_inference"),
            Case(name, "depth-wise, plain operators", "prepare_inference", {}, PLAIN_OPERATORS),
            Case(name, "depth-wise, training form", "prepare_inference", {"folded": False}),
        ]
        if args.half:
            found += [Case(name, "depth-wise, bf16", "prepare_inference", {"precision": "bf16"})]
        if args.device == "cuda":
            found += [
                Case(name, "depth-wise, bf16, compiled", "prepare_inference", {"precision": "bf16", "compiled": True}),
            ]
        for peer in PEERS if args.peers else ():
            found += [Case(name, peer, "prepare_peer", {"peer": peer})]
            if args.half:
                found += [Case(name, f"{peer}, bf16", "prepare_peer", {"peer": peer, "precision": "bf16"})]
    if which in ("train", "all"):
        name = f"training step, {args.batch} patches {PATCH}x{PATCH} LR"
        batch = {"batch": args.batch}
        found += [
            Case(name, "published form", "prepare_training", published | batch, PLAIN_OPERATORS, True),
            Case(name, "plain kernels", "prepare_training", {"kernels": "plain"} | batch),
            Case(name, "recalibrated", "prepare_training", batch),
        ]
        half = {"precision": "bf16"} | batch
        if args.half:
            found += [Case(name, "recalibrated, bf16", "prepare_training", half)]
        if args.device == "cuda":
            found += [Case(name, "recalibrated, bf16, compiled", "prepare_training", half | {"compiled": True})]
    if which in ("load", "all"):
        for workers in (0, 2):
            name = f"loading, {LOADED} batches of 16 patches of 192, {workers} workers"
            options = {"workers": workers, "folder": args.folder}
            found += [
                Case(name, "EDSR's way", "prepare_edsr_loading", options, {}, True),
                Case(name, "ours", "prepare_loading", options),
            ]
    if which == "test" or (which == "all" and args.dir_data):
        options = {"dir_data": args.dir_data}
        name = f"test Set5+Set14 x{SCALE}"
        found += [
            Case(name, "published form", "prepare_test", published | options, PLAIN_OPERATORS, True),
            Case(name, "groups 32", "prepare_test", {"groups": 32} | options),
            Case(name, "depth-wise", "prepare_test", options),
        ]
    return found


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="bench.py", description="Speed against the published release, in one interleaved run.")
    parser.add_argument("command", choices=("infer", "train", "load", "test", "all"), help="which cases")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="likewise, by name (default: a GPU if there is one)")
    parser.add_argument("--n_runs", type=whole_number(1), default=5, metavar="N", help="turns (default 5)")
    parser.add_argument("--batch", type=whole_number(1), default=BATCH, metavar="N", help="patches a step (default 16)")
    parser.add_argument(
        "--dir_data",
        default="",
        metavar="DIR",
        type=path_flag,
        help="folder with benchmark/Set5 and Set14, for `test`; `all` leaves that out without it",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help=f"infer: beside {', '.join(PEERS)} of spandrel, without weights, each in its better memory format",
    )
    parser.add_argument(
        "--bf16", action="store_true", help="with bf16 also where the CPU emulates it (default: where it does not)"
    )
    parser.add_argument("--anyway", action="store_true", help="run although others are computing on this machine")
    parser.add_argument("--out", metavar="FILE", type=path_flag, help="write FILE.md, FILE.csv, FILE.json and FILE.tex")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs the cases in turn and prints the table; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    if args.out:
        refuse_foreign(args.out)
    if args.command == "test" and not args.dir_data:
        args.dir_data = training_parser().get_default("dir_data")
    device = "cpu" if args.cpu else args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.device = device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible: use --cpu")
    args.half = args.bf16 or is_native(torch.device(device))
    if args.peers:
        import_spandrel("--peers")
    args.load = load_of_others()
    if args.load > QUIET and not args.anyway:
        raise UserError(
            f"{args.load:.1f} processes were running on this machine in the last minute, expected at most {QUIET}: "
            "wait until they have ended, or say --anyway"
        )
    for name in ("Set5", "Set14") if args.dir_data else ():
        if not Path(args.dir_data, "benchmark", name).is_dir():
            raise UserError(f"--dir_data {args.dir_data}: has no benchmark/{name}, which `test` runs on: name another")
    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        args.folder = folder
        wanted = cases(args.command, args)
        if any("folder" in case.options for case in wanted):
            make_photos(Path(folder))
        groups = [[case for case in wanted if case.group == group] for group in dict.fromkeys(c.group for c in wanted)]
        rows, ceilings = [], []
        for group in groups:
            found = run_group(group, device, args.n_runs)
            rows += found[0]
            ceilings.append(found[1])
    table = make_table(rows, ceilings, args, device)
    print(as_text(table))
    if args.out:
        print(f"\nwritten: {', '.join(map(str, write_all(table, args.out)))}")


# --- processes in turn ---


class Worker:
    """A case in its process. It is ready when `facts` came; `run` asks for one timed run."""

    def __init__(self, case: Case, device: str):
        self.case, self.device, self.seconds = case, device, []
        context = fresh_processes("bench")
        ours, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, case.setup, case.options | {"device": device}, case.environment)
        )
        self.process.start()
        theirs.close()
        self.pipe = ours
        self.facts = self._answer()

    def run(self) -> float:
        """Seconds of one run."""
        try:
            self.pipe.send("run")
        except BrokenPipeError:
            raise UserError(f"{self.case.group}, {self.case.name}: its process was ended, for memory perhaps") from None
        return self._answer()

    def _answer(self):

        try:
            kind, value = self.pipe.recv()
        except EOFError:
            kind, value = "error", "its process ended"
        if kind == "error":
            raise UserError(f"{self.case.group}, {self.case.name}: {value}")
        return value

    def close(self) -> None:
        """Ends the process."""
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def serve(pipe, setup: str, options: dict, environment: dict[str, str]) -> None:
    """In the case's process: prepares, says so, and then times one run for each request until the pipe closes."""
    os.environ.update(environment)
    cffb.build_when_needed()
    try:
        # "float32" means it all through, as in main.py: by default cuDNN would round the factors of its products.
        torch.backends.cudnn.allow_tf32 = False
        run, facts = globals()[setup](**options)
        pipe.send(("facts", facts))
        while True:
            pipe.recv()
            pipe.send(("seconds", timed(run, torch.device(options["device"]))))
    except EOFError:
        pass
    except BaseException as error:
        said = str(error) if isinstance(error, UserError) else traceback.format_exc(limit=3).strip().splitlines()[-1]
        pipe.send(("error", said))


def run_group(group: list[Case], device: str, n_runs: int) -> tuple[list[list], tuple[float, float]]:
    """The table's rows of one group, and the ceilings, in FLOP/s and bytes/s, that were measured beside it.

    Only one group's processes are there at a time: a training step of 16 patches takes gigabytes.
    """
    workers: list[Worker] = []
    try:
        for case in [*group, *(Case("ceiling", name, f"prepare_{name}") for name in ("product", "copy"))]:
            workers.append(Worker(case, device))
        measure(workers, n_runs)
    finally:
        for worker in workers:
            worker.close()
    *cases_, product, copied = workers
    ceilings = (
        product.facts["flop"] / statistics.median(product.seconds),
        copied.facts["bytes"] / statistics.median(copied.seconds),
    )
    baseline = next(worker for worker in cases_ if worker.case.baseline)
    return [row_of(worker, baseline, ceilings) for worker in cases_], ceilings


def warm_up(device: str) -> int:
    """Turns that are not counted: a GPU's compiled networks record their graphs in the second."""
    return 3 if device == "cuda" else 1


SIZES = (("parameters", 1e3), ("mult_adds", 1e9))  # of the networks, in the table's units


def row_of(worker: Worker, baseline: Worker, ceilings: tuple[float, float]) -> list:
    """A row of the table: name, times in milliseconds, ratio to the baseline, per cent of the ceilings."""
    median = statistics.median(worker.seconds)
    # Each turn gives a ratio of neighbours in time; their median is steadier than the ratio of medians.
    ratio = statistics.median(a / b for a, b in zip(baseline.seconds, worker.seconds, strict=True))
    kinds = zip(("flop", "bytes"), ceilings, strict=True)
    shares = [100 * worker.facts[kind] / top / median if kind in worker.facts else None for kind, top in kinds]
    times = [round(1000 * seconds, 2) for seconds in (median, min(worker.seconds), max(worker.seconds))]
    size = [round(worker.facts[kind] / unit, 1) if kind in worker.facts else None for kind, unit in SIZES]
    return [f"{worker.case.group}: {worker.case.name}", *size, *times, round(ratio, 2), *shares]


def measure(workers: list[Worker], n_runs: int) -> None:
    """All workers in turn, `n_runs` times after the warm-up."""

    for turn in tqdm(range(-warm_up(workers[0].device), n_runs), desc="turns", disable=None, leave=False):
        for worker in workers:
            seconds = worker.run()
            if turn >= 0:
                worker.seconds.append(seconds)


# --- what runs, in a process of its own ---


class Published(KRGN):
    """KRGN as released: all blocks' outputs are concatenated before they are fused."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shallow = self.shallow(x)
        features = torch.cat(list(self.features(shallow)), dim=1)
        return self.tail(self.features_fusion_module[0](features), shallow)


def network_of(groups: int, published: bool, kernels: str = "plain"):
    """KRGN x4 of the standard size with random weights; recalibrated ones have transforms that are not zero."""

    torch.manual_seed(0)
    kind = Published if published else KRGN
    network = kind(scale=SCALE, groups=groups, recalibrated=kernels == "recalibrated")
    for module in network.modules():
        if isinstance(module, RecConv):
            torch.nn.init.normal_(module.transform, std=0.01)
    if not published:
        keep_memory()
    return network if published else network.to(memory_format=torch.channels_last)


def prepare_inference(
    *,
    device: str,
    groups: int = 0,
    published: bool = False,
    folded: bool = True,
    precision: str = "single",
    compiled: bool = False,
):
    """One image through the network."""

    network = network_of(groups, published, "plain" if published or groups else "recalibrated")
    network = (fold(network) if folded else network).eval().to(device)
    image = torch.rand(1, 3, *LR_SIZE, device=device) * 255
    if not published:
        image = image.contiguous(memory_format=torch.channels_last)

    running = torch.compile(network, mode="max-autotune") if compiled else network

    def run():
        with torch.inference_mode(), autocast(torch.device(device), precision):
            running(image)

    # The ceilings are those of float32.
    return run, sizes(network, image) | (costs(network, image) if precision == "single" else {})


def prepare_peer(*, device: str, peer: str, precision: str = "single"):
    """One image through another network with random weights, in the memory format in which it is faster."""
    architecture, name, options = PEERS[peer]
    import_spandrel("--peers")
    torch.manual_seed(0)
    network = getattr(import_module(f"spandrel.architectures.{architecture}"), name)(**options).eval().to(device)
    keep_memory()
    image = torch.rand(1, 3, *LR_SIZE, device=device)
    facts = sizes(network, image)
    runs = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out, given = copy.deepcopy(network).to(memory_format=layout), image.contiguous(memory_format=layout)

        def run(network=laid_out, image=given):
            with torch.inference_mode(), autocast(torch.device(device), precision):
                network(image)

        run()
        runs[min(timed(run, torch.device(device)) for _ in range(2))] = run
    return runs[min(runs)], facts


def prepare_training(
    *,
    device: str,
    groups: int = 0,
    published: bool = False,
    kernels: str = "recalibrated",
    batch: int = BATCH,
    precision: str = "single",
    compiled: bool = False,
):
    """Forward, backward and Adam on one batch. The published form's optimizer is torch's default, one tensor at a time
    on the CPU."""

    network = network_of(groups, published, "plain" if published else kernels).train().to(device)
    lr = torch.rand(batch, 3, PATCH, PATCH, device=device) * 255
    hr = torch.rand(batch, 3, SCALE * PATCH, SCALE * PATCH, device=device) * 255
    if published:
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    else:
        optimizer = make_optimizer(network.parameters(), OptimizerConfig())
        lr = lr.contiguous(memory_format=torch.channels_last)
    loss = torch.nn.L1Loss()
    running = InPrecision(torch.compile(network) if compiled else network, torch.device(device), precision)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss(running(lr).float(), hr).backward()
        optimizer.step()

    return run, {}


def prepare_test(*, device: str, dir_data: str, groups: int = 0, published: bool = False):
    """`main.py --test_only` of both sets, but for its start: decoding, network, scores."""

    flags = ["--test_only", "--pre_train", "-", "--dir_data", dir_data, "--data_test", "Set5+Set14", "--ext", "img"]
    test_sets = build_test_sets(parse_args([*flags, "--scale", str(SCALE)]))
    network = fold(network_of(groups, published)).eval().to(device)

    def run():
        for test_set in test_sets:
            evaluate(network, test_set, device=torch.device(device))

    return run, {}


def prepare_loading(*, device: str, workers: int, folder: str):
    """`LOADED` batches of this project's loader."""

    flags = ["--dir_data", folder, "--data_train", "Photos", "--scale", str(SCALE), "--patch_size", "192"]
    train_set = build_train_set(parse_args(flags))
    batches = train_batches(train_set, batch_size=BATCH, n_threads=workers)

    def run():
        for _ in range(LOADED):
            next(batches)

    return run, {}


class PickledImages(Dataset):
    """EDSR-PyTorch's kind of data set: an item is a random patch of a pair, float (3, p/scale, p/scale), (3, p, p)."""

    def __init__(self, paths: list[list[Path]]):
        self.paths = paths

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        lr, hr = (pickle.loads(path.read_bytes()) for path in self.paths[index % len(self.paths)])
        side = 192 // SCALE
        top = random.randrange(0, lr.shape[0] - side + 1)
        left = random.randrange(0, lr.shape[1] - side + 1)
        mirrored, flipped, turned = (random.random() < 0.5 for _ in range(3))
        tensors = []
        for pixels, factor in ((lr, 1), (hr, SCALE)):
            patch = pixels[factor * top : factor * (top + side), factor * left : factor * (left + side)]
            patch = patch[:, ::-1] if mirrored else patch
            patch = patch[::-1] if flipped else patch
            patch = patch.transpose(1, 0, 2) if turned else patch
            tensors.append(torch.from_numpy(np.ascontiguousarray(patch.transpose(2, 0, 1))).float())
        return tensors


def prepare_edsr_loading(*, device: str, workers: int, folder: str):
    """The same number of batches as EDSR-PyTorch loads them: each image whole out of a pickle for each patch."""

    flags = ["--dir_data", folder, "--data_train", "Photos", "--scale", str(SCALE), "--patch_size", "192"]
    paths = []
    for pair, image_set in build_train_set(parse_args(flags)).images:
        both = []
        for kind, path in (("lr", pair.lr), ("hr", pair.hr)):
            both.append(Path(folder) / f"{pair.name}_{kind}_{os.getpid()}.pickle")
            both[-1].write_bytes(pickle.dumps(np.array(image_set.open(path))))
        paths.append(both)

    # Workers that stay, or each run would time their start; both loaders' read ahead while other cases run.
    batches = iter(DataLoader(PickledImages(paths), BATCH, shuffle=True, num_workers=workers))

    def run():
        for _ in range(LOADED):
            next(batches)

    return run, {}


def prepare_product(*, device: str):
    """The arithmetic ceiling: a product of two large matrices."""

    n = 8192 if device == "cuda" else 2048
    a, b = (torch.rand(n, n, device=device) for _ in range(2))
    return lambda: a @ b, {"flop": 2 * n**3}


def prepare_copy(*, device: str):
    """The bandwidth ceiling: a copy of a large block into one that is there."""

    n = 2**28 if device == "cuda" else 2**26
    a, b = torch.rand(n, device=device), torch.empty(n, device=device)
    return lambda: b.copy_(a), {"bytes": 8 * n}


def sizes(network: nn.Module, image: torch.Tensor) -> dict:
    """{"parameters": number, "mult_adds": of convolutions and products, for this image}."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network(image)
    return {"parameters": sum(p.numel() for p in network.parameters()), "mult_adds": counter.get_total_flops() / 2}


def costs(network: nn.Module, image: torch.Tensor) -> dict:
    """{"flop": of convolutions and products, "bytes": that the least possible number of passes reads and writes}.

    The least is taken as: every layer that computes across pixels or channels reads its input and writes its output
    once, pointwise work coming for nothing; a CFFB counts as one layer.
    """

    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        copy.deepcopy(network).to("meta")(image.to("meta"))
    pixels, channels = LR_SIZE[0] * LR_SIZE[1], network.head_conv.out_channels
    cffbs = sum(len(group.conv_acts) // 2 for block in network.body for group in block.blocks)
    # A PMRB's taps read four maps and write four halves; fusion reads four halves and writes one; attention reads two
    # and writes one, and reads one before that for its statistics.
    maps = 2 * cffbs + len(network.body) * (4 + 2 + 2 + 1 + 4) + 2 * len(network.body) + 6
    return {"flop": counter.get_total_flops(), "bytes": 4 * pixels * channels * maps}


def make_photos(folder: Path) -> None:
    """Photographs of DIV2K's size, in DIV2K's shape: scikit-image's, enlarged and turned so that no two are alike."""

    shipped = Path(skimage.__file__).parent / "data"
    sources = [read_image(shipped / name) for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]
    for number in range(N_PHOTOS):
        turned = np.rot90(sources[number % len(sources)], 2 * (number // len(sources)))
        enlarged = Image.fromarray(np.ascontiguousarray(turned)).resize((PHOTO[1], PHOTO[0]), Image.BICUBIC)
        write_png(folder / f"Photos/Photos_train_HR/{number:04}.png", np.asarray(enlarged))


# --- the table ---


def make_table(rows: list[list], ceilings: list[tuple[float, float]], args, device: str) -> dict:
    """A table as `tables.py` takes it."""
    columns = ["case", "parameters (K)", "mult-adds (G)", "median (ms)", "least (ms)", "most (ms)", "times faster"]
    columns += [f"per cent of the {ceiling} ceiling" for ceiling in ("arithmetic", "bandwidth")]
    flops, bandwidths = zip(*ceilings, strict=True)
    where = torch.cuda.get_device_name() if device == "cuda" else processor()
    notes = [
        f"{args.n_runs} turns after {warm_up(device)} of warm-up, a group's cases in turn, each in its own process; "
        "float32, no TF32, if nothing else is said",
        "times faster: than the first case of the group, the median over the turns",
        f"ceilings, measured in the same turns: {min(flops) / 1e9:.0f} to {max(flops) / 1e9:.0f} GFLOP/s in a matrix "
        f"product, {min(bandwidths) / 1e9:.1f} to {max(bandwidths) / 1e9:.1f} GB/s in a copy",
        f"{where} ({', '.join(cpu_features())}), {torch.get_num_threads()} threads; {platform.platform()}; "
        f"{args.load:.2f} processes of others were running before",
        f"Python {platform.python_version()}, torch {torch.__version__}, git commit {git_commit()}",
    ]
    return {"title": f"{args.command}, {device}", "columns": columns, "rows": rows, "notes": notes}


if __name__ == "__main__":
    run_program(main)
