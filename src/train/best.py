"""Which epoch of a run is its best: one validation score of one test set decides (--best_by)."""

import logging
import math
from dataclasses import dataclass

from data.testset import TestSet
from evaluation.metrics import Protocol, Scores
from runtime.errors import UserError

log = logging.getLogger("krgn")

LOWER_IS_BETTER = ("LPIPS", "DISTS")


@dataclass(frozen=True)
class BestBy:
    """The score that chooses the best epoch, whose weights become model_best.pt.

    Args:
        set_name: the test set; "" if no set has ground truth, and then no epoch is the best.
        metric: a column of `Scores`: PSNR, SSIM or a learned distance.
        on: set, metric and protocol in words. Scores that differ in these do not compare.
    """

    set_name: str = ""
    metric: str = "PSNR"
    on: str = ""

    @property
    def key(self) -> str:
        """The score's name in a run's state: "psnr", "ssim" and so on."""
        return self.metric.lower()

    def mean(self, test_sets: list[TestSet], scores: list[Scores], metric: str | None = None) -> float:
        """The set's mean of `metric` (None: of the one that decides), NaN without ground truth."""
        found = (score for each, score in zip(test_sets, scores, strict=True) if each.name == self.set_name)
        return next((score.mean(metric or self.metric) for score in found), math.nan)

    def updated(self, best: dict, score: float, epoch: int) -> dict:
        """`Progress.best` after an epoch: `best` itself, or a new one if the score is better. NaN never is."""
        if self.metric in LOWER_IS_BETTER:
            is_better = score < best.get(self.key, math.inf)
        else:
            is_better = score > best.get(self.key, -math.inf)
        return {self.key: score, "epoch": epoch, "on": self.on} if is_better else best

    def log(self, best: dict, epoch: int) -> None:
        """Logs the best epoch so far, after `epoch`."""
        if best:
            shown = _shown(self.metric, best[self.key])
            log.info("[epoch %d] best so far: %s on %s, epoch %d", epoch, shown, self.set_name, best["epoch"])


def choose_best_by(flag: str, test_sets: list[TestSet], protocol: Protocol) -> BestBy:
    """What --best_by asks for: "Set5:SSIM", or "" for the PSNR of the first set with ground truth.

    Raises:
        UserError: if the set has no ground truth.
    """
    wanted, _, metric = flag.rpartition(":")
    scored = [test_set for test_set in test_sets if test_set.scored]
    if not flag:
        wanted, metric = scored[0].name if scored else "", "PSNR"
    chosen = next((test_set for test_set in scored if test_set.name == wanted), None)
    if chosen is None and flag:
        others = ", ".join(test_set.name for test_set in scored) or "none of --data_test"
        raise UserError(
            f"--best_by {flag}: {wanted} has no HR images to score against ({others} has): name a set with HR images, "
            "or drop --best_by"
        )
    if chosen is None:
        return BestBy()
    # Without a name for PSNR, as older state files have it.
    by = "" if metric == "PSNR" else f" by {metric}"
    return BestBy(chosen.name, metric, f"{chosen.label}{by}, {protocol}")


def score_columns(test_sets: list[TestSet], scores: list[Scores], epoch: int) -> dict[str, float]:
    """The mean scores as columns of history.csv, "Set5 PSNR" and so on; each set with a line in the log."""
    columns = {}
    for test_set, score in zip(test_sets, scores, strict=True):
        if test_set.scored:
            learned = [name for name in score.rows[0] if name in LOWER_IS_BETTER] if score.rows else []
            means = {name: score.mean(name) for name in ("PSNR", "SSIM", *learned)}
            columns |= {f"{test_set.name} {name}": mean for name, mean in means.items()}
            log.info("[epoch %d] %s: %s", epoch, test_set.label, ", ".join(_shown(*each) for each in means.items()))
    return columns


def _shown(metric: str, mean: float) -> str:
    return f"PSNR {mean:.3f} dB" if metric == "PSNR" else f"{metric} {mean:.4f}"
