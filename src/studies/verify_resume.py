"""Checks that a run that was killed and resumed ends with the same bits as an undisturbed one.

    python -m studies.verify_resume --cpu --kills 5

It trains twice on the same small photographs, once undisturbed, and once killed with SIGKILL at random moments and
resumed with `--load`. It compares weights, optimizer and history, and exits with status 0 only if they are identical.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import skimage
import torch

from data.image import read_image, write_png
from model.weights import load_tensors
from runtime.errors import UserError, run
from runtime.flags import Parser

SRC = Path(__file__).resolve().parent.parent
NAME = "Crops"
BATCHES = 30  # in an epoch


@dataclass(frozen=True)
class Training:
    """What both runs share.

    Args:
        folder: of the data and both runs.
        cpu: whether to use the CPU even where there is a GPU.
        n_threads, ema: as main.py takes them.
    """

    folder: Path
    epochs: int
    cpu: bool
    n_threads: str
    ema: str

    def command(self, name: str) -> list[str]:
        """The command line that starts the run called `name`, or goes on with it if it has a state."""
        common = [sys.executable, "-u", "main.py", *["--cpu"] * self.cpu, "--dir_experiment", str(self.folder)]
        common += ["--n_threads", self.n_threads]
        if (self.folder / name / "state.pt").exists():
            return [*common, "--load", name]
        return [
            *common,
            *("--save", name, "--reset", "--dir_data", str(self.folder / "dataset")),
            *("--data_train", NAME, "--data_test", NAME, "--data_range", "1-4/5-6"),
            *("--scale", "2", "--n_feats", "16", "--n_resgroups", "1", "--patch_size", "32", "--batch_size", "4"),
            *("--test_every", str(BATCHES), "--epochs", str(self.epochs), "--lr", "1e-3", "--decay", "1-3"),
            *("--warmup", "10", "--ema", self.ema, "--save_every", "0.002", "--print_every", "1", "--no_tensorboard"),
        ]


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="studies.verify_resume",
        description="Compare a killed and resumed run with an undisturbed one.",
        examples=(
            "python -m studies.verify_resume --cpu",
            "python -m studies.verify_resume --cpu --kills 10 --epochs 8 --keep",
        ),
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="how often the run is killed (default 5)")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help=f"epochs of {BATCHES} batches (default 4)")
    parser.add_argument(
        "--ema", default="0.99", metavar="D", help="decay of the moving average of the weights (default 0.99)"
    )
    parser.add_argument("--n_threads", default="2", metavar="N", help="processes that load data (default 2)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the moments at which the run is killed (default 0)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder with both runs")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison; ends with status 1 and one line that names what differs, if anything does."""
    args = build_parser().parse_args(argv)
    if args.kills < 1 or args.epochs < 1:
        raise UserError(f"got --kills {args.kills} --epochs {args.epochs}, expected 1 or more of each")
    folder = Path(tempfile.mkdtemp(prefix="verify_resume_"))
    training = Training(folder, epochs=args.epochs, cpu=args.cpu, n_threads=args.n_threads, ema=args.ema)
    try:
        make_data(folder / "dataset" / NAME)
        print(f"undisturbed run: {args.epochs} epochs of {BATCHES} batches")
        finish(training, "undisturbed")
        begun = time.monotonic()
        moments = kill_often(training, "killed", kills=args.kills, seed=args.seed)
        finish(training, "killed")
        print(f"killed {args.kills} times with SIGKILL, after {', '.join(moments)} ({time.monotonic() - begun:.0f} s)")
        found = differences(folder / "undisturbed", folder / "killed")
    finally:
        if not args.keep:
            shutil.rmtree(folder)
    if args.keep:
        print(f"both runs are in {folder}")
    if found:
        raise UserError(f"NOT identical: {'; '.join(found)}")
    print("identical: weights, averaged weights, optimizer and history, bit for bit")


def make_data(root: Path) -> None:
    """Writes six crops of a photograph that scikit-image ships, as a set in DIV2K's shape."""
    photo = read_image(Path(skimage.__file__).parent / "data/chelsea.png")
    for number in range(6):
        top, left = divmod(number, 3)
        crop = photo[150 * top : 150 * top + 96, 150 * left : 150 * left + 96]
        write_png(root / f"{NAME}_train_HR/{number + 1:04}.png", crop)


def finish(training: Training, name: str) -> None:
    """Starts the run, or goes on with it, and waits until it ends; UserError if it fails."""
    ended = subprocess.run(training.command(name), cwd=SRC, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise UserError(
            f"the run ended with status {ended.returncode}: {(ended.stderr.strip().splitlines() or ['?'])[-1]}"
        )


def kill_often(training: Training, name: str, *, kills: int, seed: int) -> list[str]:
    """Starts and kills the run `kills` times, each time after a random number of batches.

    At least one batch passes, so that every start makes progress, and few enough that about half of all batches are
    left at the end.

    Returns:
        The last progress that was printed before each kill.

    Raises:
        UserError: if the run ended before it could be killed.
    """
    rng = random.Random(seed)
    most = max(1, training.epochs * BATCHES // (2 * kills))
    moments = []
    for kill in range(1, kills + 1):
        wanted, delay = rng.randint(1, most), rng.random() * 0.02  # seconds; anywhere in a batch, save or validation
        moment = run_and_kill(training.command(name), after=wanted, delay=delay)
        if moment is None:
            raise UserError(f"the run ended before kill {kill} of {kills}: raise --epochs")
        moments.append(moment)
    return moments


def run_and_kill(command: list[str], *, after: int, delay: float) -> str | None:
    """Starts a run and kills it `delay` seconds after it printed `after` batches.

    Returns:
        The epoch and batch that it printed last; None if it ended before.
    """
    process = subprocess.Popen(command, cwd=SRC, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seen, epoch, line = 0, "?", ""
    for line in process.stdout:
        epoch = line.split("]")[0] + "]" if line.startswith("[epoch") else epoch
        seen += "patches/s" in line
        if seen >= after:
            time.sleep(delay)
            break
    process.kill()
    process.wait()
    process.stdout.close()  # not read to its end, because the orphaned loaders hold it open for some seconds
    if seen < after:
        return None
    return f"{epoch} {line.split(']')[0]}]" if line.startswith("[") else epoch


def differences(one: Path, other: Path) -> list[str]:
    """The names of what differs between two finished runs, none if all bits are equal. Times are not compared."""
    a, b = (load_tensors(folder / "state.pt") for folder in (one, other))
    for state in (a, b):
        for row in state["progress"]["history"]:
            del row["seconds"]
    found = [name for name in ("model", "average", "optimizer", "random") if not same(a[name], b[name])]
    found += [
        name for name in a["progress"] if name != "seconds" and not same(a["progress"][name], b["progress"][name])
    ]
    for name in ("model_latest.pt", "model_best.pt"):
        if not same(*(load_tensors(folder / "model" / name)["model"] for folder in (one, other))):
            found.append(name)
    return found


def same(a, b) -> bool:
    """Whether two nested structures of tensors and plain values are equal to the bit."""
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


if __name__ == "__main__":
    run(main)
