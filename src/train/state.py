"""What a run goes on from: all that decides what the next batch does to the weights, and how far the run has come.

A run is a sequence of batches whose content depends on their number and the seed alone (`data`), so the state is the
weights, what the optimizer remembers, the generators, and `Progress`.
"""

import logging
import math
import random
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from model.checkpoint import pack
from runtime.errors import UserError
from train.best import BestBy
from train.statecheck import expect, fitting, same_optimizer, same_progress, same_random, same_tensors
from train.step import TrainStep

log = logging.getLogger("krgn")


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs that are complete, validation included.
        batch: batches done in the epoch after that.
        sums: of each loss over the good batches of this epoch, `counted` of them; `norms` of their gradients' norms.
        seconds: training time of this epoch.
        reference_loss: what losses are compared with (`Monitor`); infinite before there is one.
        best: the best epoch so far: its score (as "psnr", or the metric of --best_by), "epoch", and "on", what
            it was chosen by.
        history: a row an epoch; `skipped`: a row for each batch that never reached the weights.
        consecutive_skips: how many batches were skipped last, one after the other.
        n_images: training images, which must stay the same.
    """

    sums: list[float]
    n_images: int
    epoch: int = 0
    batch: int = 0
    norms: float = 0.0
    counted: int = 0
    seconds: float = 0.0
    reference_loss: float = math.inf
    best: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)
    consecutive_skips: int = 0

    def begin_epoch(self) -> None:
        """An epoch is complete: what is summed over one starts from zero."""
        self.epoch += 1
        self.batch, self.sums, self.norms, self.counted, self.seconds = 0, [0.0] * len(self.sums), 0.0, 0, 0.0


def all_done(epoch: int, epochs: float) -> str:
    """The line that says that a run has nothing left to do after `epoch` of `epochs` epochs, 0 of them for endless
    training; "" if it has."""
    finished = isinstance(epoch, int) and 0 < epochs <= epoch
    return f"nothing to do: {epoch} of {epochs} epochs are done (raise --epochs to go on)" if finished else ""


_NAMES_IN_FILE = {"consecutive_skips": "in_a_row", "reference_loss": "last_loss"}  # where a state file has another name


@dataclass
class RunState:
    """A run's state, which saves and restores itself.

    Args:
        model: the network's name on the command line.
        options: the values of all flags, and `given` the names of those that the user wrote out.
        best_by: what chooses the best epoch.
    """

    step: TrainStep
    progress: Progress
    model: str
    options: dict
    given: list[str]
    best_by: BestBy

    def to_dict(self) -> dict:
        """A state file's content, tensors and plain values only: a checkpoint of the raw weights, and more."""
        step, discriminator = self.step, self.step.adversary and self.step.adversary.discriminator
        return pack(step.network, self.model, epoch=self.progress.epoch, weights="raw") | {
            "options": self.options,
            "given": self.given,
            "optimizer": step.optimizer.state_dict(),
            "scaler": step.scaler.state_dict(),
            "average": step.average.network.state_dict() if step.average else {},
            "averaged": step.average.steps.item() if step.average else 0.0,
            "discriminator": discriminator.state_dict() if discriminator else {},
            "discriminator's optimizer": step.critic_optimizer.state_dict() if discriminator else {},
            "progress": {
                _NAMES_IN_FILE.get(each.name, each.name): getattr(self.progress, each.name) for each in fields(Progress)
            },
            "random": _random_states(step.device),
        }

    def restore(self, saved: dict, *, run: str, same_images: bool = True) -> None:
        """Takes over what a state file holds, all of it or, where it does not fit, nothing.

        Args:
            run: the run's name, for messages.
            same_images: whether the training set must be as large as it was.

        Raises:
            UserError: if the state does not fit this run in a name, type, shape or range, or the training set changed.
        """
        n_images = self.progress.n_images
        with fitting(f"--load {run}: its state"):
            self._check(saved)
        if same_images and saved["progress"]["n_images"] != n_images:
            raise UserError(
                f"--load {run}: the run was trained on {saved['progress']['n_images']} images, now there are "
                f"{n_images}: put the same images there, or start another run with --pre_train"
            )
        step = self.step
        step.network.load_state_dict(saved["model"])
        _restore_moments(step.optimizer, saved["optimizer"])
        if saved["scaler"]:  # empty after a run of another precision
            step.scaler.load_state_dict(saved["scaler"])
        if step.average:
            step.average.network.load_state_dict(_plain_names(saved["average"]))
            # Older state files did not count, and had the initial weights in their average: it goes on as it was.
            step.average.steps.fill_(saved.get("averaged", math.inf))
        if step.adversary:
            step.adversary.discriminator.load_state_dict(saved["discriminator"])
            _restore_moments(step.critic_optimizer, saved["discriminator's optimizer"])
        for each in fields(Progress):
            setattr(self.progress, each.name, saved["progress"][_NAMES_IN_FILE.get(each.name, each.name)])
        self.progress.n_images = n_images
        best, now = self.progress.best, self.best_by
        # Older state files do not say what the best epoch was chosen by, or have its PSNR only.
        if best and (best.get("on", now.on) != now.on or now.key not in best):
            on = f", on {now.on}" if now.on else ""
            log.info("the best epoch was chosen on %s: it is chosen anew%s", best.get("on", "PSNR"), on)
            self.progress.best = {}
        _restore_random_states(saved["random"], step.device)

    def _check(self, saved: dict) -> None:
        """Raises `statecheck.Misfit`, or what Python raises for a wrong type, if the state does not fit this run."""
        step = self.step
        same_tensors("model", saved["model"], step.network.state_dict())
        same_optimizer("optimizer", saved["optimizer"], step.optimizer)
        if step.average:
            same_tensors("average", _plain_names(saved["average"]), step.average.network.state_dict())
        expect("averaged", saved.get("averaged", math.inf), float, least=0)
        if step.adversary:
            same_tensors("discriminator", saved["discriminator"], step.adversary.discriminator.state_dict())
            same_optimizer("discriminator's optimizer", saved["discriminator's optimizer"], step.critic_optimizer)
        for name, value in expect("scaler", saved["scaler"], dict).items():
            expect(name, value, float, least=0)
        same_progress(saved["progress"], n_sums=step.n_losses)
        same_random(saved["random"])


def _restore_moments(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """What an optimizer remembers. Rates and factors are the options', which may have been overridden."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _random_states(device: torch.device) -> dict:
    """The states of all generators; one GPU's, as all processes draw alike: they were seeded alike."""
    version, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (version, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }


def _restore_random_states(saved: dict, device: torch.device) -> None:
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"][0], device)


def _plain_names(average: dict) -> dict:
    """Older state files have the names of torch's AveragedModel."""
    if not isinstance(average, dict):
        return average
    return {str(name).removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}
