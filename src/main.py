"""Train or test: `python main.py --help`. Options -> network, data, experiment -> `Trainer.fit` or `evaluate.test`."""

from option import OptionError, parse_args


def main(argv: list[str] | None = None) -> None:
    """Runs one command line (`sys.argv[1:]` if None); `utility.run` says how failures end."""
    args = parse_args(argv)
    # Only now, so that a wrong flag is answered without waiting for torch.
    from pathlib import Path

    from data import build_test_sets, build_train_set
    from errors import UserError
    from evaluate import test
    from experiment import Experiment
    from model import build_model, describe
    from model.checkpoint import adopt, load_pre_train, unpack
    from option import continue_with
    from trainer import Trainer
    from utility import choose_device, load_tensors, seed_everything, start_log

    log = start_log()
    experiment = Experiment(Path(args.dir_experiment) / (args.load or args.save))
    experiment.check(training=not args.test_only, reset=args.reset, load=bool(args.load))
    device = choose_device(cpu=args.cpu, n_gpus=args.n_GPUs, asked="n_GPUs" in args.given, precision=args.precision)
    seed_everything(args.seed)

    state = checkpoint = None
    try:
        if args.load:
            state = experiment.load_state(args.resume)
            args = continue_with(args, state["options"])
        elif args.pre_train:
            checkpoint = unpack(load_tensors(Path(args.pre_train)), args.pre_train)
            args = adopt(args, checkpoint)
    except OptionError as error:  # flags that go together, but not with what is in the file
        raise UserError(str(error)) from None
    network = build_model(args)
    if checkpoint is not None:
        load_pre_train(args, network, checkpoint)
    network = network.to(device)
    log.info(describe(network, args.model))

    test_sets = build_test_sets(args)
    if args.test_only:
        experiment.create(args.values(), training=False)
        test(args, network, test_sets, experiment, device)
        return
    train_set = build_train_set(args)
    experiment.create(args.values(), training=True, reset=args.reset)
    Trainer(args, network, train_set, test_sets, experiment, device, state).fit()


if __name__ == "__main__":
    from utility import run

    run(main)
