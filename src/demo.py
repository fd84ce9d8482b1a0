"""The demo's two ends: a small data set out of scikit-image's photographs, and a table and pictures of what came out.

    python demo.py data      photographs -> dataset/Photos, in DIV2K's shape
    python demo.py report    scores and pictures of what was trained and folded

`scripts/demo.sh` shows the whole way between them.
"""

import argparse
import csv
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import skimage.data
import torch

import figures
from data import resize
from data.image import read_image, write_png
from data.srdata import TestSet
from errors import UserError
from metrics import psnr_ssim
from option import default
from utility import run, write_bytes

NAME = "Photos"
# What the scikit-image package itself ships; held-out photographs are tested, never trained on.
TRAINING = ("brick", "camera", "coins", "grass", "gravel", "hubble_deep_field", "ihc", "moon", "motorcycle_left")
TRAINING += ("retina", "rocket")
HELD_OUT = ("astronaut", "chelsea", "coffee")


def make_data(root: Path) -> None:
    """Writes the photographs as <root>/Photos_train_HR/NN_name.png, held-out ones last; those there already stay.

    Raises:
        UserError: if scikit-image does not ship one of them, or the folder cannot be written.
    """
    shipped = {path.stem: path for path in Path(skimage.data.__file__).parent.iterdir() if path.suffix in (".png", ".jpg")}
    for number, name in enumerate(TRAINING + HELD_OUT, start=1):
        path = root / f"{NAME}_train_HR" / f"{number:02}_{name}.png"
        if path.exists():
            continue
        if name not in shipped:
            raise UserError(f"scikit-image ships no {name}: install the version in requirements.txt")
        pixels = read_image(shipped[name])
        try:
            write_png(path, pixels)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): name another folder with --dir_data") from None
    print(f"{root}: {len(TRAINING)} photographs to train on, {len(HELD_OUT)} held out")
