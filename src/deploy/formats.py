"""The table of formats in which a folded network leaves the framework, each with its writer and its reader.

To add a format, write a writer and a reader (`context.py` says what they get) and add a row to `FORMATS`. Packages that
only one format needs are imported inside its functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from deploy.context import ExportContext, Runner, torch_runner
from deploy.ncnn_form import read_ncnn, write_ncnn
from deploy.onnx_form import read_onnx, write_onnx, write_onnx_fp16, write_onnx_int8
from deploy.program import read_program, write_program
from deploy.web_form import FILES, SUFFIX, prepare_web, read_web, write_web
from model.checkpoint import model_of, rebuild, unpack
from model.networks import MODELS
from model.weights import load_tensors
from runtime.errors import UserError
from runtime.files import save_tensors


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Args:
        suffixes: of the file that the reader is given, and of the files beside it.
        write: (network, path of the first file, context).
        read: (path of the first file, hyper-parameters that `pt` needs) -> a function that runs the file.
        tolerance: allowed largest difference from torch, of the 0-255 range; None for formats that round on purpose.
        tolerance_db: allowed loss of PSNR on the test images, in dB.
        packages: modules that must be importable.
        for_speed: whether the format is of use only where it is faster than torch in float32.
        beside: names of further files, which `write` makes in the same folder; they are the same for every network.
        prepare: given the hyper-parameters before anything is written; raises UserError if this network, or this
            machine, cannot have the format.
        in_all: whether `--formats all` means it too.
    """

    suffixes: tuple[str, ...]
    write: Callable[[nn.Module, Path, ExportContext], None]
    read: Callable[[Path, dict], Runner]
    tolerance: float | None
    tolerance_db: float
    packages: tuple[str, ...] = ()
    for_speed: bool = False
    beside: tuple[str, ...] = ()
    prepare: Callable[[dict], None] = lambda hyperparameters: None
    in_all: bool = True

    def files(self, stem: str) -> list[str]:
        """The names of the format's files for a network with this name; the first is the one that is read."""
        return [*(f"{stem}{suffix}" for suffix in self.suffixes), *self.beside]


def write_pt(network: nn.Module, path: Path, context: ExportContext) -> None:
    """Writes a bare state dict with the published names."""
    save_tensors(path, {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()})


def read_pt(path: Path, hyperparameters: dict) -> Runner:
    """Runs the file by this framework's network, rebuilt from names and shapes.

    Args:
        hyperparameters: those of the exported network; what names and shapes do not show is taken from here.
    """
    checkpoint = unpack(load_tensors(path), str(path))
    unseen = MODELS[model_of(checkpoint)].UNSEEN
    return torch_runner(rebuild(checkpoint, **{flag: hyperparameters[flag] for flag in unseen}).eval())


_ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "pt": Format(suffixes=(".pt",), write=write_pt, read=read_pt, tolerance=1e-3, tolerance_db=0.001),
    "torch": Format(suffixes=(".pt2",), write=write_program, read=read_program, tolerance=1e-2, tolerance_db=0.001),
    "onnx": Format(
        suffixes=(".onnx",), write=write_onnx, read=read_onnx, tolerance=1e-2, tolerance_db=0.001, packages=_ONNX
    ),
    "onnx-fp16": Format(
        suffixes=("_fp16.onnx",),
        write=write_onnx_fp16,
        read=read_onnx,
        tolerance=None,
        tolerance_db=0.05,
        packages=_ONNX,
    ),
    "onnx-int8": Format(
        suffixes=("_int8.onnx",),
        write=write_onnx_int8,
        read=read_onnx,
        tolerance=None,
        tolerance_db=1.0,
        packages=_ONNX,
        for_speed=True,
    ),
    "ncnn": Format(
        suffixes=(".ncnn.param", ".ncnn.bin"),
        write=write_ncnn,
        read=read_ncnn,
        tolerance=1e-2,
        tolerance_db=0.001,
        packages=("pnnx", "ncnn"),
    ),
    "web": Format(
        suffixes=(SUFFIX,),
        write=write_web,
        read=read_web,
        tolerance=0.5,  # a pixel differs by at most 1
        tolerance_db=0.005,
        packages=_ONNX,
        beside=FILES,
        prepare=prepare_web,
        in_all=False,  # it needs the network, and takes 43 MB
    ),
}


def require(name: str) -> None:
    """Imports the packages that a format needs.

    Raises:
        UserError: if one of them cannot be imported.
    """
    for package in FORMATS[name].packages:
        try:
            __import__(package)
        except Exception as error:  # compiled packages fail in ways of their own
            raise UserError(
                f"--formats {name}: {package} cannot be imported ({error}): pip install -r requirements-export.txt"
            ) from None
