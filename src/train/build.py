"""A run's parts from its options: the one place of train/ that reads `args`."""

import logging
import math
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data import TestSet, TrainSet, train_batches
from evaluation.evaluate import build_evaluator
from loss.perceptual import load_vgg19
from loss.weighted import Loss
from model.precision import InPrecision, to_network
from model.recalibration import fold
from model.weights import load_tensors
from runtime import distributed
from runtime.experiment import Experiment
from train import trackers
from train.best import choose_best_by
from train.monitor import Monitor
from train.optim import MovingAverage, OptimizerConfig, Schedule, make_optimizer
from train.requests import Requests
from train.state import Progress, RunState
from train.step import TrainStep
from train.trainer import Plan, Trainer

log = logging.getLogger("krgn")


def build_trainer(
    args,
    network: nn.Module,
    train_set: TrainSet,
    test_sets: list[TestSet],
    experiment: Experiment,
    device: torch.device,
    saved: dict | None = None,
) -> Trainer:
    """The trainer of a run.

    Args:
        args: the options, with the network's structure already read off a checkpoint, if there is one.
        network: on `device`, in training form.
        saved: the state to go on from (`Experiment.load_state`), or None to begin.

    Raises:
        UserError: if the state does not fit, --best_by names a set without ground truth, or weights that a loss needs
            cannot be read.
    """
    step, evaluator = build_step(args, network, device), build_evaluator(args, experiment, device)
    state = RunState(
        step,
        Progress([0.0] * step.n_losses, len(train_set)),
        model=args.model,
        options=args.values(),
        given=sorted(args.given),
        best_by=choose_best_by(args.best_by, test_sets, evaluator.protocol),
    )
    if saved is not None:
        other_images = {"data_train", "data_range"} & set(args.override)
        state.restore(saved, run=experiment.name, same_images=not other_images)
        if args.resume and distributed.is_main():
            experiment.restore_best(state.progress.best.get("epoch"))
    experiment.reached(state.progress.epoch, state.progress.batch)
    schedule = build_schedule(args, epoch_batches=args.test_every or max(1, len(train_set) // args.batch_size))

    def batches_from(first: int):
        part = (distributed.rank(), distributed.world_size())
        options = {"batch_size": args.batch_size, "n_threads": args.n_threads, "pin_memory": device.type == "cuda"}
        return train_batches(train_set, first=first, part=part, **options)

    def validate(keep) -> list:
        folded = fold(step.released)  # what a test of the saved weights will run, so that scores agree to the bit
        return [evaluator.evaluate(folded, each, on_image=keep) for each in test_sets]

    return Trainer(
        state,
        _plan(args, _summary(args, train_set, test_sets, schedule.epoch_batches)),
        schedule,
        _monitor(args, state, experiment),
        Requests(args.save_every, device),
        batches_from=batches_from,
        validate=validate,
        begin_tracker=partial(_begin_tracker, args, experiment),
        test_sets=test_sets,
        experiment=experiment,
    )


def _begin_tracker(args, experiment: Experiment, first: int) -> trackers.Tracker:
    if experiment.record is None:  # rank 0 alone writes
        return trackers.Tracker()
    parent = Path(args.dir_experiment)
    run = {"folder": experiment.folder, "parent": parent, "id": experiment.record.id, "options": args.values()}
    return trackers.begin(args.tracker, trackers.TrackedRun(first=first, **run))


def _monitor(args, state: RunState, experiment: Experiment) -> Monitor:
    return Monitor(
        state.progress,
        terms=state.step.loss.names,
        adversarial=state.step.adversary is not None,
        skip_threshold=args.skip_threshold,
        half_precision=args.precision == "half",
        run=experiment.name,
        lr=args.lr,
        has_state=experiment.state_path.is_file,
    )


def _plan(args, summary: str) -> Plan:
    return Plan(
        summary=summary,
        epochs=args.epochs or math.inf,
        batch_size=args.batch_size,
        val_every=args.val_every,
        print_every=args.print_every,
        keep_epochs=args.save_models,
    )


def build_step(args, network: nn.Module, device: torch.device) -> TrainStep:
    """The step of a run: loss, optimizers, moving average, and the network as it is run."""
    loss = Loss(
        args.loss,
        rgb_range=args.rgb_range,
        n_colors=args.n_colors,
        patch_size=args.patch_size,
        load_vgg19=lambda: load_vgg19(args.vgg_weights, load_tensors),
        distill=args.distill if args.teacher else None,
    ).to(device)
    config = OptimizerConfig(args.optimizer, args.lr, args.weight_decay, args.momentum, tuple(args.betas), args.epsilon)
    critic_optimizer = None
    if loss.adversary:
        # Adam without momentum, as WGAN-GP's paper finds necessary (arXiv 1704.00028, algorithm 1).
        wgan = OptimizerConfig("ADAM", args.lr, args.weight_decay, betas=(0.0, 0.9), epsilon=args.epsilon)
        critic_config = wgan if loss.adversary.kind == "WGAN_GP" else config
        critic_optimizer = make_optimizer(loss.adversary.discriminator, critic_config)
    return TrainStep(
        network,
        _as_it_runs(args, network, device),
        loss,
        make_optimizer(network, config),
        critic_optimizer,
        device=device,
        scaler=torch.amp.GradScaler(device.type, enabled=args.precision == "half"),
        average=MovingAverage(network, args.ema) if args.ema else None,
        rgb_range=args.rgb_range,
        n_parts=args.split_batch,
        clip=args.gclip,
    )


def build_schedule(args, *, epoch_batches: int) -> Schedule:
    """The learning rate of every batch, as the options describe it."""
    return Schedule(args.lr, epoch_batches, args.schedule, args.warmup, tuple(args.decay), args.gamma, args.epochs)


def _as_it_runs(args, network: nn.Module, device: torch.device) -> nn.Module:
    """The network in its precision, compiled, over several devices; it shares its parameters with `network`."""
    parallel = _compiled(args, network, device) if args.compile else network
    parallel = InPrecision(parallel, device, args.precision)
    if distributed.world_size() > 1:
        devices = [device.index] if device.type == "cuda" else None
        parallel = DistributedDataParallel(parallel, device_ids=devices, broadcast_buffers=False)
        return _with_final_buckets(parallel, network, device, args)
    if device.type == "cuda" and args.n_GPUs > 1:
        return nn.DataParallel(parallel, list(range(args.n_GPUs)))
    return parallel


def _with_final_buckets(
    parallel: DistributedDataParallel, network: nn.Module, device: torch.device, args
) -> DistributedDataParallel:
    """The network after a step that changes nothing.

    DistributedDataParallel exchanges gradients in buckets, and sorts them anew after the first step. The sum over
    three or more processes is rounded by where a value lies in its bucket: without this step the first one after a
    restart would differ in the last bit from that of a run that was not stopped.
    """
    side = args.patch_size // args.scale
    batch = torch.zeros(1, args.n_colors, side, side, dtype=torch.uint8)
    for _ in range(2):  # they are sorted when the second one begins
        parallel(to_network(batch, device, args.rgb_range)).sum().backward()
    network.zero_grad(set_to_none=True)
    return parallel


def _compiled(args, network: nn.Module, device: torch.device) -> nn.Module:
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


def _summary(args, train_set: TrainSet, test_sets: list[TestSet], epoch_batches: int) -> str:
    world = distributed.world_size()
    processes = f" over {world} processes" if world > 1 else f" over {args.n_GPUs} GPUs" if args.n_GPUs > 1 else ""
    parts = f" in {args.split_batch} parts" if args.split_batch > 1 else ""
    sets = ", ".join(f"{test_set.name} ({len(test_set)})" for test_set in test_sets)
    return (
        f"training on {len(train_set)} images, {args.batch_size} patches a batch{processes}{parts}, {epoch_batches} "
        f"batches an epoch, {args.epochs or 'endless'} epochs; testing on {sets}"
    )
