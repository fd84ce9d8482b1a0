"""A user's own pictures through a network: one after the other, each written as soon as it is done.

`upscale_picture` is what happens to one of them. `upscale_all` runs many: files that are there already are skipped, so
that a stopped run goes on, and a picture that fails is noted while the others are done.
"""

import errno
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.color import to_tensor
from data.encode import misfit, write_picture
from data.image import name_too_long, read_size
from data.picture import Picture, read_picture
from data.targets import Job
from evaluation.pictures import Writer, bicubic, with_lr_chroma
from evaluation.runner import ImageRunner
from runtime.errors import UserError, printable, says_out_of_memory

log = logging.getLogger("krgn")

# SR pixels up to which a picture is written while the next one runs: several larger ones would fill the memory.
WRITTEN_ASIDE = 2**24

_BAR = "{desc} {percentage:3.0f}%|{bar}| {n:.2f} of {total:.2f} MP [{elapsed}, {remaining} left, {rate_noinv_fmt}]"


def upscale_picture(runner: ImageRunner, picture: Picture, name: str) -> Picture:
    """Enlarges a picture: gray stays gray, 16 bits stay 16 bits, and alpha is enlarged by MATLAB's bicubic recipe.

    8-bit RGB is what `main.py --data_test Demo` makes of it, bit for bit. A network of luma gets the picture's luma,
    and its chroma is enlarged bicubically, as there.

    Args:
        name: names the picture in errors.

    Raises:
        UserError: if there is too little memory, or the network's output is not finite.
    """
    gray = picture.pixels.shape[2] == 1
    upscaled = runner.upscale(to_tensor(picture.pixels, 1 if gray else runner.n_colors), name)
    if not upscaled.finite:
        raise UserError(f"{name}: the network's output is not finite (NaN or infinite): use other weights with --model")
    sr = upscaled.sr.cpu()
    if runner.n_colors == 1 and not gray:
        sr = with_lr_chroma(sr, to_tensor(picture.pixels, 3), runner.scale)
    pixels = np.ascontiguousarray(sr.permute(1, 2, 0).numpy())
    alpha = None if picture.alpha is None else bicubic(picture.alpha, runner.scale)
    return Picture(pixels, alpha, picture.metadata)


@dataclass
class Outcome:
    """What became of the jobs: those done and those that were there already, and the message of each that failed."""

    done: list[Job] = field(default_factory=list)
    present: list[Job] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    megapixels: float = 0.0  # of the pictures that were done, before they were enlarged
    seconds: float = 0.0


def upscale_all(runner: ImageRunner, jobs: Iterable[Job], *, overwrite: bool = False) -> Outcome:
    """Enlarges pictures into their files, with a progress bar on a terminal and a line for each elsewhere.

    Args:
        runner: its `progress` is used for the bar.
        overwrite: files that are there already are made again.

    Raises:
        UserError: if files cannot be written, as on a full disk.
    """
    outcome, sizes = Outcome(), {}
    for job in jobs:
        if job.target.is_file() and not overwrite:
            outcome.present.append(job)
            continue
        try:
            sizes[job] = read_size(job.source)
        except UserError as error:
            # The file is decoded once more below, which gives the message for a picture.
            sizes[job] = None
            log.debug("%s", error)
    begun = time.perf_counter()
    total = sum(size.height * size.width for size in sizes.values() if size) / 1e6
    bar = tqdm(total=total, unit="MP", bar_format=_BAR, smoothing=0, disable=None, leave=False)
    # The bar is a context so that it is closed, and its line ended, when a signal arrives.
    with torch.inference_mode(), Writer() as writer, bar:
        for number, (job, size) in enumerate(sizes.items(), start=1):
            _Turn(runner, job, bar, writer, outcome).run(f"{number}/{len(sizes)} images", size)
    outcome.seconds = time.perf_counter() - begun
    return outcome


class _Turn:
    """One picture's turn in `upscale_all`."""

    def __init__(self, runner: ImageRunner, job: Job, bar: tqdm, writer: Writer, outcome: Outcome):
        self.runner, self.job, self.bar, self.writer, self.outcome = runner, job, bar, writer, outcome
        self.name = printable(job.source)
        self.logged = bool(bar.disable)  # now: a bar that was closed is disabled too

    def run(self, count: str, size) -> None:
        """Enlarges the picture and hands it to the writer; a failure of this picture alone is noted.

        Raises:
            UserError: if files cannot be written.
        """
        megapixels = size.height * size.width / 1e6 if size else 0.0
        end = self.bar.n + megapixels
        self.bar.set_description_str(count, refresh=True)
        self.runner.progress = lambda share: self.bar.update(share * megapixels)
        begun = time.perf_counter()
        try:
            sr, lr = self._enlarged()
        except UserError as error:
            self._fail(str(error))
        except (MemoryError, RuntimeError) as error:
            if not says_out_of_memory(error):
                raise
            self._fail(f"{self.name}: does not fit into memory: give --tile 128 or less, or --cpu, or free memory")
        else:
            small = sr.pixels.shape[0] * sr.pixels.shape[1] <= WRITTEN_ASIDE
            seconds = time.perf_counter() - begun
            line = f"{self.name}: {_size(lr)} -> {_size(sr)}, {seconds:.1f} s: {printable(self.job.target)}"
            self.writer.submit(self._write, sr, line) if small else self._write(sr, line)
        self.bar.update(end - self.bar.n)

    def _enlarged(self) -> tuple[Picture, Picture]:
        lr = read_picture(self.job.source)
        height, width = lr.pixels.shape[:2]
        scale = self.runner.scale
        if reason := misfit(self.job.form, scale * width, scale * height, transparent=lr.transparent):
            raise UserError(f"{self.name}: {reason}")
        if lr.frames > 1:
            log.info("%s: has %d frames, of which the first is enlarged", self.name, lr.frames)
        return upscale_picture(self.runner, lr, self.name), lr

    def _write(self, sr: Picture, line: str) -> None:
        height, width = (side // self.runner.scale for side in sr.pixels.shape[:2])
        target = self.job.target
        try:
            write_picture(target, sr, self.job.form)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self._fail(name_too_long(target))
                return
            raise UserError(
                f"{printable(target)}: cannot be written ({error.strerror or error}): free disk space, or choose "
                "another folder with --out"
            ) from None
        self.outcome.done.append(self.job)
        self.outcome.megapixels += height * width / 1e6
        if self.logged:
            log.info("%s", line)

    def _fail(self, message: str) -> None:
        self.outcome.failed[self.job.source] = message


def _size(picture: Picture) -> str:
    height, width = picture.pixels.shape[:2]
    return f"{width}x{height}"
