"""Distillation (--teacher): SR images are made once, patches of them fit those of HR, and runs resume exactly."""

import re

import numpy as np
import pytest
import torch
from conftest import small_run
from helpers import equal, history, launch, wait_for, weights
from test_distributed import run

from data import build_train_set, train_batches
from data.cache import cache_path, open_cached
from data.color import to_tensor
from data.image import read_image
from evaluation.runner import ImageRunner
from model import external
from model.checkpoint import pack
from model.krgn import KRGN
from option import parse_args
from runtime.errors import UserError
from runtime.files import save_tensors
from train.teacher import load_teacher, teach

CPU = torch.device("cpu")


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(7)
    path = tmp_path / "teacher.pt"
    save_tensors(path, pack(KRGN(scale=2, n_feats=8, n_resgroups=2), "KRGN"))
    return path


def taught_set(small_set, teacher, views=8):
    found = build_train_set(parse_args(small_run(small_set, "--teacher", str(teacher))))
    teach(found, str(teacher), CPU, views=views)
    return found


@pytest.mark.parametrize("views", [8, 1])
def test_targets_are_the_output_and_made_once(small_set, teacher, views):
    taught_set(small_set, teacher, 9 - views)  # those of the other number of views are other images
    found = taught_set(small_set, teacher, views)
    runner = ImageRunner(load_teacher(str(teacher)), device=CPU, scale=2, self_ensemble=views == 8)
    targets = {pair.name: cache_path(of.cache_root, pair.lr, found.teacher) for pair, of in found.images}
    for pair, _ in found.images:
        with torch.inference_mode():
            expected = runner.upscale(to_tensor(read_image(pair.lr), 3)).sr
        assert np.array_equal(open_cached(targets[pair.name]), expected.permute(1, 2, 0).numpy())
    made = {path: path.stat().st_mtime_ns for path in targets.values()}
    ino = {path: path.stat().st_ino for path in targets.values()}
    next(iter(targets.values())).unlink()
    taught_set(small_set, teacher, views)
    assert {path: path.stat().st_mtime_ns for path in targets.values()} == made
    assert sum(path.stat().st_ino != ino[path] for path in targets.values()) <= 1  # only the missing one is made


def test_patches_fit_those_of_hr_in_every_view(small_set, teacher):
    """With HR in the place of the teacher's output, its patches are HR's."""
    found = taught_set(small_set, teacher)
    for pair, of in found.images:
        target = cache_path(of.cache_root, pair.lr, found.teacher)
        hr = open_cached(cache_path(of.cache_root, pair.hr))
        height, width = open_cached(target).shape[:2]
        np.save(target.with_suffix(""), hr[:height, :width])
    for n_threads in (0, 2):
        batches = train_batches(found, batch_size=8, n_threads=n_threads)
        for _ in range(3):
            batch = next(batches)
            assert batch.taught.shape == batch.hr.shape
            assert torch.equal(batch.taught, batch.hr)
        batches.close()
    lr, hr, name, taught = found[3]
    assert torch.equal(hr, taught)
    assert (lr.shape[-1] * 2, isinstance(name, str)) == (hr.shape[-1], True)


def test_training_learns_from_the_teacher_and_resumes_exactly(small_set, teacher, capsys):
    experiments = small_set.parent / "experiment"
    flags = ["--teacher", teacher, "--distill", "0.5", "--ema", "0.9", "--split_batch", "2"]
    launch(*small_run(small_set, *flags, "--epochs", "1"))
    launch("--load", "small", "--epochs", "2", "--cpu", "--dir_experiment", experiments)
    launch(*small_run(small_set, *flags, "--save", "whole"))
    assert equal(weights(experiments / "small"), weights(experiments / "whole"))
    row = history(experiments / "whole")[0]
    assert float(row["teacher"]) > 0
    assert float(row["loss"]) == pytest.approx(float(row["L1"]) + float(row["teacher"]))
    launch(*small_run(small_set, "--save", "alone"))
    assert not equal(weights(experiments / "alone"), weights(experiments / "whole"))
    assert re.search(r"teacher: upscaling 4 training images[^$]*its SR images of 4 images", capsys.readouterr().out)

    # The weight and the views may change; the teacher may not.
    goes_on = ("--load", "small", "--epochs", "3", "--dir_experiment", experiments)
    launch(*goes_on, "--distill", "0", "--override", "distill")
    assert float(history(experiments / "small")[-1]["teacher"]) == 0
    goes_on = ("--load", "small", "--epochs", "4", "--dir_experiment", experiments)
    capsys.readouterr()
    launch(*goes_on, "--teacher_views", "1", "--override", "teacher_views")
    assert "without self-ensemble" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--teacher \S+other\.pt, but --load small was started with"):
        launch(*goes_on, "--teacher", teacher.with_name("other.pt"))


def test_processes_make_their_parts_and_train_as_one_does(small_set, teacher):
    experiments = small_set.parent / "experiment"
    flags = small_run(small_set, "--teacher", teacher, "--epochs", "1")
    assert run(2, *flags).returncode == 0
    launch(*flags, "--save", "alone")
    a, b = weights(experiments / "small"), weights(experiments / "alone")
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)


def test_a_stopped_making_goes_on(small_set, teacher):
    from forked import Program

    process = Program("main.py", *small_run(small_set, "--teacher", teacher, "--epochs", "1"))
    wait_for(process, "teacher: upscaling")
    process.kill()
    process.communicate()
    launch(*small_run(small_set, "--teacher", teacher, "--epochs", "1"))
    assert len(history(small_set.parent / "experiment/small")) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale", "3"], r"teacher\.pt: is a network of --scale 2, this run has 3: give a teacher of --scale 3"),
        (["--n_colors", "1"], r"is a network of --n_colors 3, this run has 1"),
        (["--ext", "img"], r"the decoded copies of Small, which has none: drop --ext img"),
        (["--teacher", "missing.pt"], r"missing\.pt: no such file"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(small_set, teacher, flags, message):
    with pytest.raises(UserError, match=message):
        launch(*small_run(small_set, "--teacher", teacher, *flags))
    assert not (small_set.parent / "experiment/small").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distill", "0.5"], "--distill 0.5 is the weight of a teacher: give its --teacher FILE"),
        (["--teacher_views", "1"], "--teacher_views 1 is of a teacher: give its --teacher FILE"),
        (["--teacher", "x.pt", "--degradation", "bicubic+jpeg40"], "--teacher with --degradation bicubic+jpeg40"),
    ],
)
def test_flags_that_contradict_one_another(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(flags)
    assert message in capsys.readouterr().err


def test_a_network_that_spandrel_reads_teaches(small_set, tmp_path):
    try:
        external.import_spandrel("this test")
    except UserError as error:
        pytest.skip(str(error))
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    torch.manual_seed(1)
    network = SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=1, upscale=2)
    torch.save({"params": network.state_dict()}, tmp_path / "compact.pth")
    found = taught_set(small_set, tmp_path / "compact.pth")
    assert torch.isfinite(found[0][3].float()).all()
