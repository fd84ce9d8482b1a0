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
    shape = ", ".join(f"{flag} {value}" for flag, value in network.hyperparameters.items() if flag != "scale")
    kernels = "plain kernels"
    if is_recalibrated(network):
        kernels = f"recalibrated kernels, {'frozen' if basis_is_frozen(network) else 'trained'} basis"
    deployed = count_parameters(fold(network))
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return (
        f"{name} x{network.hyperparameters['scale']} ({shape}): {kernels}; "
        f"{count_parameters(network):,} parameters in training form, {trained:,} of them trained, {deployed:,} deployed"
    )


def count_parameters(network: nn.Module) -> int:
    """All parameters, those of the fixed mean shifts included, as published counts do."""
    return sum(parameter.numel() for parameter in network.parameters())
