"""Networks by name. A model's module has

NETWORK                     the network's class, made from its hyper-parameters as keyword arguments
structure(state)            its hyper-parameters, read off a state dict
UNSEEN                      hyper-parameters that a state dict does not show, with the values to assume
TAIL                        how the names of layers begin that are made anew for another scale
kernel_sets(model, block)   the convolutions of a block, for looking at their kernels
"""

from torch import nn

from . import edsr, krgn, rcan
from .krgn import KRGN
from .names import NETWORKS
from .recalibration import RecConv, basis_is_frozen, is_recalibrated, recalibrate

# CFGN, KRGN's predecessor, is KRGN with plain kernels in 32 groups: `names.NETWORKS` says so.
MODELS = {"KRGN": krgn, "CFGN": krgn, "EDSR": edsr, "RCAN": rcan}


def build_model(args) -> nn.Module:
    """The network that the options describe, freshly initialised: the one adapter from flags to a network."""
    flags = ("scale", "n_colors", "rgb_range", *(flag for flag in NETWORKS[args.model] if flag != "kernels"))
    hyperparameters = {flag: getattr(args, flag) for flag in flags}
    return build_network(args.model, kernels=args.kernels, train_basis=args.basis == "trained", **hyperparameters)


def build_network(model: str, *, kernels: str = "plain", train_basis: bool = True, **hyperparameters) -> nn.Module:
    """The network of that name, freshly initialised.

    KRGN is made with recalibrated kernels; of other networks the body's convolutions above 1x1 are recalibrated.

    Args:
        kernels: "recalibrated" or "plain".
        train_basis: whether recalibrated kernels' basis is trained too.

    Raises:
        ValueError: if there is no network of such hyper-parameters.
    """
    if model in ("KRGN", "CFGN"):
        return KRGN(recalibrated=kernels == "recalibrated", train_basis=train_basis, **hyperparameters)
    network = MODELS[model].NETWORK(**hyperparameters)
    return recalibrate(network, _in_body, train_basis=train_basis) if kernels == "recalibrated" else network


def _in_body(name: str, convolution: nn.Module) -> bool:
    return name.startswith("body.") and max(convolution.kernel_size) > 1


def describe(network: nn.Module, name: str | None = None) -> str:
    """One line: the network, its kernels, and its parameters in training form and deployed (folded).

    Args:
        name: of the network; by default that of its class.
    """
    name = name or type(network).__name__
    shape = {
        flag: f"{value:g}" if isinstance(value, float) else value for flag, value in network.hyperparameters.items()
    }
    title = f"{name} x{shape.pop('scale')} ({', '.join(f'{flag} {value}' for flag, value in shape.items())})"
    if not is_recalibrated(network):
        return f"{title}: plain kernels; {count_parameters(network):,} parameters"
    basis = "frozen" if basis_is_frozen(network) else "trained"
    return (
        f"{title}: recalibrated kernels, {basis} basis; {count_parameters(network):,} parameters in training form, "
        f"{count_parameters(network, folded=True):,} deployed"
    )


def count_parameters(network: nn.Module, *, folded: bool = False) -> int:
    """All parameters, those of the fixed mean shifts included, as published counts do.

    Args:
        folded: as of the folded network, in which the transforms are gone; nothing is folded for that.
    """
    count = sum(parameter.numel() for parameter in network.parameters())
    if folded:
        count -= sum(module.transform.numel() for module in network.modules() if isinstance(module, RecConv))
    return count
