"""Muon, an optimizer that orthogonalises the update of every weight matrix, with Adam for all other weights.

In: a network and its gradients. Out: its weights, moved by one step. It knows nothing of runs and options.

torch's own Muon takes two-dimensional weights only, one by one. Those of a convolution have four dimensions, and the
matrices of a lightweight network are many and small: here all of one shape are orthogonalised in one batched product.
"""

from collections import defaultdict

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

MOMENTUM = 0.95  # of the matrices, with Nesterov's correction, as published
ITERATIONS = 5


class Muon(Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for matrices, AdamW for the rest.

    A matrix is the weight of a linear layer or of a convolution without groups, (out, in * K * K). Depth-wise kernels,
    transforms, biases and slopes are none. The step of a matrix has the root mean square of a typical step of Adam
    (arXiv 2502.16982, section 2.2), so that one learning rate suits all weights.

    Args:
        network: those of its weights that are trained are optimized.
        lr: learning rate.
        weight_decay: decoupled from the gradient, for all weights.
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        dense = {id(layer.weight) for layer in layers if getattr(layer, "groups", 1) == 1}
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if id(parameter) in dense]
        rest = [parameter for parameter in trained if id(parameter) not in dense]
        self.adam = AdamW([{"params": rest}], lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=True)
        super().__init__([{"params": matrices}, *self.adam.param_groups], {"lr": lr, "weight_decay": weight_decay})

    def is_matrix(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter is optimized by Muon; otherwise by AdamW."""
        return any(parameter is each for each in self.param_groups[0]["params"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step along the gradients of all weights that have one."""
        matrices, rest = self.param_groups
        self.adam.param_groups, self.adam.state = [rest], self.state  # new objects after `load_state_dict`
        self.adam.step()
        alike = defaultdict(list)
        for parameter in matrices["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        for parameters in alike.values():
            updates = torch.stack([self._momentum(parameter).flatten(1) for parameter in parameters])
            size = 0.2 * max(updates.shape[1:]) ** 0.5
            for parameter, update in zip(parameters, orthogonalised(updates), strict=True):
                parameter.mul_(1 - matrices["lr"] * matrices["weight_decay"])
                parameter.add_(update.view(parameter.shape), alpha=-matrices["lr"] * size)

    def _momentum(self, parameter: nn.Parameter) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(momentum, MOMENTUM)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """(B, M, N) -> (B, M, N): the nearest matrix with orthonormal rows or columns, roughly.

    A Newton-Schulz iteration of fifth order, with the coefficients of Muon's publication: it brings singular values to
    0.7 to 1.2, but those below some hundredths of the largest only part of the way. Zero stays zero.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = 3.4445 * x + torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315) @ x
    return x.mT if tall else x
