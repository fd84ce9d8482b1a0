"""Programs of torch.export (.pt2): written with free height and width, and read without running what a file holds.

torch.export.load unpickles whatever an archive contains and evaluates the expressions of its sizes, so it must only be
given trusted files. `safe_program` makes such a file: it checks every part of an untrusted one against what
`write_program` writes, and copies only those parts.
"""

import io
import json
import os
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from deploy.context import ExportContext, Runner, torch_runner
from deploy.rewrite import for_deployment
from model.compat import zip_writer
from model.files import open_regular
from runtime.errors import UserError, printable

GRAPH, SAMPLE = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
MEMBERS = {
    *(GRAPH, SAMPLE, WEIGHTS, CONSTANTS, "archive_version", "archive_format", "byteorder"),
    *("extra/input.txt", ".data/version", ".data/serialization_id"),
}

# What the program of a network calls. None of these touches files or allocates memory of arbitrary size.
OPERATORS = """
    adaptive_avg_pool2d add add_ _assert_tensor_metadata avg_pool2d batch_norm cat chunk clamp clamp_ clone contiguous
    conv2d conv_transpose2d convolution detach div div_ dropout elu expand flatten gelu group_norm hardsigmoid hardswish
    hardswish_ hardtanh hardtanh_ instance_norm layer_norm leaky_relu leaky_relu_ linear matmul max_pool2d mean mul mul_
    neg pad permute pixel_shuffle pixel_unshuffle pow prelu relu relu6 relu6_ relu_ reshape rsqrt select sigmoid
    sigmoid_ silu silu_ slice softmax split sqrt squeeze sub sub_ sum sym_size tanh to transpose unsqueeze
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var view
""".split()
TARGET = re.compile(r"torch\.ops\.aten\.(\w+)\.\w+|_operator\.(add|sub|mul|floordiv|mod)")
EXPRESSION = re.compile(
    r"(?:\b(?:Symbol|Integer|Mul|Add|Pow|FloorDiv|CleanDiv|Mod|PythonMod|Max|Min|Eq|Ne|Le|Lt|Ge|Gt|positive|negative"
    r"|nonnegative|integer|True|False|[su]\d{1,6}|\d{1,9})\b|'|[(),= +*/-])*"
)
SPECIFICATION = re.compile(
    r'(?:"(?:type|context|children_spec|builtins\.(?:tuple|dict|list)|null|\[\])"|null|[\[\]{}:, 1])*'
)
WORD = re.compile(r"\w{1,200}(?:\.\w{1,200}){0,30}|", re.ASCII)
VERSION = re.compile(r"[\w.+]{1,60}")
MAX_TEXT = 2000  # characters of an expression or a specification


def write_program(network: nn.Module, path: Path, context: ExportContext) -> None:
    """Writes a program of torch.export, which runs without this framework's code; height and width are free."""
    network = for_deployment(network)
    program = torch.export.export(network, (context.example,), dynamic_shapes=context.dynamic_shapes())
    torch.export.save(program, path, extra_files={"input.txt": context.description})


def read_program(path: Path, _) -> Runner:
    """Runs the program by torch, from the checked copy that `safe_program` makes."""
    return torch_runner(torch.export.load(safe_program(path)).module())


def safe_program(path: Path) -> io.BytesIO:
    """A copy of a file that `write_program` wrote, which torch.export.load may be given.

    Nothing of the file is loaded before all of it is checked: the archive has the layout that `write_program` makes, no
    weight is pickled, the example input loads as tensors alone (and is written anew), every operator is one of
    `OPERATORS`, every expression is arithmetic, and every other text is a name.

    Raises:
        UserError: if the file is anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and zipfile warn about files that are refused anyway
            return _rewritten(_members(path))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file: export again") from None
    except Exception as error:  # the file may be any zip archive, with any JSON and tensors
        reason = printable(error)[:200] or type(error).__name__
        raise UserError(f"{path}: is not a program that export.py writes ({reason}): export again") from None


def _members(path: Path) -> dict[str, bytes]:
    """The members of a program's archive by their names below its one folder; ValueError for any other layout."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        infos, size = archive.infolist(), os.fstat(file.fileno()).st_size
        roots = {info.filename.split("/", 1)[0] for info in infos}
        names = [info.filename.split("/", 1)[-1] for info in infos]
        for name in names:
            if name not in MEMBERS and not re.fullmatch(r"data/weights/weight_\d{1,6}", name):
                raise ValueError(f"it has an unexpected member {name[:100]}")
        if len(roots) != 1 or len(set(names)) != len(names):
            raise ValueError("it has several top folders, or two members of the same name")
        if any(info.compress_type for info in infos) or sum(info.file_size for info in infos) > size:
            raise ValueError("it is compressed")
        return {name: archive.read(info) for name, info in zip(names, infos, strict=True)}


def _rewritten(members: dict[str, bytes]) -> io.BytesIO:
    """The archive with its checked parts and nothing else; ValueError for a part that fails its check."""
    program, weights = json.loads(members[GRAPH]), json.loads(members[WEIGHTS])
    _check_program(program)
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}  # names of the functions a layer came from, which loading would look up
    program["guards_code"] = []
    _check_weights(weights, members)
    if json.loads(members[CONSTANTS]) != {"config": {}}:
        raise ValueError("it has constants")
    checked = {
        GRAPH: json.dumps(program).encode(),
        WEIGHTS: json.dumps(weights).encode(),
        SAMPLE: _checked_sample(members[SAMPLE]),
    }
    archive = io.BytesIO()
    writer = zip_writer(archive)
    for name, content in (members | checked).items():
        if not name.startswith((".data/", "byteorder")):  # these the writer adds itself
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    archive.seek(0)
    return archive


def _check_weights(weights: dict, members: dict[str, bytes]) -> None:
    """ValueError unless every weight is a plain tensor that lies in the archive."""
    if weights.keys() != {"config"}:
        raise ValueError("its list of weights has unexpected parts")
    if not all(WORD.fullmatch(name) for name in weights["config"]):
        raise ValueError("a weight's name has characters that names do not have")
    for entry in weights["config"].values():
        known = {"path_name", "is_param", "use_pickle", "tensor_meta"}
        if entry["use_pickle"] is not False or entry.keys() != known or not _only_numbers(entry["tensor_meta"]):
            raise ValueError("it has a pickled weight")
        if f"data/weights/{entry['path_name']}" not in members:
            raise ValueError(f"it lacks a weight {entry['path_name']}")


def _checked_sample(content: bytes) -> bytes:
    """The example input, loaded as tensors alone and saved again."""
    (image,), keywords = torch.load(io.BytesIO(content), weights_only=True)
    if keywords or type(image) is not torch.Tensor:
        raise ValueError("its example input is not one image")
    sample = io.BytesIO()
    torch.save(((image.clone(),), {}), sample)
    return sample.getvalue()


def _only_numbers(value: object, depth: int = 0) -> bool:
    """Whether JSON holds no text but the device "cpu", and so no expression."""
    if isinstance(value, dict):
        return depth < 5 and all(
            inside == "cpu" if name == "type" else _only_numbers(inside, depth + 1) for name, inside in value.items()
        )
    if isinstance(value, list):
        return depth < 5 and all(_only_numbers(inside, depth + 1) for inside in value)
    return not isinstance(value, str)


def _check_program(program: dict) -> None:
    """ValueError for the first text in a program's graph that is not a name, arithmetic, or a known operator."""
    waiting: list[tuple[str, object]] = [("", program)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            if not all(WORD.fullmatch(name) for name in value):
                raise ValueError(f"it has a name {next(name for name in value if not WORD.fullmatch(name))[:60]!r}")
            waiting += [(name, inside) for name, inside in value.items() if name not in ("metadata", "guards_code")]
        elif isinstance(value, list):
            waiting += [(key, inside) for inside in value]
        elif isinstance(value, str) and not _is_harmless(key, value):
            raise ValueError(f"{key} is {value[:60]!r}")


def _is_harmless(key: str, text: str) -> bool:
    """Whether the text that stands under `key` in a program's graph is of the kind that belongs there."""
    if key == "target":
        found = TARGET.fullmatch(text)
        return bool(found) and (found[1] is None or found[1] in OPERATORS)
    if key == "expr_str":
        return len(text) < MAX_TEXT and bool(EXPRESSION.fullmatch(text))
    if key in ("in_spec", "out_spec"):
        return len(text) < MAX_TEXT and bool(SPECIFICATION.fullmatch(text))
    return bool(WORD.fullmatch(text) or (key == "torch_version" and VERSION.fullmatch(text)))
