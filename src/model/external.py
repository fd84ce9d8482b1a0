"""Networks from another package: spandrel (https://github.com/chaiNNer-org/spandrel, MIT licence) recognises the files
of about fifty super-resolution architectures. They can be tested here, not trained.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .errors import UserError
from .facts import FileFacts


class External(nn.Module):
    """A network from spandrel behind the interface of this package's networks.

    (N, n_colors, H, W) in 0..`rgb_range`, float -> (N, n_colors, scale * H, scale * W), clamped to that range by
    spandrel, which also pads sides that the network cannot take and cuts the result.

    Args:
        described: spandrel's `ImageModelDescriptor`, whose images are in 0..1.
        rgb_range: the value range of the images here.
    """

    def __init__(self, described: Any, *, rgb_range: float):
        super().__init__()
        self.network = described.model  # as a module, so that devices and dtypes reach it
        self.described, self.rgb_range = described, rgb_range
        self.hyperparameters = {
            "scale": described.scale,
            "architecture": described.architecture.name,
            "n_colors": described.input_channels,
            "rgb_range": rgb_range,
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.described(x / self.rgb_range) * self.rgb_range


class _NoTorchvision(MetaPathFinder, Loader):
    """Empty modules in place of torchvision, of which spandrel's inpainting networks import two functions.

    No super-resolution network calls them, and a torchvision built for another torch (PyPI's beside a CPU build) cannot
    be imported.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        vars(module)["__getattr__"] = lambda name: _absent(spec.name, name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def _absent(module: str, name: str) -> Callable[..., None]:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_: object, **__: object) -> None:
        raise ImportError(f"{module}.{name} needs a torchvision that fits torch {torch.__version__}")

    return absent


def import_spandrel(asked: str) -> ModuleType:
    """The package spandrel, also where torchvision is missing or built for another torch: only networks of other kinds
    need it.

    Args:
        asked: the flag that needs the package, for messages.

    Raises:
        UserError: if it is not installed or cannot be imported.
    """
    need, fix = f"{asked} needs the spandrel package", "pip install -r requirements-extra.txt"
    placeholder = _NoTorchvision()
    try:
        try:
            import_module("torchvision")
        except (ImportError, RuntimeError, OSError):  # RuntimeError: it was built for another torch
            _forget_torchvision()
            sys.meta_path.insert(0, placeholder)
        return import_module("spandrel")
    except ModuleNotFoundError as error:
        raise UserError(f"{need}, but {error.name} is not installed: {fix}") from None
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(f"{need}, which cannot be imported here ({error}): {fix}") from None
    finally:
        if placeholder in sys.meta_path:
            sys.meta_path.remove(placeholder)
            _forget_torchvision()


def _forget_torchvision() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def load(path: str, *, rgb_range: float) -> External:
    """The network of any file that spandrel recognises, on the CPU.

    Raises:
        UserError: if spandrel is not installed or cannot be imported, or the file does not hold a network for gray or
            RGB images.
    """
    spandrel = import_spandrel("--model spandrel")
    try:
        described = spandrel.ModelLoader(device="cpu").load_from_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: check the path") from None
    except spandrel.UnsupportedModelError:
        raise UserError(
            f"{path}: spandrel recognises no network in it: give another file, or the --model of this project"
        ) from None
    except Exception as error:  # readers of three file formats and fifty architectures raise many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: spandrel cannot read it ({reason[:200]}): give another file") from None
    if not isinstance(described, spandrel.ImageModelDescriptor):
        raise UserError(f"{path}: {described.architecture.name} needs more than an image: give a file of an SR network")
    if described.input_channels != described.output_channels or described.input_channels not in (1, 3):
        raise UserError(
            f"{path}: {described.architecture.name} maps {described.input_channels} channels to "
            f"{described.output_channels}: expected gray or RGB images on both sides"
        )
    return External(described, rgb_range=rgb_range).eval()


def facts_of(path: str, network: External) -> FileFacts:
    """What the file says about its network, for the flags that it decides."""
    return FileFacts(path, "spandrel", {flag: network.hyperparameters[flag] for flag in ("scale", "n_colors")})
