"""Perceptual loss: distance between features of VGG19 (SRGAN, arXiv 1609.04802).

The weights are those that torchvision publishes, loaded by torch itself: torchvision need not be there, and
cannot be imported beside torch's CPU build.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from model import statedict
from runtime.errors import UserError

URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"

# Channels of VGG19's convolutions, a row between two poolings (arXiv 1409.1556, table 1, configuration E).
_STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
# "VGG54" is the output of the 4th convolution of the 5th stage, before its activation.
LAYERS = {"VGG22": (2, 2), "VGG54": (5, 4)}

# Of ImageNet's RGB images in 0..1, with which VGG19 was trained.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Perceptual(nn.Module):
    """Mean squared distance between the features of SR and HR. VGG19 is never trained, and in no checkpoint.

    Args:
        name: one of `LAYERS`.
        rgb_range: the images' value range.
        load: called for VGG19's state dict, with torchvision's names.
    """

    def __init__(self, name: str, *, rgb_range: float, load: Callable[[], dict[str, torch.Tensor]]):
        super().__init__()
        self.rgb_range = rgb_range
        self.features = vgg19(*LAYERS[name])
        state = load()
        self.features.load_state_dict({key: state[f"features.{key}"] for key in self.features.state_dict()})
        self.features.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1))

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) each, RGB in 0..`rgb_range` -> a scalar."""
        sr, hr = ((images / self.rgb_range - self.mean) / self.std for images in (sr, hr))
        with torch.no_grad():
            wanted = self.features(hr)
        return nn.functional.mse_loss(self.features(sr), wanted)


def vgg19(stage: int, conv: int) -> nn.Sequential:
    """VGG19's layers up to convolution `conv` of `stage`, both counted from 1; numbered as in torchvision."""
    layers, channels = [], 3
    for number, widths in enumerate(_STAGES[:stage], start=1):
        for width in widths[: conv if number == stage else None]:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-2])  # without the last activation and pooling


def load_vgg19(path: str, read: Callable[[Path], dict]) -> dict[str, torch.Tensor]:
    """VGG19's state dict from a local file, or, where `path` is empty, downloaded once into torch's cache.

    Args:
        read: reads a file of tensors.

    Raises:
        UserError: if the file is of another network, or there is no download.
    """
    fix = f"download {URL} and name the file with --vgg_weights"
    if path:
        state = statedict.find(read(Path(path)), path)
    else:
        try:
            state = torch.hub.load_state_dict_from_url(URL, map_location="cpu", check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:  # no network, no disk; a damaged download
            raise UserError(
                f"VGG19: {URL} cannot be downloaded ({str(error) or type(error).__name__}): {fix}"
            ) from None
    wanted = {f"features.{name}": tuple(tensor.shape) for name, tensor in vgg19(5, 4).state_dict().items()}
    found = {name: tuple(getattr(state[name], "shape", ())) for name in wanted if name in state}
    if found != wanted:
        wrong = next(name for name in wanted if found.get(name) != wanted[name])
        raise UserError(
            f"--vgg_weights {path}: {wrong} is {found.get(wrong, 'missing')}, expected {wanted[wrong]}: {fix}"
        )
    return state
