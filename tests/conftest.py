"""What several tests share: the shared data beside the checkout, small real images, and ways to run the programs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from forked import Program

from data.image import read_image, write_png
from model import cffb

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"


# The files that take longest, the longest first: begun last, one of them would keep a single process busy at the end.
SLOW = (
    "train/test_auto_resume.py", "deploy/test_web.py", "deploy/test_export.py", "test_main.py", "model/test_cffb.py",
    "train/test_training.py", "train/test_distributed.py", "model/test_cffb_gpu.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Slow files come first; tests marked `gpu` run where there is one."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared, with the benchmark sets and the published weights; skips where it is absent."""
    folder = Path(os.environ.get("KRGN_SHARED", ROOT.parent / "shared"))
    if not (folder / "benchmark/Set5/HR").is_dir():
        if os.environ.get("KRGN_REQUIRE_SHARED"):
            pytest.fail(f"{folder} has no benchmark sets, but KRGN_REQUIRE_SHARED is set")
        pytest.skip(f"needs the benchmark sets and published weights in {folder} (KRGN_SHARED names another folder)")
    return folder


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A photograph that the scikit-image package ships: the cat Chelsea, uint8 (300, 451, 3)."""
    return read_image(Path(skimage.__file__).parent / "data/chelsea.png")


@pytest.fixture
def small_set(tmp_path, photo) -> Path:
    """<tmp>/dataset with a set Small in DIV2K's shape: six crops of a photograph, 64x60 pixels, HR only."""
    for number in range(6):
        top, left = divmod(number, 3)
        crop = photo[80 + 100 * top : 140 + 100 * top, 60 + 110 * left : 124 + 110 * left]
        write_png(tmp_path / f"dataset/Small/Small_train_HR/{number + 1:04}.png", crop)
    return tmp_path / "dataset"


def small_run(small_set: Path, *flags: str) -> list[str]:
    """Flags of a training run that takes seconds: x2, 8 features, one block; the experiments lie beside the data."""
    return [
        *("--cpu", "--n_threads", "0", "--scale", "2", "--n_feats", "8", "--n_resgroups", "1", "--patch_size", "24"),
        *("--batch_size", "4", "--test_every", "4", "--epochs", "2", "--lr", "1e-3", "--print_every", "2"),
        *("--dir_data", str(small_set), "--data_train", "Small", "--data_test", "Small", "--data_range", "1-4/5-6"),
        *("--dir_experiment", str(small_set.parent / "experiment"), "--save", "small"),
        *flags,
    ]


def program(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a program of src/ as a user does, from src/, with torch loaded already; the output of both kinds is text."""
    running = Program(name, *arguments)
    out, err = running.communicate()
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def command(name: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """As `program`, by a new interpreter, which takes seconds longer."""
    return subprocess.run(
        [sys.executable, name, *map(str, arguments)], cwd=SRC, capture_output=True, text=True, timeout=150, **options
    )


def assert_one_line(run: subprocess.CompletedProcess, *words: str) -> None:
    """The run failed with one line on stderr, without a traceback, that has all the words."""
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    assert run.returncode not in (0, None), run.stdout + run.stderr
    assert len(lines) == 1, run.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])


@pytest.fixture(autouse=True)
def _curves_drawn_where_asked(request, monkeypatch):
    """Drawing a run's curves takes longer than its training here: only tests marked `curves` do so."""
    if not request.node.get_closest_marker("curves"):
        monkeypatch.setattr("reporting.figures.curves", lambda history: {})


@pytest.fixture(scope="session", autouse=True)
def _fused_operators():
    """Networks that tests run in this process compute as they do in the commands, whichever test comes first."""
    cffb.build_when_needed()


@pytest.fixture(autouse=True)
def _restore_threads():
    """Tests that change torch's generator or thread count must not change the next one."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
