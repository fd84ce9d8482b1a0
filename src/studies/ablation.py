"""Does recalibration help? The paper's claim tested on a small network, over several seeds.

    python -m studies.ablation --dir_data ../dataset --data_train DIV2K --out ../experiment/ablation/table

Every arm is trained by main.py with the same data, learning rate and schedule, from every seed:

    plain                      the network without recalibration
    plain, same time           the same for as many more steps as recalibrated kernels would cost in time
    recalibrated               basis and transforms trained together from scratch
    …, rate x2, x4, x8         both at a higher learning rate: whether recalibration does no more than that would
    plain, then plain          two stages of half the steps; the control of the next two
    plain, then frozen         RefConv's recipe: transforms over the frozen kernels of a plain first half
    plain, then recalibrated   the same with the basis trained on

The PSNR of the last epoch counts, not that of the best one. Runs are kept in --dir_experiment. A second start finishes
what is missing, and makes the table and the figure from all of them.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tqdm import tqdm

from model import cffb
from model.krgn import KRGN
from reporting import figures
from reporting.tables import as_text, refuse_foreign, write_all
from runtime.csvfiles import read_csv
from runtime.errors import UserError
from runtime.errors import run as run_program
from runtime.files import read_json, write_bytes
from runtime.flags import Parser, number, path_flag, whole_number
from runtime.hardware import choose_device, keep_memory, processor, timed
from runtime.provenance import git_commit
from train.optim import OptimizerConfig, make_optimizer

SRC = Path(__file__).resolve().parent.parent
EPOCHS = 4  # validations of a stage
RATES = (2, 4, 8)  # factors of --lr that are tried beside it
PLAIN, FROZEN, TRAINED = (
    ("--kernels", "plain"),
    ("--kernels", "recalibrated", "--basis", "frozen"),
    ("--kernels", "recalibrated", "--basis", "trained"),
)


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison share, by the names of the flags."""

    data_train: str
    data_test: str
    scale: int
    n_feats: int
    n_resgroups: int
    batch_size: int
    patch_size: int
    lr: float
    steps: int

    @property
    def lr_patch(self) -> int:
        """The side of a patch in LR pixels."""
        return self.patch_size // self.scale


@dataclass(frozen=True)
class Machine:
    """Where and how runs are trained, which has no influence on what is compared."""

    dir_data: str
    dir_experiment: Path
    n_threads: str
    cpu: bool


@dataclass(frozen=True)
class Costs:
    """The time of a training step with each kind of kernels over that of a plain one."""

    plain: float
    frozen: float
    recalibrated: float

    def of(self, stage: "Stage") -> float:
        """The cost of a stage's steps."""
        return {PLAIN: self.plain, FROZEN: self.frozen, TRAINED: self.recalibrated}[stage.flags]


@dataclass(frozen=True)
class Stage:
    """A run of main.py.

    Args:
        name: of its folder, before the seed.
        flags: `PLAIN`, `FROZEN` or `TRAINED`.
        share: of --steps.
        after: the stage whose weights it starts from.
        rate: factor of --lr.
    """

    name: str
    flags: tuple[str, ...]
    share: float
    after: "Stage | None" = None
    rate: float = 1

    def run_name(self, seed: int) -> str:
        """The name of the run's folder."""
        return f"{self.name}_{seed}"

    def stages(self) -> list["Stage"]:
        """All stages of the arm that ends with this one, in order."""
        return [self] if self.after is None else [self.after, self]


def arms(cost: float) -> dict[str, Stage]:
    """Title -> the last stage of each arm.

    Args:
        cost: the time of a recalibrated step over that of a plain one.
    """
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
    """The title of the arm that is trained in one stage with `rate` times --lr."""
    return kernels if rate == 1 else f"{kernels}, rate x{rate}"


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="studies.ablation",
        description="Plain against recalibrated kernels, over several seeds.",
        examples=(
            "python -m studies.ablation --dir_data ../dataset",
            "python -m studies.ablation --dir_data ../dataset --cpu",
            "python -m studies.ablation --dir_data ../dataset --steps 500 --seeds 2 --out ../experiment/ablation_short",
        ),
    )
    count = whole_number(1)
    parser.add_argument("--dir_data", required=True, metavar="DIR", type=path_flag, help="folder of the data sets")
    parser.add_argument("--data_train", default="DIV2K", metavar="A", help="training set (default DIV2K)")
    parser.add_argument("--data_test", default="Kodak24", metavar="A", help="test set (default Kodak24)")
    parser.add_argument("--scale", type=count, default=2, metavar="S", help="upscaling factor (default 2)")
    parser.add_argument("--n_feats", type=count, default=32, metavar="N", help="feature channels (default 32)")
    parser.add_argument("--n_resgroups", type=count, default=2, metavar="N", help="PMRB blocks (default 2)")
    parser.add_argument("--batch_size", type=count, default=8, metavar="N", help="patches in a batch (default 8)")
    parser.add_argument(
        "--patch_size", type=count, default=64, metavar="PIXELS", help="side of an HR patch (default 64)"
    )
    parser.add_argument(
        "--lr",
        type=number(above=0),
        default=1e-3,
        metavar="RATE",
        help="learning rate at the start of a stage (default 1e-3)",
    )
    parser.add_argument(
        "--steps", type=whole_number(8), default=2000, metavar="N", help="optimizer steps of an arm (default 2000)"
    )
    parser.add_argument(
        "--seeds", type=whole_number(2), default=3, metavar="N", help="train with seeds 1 to N (default 3)"
    )
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
    """Trains what is missing and reports; `errors.run` defines how failures end."""
    args = build_parser().parse_args(argv)
    if args.patch_size % args.scale:
        raise UserError(f"--patch_size {args.patch_size} is not a multiple of --scale {args.scale}: change one of them")
    if args.out:
        refuse_foreign(args.out, "png")
    names = [field.name for field in fields(Settings)]
    settings = Settings(**{name: getattr(args, name) for name in names})
    # Training runs in src/, so relative paths must be resolved here.
    dir_data, dir_experiment = map(os.path.abspath, (args.dir_data, args.dir_experiment))
    machine = Machine(dir_data, Path(dir_experiment), args.n_threads, args.cpu)
    costs = agreed_costs(settings, machine)
    seeds = range(1, args.seeds + 1)
    plan = [(seed, stage) for seed in seeds for last in arms(costs.recalibrated).values() for stage in last.stages()]
    for seed, stage in tqdm(list(dict.fromkeys(plan)), desc="runs", disable=None):
        train(stage, seed, settings, machine)

    scores = final_scores(arms(costs.recalibrated), seeds, settings, machine)
    table = make_table(scores, settings, costs)
    print(as_text(table))
    if args.out:
        paths = write_all(table, args.out)
        picture = Path(f"{args.out}.png")
        write_bytes(picture, figures.spread(scores, f"PSNR of Y on {args.data_test} x{args.scale} (dB)"))
        print(f"\nwritten: {', '.join(map(str, [*paths, picture]))}")


# --- the cost of a step ---


def agreed_costs(settings: Settings, machine: Machine) -> Costs:
    """The costs of steps, measured before the first run and kept beside the runs, with the settings.

    Raises:
        UserError: if the runs that exist were made with other settings.
    """
    folder = machine.dir_experiment
    kept = folder / "ablation.json"
    begun = any(folder.glob("*/history.csv")) or any(folder.glob("*/state.pt"))
    if not kept.exists() or not begun:
        costs = measured_costs(settings, cpu=machine.cpu)
        content = {"settings": asdict(settings), "costs": asdict(costs)}
        write_bytes(kept, json.dumps(content, indent=1).encode())
    found = read_json(kept)
    for name, value in asdict(settings).items():
        if found["settings"].get(name) != value:
            raise UserError(
                f"--{name} {value}, but the runs in {folder} were made with {found['settings'].get(name)}: "
                "give that value, or another --dir_experiment"
            )
    return Costs(**found["costs"])


def measured_costs(settings: Settings, *, cpu: bool) -> Costs:
    """Times a training step of each kind in turn; the ratios are medians over 20 turns after 4 of warm-up."""
    device = choose_device(cpu=cpu, n_gpus=1, asked=False)
    keep_memory()
    cffb.build_when_needed()
    lr, hr = (
        torch.rand(settings.batch_size, 3, side, side, device=device) * 255
        for side in (settings.lr_patch, settings.patch_size)
    )
    lr = lr.contiguous(memory_format=torch.channels_last)

    def stepper(**kernels):
        network = KRGN(scale=settings.scale, n_feats=settings.n_feats, n_resgroups=settings.n_resgroups, **kernels).to(
            device, memory_format=torch.channels_last
        )
        optimizer = make_optimizer(network, OptimizerConfig())

        def step():
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.l1_loss(network(lr), hr).backward()
            optimizer.step()

        return step

    steps = {
        "plain": stepper(recalibrated=False),
        "frozen": stepper(train_basis=False),
        "recalibrated": stepper(),
    }
    turns = [{name: timed(step, device) for name, step in steps.items()} for _ in range(24)][4:]
    return Costs(**{name: statistics.median(turn[name] / turn["plain"] for turn in turns) for name in steps})


# --- the runs ---


def train(stage: Stage, seed: int, settings: Settings, machine: Machine) -> None:
    """Starts the run, or goes on with it; returns at once if it is complete.

    Raises:
        UserError: with the last line of what main.py reported, if it failed.
    """
    if len(history(stage, seed, machine)) == EPOCHS:
        return
    command = [sys.executable, "-u", "main.py", *flags_of(stage, seed, settings, machine)]
    ended = subprocess.run(command, cwd=SRC, capture_output=True, text=True, check=False)
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]
        reason = reason.removeprefix("main.py: ").removeprefix("error: ")
        raise UserError(f"{machine.dir_experiment / stage.run_name(seed)}: its training ended: {reason}")


def flags_of(stage: Stage, seed: int, settings: Settings, machine: Machine) -> list[str]:
    """The flags of main.py that start a run, or go on with it if it has a state."""
    folder, name = machine.dir_experiment, stage.run_name(seed)
    flags = [*["--cpu"] * machine.cpu, "--n_threads", machine.n_threads]
    flags += ["--dir_experiment", str(folder), "--dir_data", machine.dir_data]
    if (folder / name / "state.pt").exists():
        return [*flags, "--load", name]
    flags += ["--save", name, "--seed", str(seed), "--scale", str(settings.scale), *stage.flags]
    flags += ["--data_train", settings.data_train, "--data_test", settings.data_test, "--no_tensorboard"]
    flags += ["--batch_size", str(settings.batch_size), "--patch_size", str(settings.patch_size)]
    flags += ["--lr", str(settings.lr * stage.rate), "--schedule", "cosine", "--warmup", "50"]
    flags += ["--epochs", str(EPOCHS), "--test_every", str(max(1, round(settings.steps * stage.share / EPOCHS)))]
    if stage.after is not None:
        return [*flags, "--pre_train", str(folder / stage.after.run_name(seed) / "model/model_latest.pt")]
    return [*flags, "--n_feats", str(settings.n_feats), "--n_resgroups", str(settings.n_resgroups)]


def history(stage: Stage, seed: int, machine: Machine) -> list[dict[str, str]]:
    """The rows of the run's history.csv; none if the run has not written it yet."""
    path = machine.dir_experiment / stage.run_name(seed) / "history.csv"
    return read_csv(path, ("epoch",)) if path.exists() else []


def final_scores(
    stages: dict[str, Stage], seeds: range, settings: Settings, machine: Machine
) -> dict[str, list[float]]:
    """Title -> the PSNR in dB after the last epoch, of each seed."""
    column = f"{settings.data_test} PSNR"
    return {
        title: [float(history(stage, seed, machine)[-1][column]) for seed in seeds] for title, stage in stages.items()
    }


# --- the table ---


def make_table(scores: dict[str, list[float]], settings: Settings, costs: Costs) -> dict:
    """The table as `reporting.tables` takes it."""
    rows = []
    for title, last in arms(costs.recalibrated).items():
        stages, values = last.stages(), scores[title]
        differences = [value - plain for value, plain in zip(values, scores["plain"], strict=True)]
        rows.append(
            [
                title,
                round(sum(stage.share for stage in stages) * settings.steps),
                sum(stage.share * costs.of(stage) for stage in stages),
                statistics.mean(values),
                statistics.stdev(values),
                statistics.mean(differences),
                statistics.stdev(differences),
            ]
        )
    columns = ["arm", "steps", "time, plain = 1", "PSNR (dB)", "its spread", "over plain (dB)", "its spread "]
    notes = notes_of(scores, settings, costs)
    return {"title": "Does recalibration help?", "columns": columns, "rows": rows, "notes": notes}


def notes_of(scores: dict[str, list[float]], settings: Settings, costs: Costs) -> list[str]:
    """What was trained and measured, and where."""
    side = settings.lr_patch
    return [
        f"KRGN x{settings.scale}, {settings.n_feats} features, {settings.n_resgroups} blocks; batches of "
        f"{settings.batch_size} patches of {side}x{side} LR pixels of {settings.data_train}; learning rate "
        f"{settings.lr:g}, falling to 0 along half a cosine in each stage",
        f"PSNR of Y on {settings.data_test} after the last epoch; mean and standard deviation over "
        f"{len(scores['plain'])} seeds",
        "over plain: difference from the plain run of the same seed",
        f"recalibrated over plain at the same rate: {', '.join(gains_at_each_rate(scores))}",
        f"step times: {costs.recalibrated:.3f} recalibrated, {costs.frozen:.3f} over a frozen basis, plain = 1, "
        "measured in turn in one process",
        f"{processor()}; torch {torch.__version__}, git commit {git_commit()}",
    ]


def gains_at_each_rate(scores: dict[str, list[float]]) -> list[str]:
    """What recalibration gains at each learning rate: mean and standard deviation over the seeds, as text."""
    found = []
    for rate in (1, *RATES):
        pairs = zip(scores[at_rate("recalibrated", rate)], scores[at_rate("plain", rate)], strict=True)
        gains = [recalibrated - plain for recalibrated, plain in pairs]
        found.append(f"x{rate} {statistics.mean(gains):.2f} ± {statistics.stdev(gains):.2f}")
    return found


if __name__ == "__main__":
    run_program(main)
