"""The loop over epochs: batches, validation, files. One step is in `step.py`, what a run goes on from in `state.py`.

Several processes (`runtime/distributed.py`) run the same code on their parts of each batch and take every decision
together. On a GPU nothing in the loop waits for the device: whether a batch is good for a step is decided there, and
its result is read while the next batch runs.
"""

import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from tqdm import tqdm

from data.patches import Batch
from data.testset import TestSet
from evaluation.metrics import Scores
from model.checkpoint import pack
from runtime import distributed, errors
from runtime.errors import held
from runtime.experiment import Experiment
from train.best import score_columns
from train.files import save_history, save_weights
from train.monitor import Diverged, Monitor, StepStats
from train.optim import Schedule, make_scheduler
from train.requests import Requests
from train.state import Progress, RunState, all_done
from train.trackers import Tracker

log = logging.getLogger("krgn")

Batches = Iterator[Batch]


@dataclass(frozen=True)
class Plan:
    """How long a run trains, and what it leaves.

    Args:
        summary: the line of the log that a run begins with.
        epochs: epochs in all; infinite to train until stopped.
        batch_size: patches in a batch, over all processes.
        val_every: epochs between two validations; the last epoch is always validated.
        print_every: batches between two lines of the log.
        keep_epochs: keep weights and state of every epoch (--save_models).
    """

    summary: str
    epochs: float
    batch_size: int
    val_every: int = 1
    print_every: int = 100
    keep_epochs: bool = False


class Trainer:
    """Trains until `plan.epochs` are complete and keeps the experiment's folder up to date.

    Args:
        state: where the run stands, with its network and optimizers in `state.step`.
        batches_from: called with a batch's number, gives that batch and all after it; see `data.train_batches`.
        validate: called with what keeps SR images for the tracker, gives the scores of each of `test_sets`.
        begin_tracker: called with the first epoch that will be written, gives the tracker of this process.
    """

    def __init__(
        self,
        state: RunState,
        plan: Plan,
        schedule: Schedule,
        monitor: Monitor,
        requests: Requests,
        *,
        batches_from: Callable[[int], Batches],
        validate: Callable[[Callable], list[Scores]],
        begin_tracker: Callable[[int], Tracker],
        test_sets: list[TestSet],
        experiment: Experiment,
    ):
        self.state, self.step, self.progress, self.best_by = state, state.step, state.progress, state.best_by
        self.plan, self.schedule, self.monitor, self.requests = plan, schedule, monitor, requests
        self.batches_from, self.validate, self.test_sets = batches_from, validate, test_sets
        self.begin_tracker = begin_tracker
        self.experiment, self.epoch_batches = experiment, schedule.epoch_batches
        self.schedulers = [make_scheduler(each, schedule, done=self.done) for each in self.step.optimizers]
        self.ahead = 1 if self.step.device.type == "cuda" else 0  # steps that may be in flight when the next one starts
        self.in_flight: deque[StepStats] = deque()
        self.eta_logged = False
        self.in_step = False

    @property
    def done(self) -> int:
        """Batches done in the whole run."""
        return self.progress.epoch * self.epoch_batches + self.progress.batch

    def fit(self) -> None:
        """Trains. On a signal the state is saved, within an epoch too."""
        progress, plan = self.progress, self.plan
        if done := all_done(progress.epoch, plan.epochs):
            log.info(done)
            return
        log.info(plan.summary)
        tracker = self.begin_tracker(progress.epoch + 1)
        batches = self.batches_from(self.done)
        try:
            while progress.epoch < plan.epochs:
                if progress.batch < self.epoch_batches:
                    self._train_epoch(batches)
                    self._save_state()  # a signal during a long validation then costs no training
                epoch = progress.epoch + 1
                validated = epoch % plan.val_every == 0 or epoch == plan.epochs
                scores = self.validate(tracker.keep) if validated else None
                with held():
                    self._finish_epoch(scores, tracker)
        except Diverged:
            raise
        except BaseException:
            # Also for a bug or a full disk: the batches done so far are worth keeping, if they can be.
            self._save_at_the_end()
            raise
        finally:
            batches.close()
            tracker.close()

    def _train_epoch(self, batches: Batches) -> None:
        """The rest of an epoch. Requests are served between batches, by all processes at once."""
        progress, title, total = self.progress, f"epoch {self.progress.epoch + 1}", self.epoch_batches
        self.step.network.train()
        log.info("[%s] learning rate %.2e", title, self.schedulers[0].get_last_lr()[0])
        begun, done_before, waited = time.perf_counter(), progress.batch, 0.0
        disable = None if distributed.is_main() else True
        bar = tqdm(desc=title, total=total, initial=progress.batch, unit="batch", disable=disable, leave=False)
        with held(), bar:
            while progress.batch < total:
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                # Before the step: where a lost process ends either of them, the weights have not moved.
                requests = self.requests.exchange()
                self.in_step = True
                result = self.step(batch, loss_limit=self.monitor.loss_limit)
                self.in_step = False
                progress.batch += 1
                for scheduler in self.schedulers:
                    scheduler.step()
                self.in_flight.append(StepStats(progress.batch, batch.names, result, requests))
                save = self._book(0 if progress.batch == total else self.ahead)
                progress.seconds += time.perf_counter() - asked
                if save:
                    self._book()
                    self._save_state()
                self._show(bar, time.perf_counter() - begun, waited, progress.batch - done_before)
                bar.update()
        self.monitor.check()

    def _show(self, bar: tqdm, elapsed: float, waited: float, n_batches: int) -> None:
        """How the epoch goes, on the progress bar and every --print_every batches in the log."""
        progress, total = self.progress, self.epoch_batches
        losses = " ".join(f"{name} {value:.4f}" for name, value in self.monitor.means().items())
        speed = n_batches * self.plan.batch_size / elapsed
        line = f"{losses}, {speed:.1f} patches/s, {waited / elapsed:.0%} waiting for data"
        bar.set_postfix_str(line, refresh=False)
        if progress.batch % self.plan.print_every == 0:
            log.info("[%d/%d] %s", progress.batch, total, line)
        if not self.eta_logged and elapsed > 60 and self.plan.epochs < math.inf:
            self.eta_logged = True
            left = (self.plan.epochs * total - self.done) * elapsed / n_batches
            log.info("about %.1f hours of training to the end, validation not counted", left / 3600)

    def _book(self, leave: int = 0, *, alone: bool = False) -> bool:
        """Books the steps in flight, all but the last `leave` of them; returns whether the state is to be saved.

        Args:
            alone: the other processes may be elsewhere.

        Raises:
            Diverged: after too many consecutive skips.
            errors.Interrupted: if a signal has reached any process.
        """
        stop = save = False
        while len(self.in_flight) > leave:
            stats = self.in_flight.popleft().wait()
            stop, save = stop or stats.stop, save or stats.save
            try:
                moved = self.monitor.book(stats, alone=alone)
            except Diverged:
                self.in_flight.clear()
                self._save_skipped()
                raise
            if not moved:
                self._save_skipped()
        if stop:
            self._book(alone=alone)
            raise errors.Interrupted(errors.pending() or signal.SIGTERM)
        return save

    def _save_skipped(self) -> None:
        if distributed.is_main():
            self.experiment.save_skipped(self.progress.skipped)

    def _finish_epoch(self, scores: list[Scores] | None, tracker: Tracker) -> None:
        """Books a complete epoch and writes everything; `scores` is None where it was not validated.

        First the files, then the new state: if a file cannot be written the state still says that the epoch is to be
        finished, and a resumed run does it again.
        """
        progress, epoch = self.progress, self.progress.epoch + 1
        row = {"epoch": epoch, "lr": self.schedule.rate(self.done - 1)} | self.monitor.means()
        row |= {"gradient norm": self.monitor.mean_norm()}
        best, facts = progress.best, {}
        if scores is not None:
            row |= score_columns(self.test_sets, scores, epoch)
            facts = {"psnr": self.best_by.mean(self.test_sets, scores, "PSNR")}
            # Suspect weights are not saved, so they cannot be the best ones.
            if not self.monitor.weights_suspect:
                best = self.best_by.updated(best, self.best_by.mean(self.test_sets, scores), epoch)
            self.best_by.log(best, epoch)
        is_best = best is not progress.best
        row["skipped"] = max(0, self.epoch_batches - progress.counted)
        history = [*progress.history, row | {"seconds": round(progress.seconds, 1)}]
        if distributed.is_main() and self.monitor.weights_suspect:
            log.info("[epoch %d] not saved: %s", epoch, self.monitor.why_suspect())
        elif distributed.is_main():
            names = ["latest"] + ["best"] * is_best + [str(epoch)] * self.plan.keep_epochs
            weights = "raw" if self.step.average is None else "averaged"
            checkpoint = pack(self.step.released, self.state.model, epoch=epoch, **facts, weights=weights)
            save_weights(self.experiment, checkpoint, names)
            save_history(self.experiment, history)
            speed = self.epoch_batches * self.plan.batch_size / max(progress.seconds, 1e-9)
            tracker.write(epoch, row | {"patches per second": speed})

        progress.best, progress.history = best, history
        if progress.counted:
            progress.reference_loss = row["loss"]
        progress.begin_epoch()
        self._save_state()
        if self.plan.keep_epochs and distributed.is_main() and not self.monitor.weights_suspect:
            self.experiment.keep_state(epoch)

    def _save_at_the_end(self) -> None:
        """Saves the state when the run ends early, and logs how to go on."""
        with held():
            with suppress(errors.Interrupted):
                self._book(alone=True)
            # A lost process ends a step before the weights move, but not before a discriminator's statistics do.
            torn = self.step.moving or (self.in_step and self.step.adversary is not None)
            saved = not torn and self._save_state()
        why = "a step was interrupted" if torn else self.monitor.why_suspect()
        log_end(self.progress, self.experiment, unsaved="" if saved else why)

    def _save_state(self) -> bool:
        """Saves the state, unless the weights are suspect; returns whether it did."""
        if saved := distributed.is_main() and not self.monitor.weights_suspect:
            self.experiment.save_state(self.state.to_dict())
        self.requests.saved()
        return saved


def log_end(progress: Progress, experiment: Experiment, *, unsaved: str) -> None:
    """Logs how to resume a run that ends early.

    Args:
        unsaved: why its state was not saved now; "" if it was.
    """
    line = f"state saved after {progress.epoch} epochs and {progress.batch} batches"
    if unsaved:
        line = f"{unsaved}, so the state saved before that stays"
    if experiment.state_path.is_file():
        log.info("%s: resume with --load %s", line, experiment.name)
    else:
        log.info("no state was saved yet: start again with --save %s --reset", experiment.name)
