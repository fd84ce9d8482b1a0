"""`load` and `upscale`: from the name of a network or a file to an enlarged image."""

import logging
import os
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from .checkpoint import model_of, rebuild, unpack
from .errors import UserError, says_out_of_memory
from .networks import describe
from .recalibration import fold
from .tiling import AUTO_TILE, Tiles, memory_shortage
from .weights import load_tensors

log = logging.getLogger("krgn")

Image = TypeVar("Image", np.ndarray, torch.Tensor)

RELEASED = ("KRGN_x2", "KRGN_x3", "KRGN_x4")


def load(source: str | os.PathLike[str], *, folded: bool = True, **unseen: object) -> nn.Module:
    """A network with its weights, in eval mode and on the CPU.

    The architecture and its size are read off the file. The log (logger "krgn", level INFO) says what was found:
    architecture, scale, groups, recalibrated or plain kernels, parameters; `network.hyperparameters` holds it.

    Args:
        source: a released network, "KRGN_x2", "KRGN_x3" or "KRGN_x4"; or a .pt or .safetensors file of a KRGN, CFGN,
            EDSR or RCAN: a checkpoint of this project, a state dict with the published names, or one inside whatever
            a trainer wrapped it in. Nothing in the file is run.
        folded: False keeps recalibrated kernels (basis and transform) as they are in the file, for further training.
            Released networks are folded in their files already.
        unseen: hyper-parameters that a bare state dict does not show: `dilation` and `act` of KRGN, `res_scale` of
            EDSR. Without them those of the published networks are assumed.

    Returns:
        A network (N, n_colors, H, W) in 0..`rgb_range`, float32 -> (N, n_colors, scale * H, scale * W), not clamped.

    Raises:
        UserError: if the name is not that of a released network, the file is missing, damaged or unsafe, its
            architecture is not known, or it contradicts `unseen`.
    """
    path = _released(str(source)) if str(source) in RELEASED else Path(source).expanduser()
    if path.suffix == "" and not path.exists():
        raise UserError(f"{source}: no such file, and the released networks are {', '.join(RELEASED)}")
    checkpoint = unpack(load_tensors(path), str(source))
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on what is loaded
        network = rebuild(checkpoint, **unseen)
    log.info("%s: %s, %s", source, checkpoint.form, describe(network, model_of(checkpoint)))
    return (fold(network) if folded else network).eval()


def _released(name: str) -> Path:
    """The file of a released network: inside the package where that is installed, in experiment/ of the repository."""
    package, file = Path(__file__).resolve().parent, f"{name}/export/{name}.safetensors"
    installed, repository = package / "released" / file, package.parents[1] / "experiment" / file
    return repository if repository.is_file() else installed


@torch.no_grad()
def upscale(network: nn.Module, image: Image, *, tile: int | None = None) -> Image:
    """`image` enlarged by `network`: whole where that fits into memory, else in tiles that overlap.

    Tiles give the result of the whole image, to rounding, for KRGN, CFGN and EDSR. RCAN's attention has global
    statistics: for it the log says how far the tiles are off.

    Args:
        network: one of this package, on any device. Fold a recalibrated one first: tiles compute its kernels anew for
            each tile.
        image: uint8 (H, W, n_colors), a NumPy array or a tensor: RGB, or luma Y of BT.601 (16..235) where n_colors is
            1. Or a batch, a float tensor (N, n_colors, H, W) in 0..`rgb_range` (0..255 unless the network was built
            for another range).
        tile: side of the tiles in pixels of `image`; None chooses by the memory that is free.

    Returns:
        What `image` is, on its device: uint8 (scale * H, scale * W, n_colors), rounded; or a float tensor
        (N, n_colors, scale * H, scale * W), not clamped.

    Raises:
        TypeError: if `image` is neither, or `network` is not of this package.
        ValueError: if `image` has another shape, or `tile` is below 1.
    """
    config = getattr(network, "hyperparameters", None)
    if not isinstance(config, dict):
        raise TypeError(f"network: got a {type(network).__name__}, expected one of this package, as `load` returns it")
    if tile is not None and tile < 1:
        raise ValueError(f"tile: got {tile}, expected at least 1")
    if isinstance(image, np.ndarray):
        return _upscale(network, torch.from_numpy(np.ascontiguousarray(image)), config, tile).numpy()
    return _upscale(network, image, config, tile)


def _upscale(network: nn.Module, image: torch.Tensor, config: dict, tile: int | None) -> torch.Tensor:
    _check(image, config["n_colors"])
    parameter = next(network.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)  # images need more than half precision
    if image.dtype != torch.uint8:
        return _run(network, image.to(parameter.device, dtype), config["scale"], tile).to(image.device, image.dtype)
    gain = config["rgb_range"] / 255
    batch = image.permute(2, 0, 1)[None].to(parameter.device, dtype) * gain
    pixels = (_run(network, batch, config["scale"], tile)[0] / gain).clamp_(0, 255).round_()
    return pixels.permute(1, 2, 0).to(image.device, torch.uint8).contiguous()


def _check(image: torch.Tensor, n_colors: int) -> None:
    """Raises TypeError or ValueError unless `image` is what `upscale` takes."""
    expected = f"uint8 (H, W, {n_colors}) or a float tensor (N, {n_colors}, H, W)"
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"image: got a {type(image).__name__}, expected {expected}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"image: got {str(image.dtype).removeprefix('torch.')}, expected {expected}")
    dimensions, colors = (3, 2) if image.dtype == torch.uint8 else (4, 1)
    if image.dim() != dimensions or image.shape[colors] != n_colors or not image.numel():
        raise ValueError(f"image: got shape {tuple(image.shape)}, expected {expected}")


def _run(network: nn.Module, batch: torch.Tensor, scale: int, tile: int | None) -> torch.Tensor:
    """The network's output for a batch on its device, whole or in tiles."""
    if tile is None:
        reason = memory_shortage(network, batch)
        if reason is None:
            try:
                return network(batch)
            except (MemoryError, RuntimeError) as error:
                if not says_out_of_memory(error):
                    raise
                reason = "does not fit into memory"
        log.info("an image of %dx%d pixels %s: running tiles of %d instead", *batch.shape[:1:-1], reason, AUTO_TILE)
    tiles = Tiles(network, scale=scale, tile=tile or AUTO_TILE, n_colors=batch.shape[1])
    if not tiles.exact:
        log.warning(
            "tiles are not exact for this network: in the middle of the image they are off by %.2g",
            tiles.deviation(batch[:1]),
        )
    return torch.cat([tiles(image) for image in batch.split(1)])
