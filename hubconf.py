"""The entry point of torch.hub.

    model = torch.hub.load(REPOSITORY, "krgn", scale=4, pretrained=True, source="local")
    model = torch.hub.load(REPOSITORY, "krgn", scale=4, weights="KRGN_x4.pt", source="local")

The network takes RGB in 0..255, float32, (N, 3, H, W), and gives (N, 3, scale * H, scale * W), not clamped.
"""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

dependencies = ["torch", "numpy", "safetensors"]


def krgn(scale: int = 4, pretrained: bool = False, weights: str = "", **options):
    """A folded KRGN, ready to run.

    Args:
        scale: upscaling factor, 2, 3 or 4.
        pretrained: with the released weights of this scale, which lie in experiment/; nothing is downloaded.
        weights: a .pt or .safetensors file: a checkpoint of a training, an exported file, or any with a state dict of
            the published names in it. A recalibrated network is folded. "": random weights.
        options: further hyper-parameters of `model.krgn.KRGN`, for instance n_feats, n_resgroups, groups, dilation.

    Raises:
        RuntimeError: if the weights are of another network.
        UserError: if the file has no weights that can be used, or the released weights were left out of this copy.
        ValueError: for `pretrained` together with `weights` or `options`, or at a scale that is not released.
    """
    library = _library()
    if pretrained:
        if weights or options:
            raise ValueError(f"pretrained: got weights={weights!r} and {options} as well, expected the scale alone")
        if scale not in (2, 3, 4):
            raise ValueError(f"pretrained: scale {scale} is not released, expected 2, 3 or 4")
        return library.load(f"KRGN_x{scale}")
    if not weights:
        return library.KRGN(scale=scale, recalibrated=False, **options).eval()
    reading = import_module(".weights", library.__name__)
    checkpoint = import_module(".checkpoint", library.__name__).unpack(reading.load_tensors(Path(weights)), weights)
    network = library.KRGN(scale=scale, recalibrated=checkpoint.recalibrated, **options)
    network.load_state_dict(checkpoint.state, strict=True)
    return library.fold(network).eval()


def _library() -> ModuleType:
    """src/model under its name as a library, which no `model.py` of the user's can hide.

    It is loaded once in a process, because its operators can be registered only once: an installed `krgn`, or this
    file's own package under either name, is taken as it is.
    """
    init = Path(__file__).resolve().parent / "src/model/__init__.py"
    for name in ("krgn", "model"):
        loaded = sys.modules.get(name)
        if loaded is not None and (name == "krgn" or getattr(loaded, "__file__", None) == str(init)):
            return loaded
    spec = spec_from_file_location("krgn", init, submodule_search_locations=[str(init.parent)])
    module = module_from_spec(spec)
    sys.modules["krgn"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["krgn"]
        raise
    return module
