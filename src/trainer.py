"""Training: the optimizer, one step, the loop over epochs, and the state from which a run goes on exactly.

A run is a sequence of batches whose content depends on their number and the seed alone (`data.srdata.TrainSet`), so
the state is the weights, what the optimizer remembers, and how far the run has come.
"""

import logging
import math
import random
import time

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import MultiStepLR
from tqdm import tqdm

from data import train_batches
from data.srdata import TestSet, TrainSet
from errors import UserError, held
from evaluate import Scores, autocast, evaluate_as_asked, to_network
from experiment import Experiment
from loss import Loss
from model.checkpoint import pack
from model.recalibration import fold

log = logging.getLogger("krgn")

MAX_SKIPPED = 100  # batches skipped one after the other that end a run: it will not recover


def make_optimizer(args, network: nn.Module) -> Optimizer:
    """The optimizer that the options describe, over the parameters that are trained."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    common = {"lr": args.lr, "weight_decay": args.weight_decay}
    if args.optimizer == "SGD":
        return SGD(parameters, **common, momentum=args.momentum)
    if args.optimizer == "RMSprop":
        return RMSprop(parameters, **common, momentum=args.momentum, eps=args.epsilon)
    adam = AdamW if args.optimizer == "ADAMW" else Adam
    return adam(parameters, **common, betas=tuple(args.betas), eps=args.epsilon)


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
        # DataParallel holds the same parameters: whatever is saved comes from the network itself.
        several = device.type == "cuda" and args.n_GPUs > 1
        self.parallel = nn.DataParallel(network, list(range(args.n_GPUs))) if several else network
        self.loss = Loss(args.loss).to(device)
        self.optimizer = make_optimizer(args, network)
        self.scheduler = MultiStepLR(self.optimizer, milestones=list(args.decay), gamma=args.gamma)
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "half")
        self.batches_per_epoch = args.test_every or max(1, len(train_set) // args.batch_size)
        self.best_set = next((index for index, test_set in enumerate(test_sets) if test_set.scored), None)

        self.epoch = 0  # epochs that are complete, validation included
        self.batch = 0  # batches done in the epoch after that
        self.sums = [0.0] * len(args.loss)  # of each loss term over the batches of this epoch
        self.counted = 0  # batches in `sums`: those that were not skipped
        self.seconds = 0.0  # training time of this epoch
        self.last_loss = math.inf  # mean loss of the epoch before, for --skip_threshold
        self.best: dict = {}
        self.history: list[dict] = []
        if state is not None:
            self._restore(state)
        if args.resume:
            experiment.restore_best(self.best.get("epoch"))

    def fit(self) -> None:
        """Trains until --epochs are complete. On a signal the state is saved, within an epoch too."""
        epochs = self.args.epochs or math.inf
        if self.epoch >= epochs:
            log.info("nothing to do: %d of %d epochs are done (raise --epochs to go on)", self.epoch, epochs)
            return
        batches = train_batches(
            self.train_set,
            batch_size=self.args.batch_size,
            n_threads=self.args.n_threads,
            first=self.epoch * self.batches_per_epoch + self.batch,
            pin_memory=self.device.type == "cuda",
        )
        try:
            while self.epoch < epochs:
                self._train_epoch(batches)
                folded = fold(
                    self.network
                )  # what a test of the saved weights will run, so that scores agree to the bit
                scores = [
                    evaluate_as_asked(self.args, folded, test_set, self.experiment, self.device)
                    for test_set in self.test_sets
                ]
                with held():
                    self._finish_epoch(scores)
        except BaseException:
            # Also for a bug or a full disk: the batches done so far are worth keeping, if they can be.
            with held():
                self.experiment.save_state(self._state())
            log.info(
                "state saved after %d epochs and %d batches: go on with --load %s",
                self.epoch,
                self.batch,
                self.experiment.folder.name,
            )
            raise
        finally:
            batches.close()

    def _train_epoch(self, batches) -> None:
        self.network.train()
        log.info("[epoch %d] learning rate %.2e", self.epoch + 1, self.optimizer.param_groups[0]["lr"])
        begun, done_before, waited, skipped = time.perf_counter(), self.batch, 0.0, 0
        title, total = f"epoch {self.epoch + 1}", self.batches_per_epoch
        with tqdm(desc=title, total=total, initial=self.batch, unit="batch", disable=None, leave=False) as bar:
            while self.batch < total:
                asked = time.perf_counter()
                lr, hr, names = next(batches)
                waited += time.perf_counter() - asked
                with held():
                    stepped = self._step(lr, hr)
                    self.batch += 1
                    self.seconds += time.perf_counter() - asked

                skipped = 0 if stepped else skipped + 1
                if skipped:
                    log.info("batch %d skipped: its loss is too high or not finite (%s)", self.batch, ", ".join(names))
                if skipped == MAX_SKIPPED:
                    raise UserError(
                        f"{skipped} batches in a row were skipped, the training has diverged: lower --lr, set --gclip "
                        "or raise --skip_threshold, and start from the last good weights with --pre_train"
                    )

                elapsed = time.perf_counter() - begun
                losses = " ".join(f"{name} {value:.4f}" for name, value in self._mean_losses().items())
                speed = (self.batch - done_before) * self.args.batch_size / elapsed
                said = f"{losses}, {speed:.1f} patches/s, {waited / elapsed:.0%} waiting for data"
                bar.set_postfix_str(said, refresh=False)
                bar.update()
                if self.batch % self.args.print_every == 0:
                    log.info("[%d/%d] %s", self.batch, total, said)

    def _step(self, lr: torch.Tensor, hr: torch.Tensor) -> bool:
        """One optimizer step on a batch, in --split_batch parts; False if the batch was skipped."""
        args = self.args
        lr, hr = (to_network(images, self.device, args.rgb_range) for images in (lr, hr))
        self.optimizer.zero_grad(set_to_none=True)
        terms = torch.zeros(len(args.loss), device=self.device)
        for lr_part, hr_part in zip(lr.chunk(args.split_batch), hr.chunk(args.split_batch), strict=True):
            with autocast(self.device, args.precision):
                sr = self.parallel(lr_part)
            # Every loss is a mean over its part: weighted by the part's share, the gradients add up to the batch's.
            share = len(lr_part) / len(lr)
            part = self.loss(sr.float(), hr_part) * share
            self.scaler.scale(part.sum()).backward()
            terms += part.detach()

        values = terms.tolist()
        if not sum(values) < args.skip_threshold * self.last_loss:  # NaN is skipped too
            return False
        self.scaler.unscale_(self.optimizer)
        if args.gclip > 0:
            nn.utils.clip_grad_value_(self.network.parameters(), args.gclip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.sums = [total + value for total, value in zip(self.sums, values, strict=True)]
        self.counted += 1
        return True

    def _mean_losses(self) -> dict[str, float]:
        """Mean of each weighted term over the epoch so far, by name, and "loss", their sum, if there are several."""
        means = [total / self.counted if self.counted else math.nan for total in self.sums]
        named = dict(zip(self.loss.names, means, strict=True))
        return named if len(means) == 1 else named | {"loss": sum(means)}

    def _finish_epoch(self, scores: list[Scores]) -> None:
        """Books a complete epoch and writes everything.

        First the files, then the new state: if a file cannot be written the state still says that the epoch is to be
        finished, and a resumed run does it again.
        """
        epoch, losses = self.epoch + 1, self._mean_losses()
        mean_loss = sum(self.sums) / self.counted if self.counted else math.nan
        row = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"], "loss": mean_loss}
        if len(self.loss.names) > 1:
            row |= {name: losses[name] for name in self.loss.names}
        for test_set, score in zip(self.test_sets, scores, strict=True):
            if test_set.scored:
                row |= {f"{test_set.name} PSNR": score.psnr, f"{test_set.name} SSIM": score.ssim}
                log.info("[epoch %d] %s: PSNR %.3f dB, SSIM %.4f", epoch, test_set.label, score.psnr, score.ssim)
        history = [*self.history, row | {"seconds": round(self.seconds, 1)}]

        psnr = scores[self.best_set].psnr if self.best_set is not None else math.nan
        is_best = psnr > self.best.get("psnr", -math.inf)
        best = {"psnr": psnr, "epoch": epoch} if is_best else self.best
        if best:
            name = self.test_sets[self.best_set].name
            log.info("[epoch %d] best so far: PSNR %.3f dB on %s, epoch %d", epoch, best["psnr"], name, best["epoch"])

        checkpoint = pack(self.network, self.args.model, epoch=epoch, psnr=psnr)
        names = ["latest"] + ["best"] * is_best + [str(epoch)] * self.args.save_models
        for name in names:
            self.experiment.save_model(checkpoint, name)
        self.experiment.save_history(history)

        self.scheduler.step()
        self.epoch, self.best, self.history = epoch, best, history
        if self.counted:
            self.last_loss = mean_loss
        self.batch, self.sums, self.counted, self.seconds = 0, [0.0] * len(self.sums), 0, 0.0
        self.experiment.save_state(self._state())
        if self.args.save_models:
            self.experiment.keep_state(epoch)

    def _state(self) -> dict:
        """Everything a run needs to go on as if it had not stopped: a checkpoint, and more."""
        version, keys, position, has_gauss, gauss = np.random.get_state()
        return pack(self.network, self.args.model, epoch=self.epoch) | {
            "options": self.args.values(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": {name: getattr(self, name) for name in self._PROGRESS},
            "random": {
                "python": random.getstate(),
                "numpy": (version, keys.tolist(), position, has_gauss, gauss),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
        }

    _PROGRESS = ("epoch", "batch", "sums", "counted", "seconds", "last_loss", "best", "history")

    def _restore(self, state: dict) -> None:
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        for name in self._PROGRESS:
            setattr(self, name, state["progress"][name])
        random.setstate(state["random"]["python"])
        np.random.set_state(state["random"]["numpy"])
        torch.set_rng_state(state["random"]["torch"])
        if self.device.type == "cuda" and state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(state["random"]["cuda"])
