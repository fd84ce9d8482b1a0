"""Does recalibration help? The paper's claim on a network small enough for this machine, over several seeds.

    python -m studies.ablation --dir_data ../dataset --data_train DIV2K --out ../experiment/ablation/table

Every arm is trained by main.py with the same data, rate and schedule, from every seed:

    plain                      the network without recalibration
    plain, same time           likewise, for as many more steps as recalibrated kernels would cost in time
    recalibrated               basis and transforms trained together from scratch
    …, rate x2, x4, x8         both: whether recalibration does no more than a higher rate would
    plain, then plain          two stages of half the steps; the control of the next two
    plain, then frozen         RefConv's recipe: transforms over the kernels of a plain first half, which are frozen
    plain, then recalibrated   likewise, and the basis is trained on

The last epoch's PSNR counts, not the best one's. Runs are kept in --dir_experiment; a second start finishes what is
missing and makes the table and the figure out of all of them.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from model import cffb
from model.krgn import KRGN
from reporting import figures
from reporting.tables import as_text, read_csv, refuse_foreign, write_all
from runtime.errors import UserError
from runtime.errors import run as run_program
from runtime.files import read_json, write_bytes
from runtime.flags import Parser, number, path_flag, whole_number
from runtime.hardware import choose_device, keep_memory, processor, timed
from runtime.provenance import git_commit
from train.optim import OptimizerConfig, make_optimizer

SRC = Path(__file__).resolve().parent.parent
EPOCHS = 4  # validations of a stage
RATES = (2, 4, 8)  # times --lr, tried beside it
# What all runs of a comparison share.
SETTINGS = ("data_train", "data_test", "scale", "n_feats", "n_resgroups", "batch_size", "patch_size", "lr", "steps")
PLAIN, FROZEN, TRAINED = (
    ("--kernels", "plain"),
    ("--kernels", "recalibrated", "--basis", "frozen"),
    ("--kernels", "recalibrated", "--basis", "trained"),
)


@dataclass(frozen=True)
class Stage:
    """A run of main.py: its name, flags, share of the steps, the stage whose weights it starts from, and its rate over
    that of the others."""

    name: str
    flags: tuple[str, ...]
    share: float
    after: "Stage | None" = None
    rate: float = 1


def arms(cost: float) -> dict[str, Stage]:
    """Title -> the last stage of each arm, `cost` being the time of a recalibrated step over that of a plain one."""
    first = Stage("first", PLAIN, 0.5)
    higher = {
        at_rate(kernels, rate): Stage(f"{kernels}_rate_x{rate}", flags, 1, rate=rate)
        for rate in RATES
        for kernels, flags in (("plain", PLAIN), ("recalibrated", TRAINED))
    }
    return {
        "plain": Stage("plain", PLAIN, 1),
        "plain, same time": Stage("plain_same_time", PLAIN, cost),
        "recalibrated": Stage("recalibrated", TRAINED, 1),
        **higher,
        "plain, then plain": Stage("then_plain", PLAIN, 0.5, first),
        "plain, then frozen": Stage("then_frozen", FROZEN, 0.5, first),
        "plain, then recalibrated": Stage("then_recalibrated", TRAINED, 0.5, first),
    }


def at_rate(kernels: str, rate: int) -> str:
    """The title of the arm that is trained in one stage at `rate` times --lr."""
    return kernels if rate == 1 else f"{kernels}, rate x{rate}"


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="studies.ablation", description="Plain against recalibrated kernels, over several seeds.")
    count = whole_number(1)
    parser.add_argument("--dir_data", required=True, metavar="DIR", type=path_flag, help="folder of the data sets")
    parser.add_argument("--data_train", default="DIV2K", metavar="A", help="training set (default DIV2K)")
    parser.add_argument("--data_test", default="Kodak24", metavar="A", help="set that is scored (default Kodak24)")
    parser.add_argument("--scale", type=count, default=2, metavar="S", help="upscaling factor (default 2)")
    parser.add_argument("--n_feats", type=count, default=32, metavar="N", help="feature channels (default 32)")
    parser.add_argument("--n_resgroups", type=count, default=2, metavar="N", help="PMRB blocks (default 2)")
    parser.add_argument("--batch_size", type=count, default=8, metavar="N", help="patches a batch (default 8)")
    parser.add_argument("--patch_size", type=count, default=64, metavar="PIXELS", help="HR patch (default 64)")
    parser.add_argument(
        "--lr", type=number(above=0), default=1e-3, metavar="RATE", help="first learning rate (default 1e-3)"
    )
    parser.add_argument("--steps", type=whole_number(8), default=2000, metavar="N", help="of an arm (default 2000)")
    parser.add_argument("--seeds", type=whole_number(2), default=3, metavar="N", help="seeds 1 to N (default 3)")
    parser.add_argument("--n_threads", default="1", metavar="N", help="processes that load data (default 1)")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument(
        "--dir_experiment",
        default=str(SRC.parent / "experiment/ablation"),
        metavar="DIR",
        type=path_flag,
        help="folder of the runs",
    )
    parser.add_argument("--out", metavar="STEM", type=path_flag, help="write STEM.md, .csv, .json, .tex and .png")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Trains what is missing and reports; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    if args.patch_size % args.scale:
        raise UserError(f"--patch_size {args.patch_size} is no multiple of --scale {args.scale}: change one of them")
    if args.out:
        refuse_foreign(args.out, "png")
    args.dir_data, args.dir_experiment = map(os.path.abspath, (args.dir_data, args.dir_experiment))  # of where we are
    costs = agreed(args)
    plan = [
        (seed, stage)
        for seed in range(1, args.seeds + 1)
        for last in arms(costs["recalibrated"]).values()
        for stage in (last.after, last)
        if stage is not None
    ]
    for seed, stage in tqdm(list(dict.fromkeys(plan)), desc="runs", disable=None):
        train(args, stage, seed)
    table, values = summary(args, costs)
    print(as_text(table))
    if args.out:
        paths = write_all(table, args.out)
        picture = Path(f"{args.out}.png")
        write_bytes(picture, figures.spread(values, f"PSNR of Y on {args.data_test} x{args.scale} (dB)"))
        print(f"\nwritten: {', '.join(map(str, [*paths, picture]))}")


def agreed(args) -> dict[str, float]:
    """The costs of steps, measured when the first run is to be started; kept beside the runs with their settings.

    Raises:
        UserError: if the runs that are there were made with other settings.
    """
    kept = Path(args.dir_experiment) / "ablation.json"
    settings = {name: getattr(args, name) for name in SETTINGS}
    begun = any(kept.parent.glob("*/history.csv")) or any(kept.parent.glob("*/state.pt"))
    if not kept.exists() or not begun:
        write_bytes(kept, json.dumps({"settings": settings, "costs": measured_costs(args)}, indent=1).encode())
    found = read_json(kept)
    for name, value in settings.items():
        if found["settings"].get(name) != value:
            raise UserError(
                f"--{name} {value}, but the runs in {args.dir_experiment} were made with "
                f"{found['settings'].get(name)}: give that, or another --dir_experiment"
            )
    return found["costs"]


def measured_costs(args) -> dict[str, float]:
    """The time of a training step of each kind over that of a plain one, the median of steps taken in turn."""
    device = choose_device(cpu=args.cpu, n_gpus=1, asked=False)
    keep_memory()
    cffb.build_when_needed()
    side = args.patch_size // args.scale
    lr = (
        torch.rand(args.batch_size, 3, side, side, device=device).mul(255).contiguous(memory_format=torch.channels_last)
    )
    hr = torch.rand(args.batch_size, 3, args.patch_size, args.patch_size, device=device) * 255

    def stepper(**kernels):
        shape = {"scale": args.scale, "n_feats": args.n_feats, "n_resgroups": args.n_resgroups}
        network = KRGN(**shape, **kernels).to(device, memory_format=torch.channels_last)
        optimizer = make_optimizer(network.parameters(), OptimizerConfig())

        def step():
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.l1_loss(network(lr), hr).backward()
            optimizer.step()

        return step

    kinds = {
        "plain": stepper(recalibrated=False),
        "frozen": stepper(train_basis=False),
        "recalibrated": stepper(),
    }
    turns = [{name: timed(step, device) for name, step in kinds.items()} for _ in range(24)][4:]
    return {name: statistics.median(turn[name] / turn["plain"] for turn in turns) for name in kinds}


def run_name(stage: Stage, seed: int) -> str:
    """The folder of a run."""
    return f"{stage.name}_{seed}"


def train(args, stage: Stage, seed: int) -> None:
    """Starts the run, or goes on with it; returns at once if it is complete."""
    name, folder = run_name(stage, seed), Path(args.dir_experiment)
    if len(history(args, stage, seed)) == EPOCHS:
        return
    command = [sys.executable, "-u", "main.py", *["--cpu"] * args.cpu, "--n_threads", args.n_threads]
    command += ["--dir_experiment", str(folder), "--dir_data", args.dir_data]
    if (folder / name / "state.pt").exists():
        command += ["--load", name]
    else:
        command += ["--save", name, "--seed", str(seed), "--scale", str(args.scale), *stage.flags]
        command += ["--data_train", args.data_train, "--data_test", args.data_test, "--no_tensorboard"]
        command += ["--batch_size", str(args.batch_size), "--patch_size", str(args.patch_size)]
        command += ["--lr", str(args.lr * stage.rate)]
        command += ["--schedule", "cosine", "--warmup", "50", "--epochs", str(EPOCHS)]
        command += ["--test_every", str(max(1, round(args.steps * stage.share / EPOCHS)))]
        if stage.after is None:
            command += ["--n_feats", str(args.n_feats), "--n_resgroups", str(args.n_resgroups)]
        else:
            command += ["--pre_train", str(folder / run_name(stage.after, seed) / "model/model_latest.pt")]
    ended = subprocess.run(command, cwd=SRC, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]
        said = said.removeprefix("main.py: ").removeprefix("error: ")
        raise UserError(f"{folder / name}: its training ended: {said}")


def history(args, stage: Stage, seed: int) -> list[dict]:
    """The run's rows of history.csv; none if it has not got so far."""
    path = Path(args.dir_experiment) / run_name(stage, seed) / "history.csv"
    return read_csv(path, ("epoch",)) if path.exists() else []


def summary(args, costs: dict[str, float]) -> tuple[dict, dict[str, list[float]]]:
    """The table as `tables.py` takes it, and title -> PSNR of each seed."""
    found = arms(costs["recalibrated"])
    seeds = range(1, args.seeds + 1)
    column = f"{args.data_test} PSNR"
    values = {
        title: [float(history(args, stage, seed)[-1][column]) for seed in seeds] for title, stage in found.items()
    }
    cost_of = {PLAIN: costs["plain"], FROZEN: costs["frozen"], TRAINED: costs["recalibrated"]}
    rows = []
    for title, stage in found.items():
        stages = [part for part in (stage.after, stage) if part is not None]
        differences = [value - plain for value, plain in zip(values[title], values["plain"], strict=True)]
        rows.append(
            [
                title,
                round(sum(part.share for part in stages) * args.steps),
                sum(part.share * cost_of[part.flags] for part in stages),
                statistics.mean(values[title]),
                statistics.stdev(values[title]),
                statistics.mean(differences),
                statistics.stdev(differences),
            ]
        )
    columns = ["arm", "steps", "time, plain = 1", "PSNR (dB)", "its spread", "over plain (dB)", "its spread "]
    patches = f"{args.batch_size} patches of {args.patch_size // args.scale}x{args.patch_size // args.scale} LR pixels"
    notes = [
        f"KRGN x{args.scale}, {args.n_feats} features, {args.n_resgroups} blocks; {patches} of {args.data_train} a "
        f"step; rate {args.lr:g}, falling to 0 along half a cosine in each stage",
        f"PSNR of Y on {args.data_test} after the last epoch; mean and standard deviation over {args.seeds} seeds",
        "over plain: difference from the plain run of the same seed",
        f"recalibrated over plain at the same rate: {', '.join(at_each_rate(values))}",
        f"step times: {costs['recalibrated']:.3f} recalibrated, {costs['frozen']:.3f} over a frozen basis, plain = 1, "
        "taken in turn in one process",
        f"{processor()}; torch {torch.__version__}, git commit {git_commit()}",
    ]
    return {"title": "Does recalibration help?", "columns": columns, "rows": rows, "notes": notes}, values


def at_each_rate(values: dict[str, list[float]]) -> list[str]:
    """What recalibration gives at each rate: mean and standard deviation over the seeds, as text."""
    found = []
    for rate in (1, *RATES):
        pairs = zip(values[at_rate("recalibrated", rate)], values[at_rate("plain", rate)], strict=True)
        gains = [recalibrated - plain for recalibrated, plain in pairs]
        found.append(f"x{rate} {statistics.mean(gains):.2f} ± {statistics.stdev(gains):.2f}")
    return found


if __name__ == "__main__":
    run_program(main)
