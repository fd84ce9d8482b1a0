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
from errors import UserError
from evaluate import autocast, evaluate, to_network
from experiment import Experiment
from loss import Loss
from model.checkpoint import pack
from utility import held

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
        self.parallel = nn.DataParallel(network, list(range(args.n_GPUs))) if args.n_GPUs > 1 else network
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
                scores = self._validate()
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
        rate = self.optimizer.param_groups[0]["lr"]
        log.info("[epoch %d] learning rate %.2e", self.epoch + 1, rate)
        begun, done_before, waited, skipped = time.perf_counter(), self.batch, 0.0, 0
        with tqdm(
            total=self.batches_per_epoch, initial=self.batch, desc=f"epoch {self.epoch + 1}", unit="batch", disable=None,
            leave=False,
        ) as bar:  # fmt: skip
            while self.batch < self.batches_per_epoch:
                asked = time.perf_counter()
                lr, hr, names = next(batches)
                waited += time.perf_counter() - asked
                with held():
                    stepped = self._step(lr, hr)
                    self.batch += 1
                skipped = 0 if stepped else skipped + 1
                if not stepped:
                    log.info("batch %d skipped: its loss is too high or not finite (%s)", self.batch, ", ".join(names))
                if skipped == MAX_SKIPPED:
                    raise UserError(
                        f"{skipped} batches in a row were skipped, the training has diverged: lower --lr, set --gclip, or "
                        "raise --skip_threshold, and start from the last good weights with --pre_train"
                    )

                elapsed = time.perf_counter() - begun
                speed = (self.batch - done_before) * self.args.batch_size / elapsed
                losses = " ".join(f"{name} {value:.4f}" for name, value in self._mean_losses().items())
                bar.set_postfix_str(
                    f"{losses}, {speed:.0f} patches/s, {waited / elapsed:.0%} waiting for data", refresh=False
                )
                bar.update()
                if self.batch % self.args.print_every == 0:
                    log.info(
                        "[%d/%d] %s, %.1f patches/s, %.0f%% waiting for data",
                        self.batch,
                        self.batches_per_epoch,
                        losses,
                        speed,
                        100 * waited / elapsed,
                    )
        self.seconds += time.perf_counter() - begun

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
        """Mean of each weighted loss term over the epoch so far, by name, and "loss", their sum, if there are several."""
        means = [total / self.counted if self.counted else math.nan for total in self.sums]
        named = dict(zip(self.loss.names, means, strict=True))
        return named if len(means) == 1 else named | {"loss": sum(means)}

    def _validate(self) -> list:
        scores = []
        for test_set in self.test_sets:
            score = evaluate(
                self.network,
                test_set,
                device=self.device,
                rgb_range=self.args.rgb_range,
                precision=self.args.precision,
                chop=self.args.chop,
                self_ensemble=self.args.self_ensemble,
            )
            scores.append(score)
        return scores

    def _finish_epoch(self, scores: list) -> None:
        """Books a complete epoch and writes everything, the state last: it is what a resumed run believes."""
        self.epoch += 1
        losses = self._mean_losses()
        row = {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": sum(self.sums) / max(self.counted, 1),
        }
        row |= {name: value for name, value in losses.items() if name != "loss" and len(losses) > 1}
        for test_set, score in zip(self.test_sets, scores, strict=True):
            if test_set.scored:
                row |= {f"{test_set.name} PSNR": score.psnr, f"{test_set.name} SSIM": score.ssim}
        self.history.append(row | {"seconds": round(self.seconds, 1)})

        psnr = scores[self.best_set].psnr if self.best_set is not None else math.nan
        is_best = psnr > self.best.get("psnr", -math.inf)
        if is_best:
            self.best = {"psnr": psnr, "epoch": self.epoch}
        for test_set, score in zip(self.test_sets, scores, strict=True):
            if test_set.scored:
                log.info(
                    "[epoch %d] %s x%d: PSNR %.3f dB, SSIM %.4f",
                    self.epoch,
                    test_set.name,
                    self.args.scale,
                    score.psnr,
                    score.ssim,
                )
        if self.best:
            log.info(
                "[epoch %d] best so far: PSNR %.3f dB on %s, epoch %d",
                self.epoch,
                self.best["psnr"],
                self.test_sets[self.best_set].name,
                self.best["epoch"],
            )

        if self.counted:
            self.last_loss = row["loss"]
        self.scheduler.step()
        self.batch, self.sums, self.counted, self.seconds = 0, [0.0] * len(self.args.loss), 0, 0.0

        checkpoint = pack(self.network, self.args.model, epoch=self.epoch, psnr=psnr)
        self.experiment.save_model(checkpoint, "latest")
        if is_best:
            self.experiment.save_model(checkpoint, "best")
        if self.args.save_models:
            self.experiment.save_model(checkpoint, str(self.epoch))
        self.experiment.save_history(self.history)
        self.experiment.save_state(self._state())
        if self.args.save_models:
            self.experiment.keep_state(self.epoch)

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
