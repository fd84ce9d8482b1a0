"""How weights move: the optimizer, the learning rate of every batch, and the moving average of the weights."""

import copy
import math
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

from model.compat import fused_step_if, move_towards
from train.muon import Muon


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its hyper-parameters; those that it does not have are ignored.

    Args:
        name: ADAM, ADAMW, MUON, SGD or RMSprop.
        lr: learning rate.
        betas, epsilon: of ADAM, ADAMW and MUON; `epsilon` of RMSprop too.
        momentum: of SGD and RMSprop.
    """

    name: str = "ADAM"
    lr: float = 1e-4
    weight_decay: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer over those of the network's parameters that are trained.

    Fused where torch has it: the transforms are ten times the deployed weights, and one pass over them takes a third of
    the time of one pass for each operation.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "RMSprop":
        return RMSprop(trained, **common, momentum=config.momentum, eps=config.epsilon)
    if config.name == "SGD":
        return SGD(trained, **common, momentum=config.momentum, fused=True)
    if config.name == "MUON":
        return Muon(network, **common, betas=config.betas, eps=config.epsilon)
    adam = AdamW if config.name == "ADAMW" else Adam
    return adam(trained, **common, betas=config.betas, eps=config.epsilon, fused=True)


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every batch of a run.

    Args:
        lr: the base rate.
        kind: "step" multiplies by `gamma` after each of the epochs in `decay`; "cosine" falls from 1 to 0 over
            `epochs` epochs, along half a cosine.
        warmup: batches over which the rate rises linearly from 1/`warmup` of its value.
        epoch_batches: batches in an epoch.
    """

    lr: float
    epoch_batches: int
    kind: str = "step"
    warmup: int = 0
    decay: tuple[int, ...] = ()
    gamma: float = 0.5
    epochs: int = 0

    def factor(self, batch: int) -> float:
        """What the base rate is multiplied by for batch number `batch`, counted from 0 over the whole run.

        A function of the batch's number alone, so it cannot be applied twice when a run goes on.
        """
        if self.kind == "cosine":
            factor = (1 + math.cos(math.pi * min(1, batch / (self.epochs * self.epoch_batches)))) / 2
        else:
            factor = self.gamma ** sum(batch >= epoch * self.epoch_batches for epoch in self.decay)
        return factor * min(1, (batch + 1) / self.warmup) if self.warmup else factor

    def rate(self, batch: int) -> float:
        """The learning rate of that batch."""
        return self.lr * self.factor(batch)


def make_scheduler(optimizer: Optimizer, schedule: Schedule, *, done: int = 0) -> LambdaLR:
    """Sets the learning rate of batch number `done`, and that of the next batch with each step."""
    # torch warns where no optimizer step came before: a batch that is skipped counts here all the same.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = schedule.lr
    return LambdaLR(optimizer, schedule.factor, last_epoch=done - 1)


def step_if(good: torch.Tensor, optimizer: Optimizer) -> None:
    """`optimizer.step()`, or nothing at all where `good`, a boolean scalar on the gradients' device, is false.

    Adam's fused kernel looks at it on the device, as it does for a gradient scaler's overflow, so the host need not
    wait; other optimizers wait. (SGD's kernel can look too, but leaves its momentum unset if the first
    step is skipped.)
    """
    if isinstance(optimizer, Adam):
        fused_step_if(optimizer, good)
    elif good:
        optimizer.step()


class MovingAverage:
    """Exponential moving average (EMA) of all weights of a network.

    The average is that of the weights after each step so far, the k-th last of them weighted with decay^k. The initial
    weights have no part in it, of which the plain recursion would keep decay^steps, 5 % after 3,000 steps at 0.999:
    Adam's moments are corrected likewise (arXiv 1412.6980, section 3). Basis kernels and transforms are averaged each:
    a network is folded after averaging, never before.

    Args:
        decay: in 0..1, exclusive.

    Attributes:
        network: a copy that holds the average. Its parameters keep `requires_grad`, which tells a checkpoint whether
            the basis was trained.
        steps: how many steps are in it, a float64 scalar on the network's device; infinite for an average that is long
            past its beginning.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network, self.decay = copy.deepcopy(network), decay
        self.steps = torch.zeros((), dtype=torch.float64, device=next(network.parameters()).device)

    @torch.no_grad()
    def update(self, network: nn.Module, good: torch.Tensor) -> None:
        """Moves the average by one step, where `good`, a boolean scalar on the network's device, is true."""
        self.steps += good
        averaged, current = list(self.network.parameters()), list(network.parameters())
        share = (1 - self.decay) / (1 - torch.pow(self.decay, self.steps.clamp(min=1)))
        move_towards(averaged, current, (share * good).float())
