"""Which epochs are validated (--val_every), and which score chooses the best one (--best_by)."""

import math
import signal
from types import SimpleNamespace

import pytest
from conftest import small_run
from helpers import equal, history, launch, weights

from data.image import write_png
from evaluation.evaluate import Evaluator
from evaluation.metrics import Protocol, Scores
from loss.weighted import Loss
from model.weights import load_tensors
from option import OptionError
from reporting import figures
from runtime.errors import Interrupted, UserError
from runtime.files import save_tensors
from train.best import BestBy, choose_best_by


@pytest.fixture
def two_sets(small_set, photo):
    """The small set, and a benchmark set Other beside it."""
    for number in range(2):
        write_png(small_set / f"benchmark/Other/HR/{number}.png", photo[30 * number :, 200:264][:60])
    return small_set


def quick(small_set, *flags) -> list[str]:
    return small_run(small_set, "--test_every", "2", "--no_tensorboard", *flags)


def go_on(folder, *flags) -> None:
    launch("--cpu", "--n_threads", "0", "--dir_experiment", folder.parent, "--load", folder.name, *flags)


def best_of(folder) -> dict:
    return load_tensors(folder / "state.pt")["progress"]["best"]


def scored_as(monkeypatch, **scores: list[float] | list[dict]) -> None:
    """Validations give these scores, set by set: numbers are PSNR, with an SSIM of a hundredth."""
    left = {name: iter(each) for name, each in scores.items()}

    def evaluate(self, network, test_set, *, on_image=None):
        score = next(left[test_set.name])
        row = score if isinstance(score, dict) else {"PSNR": score, "SSIM": score / 100}
        return Scores([{"image": "a"} | row])

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)


# --- val_every ---


def test_epochs_between_validations_have_empty_cells_and_the_same_weights(small_set):
    experiments = small_set.parent / "experiment"
    launch(*quick(small_set, "--epochs", "5", "--save", "each"))
    launch(*quick(small_set, "--epochs", "5", "--save", "second", "--val_every", "2"))
    each, second = history(experiments / "each"), history(experiments / "second")
    assert list(each[0]) == list(second[0])  # the columns, in their order, although the first epoch has no scores
    assert [bool(row["Small PSNR"]) for row in second] == [False, True, False, True, True]
    for one, other in zip(each, second, strict=True):
        for name in ("epoch", "lr", "loss", "gradient norm", "skipped"):
            assert one[name] == other[name]
        assert other["Small PSNR"] in ("", one["Small PSNR"])
        assert other["Small SSIM"] in ("", one["Small SSIM"])
    assert equal(weights(experiments / "each"), weights(experiments / "second"))
    facts = [load_tensors(experiments / f"{run}/model/model_latest.pt")["facts"] for run in ("each", "second")]
    assert facts[0] == facts[1]
    best = best_of(experiments / "second")
    assert best["epoch"] in (2, 4, 5)
    assert best["psnr"] == max(float(row["Small PSNR"]) for row in second if row["Small PSNR"])


def test_resuming_between_validations_is_exact(small_set, monkeypatch):
    """Stopped in an epoch without validation: the same epochs are validated, the same weights come out."""
    experiments = small_set.parent / "experiment"
    flags = ("--epochs", "4", "--val_every", "3")
    launch(*quick(small_set, *flags, "--save", "undisturbed"))
    forward, calls = Loss.forward, []

    def stopped(self, sr, hr):
        calls.append(0)
        if len(calls) == 4:  # the second batch of the second epoch
            raise Interrupted(signal.SIGTERM)
        return forward(self, sr, hr)

    monkeypatch.setattr(Loss, "forward", stopped)
    with pytest.raises(Interrupted):
        launch(*quick(small_set, *flags))
    assert not (experiments / "small/model/model_best.pt").exists()
    assert "psnr" not in load_tensors(experiments / "small/model/model_latest.pt")["facts"]
    go_on(experiments / "small")
    runs = [experiments / name for name in ("undisturbed", "small")]
    rows = [[{name: row[name] for name in row if name != "seconds"} for row in history(run)] for run in runs]
    assert rows[0] == rows[1]
    assert [bool(row["Small PSNR"]) for row in rows[0]] == [False, False, True, True]
    assert best_of(runs[0]) == best_of(runs[1])
    for name in ("latest", "best"):
        assert equal(weights(runs[0], name), weights(runs[1], name))


def test_val_every_may_change_when_a_run_goes_on(small_set):
    folder = small_set.parent / "experiment/small"
    launch(*quick(small_set, "--epochs", "1"))
    go_on(folder, "--epochs", "4", "--val_every", "3")
    assert [bool(row["Small PSNR"]) for row in history(folder)] == [True, False, True, True]
    go_on(folder, "--epochs", "7")  # it is kept
    assert [bool(row["Small PSNR"]) for row in history(folder)[4:]] == [False, True, True]


@pytest.mark.curves
def test_curves_join_the_validated_epochs(monkeypatch):
    """Also those of a long run: a line of single points with gaps between them would be invisible."""
    drawn = []
    monkeypatch.setattr(figures, "rendered", lambda figure, form: drawn.append(figure) or b"")
    rows = [{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 101)]
    for epoch in (30, 60, 90):
        rows[epoch - 1] |= {"A PSNR": 30.0 + epoch, "B PSNR": math.inf}
    figures.curves(rows)
    loss, psnr = drawn[0].axes
    assert len(loss.lines[0].get_xdata()) == 100
    assert list(psnr.lines[0].get_xdata()) == [30, 60, 90]
    assert list(psnr.lines[0].get_ydata()) == [60.0, 90.0, 120.0]
    assert psnr.lines[0].get_marker() == "o"


# --- best_by ---


def test_the_best_is_chosen_by_the_first_set_or_as_asked(two_sets, monkeypatch, capsys):
    experiments, both = two_sets.parent / "experiment", ("--data_test", "Small+Other", "--epochs", "3")
    small, other = [20.0, 22.0, 21.0], [31.0, 30.0, 29.0]
    other = [{"PSNR": psnr, "SSIM": ssim} for psnr, ssim in zip(other, (0.8, 0.7, 0.9), strict=True)]
    for number, (flags, best, key) in enumerate(
        (
            ((), 2, "psnr"),
            (("--best_by", "Small:PSNR"), 2, "psnr"),
            (("--best_by", "Other:PSNR"), 1, "psnr"),
            (("--best_by", "Other:ssim"), 3, "ssim"),
        )
    ):
        scored_as(monkeypatch, Small=small, Other=other)
        launch(*quick(two_sets, *both, "--save", str(number), *flags))
        folder = experiments / str(number)
        found = best_of(folder)
        assert (found["epoch"], found.keys()) == (best, {key, "epoch", "on"})
        assert load_tensors(folder / "model/model_best.pt")["facts"]["epoch"] == best
    out = capsys.readouterr().out
    assert "[epoch 3] best so far: PSNR 22.000 dB on Small, epoch 2" in out
    assert "[epoch 2] best so far: SSIM 0.8000 on Other, epoch 1" in out
    # The PSNR that a file states is of the set that chose it.
    assert load_tensors(folder / "model/model_best.pt")["facts"]["psnr"] == 29.0


def test_a_learned_distance_is_better_when_lower(small_set, monkeypatch, capsys):
    distances = [0.3, 0.1, math.nan, 0.2]
    scored_as(monkeypatch, Small=[{"PSNR": 20.0, "SSIM": 0.5, "LPIPS": each} for each in distances])
    launch(*quick(small_set, "--epochs", "4", "--perceptual", "lpips", "--best_by", "Small:LPIPS"))
    folder = small_set.parent / "experiment/small"
    assert (best_of(folder)["lpips"], best_of(folder)["epoch"]) == (0.1, 2)
    assert [row["Small LPIPS"] for row in history(folder)] == ["0.3", "0.1", "nan", "0.2"]
    assert "[epoch 2] Small x2: PSNR 20.000 dB, SSIM 0.5000, LPIPS 0.1000" in capsys.readouterr().out
    with pytest.raises(OptionError, match=r"LPIPS is not measured: add --perceptual dists\+lpips"):
        go_on(folder, "--epochs", "5", "--perceptual", "dists")


def test_another_best_by_needs_override_and_begins_anew(two_sets, monkeypatch, capsys):
    both = ("--data_test", "Small+Other")
    scored_as(monkeypatch, Small=[40.0, 20.0, 19.0], Other=[50.0, 10.0, 11.0])
    launch(*quick(two_sets, *both, "--epochs", "1"))
    folder = two_sets.parent / "experiment/small"
    with pytest.raises(OptionError, match=r"--best_by Other:SSIM, but --load small .*--override best_by"):
        go_on(folder, "--epochs", "2", "--best_by", "Other:SSIM")
    go_on(folder, "--epochs", "2", "--best_by", "Other:SSIM", "--override", "best_by")
    assert (best_of(folder)["ssim"], best_of(folder)["epoch"]) == (0.1, 2)
    out = capsys.readouterr().out
    assert "the best epoch was chosen on Small x2, Y channel" in out
    assert "it is chosen anew, on Other x2 by SSIM, Y channel" in out
    go_on(folder, "--epochs", "3")
    assert best_of(folder)["epoch"] == 3
    assert "anew" not in capsys.readouterr().out
    # Its set leaves the test sets: one line says what to give.
    with pytest.raises(OptionError, match=r"--best_by Other:SSIM: Other is not among --data_test Small"):
        go_on(folder, "--epochs", "4", "--data_test", "Small", "--override", "data_test")


def test_older_states_do_not_say_what_the_best_was_chosen_by(small_set, monkeypatch, capsys):
    """Their PSNR goes on as the best one, and gives way to another metric."""
    scored_as(monkeypatch, Small=[40.0, 20.0, 10.0])
    launch(*quick(small_set, "--epochs", "1"))
    folder = small_set.parent / "experiment/small"

    def forget() -> None:
        state = load_tensors(folder / "state.pt")
        state["progress"]["best"] = {"psnr": 40.0, "epoch": 1}
        for flag in ("val_every", "best_by"):
            del state["options"][flag]
        save_tensors(folder / "state.pt", state)

    forget()
    go_on(folder, "--epochs", "2")
    assert best_of(folder) == {"psnr": 40.0, "epoch": 1}
    forget()
    go_on(folder, "--epochs", "3", "--best_by", "Small:SSIM", "--override", "best_by")
    assert (best_of(folder)["ssim"], best_of(folder)["epoch"]) == (0.1, 3)
    assert "chosen on PSNR: it is chosen anew, on Small x2 by SSIM" in capsys.readouterr().out


def test_sets_without_ground_truth_choose_nothing():
    protocol = Protocol(crop_border=2)
    own, small = (SimpleNamespace(name=name, label=f"{name} x2", scored=name == "Small") for name in ("Own", "Small"))
    by = choose_best_by("", [own, small], protocol)
    assert (by.set_name, by.metric, by.on) == ("Small", "PSNR", f"Small x2, {protocol}")
    nothing = choose_best_by("", [own], protocol)
    assert nothing == BestBy()
    assert math.isnan(nothing.mean([own], [Scores([])]))
    assert nothing.updated({}, math.nan, 1) == {}
    with pytest.raises(UserError, match=r"--best_by Own:PSNR: Own has no HR images .*\(Small has\)"):
        choose_best_by("Own:PSNR", [own, small], protocol)


def test_equal_scores_keep_the_earlier_epoch():
    by = BestBy("A", "SSIM", "A by SSIM")
    best = by.updated({}, 0.5, 1)
    assert by.updated(best, 0.5, 2) is best
    assert by.updated(best, 0.6, 2)["epoch"] == 2
