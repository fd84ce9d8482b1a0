"""The folded file of a checkpoint: plain kernels as safetensors, compared with the training form before it is written.

`write_folded` reads the checkpoint from its file, folds it, rebuilds a network from the new file's bytes alone, and
compares the two on seeded random images. A transform or a dilation that is lost on the way is found before anybody
deploys the file.
"""

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from model.checkpoint import FORMAT, Checkpoint, model_of, pack, rebuild, unpack
from model.recalibration import fold
from model.weights import load_tensors, parse_safetensors
from runtime.errors import UserError
from runtime.files import digest, write_bytes
from runtime.provenance import git_commit

TOLERANCE = 1e-3  # largest rounding difference that a fold may cause, of the 0-255 range; a gray level is 1


def write_folded(source: Path, *targets: Path, about: dict[str, str] | None = None, **unseen) -> float:
    """Folds the checkpoint file `source` and writes it as safetensors to each of `targets`.

    Args:
        about: more metadata for people and model hubs (`deploy.card`).
        unseen: hyper-parameters that a bare state dict does not show, as `model.checkpoint.rebuild` takes them.

    Returns:
        The largest difference between the folded network and the training form, of the 0-255 range.

    Raises:
        UserError: if the difference is above `TOLERANCE`, naming the first layer that differs; nothing is written.
    """
    checkpoint = unpack(load_tensors(source), str(source))
    with torch.random.fork_rng(devices=[]):
        trained = rebuild(checkpoint, **unseen).eval()
    content = folded_bytes(checkpoint, trained, digest(source), about)
    with torch.random.fork_rng(devices=[]):  # a training's random numbers must not depend on its saves
        deployed = rebuild(unpack(parse_safetensors(content), str(targets[0]))).eval()
    deviation = largest_deviation(trained, deployed)
    if not deviation < TOLERANCE:
        raise UserError(
            f"{source}: the folded network differs by {deviation:.1e} of 255, allowed is {TOLERANCE:.0e}, first in "
            f"{first_difference(trained, deployed)}: it is not written; the weights may be damaged or out of range"
        )
    for target in targets:
        write_bytes(target, content)
    return deviation


def folded_bytes(checkpoint: Checkpoint, trained: nn.Module, sha256: str, about: dict[str, str] | None = None) -> bytes:
    """The content of the safetensors file: the folded state dict, with metadata that suffice to rebuild the network.

    Args:
        checkpoint: what was read.
        trained: its network, in training form or with plain kernels.
        sha256: of the checkpoint file.
        about: more metadata, which rebuild nothing.
    """
    was_folded = checkpoint.recalibrated or checkpoint.facts.get("folded", False)
    kept = {name: checkpoint.facts[name] for name in ("epoch", "psnr", "weights") if name in checkpoint.facts}
    # A network with plain kernels is written as it is, and its file does not claim to be folded.
    packed = pack(fold(trained), model_of(checkpoint), folded=was_folded, **kept)
    metadata = (about or {}) | {
        "format": FORMAT,
        "facts": json.dumps(packed["facts"]),
        "input": describe_input(trained),
        "source_sha256": sha256,
        "git_commit": git_commit(),
    }
    content = safetensors.torch.save(packed["model"], metadata)
    tensors = memoryview(content)[8 + int.from_bytes(content[:8], "little") :]
    return safetensors.torch.save(packed["model"], metadata | {"sha256": hashlib.sha256(tensors).hexdigest()})


def describe_input(network: nn.Module) -> str:
    """Layout and value range of a network's input and output, in words, for people who deploy the file."""
    shape = network.hyperparameters
    channels = "RGB" if shape["n_colors"] == 3 else "luma Y of BT.601 (16..235)"
    return (
        f"NCHW float32, {channels}, 0..{shape['rgb_range']:g}; output x{shape['scale']} in the same form, not clamped"
    )


# --- comparison ---


def comparison_images(n_colors: int, rgb_range: float) -> list[torch.Tensor]:
    """Images to compare networks on, (1, n_colors, H, W) in 0..`rgb_range`: two of noise and a smooth one, seeded.

    The noise has half the contrast of the range. At full contrast the SR of a trained network goes as far as -1500, and
    float32's own rounding changes it by more than what is allowed.
    """
    noise = torch.Generator().manual_seed(0)
    images = [torch.rand(1, n_colors, *size, generator=noise) for size in ((48, 48), (33, 57), (6, 7))]
    images[:2] = [0.25 + image / 2 for image in images[:2]]
    images[2] = nn.functional.interpolate(images[2], scale_factor=8, mode="bicubic").clamp(0, 1)
    return [image * rgb_range for image in images]


@torch.no_grad()
def largest_deviation(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two networks' outputs on `comparison_images`, of the 0-255 range.

    It is infinite if the shapes differ or an output is not finite.
    """
    shape = one.hyperparameters
    worst = 0.0
    for image in comparison_images(shape["n_colors"], shape["rgb_range"]):
        a, b = one(image), other(image)
        if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
            return float("inf")
        worst = max(worst, (a - b).abs().max().item() * 255 / shape["rgb_range"])
    return worst


@torch.no_grad()
def first_difference(one: nn.Module, other: nn.Module) -> str:
    """The first layer, in order of execution, whose outputs differ, and by how much of its largest value, as text."""
    image = comparison_images(one.hyperparameters["n_colors"], one.hyperparameters["rgb_range"])[-1]
    outputs = [_outputs(network, image) for network in (one, other)]
    for name, a in outputs[0].items():
        b = outputs[1].get(name)
        if b is None or a.shape != b.shape:
            return f"{name} (another shape)"
        off = ((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item()
        if not off < 1e-4:
            return f"{name} ({off:.1e} of its largest value)"
    return "no single layer: rounding errors add up"


def _outputs(network: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of every layer that contains no other layers, by its name, in order of execution."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: found.setdefault(name, out.detach().clone()))
        for name, module in network.named_modules()
        if not list(module.children())
    ]
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    return found
