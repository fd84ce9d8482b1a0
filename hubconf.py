"""torch.hub's entry point; needs nothing but torch.

    model = torch.hub.load(REPOSITORY, "krgn", scale=4, pretrained=True, source="local")
    model = torch.hub.load(REPOSITORY, "krgn", scale=4, weights="KRGN_x4.pt", source="local")

The network takes RGB in 0..255, float32, (N, 3, H, W), and gives (N, 3, scale * H, scale * W), not clamped.
"""

import sys
from pathlib import Path

import torch

dependencies = ["torch"]


def krgn(scale: int = 4, pretrained: bool = False, weights: str = "", **options):
    """A folded KRGN, ready to run.

    Args:
        scale: upscaling factor, 2, 3 or 4.
        pretrained: with the released weights of this scale, which lie in experiment/; nothing is downloaded.
        weights: a .pt file of a training or of export.py, or any with a state dict of the published names in it, which
            is folded if it is in training form; "": random weights.
        options: further hyper-parameters of `model.krgn.KRGN`, for instance n_feats, n_resgroups, groups, dilation.

    Raises:
        RuntimeError: if the weights are of another network.
        UserError: if the file has no weights that can be used.
        ValueError: for `pretrained` together with `weights` or `options`, or at a scale that is not released.
        FileNotFoundError: if the released weights were left out of this copy of the project.
    """
    root = Path(__file__).resolve().parent
    sys.path.insert(0, str(root / "src"))
    try:
        from model import statedict
        from model.krgn import KRGN
        from model.recalibration import fold
    finally:
        sys.path.remove(str(root / "src"))
    if pretrained:
        if weights or options:
            raise ValueError(f"pretrained: got weights={weights!r} and {options} as well, expected the scale alone")
        released = root / f"experiment/KRGN_x{scale}/model/model_best.pt"
        if scale not in (2, 3, 4):
            raise ValueError(f"pretrained: scale {scale} is not released, expected 2, 3 or 4")
        network = KRGN(scale=scale)
        network.load_state_dict(torch.load(released, map_location="cpu", weights_only=True)["model"], strict=True)
        return fold(network).eval()
    if not weights:
        return KRGN(scale=scale, recalibrated=False, **options).eval()
    state = statedict.find(torch.load(weights, map_location="cpu", weights_only=True), weights)
    network = KRGN(scale=scale, recalibrated=any(name.endswith(".transform") for name in state), **options)
    network.load_state_dict(state, strict=True)
    return fold(network).eval()
