"""The forms in which a folded network leaves the framework, each with its writer and its reader.

A writer makes files for any torch module that takes one image; a reader runs such a file by its own means,
(1, C, H, W) float32 -> the same, so that what was written can be compared with torch. Packages that only one form
needs are imported when it is asked for.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from errors import UserError
from model import MODELS
from model.checkpoint import model_of, rebuild, unpack
from model.krgn import CCA, KRGN
from utility import load_tensors, save_tensors

Runner = Callable[[np.ndarray], np.ndarray]
OPSET = 18
LONGEST = 4096  # the longest side that an exported program takes


@dataclass(frozen=True)
class Use:
    """What a network is for, as far as a writer must know it.

    Args:
        example: an image as the network takes it, (1, C, H, W) float32.
        about: layout and value range in words, kept in the file where it can keep words.
        calibration: images to calibrate int8 on, (1, C, H, W) float32 each, of one size.
        least: the shortest side that the network takes; strided ones need more than the others' 2 pixels.
    """

    example: torch.Tensor
    about: str = ""
    calibration: list[np.ndarray] = field(default_factory=list)
    least: int = 2


@dataclass(frozen=True)
class Format:
    """One form.

    Args:
        suffixes: of the file that the reader is given, and of files beside it.
        write: (network, path of the first file, what it is for).
        read: (path of the first file, hyper-parameters that `pt` needs) -> a function that runs it.
        tolerance: largest difference from torch, of the 0-255 range; None where rounding is the purpose.
        tolerance_db: largest loss of PSNR on the test images.
        package: what must be installed.
    """

    suffixes: tuple[str, ...]
    write: Callable[[nn.Module, Path, Use], None]
    read: Callable[[Path, dict], Runner]
    tolerance: float | None
    tolerance_db: float
    package: str = ""


def for_deployment(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of a folded network for runtimes that know convolutions and simple sums, and what was changed.

    Of KRGN; other networks are only copied:

    - The attention is written in means, products and sums, because ncnn knows no operator that does more at once.
    - The mean that is added to the output goes into the bias of the convolution before it, which is exact: between them
      pixels only move. The mean that is taken from the input stays: the first convolution pads with zeros after that,
      so inside its bias the mean would be wrong along the borders.
    """
    network = copy.deepcopy(network).eval().float().cpu()
    if not isinstance(network, KRGN):
        return network, ["mean shifts: left alone"]
    for block in network.body:
        block.cca = PlainCCA(block.cca)
    with torch.no_grad():
        channels = network.add_mean.bias.numel()
        bias = network.upsampler[0].bias
        bias += network.add_mean.bias.repeat_interleave(bias.numel() // channels)
    network.add_mean = nn.Identity()
    return network, [
        "mean added to the output: folded into the bias of the last convolution (exact)",
        "mean taken from the input: left alone (the first convolution's zero padding makes it inexact at the borders)",
    ]


class PlainCCA(nn.Module):
    """The function of a `CCA`, in operators that every runtime has."""

    def __init__(self, cca: CCA):
        super().__init__()
        self.cca = cca

    def forward(self, x: torch.Tensor, plus: torch.Tensor) -> torch.Tensor:
        mean = nn.functional.adaptive_avg_pool2d(x, 1)
        variance = nn.functional.adaptive_avg_pool2d((x - mean) * (x - mean), 1)
        return x * self.cca.attention(mean, variance) + plus


# --- torch ---


def write_pt(network: nn.Module, path: Path, use: Use) -> None:
    """A bare state dict with the published names."""
    save_tensors(path, {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()})


def read_pt(path: Path, hyperparameters: dict) -> Runner:
    """Through this framework's network, rebuilt from the names and shapes, and what they do not show."""
    checkpoint = unpack(load_tensors(path), str(path))
    unseen = MODELS[model_of(checkpoint)].UNSEEN
    return torch_runner(rebuild(checkpoint, **{flag: hyperparameters[flag] for flag in unseen}).eval())


def write_program(network: nn.Module, path: Path, use: Use) -> None:
    """A program of torch.export, which runs without this framework's code; height and width are free."""
    network, _ = for_deployment(network)
    program = torch.export.export(network, (use.example,), dynamic_shapes=_free_sides(use))
    torch.export.save(program, path, extra_files={"input.txt": use.about})


def read_program(path: Path, _) -> Runner:
    """By torch.export.load."""
    return torch_runner(torch.export.load(path).module())


def torch_runner(network) -> Runner:
    """A torch module as the other forms are called."""

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(image)).numpy()

    return run


def _free_sides(use: Use) -> tuple:
    height, width = (torch.export.Dim(name, min=use.least, max=LONGEST) for name in ("height", "width"))
    return ({2: height, 3: width},)


# --- ONNX ---


def write_onnx(network: nn.Module, path: Path, use: Use) -> None:
    """ONNX with the input "image" and the output "sr"; height and width are free."""
    import onnx

    network, _ = for_deployment(network)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about its own parts
        program = torch.onnx.export(
            network,
            (use.example,),
            dynamo=True,
            dynamic_shapes=_free_sides(use),
            input_names=["image"],
            output_names=["sr"],
            opset_version=OPSET,
            verbose=False,
        )
    model = program.model_proto
    for name, value in {"input": use.about, **json_of(network)}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def json_of(network: nn.Module) -> dict[str, str]:
    """The hyper-parameters, for a file's metadata; nothing for networks that have none."""
    shape = getattr(network, "hyperparameters", None)
    return {} if shape is None else {"hyperparameters": json.dumps(shape)}


def write_onnx_fp16(network: nn.Module, path: Path, use: Use) -> None:
    """The same with weights and arithmetic in float16; input, output and the attention's statistics stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    write_onnx(network, path, use)
    # Squares of features do not fit into float16, nor do their sums.
    wide = ["ReduceMean", "GlobalAveragePool", "Pow", "Sqrt"]
    model = convert_float_to_float16(onnx.load(path), keep_io_types=True, op_block_list=wide)
    onnx.save(model, path)


def write_onnx_int8(network: nn.Module, path: Path, use: Use) -> None:
    """The same with convolutions in int8: static quantisation, a scale for each channel, calibrated on images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.images = iter(use.calibration)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"image": image}

    plain, prepared = path.with_suffix(".plain"), path.with_suffix(".prepared")
    write_onnx(network, plain, use)
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    plain.unlink()
    prepared.unlink()


def read_onnx(path: Path, _) -> Runner:
    """By onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


# --- ncnn ---


class Root(nn.Module):
    """A network one level down: pnnx makes variables out of its layers' names, which may begin with a digit."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image)


def write_ncnn(network: nn.Module, path: Path, use: Use) -> None:
    """ncnn's two files, float32, by pnnx; input "in0", output "out0"."""
    import pnnx

    network, _ = for_deployment(network)
    example = use.example
    other = torch.zeros(1, example.shape[1], example.shape[2] + 8, example.shape[3] + 4)
    with tempfile.TemporaryDirectory() as folder, _silent():
        made = Path(folder) / "network"
        pnnx.export(Root(network), f"{made}.pt", example, other, fp16=False)
        shutil.copyfile(f"{made}.ncnn.param", path)
        shutil.copyfile(f"{made}.ncnn.bin", path.with_suffix(".bin"))


def read_ncnn(path: Path, _) -> Runner:
    """By the ncnn package on the CPU, all in float32."""
    import ncnn

    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    net.load_param(str(path))
    net.load_model(str(path.with_suffix(".bin")))

    def run(image: np.ndarray) -> np.ndarray:
        pixels = np.ascontiguousarray(image[0])  # by name: a Mat does not keep its buffer alive
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(pixels).clone())
        return np.array(extractor.extract("out0")[1])[None]

    return run


@contextlib.contextmanager
def _silent():
    """Drops what a compiled program prints, which redirecting Python's streams does not catch."""
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


FORMATS = {
    "pt": Format((".pt",), write_pt, read_pt, 1e-3, 0.001),
    "torch": Format((".pt2",), write_program, read_program, 1e-2, 0.001),
    "onnx": Format((".onnx",), write_onnx, read_onnx, 1e-2, 0.001, "onnxruntime"),
    "onnx-fp16": Format(("_fp16.onnx",), write_onnx_fp16, read_onnx, None, 0.05, "onnxruntime"),
    "onnx-int8": Format(("_int8.onnx",), write_onnx_int8, read_onnx, None, 1.0, "onnxruntime"),
    "ncnn": Format((".ncnn.param", ".ncnn.bin"), write_ncnn, read_ncnn, 1e-2, 0.001, "ncnn"),
}


def require(name: str) -> None:
    """UserError if a form's packages are not there."""
    packages = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "ncnn": ("pnnx", "ncnn")}
    for package in packages.get(FORMATS[name].package, ()):
        try:
            __import__(package)
        except Exception as error:  # compiled packages fail in their own ways
            raise UserError(
                f"--formats {name}: {package} cannot be imported ({error}): pip install -r requirements-export.txt"
            ) from None
