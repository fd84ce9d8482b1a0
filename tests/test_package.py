"""The project as a library: a wheel that works without the checkout, and torch.hub beside a user's own modules."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SRC

import model

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q")

# What a user does, from `import krgn` on; prints where each module of ours came from.
USE = """
import json, sys
import krgn
assert "torch" not in sys.modules, "import krgn loads torch"
import numpy as np, torch
from torch import nn

network = krgn.load("KRGN_x4")
image = np.load(sys.argv[1])
enlarged = krgn.upscale(network, image)
np.save(sys.argv[2], enlarged)

trained = krgn.recalibrate(network)
for module in trained.modules():
    if isinstance(module, krgn.RecConv):
        nn.init.normal_(module.transform, std=0.01)
batch = torch.from_numpy(image[:8, :9]).permute(2, 0, 1)[None].float()
plain = krgn.fold(trained)
with torch.no_grad():
    assert (trained(batch) - plain(batch)).abs().max() < 1e-2
    assert (plain(batch) - network(batch)).abs().max() > 1e-2
assert not any(isinstance(module, krgn.RecConv) for module in plain.modules())

try:
    krgn.load("KRGN_x5")
except krgn.UserError as error:
    assert "KRGN_x2, KRGN_x3, KRGN_x4" in str(error)

ours = ("krgn", "model", "runtime", "data", "option", "evaluation", "train", "loss", "deploy")
files = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] in ours}
print(json.dumps({"files": files, "hyperparameters": network.hyperparameters}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which the wheel of this checkout is installed; built from a copy of what a wheel is made of."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(SRC / "model", source / "src/model", ignore=shutil.ignore_patterns("__pycache__"))
    for scale in (2, 3, 4):
        shutil.copytree(ROOT / f"experiment/KRGN_x{scale}/export", source / f"experiment/KRGN_x{scale}/export")
    subprocess.run([*PIP, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "wheels"], cwd=source, check=True)
    (wheel,) = (source / "wheels").glob("krgn-*-py3-none-any.whl")
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(folder), str(wheel)], check=True)
    return folder


def run(code: str, *arguments, path: Path | None = None, cwd: Path, **environment) -> str:
    """The output of an interpreter with nothing but `path` and the environment's packages to import from."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    environment |= {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_needs_no_checkout(installed, tmp_path, photo):
    """Load, upscale, recalibrate and fold; the result is that of the checkout, and nothing is compiled."""
    image, enlarged, extensions = photo[100:132, 150:190], tmp_path / "sr.npy", tmp_path / "extensions"
    np.save(tmp_path / "lr.npy", image)
    environment = {"TORCH_EXTENSIONS_DIR": str(extensions), "HOME": str(tmp_path / "home")}
    out = run(USE, tmp_path / "lr.npy", enlarged, path=installed, cwd=tmp_path, **environment)
    found = json.loads(out)
    assert {"krgn", "krgn.krgn", "krgn.cffb", "krgn.library"} <= found["files"].keys()
    for name, file in found["files"].items():
        assert Path(file).is_relative_to(installed), name
    assert not extensions.exists(), "a C++ operator was built"
    assert {"scale": 4, "n_feats": 64, "groups": 64}.items() <= found["hyperparameters"].items()
    sr = np.load(enlarged)
    assert (sr.shape, sr.dtype) == ((128, 160, 3), np.uint8)
    expected = model.upscale(model.load("KRGN_x4"), image)
    assert np.abs(sr.astype(int) - expected).max() <= 1  # other operators round differently


def test_what_the_wheel_holds(installed):
    """Sources, types and weights; none of the framework."""
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    ours = {name for name in files if not name.split("/")[0].endswith(".dist-info") and "__pycache__" not in name}
    package = {str(path.relative_to(SRC / "model")) for path in (SRC / "model").rglob("*") if path.is_file()}
    package = {f"krgn/{name}" for name in package if "__pycache__" not in name}
    assert package <= ours
    assert "krgn/py.typed" in ours
    assert ours - package == {f"krgn/released/KRGN_x{n}/export/KRGN_x{n}.safetensors" for n in (2, 3, 4)}


def test_the_package_imports_itself_by_relative_imports_alone():
    """As `model` it would be missing, or a user's own module, once it is installed under its other name."""
    rooms = "|".join(path.stem for path in SRC.iterdir())
    for path in (SRC / "model").rglob("*.py"):
        assert not re.findall(rf"^\s*(?:from|import) (?:{rooms})\b.*", path.read_text(), flags=re.M), path


def test_the_public_names():
    for name in model.__all__:
        assert getattr(model, name) is not None
    assert set(model.__all__) <= set(dir(model))
    assert set(model._MODULE_OF) | {"UserError", "cffb"} == set(model.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        model.nothing  # noqa: B018


@pytest.mark.parametrize("beside", ["model.py", "model/__init__.py"])
def test_torch_hub_beside_a_users_own_model(tmp_path, photo, beside):
    """The user's `model` is imported before and after, and stays the user's; a second load takes the same package."""
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_text("mine = True\n")

    code = """
import sys, torch
import model
load = lambda **options: torch.hub.load(sys.argv[1], "krgn", source="local", verbose=False, **options)
network = load(scale=2, pretrained=True)
assert network(torch.rand(1, 3, 5, 6) * 255).shape == (1, 3, 10, 12)
again = load(scale=3, n_feats=8, n_resgroups=1)
assert type(again) is type(network)
assert type(network).__module__ == "krgn.krgn", type(network).__module__
assert sys.modules["model"] is model and model.mine
assert not any("src" in name for name in sys.path if name.startswith(sys.argv[1]))
import pickle
assert type(pickle.loads(pickle.dumps(again))) is type(network)
print("fine")
"""
    assert run(f"import sys; sys.path.insert(0, '')\n{code}", ROOT, cwd=tmp_path) == "fine\n"


class TwoBranches(torch.nn.Module):
    """A user's network with a recalibrated layer in several depths."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.near = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.far = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4))

    def forward(self, x):
        x = self.stem(x)
        return self.near(x) + self.far(x)


def reparameterize_model(network: torch.nn.Module) -> torch.nn.Module:
    """What timm.utils.reparameterize_model does (timm 1.0, Apache-2.0): children with `fuse` are replaced by what it
    returns."""
    for name, child in network.named_children():
        if hasattr(child, "fuse"):
            setattr(network, name, child.fuse())
        elif hasattr(child, "reparameterize"):
            child.reparameterize()
        elif hasattr(child, "switch_to_deploy"):
            child.switch_to_deploy()
        reparameterize_model(child)
    return network


@pytest.mark.parametrize("build", [TwoBranches, lambda: model.KRGN(scale=2, n_feats=16, n_resgroups=1)])
def test_timms_way_to_fold(build):
    network = model.recalibrate(build()).double().eval()
    for module in network.modules():
        if isinstance(module, model.RecConv):
            torch.nn.init.normal_(module.transform, std=0.05)
    image = torch.rand(1, 3, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = network(image)
        folded = reparameterize_model(network)
        assert not any(isinstance(module, model.RecConv) for module in folded.modules())
        assert torch.allclose(folded(image), expected, atol=1e-9)
