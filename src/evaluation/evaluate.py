"""Runs a network over a test set and scores it; what the scores mean is stated in `metrics.py`.

`evaluate` scores one set. `build_evaluator(args, ...)` gives an `Evaluator`, which does so with the options of the
command line and writes images and scores into the experiment's folder.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from data.color import to_tensor
from data.testset import TestSet
from evaluation.metrics import Protocol, Scores, perceptual_metrics, psnr_ssim, smallest_scored
from evaluation.pictures import Writer, with_lr_chroma, write_image
from evaluation.results import SetResult
from evaluation.runner import ImageRunner
from model.networks import describe
from model.precision import autocast
from runtime import distributed
from runtime.errors import UserError, printable
from runtime.experiment import Experiment

log = logging.getLogger("krgn")

# Called with (name, sr, lr, hr) after each image: uint8 (C, H, W) on the CPU; `hr` is None without ground truth.
OnImage = Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor | None], None] | None


class _Scored(NamedTuple):
    """A row of the scores, the image's place in the set, and whether HR is of one colour where it is scored."""

    index: int
    row: dict
    blank: bool


def evaluate(
    network: nn.Module,
    test_set: TestSet,
    *,
    device: torch.device,
    rgb_range: float = 255,
    precision: str = "single",
    chop: bool = False,
    tile: int = 0,
    self_ensemble: bool = False,
    channel: str = "y",
    perceptual: tuple[str, ...] = (),
    on_image: OnImage = None,
) -> Scores:
    """Upscales every image of the set, and scores it where there is ground truth.

    Args:
        network: run as it is; fold it first to test what is deployed.
        chop, tile, self_ensemble: how an image is run; see `ImageRunner`.
        channel, perceptual: what is measured; see `metrics.psnr_ssim` and `metrics.perceptual_metrics`.
        on_image: see `OnImage`.

    Several processes divide the images among them; each image is scored once, and all processes get all scores.

    Raises:
        UserError: if the perceptual metrics' package cannot be used, or there is no room for a large image's features.
    """
    network.eval()
    runner = ImageRunner(
        network,
        device=device,
        scale=test_set.scale,
        n_colors=test_set.n_colors,
        rgb_range=rgb_range,
        chop=chop,
        tile=tile,
        self_ensemble=self_ensemble,
    )
    learned = _perceptual_metrics(perceptual, device)
    scored, too_small = [], []
    indices = range(distributed.rank(), len(test_set), distributed.world_size())
    # The bar is a context so that it is closed, and its line ended, when a signal arrives.
    bar = tqdm(indices, desc=test_set.label, disable=None if distributed.is_main() else True, leave=False)
    with torch.inference_mode(), autocast(device, precision), bar:
        for index in bar:
            image = _upscaled(runner, test_set, index)
            if image.hr is not None and min(image.hr.shape[1:]) < smallest_scored(test_set.scale):
                too_small.append(image.name)
            elif image.hr is not None:
                scored.append(_score(image, index, test_set.scale, channel, learned, device))
            if on_image is not None:
                on_image(image.name, image.shown_sr.cpu(), image.shown_lr, image.shown_hr)
    if too_small:
        log.warning("%s: too small to score, left out of the means: %s", test_set.label, ", ".join(too_small))
    scored = sorted((one for part in distributed.gather(scored) for one in part), key=lambda one: one.index)
    _warn_of_spoiled_means(scored, test_set.label)
    return Scores([one.row for one in scored])


class _Upscaled(NamedTuple):
    """An image of a test, uint8 (C, H, W): as the network has it, and, after `finite`, as people see it.

    The two differ for a colour image and a network of luma. LR and HR are on the CPU, `sr` on the device.
    """

    name: str
    sr: torch.Tensor
    hr: torch.Tensor | None
    finite: bool
    shown_sr: torch.Tensor
    shown_lr: torch.Tensor
    shown_hr: torch.Tensor | None


def _upscaled(runner: ImageRunner, test_set: TestSet, index: int) -> _Upscaled:
    lr_pixels, hr_pixels, name = test_set.pixels(index)

    def tensors(n_colors: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        return to_tensor(lr_pixels, n_colors), None if hr_pixels is None else to_tensor(hr_pixels, n_colors)

    lr, hr = tensors(test_set.n_colors)
    sr, finite = runner.upscale(lr, name)
    if not finite:
        log.warning("%s: the network's output for %s is not finite", test_set.label, name)
    shown_sr, shown_lr, shown_hr = sr, lr, hr
    if test_set.n_colors == 1 and lr_pixels.shape[2] == 3:
        shown_lr, shown_hr = tensors(3)
        shown_sr = with_lr_chroma(sr, shown_lr, test_set.scale)
    return _Upscaled(name, sr, hr, finite, shown_sr, shown_lr, shown_hr)


def _score(
    image: _Upscaled, index: int, scale: int, channel: str, learned: dict[str, Callable], device: torch.device
) -> _Scored:
    colors = tuple(shown.to(device).expand(3, -1, -1) for shown in (image.shown_sr, image.shown_hr))
    sr, hr = (image.sr, image.hr.to(device)) if channel == "y" else colors
    psnr, ssim = psnr_ssim(sr, hr, scale, channel) if image.finite else (math.nan, math.nan)
    row = {"image": image.name, "PSNR": psnr, "SSIM": ssim}
    row |= {title: metric(*colors) if image.finite else math.nan for title, metric in learned.items()}
    inner = hr[:, scale:-scale, scale:-scale]
    return _Scored(index, row, blank=bool((inner == inner[:, :1, :1]).all()))


def _warn_of_spoiled_means(scored: list[_Scored], label: str) -> None:
    reasons = {
        "PSNR is infinite because SR equals HR, and so is the mean": lambda one: one.row["PSNR"] == math.inf,
        "HR is of one colour, whose score means nothing but changes the mean": lambda one: one.blank,
    }
    for words, applies in reasons.items():
        names = [printable(one.row["image"]) for one in scored if applies(one)]
        if names:
            log.warning("%s: %s: %s", label, words, ", ".join(names))


def _perceptual_metrics(names: tuple[str, ...], device: torch.device) -> dict[str, Callable]:
    if not names:
        return {}
    try:
        return perceptual_metrics(names, device)
    except Exception as error:  # an import or a download may fail in many ways, also inside torchvision
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--perceptual {'+'.join(names)}: piq cannot be used ({reason}): pip install -r requirements-extra.txt "
            "with a torchvision that fits the installed torch, or drop --perceptual"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates networks as the command line asks; writes images and scores into the experiment's folder.

    Attributes:
        model: the network's name on the command line.
        perceptual: some of `metrics.PERCEPTUAL`.
        save_results, save_gt: whether SR, and whether LR and HR, are written. Without ground truth SR always is.
    """

    experiment: Experiment
    device: torch.device
    protocol: Protocol
    model: str
    rgb_range: float = 255
    perceptual: tuple[str, ...] = ()
    save_results: bool = False
    save_gt: bool = False

    def evaluate(self, network: nn.Module, test_set: TestSet, *, on_image: OnImage = None) -> Scores:
        """Scores one set, and writes its images; `on_image` is called for each as well."""

        def write(name: str, sr: torch.Tensor, lr: torch.Tensor, hr: torch.Tensor | None) -> None:
            images = {"SR": sr} if self.save_results or hr is None else {}
            if self.save_gt:
                images |= {"LR": lr} if hr is None else {"LR": lr, "HR": hr}
            metadata = test_set.metadata.pop(name, {})
            for kind, pixels in images.items():
                path = self.experiment.result_path(test_set.name, name, test_set.scale, kind)
                writer.submit(write_image, path, pixels, metadata)
            if on_image is not None:
                on_image(name, sr, lr, hr)

        with Writer() as writer:
            return evaluate(
                network,
                test_set,
                device=self.device,
                rgb_range=self.rgb_range,
                precision=self.protocol.precision,
                chop=self.protocol.chop,
                tile=self.protocol.tile,
                self_ensemble=self.protocol.self_ensemble,
                channel=self.protocol.channel,
                perceptual=self.perceptual,
                on_image=write,
            )

    def test(self, network: nn.Module, test_sets: list[TestSet]) -> None:
        """Tests the network on every set: logs the mean scores, and writes those of each image."""
        for test_set in test_sets:
            begun = time.perf_counter()
            scores = self.evaluate(network, test_set)
            seconds = time.perf_counter() - begun
            if distributed.is_main():
                self._report(network, test_set, scores, seconds)
        log.info("results are in %s", self.experiment.folder)

    def _report(self, network: nn.Module, test_set: TestSet, scores: Scores, seconds: float) -> None:
        counted = f"{len(test_set)} images, {seconds:.1f} s"
        if not scores.rows:
            log.info("%s: no ground truth to score; %s", test_set.label, counted)
            return
        result = SetResult(
            set_name=test_set.name,
            scale=test_set.scale,
            network=describe(network, self.model),
            protocol=self.protocol,
            scores=scores,
            seconds=seconds,
        )
        self.experiment.save_scores(test_set.name, scores.rows, result.to_json())
        learned = "".join(f", {title} {scores.mean(title):.4f}" for title in list(scores.rows[0])[3:])
        log.info(
            "%s: PSNR %.3f dB, SSIM %.4f%s (%s; %s)",
            test_set.label,
            scores.psnr,
            scores.ssim,
            learned,
            self.protocol,
            counted,
        )


def build_evaluator(args, experiment: Experiment, device: torch.device) -> Evaluator:
    """The evaluator that the options describe."""
    protocol = Protocol(
        channel=args.metric_channel,
        crop_border=args.scale,
        chop=args.chop,
        tile=args.tile,
        self_ensemble=args.self_ensemble,
        degradation=args.degradation,
        precision=args.precision,
        n_colors=args.n_colors,
    )
    return Evaluator(
        experiment=experiment,
        device=device,
        protocol=protocol,
        model=args.model,
        rgb_range=args.rgb_range,
        perceptual=args.perceptual,
        save_results=args.save_results,
        save_gt=args.save_gt,
    )
