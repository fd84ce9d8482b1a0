"""A test set: whole images, with or without ground truth."""

import zlib

import numpy as np
import torch
from torch.utils.data import Dataset

from data.color import to_tensor
from data.degradation import BICUBIC, Degradation
from data.image import read_own
from data.pairs import ImageSet


class TestSet(Dataset):
    """Whole images: an item is (lr, hr, name), uint8 (n_colors, h, w) and (n_colors, scale * h, scale * w).

    HR is cropped to scale times LR's size, from the bottom and the right; it is None where there is no ground truth.

    Args:
        degradation: how LR is made from HR where there is HR; by default it is the set's LR image.
        seed: with the image's name it decides what is random in the degradation.
    """

    __test__ = False  # not a test class, whatever pytest concludes from its name

    def __init__(
        self,
        image_set: ImageSet,
        *,
        scale: int,
        n_colors: int = 3,
        degradation: Degradation = BICUBIC,
        seed: int = 1,
    ):
        self.name, self.pairs, self.own, self._open = image_set.name, image_set.pairs, image_set.own, image_set.open
        self.metadata: dict[str, dict[str, bytes]] = {}  # of own pictures, by name, as `image.write_png` takes it
        self.scale, self.n_colors = scale, n_colors
        self.degradation, self.seed = degradation, seed

    @property
    def label(self) -> str:
        """Name and scale, as in "Set5 x4"."""
        return f"{self.name} x{self.scale}"

    @property
    def scored(self) -> bool:
        """Whether there is ground truth to score against."""
        return all(pair.hr is not None for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None, str]:
        lr, hr, name = self.pixels(index)
        return to_tensor(lr, self.n_colors), None if hr is None else to_tensor(hr, self.n_colors), name

    def pixels(self, index: int) -> tuple[np.ndarray, np.ndarray | None, str]:
        """An item with the files' own channels: uint8 (h, w, 1 or 3) and (scale * h, scale * w, 1 or 3), and the name.

        Raises:
            UserError: if a file cannot be read.
        """
        pair = self.pairs[index]
        if self.own:
            lr, self.metadata[pair.name] = read_own(pair.lr)
        else:
            lr = self._open(pair.lr)
        if pair.hr is None:
            return lr, None, pair.name
        height, width = (self.scale * side for side in lr.shape[:2])
        hr = self._open(pair.hr)[:height, :width]
        rng = np.random.default_rng((self.seed, 2, zlib.crc32(pair.name.encode())))
        return self.degradation.whole(lr, hr, self.scale, rng), hr, pair.name
