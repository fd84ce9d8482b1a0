"""The way out: folds that are checked, every form against torch, files that run without this framework."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_one_line, program, small_run
from helpers import launch, randomise
from pytorchcv.models.mobilenetv2 import mobilenetv2_wd4
from torch import nn

import export
from deploy import folder as export_folder
from deploy import formats
from deploy.context import ExportContext
from deploy.fold import TOLERANCE, write_folded
from deploy.measure import Latency
from deploy.program import write_program
from deploy.rewrite import for_deployment, mean_shift_notes, without_prelu
from model.checkpoint import pack, rebuild, unpack
from model.krgn import KRGN
from model.networks import build_model
from model.recalibration import RecConv, fold, is_recalibrated, recalibrate
from model.weights import load_tensors
from option import parse_args
from runtime.errors import UserError
from runtime.files import digest, save_tensors

SHAPE = {"scale": 3, "n_feats": 12, "n_resgroups": 1, "groups": 4, "dilation": 2}


@pytest.fixture
def trained(tmp_path):
    """A small checkpoint in training form, with transforms that are not zero."""
    path = tmp_path / "model_best.pt"
    save_tensors(path, pack(randomise(KRGN(**SHAPE), 0.1), "KRGN", epoch=7, weights="averaged"))
    return path


# --- the folded file ---


def test_the_folded_file_says_all_it_takes(trained, tmp_path):
    target = tmp_path / "folded.safetensors"
    assert write_folded(trained, target) < TOLERANCE
    content = load_tensors(target)
    facts = content["facts"]
    assert {name: facts[name] for name in SHAPE} == SHAPE
    assert (facts["folded"], facts["weights"], facts["epoch"]) == (True, "averaged", 7)
    network = rebuild(unpack(content, str(target)))
    assert not is_recalibrated(network)
    image = torch.rand(1, 3, 20, 17) * 255
    with torch.no_grad():
        original = rebuild(unpack(load_tensors(trained), str(trained)))
        assert torch.allclose(original(image), network(image), atol=1e-3)
    # The safetensors package itself reads the rest.
    from safetensors import safe_open

    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert metadata["source_sha256"] == digest(trained)
    assert "RGB, 0..255" in metadata["input"]
    assert re.fullmatch(r"[0-9a-f]{40}\+?|unknown", metadata["git_commit"])


def drops_the_transform(network):
    network = copy.deepcopy(network)
    for name, parameter in network.named_parameters():
        if name.endswith(".transform"):
            parameter.data.zero_()
    return fold(network)


def drops_the_dilation(network):
    broken = fold(network)
    broken.config = dataclasses.replace(broken.config, dilation=1)
    return broken


def averages_after_folding(network):
    """The mean of two folded networks, where the checkpoint holds the mean of the two before folding."""
    shifts = {name: torch.randn_like(p) * 0.3 for name, p in network.named_parameters() if "conv_acts" in name}
    states = []
    for sign in (1, -1):
        other = copy.deepcopy(network)
        with torch.no_grad():
            for name, shift in shifts.items():
                other.get_parameter(name).add_(sign * shift)
        states.append(fold(other).state_dict())
    mean = fold(network)
    mean.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
    return mean


@pytest.mark.parametrize("broken", [drops_the_transform, drops_the_dilation, averages_after_folding])
def test_a_broken_fold_is_caught(trained, tmp_path, monkeypatch, broken):
    """And the line says in which layer it begins."""
    monkeypatch.setattr("deploy.fold.fold", broken)
    with pytest.raises(UserError, match=r"differs by .* of 255.*first in body.0.blocks.0.conv_acts.\d.0"):
        write_folded(trained, tmp_path / "folded.safetensors")
    assert not (tmp_path / "folded.safetensors").exists()
    with pytest.raises(UserError, match="differs"):
        export.main(["--pre_train", str(trained), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_every_save_leaves_a_folded_file(small_set, tmp_path):
    """Of the averaged weights, where there are any; a test of it gives the scores that training printed."""
    launch(*small_run(small_set, "--ema", "0.5", "--save_models"))
    models = small_set.parent / "experiment/small/model"
    for name in ("latest", "best", "1", "2"):
        assert load_tensors(models / f"model_{name}.safetensors")["facts"]["weights"] == "averaged"
    one, other = (load_tensors(models / f"model_{name}.safetensors")["model"] for name in ("latest", "2"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    (models / "model_best.pt").unlink()
    common = ("--dir_experiment", tmp_path / "e", "--save", "t")
    launch(*small_run(small_set, "--test_only", "--pre_train", str(models / "model_latest.safetensors")), *common)
    launch(*small_run(small_set, "--reset"))
    assert not (models / "model_1.safetensors").exists()


def test_a_fold_that_fails_does_not_end_a_training(small_set, monkeypatch, capsys):
    monkeypatch.setattr("deploy.fold.fold", drops_the_transform)
    launch(*small_run(small_set, "--lr", "0.01"))
    assert "the folded network differs" in capsys.readouterr().out
    assert not list((small_set.parent / "experiment/small/model").glob("*.safetensors"))
    assert (small_set.parent / "experiment/small/model/model_latest.pt").exists()


def test_damaged_safetensors(trained, tmp_path):
    target = tmp_path / "folded.safetensors"
    write_folded(trained, target)
    whole = target.read_bytes()
    for content in (whole[:100], whole[:-10], b"", b"\xff" * 64):
        target.write_bytes(content)
        with pytest.raises(UserError, match=r"folded.safetensors: is damaged"):
            export.main(["--pre_train", str(target), "--out", str(tmp_path / "x")])


# --- the forms ---


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every form of one network, made once: they take half a minute."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(1)
    network = randomise(KRGN(**SHAPE), 0.1)
    save_tensors(folder / "trained.pt", pack(network, "KRGN"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_folder, "too_slow", lambda *_: "")  # how fast int8 is depends on the processor
        export.main(["--pre_train", str(folder / "trained.pt"), "--out", str(folder / "out"), "--formats", "all"])
    return folder


def reference(folder, image):
    network = rebuild(unpack(load_tensors(folder / "trained.pt"), "trained.pt")).eval()
    with torch.no_grad():
        return network(torch.from_numpy(image)).numpy()


def test_every_form_is_measured_and_kept(exported):
    report = json.loads((exported / "out/export.json").read_text())
    all_but_web = {"safetensors", *formats.FORMATS} - {"web"}  # which needs a download: test_web.py exports it
    assert {file["format"] for file in report["files"].values()} == all_but_web
    for file in report["files"].values():
        exact = file["format"] not in ("onnx-fp16", "onnx-int8")
        assert file["max_error"] < (0.01 if exact else 100)
        assert file["max_error"] > 0 or file["format"] in ("safetensors", "pt")
        assert abs(file["psnr_change"]) < 1
        for name, facts in file["files"].items():
            assert (exported / "out" / name).stat().st_size == facts["bytes"]
    assert len({tuple(size) for size in report["compared_at"]}) == 3
    assert "RGB, 0..255" in report["input"]


READERS = {
    "onnx": """
import onnxruntime
run = lambda x: onnxruntime.InferenceSession("KRGN_x3.onnx").run(None, {"image": x})[0]""",
    "torch": """
import torch
program = torch.export.load("KRGN_x3.pt2").module()
run = lambda x: program(torch.from_numpy(x)).detach().numpy()""",
    "ncnn": """
import ncnn
net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param("KRGN_x3.ncnn.param")
net.load_model("KRGN_x3.ncnn.bin")
def run(x):
    extractor, pixels = net.create_extractor(), x[0].copy()
    extractor.input("in0", ncnn.Mat(pixels).clone())
    return np.array(extractor.extract("out0")[1])[None]""",
}


@pytest.mark.parametrize("form", READERS)
def test_files_run_without_this_framework(exported, form, tmp_path):
    """In a fresh process, in another folder, with a size that was not there when the file was made."""
    image = (np.random.default_rng(0).random((1, 3, 26, 41)) * 255).astype(np.float32)
    np.save(tmp_path / "in.npy", image)
    files = [str(tmp_path / name) for name in ("in.npy", "out.npy")]
    code = f"import numpy as np{READERS[form]}\nnp.save({files[1]!r}, run(np.load({files[0]!r})))"
    subprocess.run([sys.executable, "-c", code], cwd=exported / "out", check=True, capture_output=True)
    assert np.abs(np.load(tmp_path / "out.npy") - reference(exported, image)).max() < 1e-2


def test_the_pt_file_loads_strictly_into_plain_code(exported):
    """A bare state dict with the published names, for `load_state_dict` of code that knows no recalibration."""
    state = torch.load(exported / "out/KRGN_x3.pt", weights_only=True)
    KRGN(**SHAPE, recalibrated=False).load_state_dict(state, strict=True)


@pytest.mark.parametrize("form", ["torch", "onnx", "ncnn"])
def test_a_network_of_another_package(form, tmp_path):
    """MobileNetV2's body: recalibrated, trained for two steps, folded, written and run: the same outputs."""
    torch.manual_seed(5)
    network = recalibrate(nn.Sequential(*list(mobilenetv2_wd4().features)[:3]))
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.rand(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    network = network.eval()
    assert all(module.transform.abs().max() > 0 for module in network.modules() if isinstance(module, RecConv))
    suffix = formats.FORMATS[form].suffixes[0]
    formats.FORMATS[form].write(
        fold(network), tmp_path / f"body{suffix}", ExportContext(torch.rand(1, 3, 64, 48), min_side=16)
    )
    run = formats.FORMATS[form].read(tmp_path / f"body{suffix}", {})
    for size in ((64, 48), (96, 64)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert np.abs(run(image.numpy()) - network(image).numpy()).max() < 1e-4


@pytest.mark.parametrize("model", ["EDSR", "RCAN"])  # CFGN is the KRGN of `exported` with plain kernels
def test_other_networks_in_every_exact_form(model, tmp_path):
    """Recalibrated baselines, rebuilt from their files alone."""
    shape = {"scale": 2, "n_feats": 16}
    shape |= {"n_resgroups": 1} if model != "EDSR" else {}
    shape |= {"n_resblocks": 1} if model != "CFGN" else {}
    shape |= {"groups": 8} if model == "CFGN" else {}
    flags = [text for flag, value in shape.items() for text in (f"--{flag}", str(value))]
    network = randomise(build_model(parse_args(["--model", model, "--kernels", "recalibrated", *flags])), 0.1)
    save_tensors(tmp_path / "trained.pt", pack(network, model))
    export.main(
        ["--pre_train", str(tmp_path / "trained.pt"), "--out", str(tmp_path / "out"), "--formats", "pt,torch,onnx,ncnn"]
    )
    report = json.loads((tmp_path / "out/export.json").read_text())
    assert [file["format"] for file in report["files"].values()] == ["safetensors", "pt", "torch", "onnx", "ncnn"]


@pytest.mark.parametrize("weights", ["out/KRGN_x3.pt", "trained.pt"])
def test_torch_hub(exported, weights):
    network = torch.hub.load(str(ROOT), "krgn", source="local", weights=str(exported / weights), **SHAPE, verbose=False)
    assert not is_recalibrated(network)
    image = np.full((1, 3, 9, 11), 90, np.float32)
    with torch.no_grad():
        assert np.abs(network(torch.from_numpy(image)).numpy() - reference(exported, image)).max() < 1e-3
    assert not any("/src" in name and name.startswith(str(ROOT)) for name in sys.path[:1])


@pytest.mark.parametrize("wrong", [{"scale": 5}, {"weights": "x.pt"}, {"n_feats": 8}])
def test_torch_hub_with_what_is_not_released(wrong):
    with pytest.raises(ValueError, match="pretrained: "):
        torch.hub.load(str(ROOT), "krgn", source="local", pretrained=True, verbose=False, **wrong)


def test_check(exported, tmp_path, capsys):
    """What is as it was passes; what was changed, is missing or wrong is named."""
    out = tmp_path / "out"
    out.mkdir()
    report = json.loads((exported / "out/export.json").read_text())
    report["files"] = {name: report["files"][name] for name in ("KRGN_x3.safetensors", "KRGN_x3.pt", "KRGN_x3.pt2")}
    for name in report["files"]:
        shutil.copy(exported / "out" / name, out)
    (out / "export.json").write_text(json.dumps(report))
    export.main(["--check", str(out)])
    assert "all 3 files are as they were exported" in capsys.readouterr().out
    (out / "KRGN_x3.pt").write_bytes((out / "KRGN_x3.pt").read_bytes() + b" ")
    # Another network's weights under this name, and a report that vouches for them.
    write_program(fold(KRGN(**SHAPE)), out / "KRGN_x3.pt2", ExportContext(torch.rand(1, 3, 20, 24)))
    report["files"]["KRGN_x3.pt2"]["files"]["KRGN_x3.pt2"]["sha256"] = digest(out / "KRGN_x3.pt2")
    (out / "export.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"KRGN_x3.pt is changed; KRGN_x3.pt2 differs by"):
        export.main(["--check", str(out)])
    del report["files"]["KRGN_x3.pt2"]
    (out / "export.json").write_text(json.dumps(report))
    (out / "KRGN_x3.pt").unlink()
    with pytest.raises(UserError, match=r"KRGN_x3.pt is missing"):
        export.main(["--check", str(out)])


def test_a_form_that_misses_its_tolerance_is_not_written(trained, tmp_path, monkeypatch):
    def write(network, path, context):
        network = copy.deepcopy(network)
        with torch.no_grad():
            network.upsampler[0].bias += 1
        formats.write_pt(network, path, context)

    monkeypatch.setitem(formats.FORMATS, "pt", replace(formats.FORMATS["pt"], write=write))
    with pytest.raises(UserError, match=r"KRGN_x3.pt differs by 1.0e\+00 of 255"):
        export.main(["--pre_train", str(trained), "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "KRGN_x3.safetensors",
        "README.md",
        "export.json",
    ]


def test_a_form_for_speed_that_is_slower_is_not_written(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "pt", replace(formats.FORMATS["pt"], tolerance=None, for_speed=True))
    monkeypatch.setattr(export_folder, "latency", lambda *_: Latency(9.0, 4.0))
    with pytest.raises(UserError, match=r"KRGN_x3.pt takes 9 ms for 96x96 LR pixels where torch's float32 takes 4"):
        export.main(["--pre_train", str(trained), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out/KRGN_x3.pt").exists()
    monkeypatch.setattr(export_folder, "latency", lambda *_: Latency(3.0, 4.0))
    export.main(["--pre_train", str(trained), "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out/export.json").read_text())
    assert report["files"]["KRGN_x3.pt"]["milliseconds"] == 3.0


def test_mean_shifts_and_moments_of_the_deployed_copy(trained):
    network = rebuild(unpack(load_tensors(trained), str(trained)))
    network = fold(network)
    deployed = for_deployment(network)
    image = torch.rand(1, 3, 15, 22) * 255
    with torch.no_grad():
        assert torch.allclose(network(image), deployed(image), atol=1e-3)
    assert not any(isinstance(module, RecConv) for module in deployed.modules())
    assert "exact" in mean_shift_notes(network)[0]


def test_float16_has_variances_that_float16_cannot_hold(tmp_path):
    """Squares of features and variances above 65504 are infinite in float16."""
    torch.manual_seed(1)
    network = randomise(KRGN(**SHAPE, recalibrated=False), 0.1).eval()
    image = torch.rand(1, 3, 24, 20) * 255
    variances = []
    network.body[0].conv1x1_act.register_forward_hook(lambda _, __, out: variances.append(out.var(dim=(2, 3))))
    with torch.no_grad():
        network.body[0].conv1x1_act[0].weight *= 100
        expected = network(image).numpy()
    assert variances[0].max() > torch.finfo(torch.float16).max
    formats.FORMATS["onnx-fp16"].write(network, tmp_path / "x.onnx", ExportContext(image))
    found = formats.FORMATS["onnx-fp16"].read(tmp_path / "x.onnx", {})(image.numpy())
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def test_krgn_without_prelu_is_the_same_function_and_large_slopes_stay():
    torch.manual_seed(1)
    network = KRGN(scale=2, n_feats=8, n_resgroups=1, recalibrated=False).double().eval()
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 1.0)
    network.body[0].blocks[1].conv_acts[3][1].weight.data[2] = 1.5
    replaced = without_prelu(copy.deepcopy(network))
    kinds = [type(group).__name__ for group in replaced.body[0].blocks]
    assert kinds == ["ReluRCG", "RCG", "ReluRCG"]
    image = torch.rand(1, 3, 12, 9).double() * 255
    with torch.no_grad():
        assert torch.allclose(network(image), replaced(image), atol=1e-9, rtol=0)


def test_files_of_others_are_left_alone(trained, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "KRGN_x3.onnx").write_text("somebody's")
    with pytest.raises(UserError, match="left alone"):
        export.main(["--pre_train", str(trained), "--out", str(out)])
    (out / "KRGN_x3.onnx").unlink()
    for _ in range(2):  # its own files may be written again
        export.main(["--pre_train", str(trained), "--out", str(out)])


def test_an_interrupted_export_may_be_started_again(trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    to = ["--pre_train", str(trained), "--out", str(out)]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export_folder, "write_format", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export.main(to)
    assert (out / "KRGN_x3.safetensors").exists()
    with pytest.raises(UserError, match=r"export\.json: lists no files: export again"):
        export.main(["--check", str(out)])
    export.main(to)
    assert "begun" not in json.loads((out / "export.json").read_text())
    export.main(["--check", str(out)])


def test_mistakes(trained, tmp_path, monkeypatch, capsys):
    assert_one_line(program("export.py", "--pre_train", tmp_path / "none.pt", "--out", tmp_path), "none.pt", "no such")
    to = ["--pre_train", str(trained), "--out", str(tmp_path / "o")]
    for flags, words in {
        (): "--pre_train FILE and --out DIR",
        ("--check", str(tmp_path)): r"export.json: there is no such file",
        (*to, "--dilation", "3"): "--dilation 3",
        (*to, "--images", str(tmp_path / "none")): "--images .* holds 0 images",
    }.items():
        with pytest.raises(UserError, match=words):
            export.main(list(flags))
    assert not (tmp_path / "o").exists()  # or the next attempt would find files in its way
    with pytest.raises(SystemExit):
        export.main(["--formats", "tflite"])
    assert "'tflite', expected safetensors, pt, torch, onnx" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(UserError, match=r"ncnn cannot be imported.*requirements-export"):
        export.main([*to, "--formats", "ncnn"])
