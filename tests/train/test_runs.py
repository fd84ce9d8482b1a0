"""What stops a run, goes on with it, or comes beside it: changed flags, damaged states, signals, locks, full disks."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, small_run
from helpers import equal, history, launch, weights

from data.image import write_png
from evaluation.evaluate import Evaluator
from evaluation.metrics import Scores
from model.weights import load_tensors
from option import _STRUCTURE, build_parser, checked_values, parse_args
from reporting import figures
from runtime import files
from runtime.errors import UserError
from runtime.files import digest, save_tensors


def begun(small_set, *flags: str):
    """A run of one epoch of two batches; returns its folder."""
    launch(*small_run(small_set, "--test_every", "2", "--epochs", "1", "--no_tensorboard", *flags))
    return small_set.parent / "experiment/small"


def go_on(folder, epochs: int, *flags: str) -> None:
    common = ("--cpu", "--n_threads", "0", "--dir_experiment", folder.parent, "--load", folder.name)
    launch(*common, "--epochs", str(epochs), *flags)


def best_of(folder) -> tuple[float, int]:
    best = load_tensors(folder / "state.pt")["progress"]["best"]
    return best["psnr"], best["epoch"]


# --- flags that may change ---

# Another value for every flag that may be overridden; those of a line change together.
OVERRIDES = (
    "--data_test Other --best_by Other:SSIM --val_every 2 --tracker none --no_tensorboard --ext img "
    "--skip_threshold 7 --save_every 0 --print_every 1 --save_models",
    "--data_test Small+Other --data_range 1-2/6-6 --tile 16 --split_batch 2 --patch_size 32 --no_augment",
    "--data_test Demo --data_train Other+Small --data_range 1-2/5-6 --degradation blur+bicubic --precision bf16",
    "--data_train 1*Small+3*Other --data_range 1-2/5-6 --batch_size 3 --seed 5 --metric_channel rgb --save_results "
    "--save_gt",
    "--self_ensemble --test_every 1 --warmup 2 --schedule cosine --lr 1e-4 --decay 1-2 --gamma 0.3 --chop "
    "--ext sep_reset",
    "--test_every 0 --momentum 0.5 --betas 0.5 0.9 --epsilon 1e-4 --weight_decay 0.1 --gclip 0.5 --release_memory",
)
# What another machine, file or package is needed for, or what is no part of how a run goes on.
ELSEWHERE = {"n_GPUs", "compile", "perceptual", "vgg_weights", "cpu", "n_threads", "dir_data", "override"}
ELSEWHERE |= {"dir_demo", "dir_experiment", "save", "load", "auto_resume", "resume", "reset", "test_only", "epochs"}
ELSEWHERE |= {"help", "distill", "teacher_views"}


@pytest.fixture
def other_set(small_set, photo):
    for number in range(2):
        path = small_set / f"Other/Other_train_HR/{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(small_set / f"Small/Small_train_HR/{number + 1:04}.png", path)
    shutil.copytree(small_set / "Other/Other_train_HR", small_set / "benchmark/Other/HR")
    shutil.copytree(small_set / "Other/Other_train_HR", small_set / "mine")
    return small_set


def test_every_flag_that_may_change_is_tried():
    tried = {word.removeprefix("--") for line in OVERRIDES for word in line.split() if word.startswith("--")}
    assert tried == {action.dest for action in build_parser()._actions} - _STRUCTURE - ELSEWHERE


@pytest.mark.parametrize("line", OVERRIDES)
def test_a_run_goes_on_after_any_override(other_set, line):
    folder = begun(other_set, "--dir_demo", str(other_set / "mine"))
    words = line.split()
    go_on(folder, 2, "--override", "+".join(word[2:] for word in words if word.startswith("--")), *words)
    go_on(folder, 3)
    rows = history(folder)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    if re.search(r"--data_test \S*Other", line):
        assert [bool(row["Other PSNR"]) for row in rows] == [False, True, True]


def test_the_best_begins_anew_with_another_first_test_set(other_set, monkeypatch, capsys):
    """A PSNR of another set, or of other channels, says nothing beside that of before."""
    scores = iter((40.0, 20.0, 19.0, 18.0))
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_, **__: Scores([{"PSNR": next(scores), "SSIM": 0}]))
    folder = begun(other_set)
    go_on(folder, 2, "--override", "data_test", "--data_test", "Other")
    assert best_of(folder) == (20.0, 2)
    assert equal(weights(folder, "best"), weights(folder))
    assert "the best epoch was chosen on Small x2" in capsys.readouterr().out
    go_on(folder, 3)
    assert best_of(folder) == (20.0, 2)
    go_on(folder, 4, "--override", "metric_channel", "--metric_channel", "rgb")
    assert best_of(folder) == (18.0, 4)


# --- what is only looked at costs no state ---


def test_curves_that_cannot_be_drawn_cost_one_warning(small_set, monkeypatch, capsys):
    def fails(_history):
        raise KeyError("no\nfont")

    monkeypatch.setattr(figures, "curves", fails)
    folder = begun(small_set)
    assert load_tensors(folder / "state.pt")["progress"]["epoch"] == 1
    assert capsys.readouterr().out.count(r"no curves were drawn ('no\nfont')") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_disk_that_fills_ends_the_board_and_not_the_training(small_set, monkeypatch, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    written = RecordWriter.write

    def full(self, data):
        if len(list(small_set.parent.glob("experiment/small/state.pt"))):
            raise OSError(28, "No space left on device")
        written(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    launch(*small_run(small_set, "--test_every", "2"))
    said = capfd.readouterr()
    assert said.out.count("TensorBoard's file cannot be written ([Errno 28] No space left on device)") == 1
    assert "Traceback" not in said.err
    assert len(history(small_set.parent / "experiment/small")) == 2


def test_reset_again(small_set):
    """A run that `--reset` began says, as every run, that its folder may be deleted."""
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--epochs", "1", "--reset"))
    (folder / "notes.txt").write_text("mine")
    (folder / "state.pt").unlink()  # as if killed before its first state
    launch(*small_run(small_set, "--epochs", "1", "--reset"))
    assert len(history(folder)) == 1
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_board_that_cannot_begin(small_set, capfd):
    folder = small_set.parent / "experiment/small"
    folder.mkdir(parents=True)
    (folder / ".experiment").touch()
    (folder / "tensorboard").write_text("no folder")
    launch(*small_run(small_set, "--epochs", "1"))
    assert "TensorBoard's file cannot be written" in capfd.readouterr().out


def test_a_failing_validation_costs_no_training(small_set, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Evaluator, "evaluate", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        begun(small_set)
    folder = small_set.parent / "experiment/small"
    assert load_tensors(folder / "state.pt")["progress"]["batch"] == 2
    monkeypatch.undo()
    go_on(folder, 1)
    assert len(history(folder)) == 1


@pytest.mark.curves
def test_curves_of_sets_that_came_and_went():
    rows = [
        {"epoch": 1, "loss": 2.0, "A PSNR": 30.0},
        {"epoch": 2, "loss": 1.0},
        {"epoch": 3, "loss": 1.0, "B PSNR": 9},
    ]
    assert all(figures.curves(rows).values())


@pytest.mark.curves
def test_curves_write_scores_that_hardly_differ_in_full(monkeypatch):
    monkeypatch.setattr(figures, "rendered", lambda figure, _: figure)
    figure = figures.curves([{"epoch": n, "loss": 5.0, "A PSNR": 29.02 + n / 1000} for n in range(1, 6)])["png"]
    figure.draw_without_rendering()
    assert not any(axis.yaxis.get_offset_text().get_text() for axis in figure.axes)
    assert "29.022" in [label.get_text()[:6] for label in figure.axes[1].get_yticklabels()]


# --- one process trains in a folder ---


def holder(folder, monkeypatch=None) -> subprocess.Popen:
    """Another process that trains there, as far as the lock tells."""
    code = (
        "import sys; sys.path.insert(0, 'src'); from pathlib import Path; from runtime.experiment import Experiment\n"
        "there = Experiment(Path(sys.argv[1]), 'small'); there.check(training=True, reset=False, load=True)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.parent)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_run_has_one_writer_whose_end_frees_it(small_set):
    folder = begun(small_set)
    other = holder(folder)
    try:
        for flags in (
            ("--load", "small", "--epochs", "2"),
            ("--save", "small", "--reset", "--scale", "2", "--data_train", "Small", "--dir_data", small_set),
        ):
            with pytest.raises(UserError, match=rf"process {other.pid} on .* is training in it"):
                launch("--cpu", "--dir_experiment", folder.parent, *flags)
        # Tests beside it are welcome.
        best = folder / "model/model_best.pt"
        common = ("--cpu", "--dir_data", small_set, "--data_test", "Small", "--data_range", "1-4/5-6")
        launch("--test_only", "--pre_train", best, *common, "--dir_experiment", folder.parent, "--save", "small")
    finally:
        other.kill()
        other.wait()
    go_on(folder, 2)
    assert len(history(folder)) == 2


def test_a_run_killed_in_its_first_moments_may_start_again(small_set):
    folder = small_set.parent / "experiment/small"
    (folder / "model").mkdir(parents=True)
    (folder / ".krgn-0123abcd-99999999-0123456789ab.tmp").touch()
    begun(small_set)
    assert len(history(folder)) == 1


def test_a_start_removes_what_killed_saves_left_and_nothing_else(small_set):
    folder = begun(small_set)
    place = files._place()
    ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    gone = [f".krgn-{place}-{ended}-0123456789ab.tmp", "model/" + f".krgn-{place}-{ended}-00000000000a.tmp"]
    stay = [f".krgn-{place}-{os.getpid()}-0123456789ab.tmp", ".krgn-01234567-5-0123456789ab.tmp", ".mine.tmp"]
    old = f".state.pt.{'0' * 32}.tmp"
    for name in (*gone, *stay, old):
        (folder / name).write_text("x")
    os.utime(folder / old, (0, 0))
    go_on(folder, 2)
    assert not [name for name in (*gone, old) if (folder / name).exists()]
    assert all((folder / name).exists() for name in stay)


def test_a_target_may_have_the_longest_name(tmp_path):
    files.write_bytes(tmp_path / ("a" * 255), b"x")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


# --- states ---


def damaged(state: dict, keys: tuple, value) -> dict:
    """A copy of a state with the value at these keys replaced, or removed."""
    copied = dict(state) if isinstance(state, dict) else list(state)
    if len(keys) > 1:
        copied[keys[0]] = damaged(state[keys[0]], keys[1:], value)
    elif value is GONE:
        del copied[keys[0]]
    else:
        copied[keys[0]] = value
    return copied if isinstance(state, dict) else type(state)(copied)


GONE = object()
WRONG = [
    (("options", "schedule"), "foo"),
    (("options", "data_test"), ("/../../x",)),
    (("options", "data_test"), "Small"),
    (("options", "lr"), math.nan),
    (("options", "lr"), "1e-3"),
    (("options", "n_feats"), 10**9),
    (("options", "dilation"), 10**9),
    (("options", "betas"), (0.9,)),
    (("options", "cpu"), 1),
    (("options", "loss"), ((1.0, "L7"),)),
    (("options",), 3),
    (("given",), [3]),
    (("model", "head_conv.weight"), torch.zeros(1)),
    (("model", "head_conv.weight"), GONE),
    (("model", "head_conv.bias"), torch.zeros(8, dtype=torch.int64)),
    (("model", "head_conv.bias"), torch.zeros(8).to_sparse()),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(3)),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(1).expand(8, 3, 3, 3)),
    (("optimizer", "state", 0, "step"), "x"),
    (("optimizer", "state", 0), GONE),
    (("optimizer", "state"), []),
    (("optimizer",), GONE),
    (("scaler",), 5),
    (("average",), {}),
    (("progress", "epoch"), -1),
    (("progress", "batch"), 2.5),
    (("progress", "batch"), True),
    (("progress", "sums"), [1.0, 2.0]),
    (("progress", "history"), [{"epoch": "x", "loss": 1.0}]),
    (("progress", "history"), 7),
    (("progress", "best"), {"psnr": "high", "epoch": 1}),
    (("progress", "n_images"), GONE),
    (("random", "python"), (3, (1, 2), None)),
    (("random", "numpy"), ("MT19937", [1], 0, 0, 0.0)),
    (("random", "torch"), torch.zeros(5, dtype=torch.uint8)),
    (("random",), None),
]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, photo):
    """A run with averaged weights, and its state."""
    root = tmp_path_factory.mktemp("averaged")
    for number in range(6):
        write_png(root / f"dataset/Small/Small_train_HR/{number + 1:04}.png", photo[30 * number :, :64][:60])
    folder = begun(root / "dataset", "--ema", "0.9")
    return folder, load_tensors(folder / "state.pt")


@pytest.mark.parametrize(
    ("keys", "value"), WRONG, ids=lambda item: "/".join(map(str, item)) if isinstance(item, tuple) else ""
)
def test_a_damaged_state_gets_one_line(averaged, keys, value):
    folder, state = averaged
    save_tensors(folder / "state.pt", damaged(state, keys, value))
    if keys == ("optimizer", "state", 0) and value is GONE:  # a parameter that never had a gradient has no moments
        return
    before = digest(folder / "state.pt")
    with pytest.raises(UserError) as caught:
        go_on(folder, 2)
    assert "\n" not in str(caught.value)
    assert digest(folder / "state.pt") == before
    assert not (folder.parent / "x").exists()


def test_an_undamaged_state_goes_on(averaged):
    folder, state = averaged
    save_tensors(folder / "state.pt", state)
    go_on(folder, 2)
    assert len(history(folder)) == 2


def test_options_of_every_kind_are_read_back():
    for line in (
        "--data_train 3*A+1.5*B --data_test Set5+Set14 --decay 1-2 --loss 5*VGG54+0.15*GAN --betas 0.5 0.9",
        "--data_range 1-5/6-7 --rgb_range 1 --degradation blur1.5+bicubic+jpeg40 --ema 0.999 --save a/b --patch_size 8",
        "--cpu --perceptual lpips --optimizer SGD --momentum 0 --kernels plain --model CFGN --pre_train x.pt",
    ):
        values = parse_args(line.split()).values()
        assert checked_values(values) == values
        assert checked_values({name: value for name, value in values.items() if name != "ema"})["lr"] == values["lr"]


# --- signals and terminals ---

STUBBORN = """
import sys, signal, os, time; sys.path.insert(0, 'src'); from runtime import errors
def main():
    try:
        print('ready', flush=True)
        time.sleep(30)
    finally:
        print('ending', flush=True)
        time.sleep(0.3)
errors.run(main)
"""


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGHUP", "SIGINT")])
def test_a_second_signal_changes_nothing(first, second):
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(getattr(signal, first), signal.SIG_DFL),  # nohup's tests have it ignored
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, first))
    assert process.stdout.readline() == "ending\n"
    for _ in range(3):
        process.send_signal(getattr(signal, second))
        time.sleep(0.05)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + getattr(signal, first)
    assert said == f"interrupted by {first}\n"


def test_a_signal_where_exceptions_are_dropped_is_not_lost():
    """As in a finalizer, or the weak references of imports."""
    code = STUBBORN.replace(
        "print('ready', flush=True)",
        "A = type('A', (), {'__del__': lambda self: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.2))}); A()",
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stdout, run.stderr) == (143, "ending\n", "interrupted by SIGTERM\n")


def test_a_signal_within_an_import_is_not_lost():
    """Some modules' C code drops whatever is raised while it imports."""
    dropped = """with errors.importing():
            try: os.kill(os.getpid(), signal.SIGTERM)
            except BaseException: pass"""
    code = STUBBORN.replace("time.sleep(30)", dropped)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stdout, run.stderr) == (143, "ready\n", "interrupted by SIGTERM\n")


def test_nohup_is_respected():
    code = STUBBORN.replace("time.sleep(30)", "os.kill(os.getpid(), signal.SIGHUP)")
    run = subprocess.run(["nohup", sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_streams_that_are_gone_end_no_program():
    code = (
        "import sys; sys.path.insert(0, 'src'); from runtime import errors; "
        "errors.run(lambda: [print('x' * 999) for _ in range(99)])"
    )
    run = subprocess.run(["bash", "-c", f"{sys.executable} -c \"{code}\" | head -1; exit ${{PIPESTATUS[0]}}"], cwd=ROOT,
                         capture_output=True, text=True)  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")


# --- loading without shared memory ---


def test_batches_come_through_pipes_where_shared_memory_is_full(small_set, monkeypatch, capsys):
    def full(self):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    plain = begun(small_set)
    expected = weights(plain)
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    launch(
        *small_run(
            small_set, "--test_every", "2", "--epochs", "1", "--no_tensorboard", "--save", "pipes", "--n_threads", "1"
        )
    )
    assert equal(weights(plain.parent / "pipes"), expected)
    assert capsys.readouterr().out.count("/dev/shm has no room") == 1
