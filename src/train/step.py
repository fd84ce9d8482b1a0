"""One optimizer step on one batch: forward, loss, backward, optimizer, moving average. Nothing is counted here."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import clip_grad_value_, get_total_norm
from torch.optim import Optimizer

from data.patches import Batch
from loss.weighted import Loss
from model.precision import to_network
from runtime import distributed
from train.optim import MovingAverage, step_if


class StepResult(NamedTuple):
    """The outcome of a step, on the device and the same in all processes; read it only where waiting is fine.

    Attributes:
        good: boolean scalar: whether the weights moved. They do not where a loss or gradient is not finite, or the loss
            is above the limit.
        losses: float64, the batch's mean of each weighted term of the loss, then of the discriminator's loss.
        norms: float64, the norm of the network's gradient, then of the discriminator's.
    """

    good: torch.Tensor
    losses: torch.Tensor
    norms: torch.Tensor


class TrainStep:
    """The parts of a step, and the step itself: `step(batch, loss_limit=...)`.

    Args:
        network: the network that is trained and saved, in training form.
        parallel: the same network as it is run: in its precision, compiled, over several devices.
        critic_optimizer: of an adversarial loss's discriminator.
        scaler: of the gradients in half precision, which lower its scale when they overflow.
        n_parts: parts that a batch is run in, whose gradients are accumulated (--split_batch).
        clip: each of the network's gradients is clipped to -clip..clip; 0 does not.

    Attributes:
        moving: whether the weights are being moved: an error then leaves a step that is half done.
    """

    def __init__(
        self,
        network: nn.Module,
        parallel: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        critic_optimizer: Optimizer | None = None,
        *,
        device: torch.device,
        scaler: torch.amp.GradScaler,
        average: MovingAverage | None = None,
        rgb_range: float = 255,
        n_parts: int = 1,
        clip: float = 0,
    ):
        self.network, self.parallel, self.loss, self.adversary = network, parallel, loss, loss.adversary
        self.optimizer, self.critic_optimizer, self.scaler, self.average = optimizer, critic_optimizer, scaler, average
        self.optimizers = [each for each in (optimizer, critic_optimizer) if each is not None]
        self.device, self.rgb_range, self.n_parts, self.clip = device, rgb_range, n_parts, clip
        self.n_terms = len(loss.names)
        self.n_losses = self.n_terms + (self.adversary is not None)
        self.moving = False

    @property
    def released(self) -> nn.Module:
        """The network that is validated and released: the averaged one, if there is one."""
        return self.network if self.average is None else self.average.network

    def __call__(self, batch: Batch, *, loss_limit: float) -> StepResult:
        """One step on a batch, whose loss is to be below the limit."""
        uint8 = batch.lr, batch.hr, *([] if batch.taught is None else [batch.taught])
        lr, *targets = (to_network(images, self.device, self.rgb_range) for images in uint8)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(self.n_losses, dtype=torch.float64, device=self.device)
        n_parts = min(self.n_parts, len(lr))
        parts = zip(*(images.tensor_split(n_parts) for images in (lr, *targets)), strict=True)
        for number, (lr_part, *target_parts) in enumerate(parts):
            # A loss is a mean over its part: weighted by the part's share, gradients add up to the batch's.
            share = len(lr_part) / len(lr)
            with self._gradients_exchanged(number == n_parts - 1):
                sr = self.parallel(lr_part)
                terms = self.loss(sr.float(), *target_parts) * share
                self.scaler.scale(terms.sum()).backward()
            losses[: self.n_terms] += terms.detach()
            if self.adversary:  # its discriminator learns from the same images, in single precision
                critic = self.adversary.critic_loss(sr.float(), target_parts[0]) * share
                critic.backward()
                losses[-1] += critic.detach()

        losses = distributed.mean(losses)
        norms = self._gradient_norms()
        good = losses.isfinite().all() & norms.isfinite().all() & (losses[: self.n_terms].sum() < loss_limit)
        if self.clip > 0:
            clip_grad_value_(self.network.parameters(), self.clip)
        self.moving = True
        for optimizer in self.optimizers:
            step_if(good, optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.network, good)
        self.moving = False
        return StepResult(good, losses, norms)

    def _gradients_exchanged(self, last: bool):
        """Processes exchange gradients in the last part's backward pass alone: by then they are the whole batch's."""
        return nullcontext() if last or distributed.world_size() == 1 else self.parallel.no_sync()

    def _gradient_norms(self) -> torch.Tensor:
        """The norm of each module's whole gradient, unscaled and averaged over the processes."""
        self.scaler.unscale_(self.optimizer)
        modules = [self.network]
        if self.adversary:
            distributed.average_gradients(self.adversary.discriminator)
            modules.append(self.adversary.discriminator)
        gradients = [[p.grad for p in module.parameters() if p.grad is not None] for module in modules]
        return torch.stack([get_total_norm(each) for each in gradients]).double()
