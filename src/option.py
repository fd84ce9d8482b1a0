"""The command line of `main.py`: which flags there are, what they mean, and which go together.

`parse_args(argv)` -> `Options`, typed, checked and read-only; `follow_file` and `continue_with` then settle what a file of
weights or a run that goes on decides. Nothing here has a side effect, touches a file or imports anything heavy, so a
wrong flag is answered at once.
"""

import argparse
import os
from pathlib import Path

from loss.names import ADVERSARIAL, LOSSES, PERCEPTUAL
from model.facts import FileFacts
from model.names import ACTIVATIONS, NETWORKS
from runtime.errors import UserError, printable
from runtime.flags import (
    Parser,
    degradation,
    image_ranges,
    number,
    one_of,
    path_flag,
    plain_names,
    rising_epochs,
    scale_factor,
    weighted_sets,
    weighted_terms,
    weights_file,
    whole_number,
)

SPANDREL = "spandrel"  # any network that the package of this name reads off a file
MODEL_FLAGS = NETWORKS | {SPANDREL: {}}  # which flags describe each network, with its defaults where none is given
_NETWORK = ("n_feats", "n_resgroups", "n_resblocks", "groups", "dilation", "act", "res_scale", "reduction", "kernels")
TRACKERS = ("tensorboard", "wandb", "mlflow", "none")
OPTIMIZERS = ("ADAM", "SGD", "RMSprop", "ADAMW", "MUON")
LEARNED = ("lpips", "dists")  # --perceptual
METRICS = ("PSNR", "SSIM", *(name.upper() for name in LEARNED))  # --best_by

_ROOT = Path(__file__).resolve().parent.parent


class OptionError(UserError):
    """Flags that are wrong or contradict one another, a file or a run; the message names the flag and how to fix it."""


class Options(argparse.Namespace):
    """The values of all flags, read-only, and in `given` the names of those that the user wrote out."""

    given: frozenset[str]

    def __init__(self, values: dict, given: frozenset[str]):
        self.__dict__.update(values, given=given)

    def __setattr__(self, name, value):
        raise AttributeError(f"options are read-only: use replace({name}=...)")

    def values(self) -> dict:
        """Flag name -> value, in the order of the command line's help."""
        return {name: value for name, value in vars(self).items() if name != "given"}

    def with_model(self, name: str) -> "Options":
        """A copy for another network, with its defaults for flags that were not given; not checked."""
        defaults = {flag: value for flag, value in MODEL_FLAGS[name].items() if flag not in self.given}
        return Options(self.values() | {"model": name} | defaults, self.given)

    def replace(self, given: frozenset[str] | None = None, **changes) -> "Options":
        """A copy with some values changed, and `given` if it is not None, checked again.

        Raises:
            OptionError: if the values contradict one another.
        """
        changed = Options(self.values() | changes, self.given if given is None else given)
        _check_requests(changed)
        _check_values(changed)
        return changed


def follow_file(options: Options, file: FileFacts) -> Options:
    """The options with the structure of the file in --pre_train; flags left at their defaults follow it.

    Kernels: a test uses the file's. Training goes on recalibrating a file in training form; on a plain or folded one
    it recalibrates the kernels over a frozen basis, as RefConv does, unless told otherwise.

    Raises:
        OptionError: if a flag that was given contradicts the file, or the file is of another network.
    """
    if file.model != options.model:
        if "model" in options.given:
            fix = f"give --model {file.model} or another file"
            raise OptionError(f"--model {options.model}, but {file.path} has {file.model}: {fix}")
        options = options.with_model(file.model)
    found = file.structure | _kernels_after(options, file)
    for flag, value in found.items():
        given, trained_scale = getattr(options, flag), flag == "scale" and not options.test_only
        if flag not in options.given or _meaning(flag, given, found) == _meaning(flag, value, found) or trained_scale:
            continue
        fix = f"drop --{flag}, it is read off the file, or give another file"
        if flag == "kernels" and value == "recalibrated":
            fix = "drop it, or fold the file first with export.py"
        raise OptionError(f"--{flag} {_meaning(flag, given, found)}, but {file.path} has {value}: {fix}")
    if "scale" in options.given:
        found["scale"] = options.scale
    if "groups" in found and found["groups"] == found["n_feats"]:
        found["groups"] = 0
    if options.test_only:
        found["basis"] = "trained"
    return options.replace(**found)


def _kernels_after(options: Options, file: FileFacts) -> dict:
    """What the file decides about kernels and basis."""
    if file.recalibrated is None:
        return {}
    if file.recalibrated and options.recalibrate:
        raise OptionError(
            f"--recalibrate, but {file.path} is recalibrated already: drop it to train the file on as it is, "
            "or fold the file first with export.py"
        )
    found = {}
    if file.recalibrated or options.test_only:
        found["kernels"] = "recalibrated" if file.recalibrated else "plain"
    if "basis" not in options.given:
        if file.recalibrated:
            found["basis"] = file.basis
        elif not options.test_only and options.kernels == "recalibrated":
            found["basis"] = "frozen"
    return found


def _meaning(flag: str, value, shape: dict):
    """A flag's value as the network has it: --groups 0 means a group for each channel."""
    return shape["n_feats"] if flag == "groups" and not value else value


# What a state holds the tensors of: another value needs another run.
_STRUCTURE = frozenset(
    {"model", "pre_train", "scale", *_NETWORK, "basis", "recalibrate"}
    | {"n_colors", "rgb_range", "optimizer", "ema", "loss", "teacher"}
)
# What may differ when a run goes on: where and how fast it runs, and what it prints, not what it computes.
_HARDWARE = frozenset({"cpu", "n_GPUs", "n_threads", "release_memory"})
CHANGEABLE = _HARDWARE | frozenset(
    {"dir_data", "dir_demo", "dir_experiment", "vgg_weights", "ext", "epochs", "print_every", "val_every"}
    | {"save_every", "compile", "tracker", "no_tensorboard", "override", "split_batch", "tile", "perceptual"}
    | {"save", "load", "auto_resume", "resume", "reset", "test_only", "save_models", "save_results", "save_gt"}
)


def continue_with(args: Options, stored: dict, given: list[str]) -> Options:
    """The options with which a stopped run goes on: its own, but for changeable flags, which count as given now.

    The hardware is that of this command line, whether its flags were given or not: a run may move. The run is that of
    --load, or with --auto_resume that of --save.

    Args:
        stored, given: the values of the run's options and the names of those the user gave, out of its state.

    Raises:
        OptionError: if a flag that was given would change the experiment.
    """
    stored = checked_values(stored)
    run, asked = (args.load, "--load") if args.load else (args.save, "--auto_resume --save")
    _check_override(args)
    for flag in sorted(args.given - CHANGEABLE - set(args.override)):
        now, was = getattr(args, flag), stored.get(flag)
        if flag == "precision" and now == "auto":  # the run has what auto was when it began
            continue
        if _meaning(flag, now, stored) != _meaning(flag, was, stored):
            raise OptionError(
                f"--{flag} {_text(flag, now)}, but {asked} {run} was started with {_text(flag, was)}: drop --{flag} to resume, "
                + (
                    f"or start another run from its weights with --pre_train {Path(args.dir_experiment, run)}/model/model_latest.pt"
                    if flag in _STRUCTURE
                    else f"or allow the change with --override {flag}"
                )
            )
    new = _HARDWARE | (args.given & (CHANGEABLE | set(args.override)))
    changed = {flag: getattr(args, flag) for flag in new}
    if stored["ext"] == "sep_reset":  # it has been done
        changed = {"ext": "sep"} | changed
    if args.auto_resume and changed.get("ext") == "sep_reset":  # by this command line, when it began the run
        changed["ext"] = "sep"
    tracker = changed.get("tracker", stored["tracker"])
    changed |= {"tracker": tracker, "no_tensorboard": stored["no_tensorboard"] and tracker == "none"}
    names = {"load": run, "save": run, "resume": args.resume, "reset": False, "auto_resume": args.auto_resume}
    return args.replace(given=args.given | (frozenset(given) - _HARDWARE), **(stored | changed | names))


def _check_override(options: Options) -> None:
    """Raises OptionError if --override names what no run can change."""
    for flag in options.override:
        if flag not in options.values() or flag in _STRUCTURE:
            why = "is what the stored state is made of" if flag in _STRUCTURE else "is no flag"
            raise OptionError(f"--override {flag}: {flag} {why}: drop it, or start another run with --pre_train")


def checked_values(stored: dict) -> dict:
    """The values of a run's options out of its state, each as its flag would read it; defaults for flags that are newer.

    Raises:
        OptionError: if one is nothing that its flag takes.
    """
    values = {}
    if stored.get("no_tensorboard") is True and "tracker" not in stored:  # an older state file
        stored = stored | {"tracker": "none"}
    for action in build_parser()._actions:
        name = action.dest
        if name == "help":
            continue
        values[name] = stored.get(name, action.default)
        if name == "data_train":
            values[name] = _without_zero_weights(values[name])
        if values[name] != action.default and not _reads_as(action, values[name]):
            raise OptionError(
                f"the state has {name} {printable(repr(values[name]))[:100]}, which --{name} does not take: restore the file"
            )
        if type(values[name]) is not type(action.default) and not isinstance(values[name], int | float):
            raise OptionError(
                f"the state has {name} {printable(repr(values[name]))[:100]}, expected it as --{name} gives it: restore the file"
            )
    return values


def _without_zero_weights(value):
    """The value of --data_train in a state file: older ones store 0.0 where a set has no weight."""
    if not (isinstance(value, tuple) and all(isinstance(each, tuple) and len(each) == 2 for each in value)):
        return value  # damaged: refused by `_reads_as`
    return tuple((None if weight == 0.0 else weight, name) for weight, name in value)


def _reads_as(action: argparse.Action, value) -> bool:
    """Whether a flag's value, of the type that it gives, is what it makes of some text."""
    if isinstance(action, argparse._StoreTrueAction):
        return isinstance(value, bool)
    if isinstance(action.default, str) and not isinstance(value, str):
        return False
    if action.choices is not None:
        return value in action.choices and not isinstance(value, bool)
    if action.type in (None, weights_file):
        return isinstance(value, str)
    try:
        if action.nargs:
            return tuple(action.type(repr(each)) for each in value) == tuple(value) and len(value) == action.nargs
        return action.type(_as_typed(action.dest, value)) == value
    except (argparse.ArgumentTypeError, TypeError, ValueError, AttributeError, IndexError):
        return False


def _as_typed(flag: str, value) -> str:
    """The text of the command line that gives `value`."""
    if flag in ("data_train", "loss"):
        return "+".join(f"{weight!r}*{name}" if weight else name for weight, name in value)
    if flag == "data_range":
        return "/".join(f"{first}-{last}" for first, last in value)
    if isinstance(value, tuple):
        return ("-" if flag == "decay" else "+").join(map(str, value))
    return value if isinstance(value, str) else repr(value)


def _text(flag: str, value) -> str:
    """A flag's value as the command line writes it."""
    return str(_as_typed(flag, value)) or "none"


def parse_args(argv: list[str] | None = None) -> Options:
    """Parses a command line (`sys.argv[1:]` if None); a wrong one ends the program with status 2 and one line."""
    parser = build_parser()
    unset = object()
    names = [action.dest for action in parser._actions if action.dest != "help"]
    # argparse fills in no default where a value stands already, which tells the flags that were given from the others.
    parsed = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset))))
    given = frozenset(name for name in names if parsed[name] is not unset)
    values = {name: parsed[name] if name in given else parser.get_default(name) for name in names}
    values["betas"] = tuple(values["betas"])
    for name in ("dir_data", "dir_demo", "dir_experiment", "pre_train", "vgg_weights", "teacher"):
        # A run that goes on may start elsewhere, and a shell leaves the ~ of --flag=~/folder alone.
        values[name] = values[name] and os.path.abspath(path_flag(values[name]))
    options = Options(values, given).with_model(values["model"])
    try:
        _check_requests(options)
        if options.recalibrate:
            options = Options(options.values() | {"kernels": "recalibrated"}, given | {"kernels"})
        if options.no_tensorboard:  # the name of --tracker none in older command lines
            options = Options(options.values() | {"tracker": "none"}, options.given | {"tracker"})
        # With a file or a run to follow, values that were left at their defaults are still to come.
        if not (options.load or options.pre_train):
            _check_values(options)
    except OptionError as error:
        parser.error(str(error))
    return options


def loss_terms(text: str) -> tuple[tuple[float, str], ...]:
    terms = []
    for weight, star, name in weighted_terms(text):
        name = name.replace("-", "_")  # WGAN-GP, as its paper writes it
        if name not in LOSSES:
            raise argparse.ArgumentTypeError(f"got {name!r}, expected one of {', '.join(LOSSES)}, as in 1*L1+0.1*MSE")
        terms.append((number(above=0)(weight) if star else 1.0, name))
    if len({name for _, name in terms}) < len(terms):
        raise argparse.ArgumentTypeError(f"got {text!r}, which names a loss twice: add up its weights")
    return tuple(terms)


def set_and_metric(text: str) -> str:
    """The value of --best_by, with the metric's name in capitals."""
    name, _, metric = text.rpartition(":")
    if not name or metric.upper() not in METRICS:
        metrics = ", ".join(METRICS)
        raise argparse.ArgumentTypeError(f"got {text!r}, expected SET:METRIC with one of {metrics}, as in Set5:PSNR")
    return f"{name}:{metric.upper()}"


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main.py`, with its flags in groups and their units in the help."""
    parser = Parser(
        prog="main.py",
        description="Train and test lightweight super-resolution networks (KRGN and others), EDSR style.",
        allow_abbrev=False,
        examples=(
            "python main.py --test_only --pre_train KRGN_x4 --data_test Demo --dir_demo ~/Pictures/small --save mine",
            "python main.py --scale 4 --save my_krgn_x4 --data_test Set5+Set14 --best_by Set14:PSNR --val_every 5",
            "python main.py --load my_krgn_x4",
            "python main.py --test_only --pre_train KRGN_x4 --data_test Set5+Set14 --chop --save_results --save krgn_test_x4",
        ),
    )
    for title, add_flags in _GROUPS.items():
        add_flags(parser.add_argument_group(title).add_argument)
    return parser


# fmt: off
def _hardware_flags(add) -> None:
    add("--n_threads", type=whole_number(0), default=6, metavar="N",
        help="processes that load training data, at most one a core; the batches do not depend on it (default 6)")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--n_GPUs", type=whole_number(1), default=1, metavar="N",
        help="GPUs that one process uses (DataParallel); they share each batch (default 1)")
    add("--release_memory", action="store_true",
        help="leave the C library's allocator as it is; otherwise glibc keeps up to 2 GiB of freed memory for the next layer, which avoids page faults")
    add("--seed", type=whole_number(0, 2**32 - 1), default=1, metavar="N",
        help="seed of everything random (default 1)")
    add("--precision", choices=("single", "half", "bf16", "auto"), default="single",
        help="arithmetic of the network; half and bf16 are mixed precision, auto is bf16 where the GPU or CPU has instructions for it, else single (default single)")


def _data_flags(add) -> None:
    add("--dir_data", default=str(_ROOT / "dataset"), metavar="DIR",
        help="folder of the data sets (default: dataset/ beside src/)")
    add("--dir_demo", default=str(_ROOT / "test"), metavar="DIR",
        help="folder of your own images for --data_test Demo (default: test/ beside src/)")
    add("--data_train", type=weighted_sets, default=((None, "DIV2K"),), metavar="[W*]A+[W*]B",
        help="training sets: folders of --dir_data in DIV2K's shape, or of any HR images; with weights, as in 3*DIV2K+1*Photos, patches come from the sets in these shares, without them each image counts the same (default DIV2K)")
    add("--data_test", type=plain_names, default=("DIV2K",), metavar="A+B",
        help="test sets: folders of --dir_data/benchmark, sets in DIV2K's shape, or Demo; the first one's PSNR chooses the best weights, or --best_by (default DIV2K)")
    add("--data_range", type=image_ranges, default=((1, 800), (801, 810)), metavar="A-B/C-D",
        help="images for training / testing in a set of DIV2K's shape, counted from 1 in the order of their names (default 1-800/801-810)")
    add("--ext", choices=("sep", "sep_reset", "img"), default="sep",
        help="sep: keep a decoded .npy copy of each image in the set's bin/ folder, made where missing or outdated; sep_reset: make all of them again first; img: decode each time (default sep)")
    add("--scale", type=scale_factor, default=4, metavar="S", help="upscaling factor (default 4)")
    add("--patch_size", type=whole_number(1, 2**16), default=192, metavar="PIXELS",
        help="side of a training patch in HR pixels, a multiple of the scale (default 192)")
    add("--rgb_range", type=number(above=0), default=255, metavar="V",
        help="largest value of a pixel in the network (default 255)")
    add("--n_colors", type=int, choices=(1, 3), default=3, help="3: RGB; 1: luma Y only (default 3)")
    add("--degradation", type=degradation, default="bicubic", metavar="D",
        help="how LR comes from HR, for training and testing: bicubic; bicubic+jpegQ, compressed at quality Q; blur+bicubic, blurred by a random width first, or blur1.6+bicubic by this one; or all three (default bicubic)")
    add("--no_augment", action="store_true", help="no random flips and rotations of training patches")


def _model_flags(add) -> None:
    add("--model", type=one_of(tuple(MODEL_FLAGS)), default="KRGN", metavar="NAME",
        help=f"one of {', '.join(MODEL_FLAGS)}; with spandrel, --test_only tests any file that the package spandrel recognises (default: the network of --pre_train, else KRGN)")
    add("--pre_train", type=weights_file, default="", metavar="FILE",
        help="weights to start from or to test: a file, from which size, groups and kernels are read, or the name of a released network, as in KRGN_x4")
    add("--n_feats", type=whole_number(1, 4096), default=64, metavar="N", help="feature channels (default 64)")
    add("--n_resgroups", type=whole_number(1, 1000), default=9, metavar="N",
        help="PMRB blocks of KRGN and CFGN, residual groups of RCAN (default 9, RCAN 10)")
    add("--n_resblocks", type=whole_number(1, 1000), default=16, metavar="N",
        help="residual blocks of EDSR, and in each group of RCAN (default 16, RCAN 20)")
    add("--res_scale", type=number(above=0), default=1, metavar="F",
        help="EDSR: factor of each block's output, 0.1 in the full network (default 1)")
    add("--reduction", type=whole_number(1, 4096), default=16, metavar="N",
        help="RCAN: channel reduction of its attention (default 16)")
    add("--groups", type=whole_number(0), default=0, metavar="N",
        help="KRGN, CFGN: groups of the recalibrated convolutions; 0: depth-wise (default 0, CFGN 32)")
    add("--dilation", type=whole_number(1, 64), default=3, metavar="N",
        help="KRGN, CFGN: dilation of every second convolution (default 3)")
    add("--act", choices=ACTIVATIONS, default="lrelu", help="KRGN, CFGN: activation of the taps (default lrelu)")
    add("--kernels", choices=("recalibrated", "plain"), default="recalibrated",
        help="recalibrated: each kernel is computed from those of the other channels while training; plain: the ablation (default recalibrated, other networks than KRGN plain; a test follows the file)")
    add("--recalibrate", action="store_true",
        help="with --pre_train, for every network: --kernels recalibrated over the file's kernels, which are frozen (RefConv's second stage)")
    add("--basis", choices=("trained", "frozen"), default="trained",
        help="train the basis kernels too, or only their recalibration (default: trained from scratch; frozen where --pre_train is a plain checkpoint)")


def _training_flags(add) -> None:
    add("--epochs", type=whole_number(0), default=300, metavar="N",
        help="epochs to train; 0: until stopped (default 300)")
    add("--test_every", type=whole_number(0), default=1000, metavar="BATCHES",
        help="batches an epoch, after which the network is validated; 0: one pass over the images (default 1000)")
    add("--val_every", type=whole_number(1), default=1, metavar="EPOCHS",
        help="epochs between two validations on --data_test; the last of --epochs is always validated (default 1)")
    add("--best_by", type=set_and_metric, default="", metavar="SET:METRIC",
        help="the test set and the metric that choose model_best.pt, as in Set14:SSIM: PSNR, SSIM, or what --perceptual adds, LPIPS or DISTS, where lower is better (default: PSNR of the first test set with HR images)")
    add("--batch_size", type=whole_number(1, 2**20), default=16, metavar="N",
        help="patches a batch, over all GPUs (default 16)")
    add("--split_batch", type=whole_number(1), default=1, metavar="N",
        help="gradient accumulation: run a batch in N parts; less memory, same result (default 1)")
    add("--reset", action="store_true",
        help="delete the experiment --save names, if this program made it, and start again")
    add("--load", default="", metavar="NAME",
        help="resume the training run experiment/NAME where it stopped")
    add("--auto_resume", action="store_true",
        help="resume the run that --save names if it has a state, else begin it: for jobs that are restarted with the same command line, by torchrun, Slurm or Kubernetes")
    add("--resume", type=whole_number(0), default=0, metavar="EPOCH",
        help="with --load: resume from this epoch, kept by --save_models; 0: from the last state (default 0)")
    add("--override", type=plain_names, default=(), metavar="FLAG+FLAG",
        help="with --load or --auto_resume: flags that may differ from those the run was started with, as in --override lr+decay")
    add("--save_every", type=number(least=0), default=10, metavar="MINUTES",
        help="save the state within an epoch this often, so a kill costs no more; 0: only after epochs (default 10)")
    add("--compile", action="store_true",
        help="compile the network with torch.compile, where it can (default: no)")


def _optimisation_flags(add) -> None:
    add("--lr", type=number(above=0), default=1e-4, metavar="RATE", help="learning rate (default 1e-4)")
    add("--decay", type=rising_epochs, default=(200,), metavar="E-E",
        help="epochs after which the learning rate is multiplied by --gamma, as in 200-400-600 (default 200)")
    add("--gamma", type=number(above=0), default=0.5, metavar="F",
        help="factor of the learning rate at each --decay (default 0.5)")
    add("--schedule", choices=("step", "cosine"), default="step",
        help="step: by --decay and --gamma; cosine: falls to 0 over --epochs along half a cosine (default step)")
    add("--warmup", type=whole_number(0), default=0, metavar="BATCHES",
        help="warm-up: batches over which the learning rate rises linearly at the start (default 0)")
    add("--ema", type=number(least=0, below=1), default=0, metavar="D",
        help="keep an exponential moving average (EMA) of the weights with this decay, as in 0.999, and validate and release it; 0: none (default 0)")
    add("--optimizer", type=one_of(OPTIMIZERS), default="ADAM", metavar="NAME",
        help=f"one of {', '.join(OPTIMIZERS)}; MUON is for dense weights, with ADAMW for the rest (default ADAM)")
    add("--momentum", type=number(least=0), default=0.9, metavar="M",
        help="momentum of SGD and RMSprop (default 0.9)")
    add("--betas", type=number(least=0, below=1), nargs=2, default=(0.9, 0.999), metavar=("B1", "B2"),
        help="decay of the moments of ADAM, ADAMW and MUON's ADAMW (default 0.9 0.999)")
    add("--epsilon", type=number(above=0), default=1e-8, metavar="E",
        help="added to the denominator of ADAM, ADAMW, MUON's ADAMW and RMSprop (default 1e-8)")
    add("--weight_decay", type=number(least=0), default=0, metavar="W", help="weight decay (default 0)")
    add("--gclip", type=number(least=0), default=0, metavar="V",
        help="clip each gradient to -V..V; 0: no clipping (default 0)")
    add("--loss", type=loss_terms, default=((1.0, "L1"),), metavar="W*NAME+...",
        help=f"weighted sum of losses, as in 5*VGG54+0.15*GAN; there are {', '.join(LOSSES)} (default 1*L1)")
    add("--teacher", type=weights_file, default="", metavar="FILE",
        help="distillation: learn from the SR images of this network too, any that --pre_train or the package spandrel reads; they are made once and kept beside the training set's decoded copies (default: none)")
    add("--distill", type=number(least=0), default=1, metavar="W",
        help="weight of the L1 distance to the --teacher's SR (default 1)")
    add("--teacher_views", type=int, choices=(1, 8), default=8,
        help="8: the teacher's SR is self-ensembled, the mean over eight flips and rotations; 1: it is not, which takes an eighth of the time (default 8)")
    add("--vgg_weights", default="", metavar="FILE",
        help="VGG19's weights as torchvision publishes them, for VGG22 and VGG54 (default: downloaded once)")
    add("--skip_threshold", type=number(above=0), default=1e8, metavar="F",
        help="skip a batch whose loss is above F times the mean loss of the epoch before, in the first epoch of its batches so far (default 1e8)")


def _testing_flags(add) -> None:
    add("--test_only", action="store_true",
        help="test the weights of --pre_train; recalibrated kernels are folded first")
    add("--chop", action="store_true",
        help="run an image as four overlapping quadrants: less memory, and the way published scores were measured")
    add("--tile", type=whole_number(0), default=0, metavar="PIXELS",
        help="run an image as tiles of so many LR pixels each side, with the whole image's result in a tile's memory; 0: only where the whole image does not fit (default 0)")
    add("--metric_channel", choices=("y", "rgb"), default="y",
        help="what PSNR and SSIM compare: luma Y, as in publications (BasicSR's test_y_channel), or RGB; a border of --scale pixels is left out (crop_border) (default y)")
    add("--perceptual", type=plain_names, default=(), metavar="A+B",
        help="learned distances too, lpips and dists; needs requirements-extra.txt (default: none)")
    add("--self_ensemble", action="store_true",
        help="average over the eight flips and rotations of each image")


def _output_flags(add) -> None:
    add("--dir_experiment", default=str(_ROOT / "experiment"), metavar="DIR",
        help="folder of all experiments (default: experiment/ beside src/)")
    add("--save", default="test", metavar="NAME", help="name of this run's folder there (default test)")
    add("--tracker", choices=TRACKERS, default="tensorboard",
        help="what also gets the numbers and SR crops of each epoch: TensorBoard, Weights & Biases or MLflow, the last two where the package is installed (requirements-extra.txt) (default tensorboard)")
    add("--no_tensorboard", action="store_true", help="the same as --tracker none")
    add("--save_models", action="store_true",
        help="keep weights and state of every epoch (105 MB each for the standard network)")
    add("--print_every", type=whole_number(1), default=100, metavar="BATCHES",
        help="batches between two lines of the log (default 100)")
    add("--save_results", action="store_true", help="write the SR images of the test sets")
    add("--save_gt", action="store_true", help="write LR and HR beside each SR image")


_GROUPS = {
    "hardware": _hardware_flags,
    "data": _data_flags,
    "model": _model_flags,
    "training": _training_flags,
    "optimisation": _optimisation_flags,
    "testing": _testing_flags,
    "output": _output_flags,
}
# fmt: on


def _check_values(options: Options) -> None:
    """Raises OptionError where the values of several flags contradict one another."""
    if options.patch_size % options.scale and not options.test_only:
        low = options.patch_size // options.scale * options.scale
        fits = f"{low} or {low + options.scale}" if low else f"{options.scale}"
        raise OptionError(f"--patch_size {options.patch_size} is no multiple of --scale {options.scale}: use {fits}")
    for flag in _NETWORK:
        if flag in options.given and flag not in MODEL_FLAGS[options.model]:
            there = ", ".join(f"--{there}" for there in MODEL_FLAGS[options.model]) or "none, the file says all"
            raise OptionError(f"--{flag} is no flag of --model {options.model}: drop it (it has {there})")
    if options.model in ("EDSR", "RCAN") and options.scale != 3 and options.scale & (options.scale - 1):
        raise OptionError(f"--scale {options.scale}: {options.model} upscales by 3 or a power of 2: give one of them")
    if options.model == "RCAN" and options.n_feats < options.reduction:
        raise OptionError(
            f"--reduction {options.reduction} leaves none of --n_feats {options.n_feats} channels: lower it"
        )
    if "groups" in MODEL_FLAGS[options.model] and options.groups and options.n_feats % options.groups:
        raise OptionError(
            f"--n_feats {options.n_feats} is not divisible by --groups {options.groups}: "
            "change one of them, or use --groups 0 for depth-wise kernels"
        )
    if options.split_batch > options.batch_size:
        raise OptionError(
            f"--split_batch {options.split_batch} is more parts than --batch_size {options.batch_size} has patches: lower it"
        )
    names = {name for _, name in options.loss}
    if names & set(PERCEPTUAL) and options.n_colors != 3:
        raise OptionError(f"--loss {_text_of_loss(options)} looks at RGB, as VGG19 does: drop --n_colors 1")
    if len(names & set(ADVERSARIAL)) > 1:
        raise OptionError(
            f"--loss {_text_of_loss(options)} has two discriminators: keep one of {', '.join(ADVERSARIAL)}"
        )
    if names & set(ADVERSARIAL) and options.patch_size < 32 and not options.test_only:
        raise OptionError(f"--patch_size {options.patch_size}: a discriminator needs patches of 32 pixels at least")
    if options.teacher and options.degradation != "bicubic" and not options.test_only:
        raise OptionError(
            f"--teacher with --degradation {options.degradation}: its SR images are made once, of LR images that are "
            "there: drop one of them"
        )
    if options.compile and options.n_GPUs > 1 and not options.test_only:
        # DataParallel's copies of a compiled network would take the modules out of the network itself.
        raise OptionError(
            f"--compile with --n_GPUs {options.n_GPUs}: torch cannot compile copies in one process: drop one of "
            f"them, or start a process for each GPU with torchrun --nproc_per_node {options.n_GPUs}"
        )
    if options.kernels == "plain" and options.basis == "frozen":
        raise OptionError("--basis frozen needs recalibrated kernels: drop it, or drop --kernels plain")

    _check_best_by(options)
    if options.schedule == "cosine" and not options.epochs:
        raise OptionError("--schedule cosine falls to 0 over --epochs: give a number of epochs above 0")


def _check_best_by(options: Options) -> None:
    """Raises OptionError if a training does not measure what --best_by names."""
    name, _, metric = options.best_by.rpartition(":")
    if not name or options.test_only:
        return
    if name not in options.data_test:
        raise OptionError(
            f"--best_by {options.best_by}: {name} is not among --data_test {'+'.join(options.data_test)}: "
            f"choose by a set that is, or add {name} to --data_test"
        )
    if name == "Demo":
        raise OptionError(f"--best_by {options.best_by}: Demo has no HR images to score against: name another set")
    if metric.lower() in LEARNED and metric.lower() not in options.perceptual:
        add = "+".join((*options.perceptual, metric.lower()))
        raise OptionError(f"--best_by {options.best_by}: {metric} is not measured: add --perceptual {add}")


def _text_of_loss(options: Options) -> str:
    return "+".join(f"{weight:g}*{name}" for weight, name in options.loss)


def _check_requests(options: Options) -> None:
    """Raises OptionError where the user asks for things that do not go together."""
    for flag in ("load", "pre_train"):
        if flag in options.given and not getattr(options, flag):
            raise OptionError(f"--{flag} is empty: name a {'run' if flag == 'load' else 'file'}, or drop it")
    if options.load and options.reset:
        raise OptionError("--reset deletes the run that --load resumes: give only one of them")
    if options.load and "save" in options.given and options.save != options.load:
        raise OptionError(f"--load {options.load} goes on in its own folder: drop --save {options.save}")
    if options.auto_resume:
        _check_auto_resume(options)
    elif options.override and not options.load:
        raise OptionError("--override changes a run that goes on: name the run with --load")
    if options.no_tensorboard and options.tracker != "none" and "tracker" in options.given:
        raise OptionError(
            f"--tracker {options.tracker} and --no_tensorboard, which is --tracker none: give one of them"
        )
    if options.resume and not options.load:
        raise OptionError(f"--resume {options.resume} goes back in a run: name the run with --load")
    if "distill" in options.given and not (options.teacher or options.load or options.auto_resume):
        raise OptionError(f"--distill {options.distill:g} is the weight of a teacher: give its --teacher FILE")
    if "teacher_views" in options.given and not (options.teacher or options.load or options.auto_resume):
        raise OptionError(f"--teacher_views {options.teacher_views} is of a teacher: give its --teacher FILE")
    if options.chop and options.tile:
        raise OptionError(f"--chop and --tile {options.tile} are two ways to cut an image: give one of them")
    if not set(options.perceptual) <= set(LEARNED):
        raise OptionError(f"--perceptual {'+'.join(options.perceptual)}: there are lpips and dists")
    if options.test_only:
        if options.load:
            best = Path(options.dir_experiment, options.load, "model/model_best.pt")
            raise OptionError(f"--load resumes training: to test a run, give --pre_train {best}")
        if options.reset:
            raise OptionError("--reset deletes a training run: drop it, --test_only needs none")
        if not options.pre_train:
            raise OptionError("--test_only needs weights to test: give --pre_train FILE")
    if options.model == "spandrel" and not options.test_only:
        raise OptionError("--model spandrel only tests: add --test_only, or train one of the other models")
    if options.recalibrate:
        if options.test_only:
            raise OptionError("--recalibrate trains: drop it, a test takes the kernels that are in the file")
        if "kernels" in options.given and options.kernels == "plain":
            raise OptionError("--recalibrate is --kernels recalibrated: drop --kernels plain, or --recalibrate")
        if not options.pre_train and not options.load:
            raise OptionError(
                "--recalibrate is the second stage, over the kernels of a trained network: give its --pre_train FILE, "
                "or train with recalibrated kernels from the start with --kernels recalibrated"
            )
    _check_name("--save", options.save)
    if options.load:
        _check_name("--load", options.load)


def _check_auto_resume(options: Options) -> None:
    if options.load and options.load != options.save:
        raise OptionError(f"--auto_resume resumes the run that --save names: drop it, or --load {options.load}")
    if options.reset:
        raise OptionError("--reset deletes the run that --auto_resume resumes: give only one of them")
    if options.test_only:
        raise OptionError("--auto_resume resumes training: drop it, --test_only trains nothing")
    _check_override(options)


def _check_name(flag: str, name: str) -> None:
    """An experiment's name must lead to a folder below the folder of experiments."""
    inside = os.path.normpath(name)
    if not name.isprintable():
        raise OptionError(
            f"{flag} {name!r} has characters that cannot be printed: give a plain name such as {flag} my_x4"
        )
    if not name or os.path.isabs(name) or inside == "." or inside.split(os.sep)[0] == "..":
        raise OptionError(f"{flag} {name!r} leaves the folder of experiments: give a plain name such as {flag} my_x4")
