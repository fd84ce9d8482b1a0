"""What the writers and readers of all export formats share.

A writer makes files from any torch module that takes one image. A reader returns a `Runner` that runs such a file by
the format's own runtime, so that the file can be compared with torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

Runner = Callable[[np.ndarray], np.ndarray]  # (1, C, H, W) float32 -> (1, C, scale * H, scale * W) float32
MAX_SIDE = 4096  # the longest side, in pixels, that an exported program takes


@dataclass(frozen=True)
class ExportContext:
    """What a writer must know about a network beside its layers.

    Args:
        example: an image as the network takes it, (1, C, H, W) float32.
        description: layout and value range in words, kept in the file where the format has a place for it.
        calibration: images to calibrate int8 on, (1, C, H, W) float32 each, of one size.
        min_side: the shortest side in pixels that the network takes; strided networks need more than 2.
        cache: results that several formats start from, kept after the first of them: the ONNX graph.
    """

    example: torch.Tensor
    description: str = ""
    calibration: list[np.ndarray] = field(default_factory=list)
    min_side: int = 2
    cache: dict[str, bytes] = field(default_factory=dict)

    def dynamic_shapes(self) -> tuple[dict]:
        """Free height and width of the one input, as torch's exporters take them."""
        height, width = (torch.export.Dim(name, min=self.min_side, max=MAX_SIDE) for name in ("height", "width"))
        return ({2: height, 3: width},)


def torch_runner(network: nn.Module) -> Runner:
    """A torch module with the interface of the readers."""

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(image)).numpy()

    return run
