"""Train or test: `python main.py --help`. Options -> network, data, experiment -> `Trainer.fit` or `Evaluator.test`."""

import os

from option import SPANDREL, Options, continue_with, follow_file, parse_args
from runtime.errors import UserError, importing, run
from train.trackers import require


def main(args: Options) -> None:
    """Runs what the options ask for; `errors.run` says how failures end."""
    require(args.tracker, asked="tracker" in args.given)
    # Imported only here, so that a wrong flag is answered without waiting for torch.
    with importing():
        from pathlib import Path

        import torch

        from data import build_test_sets, build_train_set, describe_data
        from evaluation.evaluate import build_evaluator
        from model import cffb, precision
        from model.networks import describe
        from model.recalibration import fold
        from runtime import distributed
        from runtime.experiment import Experiment
        from runtime.files import digest
        from runtime.hardware import choose_device, keep_memory
        from runtime.log import start_log
        from runtime.provenance import hardware
        from train.build import build_trainer
        from train.state import all_done
        from train.teacher import teach

    log = start_log()
    refuse_no_flags(args)
    cffb.build_when_needed()
    if not args.release_memory:
        keep_memory()
    experiment = Experiment(Path(args.dir_experiment), args.load or args.save)
    experiment.check(training=not args.test_only, reset=args.reset, load=bool(args.load), auto_resume=args.auto_resume)
    device = choose_device(cpu=args.cpu, n_gpus=args.n_GPUs, asked="n_GPUs" in args.given)

    with distributed.processes(device):
        # Rank 0 alone reads the state, once it has the folder to itself, and gives it to all: processes on other nodes
        # might see an older file, or none.
        goes_on = args.load or (args.auto_resume and experiment.state_path.is_file())
        state = distributed.from_main(lambda: experiment.load_state(args.resume) if goes_on else None)
        if state is not None:
            args = continue_with(args, state["options"], given=state["given"])
            require(args.tracker, asked="tracker" in args.given)
            if args.auto_resume and (done := all_done(state["progress"].get("epoch"), args.epochs)):
                log.info(done)
                return
        args, network = with_network(args, resumed=state is not None)
        network = network.to(device, memory_format=torch.channels_last)
        log.info(describe(network, args.model))

        args = args.replace(precision=distributed.of_main(precision.resolve(args.precision, device)))
        if not args.test_only:
            distributed.share(args.batch_size)
        with distributed.main_first():
            test_sets = build_test_sets(args)
            train_set = None if args.test_only else build_train_set(args)
        if train_set is not None and args.teacher:
            teach(train_set, args.teacher, device, views=args.teacher_views)
        if distributed.is_main():
            facts = {"hardware": hardware(device, n_gpus=args.n_GPUs), "data": describe_data(train_set, test_sets)}
            if args.test_only:
                facts["weights"] = digest(Path(args.pre_train))
            experiment.create(args.values(), training=not args.test_only, reset=args.reset, facts=facts)
        distributed.barrier()
        if args.test_only:
            build_evaluator(args, experiment, device).test(fold(network), test_sets)
        else:
            with experiment.recorded():
                build_trainer(args, network, train_set, test_sets, experiment, device, state).fit()


def refuse_no_flags(args: Options) -> None:
    """Raises UserError where main.py was started without flags, and the data set that it would train on is missing."""
    if not args.given and not os.path.isdir(os.path.join(args.dir_data, "DIV2K")):
        raise UserError(
            f"without flags main.py trains KRGN x4 on {args.dir_data}/DIV2K, which is not there: arrange downloaded "
            "images with prepare.py, train on photographs of your own (docs/first_steps.md), or enlarge a picture "
            "with the released network: python upscale.py photo.jpg"
        )


def with_network(args: Options, *, resumed: bool):
    """The options that the file in --pre_train leaves, and the network, with its weights unless a run is `resumed`."""
    from pathlib import Path

    from model import external
    from model.checkpoint import facts_of, load_pre_trained, unpack
    from model.networks import build_model
    from model.weights import load_tensors
    from runtime.hardware import seed_everything

    checkpoint = network = None
    if args.model == SPANDREL and not resumed:
        load_tensors(Path(args.pre_train))  # whether it is a whole and harmless file; spandrel reads it again
        network = external.load(args.pre_train, rgb_range=args.rgb_range)
        args = follow_file(args, external.facts_of(args.pre_train, network))
    elif args.pre_train and not resumed:
        checkpoint = unpack(load_tensors(Path(args.pre_train)), args.pre_train)
        args = follow_file(args, facts_of(checkpoint, args.model))
    seed_everything(args.seed)
    network = build_model(args) if network is None else network
    if checkpoint is not None:
        load_pre_trained(network, args.model, checkpoint)
    return args, network


if __name__ == "__main__":
    run(lambda: main(parse_args()))
