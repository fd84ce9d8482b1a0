"""config.txt and run.json: what a run was, on what, with which data, in how many sessions."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import small_run
from forked import Program
from helpers import launch, wait_for

from runtime import provenance
from runtime.errors import UserError
from runtime.provenance import RunRecord, file_list

FLAGS = ("--test_every", "2", "--tracker", "none")


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_run_says_what_it_is(small_set, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--save", "small", "--loss", "1*L1 + x"])
    launch(*small_run(small_set, *FLAGS, "--epochs", "1"))
    folder = small_set.parent / "experiment/small"
    config = (folder / "config.txt").read_text()
    assert shlex.split(re.search("^command: (.*)$", config, re.M)[1]) == sys.argv
    assert re.search(r"^uncommitted changes: (yes|no|unknown)$", config, re.M)
    assert re.search(r"^cores: \d+$", config, re.M)
    assert re.search(r"^training set Small: 4 images, \d+ bytes, digest [0-9a-f]{64}$", config, re.M)
    assert re.search(r"^test set Small: 2 images", config, re.M)

    (session,) = record(folder)["sessions"]
    assert session["hardware"] == provenance.hardware(torch.device("cpu"))
    assert (session["hardware"]["processes"], session["hardware"]["GPUs"]) == (1, 0)
    assert (session["from"], session["to"]) == ({"epoch": 0, "batch": 0}, {"epoch": 1, "batch": 0})
    assert session["end"] == "complete"
    assert 0 < session["wall seconds"] < 100
    files = [path for path in (small_set / "Small/Small_train_HR").iterdir() if int(path.stem) <= 4]
    files += [path for path in (small_set / "Small/Small_train_LR_bicubic/X2").iterdir() if int(path.stem[:4]) <= 4]
    assert session["data"]["training"][0]["bytes"] == sum(path.stat().st_size for path in files)


def test_sessions_are_kept(small_set):
    """One that is stopped, one that is killed, one that fails, one that ends."""
    folder, flags = small_set.parent / "experiment/small", small_run(small_set, "--test_every", "5000", "--epochs", "1")
    flags += ["--tracker", "none", "--auto_resume", "--save_every", "0.0001", "--print_every", "1"]
    for end in ("send_signal", "kill"):
        process = Program("main.py", *flags)
        wait_for(process, "batches an epoch")
        wait_for(process, "[5/" if end == "send_signal" else "patches/s")
        wait_for(process, "patches/s")
        getattr(process, end)(*[15] * (end == "send_signal"))
        process.communicate()
    with pytest.raises(UserError):
        launch(*flags, "--override", "data_range", "--data_range", "1-3/5-60")
    stopped, killed = record(folder)["sessions"]
    assert stopped["end"] == "stopped by SIGTERM"
    assert killed["end"] is None
    assert killed["from"] == stopped["to"]
    assert killed["to"]["batch"] > killed["from"]["batch"] >= 5
    assert killed["wall seconds"] > 0
    first = record(folder)["id"]

    launch(*small_run(small_set, *FLAGS, "--epochs", "1", "--reset"))
    assert [session["end"] for session in record(folder)["sessions"]] == ["complete"]
    assert record(folder)["id"] != first


def test_a_failure_is_an_end(tmp_path):
    recorded = RunRecord(tmp_path / "run.json")
    recorded.begin({})
    with pytest.raises(RuntimeError), recorded.ending():
        raise RuntimeError("a bug\nwith a story")
    assert record(tmp_path)["sessions"][0]["end"] == "failed: a bug"


OF_A_NEWER_VERSION = '{"format": "KRGN framework run", "version": 2}'


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"format": "x"}', OF_A_NEWER_VERSION])
def test_a_damaged_record_is_left_alone(small_set, content, capsys):
    launch(*small_run(small_set, *FLAGS, "--epochs", "1"))
    folder = small_set.parent / "experiment/small"
    (folder / "run.json").write_text(content)
    launch("--load", "small", "--cpu", "--dir_experiment", folder.parent, "--epochs", "2")
    assert (folder / "run.json").read_text() == content
    assert capsys.readouterr().out.count("run.json: is no record of a run") == 1


def test_the_digest_is_of_names_and_sizes(tmp_path):
    for name, text in (("a", "12"), ("b", "345")):
        (tmp_path / name).write_text(text)
    files = [(name, tmp_path / name) for name in "ab"]
    found = file_list("S", 2, files)
    assert (found["set"], found["images"], found["bytes"]) == ("S", 2, 5)
    assert file_list("S", 2, files[::-1]) == found
    (tmp_path / "a").write_text("99")
    assert file_list("S", 2, files) == found
    (tmp_path / "a").write_text("999")
    assert file_list("S", 2, files)["digest"] != found["digest"]
    assert file_list("S", 2, [("c", tmp_path / "b"), files[0]])["digest"] != found["digest"]


def test_a_commit_with_and_without_changes(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path)]
    (tmp_path / "code.py").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True, env=os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"})
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "code.py"))
    for expected in (False, True):
        provenance.git_commit.cache_clear()
        assert provenance.uncommitted_changes() is expected
        assert re.fullmatch(r"[0-9a-f]{40}\+?", provenance.git_commit())
        (tmp_path / "code.py").write_text("2")
    provenance.git_commit.cache_clear()
