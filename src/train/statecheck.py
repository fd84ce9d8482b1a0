"""Whether what a state file holds fits a run: names, types, shapes and ranges, all before anything is restored.

A file may be damaged, edited, or of another run. torch's own loading would restore a part of it and fail at another, or
take an optimizer's moments of another shape, which crash its kernels later.
"""

import math
import random
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.optim import Adam, Optimizer, RMSprop

from runtime.errors import UserError, printable
from train.muon import Muon


class Misfit(Exception):
    """What does not fit, in a few words."""


@contextmanager
def fitting(what: str):
    """Inside, whatever does not fit becomes a UserError of one line that begins with `what`."""
    try:
        yield
    except Misfit as error:
        raise UserError(
            f"{what} does not fit this run: {printable(error)}: restore the file, or start another run from its last "
            "weights with --pre_train"
        ) from None
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{what} is damaged ({type(error).__name__}: {printable(error)[:100]}): restore the file, or start another "
            "run from its last weights with --pre_train"
        ) from None


def expect(name: str, value, kind: type, *, least: float = -math.inf, most: float = 2**53):
    """`value` if it is of this kind (float takes whole numbers, NaN and infinity too) and in its range; else Misfit."""
    number = kind in (int, float)
    fits = isinstance(value, (int, float) if kind is float else kind) and not (number and isinstance(value, bool))
    if not fits:
        raise Misfit(f"{name} is {type(value).__name__}, expected {kind.__name__}")
    if number and math.isfinite(value) and not least <= value <= most:
        raise Misfit(f"{name} is {value}, expected at least {least} and at most {most:g}")
    if kind is int and not math.isfinite(value):
        raise Misfit(f"{name} is {value}, expected a whole number")
    return value


def same_tensors(name: str, got, wanted: dict[str, torch.Tensor]) -> None:
    """Raises Misfit unless `got` has the names, shapes and types of `wanted`."""
    expect(name, got, dict)
    for key in [*(key for key in wanted if key not in got), *(key for key in got if key not in wanted)][:1]:
        raise Misfit(f"{name} {'has' if key in got else 'lacks'} {key}")
    for key, tensor in wanted.items():
        _same_tensor(f"{name} {key}", got[key], tensor.shape, tensor.dtype)


def _same_tensor(name: str, got, shape: torch.Size, dtype: torch.dtype) -> None:
    if not torch.is_tensor(got) or got.layout != torch.strided or got.is_quantized or got.device.type != "cpu":
        raise Misfit(f"{name} is no plain tensor")
    if got.shape != shape or got.dtype != dtype:
        raise Misfit(f"{name} is {got.dtype} {tuple(got.shape)}, expected {dtype} {tuple(shape)}")
    if got.untyped_storage().nbytes() < got.numel() * got.element_size():
        raise Misfit(f"{name} has fewer values than its shape says")


def same_optimizer(name: str, got, optimizer: Optimizer) -> None:
    """Raises Misfit unless `got` has moments of each parameter's shape, or none of one that has made no step."""
    expect(name, got, dict)
    expect(f"{name}'s param_groups", got["param_groups"], list)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in expect(f"{name}'s state", got["state"], dict).items():
        if not isinstance(number, int) or not 0 <= number < len(parameters):
            raise Misfit(f"{name} has a parameter {number!r:.50}, expected 0 to {len(parameters) - 1}")
        _same_moments(f"{name} {number}", expect(f"{name} {number}", moments, dict), optimizer, parameters[number])


def _same_moments(name: str, got: dict, optimizer: Optimizer, parameter: nn.Parameter) -> None:
    if isinstance(optimizer, Muon) and optimizer.is_matrix(parameter):
        wanted = {"momentum_buffer"}
    elif isinstance(optimizer, Adam | Muon):  # AdamW too
        wanted = {"step", "exp_avg", "exp_avg_sq"}
    elif isinstance(optimizer, RMSprop):
        wanted = {"step", "square_avg"} | ({"momentum_buffer"} if optimizer.defaults["momentum"] else set())
    else:
        wanted = {"momentum_buffer"}
        if got.get("momentum_buffer", 0) is None:  # without momentum
            return
    if set(got) != wanted:
        raise Misfit(f"{name} has {', '.join(map(str, got)) or 'nothing'}, expected {', '.join(sorted(wanted))}")
    for key, value in got.items():
        if key == "step":
            _same_tensor(f"{name} step", value, torch.Size(), torch.float32)
            expect(f"{name} step", value.item(), float, least=0)
        else:
            _same_tensor(f"{name} {key}", value, parameter.shape, parameter.dtype)


def same_progress(got, *, n_sums: int) -> None:
    """Raises Misfit unless `got` says how far a run has come."""
    expect("progress", got, dict)
    for name in ("epoch", "batch", "counted", "in_a_row", "n_images"):
        expect(name, got[name], int, least=0, most=2**40)
    for name in ("norms", "seconds", "last_loss"):
        expect(name, got[name], float)
    if len(expect("sums", got["sums"], list)) != n_sums:
        raise Misfit(f"there are {len(got['sums'])} sums of losses, expected {n_sums}")
    for value in got["sums"]:
        expect("a sum of losses", value, float)
    if expect("best", got["best"], dict):
        (score,) = got["best"].keys() - {"epoch", "on"}  # "psnr", or the metric of --best_by
        expect("the best epoch's score", got["best"][score], float)
        expect("the best epoch", got["best"]["epoch"], int, least=0)
        expect("what the best epoch was chosen on", got["best"].get("on", ""), str)
    for name, kinds in (("history", (int, float)), ("skipped", (int, float, str))):
        for row in expect(name, got[name], list):
            for key, value in expect(f"a row of {name}", row, dict).items():
                if not isinstance(key, str) or not isinstance(value, kinds):
                    raise Misfit(f"{name} has {key!r:.50}: {value!r:.50}")
    for row in got["history"]:
        expect("an epoch of history", row["epoch"], int)
        expect("a loss of history", row["loss"], float)


def same_random(got) -> None:
    """Raises Misfit unless `got` holds states of Python's, NumPy's and torch's generators, which are tried."""
    expect("random", got, dict)
    try:
        version, words, gauss = got["python"]
        random.Random().setstate((version, tuple(words), gauss))
        np.random.RandomState().set_state(got["numpy"])
        torch.Generator().set_state(got["torch"])
        for state in expect("cuda", got["cuda"], list):
            if not torch.is_tensor(state) or state.dtype != torch.uint8:
                raise Misfit("a GPU's generator has no state")
    except (TypeError, ValueError, IndexError, KeyError, RuntimeError, OverflowError) as error:
        raise Misfit(f"a state of random numbers is none ({str(error)[:80]})") from None
