"""How weights move: the optimizer, the learning rate of every batch, and the moving average of the weights."""

import copy
import math
import warnings
from functools import partial

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

from model.compat import fused_step_if, move_towards


def make_optimizer(args, network: nn.Module) -> Optimizer:
    """The optimizer that the options describe, over the parameters that are trained.

    Fused where torch has it: the transforms are ten times the deployed weights, and one pass over them takes a third of
    the time of one pass for each operation.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    common = {"lr": args.lr, "weight_decay": args.weight_decay}
    if args.optimizer == "RMSprop":
        return RMSprop(parameters, **common, momentum=args.momentum, eps=args.epsilon)
    if args.optimizer == "SGD":
        return SGD(parameters, **common, momentum=args.momentum, fused=True)
    adam = AdamW if args.optimizer == "ADAMW" else Adam
    return adam(parameters, **common, betas=tuple(args.betas), eps=args.epsilon, fused=True)


def make_critic_optimizer(args, adversary) -> Optimizer:
    """The optimizer of an adversarial loss's discriminator: the network's kind and rate, on its own weights.

    For WGAN_GP it is Adam without momentum, as its paper finds necessary (arXiv 1704.00028, algorithm 1).
    """
    if adversary.kind == "WGAN_GP":
        args = args.replace(optimizer="ADAM", betas=(0.0, 0.9))
    return make_optimizer(args, adversary.discriminator)


def rate_factor(
    batch: int, *, schedule: str, warmup: int, decay: tuple[int, ...], gamma: float, epochs: int, epoch_batches: int
) -> float:
    """What the learning rate is multiplied by for batch number `batch`, counted from 0 over the whole run.

    Being a function of the batch's number alone, it cannot be applied twice when a run goes on.

    Args:
        schedule: "step" multiplies by `gamma` after each of the epochs in `decay`; "cosine" falls from 1 to 0 over
            `epochs` epochs, along half a cosine.
        warmup: batches over which the rate rises linearly from 1/`warmup` of its value.
        epoch_batches: batches an epoch.
    """
    if schedule == "cosine":
        factor = (1 + math.cos(math.pi * min(1, batch / (epochs * epoch_batches)))) / 2
    else:
        factor = gamma ** sum(batch >= epoch * epoch_batches for epoch in decay)
    return factor * min(1, (batch + 1) / warmup) if warmup else factor


def make_scheduler(args, optimizer: Optimizer, *, epoch_batches: int, done: int = 0) -> LambdaLR:
    """Sets the rate for batch number `done`, and that of the next batch with each step."""
    # torch warns where no optimizer step came before: a batch that is skipped counts here all the same.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = args.lr
    factor = partial(
        rate_factor,
        schedule=args.schedule,
        warmup=args.warmup,
        decay=tuple(args.decay),
        gamma=args.gamma,
        epochs=args.epochs,
        epoch_batches=epoch_batches,
    )
    return LambdaLR(optimizer, factor, last_epoch=done - 1)


def step_if(good: torch.Tensor, optimizer: Optimizer) -> None:
    """`optimizer.step()`, or nothing at all where `good`, a boolean scalar on the gradients' device, is false.

    Adam's fused kernel looks at it on the device, as it does for a gradient scaler's overflow, so the host need not
    wait; other optimizers wait. (SGD's kernel too can look, but leaves its momentum unset if the first step is none.)
    """
    if isinstance(optimizer, Adam):
        fused_step_if(optimizer, good)
    elif good:
        optimizer.step()


def make_average(network: nn.Module, decay: float) -> nn.Module | None:
    """What will hold the moving average of all weights, or None if `decay` is 0.

    Basis kernels and transforms are averaged each: the network is folded after averaging, never before. Its parameters
    keep `requires_grad`, which says of a checkpoint whether the basis was trained.
    """
    return copy.deepcopy(network) if decay else None


@torch.no_grad()
def update_average(
    average: nn.Module, network: nn.Module, decay: float, good: torch.Tensor, steps: torch.Tensor
) -> None:
    """Moves the average by one step, where `good`, a boolean scalar on their device, is true.

    The average is that of the weights after each of the `steps` good steps so far, this one included, the k-th last of
    them weighted with decay^k. The initial weights have no part in it, of which the recursion alone would keep
    decay^steps, 5 % after 3,000 steps at 0.999: Adam's moments are corrected likewise (arXiv 1412.6980, section 3).

    Args:
        steps: float64 scalar on their device; infinite for an average that is long past its beginning.
    """
    averaged, current = list(average.parameters()), list(network.parameters())
    share = (1 - decay) / (1 - torch.pow(decay, steps.clamp(min=1)))
    move_towards(averaged, current, (share * good).float())
