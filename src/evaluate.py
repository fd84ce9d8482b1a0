"""Runs a network over a test set and scores it; what the scores mean is stated in `metrics.py`."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import parallel
from data.image import write_png
from data.srdata import TestSet
from errors import UserError
from experiment import Experiment
from metrics import PROTOCOL, psnr_ssim, quantise, smallest_scored
from model import inference

log = logging.getLogger("krgn")

# Called with (name, sr, lr, hr) of an image.
OnImage = Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor | None], None] | None

AUTOCAST = {"half": torch.float16, "bf16": torch.bfloat16}


class InPrecision(nn.Module):
    """A network that runs in the context of `autocast`, also in DataParallel's threads, which do not inherit it."""

    def __init__(self, network: nn.Module, device: torch.device, precision: str):
        super().__init__()
        self.network, self.device, self.precision = network, device, precision

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.precision):
            return self.network(image)


@dataclass(frozen=True)
class Scores:
    """Scores of one set: a row an image, {"image", "PSNR", "SSIM"}; no rows if there is no ground truth."""

    rows: list[dict]

    @property
    def psnr(self) -> float:
        """Mean PSNR in dB, NaN without rows."""
        return self._mean("PSNR")

    @property
    def ssim(self) -> float:
        """Mean SSIM, NaN without rows."""
        return self._mean("SSIM")

    def _mean(self, name: str) -> float:
        return sum(row[name] for row in self.rows) / len(self.rows) if self.rows else math.nan


def to_network(images: torch.Tensor, device: torch.device, rgb_range: float) -> torch.Tensor:
    """uint8 (N, C, H, W) -> float32 in 0..`rgb_range` on the device, channels last in memory."""
    images = images.to(device, non_blocking=True).to(torch.float32, memory_format=torch.channels_last)
    return images * (rgb_range / 255) if rgb_range != 255 else images


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs for --precision single, half or bf16."""
    return torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def evaluate(
    network: nn.Module,
    test_set: TestSet,
    *,
    device: torch.device,
    rgb_range: float = 255,
    precision: str = "single",
    chop: bool = False,
    self_ensemble: bool = False,
    on_image: OnImage = None,
) -> Scores:
    """Upscales every image of the set, and scores it where there is ground truth.

    Args:
        network: run as it is; fold it first to test what is deployed.
        on_image: called with (name, sr, lr, hr) after each image, uint8 (C, H, W) on the CPU, `hr` maybe None.

    Several processes divide the images among them; each image is scored once, and all get all scores.
    """
    network.eval()

    def run(image: torch.Tensor) -> torch.Tensor:
        return inference.chop(network, image, test_set.scale) if chop else network(image)

    rows, too_small = [], []
    # The bar is a context so that it is closed, and its line ended, when a signal arrives.
    mine = range(parallel.rank(), len(test_set), parallel.world_size())
    bar = tqdm(mine, desc=test_set.label, disable=None if parallel.is_main() else True, leave=False)
    with torch.inference_mode(), autocast(device, precision), bar:
        for index in bar:
            lr, hr, name = test_set[index]
            image = to_network(lr[None], device, rgb_range)
            sr = inference.self_ensemble(run, image) if self_ensemble else run(image)
            finite = bool(sr.isfinite().all())
            if not finite:
                log.warning("%s: the network's output for %s is not finite", test_set.label, name)
            sr = quantise(sr[0], rgb_range)
            if hr is not None:
                if min(hr.shape[1:]) < smallest_scored(test_set.scale):
                    too_small.append(name)
                else:
                    score = psnr_ssim(sr, hr.to(device), test_set.scale) if finite else (math.nan, math.nan)
                    rows.append((index, {"image": name, "PSNR": score[0], "SSIM": score[1]}))
            if on_image is not None:
                on_image(name, sr.cpu(), lr, hr)
    if too_small:
        log.warning("%s: too small to score, left out of the means: %s", test_set.label, ", ".join(too_small))
    rows = [row for part in parallel.gather(rows) for row in part]
    return Scores([row for _, row in sorted(rows, key=lambda row: row[0])])


def protocol(args) -> str:
    """What was measured and how, in a few words beside every printed score."""
    inference_mode = "four quadrants" if args.chop else "whole image"
    degraded = "" if args.degradation == "bicubic" else f"; LR degraded, {args.degradation}"
    return f"{PROTOCOL}; {inference_mode}{', self-ensemble' if args.self_ensemble else ''}{degraded}"


def evaluate_as_asked(
    args,
    network: nn.Module,
    test_set: TestSet,
    experiment: Experiment,
    device: torch.device,
    *,
    on_image: OnImage = None,
) -> Scores:
    """`evaluate` with the command line's options; writes the images that it asks for into the experiment's folder."""

    def write(name: str, sr: torch.Tensor, lr: torch.Tensor, hr: torch.Tensor | None) -> None:
        # Without ground truth the images are all there is to be had.
        images = {"SR": sr} if args.save_results or hr is None else {}
        if args.save_gt:
            images |= {"LR": lr} if hr is None else {"LR": lr, "HR": hr}
        for kind, pixels in images.items():
            write_image(experiment.result_path(test_set.name, name, args.scale, kind), pixels)
        if on_image is not None:
            on_image(name, sr, lr, hr)

    return evaluate(
        network,
        test_set,
        device=device,
        rgb_range=args.rgb_range,
        precision=args.precision,
        chop=args.chop,
        self_ensemble=args.self_ensemble,
        on_image=write,
    )


def test(args, network: nn.Module, test_sets: list[TestSet], experiment: Experiment, device: torch.device) -> None:
    """Tests the network on every set: prints the mean scores, and writes those of each image."""
    for test_set in test_sets:
        begun = time.perf_counter()
        scores = evaluate_as_asked(args, network, test_set, experiment, device)
        facts = f"{len(test_set)} images, {time.perf_counter() - begun:.1f} s"
        if not parallel.is_main():
            continue
        if not scores.rows:
            log.info("%s: no ground truth to score; %s", test_set.label, facts)
            continue
        experiment.save_scores(test_set.name, scores.rows)
        log.info(
            "%s: PSNR %.3f dB, SSIM %.4f (%s; %s)", test_set.label, scores.psnr, scores.ssim, protocol(args), facts
        )
    log.info("results are in %s", experiment.folder)


def write_image(path: Path, pixels: torch.Tensor) -> None:
    """Writes uint8 (C, H, W) as PNG; UserError if it cannot be written."""
    try:
        write_png(path, pixels.permute(1, 2, 0).numpy())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): free the disk or name another --dir_experiment"
        ) from None
