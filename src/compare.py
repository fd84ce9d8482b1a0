"""One table of any set of networks: size, cost, speed, memory and scores, each measured here and now.

    python compare.py bicubic CFGN_x4.pt ../experiment/my_krgn_x4 --data_test Set5+Set14 --out ../experiment/table

A row is a checkpoint, an experiment's folder (its best weights), or the word `bicubic`; all must have one scale. Every
network is folded first, as it is deployed. Prints the table, and writes it as Markdown, CSV, JSON and LaTeX with --out.
"""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from data import build_test_sets, resize
from evaluation.evaluate import evaluate, protocol
from model import MODELS, cffb, count_parameters
from model.checkpoint import model_of, rebuild, unpack
from model.precision import AUTOCAST, autocast, cpu_features, resolve
from model.recalibration import fold, is_recalibrated
from model.tiling import peak_bytes
from option import build_parser as training_parser
from option import parse_args
from reporting.tables import as_text, refuse_foreign, tabulate, write_all
from runtime.errors import UserError, run
from runtime.files import digest
from runtime.flags import Parser, number, path_flag, weights_file, whole_number
from runtime.hardware import choose_device, load_of_others, processor, seed_everything, timed
from runtime.provenance import git_commit
from runtime.tensor_files import load_tensors

__all__ = ["tabulate"]  # torch looks for the PyPI package of this name when a program ends, and finds this file

OUTPUT = (720, 1280)  # (H, W) of the SR image to which cost and speed refer, as in publications
WARM_UP = 2

SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109")
# (method, scale): what its authors print: parameters in thousands, mult-adds in G, and PSNR and SSIM on `SETS`.
# fmt: off
PUBLISHED = {
    ("bicubic", 2): (None, None, (33.66, 0.9299), (30.23, 0.8687)),
    ("bicubic", 3): (None, None, (30.39, 0.8682), (27.54, 0.7736)),
    ("bicubic", 4): (None, None, (28.42, 0.8104), (26.00, 0.7019)),
    ("SRCNN", 2): (None, 52.7, (36.66, 0.9542), (32.42, 0.9063), (31.36, 0.8879), (29.50, 0.8946)),
    ("CFGN", 2): (601, 130.9, (38.03, 0.9607), (33.74, 0.9197), (32.23, 0.9004), (32.47, 0.9316), (38.96, 0.9777)),
    ("KRGN", 2): (588, 128.3, (38.12, 0.9609), (33.81, 0.9203), (32.27, 0.9010), (32.50, 0.9316), (39.00, 0.9780)),
    ("SRCNN", 3): (None, 52.7, (32.75, 0.9090), (29.28, 0.8209)),
    ("CFGN", 3): (601, 59.0, (34.41, 0.9274), (30.44, 0.8443), (29.16, 0.8066), (28.37, 0.8575), (33.81, 0.9459)),
    ("KRGN", 3): (588, 57.1, (34.54, 0.9282), (30.46, 0.8443), (29.20, 0.8067), (28.38, 0.8573), (33.84, 0.9460)),
    ("SRCNN", 4): (8, 52.7, (30.48, 0.8626), (27.50, 0.7513), (26.90, 0.7101), (24.52, 0.7221), (27.58, 0.8555)),
    ("CFGN", 4): (621, 59.0, (32.32, 0.8957), (28.67, 0.7832), (27.60, 0.7377), (26.22, 0.7916), (30.63, 0.9101)),
    ("KRGN", 4): (612, 31.6, (32.38, 0.8963), (28.72, 0.7835), (27.65, 0.7384), (26.35, 0.7920), (30.80, 0.9115)),
    ("CARN", 4): (1592, 90.9, (32.13, 0.8937), (28.60, 0.7806), (27.58, 0.7349), (26.07, 0.7837), (30.47, 0.9084)),
    ("IMDN", 4): (715, 40.9, (32.21, 0.8948), (28.58, 0.7811), (27.56, 0.7353), (26.04, 0.7838), (30.45, 0.9075)),
    ("RFDN", 4): (643, 31.0, (32.28, 0.8957), (28.61, 0.7818), (27.58, 0.7363), (26.20, 0.7883), (30.61, 0.9096)),
}
# fmt: on


@dataclass
class Method:
    """A row: the network as it was saved and as it is deployed, and where it came from."""

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
    parser = Parser(prog="compare.py", description="Size, cost, speed, memory and scores of networks, in one table.")
    default = training_parser().get_default
    parser.add_argument(
        "rows", type=weights_file, nargs="+", metavar="ROW", help="checkpoint, experiment folder, or bicubic"
    )
    parser.add_argument(
        "--dir_data", default=default("dir_data"), metavar="DIR", type=path_flag, help="folder of the data sets"
    )
    parser.add_argument(
        "--data_test", default="Set5+Set14", metavar="A+B", help="test sets, or none (default Set5+Set14)"
    )
    parser.add_argument("--ext", choices=("sep", "img"), default="sep", help="as in main.py (default sep)")
    parser.add_argument("--chop", action="store_true", help="test in four quadrants, as published scores were taken")
    parser.add_argument("--tile", type=whole_number(0), default=0, metavar="PIXELS", help="test in tiles")
    parser.add_argument("--self_ensemble", action="store_true", help="test with self-ensemble")
    parser.add_argument("--metric_channel", choices=("y", "rgb"), default="y", help="as in main.py (default y)")
    parser.add_argument(
        "--precision",
        choices=("single", "half", "bf16", "auto"),
        default="single",
        help="as in main.py (default single)",
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument(
        "--n_runs", type=whole_number(0), default=5, metavar="N", help="timed runs of each row; 0: none (default 5)"
    )
    parser.add_argument("--dilation", type=whole_number(1), metavar="N", help="of bare KRGN state dicts (default 3)")
    parser.add_argument("--res_scale", type=number(above=0), metavar="F", help="of bare EDSR state dicts (default 1)")
    parser.add_argument("--scale", type=whole_number(1), metavar="S", help="for a table of bicubic alone")
    parser.add_argument("--published", action="store_true", help="add the rows that publications report, marked so")
    parser.add_argument("--out", metavar="FILE", type=path_flag, help="write FILE.md, FILE.csv, FILE.json and FILE.tex")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measures and prints the table; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    if args.chop and args.tile:
        raise UserError(f"--chop and --tile {args.tile} are two ways to cut an image: give one of them")
    if "Demo" in args.data_test.split("+"):
        raise UserError("--data_test Demo has no HR images to compare with: name other sets, or none")
    if args.out:
        refuse_foreign(args.out)
    cffb.build_when_needed()
    device = choose_device(cpu=args.cpu, n_gpus=1, asked=False)
    args.load = load_of_others()
    args.precision = resolve(args.precision, device)
    seed_everything(0)
    methods = [load(row, args, device) for row in args.rows]
    scale = only_scale(methods, args)
    for method in methods:
        if isinstance(method.deployed, Bicubic):
            method.scale, method.deployed.scale = scale, scale
    names_apart(methods)
    options = parse_args(
        [
            *("--test_only", "--pre_train", "-", "--dir_data", args.dir_data, "--scale", str(scale), "--ext", args.ext),
            *("--data_test", "Set5" if args.data_test == "none" else args.data_test),
            *("--tile", str(args.tile), "--metric_channel", args.metric_channel),
            *("--n_colors", str(next((method.n_colors for method in methods if method.source), 3))),
            *(["--chop"] * args.chop + ["--self_ensemble"] * args.self_ensemble),
        ]
    )
    test_sets = [] if args.data_test == "none" else build_test_sets(options)
    if args.n_runs:
        time_all(methods, args.n_runs, device, args.precision)
    table = make_table(methods, test_sets, options, args, device)
    print("\n" + as_text(table))
    if args.out:
        print(f"\nwritten: {', '.join(map(str, write_all(table, args.out)))}")


def load(row: str, args, device: torch.device) -> Method:
    """A row's network.

    Raises:
        UserError: if there is no such file, or an experiment without weights.
    """
    if row == "bicubic":
        network = Bicubic(args.scale or 1)
        return Method("bicubic", network, network, 0)
    path = Path(row)
    name = path.stem
    if path.is_dir():
        name = path.resolve().name
        found = [path / "model" / f"model_{which}.pt" for which in ("best", "latest")]
        path = next((file for file in found if file.is_file()), None)
        if path is None:
            raise UserError(f"{row}: holds neither {found[0]} nor {found[1].name}: name an experiment that was trained")
    checkpoint = unpack(load_tensors(path), str(path))
    if path.stem.startswith("model_") and path.parent.name == "model":
        name = path.resolve().parent.parent.name
    # The flags are for those of the files that need them and do not say.
    unknown = MODELS[model_of(checkpoint)].UNSEEN.keys() - checkpoint.facts.keys()
    trained = rebuild(checkpoint, **{flag: getattr(args, flag, None) for flag in unknown})
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


def only_scale(methods: list[Method], args) -> int:
    """The scale of all rows.

    Raises:
        UserError: if they differ, or there is none.
    """
    scales = {method.scale for method in methods if method.scale} | ({args.scale} if args.scale else set())
    if len(scales) != 1:
        found = ", ".join(f"{method.name} x{method.scale}" for method in methods if method.scale) or "bicubic alone"
        given = f" and --scale {args.scale}" if args.scale else ""
        mend = "make a table for each scale" if scales else "give --scale"
        raise UserError(f"rows of one scale are needed, got {found}{given}: {mend}")
    if len({method.n_colors for method in methods if method.source}) > 1:
        raise UserError("rows of --n_colors 1 and 3 do not fit in one table: make two")
    return scales.pop()


def names_apart(methods: list[Method]) -> None:
    """Numbers names that occur twice."""
    for method in methods:
        alike = [other for other in methods if other.name == method.name]
        if len(alike) > 1:
            for number, other in enumerate(alike, start=1):
                other.name = f"{other.name} ({number})"


# --- measurements ---


@torch.inference_mode()
def time_all(methods: list[Method], n_runs: int, device: torch.device, precision: str) -> None:
    """Times every network, deployed and as saved, in turn, so that a machine that slows down slows all rows alike."""
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
    """(H, W) of the LR image whose SR image is of the size `OUTPUT`, rounded up where the scale does not divide it."""
    return tuple(math.ceil(side / scale) for side in OUTPUT)


def mult_adds(network: nn.Module, scale: int, n_colors: int) -> float:
    """Multiply-accumulates of all matrix products and convolutions for an SR image of the size `OUTPUT`.

    Counted by operator, whoever calls it, on tensors without content. Where the scale does not divide the size, the
    count is that of the next larger image, in proportion.
    """
    size = lr_size(scale)
    copy = fold(network).to("meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        copy(torch.empty(1, n_colors, *size, device="meta"))
    area = OUTPUT[0] * OUTPUT[1] / (size[0] * size[1] * scale**2)
    return counter.get_total_flops() / 2 * area


def memory(method: Method, device: torch.device, precision: str) -> int:
    """Bytes of weights, image and features that live at the same time, at most, for the image that is timed."""
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


def make_table(methods: list[Method], test_sets: list, options, args, device: torch.device) -> dict:
    """{"title", "columns", "rows", "notes"}: the first column names the row; a cell is text, a number or None."""
    scale, timings = methods[0].scale, bool(args.n_runs)
    columns = ["method", "parameters (training)", "parameters (deployed)", "mult-adds (G)"]
    columns += ["latency (ms)", "90th percentile (ms)", "training form / deployed"] * timings + ["memory (MiB)"]
    columns += [f"{test_set.name} {name}" for test_set in test_sets for name in ("PSNR", "SSIM")]
    rows = []
    for method in methods:
        network = bool(method.source)
        row = [method.name]
        row += [count_parameters(form) if network else None for form in (method.trained, method.deployed)]
        row += [round(mult_adds(method.deployed, scale, method.n_colors) / 1e9, 2) if network else None]
        if timings:
            row += latency_cells(method)
        row += [round(memory(method, device, args.precision) / 2**20, 1) if network else None]
        for test_set in test_sets:
            scores = evaluate(
                method.deployed,
                test_set,
                device=device,
                rgb_range=method.rgb_range,
                chop=args.chop and network,
                tile=args.tile if network else 0,
                self_ensemble=args.self_ensemble and network,
                channel=args.metric_channel,
                precision=args.precision,
            )
            row += [scores.psnr, scores.ssim]  # whole: what is rounded twice may end on another digit
        rows.append(row)
    if args.published:
        rows += published_rows(scale, columns)
    return {
        "title": f"x{scale}",
        "columns": columns,
        "rows": rows,
        "notes": notes(methods, options, args, device),
    }


def latency_cells(method: Method) -> list:
    """Median and 90th percentile in milliseconds, and how much slower the training form is."""
    if not method.latencies:
        return [None] * 3
    times = [1000 * seconds for seconds in method.latencies]
    high = statistics.quantiles(times, n=10, method="inclusive")[-1] if len(times) > 1 else times[0]
    median = statistics.median(times)
    slower = round(1000 * statistics.median(method.trained_latencies) / median, 3) if method.trained_latencies else None
    return [round(median, 2), round(high, 2), slower]


def published_rows(scale: int, columns: list[str]) -> list[list]:
    """What publications report for this scale, marked."""
    rows = []
    for (name, its_scale), (thousands, giga, *scores) in PUBLISHED.items():
        if its_scale != scale:
            continue
        cells = {"method": f"{name} (published)", "parameters (deployed)": thousands and 1000 * thousands}
        cells |= {"mult-adds (G)": giga}
        for set_name, (psnr, ssim) in zip(SETS, scores, strict=False):
            cells |= {f"{set_name} PSNR": psnr, f"{set_name} SSIM": ssim}
        rows.append([cells.get(column) for column in columns])
    return rows


def notes(methods: list[Method], options, args, device: torch.device) -> list[str]:
    """What was measured and how, and of which files."""
    height, width = lr_size(methods[0].scale)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    arithmetic = str(AUTOCAST.get(args.precision, torch.float32)).removeprefix("torch.")
    said = [
        f"scores: {protocol(options)}; {arithmetic}; bicubic: the LR file enlarged by MATLAB's recipe, whole image",
        "every network is folded; parameters include the fixed mean shift of 24",
        f"mult-adds: matrix products and convolutions, counted by operator, for {OUTPUT[1]}x{OUTPUT[0]} output",
        f"memory: weights, input and features alive at one time, {arithmetic}, for a {width}x{height} input",
    ]
    if args.n_runs:
        said.append(
            f"latency: {args.n_runs} runs, rows in turn, after {WARM_UP} of warm-up; {width}x{height} input, "
            f"{arithmetic}, channels last; {where} ({', '.join(cpu_features())}){threads}; "
            f"{args.load:.2f} processes of others were running before"
        )
    if args.published:
        said.append("published: as printed by the authors, not measured; their bicubic follows SRCNN's protocol")
    said.append(f"torch {torch.__version__}, git commit {git_commit()}")
    return said + [f"{method.name}: {method.source}, SHA-256 {method.sha256}" for method in methods if method.source]


if __name__ == "__main__":
    run(main)
