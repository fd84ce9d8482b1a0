"""Training data as workloads of the benchmark: this project's loader, and EDSR-PyTorch's way."""

import os
import pickle
import random
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data import folders, train_batches
from data.image import read_image, write_png
from data.pairs import ImageSet, cached, pair_up
from data.patches import TrainSet
from speed.workloads import BATCH, SCALE, Workload

PATCH = 192  # HR pixels
N_BATCHES = 30  # of a run
PHOTO_SIZE = (1400, 2040)  # (H, W), the usual size in DIV2K
N_PHOTOS = 8
NAME = "Photos"


def make_photos(folder: Path) -> None:
    """Writes photographs of DIV2K's size as folder/Photos: scikit-image's, enlarged; repeated ones are turned."""
    shipped = Path(skimage.__file__).parent / "data"
    sources = [read_image(shipped / name) for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]
    for number in range(N_PHOTOS):
        turned = np.rot90(sources[number % len(sources)], 2 * (number // len(sources)))
        enlarged = Image.fromarray(np.ascontiguousarray(turned)).resize(PHOTO_SIZE[::-1], Image.BICUBIC)
        write_png(folder / NAME / f"{NAME}_train_HR/{number:04}.png", np.asarray(enlarged))


def train_set(folder: Path) -> TrainSet:
    """The photographs as a training set with decoded copies, as with --ext sep."""
    found = folders.locate(folder / NAME)
    pairs = pair_up(found, SCALE, n_threads=1)
    images = cached(ImageSet(NAME, pairs), folder / NAME, reset=False, n_threads=1)
    return TrainSet([images], scale=SCALE, patch_size=PATCH)


def prepare_loading(*, device: str, workers: int, folder: Path) -> Workload:
    """`N_BATCHES` batches of this project's loader."""
    batches = train_batches(train_set(folder), batch_size=BATCH, n_threads=workers)
    return Workload(lambda: [next(batches) for _ in range(N_BATCHES)])


def prepare_edsr_loading(*, device: str, workers: int, folder: Path) -> Workload:
    """The same number of batches as EDSR-PyTorch loads them: for each patch a whole image is read from a pickle."""
    pairs = []
    for pair, image_set in train_set(folder).images:
        paths = []
        for kind, path in (("lr", pair.lr), ("hr", pair.hr)):
            paths.append(folder / f"{pair.name}_{kind}_{os.getpid()}.pickle")
            paths[-1].write_bytes(pickle.dumps(np.array(image_set.open(path))))
        pairs.append(paths)
    # One iterator for all runs, so that no run times the start of the workers. Both loaders read ahead while other
    # cases run.
    batches = iter(DataLoader(PickledImages(pairs), BATCH, shuffle=True, num_workers=workers))
    return Workload(lambda: [next(batches) for _ in range(N_BATCHES)])


class PickledImages(Dataset):
    """EDSR-PyTorch's kind of data set: an item is a random patch of a pair, float (3, p/scale, p/scale), (3, p, p)."""

    def __init__(self, pairs: list[list[Path]]):
        self.pairs = pairs

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        lr, hr = (pickle.loads(path.read_bytes()) for path in self.pairs[index % len(self.pairs)])
        side = PATCH // SCALE
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
