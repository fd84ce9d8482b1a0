"""--tracker: what each tracker gets of a run and its later sessions, and that none of them can end a training."""

import importlib.util
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import small_run
from helpers import history, launch

from runtime.errors import UserError
from train import trackers

FLAGS = ("--test_every", "2", "--loss", "1*L1+0.1*MSE")


def two_sessions(small_set, name: str) -> list[dict]:
    """A run that is begun and goes on; its history."""
    launch(*small_run(small_set, *FLAGS, "--tracker", name, "--epochs", "1"))
    launch("--load", "small", "--cpu", "--dir_experiment", small_set.parent / "experiment", "--epochs", "2")
    return history(small_set.parent / "experiment/small")


def needs(package: str):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs {package}: pip install --target DIR {package}, PYTHONPATH=DIR")


def records(content: bytes) -> Iterator[bytes]:
    """The records of wandb's file, which is a log of LevelDB: blocks of 32 KiB of parts with a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield whole
            whole = b""


@needs("wandb")
def test_wandb_offline(small_set, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    rows = two_sessions(small_set, "wandb")
    folder = small_set.parent / "experiment/small/wandb"
    from wandb.proto import wandb_internal_pb2

    logged, ids = [], set()
    for file in sorted(folder.glob("offline-run-*/*.wandb")):
        ids.add(file.stem)
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                logged.append({item.key or ".".join(item.nested_key): item.value_json for item in items})
    assert len(ids) == 1  # one run in both sessions
    assert [int(row["epoch"]) for row in logged] == [1, 2]
    for row, expected in zip(logged, rows, strict=True):
        assert float(row["Small_PSNR"]) == pytest.approx(float(expected["Small PSNR"]))
    assert len(list(folder.glob("offline-run-*/files/media/images/SR/*.png"))) == 4

    launch(*small_run(small_set, *FLAGS, "--tracker", "none", "--epochs", "1", "--reset"))
    assert not folder.exists()


@needs("mlflow")
def test_mlflow_in_files(small_set, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = two_sessions(small_set, "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient((small_set.parent / "experiment/mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("krgn").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["n_feats"]) == ("small", "FINISHED", "8")
    got = client.get_metric_history(run.info.run_id, "Small_PSNR")
    assert [(each.step, each.value) for each in got] == [
        (int(row["epoch"]), pytest.approx(float(row["Small PSNR"]))) for row in rows
    ]
    assert {Path(each.path).name for each in client.list_artifacts(run.info.run_id, "SR/0005")} == {
        "epoch_0001.png",
        "epoch_0002.png",
    }


def stub(monkeypatch, name: str, **content) -> types.ModuleType:
    """A module of this name for the rest of the test, found as an installed package is."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Run:
    """What `wandb.init` returns, as far as a tracker uses it."""

    dir = "/offline/files"

    def __init__(self, fails_at: int = 0):
        self.rows, self.fails_at, self.finished, self.metrics = [], fails_at, 0, []

    def define_metric(self, *names, **axes):
        self.metrics.append((names, axes))

    def log(self, row):
        if row["epoch"] == self.fails_at:
            raise ConnectionError("the server\nis gone")
        self.rows.append(row)

    def finish(self):
        self.finished += 1


def stub_of_wandb(monkeypatch, run: Run) -> list[dict]:
    started = []

    def init(**given):
        random.seed(7)  # as packages do that draw names
        started.append(given)
        return run

    api = types.SimpleNamespace(api_key=None)
    stub(monkeypatch, "wandb", init=init, Settings=dict, Image=lambda pixels: pixels.shape, api=api)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return started


def test_wandb_gets_one_run_in_all_sessions(small_set, monkeypatch):
    run = Run()
    started = stub_of_wandb(monkeypatch, run)
    rows = two_sessions(small_set, "wandb")
    assert len({given["id"] for given in started}) == 1
    assert [given["mode"] for given in started] == ["offline", "offline"]  # no key: it must not ask for one
    assert (started[0]["name"], started[0]["config"]["n_feats"]) == ("small", 8)
    assert run.metrics[0] == (("*",), {"step_metric": "epoch"})
    assert [row["epoch"] for row in run.rows] == [1, 2]
    assert [row["Small_PSNR"] for row in run.rows] == [pytest.approx(float(row["Small PSNR"])) for row in rows]
    assert run.rows[0]["SR/0005"] == (60, 64, 3)
    assert run.finished == 2


def test_a_tracker_that_fails_later_costs_one_line(small_set, monkeypatch, capsys):
    run = Run(fails_at=1)
    stub_of_wandb(monkeypatch, run)
    launch(*small_run(small_set, *FLAGS, "--tracker", "wandb"))
    assert len(history(small_set.parent / "experiment/small")) == 2
    said = capsys.readouterr().out
    assert said.count("Weights & Biases' run cannot be written (the server): the run goes on without it") == 1
    assert (run.rows, run.finished) == ([], 0)


def test_a_tracker_leaves_the_random_numbers_alone(tmp_path, monkeypatch):
    stub_of_wandb(monkeypatch, Run())
    random.seed(1)
    expected = random.Random(1).random()
    trackers.begin("wandb", trackers.TrackedRun(folder=tmp_path / "a/b", parent=tmp_path, id="x", first=1))
    assert random.random() == expected


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_package_is_one_line_before_anything_else(small_set, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"--tracker {name}: the package {name} is not installed: pip install"):
        launch(*small_run(small_set, "--tracker", name))
    assert not (small_set.parent / "experiment").exists()


def test_a_missing_tensorboard_that_nobody_asked_for_is_left_out(small_set, monkeypatch, capsys):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    launch(*small_run(small_set, *FLAGS, "--epochs", "1"))
    assert "no TensorBoard file: the package tensorboard is not installed" in capsys.readouterr().out
    assert not (small_set.parent / "experiment/small/tensorboard").exists()
