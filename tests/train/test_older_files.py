"""Files that releases before this one wrote must load and go on.

`files/run_2026_11` is a run of two epochs of four batches on `small_set`, stopped after six batches, as it was written
in November 2026; `undisturbed.pt` there holds the weights of the same run without the stop. They are not made again
when the format changes: they are what users have.
"""

import shutil

import pytest
import torch
from conftest import ROOT
from helpers import history, launch, weights

from model.checkpoint import rebuild, unpack
from model.recalibration import fold, is_recalibrated
from model.weights import load_tensors

RUN = ROOT / "tests/train/files/run_2026_11"


def test_a_stopped_run_goes_on(small_set):
    folder = small_set.parent / "experiment/small"
    shutil.copytree(RUN, folder)
    launch("--cpu", "--n_threads", "0", "--load", "small", "--dir_experiment", folder.parent, "--dir_data", small_set)
    assert "[epoch 2] learning rate 5.00e-04" in (folder / "log.txt").read_text()
    first, second = history(folder)
    assert float(first["Small PSNR"]) == pytest.approx(22.884, abs=1e-3)  # read, not computed again
    assert float(second["Small PSNR"]) == pytest.approx(23.003, abs=0.01)
    undisturbed = load_tensors(RUN / "undisturbed.pt")["model"]
    found = weights(folder)
    assert found.keys() == undisturbed.keys()
    for name, tensor in undisturbed.items():  # another processor rounds otherwise
        assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-5), name


def test_a_checkpoint_loads(photo):
    checkpoint = unpack(load_tensors(RUN / "model/model_best.pt"), "model_best.pt")
    network = rebuild(checkpoint).eval()
    assert is_recalibrated(network)
    assert checkpoint.facts["epoch"] == 1
    shape = {"scale": 2, "n_feats": 4, "n_resgroups": 1, "groups": 4, "dilation": 3, "act": "lrelu"}
    assert network.hyperparameters == shape | {"n_colors": 3, "rgb_range": 255.0}
    image = torch.from_numpy(photo[:20, :24].copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        sr = network(image)
        assert torch.allclose(sr, fold(network)(image), atol=1e-3)
    assert sr.mean().item() == pytest.approx(112.650, abs=0.01)
