"""Finds the weights in whatever a trainer saved: which part of a file is the state dict, and what its names are.

Trainers wrap a state dict in one or two dicts (`_NAMES`), keep counters beside its tensors, prefix all names with those
of the network's wrappers (`_PREFIXES`), and put discriminators and losses beside the generator. No file is touched
here, and nothing is known about any network except what the caller passes.
"""

import logging
from collections.abc import Callable, Mapping
from numbers import Number

import torch

from .errors import UserError, printable

log = logging.getLogger("krgn")

# Moving averages come first: they are what is released. Names of BasicSR, KAIR, timm, Lightning, lucidrains and others.
_AVERAGES: tuple[str, ...] = (
    "params_ema",
    "params-ema",
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "state_dict_ema",
    "netE",
)
_PLAIN: tuple[str, ...] = (
    "params",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "netG",
    "net_g",
    "net_G",
    "generator",
)
_PLAIN += ("gen", "G", "g", "network", "net_state_dict", "weights", "module", "sr_model", "student")
_NAMES = (*_AVERAGES, *_PLAIN)
_PREFIXES: tuple[str, ...] = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
    "generator.",
    "net_g.",
    "netG.",
    "ema_model.",
)
_PREFIXES += ("online_model.", "sr_model.", "_forward_module.")
_COUNTERS = ("n_averaged", "num_updates", "initted", "step", "decay", "num_batches_tracked")

State = dict[str, torch.Tensor]


def find(content: object, path: str, *, fits: Callable[[State], bool] = lambda _: False) -> State:
    """The state dict in the content of a file: names without wrappers' prefixes, finite float32 tensors.

    Args:
        content: what was read: tensors and plain values.
        path: of the file, for messages.
        fits: whether a state dict belongs to a network that the caller knows; it tells a generator from other networks
            in the file.

    Raises:
        UserError: if there is no state dict, or its tensors are not weights: integers, sparse, quantised, expanded,
            empty, complex, not finite.
    """
    found = _inside(content, path)
    if found is None:
        there = ", ".join(printable(name) for name in list(content)[:5]) if isinstance(content, Mapping) else "no names"
        raise UserError(
            f"{path}: holds no state dict, expected names with their tensors, got {there or 'nothing'}: "
            "give a file of weights"
        )
    state = _stripped(_without_counters(found))
    if not fits(state):
        state = _generator(state, path, fits)
    for name, tensor in state.items():
        _check_is_weight(f"{path}: {printable(name)}", tensor)
    return _as_float(state, path)


def _inside(content: object, path: str, depth: int = 0) -> Mapping | None:
    """The state dict in `content` or up to two levels below."""
    if not isinstance(content, Mapping):
        return None
    if _is_state(content):
        return content
    if depth == 2:
        return None
    within = {name: found for name in _NAMES if (found := _inside(content.get(name), path, depth + 1)) is not None}
    if within:
        chosen = next(iter(within))
        rest = [name for name in within if name not in _AVERAGES]
        if chosen in _AVERAGES and rest:
            log.info("%s: using the averaged weights (%s, not %s)", path, chosen, rest[0])
        return within[chosen]
    others = [found for value in content.values() if (found := _inside(value, path, depth + 1)) is not None]
    return others[0] if len(others) == 1 else None


def _is_state(content: Mapping) -> bool:
    """Whether `content` maps names to tensors, with nothing beside them but numbers and text."""
    return (
        all(isinstance(name, str) for name in content)
        and any(torch.is_tensor(value) and value.dim() > 0 for value in content.values())
        and all(
            torch.is_tensor(value) or value is None or isinstance(value, Number | str) for value in content.values()
        )
    )


def _without_counters(content: Mapping) -> State:
    def counts(name: str, value: object) -> bool:
        return not torch.is_tensor(value) or (value.numel() == 1 and name.rpartition(".")[2] in _COUNTERS)

    return {name: value for name, value in content.items() if not counts(name, value)}


def _stripped(state: State) -> State:
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _generator(state: State, path: str, fits: Callable[[State], bool]) -> State:
    """The part of `state` under one first name that fits, if a discriminator or losses are beside it; else `state`."""
    parts: dict[str, State] = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = tensor
    fitting = {first: part for first, tensors in parts.items() if fits(part := _stripped(tensors))}
    averaged = [first for first in fitting if first in _AVERAGES]
    chosen = averaged if len(averaged) == 1 else list(fitting)
    if len(chosen) != 1 or len(parts) == 1:
        return state
    log.info("%s: using %s, not %s", path, chosen[0], ", ".join(first for first in parts if first != chosen[0]))
    return fitting[chosen[0]]


def _check_is_weight(name: str, tensor: torch.Tensor) -> None:
    """Raises UserError if a tensor cannot be a weight of a network."""
    kind = None
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        kind = f"a {type(tensor).__name__}"
    elif tensor.layout != torch.strided:
        kind = "a sparse tensor"
    elif tensor.is_quantized:
        kind = "a quantised tensor"
    elif tensor.is_meta:
        kind = "a tensor without values"
    elif tensor.is_complex():
        kind = "complex"
    elif not tensor.is_floating_point():
        kind = f"{str(tensor.dtype).removeprefix('torch.')}"
    elif not tensor.numel():
        kind = f"empty, {tuple(tensor.shape)}"
    elif tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        kind = f"{tensor.untyped_storage().nbytes()} bytes expanded to {tuple(tensor.shape)}"
    elif not bool(tensor.isfinite().all()):
        kind = "not finite (NaN or infinity): the training that saved it diverged"
    if kind is not None:
        raise UserError(f"{name} is {kind}, expected floating-point weights: give another file")


def _as_float(state: State, path: str) -> State:
    """The state dict in float32, the dtype in which networks are built here."""
    kinds = {tensor.dtype for tensor in state.values()} - {torch.float32}
    if kinds:
        log.info("%s: weights in %s are converted to float32", path, ", ".join(sorted(str(kind)[6:] for kind in kinds)))
    return {name: tensor.float() for name, tensor in state.items()}
