"""Runs a network over a test set and scores it; what the scores mean is stated in `metrics.py`."""

import functools
import logging
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from data import resize
from data.color import to_tensor
from data.image import write_png
from data.testset import TestSet
from evaluation import metrics
from evaluation.metrics import perceptual_metrics, psnr_ssim, quantise, rgb_to_chroma, smallest_scored, with_chroma
from model import inference, tiling
from model.precision import autocast, to_network
from model.tiling import Tiles
from runtime import distributed
from runtime.errors import UserError, printable, says_out_of_memory
from runtime.experiment import Experiment
from runtime.hardware import available_memory

log = logging.getLogger("krgn")

# Called with (name, sr, lr, hr) of an image.
OnImage = Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor | None], None] | None

AUTO_TILE = 256  # LR pixels
SURE_TO_FIT = 2**18  # LR pixels
RESERVE = 1.5  # what operators need inside themselves, and allocators beside that

BAND = 256  # LR rows that are coloured at once


@dataclass(frozen=True)
class Scores:
    """Scores of one set: a row an image, {"image", "PSNR", "SSIM", …}; no rows if there is no ground truth."""

    rows: list[dict]

    @property
    def psnr(self) -> float:
        """Mean PSNR in dB, NaN without rows."""
        return self.mean("PSNR")

    @property
    def ssim(self) -> float:
        """Mean SSIM, NaN without rows."""
        return self.mean("SSIM")

    def mean(self, name: str) -> float:
        """Mean of a column, NaN without rows."""
        return sum(row[name] for row in self.rows) / len(self.rows) if self.rows else math.nan


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
        chop, tile, self_ensemble: how an image is run; see `model.inference` and `model.tiling`.
        channel, perceptual: what is measured; see `metrics`.
        on_image: called with (name, sr, lr, hr) after each image, uint8 (C, H, W) on the CPU, `hr` maybe None.

    Several processes divide the images among them; each image is scored once, and all get all scores.

    Raises:
        UserError: if the perceptual metrics' package cannot be used, or there is no room for a large image's features.
    """
    network.eval()
    run = runner(network, test_set, rgb_range, chop=chop, tile=tile)
    learned = _perceptual_metrics(perceptual, device)
    rows, too_small = [], []
    # The bar is a context so that it is closed, and its line ended, when a signal arrives.
    mine = range(distributed.rank(), len(test_set), distributed.world_size())
    bar = tqdm(mine, desc=test_set.label, disable=None if distributed.is_main() else True, leave=False)
    with torch.inference_mode(), autocast(device, precision), bar:
        for index in bar:
            lr_pixels, hr_pixels, name = test_set.pixels(index)
            lr, hr = (None if one is None else to_tensor(one, test_set.n_colors) for one in (lr_pixels, hr_pixels))
            _check_room(lr, test_set, name, device)
            image = to_network(lr[None], device, rgb_range)
            sr = inference.self_ensemble(run, image, batched=not tile) if self_ensemble else run(image)
            finite = bool(sr.isfinite().all())
            if not finite:
                log.warning("%s: the network's output for %s is not finite", test_set.label, name)
            sr = quantise(sr[0], rgb_range)
            shown = sr, lr, hr
            if test_set.n_colors == 1 and lr_pixels.shape[2] == 3:
                lr, hr_shown = (None if one is None else to_tensor(one, 3) for one in (lr_pixels, hr_pixels))
                shown = in_colour(sr, lr, test_set.scale), lr, hr_shown
            if hr is not None:
                if min(hr.shape[1:]) < smallest_scored(test_set.scale):
                    too_small.append(name)
                else:
                    colours = tuple(image.to(device).expand(3, -1, -1) for image in (shown[0], shown[2]))
                    scored = (sr, hr.to(device)) if channel == "y" else colours
                    score = psnr_ssim(*scored, test_set.scale, channel) if finite else (math.nan, math.nan)
                    row = {"image": name, "PSNR": score[0], "SSIM": score[1]}
                    row |= {title: metric(*colours) if finite else math.nan for title, metric in learned.items()}
                    rows.append((index, row, _blank(scored[1], test_set.scale)))
            if on_image is not None:
                on_image(name, shown[0].cpu(), *shown[1:])
    if too_small:
        log.warning("%s: too small to score, left out of the means: %s", test_set.label, ", ".join(too_small))
    rows = sorted((row for part in distributed.gather(rows) for row in part), key=lambda row: row[0])
    for words, names in {
        "PSNR is infinite, for SR equals HR, and so is the mean": [
            row for _, row, _ in rows if row["PSNR"] == math.inf
        ],
        "HR is one colour, whose score means nothing but moves the mean": [row for _, row, blank in rows if blank],
    }.items():
        if names:
            log.warning("%s: %s: %s", test_set.label, words, ", ".join(printable(row["image"]) for row in names))
    return Scores([row for _, row, _ in rows])


def _check_room(lr: torch.Tensor, test_set: TestSet, name: str, device: torch.device) -> None:
    """UserError if not even the network's input and output fit into main memory, in which tiles need little more."""
    pixels = lr.shape[1] * lr.shape[2]
    room = available_memory() if device.type == "cpu" and pixels > SURE_TO_FIT else None
    needed = lr.shape[0] * pixels * (4 + 5 * test_set.scale**2)  # both in float32, and the output in uint8
    if room is not None and needed > room:
        raise UserError(
            f"{printable(name)}: {_size(lr)} pixels and their {_size(lr)} times {test_set.scale} need "
            f"{needed / 2**30:.1f} GiB of memory, {room / 2**30:.1f} are free: cut the image into parts, or free memory"
        )


def _blank(hr: torch.Tensor, scale: int) -> bool:
    """Whether all of HR that is scored, of uint8 (C, H, W), is of one colour."""
    inner = hr[:, scale:-scale, scale:-scale]
    return bool((inner == inner[:, :1, :1]).all())


def in_colour(y: torch.Tensor, lr: torch.Tensor, scale: int) -> torch.Tensor:
    """Luma of an SR image, uint8 (1, scale * h, scale * w), with the chroma of LR, uint8 (3, h, w) on the CPU, enlarged
    by MATLAB's bicubic recipe: uint8 (3, scale * h, scale * w) on the CPU, as publications show a network for luma."""
    y, height, margin = y.cpu(), lr.shape[1], 4  # LR rows on either side that enlarging reads
    out = torch.empty(3, *y.shape[1:], dtype=torch.uint8)
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        first = max(0, top - margin)
        chroma = rgb_to_chroma(lr[:, first : bottom + margin]).permute(1, 2, 0).numpy()
        enlarged = torch.from_numpy(resize.upscale(chroma, scale)).permute(2, 0, 1)
        rows = slice(scale * top, scale * bottom)
        out[:, rows] = with_chroma(y[:, rows], enlarged[:, scale * (top - first) :][:, : scale * (bottom - top)])
    return out


def runner(network: nn.Module, test_set: TestSet, rgb_range: float, *, chop: bool, tile: int) -> tiling.Function:
    """The function of an image (1, C, H, W) that a test runs; see `evaluate`."""
    scale, n_colors = test_set.scale, test_set.n_colors
    if chop:
        return lambda image: inference.chop(network, image, scale)
    tiles = functools.cache(lambda: Tiles(network, scale=scale, tile=tile or AUTO_TILE, n_colors=n_colors))
    per_pixel = functools.cache(lambda: tiling.bytes_per_pixel(network, torch.zeros(1, n_colors, 1, 1)))

    measured: list[float] = []

    def measure(image: torch.Tensor) -> None:
        if not measured:  # once, on the middle of the first image
            measured.append(tiles().deviation(image) * 255 / rgb_range)
            log.warning(
                "tiles are not exact for this network, which may have global statistics: in the middle of the first "
                "image they are off by %.2g of 255",
                measured[0],
            )

    def in_tiles(image: torch.Tensor) -> torch.Tensor:
        try:
            if not tiles().exact:
                measure(image)
            return torch.cat([tiles()(one) for one in image.split(1)])
        except OSError as error:
            raise UserError(
                f"features of {_size(image)} pixels do not fit into the temporary folder {tempfile.gettempdir()} "
                f"({error.strerror}): set TMPDIR to a larger disk"
            ) from None

    def whole(image: torch.Tensor) -> torch.Tensor:
        pixels, room = image.shape[-2] * image.shape[-1], available_memory() if image.device.type == "cpu" else None
        # Small images fit, and are not worth the measurement. A process that takes too much is killed without a word.
        if pixels > SURE_TO_FIT and room is not None and RESERVE * pixels * per_pixel() > room:
            reason = f"needs about {RESERVE * pixels * per_pixel() / 2**30:.1f} GiB, {room / 2**30:.1f} are free"
        else:
            try:
                return network(image)
            except (MemoryError, RuntimeError) as error:
                if not says_out_of_memory(error):
                    raise
                reason = "does not fit into memory"
        log.info("an image of %s pixels %s: running tiles of %d instead (--tile)", _size(image), reason, AUTO_TILE)
        return in_tiles(image)

    return in_tiles if tile else whole


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def _perceptual_metrics(names: tuple[str, ...], device: torch.device) -> dict[str, Callable]:
    if not names:
        return {}
    try:
        return perceptual_metrics(names, device)
    except Exception as error:  # an import or a download may fail in many ways, also inside of torchvision
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--perceptual {'+'.join(names)}: piq cannot be used ({reason}): pip install -r requirements-extra.txt "
            "beside a torch that fits its torchvision, or drop --perceptual"
        ) from None


def protocol(args) -> str:
    """What was measured and how, in a few words beside every printed score."""
    mode = "four quadrants" if args.chop else f"tiles of {args.tile}" if args.tile else "whole image"
    ensemble = ", self-ensemble" if args.self_ensemble else ""
    luma = f"; {metrics.LUMA_NETWORK}" if args.n_colors == 1 else ""
    return f"{metrics.protocol(args.metric_channel)}; LR {args.degradation}; {mode}{ensemble}{luma}"


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
        metadata = test_set.metadata.pop(name, {})
        for kind, pixels in images.items():
            path = experiment.result_path(test_set.name, name, args.scale, kind)
            writer.submit(write_image, path, pixels, metadata)
        if on_image is not None:
            on_image(name, sr, lr, hr)

    with Writer() as writer:
        return evaluate(
            network,
            test_set,
            device=device,
            rgb_range=args.rgb_range,
            precision=args.precision,
            chop=args.chop,
            tile=args.tile,
            self_ensemble=args.self_ensemble,
            channel=args.metric_channel,
            perceptual=args.perceptual,
            on_image=write,
        )


class Writer:
    """Runs calls that write images on a few threads, so that the network need not wait for PNG's compression.

    At most `waiting` images are kept; then `submit` waits. A call's error is raised by a later `submit` or at the end.
    """

    def __init__(self, threads: int = 2, waiting: int = 4):
        self._pool, self._waiting, self._calls = ThreadPoolExecutor(threads), waiting, deque()

    def submit(self, function: Callable, *args) -> None:
        """Calls function(*args) some time soon."""
        while self._calls and (self._calls[0].done() or len(self._calls) >= self._waiting):
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(function, *args))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, *_) -> None:
        with self._pool:
            if kind is None:
                while self._calls:
                    self._calls.popleft().result()


def test(args, network: nn.Module, test_sets: list[TestSet], experiment: Experiment, device: torch.device) -> None:
    """Tests the network on every set: prints the mean scores, and writes those of each image."""
    for test_set in test_sets:
        begun = time.perf_counter()
        scores = evaluate_as_asked(args, network, test_set, experiment, device)
        facts = f"{len(test_set)} images, {time.perf_counter() - begun:.1f} s"
        if not distributed.is_main():
            continue
        if not scores.rows:
            log.info("%s: no ground truth to score; %s", test_set.label, facts)
            continue
        experiment.save_scores(test_set.name, scores.rows)
        learned = "".join(f", {title} {scores.mean(title):.4f}" for title in list(scores.rows[0])[3:])
        log.info(
            "%s: PSNR %.3f dB, SSIM %.4f%s (%s; %s)",
            test_set.label,
            scores.psnr,
            scores.ssim,
            learned,
            protocol(args),
            facts,
        )
    log.info("results are in %s", experiment.folder)


def write_image(path: Path, pixels: torch.Tensor, metadata: dict[str, bytes]) -> None:
    """Writes uint8 (C, H, W) as PNG, with the metadata that `write_png` takes; UserError if it cannot be written."""
    try:
        write_png(path, pixels.permute(1, 2, 0).numpy(), **metadata)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): free the disk or name another --dir_experiment"
        ) from None
