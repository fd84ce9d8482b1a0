"""Files of weights, read without running any code in them: torch's .pt and safetensors."""

import hashlib
import json
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch

from .errors import UserError, says_out_of_memory
from .files import open_regular


def parse_safetensors(content: bytes) -> dict:
    """The content of a safetensors file as a checkpoint of this project; a bare state dict if it has no facts.

    Raises:
        safetensors.SafetensorError, ValueError: if it is damaged, or its tensors have another SHA-256 than it states.
    """
    state = safetensors.torch.load(content)
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    digest = hashlib.sha256(memoryview(content)[8 + size :]).hexdigest()
    if metadata.get("sha256", digest) != digest:
        raise ValueError("its tensors do not have the SHA-256 in its metadata")
    if "facts" not in metadata:
        return state
    return {"format": metadata.get("format"), "facts": json.loads(metadata["facts"]), "model": state}


MOST_WEIGHTS = 16 * 2**30  # bytes of a file at most


def load_tensors(path: Path) -> dict:
    """Reads a torch or safetensors file of tensors and plain values onto the CPU; its content tells which it is.

    Nothing in the file is run. Checksums are verified. Beside tensors and plain values only the types in `_HARMLESS`
    are read.

    Raises:
        UserError: if the file is missing, damaged, not a regular file, or holds anything else.
    """
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which are read or refused in any case
            size = os.fstat(file.fileno()).st_size
            if size > MOST_WEIGHTS:
                raise UserError(
                    f"{path}: has {size:,} bytes, expected at most {MOST_WEIGHTS:,}: give a file of weights"
                )
            head = file.read(9)
            file.seek(0)
            if head[8:] == b"{" and int.from_bytes(head[:8], "little") < size:
                return parse_safetensors(file.read())
            if head[:4] == b"PK\x03\x04":
                _check_archive(file, size)
                file.seek(0)
            with torch.serialization.safe_globals(_HARMLESS):
                return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        released = "" if path.suffix else "; released weights are named like KRGN_x4"
        raise UserError(f"{path}: no such file: check the path{released}") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it: change its permissions") from None
    except IsADirectoryError:
        best = "model/model_best.pt" if (path / "model").is_dir() else "model_best.pt"
        raise UserError(f"{path}: is a folder, expected a file of weights such as {path / best}") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # the name of a class or function, which loading would have called
            raise UserError(
                f"{path}: refused, because it holds more than tensors and plain values, and could run code: "
                "save the state dict alone, torch.save(model.state_dict(), FILE)"
            ) from None
        raise UserError(_damaged(path)) from None
    except UserError:
        raise
    except (Exception, RecursionError) as error:  # torch raises many types for a damaged file: EOFError, KeyError …
        if says_out_of_memory(error):
            raise
        raise UserError(_damaged(path)) from None


def _damaged(path: Path) -> str:
    size = path.stat().st_size
    return f"{path}: is damaged, cut short, or no file of tensors ({size:,} bytes): use another copy"


def _check_archive(file: BinaryIO, size: int) -> None:
    """Raises an exception unless the members of torch's zip archive have the sizes and checksums in its directory.

    Sizes are checked before any content is read; torch itself does not look at checksums.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two members have one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("members are compressed, as torch never does")
        if sum(member.file_size for member in members) > size:
            raise ValueError("members are larger than the file")
        for member in members:
            with archive.open(member) as content:  # raises BadZipFile at its end if the checksum differs
                while content.read(2**20):
                    pass


class _Dtype:
    """A stand-in for NumPy's dtype, of numbers and text alone."""

    def __init__(self, text: str = "f8", *_):
        self.kind = np.dtype(text)
        if self.kind.kind not in "biufSU":
            raise pickle.UnpicklingError(f"NumPy's {text} holds objects")

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.kind = self.kind.newbyteorder(state[1])


class _Array:
    """A stand-in for NumPy's array, whose values are not needed."""

    def __setstate__(self, _state):
        pass


class _Plain:
    """A stand-in for an object with attributes, which are not needed."""

    def __setstate__(self, _state):
        pass


def _scalar(dtype: _Dtype, content: bytes | str = b""):
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype.kind, 1)[0].item()


def _joined(*parts) -> str:
    return os.path.join("", *map(str, parts))


# Types that trainers save beside weights, each with a function that takes its place: nothing of the real one is run.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (lambda text, _encoding: text.encode("latin1"), "_codecs.encode"),
    (_Plain, "argparse.Namespace"),
    (_Plain, "types.SimpleNamespace"),
    (lambda *_: {}, "collections.defaultdict"),
    (OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (_Dtype, "numpy.dtype"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((lambda *_: _Array(), f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (_Array, "numpy.ndarray"),
    *(
        (kind, f"{module}.{kind.__name__}")
        for kind in (list, dict, int, float)
        for module in ("builtins", "__builtin__")
    ),
    *(
        (_joined, f"{module}.{name}Path")
        for module in ("pathlib", "pathlib._local")
        for name in ("Posix", "Windows", "Pure")
    ),
    *(
        (_joined, f"{module}.Pure{name}Path")
        for module in ("pathlib", "pathlib._local")
        for name in ("Posix", "Windows")
    ),
]
