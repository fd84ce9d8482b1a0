"""Files of weights: every form is read, nothing in them runs, and every contradiction is named."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from test_recalibration import randomise

from errors import UserError
from model import build_model
from model.checkpoint import adopt, load_pre_train, load_weights, pack, rebuild, unpack
from model.krgn import KRGN
from model.recalibration import RecConv, fold, is_recalibrated
from option import parse_args
from utility import load_tensors, save_tensors

SHAPE = {"scale": 2, "n_feats": 16, "n_resgroups": 2, "groups": 4, "dilation": 2}


def checkpoint(content, path="weights.pt"):
    return unpack(content, path)


def network(**changes) -> KRGN:
    return randomise(KRGN(**(SHAPE | changes)))


def adopted(flags: str, content):
    return adopt(parse_args(flags.split()), checkpoint(content))


IMAGE = torch.rand(1, 3, 9, 8) * 255


@pytest.mark.parametrize("wrap", [dict, lambda s: {"params": s}, lambda s: {f"module.{k}": v for k, v in s.items()}])
@pytest.mark.parametrize("form", ["training", "folded", "plain"])
def test_a_test_reads_every_form_and_needs_no_flags(wrap, form):
    original = network(dilation=3, recalibrated=form != "plain").eval()
    saved = fold(original) if form == "folded" else original
    content = wrap(saved.state_dict())
    options = adopted("--test_only --pre_train x", content)
    loaded = build_model(options).eval()
    load_weights(loaded, checkpoint(content))
    assert (options.scale, options.n_feats, options.n_resgroups, options.groups) == (2, 16, 2, 4)
    assert is_recalibrated(loaded) == (form == "training")
    with torch.no_grad():
        assert (loaded(IMAGE) - original(IMAGE)).abs().max() < 1e-3


def test_our_checkpoint_says_what_a_state_dict_cannot():
    original = network(act="relu").eval()
    content = pack(original, "KRGN", epoch=3)
    options = adopted("--test_only --pre_train x", content)
    assert (options.dilation, options.act) == (2, "relu")
    rebuilt = rebuild(checkpoint(content)).eval()
    with torch.no_grad():
        assert torch.equal(rebuilt(IMAGE), original(IMAGE))


def test_a_plain_file_is_recalibrated_over_a_frozen_basis():
    """RefConv's recipe: the kernels are inherited, the function is the same at first, only T is trained."""
    plain = network(recalibrated=False).eval()
    content = pack(plain, "KRGN")
    options = adopted("--pre_train x", content)
    assert (options.kernels, options.basis) == ("recalibrated", "frozen")
    trained = build_model(options).eval()
    load_weights(trained, checkpoint(content))
    with torch.no_grad():
        assert torch.equal(trained(IMAGE), plain(IMAGE))
    for module in trained.modules():
        if isinstance(module, RecConv):
            assert not module.weight.requires_grad
            assert module.transform.requires_grad


@pytest.mark.parametrize(
    ("flags", "kernels", "basis"),
    [("--basis trained", "recalibrated", "trained"), ("--kernels plain", "plain", "trained")],
)
def test_unless_told_otherwise(flags, kernels, basis):
    options = adopted(f"--pre_train x {flags}", pack(network(recalibrated=False), "KRGN"))
    assert (options.kernels, options.basis) == (kernels, basis)


def test_training_goes_on_with_a_recalibrated_file_as_it_was():
    for train_basis in (True, False):
        options = adopted("--pre_train x", pack(network(train_basis=train_basis), "KRGN"))
        assert (options.kernels, options.basis) == ("recalibrated", "trained" if train_basis else "frozen")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--n_feats 64", ("--n_feats 64", "16")),
        ("--n_resgroups 9", ("--n_resgroups 9", "2")),
        ("--groups 0", ("--groups 16", "4")),
        ("--dilation 3", ("--dilation 3", "2")),
        ("--kernels plain", ("--kernels plain", "fold")),
        ("--scale 4 --test_only", ("--scale 4", "2")),
        ("--n_colors 1", ("--n_colors 1", "3")),
        ("--rgb_range 1", ("--rgb_range 1", "255")),
    ],
)
def test_a_flag_that_contradicts_the_file_is_named_with_both_values(flags, words):
    with pytest.raises(UserError) as raised:
        adopted(f"--pre_train x {flags}", pack(network(), "KRGN"))
    assert all(word in str(raised.value) for word in words), raised.value


def test_flags_that_agree_with_the_file_are_welcome():
    options = adopted("--pre_train x --n_feats 16 --groups 4 --scale 2", pack(network(), "KRGN"))
    assert options.groups == 4


def test_training_at_another_scale_keeps_everything_but_the_upsampler(caplog):
    caplog.set_level("INFO", logger="krgn")
    content = pack(network(), "KRGN")
    options = adopted("--pre_train x --scale 3 --patch_size 96", content)
    assert options.scale == 3
    trained = build_model(options)
    fresh = trained.upsampler[0].weight.clone()
    load_pre_train(options, trained, checkpoint(content))
    assert torch.equal(trained.upsampler[0].weight, fresh)
    for name, tensor in content["model"].items():
        if not name.startswith("upsampler"):
            assert torch.equal(trained.state_dict()[name], tensor)
    assert "everything but the upsampler is kept for x3" in caplog.text


def test_strict_loading_names_what_does_not_fit():
    state = network().state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["head_conv.bias"]
    state["head_conv.weight"] = torch.zeros(16, 3, 5, 5)
    with pytest.raises(UserError) as raised:
        load_weights(network(), checkpoint(state))
    said = str(raised.value)
    assert "1 missing (head_conv.bias)" in said
    assert "1 unexpected (extra.weight)" in said
    assert "1 of another shape (head_conv.weight (16, 3, 5, 5), expected (16, 3, 3, 3))" in said


def test_half_of_the_transforms_is_not_enough():
    state = network().state_dict()
    del state[next(name for name in state if name.endswith(".transform"))]
    with pytest.raises(UserError, match="1 missing"):
        load_weights(network(), checkpoint(state))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"weight": torch.zeros(3)}])
def test_other_files_are_refused(content):
    with pytest.raises(UserError, match=r"weights\.pt"):
        adopt(parse_args(["--pre_train", "x"]), checkpoint(content))


# --- files ---


class Malicious:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("writer", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_in_a_file_runs(tmp_path, writer):
    path, trace = tmp_path / "weights.pt", tmp_path / "it_ran"
    writer({"weight": torch.zeros(1), "more": Malicious(trace)}, path)
    with pytest.raises(UserError, match=r"refused|no file of tensors"):
        load_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "half", "folder"])
def test_damaged_files_get_one_line(tmp_path, damage):
    path = tmp_path / "weights.pt"
    save_tensors(path, {"weight": torch.rand(1000)})
    if damage == "missing":
        path.unlink()
    elif damage == "folder":
        path = tmp_path
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello", "half": whole[: len(whole) // 2]}[damage])
    with pytest.raises(UserError) as raised:
        load_tensors(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_tensors(path, {"value": 1})

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_tensors(path, {"value": 2})
    monkeypatch.undo()
    assert load_tensors(path) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]
