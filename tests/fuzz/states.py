"""A run's state.pt, damaged or edited, and goes on with it."""

import io
import random
import shutil
from pathlib import Path

import torch
from fuzz.changes import VALUES, damaged, edited

FLAGS = "--cpu --n_threads 0 --no_tensorboard --test_every 1 --print_every 1"
NEW = (
    "--scale 2 --n_feats 8 --n_resgroups 1 --patch_size 16 --batch_size 2 --epochs 1 --data_train Small --ema 0.5 "
    "--data_test Small --data_range 1-2/3-3 --save run --save_every 0 --lr 1e-4"
)


def run(folder: Path, *flags: str) -> None:
    from main import main
    from option import parse_args

    main(parse_args([*FLAGS.split(), "--dir_experiment", str(folder / "experiment"), *flags]))


def trained(folder: Path, chance: random.Random) -> None:
    """A training of one batch in folder/experiment/run, on noise."""
    import numpy as np

    from data.image import write_png
    from reporting import figures

    figures.curves = lambda history: {}
    for number in (1, 2, 3):
        pixels = np.frombuffer(chance.randbytes(48 * 48 * 3), np.uint8).reshape(48, 48, 3)
        write_png(folder / f"dataset/Small/Small_train_HR/{number:04}.png", pixels)
    run(folder, *NEW.split(), "--dir_data", str(folder / "dataset"))


def make(folder: Path, seed: int, count: int) -> None:
    chance = random.Random(seed)
    trained(folder, chance)
    whole = (folder / "experiment/run/state.pt").read_bytes()
    state = torch.load(io.BytesIO(whole), weights_only=True)
    odd = [*VALUES, torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.full((8,), torch.nan)]
    for number in range(count):
        path = folder / "inputs" / f"{number:06}.pt"
        if number % 3 == 0:
            path.write_bytes(damaged(whole, chance))
        else:
            changed = state
            for _ in range(chance.randrange(1, 3)):
                changed = edited(changed, chance, odd)
            torch.save(changed, path)


def take(path: Path) -> None:
    from reporting import figures

    figures.curves = lambda history: {}
    folder = path.parent.parent
    work = folder / "work/experiment/run"
    shutil.rmtree(work.parent, ignore_errors=True)
    shutil.copytree(folder / "experiment/run", work)
    shutil.copyfile(path, work / "state.pt")
    run(folder / "work", "--load", "run", "--epochs", "2")
