"""What steers training: schedules, averaged weights, batches that must not count, states saved at any moment."""

import contextlib
import csv
import itertools
import logging
import math
import os
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from conftest import program, small_run
from helpers import history, launch, randomise, weights

from evaluation.evaluate import Evaluator, evaluate
from evaluation.metrics import Scores
from loss.weighted import Loss
from model.checkpoint import rebuild, unpack
from model.krgn import KRGN
from model.recalibration import fold
from model.weights import load_tensors
from option import parse_args
from reporting import figures
from runtime.errors import UserError
from runtime.files import save_tensors
from studies import verify_resume
from train import build, monitor, trainer
from train.optim import MovingAverage, OptimizerConfig, Schedule, make_optimizer, make_scheduler, step_if
from train.state import Progress
from train.step import TrainStep

# --- the learning rate ---

STEPS = Schedule(lr=1, epoch_batches=4, kind="step", decay=(2, 3), gamma=0.5, epochs=10)
COSINE = replace(STEPS, kind="cosine")


def test_step_schedule():
    assert [STEPS.factor(batch) for batch in (0, 7, 8, 11, 12, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_warmup_rises_to_the_schedule():
    factors = [replace(STEPS, warmup=4).factor(batch) for batch in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_against_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for batch in range(40):
        assert COSINE.factor(batch) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        reference.step()
    assert COSINE.factor(99) == 0


@pytest.mark.parametrize("flags", ["--schedule cosine --epochs 6", "--warmup 7 --decay 1-2-4 --gamma 0.3"])
def test_the_rate_does_not_depend_on_stops(flags):
    """At every batch the rate of a run that just went on is that of one that never stopped."""
    args = parse_args(flags.split())
    network = torch.nn.Linear(1, 1)
    schedule = build.build_schedule(args, epoch_batches=5)
    optimizer = make_optimizer(network, OptimizerConfig())
    scheduler = make_scheduler(optimizer, schedule)
    for batch in range(25):
        other = make_optimizer(network, OptimizerConfig())
        other.load_state_dict(optimizer.state_dict())
        make_scheduler(other, schedule, done=batch)
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


def test_an_overridden_rate_counts_from_the_resume_on(small_set):
    experiments = small_set.parent / "experiment"
    launch(*small_run(small_set, "--epochs", "1", "--decay", "1"))
    go_on = ("--cpu", "--load", "small", "--dir_experiment", experiments, "--epochs", "2", "--lr", "1e-2")
    with pytest.raises(UserError, match=r"--lr 0.01.*--override lr"):
        launch(*go_on)
    launch(*go_on, "--override", "lr")
    assert [float(row["lr"]) for row in history(experiments / "small")] == [1e-3, 5e-3]
    with pytest.raises(UserError, match="--override ema"):
        launch("--load", "small", "--dir_experiment", experiments, "--override", "ema", "--ema", "0.9")


# --- averaged weights ---


def test_average_is_over_the_steps_made_and_not_the_initial_weights():
    network = KRGN(scale=2, n_feats=8, n_resgroups=1)
    average, seen = MovingAverage(network, 0.9), []
    got, now = (net.body[0].blocks[0].conv_acts[0][0].transform for net in (average.network, network))
    for good in (False, True, True, False, True):
        randomise(network, 0.5)
        average.update(network, torch.tensor(good))
        seen += [now.detach().clone()] * good
        expected = sum(0.9**k * weights for k, weights in enumerate(reversed(seen)))
        assert torch.allclose(got, expected / sum(0.9**k for k in range(len(seen))) if seen else got, atol=1e-6)
    assert torch.isfinite(got).all()
    # One that began long ago: the plain recursion.
    before = got.detach().clone()
    average.steps.fill_(torch.inf)
    average.update(network, torch.tensor(True))
    assert torch.allclose(got, 0.9 * before + 0.1 * now, atol=1e-6)


def test_averaged_weights_are_validated_released_and_folded_after_averaging(small_set):
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--ema", "0.8", "--epochs", "2"))
    state, latest = load_tensors(folder / "state.pt"), load_tensors(folder / "model/model_latest.pt")
    assert (state["facts"]["weights"], latest["facts"]["weights"]) == ("raw", "averaged")
    assert latest["facts"]["basis"] == state["facts"]["basis"] == "trained"  # what a run that starts from it follows
    assert all(torch.equal(latest["model"][name], averaged) for name, averaged in state["average"].items())
    assert not torch.equal(latest["model"]["head_conv.weight"], state["model"]["head_conv.weight"])
    # The printed score is that of the released weights, folded.
    network = rebuild(unpack(latest, "latest"))
    common = ["--test_only", "--pre_train", "-", "--dir_data", str(small_set), "--data_test", "Small", "--scale", "2"]
    from data import build_test_sets

    test_set = build_test_sets(parse_args([*common, "--data_range", "1-4/5-6"]))[0]
    score = evaluate(fold(network), test_set, device=torch.device("cpu"))
    assert score.psnr == pytest.approx(float(history(folder)[-1]["Small PSNR"]), abs=1e-9)


def test_a_state_with_the_names_of_torchs_average_goes_on(small_set):
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--ema", "0.8", "--epochs", "1"))
    state = load_tensors(folder / "state.pt")
    named = {f"module.{name}": tensor for name, tensor in state["average"].items()}
    del state["averaged"]
    save_tensors(folder / "state.pt", state | {"average": named | {"n_averaged": torch.tensor(4)}})
    launch("--cpu", "--n_threads", "0", "--load", "small", "--dir_experiment", folder.parent, "--epochs", "2")
    assert len(history(folder)) == 2


# --- numbers that stay finite ---


def one_step(small_set: Path, monkeypatch, loss) -> tuple:
    """A run whose second batch has the given loss; (its weights before and after that batch, its folder)."""
    seen = []
    original = TrainStep.__call__

    def step(self, batch, **limits):
        before = {name: t.clone() for name, t in self.network.state_dict().items()}
        if len(seen) == 1:
            monkeypatch.setattr(Loss, "forward", loss)
        result = original(self, batch, **limits)
        monkeypatch.setattr(Loss, "forward", forward)
        seen.append((result.good.item(), before, {name: t.clone() for name, t in self.network.state_dict().items()}))
        return result

    forward = Loss.forward
    monkeypatch.setattr(TrainStep, "__call__", step)
    launch(*small_run(small_set, "--epochs", "1"))
    return seen, small_set.parent / "experiment/small"


@pytest.mark.parametrize("name", ["ADAM", "ADAMW", "MUON", "SGD", "RMSprop"])
def test_a_step_that_is_not_made_changes_nothing(name):
    """Neither weights nor what the optimizer remembers, be it the first step or a later one."""
    steps, ends = [True, True], []
    for plan in (steps, [False, *steps], [True, False, True]):
        torch.manual_seed(0)
        network = KRGN(scale=2, n_feats=8, n_resgroups=1)
        optimizer = make_optimizer(network, OptimizerConfig(name, lr=1e-3))
        for good in plan:
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter) * (1 if good else math.nan)
            step_if(torch.tensor(good), optimizer)
        ends.append([tensor for state in optimizer.state.values() for tensor in state.values()])
        ends[-1] = [tensor for tensor in ends[-1] if isinstance(tensor, torch.Tensor)] + list(network.parameters())
    assert all(torch.equal(a, b) for other in ends[1:] for a, b in zip(ends[0], other, strict=True))


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda self, sr, hr: (sr.mean() * math.nan)[None], "its loss is nan"),
        (lambda self, sr, hr: (sr.mean() * math.inf)[None], "its loss is inf"),
        # The slope of the root at 0 is infinite: a finite loss with gradients that are not.
        (lambda self, sr, hr: (sr.mean() - sr.mean()).abs().sqrt()[None], "its gradient's norm is nan"),
    ],
)
def test_what_is_not_finite_never_reaches_the_weights(small_set, monkeypatch, loss, reason):
    seen, folder = one_step(small_set, monkeypatch, loss)
    assert [result[0] for result in seen] == [1, 0, 1, 1]
    assert all(torch.equal(seen[1][1][name], seen[1][2][name]) for name in seen[1][1])
    assert not all(torch.equal(seen[2][1][name], seen[2][2][name]) for name in seen[2][1])
    with open(folder / "skipped.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["epoch"], row["batch"], row["reason"]) == ("1", "2", reason)
    assert len(row["images"].split()) == 4
    assert history(folder)[0]["skipped"] == "1"
    assert all(t.isfinite().all() for t in weights(folder).values())


def test_weights_that_were_not_saved_are_not_the_best(small_set, monkeypatch):
    """The last batch of the first epoch is skipped, after which the weights are suspect."""
    forward, calls = Loss.forward, []

    def sometimes(self, sr, hr):
        calls.append(0)
        return forward(self, sr, hr) * (math.nan if len(calls) == 4 else 1)

    scores = iter((30.0, 29.0))
    monkeypatch.setattr(Loss, "forward", sometimes)
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_, **__: Scores([{"PSNR": next(scores), "SSIM": 0.9}]))
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--epochs", "2"))
    assert [row["Small PSNR"] for row in history(folder)] == ["30.0", "29.0"]
    best = load_tensors(folder / "state.pt")["progress"]["best"]
    assert (best["psnr"], best["epoch"]) == (29.0, 2)
    assert load_tensors(folder / "model/model_best.pt")["facts"]["epoch"] == 2


def test_an_exploded_loss_keeps_the_last_good_state(small_set, monkeypatch):
    """A run whose loss rises to a hundred times the last epoch's ends with the epoch; what was saved before stays."""
    folder = small_set.parent / "experiment/small"
    monkeypatch.setattr(monitor, "RECENT", 2)
    forward, calls = Loss.forward, itertools.count()

    def explode(self, sr, hr):
        return forward(self, sr, hr) * (1 if next(calls) < 6 else 100)

    monkeypatch.setattr(Loss, "forward", explode)
    with pytest.raises(monitor.Diverged, match=r"the loss rose from \d.* in the last epoch to \d.*: training diverged"):
        launch(*small_run(small_set, "--save_every", "1e-9"))
    progress = load_tensors(folder / "state.pt")["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 2)
    monkeypatch.setattr(Loss, "forward", forward)
    launch("--cpu", "--n_threads", "0", "--load", "small", "--dir_experiment", folder.parent)
    assert len(history(folder)) == 2


def test_why_weights_are_not_saved_is_told_apart():
    options = {"skip_threshold": 1e8, "half_precision": False, "run": "run", "lr": 1e-4, "has_state": lambda: True}
    watch = monitor.Monitor(Progress([0.0], 4, epoch=1, reference_loss=1.0), terms=["L1"], adversarial=False, **options)
    told = []
    for loss in (math.nan, math.nan, 1000.0, math.nan):  # the mean of recent losses is 51 times the last epoch's
        watch.book(SimpleNamespace(good=loss < 1e8, losses=[loss], norms=[1.0], batch=1, names=["0001"]))
        told.append(watch.why_suspect())
    exploded = "the loss has exploded"
    assert told == ["the last batch was skipped", "the last 2 batches were skipped", exploded, exploded]


def test_the_first_epoch_is_compared_with_its_own_batches():
    """From the hundredth on; an explosion does not raise what it is compared with."""
    progress = Progress([0.0], 4)
    options = {"skip_threshold": 3.0, "half_precision": False, "run": "run", "lr": 1e-4, "has_state": lambda: True}
    watch = monitor.Monitor(progress, terms=["L1"], adversarial=False, **options)

    def book(loss, count, good=True):
        for _ in range(count):
            watch.book(SimpleNamespace(good=good, losses=[loss], norms=[1.0], batch=1, names=["0001"]))

    book(8.0, 99)
    assert watch.loss_limit == math.inf
    book(8.0, 1)
    assert watch.loss_limit == 24
    book(4.0, 100)
    assert watch.loss_limit == 18  # the mean is 6
    book(30.0, 1, good=False)
    assert (
        progress.skipped[0]["reason"] == "its loss 30 is above 18, --skip_threshold times the mean in this epoch so far"
    )
    book(1000.0, 1000)
    assert watch.loss_limit == 18
    assert watch.weights_suspect
    with pytest.raises(monitor.Diverged, match="the loss rose from 6 in this epoch so far to 1000: training diverged"):
        watch.check()


@pytest.mark.parametrize("ahead", [1, 3])
def test_what_is_read_late_is_booked_all_the_same(small_set, monkeypatch, ahead):
    """As on a GPU, where the host runs ahead of the device: history, skipped batches and the state are the same."""
    forward, calls = Loss.forward, []

    def sometimes(self, sr, hr):
        calls.append(0)
        return forward(self, sr, hr) * (math.nan if len(calls) in (2, 4, 5) else 1)

    monkeypatch.setattr(Loss, "forward", sometimes)
    original = trainer.Trainer.__init__

    def late(self, *arguments, **named):
        original(self, *arguments, **named)
        self.ahead = ahead

    folder = small_set.parent / "experiment"
    launch(*small_run(small_set, "--epochs", "2", "--ema", "0.9", "--save", "at_once"))
    calls.clear()
    monkeypatch.setattr(trainer.Trainer, "__init__", late)
    launch(*small_run(small_set, "--epochs", "2", "--ema", "0.9", "--save", "late", "--save_every", "1e-9"))
    assert (folder / "late/skipped.csv").read_text() == (folder / "at_once/skipped.csv").read_text()
    assert [row["skipped"] for row in history(folder / "late")] == ["2", "1"]
    assert verify_resume.differences(folder / "at_once", folder / "late") == []


def test_emulated_types_are_announced(small_set, capsys):
    launch(*small_run(small_set, "--precision", "bf16", "--epochs", "1", "--test_every", "1"))
    assert "emulate" in capsys.readouterr().out


def test_half_precision_has_a_scaler_and_float_weights(small_set):
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--precision", "half", "--epochs", "1", "--test_every", "3"))
    assert {t.dtype for t in weights(folder).values()} == {torch.float32}
    assert load_tensors(folder / "state.pt")["scaler"]["scale"] > 0


def test_an_overflow_of_half_precision_says_nothing_against_the_weights(small_set):
    """The first scale is too large, as always: the batch is skipped, and what is there is saved all the same."""
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--precision", "half", "--epochs", "1", "--test_every", "1", "--loss", "1000*L1"))
    assert [row["skipped"] for row in history(folder)] == ["1"]
    assert re.search("gradient's norm is (inf|nan)", (folder / "skipped.csv").read_text())
    assert (folder / "model/model_best.pt").is_file()
    state = load_tensors(folder / "state.pt")
    assert (state["progress"]["epoch"], state["scaler"]["scale"]) == (1, 2**15)


def test_a_run_may_go_on_in_another_precision(small_set):
    folder = small_set.parent / "experiment"
    launch(*small_run(small_set, "--epochs", "1", "--test_every", "1"))
    again = ("--load", "small", "--dir_experiment", folder, "--override", "precision", "--epochs")
    launch(*again, "2", "--precision", "half")
    assert load_tensors(folder / "small/state.pt")["scaler"]["scale"] > 0
    launch(*again, "3", "--precision", "single")
    assert len(history(folder / "small")) == 3


# --- states saved at any moment ---


def test_states_are_saved_within_an_epoch(small_set, monkeypatch):
    saves = []
    monkeypatch.setattr(
        trainer.Trainer, "_save_state", lambda self: saves.append((self.progress.epoch, self.progress.batch))
    )
    launch(*small_run(small_set, "--epochs", "1", "--save_every", "1e-9"))
    assert saves == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 4), (1, 0)]
    saves.clear()
    launch(*small_run(small_set, "--epochs", "1", "--save_every", "0", "--save", "seldom"))
    assert saves == [(0, 4), (1, 0)]


def test_a_kill_during_a_save_leaves_a_loadable_state(tmp_path):
    """A process saves one state after another and is killed at 20 moments: the file is always a whole one."""
    path = tmp_path / "state.pt"
    save_tensors(path, {"n": -1, "values": torch.full((300000,), -1)})
    process = None
    for kill in range(20):
        if process is None:
            process = forked.process(save_for_ever, path)
            process.start()
            before = load_tensors(path)["n"]
            while load_tensors(path)["n"] == before:
                time.sleep(0.01)
        time.sleep(0.001 * kill)
        if kill % 4 == 3:  # five processes killed; the others are looked at while they write
            process.kill()
            process.join()
            process = None
        state = load_tensors(path)
        assert (state["values"] == state["n"]).all()
    assert state["n"] >= 0


def save_for_ever(path: Path) -> None:
    for n in itertools.count():
        save_tensors(path, {"n": n, "values": torch.full((300000,), n)})


def train_silently(flags: list[str]) -> None:
    """Called in processes that know nothing of this one's fixtures."""
    figures.curves = lambda history: {}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        launch(*flags)


def test_eight_kills_change_nothing(small_set, monkeypatch):
    """SIGKILL eight times, each a random moment after one or more states were saved: the end is the undisturbed one's.

    The runs are forked off a process that has torch loaded already, or to load it would be all that the test does.
    """
    chance = random.Random(0)
    folder = small_set.parent / "experiment"
    flags = small_run(small_set, "--test_every", "20", "--epochs", "3", "--save_every", "0.0005", "--no_tensorboard")
    train_silently([*flags, "--save", "undisturbed"])
    state = folder / "killed/state.pt"
    go_on = ["--cpu", "--n_threads", "0", "--load", "killed", "--dir_experiment", str(folder)]
    kills = 0
    while kills < 8:
        flags_now = go_on if state.exists() else [*flags, "--save", "killed"]
        process = forked.process(train_silently, flags_now)
        process.start()
        seen, saves, wanted = state.stat().st_ino if state.exists() else 0, 0, chance.randint(1, 2)
        while saves < wanted and process.is_alive():
            time.sleep(0.001)
            now = state.stat().st_ino if state.exists() else 0
            saves, seen = saves + (now != seen), now
        time.sleep(chance.random() * 0.03)
        assert process.is_alive(), (
            f"the run ended after {kills} kills, which is too early for the test to mean anything"
        )
        process.kill()
        process.join()
        kills += 1
    train_silently(go_on)
    assert verify_resume.differences(folder / "undisturbed", folder / "killed") == []
    log = (folder / "killed/log.txt").read_text()
    assert log.count("learning rate") > 8


def test_verify_resume(capsys, monkeypatch):
    """Its runs are forked off a process that has torch loaded, too."""
    processes = SimpleNamespace(
        run=lambda command, **_: program(*command[2:]), Popen=lambda command, **_: forked.Program(*command[2:]),
        PIPE=None, DEVNULL=None,
    )  # fmt: skip
    monkeypatch.setattr(verify_resume, "subprocess", processes)
    verify_resume.main(["--cpu", "--kills", "1", "--epochs", "1", "--n_threads", "0"])
    assert "identical: weights" in capsys.readouterr().out


def test_verify_resume_sees_a_difference():
    state = {"a": [torch.zeros(2), {"b": 1.0}], "c": math.nan}
    assert verify_resume.same(state, {"a": [torch.zeros(2), {"b": 1.0}], "c": math.nan})
    assert not verify_resume.same(state, {"a": [torch.tensor([0, 1e-30]), {"b": 1.0}], "c": math.nan})
    assert not verify_resume.same(state, {"a": [torch.zeros(2), {"b": 1.0 + 1e-15}], "c": math.nan})


def test_a_state_that_was_cut_off_gets_one_line(small_set):
    folder = small_set.parent / "experiment/small"
    launch(*small_run(small_set, "--epochs", "1"))
    whole = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"state\.pt: is damaged, .*--pre_train .*small/model/model_latest\.pt"):
        launch("--cpu", "--load", "small", "--dir_experiment", folder.parent, "--epochs", "2")


# --- what a person sees ---


def test_tensorboard_is_read_back(small_set):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    experiments = small_set.parent / "experiment"
    launch(*small_run(small_set, "--loss", "1*L1+0.1*MSE"))
    launch("--cpu", "--load", "small", "--epochs", "3", "--dir_experiment", experiments)
    events = EventAccumulator(str(experiments / "small/tensorboard")).Reload()
    rows = history(experiments / "small")
    for tag in ("loss", "L1", "MSE", "lr", "Small_PSNR", "Small_SSIM", "gradient_norm", "patches_per_second"):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3]
    got = [event.value for event in events.Scalars("Small_PSNR")]
    assert got == pytest.approx([float(row["Small PSNR"]) for row in rows], rel=1e-6)
    assert [event.step for event in events.Images("SR/0005")] == [1, 2, 3]
    assert (events.Images("SR/0005")[0].width, events.Images("SR/0005")[0].height) == (64, 60)
    launch(*small_run(small_set, "--save", "without", "--no_tensorboard", "--epochs", "1"))
    assert not (experiments / "without/tensorboard").exists()


def test_compile_says_when_it_cannot(small_set, monkeypatch, capsys):
    def fails(_network):
        raise RuntimeError("no compiler here\nand a long story")

    monkeypatch.setattr(torch, "compile", fails)
    launch(*small_run(small_set, "--compile", "--epochs", "1"))
    assert "cannot compile here (no compiler here)" in capsys.readouterr().out


def test_compile_tries_what_will_be_trained(small_set, monkeypatch):
    """Another shape or another order in memory would be compiled a second time, without the net below."""
    seen = []

    def note(network, args):
        if network.training:
            seen.append((args[0].shape, args[0].stride()))

    def compiles(network):
        network.register_forward_pre_hook(note)
        return network

    monkeypatch.setattr(torch, "compile", compiles)
    launch(*small_run(small_set, "--compile", "--epochs", "1", "--batch_size", "6", "--split_batch", "2"))
    assert len(seen) > 2
    assert set(seen) == {(torch.Size([3, 3, 12, 12]), (432, 1, 36, 3))}


def test_other_processes_than_the_first_are_silent(monkeypatch, capsys):
    from runtime.log import start_log

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    log = start_log()
    log.info("heard")
    monkeypatch.undo()
    start_log()
    assert "heard" not in capsys.readouterr().out
    assert logging.getLogger("krgn").level == logging.INFO
