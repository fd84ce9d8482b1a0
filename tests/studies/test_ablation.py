"""The comparison of plain and recalibrated kernels: what each arm trains, and what the table says of it."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import assert_one_line, program
from helpers import launch

from model.weights import load_tensors
from runtime.errors import UserError
from studies import ablation


def flags(small_set, *more) -> list[str]:
    return [
        *("--cpu", "--dir_data", str(small_set), "--data_train", "Small", "--data_test", "Small", "--n_feats", "8"),
        *("--n_resgroups", "1", "--batch_size", "2", "--patch_size", "16", "--steps", "8", "--seeds", "2"),
        *("--n_threads", "0", "--dir_experiment", str(small_set / "runs"), *more),
    ]


@pytest.fixture
def in_this_process(monkeypatch):
    """main.py is called, not started: eighteen starts would take most of a minute. Returns the command lines."""
    commands = []

    def run(command, **_):
        commands.append(command[3:])
        launch(*command[3:], "--data_range", "1-4/5-6")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(ablation, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(ablation, "EPOCHS", 1)
    monkeypatch.setattr(ablation, "RATES", (2,))
    return commands


def test_every_arm_is_trained_and_counted(small_set, in_this_process, capsys, monkeypatch):
    monkeypatch.chdir(small_set)  # paths are of where the user is, though main.py runs in src/
    ablation.main(flags(small_set, "--out", "table", "--dir_experiment", "runs"))
    assert {words[words.index("--dir_experiment") + 1] for words in in_this_process} == {str(small_set / "runs")}
    assert len(in_this_process) == 2 * 9  # eight arms, and the first half that three of them share
    rates = {words[words.index("--save") + 1]: words[words.index("--lr") + 1] for words in in_this_process}
    assert {name for name, rate in rates.items() if rate == "0.002"} == {
        f"{kernels}_rate_x2_{seed}" for kernels in ("plain", "recalibrated") for seed in (1, 2)
    }
    table = json.loads((small_set / "table.json").read_text())
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    costs = json.loads((small_set / "runs/ablation.json").read_text())["costs"]
    assert {rows[arm]["steps"] for arm in rows if arm != "plain, same time"} == {8}
    assert rows["plain, same time"]["steps"] == round(8 * costs["recalibrated"])
    assert rows["plain"]["over plain (dB)"] == 0
    assert rows["plain"]["time, plain = 1"] == 1
    assert rows["plain, then frozen"]["time, plain = 1"] == pytest.approx(0.5 + 0.5 * costs["frozen"])
    for row in rows.values():
        assert math.isfinite(row["PSNR (dB)"])
    gain, spread = rows["recalibrated"]["over plain (dB)"], rows["recalibrated"]["its spread "]
    assert f"at the same rate: x1 {gain:.2f} ± {spread:.2f}, x2 " in str(table["notes"])
    assert (small_set / "table.png").read_bytes()[:4] == b"\x89PNG"

    # What the arms are said to be is what was trained.
    def state(name):
        return load_tensors(small_set / "runs" / name / "model/model_latest.pt")["model"]

    layer = "body.0.blocks.0.conv_acts.0.0"
    assert f"{layer}.transform" not in state("plain_1")
    assert f"{layer}.transform" in state("recalibrated_1")
    first = state("first_1")[f"{layer}.weight"]
    assert (state("then_frozen_1")[f"{layer}.weight"] == first).all()
    assert not (state("then_recalibrated_1")[f"{layer}.weight"] == first).all()
    assert not (state("plain_1")[f"{layer}.weight"] == state("plain_2")[f"{layer}.weight"]).all()

    # A second start trains nothing and says the same; one with other settings is refused.
    del in_this_process[:]
    capsys.readouterr()
    ablation.main(flags(small_set))
    assert not in_this_process
    assert "plain, then frozen" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--steps 16, but the runs in .* were made with 8"):
        ablation.main(flags(small_set, "--steps", "16"))


def test_mistakes_get_one_line(small_set):
    assert_one_line(program("studies.ablation"), "--dir_data")
    assert_one_line(program("studies.ablation", *flags(small_set, "--data_test", "Nothing")), "Nothing", "--data_test")
    assert_one_line(
        program("studies.ablation", *flags(small_set, "--patch_size", "15")), "--patch_size 15", "--scale 2"
    )


def test_settings_without_runs_may_be_changed(small_set, monkeypatch):
    """A name that was mistyped at first may be corrected, as nothing was trained with it."""
    monkeypatch.setattr(ablation, "measured_costs", lambda *_, **__: ablation.Costs(1.0, 1.0, 1.0))
    machine = ablation.Machine(str(small_set), small_set / "runs", "0", cpu=True)
    settings = ablation.Settings("Smlal", "Small", 2, 8, 1, batch_size=2, patch_size=16, lr=1e-3, steps=8)
    ablation.agreed_costs(settings, machine)
    ablation.agreed_costs(replace(settings, data_train="Small"), machine)
    assert json.loads((small_set / "runs/ablation.json").read_text())["settings"]["data_train"] == "Small"
