"""Training: one step, the loop over epochs, and the state from which a run goes on exactly.

A run is a sequence of batches whose content depends on their number and the seed alone (`data.srdata.TrainSet`), so
the state is the weights, what the optimizer remembers, and how far the run has come. Several processes
(`runtime/distributed.py`) run the same code on their parts of each batch and take every decision together.

On a GPU nothing in the loop waits for the device: whether a batch is good for a step is decided there, and what it
says is read while the next batch runs.
"""

import logging
import math
import random
import time
from collections import deque
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_value_, get_total_norm
from tqdm import tqdm

from data import train_batches
from data.srdata import TestSet, TrainSet
from evaluation.evaluate import build_evaluator
from evaluation.metrics import Scores
from evaluation.runner import to_network
from loss import Loss
from loss.perceptual import load_vgg19
from model.checkpoint import pack
from model.precision import InPrecision
from model.recalibration import fold
from runtime import distributed, errors
from runtime.errors import UserError, held
from runtime.experiment import Experiment
from runtime.tensor_files import load_tensors
from train.optim import (
    make_average,
    make_critic_optimizer,
    make_optimizer,
    make_scheduler,
    step_if,
    update_average,
)
from train.statecheck import expect, fitting, same_optimizer, same_progress, same_random, same_tensors
from train.tensorboard import Board

log = logging.getLogger("krgn")

MAX_SKIPPED = 100  # batches skipped one after the other that end a run: it will not recover
DIVERGED = 10  # times the last epoch's mean loss: from there on the weights are no good
RECENT = 20  # batches over which the loss is averaged for that
SMALLER_SCALES = 24  # times that half precision may halve its scale, 2^16 at first, before something else is wrong


class Diverged(UserError):
    """Batch after batch is skipped: the weights are no good, and must not replace the last good state."""


@dataclass
class Told:
    """What the device says of a batch: the batch's number in its epoch, its images, and values that are on their way
    to the host until `arrived`: see `Trainer._step`."""

    batch: int
    names: list[str]
    values: torch.Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> list[float]:
        """The values, when they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()


class Trainer:
    """Trains `network` and keeps the experiment's folder up to date.

    Args:
        args: the options, with the network's structure already read off a checkpoint, if there is one.
        network: on `device`, in training form.
        state: the state to go on from (`Experiment.load_state`), or None to begin.
    """

    def __init__(
        self,
        args,
        network: nn.Module,
        train_set: TrainSet,
        test_sets: list[TestSet],
        experiment: Experiment,
        device: torch.device,
        state: dict | None = None,
    ):
        self.args, self.network, self.experiment, self.device = args, network, experiment, device
        self.train_set, self.test_sets = train_set, test_sets
        self.evaluator = build_evaluator(args, experiment, device)
        self.epoch_batches = args.test_every or max(1, len(train_set) // args.batch_size)
        self.best_set = next((index for index, test_set in enumerate(test_sets) if test_set.scored), None)

        # Batches that may be under way on the device before the first of them is read.
        self.ahead = 1 if device.type == "cuda" else 0
        self.unread: deque[Told] = deque()

        self.loss = Loss(
            args.loss,
            rgb_range=args.rgb_range,
            n_colors=args.n_colors,
            patch_size=args.patch_size,
            load_vgg19=lambda: load_vgg19(args.vgg_weights, load_tensors),
        ).to(device)
        self.adversary = self.loss.adversary
        self.critic_optimizer = make_critic_optimizer(args, self.adversary) if self.adversary else None
        self.optimizer = make_optimizer(args, network)
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "half")
        self.average = make_average(network, args.ema)
        self.averaged = torch.zeros((), dtype=torch.float64, device=device)  # steps in it

        self.epoch = 0  # epochs that are complete, validation included
        self.batch = 0  # batches done in the epoch after that
        self.sums = [0.0] * (len(args.loss) + (self.adversary is not None))  # of each value of `_step`, over this epoch
        self.norms = 0.0  # sum of the gradients' norms, likewise
        self.counted = 0  # batches in `sums`: those that were not skipped
        self.seconds = 0.0  # training time of this epoch
        self.last_loss = math.inf  # mean loss of the epoch before, for --skip_threshold
        self.best: dict = {}
        self.history: list[dict] = []
        self.skipped: list[dict] = []  # batches that never reached the weights, and why
        self.in_a_row = 0  # how many of them came last
        self.suspect = False  # whether the weights may be why, or the loss has exploded: then they are not saved
        self.n_images = len(train_set)
        if state is not None:
            self._restore(state)
        # Moving average of the loss over `RECENT` batches.
        self.recent = self.last_loss if math.isfinite(self.last_loss) else 0.0
        self.scheduler, *self.critic_schedulers = (
            make_scheduler(args, optimizer, epoch_batches=self.epoch_batches, done=self.done)
            for optimizer in (self.optimizer, self.critic_optimizer)
            if optimizer is not None
        )
        self.parallel = self._parallel()
        self.saved_at = time.monotonic()
        self.told = False  # how long it will take

    @property
    def done(self) -> int:
        """Batches done in the whole run."""
        return self.epoch * self.epoch_batches + self.batch

    def _parallel(self) -> nn.Module:
        """The network as it is run in training. It shares its parameters with `self.network`, which is saved."""
        network = compiled(self.network, self.args, self.device) if self.args.compile else self.network
        network = InPrecision(network, self.device, self.args.precision)
        if distributed.world_size() > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)
        if self.device.type == "cuda" and self.args.n_GPUs > 1:
            return nn.DataParallel(network, list(range(self.args.n_GPUs)))
        return network

    def fit(self) -> None:
        """Trains until --epochs are complete. On a signal the state is saved, within an epoch too."""
        epochs = self.args.epochs or math.inf
        if self.epoch >= epochs:
            log.info("nothing to do: %d of %d epochs are done (raise --epochs to go on)", self.epoch, epochs)
            return
        self._say_what_begins()
        board = Board(
            self.experiment.folder, first=self.epoch + 1, wanted=distributed.is_main() and not self.args.no_tensorboard
        )
        batches = train_batches(
            self.train_set,
            batch_size=self.args.batch_size,
            n_threads=self.args.n_threads,
            first=self.done,
            part=(distributed.rank(), distributed.world_size()),
            pin_memory=self.device.type == "cuda",
        )
        try:
            while self.epoch < epochs:
                if self.batch < self.epoch_batches:
                    self._train_epoch(batches)
                    self._save_state()  # a signal during a long validation then costs no training
                scores = self._validate(board)
                with held():
                    self._finish_epoch(scores, board)
        except Diverged:
            raise
        except BaseException as error:
            # Also for a bug or a full disk: the batches done so far are worth keeping, if they can be.
            with held():
                with suppress(errors.Interrupted):
                    self._read(alone=True)
                saved = self._save_state()
            said = f"state saved after {self.epoch} epochs and {self.batch} batches"
            why = "the last batches were skipped" if self.in_a_row else "the loss has exploded"
            said = said if saved else f"{why}, so the state saved before that stays"
            log.info("%s: go on with --load %s", said, self.experiment.name)
            if distributed.lost(error):
                raise UserError(f"another process of this run has ended ({error}): see what it said") from None
            raise
        finally:
            batches.close()
            board.close()

    def _say_what_begins(self) -> None:
        args, world = self.args, distributed.world_size()
        processes = f" over {world} processes" if world > 1 else f" over {args.n_GPUs} GPUs" if args.n_GPUs > 1 else ""
        parts = f" in {args.split_batch} parts" if args.split_batch > 1 else ""
        log.info(
            "training on %d images, %d patches a batch%s%s, %d batches an epoch, %s epochs; testing on %s",
            len(self.train_set),
            args.batch_size,
            processes,
            parts,
            self.epoch_batches,
            args.epochs or "endless",
            ", ".join(f"{test_set.name} ({len(test_set)})" for test_set in self.test_sets),
        )

    def _train_epoch(self, batches) -> None:
        """The rest of an epoch. Signals are looked at between batches, by all processes at once."""
        self.network.train()
        log.info("[epoch %d] learning rate %.2e", self.epoch + 1, self.optimizer.param_groups[0]["lr"])
        begun, done_before, waited = time.perf_counter(), self.batch, 0.0
        title, total = f"epoch {self.epoch + 1}", self.epoch_batches
        disable = None if distributed.is_main() else True
        bar = tqdm(desc=title, total=total, initial=self.batch, unit="batch", disable=disable, leave=False)
        with held(), bar:
            while self.batch < total:
                asked = time.perf_counter()
                lr, hr, names = next(batches)
                waited += time.perf_counter() - asked
                values = self._step(lr, hr)
                self.batch += 1
                for scheduler in (self.scheduler, *self.critic_schedulers):
                    scheduler.step()
                self._send(values, names)
                overdue = self._read(0 if self.batch == total else self.ahead)
                self.seconds += time.perf_counter() - asked
                if overdue:
                    self._read()
                    self._save_state()

                elapsed = time.perf_counter() - begun
                losses = " ".join(f"{name} {value:.4f}" for name, value in self._mean_losses().items())
                speed = (self.batch - done_before) * self.args.batch_size / elapsed
                said = f"{losses}, {speed:.1f} patches/s, {waited / elapsed:.0%} waiting for data"
                bar.set_postfix_str(said, refresh=False)
                bar.update()
                if self.batch % self.args.print_every == 0:
                    log.info("[%d/%d] %s", self.batch, total, said)
                if not self.told and elapsed > 60 and self.args.epochs:
                    self.told = True
                    left = (self.args.epochs * total - self.done) * elapsed / (self.batch - done_before)
                    log.info("about %.1f hours of training to the end, validation not counted", left / 3600)
        if self._exploded():
            why = f"the loss rose from {self.last_loss:.4g} in the last epoch to {self.recent:.4g}"
            raise self._diverged(why, "set --skip_threshold")

    def _exploded(self) -> bool:
        """Whether the loss is far above the last epoch's. A discriminator's part of it says nothing about that."""
        return self.adversary is None and self.recent > DIVERGED * self.last_loss > 0

    def _diverged(self, why: str, instead: str) -> Diverged:
        mend = f"--load {self.experiment.name} --override lr --lr {self.args.lr / 2:g}"
        return Diverged(
            f"{why}: training diverged; the last good state is kept: go on with {mend}, or lower --lr, set --gclip or "
            f"{instead} in another run"
        )

    def _step(self, lr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        """One optimizer step on a batch, in --split_batch parts; none where the batch is not good for one.

        Returns:
            Float64 on the device, the same in all processes: 1 if the step was made, else 0; above 0 if a signal has
            reached any process; above 0 if --save_every has passed on any; each value of the loss; the norms of the
            network's gradient and the discriminator's.
        """
        args = self.args
        lr, hr = (to_network(images, self.device, args.rgb_range) for images in (lr, hr))
        self.optimizer.zero_grad(set_to_none=True)
        if self.adversary:
            self.critic_optimizer.zero_grad(set_to_none=True)
        values = torch.zeros(len(self.sums), dtype=torch.float64, device=self.device)
        n_parts = min(args.split_batch, len(lr))
        parts = list(zip(lr.tensor_split(n_parts), hr.tensor_split(n_parts), strict=True))
        for number, (lr_part, hr_part) in enumerate(parts, start=1):
            # Only the last part's backward pass exchanges gradients, which by then are the whole batch's.
            apart = number < len(parts) and distributed.world_size() > 1
            with self.parallel.no_sync() if apart else nullcontext():
                sr = self.parallel(lr_part)
                # A loss is a mean over its part: weighted by the part's share, gradients add up to the batch's.
                share = len(lr_part) / len(lr)
                part = self.loss(sr.float(), hr_part) * share
                self.scaler.scale(part.sum()).backward()
            values[: len(part)] += part.detach()
            if self.adversary:  # its discriminator learns from the same images, in single precision
                critic = self.adversary.critic_loss(sr.float(), hr_part) * share
                critic.backward()
                values[-1] += critic.detach()

        overdue = 0 < args.save_every < (time.monotonic() - self.saved_at) / 60
        events = [values.new_full((1,), float(event)) for event in (errors.pending() is not None, overdue)]
        events, values = distributed.mean(torch.cat((*events, values))).split([2, len(values)])
        self.scaler.unscale_(self.optimizer)
        gradients = [[p.grad for p in self.network.parameters() if p.grad is not None]]
        if self.adversary:
            distributed.average_gradients(self.adversary.discriminator)
            gradients.append([p.grad for p in self.adversary.discriminator.parameters()])
        norms = torch.stack([get_total_norm(each) for each in gradients]).double()
        good = values.isfinite().all() & norms.isfinite().all() & (values[: len(args.loss)].sum() < self._limit())

        if args.gclip > 0:
            clip_grad_value_(self.network.parameters(), args.gclip)
        step_if(good, self.optimizer)
        if self.adversary:
            step_if(good, self.critic_optimizer)
        self.scaler.update()  # half precision: a smaller scale for the next batch if a gradient overflowed
        if self.average is not None:
            self.averaged += good
            update_average(self.average, self.network, args.ema, good, self.averaged)
        return torch.cat((good[None].double(), events, values, norms))

    def _limit(self) -> float:
        """The loss from which on a batch is skipped. A Wasserstein distance may be below zero, which says nothing about
        what is too large."""
        return self.args.skip_threshold * self.last_loss if self.last_loss > 0 else math.inf

    def _send(self, values: torch.Tensor, names: list[str]) -> None:
        """Starts the values of the last batch on their way to the host."""
        arrived = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)
        if arrived is not None:
            arrived.record()
        self.unread.append(Told(self.batch, names, values, arrived))

    def _read(self, leave: int = 0, alone: bool = False) -> bool:
        """Books what the device said of the batches, all but the last `leave` of them.

        Args:
            alone: the other processes may be elsewhere, and cannot be asked for the images of a skipped batch.

        Returns:
            Whether it is time to save the state.

        Raises:
            Diverged: after too many batches that were skipped.
            errors.Interrupted: if a signal has reached any process.
        """
        stop = overdue = False
        while len(self.unread) > leave:
            told = self.unread.popleft()
            good, signalled, late, *rest = told.read()
            values, norms = rest[: len(self.sums)], rest[len(self.sums) :]
            stop, overdue = stop or signalled > 0, overdue or late > 0
            if good:
                self.sums = [total + value for total, value in zip(self.sums, values, strict=True)]
                self.norms += norms[0]
                self.counted += 1
                self.recent += (sum(values[: len(self.args.loss)]) - self.recent) / RECENT
                self.in_a_row, self.suspect = 0, self._exploded()
                continue
            self.in_a_row += 1
            self.suspect = self.suspect or not self._overflowed(values, norms)
            reason = self._why_skipped(values, norms)
            self._book_skipped(told.batch, reason, told.names, alone)
            if self.in_a_row == MAX_SKIPPED:
                self.unread.clear()
                why = f"{self.in_a_row} batches in a row were skipped, the last because {reason}"
                raise self._diverged(why, "raise --skip_threshold")
        if stop:
            self._read(alone=alone)
            raise errors.Interrupted(errors.pending() or errors.SIGTERM)
        return overdue

    def _overflowed(self, values: list[float], norms: list[float]) -> bool:
        """Whether only the gradient of a half-precision batch is not finite: its scale was too large, as it is at the
        start and whenever it has grown, and the next one's is smaller. That says nothing against the weights."""
        overflow = self.scaler.is_enabled() and not math.isfinite(norms[0])
        loss = sum(values[: len(self.args.loss)])
        rest_is_good = all(map(math.isfinite, (*values, *norms[1:]))) and loss < self._limit()
        return overflow and rest_is_good and self.in_a_row <= SMALLER_SCALES

    def _why_skipped(self, values: list[float], norms: list[float]) -> str:
        loss = sum(values[: len(self.args.loss)])
        if not math.isfinite(loss):
            return f"its loss is {loss}"
        if not math.isfinite(sum(values)):
            return "its discriminator's loss is not finite"
        if not math.isfinite(norms[0]):
            return f"its gradient's norm is {norms[0]}"
        if not math.isfinite(sum(norms)):
            return f"its discriminator's gradient's norm is {norms[1]}"
        return f"its loss {loss:.4g} is above {self._limit():.4g}, --skip_threshold times that of the last epoch"

    def _book_skipped(self, batch: int, reason: str, names: list[str], alone: bool) -> None:
        """Keeps which images were in a batch that was skipped."""
        images = " ".join(name for part in ([names] if alone else distributed.gather(names)) for name in part)
        log.info("batch %d skipped: %s (%s)", batch, reason, images)
        self.skipped.append({"epoch": self.epoch + 1, "batch": batch, "reason": reason, "images": images})
        if distributed.is_main():
            self.experiment.save_skipped(self.skipped)

    def _mean_losses(self) -> dict[str, float]:
        """Means over the epoch so far: "loss", each weighted term by name if it has several, and a discriminator's."""
        means = [total / self.counted if self.counted else math.nan for total in self.sums]
        names = self.loss.names
        several = dict(zip(names, means, strict=False)) if len(names) > 1 else {}
        critic = {"discriminator": means[-1]} if self.adversary else {}
        return {"loss": sum(means[: len(names)])} | several | critic

    @property
    def shown(self) -> nn.Module:
        """The network that is validated and released: the averaged one, if there is one."""
        return self.network if self.average is None else self.average

    def _validate(self, board: Board) -> list[Scores]:
        folded = fold(self.shown)  # what a test of the saved weights will run, so that scores agree to the bit
        return [self.evaluator.evaluate(folded, test_set, on_image=board.keep) for test_set in self.test_sets]

    def _finish_epoch(self, scores: list[Scores], board: Board) -> None:
        """Books a complete epoch and writes everything.

        First the files, then the new state: if a file cannot be written the state still says that the epoch is to be
        finished, and a resumed run does it again.
        """
        epoch, losses = self.epoch + 1, self._mean_losses()
        rate = self.args.lr * self.scheduler.lr_lambdas[0](self.done - 1)
        row = {"epoch": epoch, "lr": rate} | losses
        row["gradient norm"] = self.norms / self.counted if self.counted else math.nan
        for test_set, score in zip(self.test_sets, scores, strict=True):
            if test_set.scored:
                row |= {f"{test_set.name} PSNR": score.psnr, f"{test_set.name} SSIM": score.ssim}
                log.info("[epoch %d] %s: PSNR %.3f dB, SSIM %.4f", epoch, test_set.label, score.psnr, score.ssim)
        row["skipped"] = max(0, self.epoch_batches - self.counted)
        history = [*self.history, row | {"seconds": round(self.seconds, 1)}]

        psnr = scores[self.best_set].psnr if self.best_set is not None else math.nan
        # Suspect weights are not saved, so that they cannot be the best ones that are there.
        is_best = not self.suspect and psnr > self.best.get("psnr", -math.inf)
        best = {"psnr": psnr, "epoch": epoch, "on": self._best_on()} if is_best else self.best
        if best:
            name = self.test_sets[self.best_set].name
            log.info("[epoch %d] best so far: PSNR %.3f dB on %s, epoch %d", epoch, best["psnr"], name, best["epoch"])

        if distributed.is_main() and self.suspect:
            log.info("[epoch %d] not saved: its last %d batches were skipped", epoch, self.in_a_row)
        elif distributed.is_main():
            weights = "raw" if self.average is None else "averaged"
            checkpoint = pack(self.shown, self.args.model, epoch=epoch, psnr=psnr, weights=weights)
            self.experiment.save_model(
                checkpoint, ["latest"] + ["best"] * is_best + [str(epoch)] * self.args.save_models
            )
            self.experiment.save_history(history)
            speed = self.epoch_batches * self.args.batch_size / max(self.seconds, 1e-9)
            board.write(epoch, row | {"patches per second": speed})

        self.epoch, self.best, self.history = epoch, best, history
        if self.counted:
            self.last_loss = losses["loss"]
        self.batch, self.sums, self.norms, self.counted, self.seconds = 0, [0.0] * len(self.sums), 0.0, 0, 0.0
        self._save_state()
        if self.args.save_models and distributed.is_main() and not self.suspect:
            self.experiment.keep_state(epoch)

    def _save_state(self) -> bool:
        """Saves the state, unless the weights are suspect; returns whether it did."""
        saved = distributed.is_main() and not self.suspect
        if saved:
            self.experiment.save_state(self._state())
        self.saved_at = time.monotonic()
        return saved

    def _state(self) -> dict:
        """Everything a run needs to go on as if it had not stopped: a checkpoint of the raw weights, and more."""
        version, keys, position, has_gauss, gauss = np.random.get_state()
        return pack(self.network, self.args.model, epoch=self.epoch, weights="raw") | {
            "options": self.args.values(),
            "given": sorted(self.args.given),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else {},
            "averaged": self.averaged.item(),
            "discriminator": self.adversary.discriminator.state_dict() if self.adversary else {},
            "discriminator's optimizer": self.critic_optimizer.state_dict() if self.adversary else {},
            "progress": {name: getattr(self, name) for name in self._PROGRESS},
            "random": {
                "python": random.getstate(),
                "numpy": (version, keys.tolist(), position, has_gauss, gauss),
                "torch": torch.get_rng_state(),
                "cuda": [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [],
            },
        }

    _PROGRESS = ("epoch", "batch", "sums", "norms", "counted", "seconds", "last_loss", "best", "history", "skipped")
    _PROGRESS += ("in_a_row", "n_images")

    def _best_on(self) -> str:
        """What the best epoch is chosen by: scores of other sets or ways do not compare."""
        return f"{self.test_sets[self.best_set].label}, {self.evaluator.protocol}" if self.best_set is not None else ""

    def _check(self, state: dict) -> None:
        """Raises UserError if the state does not fit this run in every name, type and shape. Nothing is changed."""
        with fitting(f"--load {self.experiment.name}: its state"):
            same_tensors("model", state["model"], self.network.state_dict())
            same_optimizer("optimizer", state["optimizer"], self.optimizer)
            if self.average is not None:
                same_tensors("average", _plain_names(state["average"]), self.average.state_dict())
            expect("averaged", state.get("averaged", math.inf), float, least=0)
            if self.adversary:
                same_tensors("discriminator", state["discriminator"], self.adversary.discriminator.state_dict())
                same_optimizer("discriminator's optimizer", state["discriminator's optimizer"], self.critic_optimizer)
            for name, value in expect("scaler", state["scaler"], dict).items():
                expect(name, value, float, least=0)
            same_progress(state["progress"], n_sums=len(self.sums))
            same_random(state["random"])

    def _restore(self, state: dict) -> None:
        self._check(state)
        self.network.load_state_dict(state["model"])
        # The options say rates and factors, and may have been overridden.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        if state["scaler"]:  # empty after a run of another precision
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(_plain_names(state["average"]))
            # States of before did not count, and had the initial weights in their average: it goes on as it was.
            self.averaged.fill_(state.get("averaged", math.inf))
        if self.adversary:
            self.adversary.discriminator.load_state_dict(state["discriminator"])
            groups = self.critic_optimizer.state_dict()["param_groups"]
            moments = state["discriminator's optimizer"]["state"]
            self.critic_optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for name in self._PROGRESS:
            setattr(self, name, state["progress"][name])
        if self.best and self.best.get("on", self._best_on()) != self._best_on():
            log.info("the best epoch was chosen on %s: it is chosen anew, on %s", self.best["on"], self._best_on())
            self.best = {}
        if {"data_train", "data_range"} & set(self.args.override):
            self.n_images = len(self.train_set)
        if self.n_images != len(self.train_set):
            raise UserError(
                f"--load {self.experiment.name}: the run was trained on {self.n_images} images, now there are "
                f"{len(self.train_set)}: put the same images there, or start another run with --pre_train"
            )
        version, words, gauss = state["random"]["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(state["random"]["numpy"])
        torch.set_rng_state(state["random"]["torch"])
        # One GPU's: all processes draw alike, as they were seeded alike.
        if state["random"]["cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"][0], self.device)
        if self.args.resume:
            self.experiment.restore_best(self.best.get("epoch"))


def _plain_names(average: dict) -> dict:
    """Older states have the names of torch's AveragedModel."""
    if not isinstance(average, dict):
        return average
    return {str(name).removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}


def compiled(network: nn.Module, args, device: torch.device) -> nn.Module:
    """The network compiled, tried on a batch like those to come; the network itself, with a line in the log, where
    torch cannot."""
    side = args.patch_size // args.scale
    n = math.ceil(args.batch_size / distributed.world_size() / args.split_batch)
    batch = to_network(torch.zeros(n, args.n_colors, side, side, dtype=torch.uint8), device, args.rgb_range)
    try:
        fast = torch.compile(network)
        tried = InPrecision(fast, device, args.precision)
        tried(batch).sum().backward()
    except Exception as error:  # whatever the compiler's many layers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("--compile: torch cannot compile here (%s): training goes on uncompiled", reason)
        return network
    finally:
        network.zero_grad(set_to_none=True)
    return fast
