"""ncnn in float32: written by pnnx, run by the ncnn package on the CPU."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deploy.context import ExportContext, Runner
from deploy.rewrite import for_deployment
from runtime.errors import UserError


class Root(nn.Module):
    """A network one level down: pnnx makes variables of its layers' names, which may begin with a digit."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image)


def write_ncnn(network: nn.Module, path: Path, context: ExportContext) -> None:
    """Writes ncnn's two files, float32; the input is "in0", the output "out0"."""
    import pnnx

    example = context.example
    other_size = torch.zeros(1, example.shape[1], example.shape[2] + 8, example.shape[3] + 4)
    with tempfile.TemporaryDirectory() as folder, _silent():
        stem = Path(folder) / "network"
        pnnx.export(Root(for_deployment(network)), f"{stem}.pt", example, other_size, fp16=False)
        shutil.copyfile(f"{stem}.ncnn.param", path)
        shutil.copyfile(f"{stem}.ncnn.bin", path.with_suffix(".bin"))


def read_ncnn(path: Path, _) -> Runner:
    """Runs the files by the ncnn package on the CPU, all in float32.

    Raises:
        UserError: if ncnn cannot load the files or run the network.
    """
    import ncnn

    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise UserError(f"{path}: is not an ncnn network: export again")

    def run(image: np.ndarray) -> np.ndarray:
        pixels = np.ascontiguousarray(image[0])  # kept in a variable, because a Mat does not keep its buffer alive
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(pixels).clone())
        status, out = extractor.extract("out0")
        if status:
            raise UserError(f"{path}: ncnn cannot run it (status {status}): export again")
        return np.array(out)[None]

    return run


@contextlib.contextmanager
def _silent():
    """Drops what compiled code prints, which redirecting Python's streams does not catch."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        kept = [os.dup(1), os.dup(2)]
        try:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            for number, copied in enumerate(kept, start=1):
                os.dup2(copied, number)
                os.close(copied)
