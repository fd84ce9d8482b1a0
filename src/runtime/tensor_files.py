"""Files of tensors: read without running any code in them (`model.weights`), written atomically."""

import io
from pathlib import Path

import torch

from model.weights import load_tensors as load_tensors
from model.weights import parse_safetensors as parse_safetensors
from runtime.files import write_bytes


def save_tensors(path: Path, content: dict) -> None:
    """Writes tensors and plain values as a torch file, atomically; UserError if it cannot be written."""
    # In memory first: torch turns a full disk into a RuntimeError of its own when it writes to the file itself.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
