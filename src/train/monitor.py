"""What the steps of an epoch gave: its sums, the skipped batches, and whether the weights can be trusted."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from runtime import distributed
from runtime.errors import UserError
from train.state import Progress
from train.step import StepResult

log = logging.getLogger("krgn")

MAX_SKIPPED = 100  # consecutive skips that end a run: it will not recover
DIVERGED = 10  # times the last epoch's mean loss: from there on the weights are no good
RECENT = 20  # batches over which the loss is averaged for that
FIRST = 100  # batches of a run after which their mean loss can be compared with
SMALLER_SCALES = 24  # times that half precision may halve its scale, 2^16 at first, before something else is wrong


class Diverged(UserError):
    """The weights are unusable, and must not replace the last good state."""


class StepStats:
    """A step's result on its way from the device to the host, until `wait`.

    Args:
        batch: its number in the epoch, from 1.
        names: of its images.
        requests: of `Requests.exchange`, taken with the step.
    """

    def __init__(self, batch: int, names: list[str], result: StepResult, requests: torch.Tensor):
        self.batch, self.names = batch, names
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in (*result, requests)]
        self._arrived = torch.cuda.Event() if requests.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> "StepStats":
        """Itself, with `good`, `losses` and `norms` of the result, and whether to `stop` and to `save`."""
        if self._arrived is not None:
            self._arrived.synchronize()
        self.good, self.losses, self.norms, (stop, save) = (tensor.tolist() for tensor in self._tensors)
        self.stop, self.save = stop > 0, save > 0
        return self


@dataclass
class Monitor:
    """Books each step in a run's progress.

    What a loss is compared with, the reference, is the mean of the epoch before. In the first epoch it is the mean of
    its batches so far, from the hundredth on, and does not rise again: an explosion must not become its own measure.

    Args:
        terms: names of the loss's terms.
        adversarial: whether a discriminator's loss comes after theirs.
        skip_threshold: a batch is skipped whose loss is above this times the reference.
        half_precision: whether gradients are scaled, and may overflow without anything being wrong.
        run: the run's name, and `lr` its learning rate, for advice.
        has_state: whether a state was saved.

    Attributes:
        weights_suspect: whether skipped batches or an exploded loss may be the weights' fault: then they are not saved.
    """

    progress: Progress
    terms: list[str]
    adversarial: bool
    skip_threshold: float
    half_precision: bool
    run: str
    lr: float
    has_state: Callable[[], bool]
    weights_suspect: bool = False

    def __post_init__(self):
        last = self.progress.reference_loss
        self.recent = last if math.isfinite(last) else 0.0  # moving average of the loss over `RECENT` batches

    @property
    def loss_limit(self) -> float:
        """The loss above which a batch is skipped. A Wasserstein distance may be below zero, which says nothing about
        what is too large."""
        last = self.progress.reference_loss
        return self.skip_threshold * last if last > 0 else math.inf

    def book(self, stats: StepStats, *, alone: bool = False) -> bool:
        """Books a step that has arrived; returns whether the weights moved.

        Args:
            alone: the other processes may be elsewhere, and cannot be asked for the images of a skipped batch.

        Raises:
            Diverged: after too many consecutive skips.
        """
        progress = self.progress
        if stats.good:
            progress.sums = [total + value for total, value in zip(progress.sums, stats.losses, strict=True)]
            progress.norms += stats.norms[0]
            progress.counted += 1
            if progress.epoch == 0 and progress.counted >= FIRST:
                progress.reference_loss = min(progress.reference_loss, self.means()["loss"])
            self.recent += (self._loss(stats) - self.recent) / RECENT
            progress.consecutive_skips, self.weights_suspect = 0, self.loss_exploded()
            return True
        progress.consecutive_skips += 1
        self.weights_suspect = self.weights_suspect or not self._only_overflowed(stats)
        reason = self._why_skipped(stats)
        images = " ".join(
            name for part in ([stats.names] if alone else distributed.gather(stats.names)) for name in part
        )
        log.info("batch %d skipped: %s (%s)", stats.batch, reason, images)
        row = {"epoch": progress.epoch + 1, "batch": stats.batch, "reason": reason, "images": images}
        progress.skipped.append(row)
        if progress.consecutive_skips >= MAX_SKIPPED:
            why = f"{progress.consecutive_skips} batches in a row were skipped, the last because {reason}"
            raise self._diverged(why, "raise --skip_threshold")
        return False

    def means(self) -> dict[str, float]:
        """Means over the epoch so far: "loss", each weighted term by name if it has several, and a discriminator's."""
        progress = self.progress
        means = [total / progress.counted if progress.counted else math.nan for total in progress.sums]
        several = dict(zip(self.terms, means, strict=False)) if len(self.terms) > 1 else {}
        critic = {"discriminator": means[-1]} if self.adversarial else {}
        return {"loss": sum(means[: len(self.terms)])} | several | critic

    def mean_norm(self) -> float:
        """The mean norm of the network's gradient over the epoch so far."""
        return self.progress.norms / self.progress.counted if self.progress.counted else math.nan

    def loss_exploded(self) -> bool:
        """Whether the loss is far above the reference. A discriminator's part of it says nothing about that."""
        return not self.adversarial and self.recent > DIVERGED * self.progress.reference_loss > 0

    def why_suspect(self) -> str:
        """Why the weights are not saved while they are suspect."""
        if self.loss_exploded():
            return "the loss has exploded"
        skips = self.progress.consecutive_skips
        return "the last batch was skipped" if skips == 1 else f"the last {skips} batches were skipped"

    def check(self) -> None:
        """Raises Diverged if the loss has exploded."""
        if self.loss_exploded():
            why = f"the loss rose from {self.progress.reference_loss:.4g} {self._when} to {self.recent:.4g}"
            raise self._diverged(why, "set --skip_threshold")

    def _diverged(self, why: str, instead: str) -> Diverged:
        fix = f"lower --lr, set --gclip or {instead}"
        if not self.has_state():
            return Diverged(f"{why}: training diverged before a state was saved: {fix}, and start again with --reset")
        go_on = f"--load {self.run} --override lr --lr {self.lr / 2:g}"
        return Diverged(
            f"{why}: training diverged; the last good state is kept: resume with {go_on}, or {fix} in another run"
        )

    def _loss(self, stats: StepStats) -> float:
        return sum(stats.losses[: len(self.terms)])

    def _only_overflowed(self, stats: StepStats) -> bool:
        """Whether only the gradient of a half-precision batch is not finite: its scale was too large, as it is at the
        start and whenever it has grown, and the next one's is smaller. That says nothing against the weights."""
        overflow = self.half_precision and not math.isfinite(stats.norms[0])
        rest_is_good = (
            all(map(math.isfinite, (*stats.losses, *stats.norms[1:]))) and self._loss(stats) < self.loss_limit
        )
        return overflow and rest_is_good and self.progress.consecutive_skips <= SMALLER_SCALES

    def _why_skipped(self, stats: StepStats) -> str:
        loss, norms = self._loss(stats), stats.norms
        if not math.isfinite(loss):
            return f"its loss is {loss}"
        if not math.isfinite(sum(stats.losses)):
            return "its discriminator's loss is not finite"
        if not math.isfinite(norms[0]):
            return f"its gradient's norm is {norms[0]}"
        if not math.isfinite(sum(norms)):
            return f"its discriminator's gradient's norm is {norms[1]}"
        return f"its loss {loss:.4g} is above {self.loss_limit:.4g}, --skip_threshold times the mean {self._when}"

    @property
    def _when(self) -> str:
        """Of which batches the reference is the mean."""
        return "in the last epoch" if self.progress.epoch else "in this epoch so far"
