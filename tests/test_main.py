"""The main job from its command lines: train, resume, test, fold; what a run leaves; how it ends when it must."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_one_line, command, program, small_run
from forked import Program
from helpers import equal, history, launch, randomise, scores, wait_for, weights
from PIL import Image

import export
from data import build_test_sets, usable_cores
from data.image import read_image, write_png
from evaluation.evaluate import Evaluator, evaluate
from evaluation.metrics import Scores
from model.checkpoint import pack, rebuild, unpack
from model.krgn import KRGN
from model.networks import build_model
from model.recalibration import is_recalibrated
from model.weights import load_tensors
from option import parse_args
from runtime.errors import UserError
from runtime.files import save_tensors
from runtime.hardware import seed_everything
from train import monitor


@pytest.mark.curves
def test_train_test_fold(small_set, capsys):
    """The whole way of one network, and everything it leaves."""
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--epochs", "3", "--save_models"))
    rows = history(folder)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert {path.name for path in folder.iterdir()} == {
        ".experiment", ".lock", "config.txt", "run.json", "log.txt", "history.csv", "curves.png", "curves.pdf",
        "state.pt", "model", "tensorboard",
    }  # fmt: skip
    kept = {f"model_{name}.{form}" for name in ("latest", "best", 1, 2, 3) for form in ("pt", "safetensors")}
    kept |= {f"state_{epoch}.pt" for epoch in (1, 2, 3)}
    assert {path.name for path in (folder / "model").iterdir()} == kept
    config = (folder / "config.txt").read_text()
    assert all(word in config for word in ("n_feats: 8", "torch: ", "git commit: ", "lr: 0.001"))
    said = (folder / "log.txt").read_text()
    assert "recalibrated kernels, trained basis" in said
    assert "[2/4] loss" in said
    assert Image.open(folder / "curves.png").size[0] > 500
    # Transforms are trained: they have left zero.
    assert any(tensor.abs().max() > 0 for name, tensor in weights(folder).items() if name.endswith(".transform"))

    # Testing the checkpoint, its fold, and validation agree.
    best = max(rows, key=lambda row: float(row["Small PSNR"]))
    common = ["--cpu", "--test_only", "--dir_data", small_set, "--data_test", "Small", "--data_range", "1-4/5-6",
              "--dir_experiment", small_set.parent / "experiment"]  # fmt: skip
    launch(*common, "--pre_train", folder / "model/model_best.pt", "--save", "tested", "--save_results", "--save_gt")
    tested = scores(folder.parent / "tested")
    assert np.mean([psnr for _, psnr, _ in tested]) == pytest.approx(float(best["Small PSNR"]), abs=1e-9)
    export.main(["--pre_train", str(folder / "model/model_best.pt"), "--out", str(folder / "export")])
    launch(*common, "--pre_train", folder / "export/KRGN_x2.safetensors", "--save", "tested_fold", "--save_results")
    folded = scores(folder.parent / "tested_fold")
    # main.py folds before it tests: the training form itself, run as it is, scores the same.
    network = rebuild(unpack(load_tensors(folder / "model/model_best.pt"), "best"))
    assert is_recalibrated(network)
    test_set = build_test_sets(parse_args([*map(str, common), "--pre_train", "-", "--scale", "2"]))[0]
    unfolded = [tuple(row.values()) for row in evaluate(network, test_set, device=torch.device("cpu")).rows]
    assert [row[0] for row in tested] == [row[0] for row in folded] == [row[0] for row in unfolded] == ["0005", "0006"]
    assert np.allclose([row[1:] for row in tested], [row[1:] for row in folded], atol=1e-4)
    assert np.allclose([row[1:] for row in unfolded], [row[1:] for row in folded], atol=1e-4)

    results = folder.parent / "tested/results-Small"
    kinds = [f"{image}_x2_{kind}.png" for image in ("0005", "0006") for kind in ("HR", "LR", "SR")]
    assert sorted(path.name for path in results.iterdir()) == kinds
    assert read_image(results / "0005_x2_SR.png").shape == (60, 64, 3)
    assert read_image(results / "0005_x2_LR.png").shape == (30, 32, 3)
    assert "Y channel" in capsys.readouterr().out


def test_a_stopped_run_goes_on_exactly(small_set):
    """Two epochs and then two more are the same, bit for bit, as four at once; the rate decays once."""
    at_once, in_parts = (small_set.parent / f"experiment/{name}" for name in ("at_once", "in_parts"))
    flags = small_run(small_set, "--decay", "1-3", "--n_threads", "2")
    launch(*flags, "--save", "at_once", "--epochs", "4")
    launch(*flags, "--save", "in_parts", "--epochs", "2")
    launch("--cpu", "--load", "in_parts", "--epochs", "4", "--dir_experiment", small_set.parent / "experiment")
    assert equal(weights(at_once), weights(in_parts))
    for a, b in zip(history(at_once), history(in_parts), strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    assert [float(row["lr"]) for row in history(in_parts)] == [1e-3, 5e-4, 5e-4, 2.5e-4]
    state_a, state_b = load_tensors(at_once / "state.pt"), load_tensors(in_parts / "state.pt")
    for a, b in zip(state_a["optimizer"]["state"].values(), state_b["optimizer"]["state"].values(), strict=True):
        assert equal(a, b)
    log = (in_parts / "log.txt").read_text()
    assert log.count("[epoch 1] learning rate") == 1
    assert log.count("[epoch 4] learning rate") == 1


def test_resume_goes_back_to_an_epoch(small_set):
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--save_models", "--epochs", "3"))
    after_three = weights(folder)
    load = ["--cpu", "--load", "small", "--dir_experiment", small_set.parent / "experiment"]
    launch(*load, "--resume", "1", "--epochs", "2")
    assert len(history(folder)) == 2
    launch(*load, "--epochs", "3")
    assert equal(weights(folder), after_three)
    with pytest.raises(UserError, match="epochs 1, 2, 3 were kept"):
        launch(*load, "--resume", "7")


def test_going_on_with_a_finished_run_does_nothing(small_set, capsys):
    launch(*small_run(small_set))
    launch("--cpu", "--load", "small", "--dir_experiment", small_set.parent / "experiment")
    assert "nothing to do: 2 of 2 epochs are done" in capsys.readouterr().out


def test_going_on_with_other_flags_is_refused(small_set):
    launch(*small_run(small_set, "--epochs", "1"))
    with pytest.raises(UserError, match=r"--batch_size 8, but --load small was started with 4"):
        launch("--load", "small", "--batch_size", "8", "--dir_experiment", small_set.parent / "experiment")


def test_two_stages(small_set, capsys):
    """RefConv's recipe: train plain kernels, then recalibrate over them as a frozen basis."""
    experiments = small_set.parent / "experiment"
    launch(*small_run(small_set, "--kernels", "plain", "--save", "plain", "--epochs", "1"))
    plain = weights(experiments / "plain", "best")
    assert not any(name.endswith(".transform") for name in plain)
    launch(
        *small_run(small_set, "--save", "second", "--epochs", "1"),
        *("--pre_train", experiments / "plain/model/model_best.pt"),
    )
    second = weights(experiments / "second")
    assert "recalibrated kernels, frozen basis" in capsys.readouterr().out
    for name in second:
        if name.endswith(".transform"):
            assert second[name].abs().max() > 0
            basis = name.replace(".transform", ".weight")
            assert torch.equal(second[basis], plain[basis])
    assert not torch.equal(second["head_conv.weight"], plain["head_conv.weight"])


def test_split_batch_gives_the_same_training(small_set):
    """Five patches in parts of two, two and one: each part counts by its share."""
    experiments = small_set.parent / "experiment"
    flags = small_run(small_set, "--epochs", "1", "--batch_size", "5")
    launch(*flags, "--save", "whole")
    launch(*flags, "--save", "split", "--split_batch", "3")
    whole, split = weights(experiments / "whole"), weights(experiments / "split")
    assert all(torch.allclose(whole[name], split[name], atol=2e-4) for name in whole)
    a, b = (float(history(experiments / name)[0]["loss"]) for name in ("whole", "split"))
    assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ("--optimizer", "SGD", "--lr", "1e-5", "--gclip", "0.1"),
        ("--optimizer", "RMSprop", "--loss", "1*L1+0.01*MSE"),
        ("--optimizer", "ADAMW", "--weight_decay", "0.01", "--rgb_range", "1"),
        ("--n_colors", "1", "--chop", "--self_ensemble", "--ext", "img"),
        ("--ext", "sep_reset", "--groups", "2", "--no_augment", "--test_every", "0"),
        ("--precision", "bf16", "--optimizer", "MUON"),
    ],
)
def test_every_kind_of_training(small_set, flags):
    launch(*small_run(small_set, "--epochs", "1", *flags))
    row = history(small_set.parent / "experiment/small")[0]
    assert np.isfinite(float(row["loss"]))
    assert float(row["Small PSNR"]) > 5


def test_a_run_that_diverges_stops_with_its_last_good_state(small_set, capsys, monkeypatch):
    folder = small_set.parent / "experiment/small"
    monkeypatch.setattr(monitor, "MAX_SKIPPED", 20)
    launch(*small_run(small_set, "--optimizer", "SGD", "--lr", "1e-6", "--epochs", "1", "--test_every", "30"))
    good = (folder / "state.pt").read_bytes()
    go_on = ["--cpu", "--load", "small", "--epochs", "2", "--dir_experiment", small_set.parent / "experiment"]
    with pytest.raises(UserError, match=r"20 batches in a row.*--load small --override lr --lr 500000"):
        launch(*go_on, "--lr", "1e6", "--override", "lr")
    assert (folder / "state.pt").read_bytes() == good
    assert "skipped: its loss is" in capsys.readouterr().out
    with open(folder / "skipped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert sorted(rows[0]["images"].split()) == ["0001", "0002", "0003", "0004"]
    # The user's way out, as the message says it.
    launch(*go_on, "--lr", "1e-6", "--override", "lr")
    assert history(folder)[1]["skipped"] == "0"


def test_a_whole_epoch_of_skipped_batches_is_not_saved(small_set, monkeypatch, capsys):
    """Also where an epoch is shorter than the patience: neither the state nor the released weights are replaced."""
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--epochs", "1"))
    good = {name: (folder / name).read_bytes() for name in ("state.pt", "model/model_latest.pt", "model/model_best.pt")}
    monkeypatch.setattr(monitor, "MAX_SKIPPED", 10)
    with pytest.raises(UserError, match="10 batches in a row"):
        launch("--cpu", "--load", "small", "--epochs", "9", "--dir_experiment", folder.parent,
               "--skip_threshold", "1e-9", "--override", "skip_threshold")  # fmt: skip
    assert "not saved" in capsys.readouterr().out
    assert {name: (folder / name).read_bytes() for name in good} == good


def test_gradients_are_clipped_and_weights_decay(small_set):
    """With SGD the first step is -rate * gradient: clipped it is no longer than rate * limit; decay shrinks weights."""
    experiments = small_set.parent / "experiment"
    flags = small_run(
        small_set, "--optimizer", "SGD", "--momentum", "0", "--epochs", "1", "--test_every", "1", "--lr", "0.01"
    )
    launch(*flags, "--save", "free")
    launch(*flags, "--save", "clipped", "--gclip", "1e-3")
    launch(*flags, "--save", "decayed", "--weight_decay", "0.5")
    torch.manual_seed(1)
    args = parse_args(list(map(str, flags)))
    seed_everything(args.seed)
    start = build_model(args).state_dict()
    moved = {
        name: {k: (t - start[k]).abs().max() for k, t in weights(experiments / name).items()}
        for name in ("free", "clipped")
    }
    assert max(moved["free"].values()) > 1e-3
    assert 0 < max(moved["clipped"].values()) < 1.1e-5
    free, decayed = weights(experiments / "free"), weights(experiments / "decayed")
    bias = "upsampler.0.bias"
    assert torch.allclose(free[bias] - decayed[bias], 0.01 * 0.5 * start[bias], atol=1e-6)


def test_testing_runs_the_folded_network_as_asked(small_set, monkeypatch):
    """What the options say reaches the network: folded, in quadrants, in eight views."""
    weights_path = small_set / "weights.pt"
    save_tensors(weights_path, pack(randomise(KRGN(scale=2, n_feats=8, n_resgroups=1)), "KRGN"))
    seen = []

    def forward(self, image):
        seen.extend([(is_recalibrated(self), tuple(image.shape[-2:]))] * len(image))  # small images come as a batch
        return original(self, image)

    original = KRGN.forward
    monkeypatch.setattr(KRGN, "forward", forward)
    common = ("--cpu", "--test_only", "--pre_train", weights_path, "--dir_data", small_set, "--data_test", "Small",
              "--data_range", "1-1/5-5", "--dir_experiment", small_set / "experiment")  # fmt: skip
    expected = {(): [(30, 32)], ("--chop",): [(25, 26)] * 4, ("--self_ensemble",): [(30, 32), (32, 30)] * 4}
    for flags, sizes in expected.items():
        seen.clear()
        launch(*common, *flags)
        assert sorted(size for _, size in seen) == sorted(sizes)
        assert not any(recalibrated for recalibrated, _ in seen)


def test_the_best_is_the_best_also_after_going_back(small_set, monkeypatch):
    """PSNR 20, 30, 10: the second epoch is the best; going back to the first makes that the best again."""
    folder = small_set.parent / "experiment/small"
    values = iter([20.0, 30.0, 10.0, 5.0])
    monkeypatch.setattr(
        Evaluator, "evaluate", lambda *a, **k: Scores([{"image": "x", "PSNR": next(values), "SSIM": 0.5}])
    )
    launch(*small_run(small_set, "--epochs", "3", "--save_models"))
    assert equal(weights(folder, "best"), weights(folder, "2"))
    launch("--cpu", "--load", "small", "--resume", "1", "--epochs", "2", "--dir_experiment", folder.parent)
    assert equal(weights(folder, "best"), weights(folder, "1"))


def test_what_cannot_be_scored_is_said(small_set, photo, capsys):
    for name, side in (("large", 40), ("tiny", 8)):
        write_png(small_set / f"benchmark/Mixed/HR/{name}.png", photo[:side, :side])
    state = KRGN(scale=2, n_feats=8, n_resgroups=1)
    common = ("--cpu", "--test_only", "--dir_data", small_set, "--data_test", "Mixed",
              "--dir_experiment", small_set / "experiment")  # fmt: skip
    save_tensors(small_set / "good.pt", pack(state, "KRGN"))
    launch(*common, "--pre_train", small_set / "good.pt", "--save", "good")
    assert "too small to score, left out of the means: tiny" in capsys.readouterr().out
    assert [row[0] for row in scores(small_set / "experiment/good", "Mixed")] == ["large"]
    state.head_conv.bias.data.fill_(3e38)  # finite, unlike what is computed from it
    save_tensors(small_set / "bad.pt", pack(state, "KRGN"))
    launch(*common, "--pre_train", small_set / "bad.pt", "--save", "bad")
    said = capsys.readouterr().out
    assert "output for large is not finite" in said
    assert "PSNR nan" in said


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(2)},
        {"format": "KRGN framework checkpoint 1", "model": {"a": torch.zeros(1)}},
        {"sub_mean.bias": torch.zeros(3)},
        {"act": "gelu"},
        {"dilation": 0},
        {"rgb": 0},
        {"colors": 4},
    ],
)
def test_strange_files_of_weights_get_one_line(small_set, content):
    path = small_set / "strange.pt"
    if content.keys() & {"act", "dilation", "rgb", "colors"}:
        packed = pack(KRGN(scale=2, n_feats=8, n_resgroups=1, n_colors=content.get("colors", 3)), "KRGN")
        packed["facts"] |= {name: value for name, value in content.items() if name in ("act", "dilation")}
        if "rgb" in content:
            packed["model"]["sub_mean.bias"].zero_()
        content = packed
    torch.save(content, path)
    with pytest.raises(UserError, match=r"strange\.pt"):
        launch(
            "--cpu", "--test_only", "--pre_train", path, "--dir_data", small_set, "--dir_experiment", small_set / "e"
        )


def test_a_run_with_other_images_does_not_go_on(small_set):
    launch(*small_run(small_set, "--epochs", "1", "--data_range", "1-3/5-6"))
    (small_set / "Small/Small_train_HR/0002.png").unlink()
    load = ("--cpu", "--load", "small", "--epochs", "2", "--dir_experiment", small_set.parent / "experiment")
    with pytest.raises(UserError, match=r"5-6.*5 images"):
        launch(*load)


def test_a_run_killed_before_its_first_state_may_start_again(small_set):
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--epochs", "1"))
    for path in (folder / "state.pt", *(folder / "model").iterdir()):
        path.unlink()
    launch(*small_run(small_set, "--epochs", "1"))


def test_own_images_without_ground_truth(small_set, photo, capsys):
    write_png(small_set / "mine/gray.png", photo[:20, :31, :1])
    weights_path = small_set / "weights.pt"
    save_tensors(weights_path, pack(KRGN(scale=3, n_feats=8, n_resgroups=1), "KRGN"))
    launch("--cpu", "--test_only", "--pre_train", weights_path, "--data_test", "Demo", "--dir_demo", small_set / "mine",
           "--dir_experiment", small_set / "experiment", "--save", "own")  # fmt: skip
    assert read_image(small_set / "experiment/own/results-Demo/gray_x3_SR.png").shape == (60, 93, 3)
    said = capsys.readouterr().out
    assert "no ground truth" in said
    assert "PSNR" not in said


# --- the experiment's folder ---


def test_an_existing_run_is_not_overwritten(small_set):
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--epochs", "1"))
    before = weights(folder)
    with pytest.raises(UserError, match=r"--load small.*--reset"):
        launch(*small_run(small_set, "--epochs", "1"))
    (folder / "notes.txt").write_text("mine")
    (folder / "results-Mine").mkdir()
    (folder / "results-Mine/notes.txt").write_text("mine too")
    (folder / "results-Mine/figure_for_paper.png").write_text("mine as well")
    (folder / "model/my_own_copy.pt").write_text("and this")
    # A mistake in the data must not cost the old run.
    with pytest.raises(UserError, match="Nothing"):
        launch(*small_run(small_set, "--reset", "--data_train", "Nothing"))
    assert equal(weights(folder), before)
    launch(*small_run(small_set, "--epochs", "1", "--reset", "--seed", "5"))
    assert not equal(weights(folder), before)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "results-Mine/notes.txt").read_text() == "mine too"
    assert (folder / "results-Mine/figure_for_paper.png").exists()
    assert (folder / "model/my_own_copy.pt").exists()
    assert (folder / "log.txt").read_text().count("[epoch 1] learning rate") == 1


def test_a_folder_of_somebody_else_is_left_alone(small_set):
    folder = small_set.parent / "experiment/small"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("five years")
    for reset in ([], ["--reset"]):
        with pytest.raises(UserError, match="was not made by this program"):
            launch(*small_run(small_set, *reset))
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_nothing_to_go_on_with(small_set):
    with pytest.raises(UserError, match="--load nowhere"):
        launch("--load", "nowhere", "--dir_experiment", small_set)


# --- how a run ends ---


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the workers in /proc")
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_and_ends_the_workers(small_set, signum, status):
    """Within an epoch, sent to the whole group as a terminal does; going on then gives the same weights."""
    experiments = small_set.parent / "experiment"
    flags = small_run(small_set, "--n_threads", "2", "--test_every", "80", "--print_every", "1", "--epochs", "1")
    process = Program("main.py", *flags)
    wait_for(process, "[5/80]")
    workers = children(process.pid)
    os.killpg(process.pid, signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert len(workers) == min(2, usable_cores())
    deadline = time.time() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    state = load_tensors(experiments / "small/state.pt")
    assert state["progress"]["epoch"] == 0
    assert 5 <= state["progress"]["batch"] < 80
    assert "--load small" in out

    launch("--cpu", "--load", "small", "--dir_experiment", experiments)
    launch(*flags, "--save", "undisturbed", "--n_threads", "0")
    assert equal(weights(experiments / "small"), weights(experiments / "undisturbed"))
    a, b = (history(experiments / name)[0]["loss"] for name in ("small", "undisturbed"))
    assert a == b


def test_failures_are_one_line_on_the_real_command_line(small_set, tmp_path):
    run = command("main.py", *small_run(small_set, "--data_train", "Nothing"))
    assert_one_line(run, "Nothing", "expected", "--dir_data")
    assert run.returncode == 1
    assert not (small_set.parent / "experiment").exists()
    bad = tmp_path / "weights.pt"
    bad.write_bytes(b"no weights")
    assert_one_line(program("main.py", "--cpu", "--test_only", "--pre_train", bad), str(bad), "damaged")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_more_gpus_than_there_are(small_set):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0,1"}
    run = command("main.py", "--n_GPUs", "4", env=environment)
    assert_one_line(run, "--n_GPUs 4", "0 GPUs", "CUDA_VISIBLE_DEVICES", "0,1", "--cpu")


def test_a_python_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    run = command("main.py", "--cpu", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert_one_line(run, "has no torch", ".venv/bin/activate", "requirements.txt")


def test_a_folder_that_cannot_be_written(small_set, tmp_path):
    (tmp_path / "file").write_text("no folder")
    flags = [*small_run(small_set), "--dir_experiment", str(tmp_path / "file/experiment")]
    with pytest.raises(UserError, match="cannot be written"):
        launch(*flags)


# --- published numbers ---


def test_published_cfgn_scores(shared, tmp_path, capsys):
    """Set5 of the published weights with the four quadrants: 32.32 / 0.8957, without a word about the network."""
    launch("--cpu", "--test_only", "--scale", "4", "--pre_train", shared / "weights/CFGN_x4.pt", "--dir_data", shared,
           "--data_test", "Set5", "--chop", "--ext", "img", "--dir_experiment", tmp_path, "--save", "cfgn")  # fmt: skip
    rows = scores(tmp_path / "cfgn", "Set5")
    assert len(rows) == 5
    assert np.mean([row[1] for row in rows]) == pytest.approx(32.32, abs=0.005)
    assert np.mean([row[2] for row in rows]) == pytest.approx(0.8957, abs=0.00005)
    said = capsys.readouterr().out
    assert "groups 32" in said
    assert "plain kernels" in said


# --- where there is a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("more", [(), ("--precision", "half"), ("--precision", "bf16", "--compile")], ids=" ".join)
def test_training_on_a_gpu(small_set, more):
    """With features enough for the fused kernels, and batches enough for half precision to find its scale."""
    experiments = small_set.parent / "experiment"
    flags = [flag for flag in small_run(small_set, *more) if flag != "--cpu"]
    launch(*flags, "--epochs", "3", "--n_threads", "2", "--n_feats", "16", "--test_every", "20")
    rows = history(experiments / "small")
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    launch("--load", "small", "--epochs", "4", "--dir_experiment", experiments)
    assert len(history(experiments / "small")) == 4
