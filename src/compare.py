"""One table of networks: size, cost, speed, memory and scores, all measured here and now.

    python compare.py bicubic CFGN_x4.pt ../experiment/my_krgn_x4 --data_test Set5+Set14 --out ../experiment/table

A row is a checkpoint, an experiment's folder (its best weights), or the word `bicubic`; all must have one scale. Every
network is folded first, as it is deployed. The table is printed, and with --out written as Markdown, CSV, JSON and
LaTeX. --plot Set5 draws PSNR on Set5 against latency, mult-adds and parameters beside the table, and with --table draws
a table that was written before, without measuring anything.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from data import resize
from data.sets import Opening, open_test_sets
from data.testset import TestSet
from evaluation.evaluate import evaluate
from evaluation.metrics import Protocol
from model import cffb
from model.checkpoint import model_of, rebuild, unpack
from model.networks import MODELS, count_parameters
from model.precision import AUTOCAST, autocast, cpu_features, resolve
from model.recalibration import fold, is_recalibrated
from model.tiling import peak_bytes
from model.weights import load_tensors
from option import build_parser as training_parser
from reporting.tables import as_text, make_folder, read_table, refuse_foreign, write_all
from reporting.tradeoff import PUBLISHED as PUBLISHED_MARK
from reporting.tradeoff import refuse_foreign_figures, write_figures
from runtime.errors import UserError, run
from runtime.files import digest
from runtime.flags import Parser, number, path_flag, plain_names, scale_factor, weights_file, whole_number
from runtime.hardware import choose_device, load_of_others, processor, seed_everything, timed
from runtime.provenance import git_commit

OUTPUT = (720, 1280)  # (H, W) of the SR image that cost and speed refer to, as in publications
WARM_UP = 2  # runs of each network before the timed ones

SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109")


class Published(NamedTuple):
    """What a method's authors print: parameters in thousands, mult-adds in G, (PSNR, SSIM) on the first of `SETS`."""

    parameters: float | None
    mult_adds: float | None
    scores: tuple[tuple[float, float], ...]


# By (method, scale).
PUBLISHED = {
    ("bicubic", 2): Published(None, None, ((33.66, 0.9299), (30.23, 0.8687))),
    ("bicubic", 3): Published(None, None, ((30.39, 0.8682), (27.54, 0.7736))),
    ("bicubic", 4): Published(None, None, ((28.42, 0.8104), (26.00, 0.7019))),
    ("SRCNN", 2): Published(None, 52.7, ((36.66, 0.9542), (32.42, 0.9063), (31.36, 0.8879), (29.50, 0.8946))),
    ("CFGN", 2): Published(
        601, 130.9, ((38.03, 0.9607), (33.74, 0.9197), (32.23, 0.9004), (32.47, 0.9316), (38.96, 0.9777))
    ),
    ("KRGN", 2): Published(
        588, 128.3, ((38.12, 0.9609), (33.81, 0.9203), (32.27, 0.9010), (32.50, 0.9316), (39.00, 0.9780))
    ),
    ("IMDN", 2): Published(
        694, 158.8, ((38.00, 0.9605), (33.63, 0.9177), (32.19, 0.8996), (32.17, 0.9283), (38.88, 0.9774))
    ),
    ("SRCNN", 3): Published(None, 52.7, ((32.75, 0.9090), (29.28, 0.8209))),
    ("CFGN", 3): Published(
        601, 59.0, ((34.41, 0.9274), (30.44, 0.8443), (29.16, 0.8066), (28.37, 0.8575), (33.81, 0.9459))
    ),
    ("KRGN", 3): Published(
        588, 57.1, ((34.54, 0.9282), (30.46, 0.8443), (29.20, 0.8067), (28.38, 0.8573), (33.84, 0.9460))
    ),
    ("IMDN", 3): Published(
        703, 71.5, ((34.36, 0.9270), (30.32, 0.8417), (29.09, 0.8046), (28.17, 0.8519), (33.61, 0.9445))
    ),
    ("SRCNN", 4): Published(
        8, 52.7, ((30.48, 0.8626), (27.50, 0.7513), (26.90, 0.7101), (24.52, 0.7221), (27.58, 0.8555))
    ),
    ("CFGN", 4): Published(
        621, 59.0, ((32.32, 0.8957), (28.67, 0.7832), (27.60, 0.7377), (26.22, 0.7916), (30.63, 0.9101))
    ),
    ("KRGN", 4): Published(
        612, 31.6, ((32.38, 0.8963), (28.72, 0.7835), (27.65, 0.7384), (26.35, 0.7920), (30.80, 0.9115))
    ),
    ("CARN", 4): Published(
        1592, 90.9, ((32.13, 0.8937), (28.60, 0.7806), (27.58, 0.7349), (26.07, 0.7837), (30.47, 0.9084))
    ),
    ("IMDN", 4): Published(
        715, 40.9, ((32.21, 0.8948), (28.58, 0.7811), (27.56, 0.7353), (26.04, 0.7838), (30.45, 0.9075))
    ),
    ("RFDN", 4): Published(
        643, 31.0, ((32.28, 0.8957), (28.61, 0.7818), (27.58, 0.7363), (26.20, 0.7883), (30.61, 0.9096))
    ),
}


@dataclass
class Method:
    """A row: the network as it was saved and as it is deployed, and where it came from.

    Attributes:
        source, sha256: file of the network; empty for bicubic.
        latencies, trained_latencies: seconds of each timed run, deployed and in training form.
    """

    name: str
    trained: nn.Module
    deployed: nn.Module
    scale: int
    rgb_range: float = 255
    n_colors: int = 3
    source: str = ""
    sha256: str = ""
    latencies: list[float] = field(default_factory=list)
    trained_latencies: list[float] = field(default_factory=list)


class Bicubic(nn.Module):
    """MATLAB's bicubic enlargement of an image in 0..255, (N, C, H, W), rounded to whole values."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        enlarged = torch.stack([torch.from_numpy(resize.upscale(image, self.scale)) for image in pixels])
        return enlarged.permute(0, 3, 1, 2).to(images)


def build_parser() -> Parser:
    """The command line of this program; flags that `main.py` has mean the same."""
    parser = Parser(
        prog="compare.py",
        description="Size, cost, speed, memory and scores of networks, in one table.",
        examples=(
            "python compare.py bicubic KRGN_x4 --data_test none",
            "python compare.py bicubic KRGN_x4 --published --data_test Set5 --out ../experiment/table --plot Set5",
            "python compare.py --table ../experiment/KRGN_x4/table.json --plot Set14 --out ../experiment/released_x4",
        ),
    )
    default = training_parser().get_default
    # fmt: off
    add = parser.add_argument
    add("rows", type=weights_file, nargs="*", metavar="ROW", help="checkpoint, experiment folder, or bicubic")
    add("--dir_data", default=default("dir_data"), metavar="DIR", type=path_flag, help="folder of the data sets")
    add("--data_test", default="Set5+Set14", metavar="A+B", type=plain_names,
        help="test sets, or none (default Set5+Set14)")
    add("--ext", choices=("sep", "img"), default="sep", help="as in main.py (default sep)")
    add("--chop", action="store_true", help="test in four quadrants, as published scores were taken")
    add("--tile", type=whole_number(0), default=0, metavar="PIXELS", help="test in tiles; 0: do not (default 0)")
    add("--self_ensemble", action="store_true", help="test with self-ensemble")
    add("--metric_channel", choices=("y", "rgb"), default="y", help="as in main.py (default y)")
    add("--precision", choices=("single", "half", "bf16", "auto"), default="single",
        help="as in main.py (default single)")
    add("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    add("--n_runs", type=whole_number(0), default=5, metavar="N", help="timed runs of each row; 0: none (default 5)")
    add("--dilation", type=whole_number(1), metavar="N", help="dilation of bare KRGN state dicts (default 3)")
    add("--res_scale", type=number(above=0), metavar="F", help="res_scale of bare EDSR state dicts (default 1)")
    add("--scale", type=scale_factor, metavar="S", help="for a table of bicubic alone")
    add("--published", action="store_true", help="add rows of what publications report, marked as such")
    add("--out", metavar="FILE", type=path_flag, help="write FILE.md, FILE.csv, FILE.json and FILE.tex")
    add("--plot", default=(), metavar="A+B", type=plain_names,
        help="draw PSNR on these test sets against latency, mult-adds and parameters, as FILE-A.png and FILE-A.pdf")
    add("--table", metavar="FILE", type=path_flag,
        help="with --plot: draw this JSON table of compare.py, and measure nothing (default --out: beside it)")
    # fmt: on
    return parser


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How all rows are measured; `others` is the number of other processes that were running before."""

    device: torch.device
    protocol: Protocol
    n_runs: int
    others: float


def main(argv: list[str] | None = None) -> None:
    """Measures and prints the table; `errors.run` says how failures end."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.table:
        draw_again(args)
        return
    if not args.rows:
        parser.error("the following arguments are required: ROW, as in compare.py bicubic KRGN_x4")
    check_flags(args)
    if args.out:
        refuse_foreign(args.out)
        refuse_foreign_figures(args.out, args.plot)
    cffb.build_when_needed()
    device = choose_device(cpu=args.cpu, n_gpus=1, asked=False)
    others = load_of_others()
    precision = resolve(args.precision, device)
    seed_everything(0)
    unseen = {"dilation": args.dilation, "res_scale": args.res_scale}
    loaded = [None if row == "bicubic" else load(row, device, unseen) for row in args.rows]
    networks = [method for method in loaded if method is not None]
    scale, n_colors = only_scale(networks, args.scale), only_n_colors(networks)
    methods = [bicubic(scale) if method is None else method for method in loaded]
    number_equal_names(methods)
    names = () if args.data_test == ("none",) else args.data_test
    dir_data, opening = Path(args.dir_data).absolute(), Opening(scale, args.ext)
    test_sets = open_test_sets(names, dir_data=dir_data, opening=opening, n_colors=n_colors)
    if args.n_runs:
        time_all(methods, args.n_runs, device, precision)
    protocol = Protocol(
        channel=args.metric_channel,
        crop_border=scale,
        chop=args.chop,
        tile=args.tile,
        self_ensemble=args.self_ensemble,
        precision=precision,
        n_colors=n_colors,
    )
    conditions = Conditions(device=device, protocol=protocol, n_runs=args.n_runs, others=others)
    table = make_table(methods, test_sets, conditions, published=args.published)
    print("\n" + as_text(table))
    if args.out:
        written = write_all(table, args.out) + write_figures(table, args.out, args.plot)
        print(f"\nwritten: {', '.join(map(str, written))}")


def check_flags(args) -> None:
    """Refuses what cannot be measured or drawn, before anything is measured.

    Raises:
        UserError: with the flag to change.
    """
    if args.chop and args.tile:
        raise UserError(f"--chop and --tile {args.tile} are two ways to cut an image: give one of them")
    if "Demo" in args.data_test:
        raise UserError("--data_test Demo has no HR images to compare with: name other sets, or none")
    if args.plot and not args.out:
        raise UserError(f"--plot {'+'.join(args.plot)} writes files beside the table: give --out FILE")
    for name in args.plot:
        if name not in args.data_test:
            tested = "+".join(args.data_test)
            raise UserError(f"--plot {name}: is not among --data_test {tested}: add it there, or plot one of these")
    if args.plot and not args.published and all(row == "bicubic" for row in args.rows):
        raise UserError("--plot: bicubic has no latency, mult-adds or parameters: add networks, or --published")


def draw_again(args) -> None:
    """Draws the figures of --plot from the table of --table.

    Raises:
        UserError: if there is nothing to draw, flags that measure were given, or the table lacks a set.
    """
    if not args.plot:
        raise UserError(f"--table {args.table}: name the test set to draw, as in --plot Set5")
    if args.rows:
        raise UserError(f"--table {args.table} is drawn as it is: drop {args.rows[0]}, or measure anew without --table")
    defaults = build_parser().parse_args([])
    for name in vars(args).keys() - {"rows", "table", "plot", "out"}:
        if getattr(args, name) != getattr(defaults, name):
            raise UserError(f"--table {args.table} is drawn as it is: drop --{name}, or measure anew without --table")
    try:
        table = read_table(Path(args.table))
    except UserError as error:
        raise UserError(f"--table {error}") from None
    stem = args.out or str(Path(args.table).with_suffix(""))
    make_folder(stem)
    print(f"written: {', '.join(map(str, write_figures(table, stem, args.plot)))}")


def bicubic(scale: int) -> Method:
    """The row of bicubic enlargement."""
    network = Bicubic(scale)
    return Method("bicubic", network, network, scale)


def load(row: str, device: torch.device, unseen: dict[str, float | None]) -> Method:
    """A network's row.

    Args:
        row: a checkpoint, or the folder of an experiment.
        unseen: hyper-parameters to use for files that need them and do not state them; None: the published ones.

    Raises:
        UserError: if there is no such file, or an experiment without weights.
    """
    path = Path(row)
    name = path.stem
    if path.is_dir():
        name = path.resolve().name
        found = [path / "model" / f"model_{which}.pt" for which in ("best", "latest")]
        path = next((file for file in found if file.is_file()), None)
        if path is None:
            raise UserError(f"{row}: has neither {found[0]} nor {found[1].name}: name an experiment that was trained")
    checkpoint = unpack(load_tensors(path), str(path))
    if path.stem.startswith("model_") and path.parent.name == "model":
        name = path.resolve().parent.parent.name
    unknown = MODELS[model_of(checkpoint)].UNSEEN.keys() - checkpoint.facts.keys()
    trained = rebuild(checkpoint, **{flag: unseen.get(flag) for flag in unknown})
    trained = trained.eval().to(device, memory_format=torch.channels_last)
    shape = trained.hyperparameters
    return Method(
        name,
        trained,
        fold(trained),
        shape["scale"],
        shape["rgb_range"],
        shape["n_colors"],
        str(path),
        digest(path),
    )


def only_scale(networks: list[Method], given: int | None) -> int:
    """The scale of all rows; `given` is that of --scale.

    Raises:
        UserError: if they differ, or there is none.
    """
    scales = {method.scale for method in networks} | ({given} if given else set())
    if len(scales) != 1:
        found = ", ".join(f"{method.name} x{method.scale}" for method in networks) or "bicubic alone"
        also = f" and --scale {given}" if given else ""
        fix = "make a table for each scale" if scales else "give --scale"
        raise UserError(f"rows of one scale are needed, got {found}{also}: {fix}")
    return scales.pop()


def only_n_colors(networks: list[Method]) -> int:
    """Channels of all rows, 3 without networks.

    Raises:
        UserError: if they differ.
    """
    found = {method.n_colors for method in networks} or {3}
    if len(found) > 1:
        raise UserError("rows of --n_colors 1 and 3 do not fit in one table: make a table for each")
    return found.pop()


def number_equal_names(methods: list[Method]) -> None:
    """Numbers names that occur more than once."""
    for method in methods:
        alike = [other for other in methods if other.name == method.name]
        if len(alike) > 1:
            for place, other in enumerate(alike, start=1):
                other.name = f"{other.name} ({place})"


# --- measurements ---


@torch.inference_mode()
def time_all(methods: list[Method], n_runs: int, device: torch.device, precision: str) -> None:
    """Times all networks in turn, deployed and as saved, so that a machine that slows down affects all rows alike."""
    runs: list[tuple[nn.Module, torch.Tensor, list[float]]] = []
    for method in methods:
        if not method.source:
            continue
        image = (torch.rand(1, method.n_colors, *lr_size(method.scale)) * method.rgb_range).to(device)
        image = image.contiguous(memory_format=torch.channels_last)
        runs.append((method.deployed, image, method.latencies))
        if is_recalibrated(method.trained):
            runs.append((method.trained, image, method.trained_latencies))
    for turn in tqdm(range(-WARM_UP, n_runs), desc="timing", disable=None, leave=False):
        for network, image, found in runs:
            with autocast(device, precision):
                seconds = timed(lambda network=network, image=image: network(image), device)
            if turn >= 0:
                found.append(seconds)


def lr_size(scale: int) -> tuple[int, int]:
    """(H, W) of the LR image whose SR image has the size `OUTPUT`, rounded up if the scale does not divide it."""
    return tuple(math.ceil(side / scale) for side in OUTPUT)


def mult_adds(network: nn.Module, scale: int, n_colors: int) -> float:
    """Multiply-accumulates of all matrix products and convolutions for an SR image of the size `OUTPUT`.

    Counted by operator, on tensors without content. If the scale does not divide the size, the next larger image is
    counted, and the count scaled by the areas.
    """
    size = lr_size(scale)
    copy = fold(network).to("meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        copy(torch.empty(1, n_colors, *size, device="meta"))
    area = OUTPUT[0] * OUTPUT[1] / (size[0] * size[1] * scale**2)
    return counter.get_total_flops() / 2 * area


def memory(method: Method, device: torch.device, precision: str) -> int:
    """Most bytes of weights, input and features that live at the same time, for the image that is timed."""
    image = torch.rand(1, method.n_colors, *lr_size(method.scale)).to(device, memory_format=torch.channels_last)
    network = method.deployed
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.inference_mode(), autocast(device, precision):
            network(image)
        return torch.cuda.max_memory_allocated(device) - before + weights + image.nbytes
    with torch.inference_mode(), autocast(device, precision):
        return peak_bytes(network, image) + weights + image.nbytes


# --- the table ---


def make_table(methods: list[Method], test_sets: Sequence[TestSet], conditions: Conditions, *, published: bool) -> dict:
    """A row per method, as a table of `reporting.tables`."""
    timings = bool(conditions.n_runs)
    columns = ["method", "parameters (training)", "parameters (deployed)", "mult-adds (G)"]
    columns += ["latency (ms)", "90th percentile (ms)", "training form / deployed"] * timings + ["memory (MiB)"]
    columns += [f"{test_set.name} {name}" for test_set in test_sets for name in ("PSNR", "SSIM")]
    rows = [make_row(method, test_sets, conditions) for method in methods]
    scale = methods[0].scale
    if published:
        rows += published_rows(scale, columns)
    return {
        "title": f"x{scale}",
        "columns": columns,
        "rows": rows,
        "notes": notes(methods, conditions, published=published),
    }


def make_row(method: Method, test_sets: Sequence[TestSet], conditions: Conditions) -> list:
    """Name, size, cost, speed, memory and scores; None for what bicubic does not have."""
    protocol, network = conditions.protocol, bool(method.source)
    row = [method.name]
    row += [count_parameters(form) if network else None for form in (method.trained, method.deployed)]
    row += [round(mult_adds(method.deployed, method.scale, method.n_colors) / 1e9, 2) if network else None]
    row += latency_cells(method) if conditions.n_runs else []
    row += [round(memory(method, conditions.device, protocol.precision) / 2**20, 1) if network else None]
    for test_set in test_sets:
        scores = evaluate(
            method.deployed,
            test_set,
            device=conditions.device,
            rgb_range=method.rgb_range,
            chop=protocol.chop and network,
            tile=protocol.tile if network else 0,
            self_ensemble=protocol.self_ensemble and network,
            channel=protocol.channel,
            precision=protocol.precision,
        )
        row += [scores.psnr, scores.ssim]  # not rounded: what is rounded twice may end in another digit
    return row


def latency_cells(method: Method) -> list:
    """Median and 90th percentile in milliseconds, and the training form's median over that."""
    if not method.latencies:
        return [None] * 3
    times = [1000 * seconds for seconds in method.latencies]
    high = statistics.quantiles(times, n=10, method="inclusive")[-1] if len(times) > 1 else times[0]
    median = statistics.median(times)
    slower = round(1000 * statistics.median(method.trained_latencies) / median, 3) if method.trained_latencies else None
    return [round(median, 2), round(high, 2), slower]


def published_rows(scale: int, columns: list[str]) -> list[list]:
    """What publications report for this scale, marked as such."""
    rows = []
    for (name, its_scale), printed in PUBLISHED.items():
        if its_scale != scale:
            continue
        parameters = printed.parameters and 1000 * printed.parameters
        cells = {"method": f"{name}{PUBLISHED_MARK}", "parameters (deployed)": parameters}
        cells |= {"mult-adds (G)": printed.mult_adds}
        for set_name, (psnr, ssim) in zip(SETS, printed.scores, strict=False):
            cells |= {f"{set_name} PSNR": psnr, f"{set_name} SSIM": ssim}
        rows.append([cells.get(column) for column in columns])
    return rows


def notes(methods: list[Method], conditions: Conditions, *, published: bool) -> list[str]:
    """What was measured, how, and of which files."""
    height, width = lr_size(methods[0].scale)
    device, protocol = conditions.device, conditions.protocol
    arithmetic = str(AUTOCAST.get(protocol.precision, torch.float32)).removeprefix("torch.")
    lines = [
        f"scores: {protocol}; {arithmetic}; bicubic: the LR file enlarged by MATLAB's recipe, whole image",
        "every network is folded; parameters include the fixed mean shift of 24",
        f"mult-adds: matrix products and convolutions, counted by operator, for {OUTPUT[1]}x{OUTPUT[0]} output",
        f"memory: weights, input and features alive at one time, {arithmetic}, for a {width}x{height} input",
    ]
    if conditions.n_runs:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
        lines.append(
            f"latency: {conditions.n_runs} runs, rows in turn, after {WARM_UP} of warm-up; {width}x{height} input, "
            f"{arithmetic}, channels last; {where} ({', '.join(cpu_features())}){threads}; "
            f"{conditions.others:.2f} processes of others were running before"
        )
    if published:
        lines.append("published: as printed by the authors, not measured; their bicubic follows SRCNN's protocol")
    lines.append(f"torch {torch.__version__}, git commit {git_commit()}")
    return lines + [f"{method.name}: {method.source}, SHA-256 {method.sha256}" for method in methods if method.source]


if __name__ == "__main__":
    run(main)
