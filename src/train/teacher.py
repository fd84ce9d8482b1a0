"""Distillation: a trained network's SR images of the training set, made once, as further targets (--teacher).

In: a file of weights and a `TrainSet`. Out: SR images beside the set's decoded copies, of which the set then cuts
patches too; the term "teacher" of the loss compares with them. A step costs no more than without a teacher.

By default the targets are the teacher's mean over the eight flips and rotations, so that they fit a patch's random view
as they are (distillation: arXiv 1503.02531).
"""

import logging
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from data.cache import cache_path, is_fresh, write
from data.color import to_tensor
from data.pairs import ImageSet, Pair
from data.patches import TrainSet
from evaluation.runner import ImageRunner
from model import external
from model.checkpoint import rebuild, unpack
from model.recalibration import fold
from model.weights import load_tensors
from runtime import distributed
from runtime.errors import UserError
from runtime.files import digest

log = logging.getLogger("krgn")


def teach(train_set: TrainSet, path: str, device: torch.device, *, views: int) -> None:
    """Has the set cut patches of the teacher's SR images too, which are made where they are missing or outdated.

    Several processes make their parts of them. They lie in bin/teacher_<digest of the file>/ of each set's folder, or
    in teacher_<digest>_1/ if they are of one view; a stopped run goes on where it was.

    Args:
        path: of the teacher's weights: any file that --pre_train reads, or the package spandrel.
        views: 8 for the mean over all flips and rotations, or 1.

    Raises:
        UserError: if the teacher cannot be read, or is of another scale or other colours; if the sets have no decoded
            copies; if an image cannot be written or the teacher's output is not finite.
    """
    teacher = load_teacher(path)
    facts = teacher.hyperparameters
    for flag, of_set in (("scale", train_set.scale), ("n_colors", train_set.n_colors)):
        if facts[flag] != of_set:
            raise UserError(
                f"--teacher {path}: is a network of --{flag} {facts[flag]}, this run has {of_set}: give a teacher of "
                f"--{flag} {of_set}"
            )
    for _, image_set in train_set.images:
        if image_set.cache_root is None:
            raise UserError(
                f"--teacher: its SR images lie beside the decoded copies of {image_set.name}, which has none: drop "
                "--ext img, or copy the set to a disk that can be written and name it with --dir_data"
            )
    kind = f"teacher_{digest(Path(path))[:12]}" + ("_1" if views == 1 else "")
    mine = train_set.images[distributed.rank() :: distributed.world_size()]
    missing = [each for each in mine if not is_fresh(*_files(*each, kind), facts["scale"])]
    if missing:
        log.info(
            "teacher: upscaling %d training images, once, %s",
            len(missing),
            "eight times each" if views == 8 else "without self-ensemble",
        )
        _make(missing, kind, _runner(teacher, device, self_ensemble=views == 8))
    distributed.barrier()
    train_set.teacher = kind
    log.info("teacher: %s, its SR images of %d images in bin/%s", path, len(train_set), kind)


def load_teacher(path: str) -> nn.Module:
    """The network of a file, folded, in eval mode, on the CPU.

    Raises:
        UserError: if neither this framework nor spandrel can read it.
    """
    content = load_tensors(Path(path))  # whether it is a whole and harmless file; spandrel reads it again
    try:
        return fold(rebuild(unpack(content, path))).eval()
    except UserError as error:
        try:
            return external.load(path, rgb_range=255)
        except UserError:
            raise error from None


def _files(pair: Pair, image_set: ImageSet, kind: str) -> tuple[Path, Path]:
    """The teacher's SR image, and the LR image that it is made from."""
    return cache_path(image_set.cache_root, pair.lr, kind), pair.lr


def _runner(teacher: nn.Module, device: torch.device, *, self_ensemble: bool) -> ImageRunner:
    facts = teacher.hyperparameters
    return ImageRunner(
        teacher.to(device, memory_format=torch.channels_last),
        device=device,
        scale=facts["scale"],
        n_colors=facts["n_colors"],
        rgb_range=facts["rgb_range"],
        self_ensemble=self_ensemble,
    )


def _make(images: list[tuple[Pair, ImageSet]], kind: str, runner: ImageRunner) -> None:
    """Makes the SR images of these LR images."""
    begun = time.perf_counter()
    disable = None if distributed.is_main() else True
    with torch.inference_mode():
        for pair, image_set in tqdm(images, desc="teacher", unit="image", disable=disable, leave=False):
            target, source = _files(pair, image_set, kind)
            time_ns = source.stat().st_mtime_ns
            upscaled = runner.upscale(to_tensor(image_set.open(source), runner.n_colors), str(source))
            if not upscaled.finite:
                raise UserError(
                    f"--teacher: its output for {source} is not finite (NaN or infinite): give another file"
                )
            try:
                write(target, upscaled.sr.permute(1, 2, 0).cpu().numpy(), time_ns)
            except OSError as error:
                raise UserError(
                    f"{target}: the teacher's SR image cannot be written ({error.strerror}): free disk space, or copy "
                    "the set to a disk that can be written and name it with --dir_data"
                ) from None
    log.info("teacher: done in %.0f s", time.perf_counter() - begun)
