"""Networks by name. A model's module has `make_model(args)`, its adapter from the command line, and
`structure(state)`, which reads its hyper-parameters off a state dict."""

from torch import nn

from model import krgn
from model.recalibration import basis_is_frozen, fold, is_recalibrated

MODELS = {"KRGN": krgn}


def build_model(args) -> nn.Module:
    """The network that the options describe, freshly initialised."""
    return MODELS[args.model].make_model(args)


def describe(network: nn.Module, name: str) -> str:
    """One line: the network, its kernels, and its parameters in training form and deployed (folded)."""
    shape = {
        flag: f"{value:g}" if isinstance(value, float) else value for flag, value in network.hyperparameters.items()
    }
    title = f"{name} x{shape.pop('scale')} ({', '.join(f'{flag} {value}' for flag, value in shape.items())})"
    if not is_recalibrated(network):
        return f"{title}: plain kernels; {count_parameters(network):,} parameters"
    basis = "frozen" if basis_is_frozen(network) else "trained"
    return (
        f"{title}: recalibrated kernels, {basis} basis; {count_parameters(network):,} parameters in training form, "
        f"{count_parameters(fold(network)):,} deployed"
    )


def count_parameters(network: nn.Module) -> int:
    """All parameters, those of the fixed mean shifts included, as published counts do."""
    return sum(parameter.numel() for parameter in network.parameters())
