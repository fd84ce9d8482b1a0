"""What a file of weights says about its network, and how its weights get into one: strictly.

Three forms are read, bare or inside whatever a trainer wrapped them in (`statedict`):

- training form: basis kernels and their transforms (names ending in `.transform`);
- folded: plain kernels W_t that were computed from those;
- plain: kernels that were never recalibrated.

`unpack` takes what `weights.load_tensors` read, `pack` returns what is to be written; no file is touched here.
"""

import logging
import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import statedict
from .errors import UserError, printable
from .facts import FileFacts
from .names import ACTIVATIONS
from .networks import MODELS, build_network
from .recalibration import basis_is_frozen, is_recalibrated

log = logging.getLogger("krgn")

FORMAT = "KRGN framework checkpoint 1"
_MISFITS = (KeyError, IndexError, ValueError, ZeroDivisionError, AttributeError, TypeError, RuntimeError)
# Upper limits of what determines memory and time: a damaged or hostile file may state anything.
_MOST = {"scale": 32, "n_feats": 4096, "n_resgroups": 1000, "n_resblocks": 1000, "dilation": 64, "reduction": 4096}


@dataclass(frozen=True)
class Checkpoint:
    """A state dict with the file it came from and what the file says about it (empty for a bare state dict)."""

    path: str
    state: dict[str, torch.Tensor]
    facts: dict = field(default_factory=dict)

    @property
    def recalibrated(self) -> bool:
        """Whether it is in training form, with basis and transforms."""
        return any(name.endswith(".transform") for name in self.state)

    @property
    def form(self) -> str:
        """In words: "training form", "folded" (its kernels were computed from that) or "plain kernels"."""
        return "training form" if self.recalibrated else "folded" if self.facts.get("folded") else "plain kernels"


def pack(network: nn.Module, model: str, **facts: object) -> dict[str, Any]:
    """A network as a checkpoint: tensors and plain values only.

    Args:
        model: the network's name on the command line.
        facts: more to remember, for instance the epoch.
    """
    return {
        "format": FORMAT,
        "facts": {
            "model": model,
            **network.hyperparameters,
            "kernels": "recalibrated" if is_recalibrated(network) else "plain",
            "basis": "frozen" if basis_is_frozen(network) else "trained",
            **facts,
        },
        "model": {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()},
    }


def unpack(content: object, path: str) -> Checkpoint:
    """The checkpoint in the content that `weights.load_tensors` read from `path`.

    Raises:
        UserError: if there is no state dict in it.
    """
    facts = {}
    if isinstance(content, dict) and content.get("format") == FORMAT:
        facts, content = content.get("facts", {}), content.get("model")
        if not isinstance(facts, dict) or not all(isinstance(name, str) for name in facts):
            raise UserError(f"{path}: does not describe its network as this project does: give another file")
    return Checkpoint(path, statedict.find(content, path, fits=lambda state: bool(_shown_by(state))), facts)


def model_of(checkpoint: Checkpoint, expected: str = "KRGN") -> str:
    """The name of the file's network: as the file states it, else as its tensors' names show it.

    Args:
        expected: the name to return where several networks fit, or none.

    Raises:
        UserError: if the file states a network that is not known.
    """
    stated = checkpoint.facts.get("model")
    if stated is None:
        shown = _shown_by(checkpoint.state)
        return expected if expected in shown or not shown else shown[0]
    if stated not in list(MODELS):  # it may be anything, unhashable too
        raise UserError(
            f"{checkpoint.path}: is of a network {printable(str(stated)[:80])}, known are {', '.join(MODELS)}: "
            "give another file"
        )
    return stated


def _shown_by(state: dict[str, torch.Tensor]) -> list[str]:
    """The names of the networks that a state dict fits; KRGN and CFGN have the same."""
    shown = []
    for name, module in MODELS.items():
        with suppress(*_MISFITS):
            module.structure(state)
            shown.append(name)
    return shown


def facts_of(checkpoint: Checkpoint, expected: str = "KRGN") -> FileFacts:
    """What the file says about its network; `expected` is the network's name where several fit.

    Raises:
        UserError: if it is of no known network, or of one that cannot be built.
    """
    model = model_of(checkpoint, expected)
    basis = checkpoint.facts.get("basis", "trained")
    return FileFacts(checkpoint.path, model, structure_of(checkpoint, model), checkpoint.recalibrated, basis)


def structure_of(checkpoint: Checkpoint, model: str) -> dict:
    """The hyper-parameters that the file states or shows."""
    try:
        shown = MODELS[model].structure(checkpoint.state)
    except _MISFITS as error:
        first = ", ".join(printable(name) for name in list(checkpoint.state)[:3])
        if "head_conv.weight" in checkpoint.state and "sub_mean.bias" not in checkpoint.state:
            raise UserError(
                f"{checkpoint.path}: has no sub_mean and add_mean: it was trained without the mean shift that {model} "
                "has here: give weights that were trained with it"
            ) from None
        raise UserError(
            f"{checkpoint.path}: is no {model} (known are {', '.join(MODELS)}): it lacks {error} and has {first}, …: "
            "give a file of a known network"
        ) from None
    found = shown | {flag: checkpoint.facts[flag] for flag in MODELS[model].UNSEEN if flag in checkpoint.facts}
    sane = found["n_colors"] in (1, 3) and 0 < found["rgb_range"] <= 2**16
    sane = sane and found.get("act", "lrelu") in ACTIVATIONS
    whole = {flag: found[flag] for flag in _MOST if flag in found}
    sane = sane and all(type(value) is int and 1 <= value <= _MOST[flag] for flag, value in whole.items())
    res_scale = found.get("res_scale", 1.0)
    if not sane or type(res_scale) not in (int, float) or not math.isfinite(res_scale):
        shape = printable(", ".join(f"{flag} {str(value)[:40]}" for flag, value in found.items()))
        raise UserError(f"{checkpoint.path}: has {shape}, which is no {model} that can be built: give another file")
    return found


def rebuild(checkpoint: Checkpoint, **unseen: object) -> nn.Module:
    """The network of a file from the file alone, with its weights, in the file's form.

    Args:
        unseen: hyper-parameters that a bare state dict does not show (`UNSEEN` of its network), for instance
            `dilation`; where they are missing or None, the values of the published networks are assumed.

    Raises:
        UserError: if the file is of no known network, its weights do not fit, or it contradicts `unseen`.
    """
    model = model_of(checkpoint)
    found = structure_of(checkpoint, model)
    given = {flag: value for flag, value in unseen.items() if value is not None}
    for flag, value in given.items():
        if flag not in MODELS[model].UNSEEN:
            raise UserError(f"--{flag} {value}, but {checkpoint.path} is {model}, which has none: drop --{flag}")
        if found.get(flag, value) != value:
            raise UserError(f"--{flag} {value}, but {checkpoint.path} has {found[flag]}: drop --{flag}")
    found = MODELS[model].UNSEEN | given | found
    kernels = "recalibrated" if checkpoint.recalibrated else "plain"
    try:
        network = build_network(model, kernels=kernels, **found)
    except ValueError as error:
        raise UserError(f"{checkpoint.path}: is no {model} that can be built ({error}): give another file") from None
    load_weights(network, checkpoint)
    return network


def load_pre_trained(network: nn.Module, model: str, checkpoint: Checkpoint) -> None:
    """`load_weights` for a run that starts from a file or tests it, logging what the user may not expect.

    A network of another scale than the file's keeps everything but the upsampler (its `TAIL`).

    Args:
        model: the network's name.
    """
    log.info("weights from %s (%s)", checkpoint.path, checkpoint.form)
    module, wanted = MODELS[model], network.hyperparameters
    scale = module.structure(checkpoint.state)["scale"]
    if scale != wanted["scale"]:
        log.info("the file is x%d: everything but the upsampler is kept for x%d", scale, wanted["scale"])
    for flag in module.UNSEEN:
        if flag not in checkpoint.facts:
            log.info("the file does not say its %s: --%s %s is used", flag, flag, wanted[flag])
    load_weights(network, checkpoint, anew=module.TAIL if scale != wanted["scale"] else None)


def load_weights(network: nn.Module, checkpoint: Checkpoint, *, anew: str | None = None) -> None:
    """Puts the checkpoint's weights into `network`, all of them, by name and shape.

    A recalibrated network takes plain kernels as its basis, with the transforms at zero: the same function.

    Args:
        anew: layers whose names start with this stay as they are, because the file's are for another scale.

    Raises:
        UserError: with the missing, unexpected and wrongly shaped names.
    """
    wanted, state = network.state_dict(), dict(checkpoint.state)
    if not checkpoint.recalibrated:
        state |= {name: torch.zeros_like(value) for name, value in wanted.items() if name.endswith(".transform")}
    if anew is not None:
        state = {name: value for name, value in state.items() if not name.startswith(anew)}
        state |= {name: value for name, value in wanted.items() if name.startswith(anew)}

    problems = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {tuple(state[name].shape)}, expected {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {kind} ({printable(', '.join(names[:3]))}{', …' if len(names) > 3 else ''})"
            for kind, names in problems.items()
            if names
        )
        raise UserError(f"{checkpoint.path}: does not fit the network: {listed}: give the file of this network")
    network.load_state_dict(state)
