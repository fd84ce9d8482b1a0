"""kl.py, demo.py and the pictures: against direct computation, and with wrong input."""

import csv
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import randomise
from PIL import Image

import kl
from data.image import list_images, read_image
from evaluation.kernels import FIELD, effective_rank, kl_matrix, mean_divergence
from model.checkpoint import pack
from model.krgn import KRGN
from model.weights import load_tensors
from reporting import figures
from runtime.errors import UserError
from runtime.files import save_tensors
from studies import demo


@pytest.fixture
def trained(tmp_path):
    """A small checkpoint in training form, with transforms that are not zero."""
    path = tmp_path / "model_best.pt"
    save_tensors(path, pack(randomise(KRGN(scale=3, n_feats=12, n_resgroups=2, groups=4, dilation=2)), "KRGN", epoch=7))
    return path


# --- kl ---


def test_divergence_against_a_double_loop():
    kernels = torch.randn(7, 2, 3, 3)
    expected = np.zeros((7, 7))
    for i, j in itertools.combinations(range(7), 2):
        p, q = (kernels[k].flatten().double().softmax(0).tolist() for k in (i, j))
        expected[i, j] = expected[j, i] = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    matrix = kl_matrix(kernels).numpy()
    assert np.allclose(matrix, expected, atol=1e-12)
    assert mean_divergence(matrix) == pytest.approx(expected.sum() / 42)


def test_equal_kernels_do_not_diverge():
    matrix = kl_matrix(torch.ones(5, 1, 3, 3) * torch.randn(3, 3))
    assert matrix.abs().max() < 1e-12


def test_kl_of_the_training_form(trained, tmp_path, capsys):
    out = tmp_path / "kl"
    kl.main(["--pre_train", str(trained), "--out", str(out), "--layer", "2"])
    names = [f"kl_block{block}_layer2_{row}.npy" for block in (1, 2) for row in ("W_b", "W_t")]
    names += ["kl.png", "layers.png", "layers.csv", "receptive_field.npy", "receptive_field.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    state = load_tensors(trained)["model"]
    basis = np.load(out / "kl_block2_layer2_W_b.npy")
    assert np.allclose(basis, kl_matrix(state["body.1.blocks.0.conv_acts.1.0.weight"]).numpy())
    said = capsys.readouterr().out
    recalibrated = np.load(out / "kl_block2_layer2_W_t.npy")
    assert f"block 2: mean divergence W_b {mean_divergence(basis):.4f} -> W_t" in said
    assert not np.allclose(basis, recalibrated)

    with open(out / "layers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    assert float(rows[19]["divergence W_b"]) == pytest.approx(mean_divergence(basis))  # block 2, layer 2
    assert float(rows[19]["divergence W_t"]) == pytest.approx(mean_divergence(recalibrated))
    field = np.load(out / "receptive_field.npy")
    assert field.shape == (FIELD, FIELD)
    assert field.sum() == pytest.approx(1)
    assert field[FIELD // 2, FIELD // 2] > 10 * field[0, 0]


def test_effective_rank():
    """1 for multiples of one kernel, n for orthogonal ones of one length."""
    assert effective_rank(torch.outer(torch.arange(1.0, 6), torch.randn(9)).view(5, 1, 3, 3)) == pytest.approx(1)
    assert effective_rank(torch.eye(9)[:4].view(4, 1, 3, 3) * 7) == pytest.approx(4)
    assert 1 < effective_rank(torch.randn(6, 1, 3, 3)) < 6


def test_growth_over_several_checkpoints(tmp_path):
    """Divergence by epoch, as the files state it; files of different forms cannot be compared."""
    paths = []
    for epoch, size in ((3, 0.1), (5, 0.3), (9, 0.6)):
        network = randomise(KRGN(scale=2, n_feats=8, n_resgroups=1), size)
        paths.append(str(tmp_path / f"model_{epoch}.pt"))
        save_tensors(tmp_path / f"model_{epoch}.pt", pack(network, "KRGN", epoch=epoch))
    kl.main(["--pre_train", *paths, "--out", str(tmp_path / "kl")])
    with open(tmp_path / "kl/epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["3", "5", "9"]
    assert [float(row["W_t"]) for row in rows] == sorted(float(row["W_t"]) for row in rows)
    assert Image.open(tmp_path / "kl/epochs.png").size[0] > 300
    save_tensors(tmp_path / "plain.pt", pack(KRGN(scale=2, n_feats=8, n_resgroups=1, recalibrated=False), "KRGN"))
    with pytest.raises(UserError, match="files of one form"):
        kl.main(["--pre_train", paths[0], str(tmp_path / "plain.pt"), "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("folded", "reason"), [(True, "its basis is gone"), (False, "it has no basis")])
def test_kl_without_a_basis_draws_one_row(tmp_path, capsys, folded, reason):
    path = tmp_path / "plain.pt"
    network = KRGN(scale=2, n_feats=8, n_resgroups=1, recalibrated=False)
    save_tensors(path, pack(network, "KRGN", **({"folded": True} if folded else {})))
    kl.main(["--pre_train", str(path), "--out", str(tmp_path / "kl")])
    assert len(list((tmp_path / "kl").glob("kl_*.npy"))) == 1
    assert reason in capsys.readouterr().out


def test_a_scale_without_length(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        kl.main(["--pre_train", str(trained), "--out", str(tmp_path / "kl"), "--vmax", "0"])
    assert "--vmax: got '0', expected a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--blocks", "3"), ("--blocks", "0"), ("--blocks", "a+b"), ("--layer", "19")])
def test_mistakes_of_kl(trained, tmp_path, flags):
    with pytest.raises(UserError, match=flags[0]):
        kl.main(["--pre_train", str(trained), "--out", str(tmp_path / "kl"), *flags])
    assert not (tmp_path / "kl").exists()


# --- figures and demo ---


@pytest.mark.curves
def test_figures_are_pictures(tmp_path):
    history = [{"epoch": e, "loss": 9 / e, "Set5 PSNR": 30 + e, "Set14 PSNR": math.inf} for e in (1, 2, 3)]
    pixels = np.zeros((8, 9, 3), np.uint8)
    drawn = {
        "curves": figures.curves(history)["png"],
        "no_scores": figures.curves([{"epoch": 1, "loss": 2.0}])["png"],
        "kernels": figures.kernel_matrices({"W_b": [np.eye(8)] * 2, "W_t": [np.eye(8)] * 2}, [1, 4], vmax=0.1),
        "crops": figures.crops([("cat", [("LR", pixels), ("HR", pixels)])] * 2),
    }
    for name, content in drawn.items():
        (tmp_path / name).write_bytes(content)
        assert Image.open(tmp_path / name).size[1] > 200


def test_demo_data_has_held_out_photographs(tmp_path):
    demo.make_data(tmp_path / "Photos")
    images = list_images(tmp_path / "Photos/Photos_train_HR")
    assert len(images) == len(demo.TRAINING) + len(demo.HELD_OUT)
    assert [path.stem for path in images[-3:]] == list(demo.CROPS)
    assert min(min(read_image(path).shape[:2]) for path in images) >= 192
    before = [path.stat().st_mtime_ns for path in images]
    demo.make_data(tmp_path / "Photos")
    assert [path.stat().st_mtime_ns for path in images] == before
    for path in images[-3:]:
        left, top = demo.CROPS[path.stem]
        height, width = read_image(path).shape[:2]
        assert left + demo.CROP_SIDE <= width
        assert top + demo.CROP_SIDE <= height
