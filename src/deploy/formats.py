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
import re
import shutil
import signal
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model import MODELS
from model.checkpoint import model_of, rebuild, unpack
from model.compat import zip_writer
from model.krgn import CCA, KRGN, RCG
from runtime.errors import UserError, printable
from runtime.files import open_regular
from runtime.hardware import fresh_processes
from runtime.tensor_files import load_tensors, save_tensors

try:
    import resource
except ImportError:  # Windows
    resource = None

Runner = Callable[[np.ndarray], np.ndarray]
OPSET = 18
MOST_MEMORY = 32 * 2**30  # bytes of addresses that the reader of a file may take, torch's own included
LONGEST = 4096  # the longest side that an exported program takes


@dataclass(frozen=True)
class Use:
    """What a network is for, as far as a writer must know it.

    Args:
        example: an image as the network takes it, (1, C, H, W) float32.
        about: layout and value range in words, kept in the file where it can keep words.
        calibration: images to calibrate int8 on, (1, C, H, W) float32 each, of one size.
        least: the shortest side that the network takes; strided ones need more than the others' 2 pixels.
        made: what several forms begin with, kept from the first of them: the ONNX graph.
    """

    example: torch.Tensor
    about: str = ""
    calibration: list[np.ndarray] = field(default_factory=list)
    least: int = 2
    made: dict[str, bytes] = field(default_factory=dict)


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
        for_speed: whether it is of use only where it is faster than torch in float32.
    """

    suffixes: tuple[str, ...]
    write: Callable[[nn.Module, Path, Use], None]
    read: Callable[[Path, dict], Runner]
    tolerance: float | None
    tolerance_db: float
    package: str = ""
    for_speed: bool = False


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


class ReluRCG(nn.Module):
    """The function of a folded `RCG` in convolutions, sums and ReLUs alone, for onnxruntime.

    Its PReLU runs on one core, and in a layout that its fast convolutions must leave and come back to: half of the time
    of the whole network went there. With slopes a <= 1, PReLU(c) = a c + ReLU((1 - a) c), where both terms are
    convolutions with scaled kernels. The order of the sums is the one of which most run inside a convolution.
    """

    def __init__(self, rcg: RCG):
        super().__init__()
        self.linear = nn.ModuleList(_scaled(conv, prelu.weight) for conv, prelu in rcg.conv_acts)
        self.positive = nn.ModuleList(_scaled(conv, 1 - prelu.weight) for conv, prelu in rcg.conv_acts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for i in range(0, len(self.linear), 2):
            total = self.linear[i](out) + torch.relu(self.positive[i](out))
            total = self.linear[i + 1](out) + total
            out = torch.relu(self.positive[i + 1](out)) + total
        return out + x


def _scaled(conv: nn.Conv2d, factor: torch.Tensor) -> nn.Conv2d:
    """A copy of a convolution whose output channels are multiplied by `factor`, (C,)."""
    conv = copy.deepcopy(conv)
    with torch.no_grad():
        conv.weight *= factor.view(-1, 1, 1, 1)
        conv.bias *= factor
    return conv


def without_prelu(network: nn.Module) -> nn.Module:
    """A folded network with every `RCG` replaced by a `ReluRCG`, in place; one with a slope above 1 stays."""
    for block in network.body if isinstance(network, KRGN) else ():
        for i, rcg in enumerate(block.blocks):
            if all((prelu.weight <= 1).all() for _, prelu in rcg.conv_acts):
                block.blocks[i] = ReluRCG(rcg)
    return network


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
    """By torch.export.load, of what `safe_program` leaves of the file."""
    return torch_runner(torch.export.load(safe_program(path)).module())


# What a program of a network calls, and nothing that touches files, makes storage of any size, or is not torch's own.
_OPERATORS = """
    adaptive_avg_pool2d add add_ _assert_tensor_metadata avg_pool2d batch_norm cat chunk clamp clamp_ clone contiguous
    conv2d conv_transpose2d convolution detach div div_ dropout elu expand flatten gelu group_norm hardsigmoid hardswish
    hardswish_ hardtanh hardtanh_ instance_norm layer_norm leaky_relu leaky_relu_ linear matmul max_pool2d mean mul mul_
    neg pad permute pixel_shuffle pixel_unshuffle pow prelu relu relu6 relu6_ relu_ reshape rsqrt select sigmoid
    sigmoid_ silu silu_ slice softmax split sqrt squeeze sub sub_ sum sym_size tanh to transpose unsqueeze
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var view
""".split()
_EXPRESSION = re.compile(
    r"(?:\b(?:Symbol|Integer|Mul|Add|Pow|FloorDiv|CleanDiv|Mod|PythonMod|Max|Min|Eq|Ne|Le|Lt|Ge|Gt|positive|negative"
    r"|nonnegative|integer|True|False|[su]\d{1,6}|\d{1,9})\b|'|[(),= +*/-])*"
)
_SPECIFICATION = re.compile(
    r'(?:"(?:type|context|children_spec|builtins\.(?:tuple|dict|list)|null|\[\])"|null|[\[\]{}:, 1])*'
)
_WORD = re.compile(r"\w{1,200}(?:\.\w{1,200}){0,30}|", re.ASCII)


def safe_program(path: Path) -> io.BytesIO:
    """A copy of a file that `write_program` made, of those parts alone that are numbers or known to call nothing.

    torch.export.load unpickles whatever an archive holds, and evaluates the text of its sizes: a program is trusted
    code to it. Here nothing is loaded before all of it is known: the archive's layout is the one that is written
    here, no weight is pickled, the example input loads as tensors alone and is written anew, every operator is one of
    `_OPERATORS`, every expression arithmetic, every other text a name.

    Raises:
        UserError: if the file is anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch and zipfile about files that are refused
            return _rewritten(_members(path))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file: export again") from None
    except Exception as error:  # a zip file, JSON and tensors of any kind
        reason = (printable(error)[:200]) or type(error).__name__
        raise UserError(f"{path}: is no program that export.py writes ({reason}): export again") from None


def _members(path: Path) -> dict[str, bytes]:
    """The members of a program's archive, by their names below its one folder; ValueError for any other layout."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        infos, size = archive.infolist(), os.fstat(file.fileno()).st_size
        roots = {info.filename.split("/", 1)[0] for info in infos}
        names = [info.filename.split("/", 1)[-1] for info in infos]
        fixed = {"models/model.json", "data/weights/model_weights_config.json", "data/sample_inputs/model.pt"}
        fixed |= {"data/constants/model_constants_config.json", "archive_version", "archive_format", "byteorder"}
        fixed |= {"extra/input.txt", ".data/version", ".data/serialization_id"}
        for name in names:
            if name not in fixed and not re.fullmatch(r"data/weights/weight_\d{1,6}", name):
                raise ValueError(f"it has a member {name[:100]}")
        if len(roots) != 1 or len(set(names)) != len(names):
            raise ValueError("it has two members of one name, or two folders")
        if any(info.compress_type for info in infos) or sum(info.file_size for info in infos) > size:
            raise ValueError("it is compressed")
        return {name: archive.read(info) for name, info in zip(names, infos, strict=True)}


def _rewritten(members: dict[str, bytes]) -> io.BytesIO:
    program = json.loads(members["models/model.json"])
    _check_program(program)
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}  # where a layer stood in the source: names of functions, which loading would look up
    program["guards_code"] = []
    weights = json.loads(members["data/weights/model_weights_config.json"])
    if weights.keys() != {"config"} or json.loads(members["data/constants/model_constants_config.json"]) != {
        "config": {}
    }:
        raise ValueError("it has constants")
    if not all(_WORD.fullmatch(name) for name in weights["config"]):
        raise ValueError("it has weights whose names are none")
    for entry in weights["config"].values():
        known = {"path_name", "is_param", "use_pickle", "tensor_meta"}
        if entry["use_pickle"] is not False or entry.keys() != known or not _only_numbers(entry["tensor_meta"]):
            raise ValueError("it has a pickled weight")
        if f"data/weights/{entry['path_name']}" not in members:
            raise ValueError(f"it lacks a weight {entry['path_name']}")
    inputs = torch.load(io.BytesIO(members["data/sample_inputs/model.pt"]), weights_only=True)
    (image,), named = inputs
    if named or type(image) is not torch.Tensor:
        raise ValueError("its example is no image")
    sample, copy = io.BytesIO(), io.BytesIO()
    torch.save(((image.clone(),), {}), sample)
    texts = {"models/model.json": program, "data/weights/model_weights_config.json": weights}
    texts = {name: json.dumps(value).encode() for name, value in texts.items()}
    written = members | texts | {"data/sample_inputs/model.pt": sample.getvalue()}
    writer = zip_writer(copy)
    for name, content in written.items():
        if not name.startswith((".data/", "byteorder")):  # the writer's own
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    copy.seek(0)
    return copy


def _only_numbers(value: object, depth: int = 0) -> bool:
    """Whether some JSON holds no text but a device's name: no expression, that is."""
    if isinstance(value, dict):
        return depth < 5 and all(
            inside == "cpu" if name == "type" else _only_numbers(inside, depth + 1) for name, inside in value.items()
        )
    if isinstance(value, list):
        return depth < 5 and all(_only_numbers(inside, depth + 1) for inside in value)
    return not isinstance(value, str)


def _check_program(program: dict) -> None:
    """ValueError for the first text in a program's graph that is no name, arithmetic, or known operator."""
    waiting: list[tuple[str, object]] = [("", program)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            if not all(_WORD.fullmatch(name) for name in value):
                raise ValueError(f"it has a name {next(name for name in value if not _WORD.fullmatch(name))[:60]!r}")
            waiting += [(name, inside) for name, inside in value.items() if name not in ("metadata", "guards_code")]
        elif isinstance(value, list):
            waiting += [(key, inside) for inside in value]
        elif isinstance(value, str):
            if key == "target":
                found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.\w+|_operator\.(add|sub|mul|floordiv|mod)", value)
                fits = found and (found[1] is None or found[1] in _OPERATORS)
            elif key == "expr_str":
                fits = len(value) < 2000 and _EXPRESSION.fullmatch(value)
            elif key in ("in_spec", "out_spec"):
                fits = len(value) < 2000 and _SPECIFICATION.fullmatch(value)
            else:
                fits = _WORD.fullmatch(value) or (key == "torch_version" and re.fullmatch(r"[\w.+]{1,60}", value))
            if not fits:
                raise ValueError(f"{key} is {value[:60]!r}")


@contextlib.contextmanager
def apart(name: str, path: Path, hyperparameters: dict, timeout: float = 300) -> Iterator[Runner]:
    """A form's reader in a process of its own: a damaged file may end the program that reads it, or never let it go.

    Args:
        timeout: seconds for the reading, and for each image.

    Raises:
        UserError: in one line, whatever happens to that process.
    """
    context = fresh_processes("deploy.formats")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, name, path, hyperparameters), daemon=True)
    process.start()
    there.close()

    def answer():
        try:
            if not here.poll(timeout):
                raise UserError(f"{path}: its reader does not answer within {timeout:g} s: export again")
            found = here.recv_bytes()
        except (EOFError, OSError):
            process.join(5)
            code = process.exitcode
            died = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with status {code}"
            raise UserError(f"{path}: its reader ended {died}, the file is damaged: export again") from None
        if found[:1] == b"!":
            raise UserError(f"{path}: {found[1:].decode()}")
        return found[1:]

    def run(image: np.ndarray) -> np.ndarray:
        try:
            here.send_bytes(_packed(image))
        except OSError:
            answer()
        return np.load(io.BytesIO(answer()), allow_pickle=False)

    try:
        answer()
        yield run
    finally:
        here.close()
        process.kill()
        process.join()


def _packed(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _serve(pipe, name: str, path: Path, hyperparameters: dict) -> None:
    """What the process of `apart` does; it answers "." and an image, or "!" and why there is none."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # compiled readers print what they think of a file
        os.dup2(nowhere, number)
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        reader = FORMATS[name].read(path, hyperparameters)
        pipe.send_bytes(b".")
        while True:
            image = np.load(io.BytesIO(pipe.recv_bytes()), allow_pickle=False)
            pipe.send_bytes(b"." + _packed(np.asarray(reader(image), dtype=np.float32)))
    except (EOFError, BrokenPipeError):
        return
    except UserError as error:
        pipe.send_bytes(b"!" + str(error).removeprefix(f"{path}: ").encode("utf-8", "replace"))
    except Exception as error:  # whatever a runtime raises
        reason = printable(error)[:200] or type(error).__name__
        pipe.send_bytes(b"!" + f"cannot be read ({reason}): export again".encode("utf-8", "replace"))


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
    if "onnx" not in use.made:
        use.made["onnx"] = _onnx(network, use)
    path.write_bytes(use.made["onnx"])


def _onnx(network: nn.Module, use: Use) -> bytes:
    import onnx

    network = without_prelu(for_deployment(network)[0])
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
    return model.SerializeToString()


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
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise UserError(f"{path}: is no network of ncnn's: export again")

    def run(image: np.ndarray) -> np.ndarray:
        pixels = np.ascontiguousarray(image[0])  # by name: a Mat does not keep its buffer alive
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(pixels).clone())
        status, out = extractor.extract("out0")
        if status:
            raise UserError(f"{path}: ncnn cannot run it (status {status}): export again")
        return np.array(out)[None]

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
    "onnx-int8": Format(("_int8.onnx",), write_onnx_int8, read_onnx, None, 1.0, "onnxruntime", for_speed=True),
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
