"""Proves on this machine that a killed run ends where an undisturbed one ends: bit for bit.

    python -m studies.verify_resume --cpu --kills 5

Trains twice on the same small photographs, once straight through and once killed with SIGKILL at random moments and
resumed with `--load`, and compares weights, optimizer and history. Exit status 0 only if they are identical.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import skimage
import torch

from data.image import read_image, write_png
from runtime.errors import UserError, run
from runtime.flags import Parser
from runtime.tensor_files import load_tensors

SRC = Path(__file__).resolve().parent.parent
NAME = "Crops"


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="studies.verify_resume", description="Compare a killed and resumed run with an undisturbed one."
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="how often the run is killed (default 5)")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="epochs of 30 batches (default 4)")
    parser.add_argument("--ema", default="0.99", metavar="D", help="moving average of the weights (default 0.99)")
    parser.add_argument("--n_threads", default="2", metavar="N", help="processes that load data (default 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the moments of the kills (default 0)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with both runs")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison; ends with status 1 and a line for each difference if there is one."""
    args = build_parser().parse_args(argv)
    if args.kills < 1 or args.epochs < 1:
        raise UserError(f"--kills {args.kills} --epochs {args.epochs}: expected 1 or more of each")
    folder = Path(tempfile.mkdtemp(prefix="verify_resume_"))
    try:
        make_data(folder / "dataset" / NAME)
        print(f"undisturbed run: {args.epochs} epochs of 30 batches")
        finish(folder, args, "undisturbed")
        begun = time.monotonic()
        moments = kill_often(folder, args)
        finish(folder, args, "killed")
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
    """Six crops of photographs that scikit-image ships, in DIV2K's shape."""
    photo = read_image(Path(skimage.__file__).parent / "data/chelsea.png")
    for number in range(6):
        top, left = divmod(number, 3)
        crop = photo[150 * top : 150 * top + 96, 150 * left : 150 * left + 96]
        write_png(root / f"{NAME}_train_HR/{number + 1:04}.png", crop)


def command(folder: Path, args, name: str) -> list[str]:
    """The command line that starts the run, or goes on with it if it has a state."""
    begun = (folder / name / "state.pt").exists()
    device = ["--cpu"] if args.cpu else []
    common = [sys.executable, "-u", "main.py", *device, "--dir_experiment", str(folder), "--n_threads", args.n_threads]
    if begun:
        return [*common, "--load", name]
    return [
        *common,
        *("--save", name, "--reset", "--dir_data", str(folder / "dataset"), "--data_train", NAME, "--data_test", NAME),
        *("--data_range", "1-4/5-6", "--scale", "2", "--n_feats", "16", "--n_resgroups", "1", "--patch_size", "32"),
        *("--batch_size", "4", "--test_every", "30", "--epochs", str(args.epochs), "--lr", "1e-3", "--decay", "1-3"),
        *("--warmup", "10", "--ema", args.ema, "--save_every", "0.002", "--print_every", "1", "--no_tensorboard"),
    ]


def finish(folder: Path, args, name: str) -> None:
    """Starts the run, or goes on with it, and waits until it ends."""
    ended = subprocess.run(command(folder, args, name), cwd=SRC, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise UserError(
            f"the run ended with status {ended.returncode}: {(ended.stderr.strip().splitlines() or ['?'])[-1]}"
        )


def kill_often(folder: Path, args) -> list[str]:
    """Starts and kills the run until it has been killed often enough; returns what it printed last each time.

    A run is killed a random time after its first batch, so that every start gets somewhere, and before its end.
    """
    chance = random.Random(args.seed)
    batches = args.epochs * 30
    moments = []
    for kill in range(args.kills):
        process = subprocess.Popen(
            command(folder, args, "killed"), cwd=SRC, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        wanted = chance.randint(1, max(1, batches // (2 * args.kills)))  # about half the batches are left at the end
        seen, epoch = 0, "?"
        for line in process.stdout:
            epoch = line.split("]")[0] + "]" if line.startswith("[epoch") else epoch
            seen += "patches/s" in line
            if seen >= wanted:
                time.sleep(chance.random() * 0.02)  # anywhere within a batch, a save or a validation
                break
        process.kill()
        process.wait()
        process.stdout.close()  # not read to its end: the orphaned loaders hold it open for some seconds
        if seen < wanted:
            raise UserError(f"the run was over before kill {kill + 1} of {args.kills}: raise --epochs")
        moments.append(f"{epoch} {line.split(']')[0]}]" if line.startswith("[") else epoch)
    return moments


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs, named; nothing if they are the same to the bit. Times are not compared."""
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
