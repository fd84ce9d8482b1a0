"""The command line: familiar flags with their defaults, one line for each mistake, options that are read-only."""

import os
from pathlib import Path

import pytest
from conftest import ROOT, assert_one_line, command

from loss.names import PERCEPTUAL, PIXELWISE
from loss.perceptual import LAYERS
from loss.weighted import Loss
from model.names import NETWORKS
from model.networks import MODELS
from option import OptionError, build_parser, checked_values, continue_with, parse_args

# Names and defaults that users' launch lines rely on: a change here breaks them.
DEFAULTS = {
    "n_threads": 6, "cpu": False, "n_GPUs": 1, "release_memory": False, "seed": 1,
    "precision": "single",
    "dir_data": str(ROOT / "dataset"), "dir_demo": str(ROOT / "test"),
    "data_train": ((None, "DIV2K"),), "data_test": ("DIV2K",),
    "data_range": ((1, 800), (801, 810)), "ext": "sep",
    "scale": 4, "patch_size": 192, "rgb_range": 255, "n_colors": 3,
    "no_augment": False, "model": "KRGN", "pre_train": "", "n_feats": 64, "n_resgroups": 9, "groups": 0, "dilation": 3,
    "act": "lrelu", "n_resblocks": 16, "res_scale": 1, "reduction": 16, "recalibrate": False,
    "kernels": "recalibrated", "basis": "trained", "epochs": 300, "test_every": 1000, "batch_size": 16,
    "val_every": 1, "best_by": "",
    "split_batch": 1, "reset": False, "load": "", "resume": 0,
    "override": (), "auto_resume": False, "save_every": 10, "compile": False, "schedule": "step",
    "warmup": 0, "ema": 0, "lr": 1e-4, "decay": (200,), "gamma": 0.5,
    "optimizer": "ADAM", "momentum": 0.9, "betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0, "gclip": 0,
    "teacher": "", "distill": 1, "teacher_views": 8,
    "vgg_weights": "", "degradation": "bicubic", "tile": 0, "metric_channel": "y", "perceptual": (),
    "loss": ((1.0, "L1"),), "skip_threshold": 1e8, "test_only": False, "chop": False, "self_ensemble": False,
    "dir_experiment": str(ROOT / "experiment"), "save": "test", "tracker": "tensorboard", "no_tensorboard": False,
    "save_models": False, "print_every": 100,
    "save_results": False, "save_gt": False,
}  # fmt: skip


def test_flags_and_defaults_are_frozen():
    assert parse_args([]).values() == DEFAULTS


def test_published_launch_line():
    """Section 6 of the facts, as it stands."""
    options = parse_args(
        "--n_GPUs 4 --n_threads 8 --model KRGN --scale 4 --n_feats 64 --n_resgroups 9 --act lrelu --dilation 3 "
        "--pre_train pre_train_model_path --save train_ckpt --data_test Set5+Set14+B100+Urban100+Manga109 "
        "--batch_size 64 --patch_size 256 --save_results --save_models --lr 0.0005 "
        "--decay 200-400-600-800-1000-1200 --epochs 0".split()
    )
    assert options.data_test == ("Set5", "Set14", "B100", "Urban100", "Manga109")
    assert options.decay == (200, 400, 600, 800, 1000, 1200)
    assert options.epochs == 0
    assert options.lr == 0.0005


def test_typed_values():
    options = parse_args("--loss 5*L1+0.1*MSE --betas 0.5 0.9 --data_range 1-20/21-25 --rgb_range 1".split())
    assert options.loss == ((5.0, "L1"), (0.1, "MSE"))
    assert parse_args(["--loss", "5*VGG54+0.15*GAN"]).loss == ((5.0, "VGG54"), (0.15, "GAN"))
    assert parse_args(["--loss", "WGAN-GP"]).loss == ((1.0, "WGAN_GP"),)
    assert parse_args(["--loss", "1e+2*L1+2.5E+1*MSE+FFT"]).loss == ((100.0, "L1"), (25.0, "MSE"), (1.0, "FFT"))
    assert parse_args(["--data_train", "1e+2*A+3*B1e"]).data_train == ((100.0, "A"), (3.0, "B1e"))
    stored = checked_values(parse_args(["--loss", "1e16*L1"]).values())  # whose weight Python writes 1e+16
    assert stored["loss"] == ((1e16, "L1"),)
    assert parse_args(["--data_train", "A+B"]).data_train == ((None, "A"), (None, "B"))
    assert parse_args(["--data_train", "3*A+0.5*B"]).data_train == ((3.0, "A"), (0.5, "B"))
    assert tuple(options.betas) == (0.5, 0.9)
    assert options.data_range == ((1, 20), (21, 25))
    assert options.given == {"loss", "betas", "data_range", "rgb_range"}


def test_options_are_read_only():
    options = parse_args([])
    with pytest.raises(AttributeError, match="read-only"):
        options.scale = 2
    changed = options.replace(scale=2)
    assert (options.scale, changed.scale) == (4, 2)
    with pytest.raises(OptionError, match="--groups"):
        options.replace(groups=5)


MISTAKES = {
    "--scale 0": ("--scale", "'0'"),
    "--scale 2+3": ("--scale", "'2+3'", "give one"),
    "--patch_size 100 --scale 3": ("--patch_size 100", "--scale 3", "99 or 102"),
    "--n_feats 64 --groups 5": ("--n_feats 64", "--groups 5"),
    "--model EDSRR": ("--model", "EDSRR", "KRGN"),
    "--loss 1*L7": ("--loss", "L7", "L1, MSE, Charbonnier, FFT"),
    "--loss x*L1": ("--loss", "'x'"),
    "--optimizer LION": ("--optimizer", "LION", "ADAM"),
    "--decay 200--400": ("--decay", "200-400-600"),
    "--decay 400-200": ("--decay", "rising"),
    "--save ../elsewhere": ("--save", "../elsewhere"),
    "--save /tmp/elsewhere": ("--save", "/tmp/elsewhere"),
    "--save .": ("--save",),
    "--load ../elsewhere": ("--load",),
    "--no_such_flag": ("--no_such_flag",),
    "--lr -1": ("--lr", "above 0"),
    "--lr nan": ("--lr",),
    "--betas 0.9 1.5": ("--betas", "below 1"),
    "--data_range 800": ("--data_range", "1-800/801-810"),
    "--data_range 9-1/2-3": ("--data_range", "backwards"),
    "--data_test Set5+": ("--data_test",),
    "--data_test Set5+Set5": ("--data_test", "twice"),
    "--n_GPUs 0": ("--n_GPUs",),
    "--n_GPUs 2 --compile": ("--compile", "--n_GPUs 2", "torchrun"),
    "--batch_size 4 --split_batch 8": ("--split_batch 8", "--batch_size 4"),
    "--kernels plain --basis frozen": ("--basis frozen", "--kernels plain"),
    "--load a --reset": ("--reset", "--load"),
    "--load a --save b": ("--load a", "--save b"),
    "--override lr": ("--override", "--load"),
    "--schedule cosine --epochs 0": ("--schedule cosine", "--epochs"),
    "--val_every 0": ("--val_every", "'0'", "at least 1"),
    "--best_by Set5": ("--best_by", "'Set5'", "SET:METRIC", "Set5:PSNR"),
    "--best_by Set5:MSE": ("--best_by", "PSNR, SSIM, LPIPS, DISTS"),
    "--best_by :PSNR": ("--best_by", "SET:METRIC"),
    "--best_by Set5:PSNR": ("--best_by Set5:PSNR", "--data_test DIV2K", "add Set5"),
    "--best_by Demo:PSNR --data_test Set5+Demo": ("--best_by Demo:PSNR", "no HR images"),
    "--best_by Set5:lpips --data_test Set5 --perceptual dists": ("LPIPS is not measured", "--perceptual dists+lpips"),
    "--load=": ("--load is empty",),
    "--pre_train=": ("--pre_train is empty",),
    "--seed 99999999999999999999": ("--seed", "at most"),
    "--data_test ../Set5": ("--data_test", "plain names"),
    "--data_train 2*A+B": ("--data_train", "every set a weight"),
    "--data_train 0*A+1*B": ("--data_train", "above 0"),
    "--data_test Set5/": ("--data_test", "plain names"),
    "--loss 1*L1+2*L1": ("--loss", "twice"),
    "--loss 5*VGG54+0.1*GNA": ("--loss", "GNA", "VGG54, GAN, RGAN, WGAN_GP"),
    "--loss 1*GAN+1*RGAN": ("1*GAN+1*RGAN", "two discriminators"),
    "--loss 1*VGG22 --n_colors 1": ("1*VGG22", "--n_colors 1"),
    "--loss 1*L1+1*GAN --patch_size 24 --scale 2": ("--patch_size 24", "32"),
    "--degradation bicubic+jpeg0": ("--degradation", "1 to 100"),
    "--degradation blur0+bicubic": ("--degradation", "blur1.6"),
    "--degradation jpeg40+bicubic": ("--degradation", "bicubic+jpegQ"),
    "--chop --tile 64": ("--chop", "--tile 64"),
    "--ema 1": ("--ema", "below 1"),
    "--resume 3": ("--resume 3", "--load"),
    "--test_only": ("--test_only", "--pre_train"),
    "--test_only --load a": ("--load", "--pre_train"),
    "--test_only --pre_train x --reset": ("--reset",),
    "--ext png": ("--ext", "sep_reset"),
    "--auto_resume --reset": ("--reset", "--auto_resume"),
    "--auto_resume --load a": ("--auto_resume", "--load a"),
    "--auto_resume --test_only --pre_train x": ("--auto_resume", "--test_only"),
    "--auto_resume --override scale": ("--override scale", "--pre_train"),
    "--auto_resume --override lrr": ("--override lrr", "is no flag"),
    "--auto_resume --resume 3": ("--resume 3", "--load"),
    "--tracker comet": ("--tracker", "tensorboard", "wandb", "mlflow", "none"),
    "--tracker wandb --no_tensorboard": ("--tracker wandb", "--no_tensorboard"),
    "--epoch 3": ("--epoch",),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_every_mistake_gets_one_line(line, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(line.split())
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert len(said.splitlines()) == 1
    assert all(word in said for word in MISTAKES[line]), said


def test_a_mistake_on_the_real_command_line():
    run = command("main.py", "--scale", "0")
    assert_one_line(run, "--scale", "'0'")
    assert run.returncode == 2


def test_every_name_has_its_network_or_loss():
    """The tables of names, which are read without torch, against what there is."""
    assert set(NETWORKS) == set(MODELS)
    assert set(PERCEPTUAL) == set(LAYERS)
    for name in PIXELWISE:
        assert Loss(((1.0, name),)).names == [name]


def test_help_has_every_flag_with_an_explanation():
    parser = build_parser()
    assert all(action.help for action in parser._actions)
    assert "HR pixels" in parser.format_help()


def test_going_on_keeps_the_experiment_and_lets_the_rest_change():
    stored = parse_args("--scale 2 --lr 0.01 --epochs 5 --save run".split()).values()
    stored["data_train"] = ((0.0, "DIV2K"),)  # as older state files have it
    options = continue_with(parse_args("--load run --epochs 9 --cpu --betas 0.9 0.999".split()), stored, ["lr"])
    assert (options.scale, options.lr, options.epochs, options.cpu, options.save) == (2, 0.01, 9, True, "run")
    assert options.data_train == ((None, "DIV2K"),)
    with pytest.raises(OptionError, match=r"--lr 0.5.*0.01.*--override lr"):
        continue_with(parse_args("--load run --lr 0.5".split()), stored, [])
    # What the run's user wrote out stays meant, and so does what this one did.
    assert options.given == {"lr", "load", "epochs", "cpu", "betas"}
    # Another machine: its hardware counts, not that of the one that began.
    begun = parse_args("--n_GPUs 4 --cpu --save run".split()).values()
    moved = continue_with(parse_args(["--load", "run"]), begun, ["n_GPUs", "cpu"])
    assert (moved.n_GPUs, moved.cpu) == (1, False)
    assert moved.given == {"load"}


def test_no_tensorboard_is_tracker_none_in_old_and_new_command_lines():
    assert parse_args(["--no_tensorboard"]).tracker == "none"
    begun = parse_args("--save run --no_tensorboard".split()).values()
    older = {name: value for name, value in begun.items() if name not in ("tracker", "auto_resume")}
    for stored in (begun, older):
        assert continue_with(parse_args("--load run".split()), stored, ["no_tensorboard"]).tracker == "none"
        changed = continue_with(parse_args("--load run --tracker wandb".split()), stored, ["no_tensorboard"])
        assert (changed.tracker, changed.no_tensorboard) == ("wandb", False)
        # And a later session of that one.
        again = continue_with(parse_args("--load run".split()), changed.values(), sorted(changed.given))
        assert again.tracker == "wandb"


def test_auto_resume_goes_on_with_the_run_that_save_names():
    begun = parse_args("--save run --auto_resume --scale 2 --precision auto".split()).replace(precision="bf16").values()
    for line in ("--save run --auto_resume --scale 2 --precision auto", "--load run", "--save run --auto_resume"):
        options = continue_with(parse_args(line.split()), begun, ["save", "auto_resume", "scale", "precision"])
        assert (options.load, options.save, options.scale, options.precision) == ("run", "run", 2, "bf16")
        assert options.auto_resume == ("--auto_resume" in line)
    with pytest.raises(OptionError, match=r"--scale 3, but --auto_resume --save run was started with 2: .*--pre_train"):
        continue_with(parse_args("--save run --auto_resume --scale 3".split()), begun, [])


def test_released_networks_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = parse_args("--pre_train KRGN_x4".split()).pre_train
    assert path == str(Path(__file__).parent.parent / "experiment/KRGN_x4/model/model_best.pt")
    for name in ("./KRGN_x4", "KRGN_x5", "KRGN_x4.pt"):
        assert parse_args(["--pre_train", name]).pre_train == str(tmp_path / name)


def test_values_that_a_file_or_a_run_supplies_are_not_checked_before():
    """A patch of 27 is no multiple of the default scale 4, but the file may be x3."""
    parse_args("--pre_train x3.pt --patch_size 27".split())
    parse_args("--load x3run --patch_size 27".split())
    with pytest.raises(OptionError, match="--patch_size 27"):
        parse_args("--pre_train x4.pt --patch_size 27".split()).replace(scale=4)
    options = parse_args("--dir_data some/where --pre_train x.pt".split())
    assert os.path.isabs(options.dir_data)
    assert os.path.isabs(options.pre_train)


@pytest.mark.parametrize("text", ["1_0", "٣", "１２", " 1", "0x1", "1e400", "nan", "inf", "", "1\n"])  # noqa: RUF001
@pytest.mark.parametrize("flag", ["--lr", "--epochs", "--scale", "--decay", "--ema", "--tile"])
def test_what_python_reads_as_a_number_but_nobody_means(flag, text, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args([f"{flag}={text}"])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\u202eb", "a\udcff"])
@pytest.mark.parametrize("flag", ["--save", "--load", "--data_test", "--data_train"])
def test_names_that_cannot_be_printed_are_refused(flag, name, capsys):
    with pytest.raises(SystemExit):
        parse_args([flag, name])
    said = capsys.readouterr().err
    assert said.endswith("\n")
    assert said[:-1].isprintable()
