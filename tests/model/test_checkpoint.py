"""Files of weights: every form is read, nothing in them runs, and every contradiction is named."""

import argparse
import logging
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from helpers import followed, randomise

from deploy.fold import write_folded
from model.checkpoint import load_pre_trained, load_weights, pack, rebuild, unpack
from model.krgn import KRGN
from model.networks import build_model
from model.recalibration import RecConv, fold, is_recalibrated
from model.weights import load_tensors
from option import parse_args
from runtime.errors import UserError
from runtime.files import save_tensors

SHAPE = {"scale": 2, "n_feats": 16, "n_resgroups": 2, "groups": 4, "dilation": 2}


def checkpoint(content, path="weights.pt"):
    return unpack(content, path)


def network(**changes) -> KRGN:
    return randomise(KRGN(**(SHAPE | changes)))


def adopted(flags: str, content):
    return followed(parse_args(flags.split()), checkpoint(content))


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
    load_pre_trained(trained, options.model, checkpoint(content))
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
        followed(parse_args(["--pre_train", "x"]), checkpoint(content))


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


# --- what other trainers save ---


def small_state() -> dict[str, torch.Tensor]:
    return dict(KRGN(scale=2, n_feats=8, n_resgroups=1, recalibrated=False).state_dict())


def averaged(state: dict) -> dict:
    return {name: tensor * 0.5 for name, tensor in state.items()}


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED = {
    **{
        name: (lambda state, name=name: {name: state, "epoch": 3})
        for name in "state_dict model model_state_dict model_state params params_ema params-ema ema net netG net_g "
        "generator network weights model_ema ema_state_dict state_dict_ema module".split()
    },
    "two levels": lambda state: {"checkpoint": 1, "model": {"state_dict": state}},
    "a name of its own": lambda state: {"my_net": state, "iter": 5},
    **{
        f"prefix {prefix}": (lambda state, prefix=prefix: prefixed(state, prefix))
        for prefix in "module. _orig_mod. model. net. network. generator. module._orig_mod. model.net_g.module.".split()
    },
    "counters": lambda state: state | {"n_averaged": torch.tensor(4), "iteration": 7, "name": "x"},
    "averaged model": lambda state: {"n_averaged": torch.tensor(4)} | prefixed(state, "module."),
    "lightning": lambda state: {
        "state_dict": prefixed(state, "net_g.")
        | prefixed({"0.weight": torch.ones(4, 3)}, "net_d.")
        | {"loss_fn.vgg.0.weight": torch.ones(2, 2)},
        "hyper_parameters": argparse.Namespace(lr=numpy.float64(1e-3), shape=numpy.arange(3), path=Path("a/b")),
        "callbacks": OrderedDict(a=numpy.int64(3), b=defaultdict(list, {"x": [1]})),
        "dtype": numpy.dtype("float32"),
        "size": torch.Size([1, 2]),
    },
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights_are_found_in_what_trainers_save(tmp_path, wrap, name):
    state = small_state()
    torch.save(wrap(state), tmp_path / name)
    found = unpack(load_tensors(tmp_path / name), "weights").state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    rebuild(unpack(load_tensors(tmp_path / name), "weights"))


def test_a_file_is_told_by_its_content(tmp_path):
    state = small_state()
    for name in ("weights.pth", "weights.pt", "weights"):
        safetensors.torch.save_file(state, tmp_path / name)
        assert unpack(load_tensors(tmp_path / name), name).state.keys() == state.keys()
    torch.save(state, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    assert unpack(load_tensors(tmp_path / "old.safetensors"), "old").state.keys() == state.keys()


@pytest.mark.parametrize("name", ["params_ema", "params-ema", "ema", "model_ema"])
def test_averaged_weights_are_preferred_and_that_is_said(name, caplog):
    state = small_state()
    with caplog.at_level("INFO", logger="krgn"):
        logging.getLogger("krgn").propagate = True
        found = unpack({"params": state, name: averaged(state)}, "weights").state
    assert torch.equal(found["head_conv.weight"], state["head_conv.weight"] * 0.5)
    assert f"using the averaged weights ({name}, not params)" in caplog.text


def test_half_precision_is_used_as_float32():
    state = {name: tensor.bfloat16() for name, tensor in small_state().items()}
    assert {tensor.dtype for tensor in unpack(state, "weights").state.values()} == {torch.float32}


def test_weights_without_a_mean_shift_are_told_what_is_missing():
    state = {name: tensor for name, tensor in small_state().items() if "_mean" not in name}
    with pytest.raises(UserError, match="without the mean shift"):
        rebuild(unpack(state, "weights"))


ODD = {
    "NaN": (lambda t: t.clone().fill_(torch.nan), "not finite"),
    "infinity": (lambda t: t.clone().fill_(-torch.inf), "not finite"),
    "integers": (lambda t: t.to(torch.int64), "is int64"),
    "complex": (lambda t: t.to(torch.complex64), "complex"),
    "sparse": (lambda t: t.to_sparse(), "sparse"),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
    "meta": (lambda t: t.to("meta"), "without values"),
    "empty": (lambda t: t[:0], "empty"),
    "expanded": (lambda t: torch.zeros(1).expand(10**6, 10**6), "bytes expanded to"),
}


@pytest.mark.parametrize(("change", "said"), ODD.values(), ids=ODD.keys())
def test_tensors_that_are_no_weights_are_refused_by_name(tmp_path, change, said):
    state = small_state()
    state["upsampler.0.weight"] = change(state["upsampler.0.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(state, tmp_path / "weights.pt")
        with pytest.raises(UserError, match=rf"upsampler.0.weight.*{said}|no file of tensors"):
            unpack(load_tensors(tmp_path / "weights.pt"), "weights.pt")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("dilation", 10**9), ("dilation", 2.5), ("act", ["lrelu"]), ("dilation", True), ("model", "A\x1b[2J")],
)
def test_absurd_facts_are_refused_before_anything_is_built(flag, value):
    packed = pack(KRGN(scale=2, n_feats=8, n_resgroups=1, recalibrated=False), "KRGN")
    packed["facts"][flag] = value
    with pytest.raises(UserError) as caught:
        rebuild(unpack(packed, "weights"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("form", ["zip", "safetensors"])
def test_a_flipped_bit_is_noticed(tmp_path, form):
    network = KRGN(scale=2, n_feats=8, n_resgroups=1, recalibrated=False)
    path = tmp_path / "weights"
    save_tensors(path, pack(network, "KRGN"))
    if form == "safetensors":
        write_folded(path, path.with_suffix(".safetensors"))
        path = path.with_suffix(".safetensors")
    content = path.read_bytes()
    some = network.body[0].conv1x1_act[0].weight.detach().numpy().tobytes()[:64]
    at = content.index(some)
    for bit in range(0, 8 * 64, 37):
        changed = bytearray(content)
        changed[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(UserError, match="is damaged"):
            load_tensors(path)
    path.write_bytes(content)
    load_tensors(path)


def test_archives_that_are_not_torchs_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10**7)
    with pytest.raises(UserError, match="is damaged"):
        load_tensors(path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(UserError, match="is a pipe"):
        load_tensors(tmp_path / "pipe.pt")


def test_objects_in_numpys_types_are_refused(tmp_path):
    torch.save({"a": torch.ones(2), "b": numpy.array([object], dtype=object)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"refused|no file of tensors"):
        load_tensors(tmp_path / "weights.pt")
