"""Every network at every scale: published sizes and names, a training step, odd sizes, stored outputs, two stages."""

import shlex
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_run
from helpers import followed
from torch import nn

import export
import kl
from data.image import read_image
from main import main
from model.checkpoint import load_pre_trained, model_of, pack, rebuild, unpack
from model.edsr import EDSR
from model.networks import MODELS, build_model, count_parameters
from model.rcan import RCAN
from model.recalibration import RecConv, basis_is_frozen, is_recalibrated
from model.weights import load_tensors
from option import OptionError, parse_args
from runtime.errors import UserError
from runtime.files import save_tensors

TINY = {
    "KRGN": "--model KRGN --n_feats 8 --n_resgroups 1",
    "CFGN": "--model CFGN --n_feats 8 --n_resgroups 1 --groups 4",
    "EDSR": "--model EDSR --n_feats 8 --n_resblocks 2 --res_scale 0.5",
    "RCAN": "--model RCAN --n_feats 8 --n_resgroups 2 --n_resblocks 2 --reduction 4",
}
SCALES = (2, 3, 4)
EVERY = [(name, scale) for name in TINY for scale in SCALES]


def tiny(name: str, scale: int, flags: str = "") -> nn.Module:
    return build_model(parse_args(f"{TINY[name]} --scale {scale} --patch_size {8 * scale} {flags}".split()))


def launch(*flags) -> None:
    main(parse_args(list(map(str, flags))))


def tiny_run(small_set, name: str, *flags: str) -> list[str]:
    """A run of one step: `small_run` with the network's own flags."""
    run = small_run(small_set, "--test_every", "1", "--epochs", "1", "--no_tensorboard")
    at = run.index("--n_feats")
    return [*run[:at], *run[at + 4 :], *TINY[name].split(), "--save", name, *map(str, flags)]


def weights_of(folder):
    return unpack(load_tensors(folder / "model/model_latest.pt"), "latest")


# --- what was published ---


@pytest.mark.parametrize(
    ("flags", "counts"),
    [
        ("--model EDSR", (1_369_883, 1_554_523, 1_517_595)),
        ("--model EDSR --n_resblocks 32 --n_feats 256 --res_scale 0.1", (40_729_627, 43_680_027, 43_089_947)),
        ("--model RCAN", (15_444_667, 15_629_307, 15_592_379)),
        ("--model CFGN", (600_556, 609_211, 621_328)),
    ],
)
def test_published_parameter_counts(flags, counts):
    with torch.device("meta"):
        networks = [build_model(parse_args([*flags.split(), "--scale", str(scale)])) for scale in SCALES]
    assert tuple(map(count_parameters, networks)) == counts
    assert not any(map(is_recalibrated, networks))


def both(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


def test_published_names():
    """EDSR-PyTorch's and RCAN's state dicts, written out, so that their public weights load."""
    common = both("sub_mean") | both("add_mean") | both("head.0") | both("tail.1")
    edsr = common | {name for i in range(16) for k in (0, 2) for name in both(f"body.{i}.body.{k}")} | both("body.16")
    rcan = common | both("body.10") | {name for g in range(10) for name in both(f"body.{g}.body.20")}
    layers = ("0", "2", "3.conv_du.0", "3.conv_du.2")
    rcan |= {n for g in range(10) for b in range(20) for k in layers for n in both(f"body.{g}.body.{b}.body.{k}")}
    with torch.device("meta"):
        for scale, steps in ((2, ("0",)), (3, ("0",)), (4, ("0", "2"))):
            tail = {name for step in steps for name in both(f"tail.0.{step}")}
            assert EDSR(scale=scale).state_dict().keys() == edsr | tail
            assert RCAN(scale=scale).state_dict().keys() == rcan | tail
        state = RCAN(scale=4).state_dict()
    assert state["body.0.body.0.body.3.conv_du.0.weight"].shape == (4, 64, 1, 1)
    assert state["tail.0.2.weight"].shape == (256, 64, 3, 3)


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_a_bare_state_dict_says_which_network_it_is(name, scale):
    network = tiny(name, scale)
    checkpoint = unpack({f"module.{key}": tensor for key, tensor in network.state_dict().items()}, "bare.pt")
    expected = "KRGN" if name == "CFGN" else name  # the same names: CFGN is KRGN with plain kernels
    assert model_of(checkpoint) == expected
    unseen = {"res_scale": 0.5} if name == "EDSR" else {}
    rebuilt = rebuild(checkpoint, **unseen)
    assert rebuilt.hyperparameters == network.hyperparameters
    options = followed(parse_args(["--test_only", "--pre_train", "x"]), checkpoint)
    shape = {flag: getattr(options, flag) for flag in network.hyperparameters}
    assert (options.model, shape["scale"], shape["n_feats"]) == (expected, scale, 8)


def test_the_full_edsr_has_a_scale_that_its_file_does_not_say():
    bare = unpack(EDSR(n_resblocks=1, n_feats=4, res_scale=0.1).state_dict(), "bare.pt")
    assert rebuild(bare).hyperparameters["res_scale"] == 1
    assert rebuild(bare, res_scale=0.1).hyperparameters["res_scale"] == 0.1
    with pytest.raises(UserError, match=r"--dilation 3, but bare.pt is EDSR, which has none"):
        rebuild(bare, dilation=3)


# --- every network at every scale ---


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_train_one_step_save_and_rebuild(small_set, name, scale):
    folder = small_set.parent / "experiment" / name
    flags = tiny_run(small_set, name, "--scale", scale, "--patch_size", 8 * scale)
    launch(*flags)
    checkpoint = weights_of(folder)
    assert checkpoint.facts["model"] == name
    start = tiny(name, scale, "--seed 1").state_dict()
    assert start.keys() == checkpoint.state.keys()
    fixed = ("sub_mean.", "add_mean.")
    still = [key for key in start if torch.equal(start[key], checkpoint.state[key]) and not key.startswith(fixed)]
    assert not still

    rebuilt = rebuild(checkpoint).eval()
    network = tiny(name, scale).eval()
    network.load_state_dict(checkpoint.state)
    with torch.no_grad():
        for height, width in ((1, 1), (7, 12), (5, 2)):
            image = torch.rand(1, 3, height, width) * 255
            assert rebuilt(image).shape == (1, 3, scale * height, scale * width)
            assert torch.equal(rebuilt(image), network(image))

    # Tested without a word about the network.
    launch(
        *("--cpu", "--test_only", "--pre_train", folder / "model/model_latest.pt", "--dir_data", small_set),
        *("--data_test", "Small", "--data_range", "1-4/5-6", "--dir_experiment", folder.parent, "--save", "tested"),
    )
    assert (folder.parent / "tested/scores-Small.csv").is_file()


def formula(network: nn.Module) -> nn.Module:
    """Weights from a formula, the same on every machine and with every version of torch."""
    network = network.double().eval()
    for index, (name, parameter) in enumerate(network.named_parameters()):
        if not name.startswith(("sub_mean.", "add_mean.")):
            fan_in = max(1, parameter[0].numel())
            values = torch.arange(parameter.numel(), dtype=torch.float64).mul(0.7).add(index).sin()
            parameter.data = values.reshape(parameter.shape) * fan_in**-0.5
    return network


# First pixel, last pixel and mean of the output, in 0..255.
SNAPSHOTS = {
    ("KRGN", 2): (1209.75184, 7976.45611, 280.697039),
    ("KRGN", 3): (1209.75184, -1681.09079, 56.2850478),
    ("KRGN", 4): (1209.75184, -653.449841, 117.770458),
    ("CFGN", 2): (73.7829948, 164.689953, 120.998014),
    ("CFGN", 3): (73.7829948, 97.5078751, 104.986054),
    ("CFGN", 4): (73.7829948, 88.7748555, 110.25495),
    ("EDSR", 2): (176.345022, 85.1249876, 115.42521),
    ("EDSR", 3): (138.62884, 99.0777371, 112.588448),
    ("EDSR", 4): (131.763839, 120.971407, 109.461731),
    ("RCAN", 2): (-4155.27337, 8726.55635, 5248.40443),
    ("RCAN", 3): (-8696.22488, 7535.35334, 1646.86443),
    ("RCAN", 4): (2084.86022, -127.735465, 278.793929),
}


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_stored_outputs(name, scale):
    image = torch.linspace(0, 255, 3 * 6 * 5, dtype=torch.float64).reshape(1, 3, 6, 5)
    with torch.no_grad():
        out = formula(tiny(name, scale))(image)
    got = (out[0, 0, 0, 0].item(), out[0, 2, -1, -1].item(), out.mean().item())
    assert got == pytest.approx(SNAPSHOTS[name, scale], rel=1e-6)


# --- starting from another scale, two stages ---


@pytest.mark.parametrize("name", TINY)
def test_training_at_another_scale_keeps_everything_but_the_tail(name):
    tail = MODELS[name].TAIL
    old = tiny(name, 2)
    checkpoint = unpack(old.state_dict(), "x2.pt")
    options = followed(parse_args(f"--pre_train x --scale 4 {TINY[name]}".split()), checkpoint)
    network = build_model(options)
    fresh = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    load_pre_trained(network, options.model, checkpoint)
    for key, tensor in network.state_dict().items():
        expected = fresh[key] if key.startswith(tail) else old.state_dict().get(key)
        assert expected is None or torch.equal(tensor, expected), key
    assert any(key.startswith(tail) for key in fresh)
    # Baselines stay what they are, unless asked; KRGN is recalibrated, as its paper has it.
    assert is_recalibrated(network) == (name == "KRGN")


@pytest.mark.parametrize("name", TINY)
def test_two_stages_of_every_network(small_set, name, capsys):
    """Plain training, --recalibrate, the folded file: the same flags for every network."""
    experiments = small_set.parent / "experiment"
    launch(*tiny_run(small_set, name, "--kernels", "plain", "--save", "plain"))
    plain = weights_of(experiments / "plain")
    pre_train = ["--pre_train", experiments / "plain/model/model_latest.pt"]
    launch(*tiny_run(small_set, name, *pre_train, "--recalibrate", "--save", "second"))
    assert "recalibrated kernels, frozen basis" in capsys.readouterr().out
    second = weights_of(experiments / "second")
    assert second.facts["basis"] == "frozen"
    transforms = [key for key in second.state if key.endswith(".transform")]
    assert len(transforms) == {"KRGN": 18, "CFGN": 18, "EDSR": 5, "RCAN": 11}[name]
    for key in transforms:
        basis = key.replace(".transform", ".weight")
        assert torch.equal(second.state[basis], plain.state[basis])
        assert second.state[key].abs().max() > 0

    export.main(["--pre_train", str(experiments / "second/model/model_latest.pt"), "--out", str(experiments)])
    folded = unpack(load_tensors(experiments / f"{name}_x2.safetensors"), "folded")
    assert folded.facts["folded"] is True
    assert folded.state.keys() == plain.state.keys()
    rebuild(folded)
    kl.main(["--pre_train", str(experiments / "second/model/model_latest.pt"), "--out", str(experiments / "kl")])
    assert sorted(path.name for path in (experiments / "kl").glob("kl_block1_*")) == [
        "kl_block1_layer1_W_b.npy",
        "kl_block1_layer1_W_t.npy",
    ]


def test_a_stopped_second_stage_goes_on_exactly(small_set):
    experiments = small_set.parent / "experiment"
    save_tensors(small_set / "plain.pt", tiny("EDSR", 2).state_dict())
    flags = tiny_run(small_set, "EDSR", "--pre_train", small_set / "plain.pt", "--recalibrate")
    launch(*flags, "--save", "at_once", "--epochs", "2")
    launch(*flags, "--save", "in_parts")
    launch("--cpu", "--load", "in_parts", "--epochs", "2", "--dir_experiment", experiments)
    at_once, in_parts = (weights_of(experiments / name).state for name in ("at_once", "in_parts"))
    assert all(torch.equal(at_once[key], in_parts[key]) for key in at_once)


def test_recalibrated_from_scratch():
    """--kernels recalibrated without a file: the basis is trained; attention and other 1x1 kernels stay plain."""
    network = tiny("RCAN", 2, "--kernels recalibrated")
    layers = {key: module for key, module in network.named_modules() if isinstance(module, RecConv)}
    assert all(key.startswith("body.") and module.kernel_size == (3, 3) for key, module in layers.items())
    assert not basis_is_frozen(network)
    assert basis_is_frozen(tiny("RCAN", 2, "--kernels recalibrated --basis frozen"))
    plain = tiny("RCAN", 2)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.endswith(".transform")})
    image = torch.rand(1, 3, 6, 5) * 255
    assert torch.equal(network(image), plain(image))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--recalibrate", ("--recalibrate", "--pre_train FILE", "--kernels recalibrated")),
        ("--recalibrate --pre_train x --kernels plain", ("--recalibrate", "--kernels plain")),
        ("--recalibrate --pre_train x --test_only", ("--recalibrate", "test")),
        ("--model EDSR --groups 32", ("--groups", "EDSR", "--n_resblocks")),
        ("--n_resblocks 3", ("--n_resblocks", "KRGN", "--n_resgroups")),
        ("--model EDSR --scale 5 --patch_size 50", ("--scale 5", "power of 2")),
        ("--model RCAN --n_feats 8", ("--reduction 16", "--n_feats 8")),
        ("--model CFGN --n_feats 40", ("--n_feats 40", "--groups 32")),
        ("--model spandrel", ("--model spandrel", "--test_only")),
        ("--res_scale 0", ("--res_scale", "above 0")),
    ],
)
def test_mistakes_are_one_line(flags, words, capsys):
    with pytest.raises(SystemExit):
        parse_args(flags.split())
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words), said


def test_what_the_file_contradicts():
    checkpoint = unpack(tiny("EDSR", 2).state_dict(), "edsr.pt")
    with pytest.raises(OptionError, match=r"--dilation is no flag of --model EDSR"):
        followed(parse_args("--pre_train x --dilation 3".split()), checkpoint)
    with pytest.raises(UserError, match=r"--n_resblocks 16, but edsr.pt has 2"):
        followed(parse_args("--pre_train x --model EDSR --n_resblocks 16".split()), checkpoint)
    second = tiny("EDSR", 2, "--kernels recalibrated")
    with pytest.raises(UserError, match=r"--recalibrate, but second.pt is recalibrated already.*export\.py"):
        followed(parse_args("--pre_train x --recalibrate".split()), unpack(pack(second, "EDSR"), "second.pt"))
    bad = tiny("EDSR", 3).state_dict()
    bad["tail.0.0.weight"] = torch.zeros(8 * 25, 8, 3, 3)
    with pytest.raises(UserError, match=r"bad.pt: is no EDSR that can be built \(scale: got 5"):
        rebuild(unpack(bad, "bad.pt"))
    for stated in ("MDSR", ["EDSR"]):
        with pytest.raises(UserError, match="known are KRGN, CFGN, EDSR, RCAN"):
            model_of(unpack(pack(second, stated), "other.pt"))
    with pytest.raises(UserError, match=r"--model RCAN, but edsr.pt has EDSR"):
        followed(parse_args("--pre_train x --model RCAN".split()), checkpoint)
    with pytest.raises(ValueError, match="scale"):
        EDSR(scale=6)
    with pytest.raises(ValueError, match="reduction"):
        RCAN(n_feats=8)


# --- spandrel ---


def fake_spandrel(load) -> ModuleType:
    """As much of the package's interface as is used here; its own import needs a torchvision that fits torch."""
    module = ModuleType("spandrel")
    module.UnsupportedModelError = type("UnsupportedModelError", (Exception,), {})

    class ImageModelDescriptor:
        """Nearest neighbours, in 0..1 as the package has it."""

        def __init__(self, channels=3):
            self.model, self.scale = nn.Upsample(scale_factor=2), 2
            self.architecture = SimpleNamespace(name="Nearest")
            self.input_channels = self.output_channels = channels

        def __call__(self, image):
            assert image.min() >= 0
            assert image.max() <= 1
            return self.model(image).clamp(0, 1)

    module.ImageModelDescriptor = ImageModelDescriptor
    module.ModelLoader = lambda device: SimpleNamespace(load_from_file=lambda path: load(module, path))
    return module


@pytest.fixture
def spandrel_test(small_set):
    """Flags of a test of spandrel's network on the small set."""
    path = small_set.parent / "any.pth"
    save_tensors(path, {"weight": torch.zeros(1)})
    return shlex.split(
        f"--cpu --test_only --model spandrel --pre_train {path} --dir_data {small_set} --data_test Small "
        f"--data_range 1-4/5-6 --dir_experiment {small_set.parent / 'experiment'} --save any --save_results --save_gt"
    )


@pytest.mark.parametrize("rgb_range", ["255", "1"])
def test_a_network_that_spandrel_describes(spandrel_test, small_set, monkeypatch, rgb_range):
    monkeypatch.setitem(sys.modules, "spandrel", fake_spandrel(lambda module, path: module.ImageModelDescriptor()))
    launch(*spandrel_test, "--rgb_range", rgb_range, "--self_ensemble")
    results = small_set.parent / "experiment/any/results-Small"
    lr, sr = (read_image(results / f"0005_x2_{kind}.png") for kind in ("LR", "SR"))
    assert np.array_equal(sr, np.kron(lr, np.ones((2, 2, 1), np.uint8)))
    with pytest.raises(UserError, match=r"--scale 3, but .*any\.pth has 2"):
        launch(*spandrel_test, "--scale", "3")


def raises(name: str):
    def load(module, path):
        raise getattr(module, name)() if hasattr(module, name) else ValueError("Unsupported model file extension")

    return load


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (raises("UnsupportedModelError"), "recognises no network"),
        (raises("ValueError"), "cannot read it .Unsupported model file"),
        (lambda module, path: SimpleNamespace(architecture=SimpleNamespace(name="LaMa")), "LaMa needs more than"),
        (lambda module, path: module.ImageModelDescriptor(channels=4), "4 channels"),
    ],
)
def test_files_that_spandrel_does_not_take(spandrel_test, monkeypatch, load, words):
    monkeypatch.setitem(sys.modules, "spandrel", fake_spandrel(load))
    with pytest.raises(UserError, match=words):
        launch(*spandrel_test)


def test_without_spandrel_there_is_one_line(spandrel_test, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs the spandrel package.*requirements-extra\.txt"):
        launch(*spandrel_test)


def test_a_spandrel_that_cannot_be_imported(spandrel_test, tmp_path, monkeypatch):
    """As with a torchvision that is not of the installed torch."""
    (tmp_path / "spandrel.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    with pytest.raises(UserError, match=r"imported here \(operator torchvision::nms.*requirements-extra\.txt"):
        launch(*spandrel_test)
