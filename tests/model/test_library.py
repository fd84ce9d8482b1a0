"""load and upscale: what a user of the library calls."""

import logging

import numpy as np
import pytest
import torch
from helpers import randomise
from torch import nn

import model
from model import library, tiling
from model.checkpoint import pack
from model.edsr import EDSR
from model.krgn import KRGN
from model.recalibration import is_recalibrated
from runtime.files import save_tensors


def krgn(**options) -> KRGN:
    return randomise(KRGN(**({"scale": 2, "n_feats": 8, "n_resgroups": 1} | options)), 0.1).eval()


IMAGE = torch.rand(1, 3, 9, 8) * 255


@pytest.mark.parametrize("folded", [True, False])
def test_a_checkpoint_is_loaded_folded_or_as_it_is(tmp_path, folded, caplog):
    network = krgn(dilation=2)
    save_tensors(tmp_path / "weights.pt", pack(network, "KRGN"))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with caplog.at_level(logging.INFO, logger="krgn"):
        logging.getLogger("krgn").propagate = True
        loaded = model.load(tmp_path / "weights.pt", folded=folded)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert is_recalibrated(loaded) == (not folded)
    assert loaded.hyperparameters == network.hyperparameters
    for word in ("training form", "KRGN x2", "groups 8", "dilation 2", "recalibrated kernels"):
        assert word in caplog.text
    with torch.no_grad():
        assert (loaded(IMAGE) - network(IMAGE)).abs().max() < 1e-3


def test_a_bare_state_dict_is_told_by_its_names(tmp_path):
    torch.save({"params": EDSR(n_resblocks=1, n_feats=4, scale=3).state_dict()}, tmp_path / "any.pth")
    loaded = model.load(tmp_path / "any.pth", res_scale=0.1)
    assert type(loaded) is EDSR
    assert (loaded.hyperparameters["scale"], loaded.hyperparameters["res_scale"]) == (3, 0.1)
    with pytest.raises(model.UserError, match=r"dilation 3, but .* is EDSR"):
        model.load(tmp_path / "any.pth", dilation=3)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_released_networks_by_name(scale):
    network = model.load(f"KRGN_x{scale}")
    assert network.hyperparameters["scale"] == scale
    assert not is_recalibrated(network)
    assert model.count_parameters(network) < 600_000


def test_what_is_not_known_is_refused_with_one_line(tmp_path):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "linear.pt")
    (tmp_path / "text.pt").write_text("hello")
    for source, words in {
        "KRGN_x5": "no such file, and the released networks are KRGN_x2, KRGN_x3, KRGN_x4",
        tmp_path / "linear.pt": "known are KRGN, CFGN, EDSR, RCAN",
        tmp_path / "text.pt": "no file of tensors",
        tmp_path / "none.pt": "no such file",
    }.items():
        with pytest.raises(model.UserError, match=words) as raised:
            model.load(source)
        assert str(source) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("rgb_range", [255, 1])
@pytest.mark.parametrize("tile", [None, 7])
def test_pixels_and_batches_are_the_same_image(photo, rgb_range, tile):
    network, pixels = krgn(rgb_range=rgb_range), photo[100:120, 100:131]
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() * (rgb_range / 255)
    with torch.no_grad():
        expected = network(batch)
    several = model.upscale(network, torch.cat([batch, batch.flip(3)]), tile=tile)
    assert several.shape == (2, 3, 40, 62)
    assert (several[:1] - expected).abs().max() < 1e-3 * rgb_range / 255
    array = model.upscale(network, pixels[:, ::-1][:, ::-1], tile=tile)  # a view with negative strides
    tensor = model.upscale(network, torch.from_numpy(pixels), tile=tile)
    assert isinstance(array, np.ndarray)
    assert (array.dtype, tensor.dtype) == (np.uint8, torch.uint8)
    assert np.array_equal(array, tensor.numpy())
    rounded = (expected[0] * (255 / rgb_range)).clamp(0, 255).round().permute(1, 2, 0)
    assert (tensor.float() - rounded).abs().max() <= 1
    assert not several.requires_grad
    assert not several.is_inference()


def test_a_network_in_half_precision_and_one_in_double():
    for dtype in (torch.bfloat16, torch.float64):
        out = model.upscale(krgn().to(dtype), IMAGE)
        assert (out.dtype, tuple(out.shape)) == (torch.float32, (1, 3, 18, 16))


def test_tiles_where_the_memory_is_short(monkeypatch, caplog):
    network = krgn()
    expected = model.upscale(network, IMAGE)
    monkeypatch.setattr(library, "AUTO_TILE", 5)
    monkeypatch.setattr(tiling, "SURE_TO_FIT", 10)
    monkeypatch.setattr(tiling, "available_memory", lambda: 100)
    with caplog.at_level(logging.INFO, logger="krgn"):
        logging.getLogger("krgn").propagate = True
        assert (model.upscale(network, IMAGE) - expected).abs().max() < 1e-3
    assert "an image of 8x9 pixels needs about" in caplog.text
    assert "tiles of 5" in caplog.text

    monkeypatch.setattr(tiling, "available_memory", lambda: None)
    forward = KRGN.forward

    def full(self, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(KRGN, "forward", full)
    assert (model.upscale(network, IMAGE) - expected).abs().max() < 1e-3
    monkeypatch.setattr(KRGN, "forward", forward)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((4, 5), np.uint8), ValueError, r"shape \(4, 5\), expected uint8 \(H, W, 3\)"),
        (np.zeros((4, 5, 4), np.uint8), ValueError, r"\(4, 5, 4\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"\(0, 5, 3\)"),
        (torch.zeros(3, 4, 5), ValueError, r"float tensor \(N, 3, H, W\)"),
        (torch.zeros(1, 1, 4, 5), ValueError, r"\(1, 1, 4, 5\)"),
        (np.zeros((4, 5, 3), np.int64), TypeError, "int64"),
        ([[1, 2]], TypeError, "list"),
    ],
)
def test_what_is_no_image(image, error, words):
    with pytest.raises(error, match=words):
        model.upscale(krgn(), image)


def test_what_is_no_network_and_no_tile():
    with pytest.raises(TypeError, match="Conv2d"):
        model.upscale(nn.Conv2d(3, 3, 1), IMAGE)
    with pytest.raises(ValueError, match="tile: got 0"):
        model.upscale(krgn(), IMAGE, tile=0)


def test_counting_folds_nothing(monkeypatch):
    network = krgn()
    folded = model.count_parameters(model.fold(network))
    monkeypatch.setattr(model.RecConv, "fold", None)
    assert model.count_parameters(network, folded=True) == folded < model.count_parameters(network)
