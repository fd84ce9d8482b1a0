"""Networks for lightweight image super-resolution whose kernels are recalibrated, as a library:

    import krgn

    network = krgn.load("KRGN_x4")           # a released network, or a .pt or .safetensors file; folded, in eval mode
    enlarged = krgn.upscale(network, image)  # uint8 (H, W, 3), or float (N, 3, H, W) in 0..255

    trained = krgn.recalibrate(network)      # any torch network: the same outputs, and kernels to train further
    plain = krgn.fold(trained)               # plain kernels again, the same function

In this repository the package is `src/model`; installed (`pip install .`) it is called `krgn`. Everything below is
imported when it is first used, so that neither `import krgn` nor `krgn.UserError` loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from . import cffb
    from .krgn import KRGN
    from .library import load, upscale
    from .networks import count_parameters, describe
    from .recalibration import RecConv, fold, fuse, recalibrate

__all__ = [
    "KRGN",
    "RecConv",
    "UserError",
    "cffb",
    "count_parameters",
    "describe",
    "fold",
    "fuse",
    "load",
    "recalibrate",
    "upscale",
]

_MODULE_OF = {
    "KRGN": "krgn",
    "RecConv": "recalibration",
    "count_parameters": "networks",
    "describe": "networks",
    "fold": "recalibration",
    "fuse": "recalibration",
    "load": "library",
    "recalibrate": "recalibration",
    "upscale": "library",
}


def __getattr__(name: str) -> object:
    if name == "cffb":
        return import_module(".cffb", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
