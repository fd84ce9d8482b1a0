"""torch.hub's entry point; needs nothing but torch.

    model = torch.hub.load(REPOSITORY, "krgn", scale=4, weights="KRGN_x4.pt", source="local")

The network takes RGB in 0..255, float32, (N, 3, H, W), and gives (N, 3, scale * H, scale * W), not clamped.
"""

import sys
from pathlib import Path

import torch

dependencies = ["torch"]


def krgn(scale: int = 4, weights: str = "", **options):
    """A folded KRGN, ready to run.

    Args:
        scale: upscaling factor, 2, 3 or 4.
        weights: a .pt file that export.py wrote, or any plain state dict with the published names; "": random weights.
        options: further hyper-parameters of `model.krgn.KRGN`, for instance n_feats, n_resgroups, groups, dilation.

    Raises:
        RuntimeError: if the weights are of another network.
    """
    source = str(Path(__file__).resolve().parent / "src")
    sys.path.insert(0, source)
    try:
        from model.krgn import KRGN
    finally:
        sys.path.remove(source)
    network = KRGN(scale=scale, recalibrated=False, **options)
    if weights:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    return network.eval()
