"""Kernel recalibration: convolutions whose kernels are computed from one another, and how they fold away.

KRGN, "Towards lightweight image super-resolution via re-parameterized kernel recalibration", takes the kernel
transform from RefConv (arXiv 2310.10563): for a basis kernel W_b,

    W_t = W_b + T(W_b)                                                                             (1)

where T is a convolution over the kernels themselves, so that each kernel depends on the kernels of the other
channels. After training W_t is a constant: a plain convolution with that kernel is the same function (`fold`).

This module knows no network.
"""

import copy
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import nn


class RecConv(nn.Conv2d):
    """An `nn.Conv2d` that convolves with the recalibrated kernel W_t = W_b + T(W_b), equation (1).

    The basis W_b is the layer's `weight`, (out, in/groups, K, K), initialised like that of any convolution: with
    W_b = 0 and T = 0 the layer would be dead, because T(0) = 0 and the gradient of T is zero there too.
    `transform` holds the weights of T, a bias-free `transform_size` x `transform_size` convolution with "same"
    padding over W_b seen as one (1, n, K, K) image, n = out * in/groups, in `in * out / groups^2` groups. It is
    zero at first, so the layer starts as the plain convolution and a plain checkpoint is a valid start.

    Args beyond those of `nn.Conv2d`:
        transform_size: side of T's kernels, odd (3 in the paper).
        train_basis: False freezes W_b, as RefConv does with the kernels of a network that was trained plain.

    Raises:
        ValueError: for an even `transform_size`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        transform_size: int = 3,
        train_basis: bool = True,
        device=None,
        dtype=None,
    ):
        if transform_size % 2 == 0:
            raise ValueError(f"transform_size: got {transform_size}, expected an odd number")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        n = out_channels * in_channels // groups
        # n channels in in*out/groups^2 groups leave `groups` input channels to each of T's filters.
        self.transform = nn.Parameter(
            torch.zeros(n, groups, transform_size, transform_size, device=device, dtype=dtype)
        )
        self.weight.requires_grad_(train_basis)

        self.computed: torch.Tensor | None = None  # W_t during a forward pass of a network with `at_once`

    def kernel(self) -> torch.Tensor:
        """W_t of equation (1), shaped like `weight`; differentiable in the basis and in the transform."""
        return recalibrated([self])[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, kernel_of(self), self.bias)

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """A new plain convolution with the kernel W_t and a copy of the bias: the same function."""
        plain = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        plain.weight.copy_(self.kernel())
        if self.bias is not None:
            plain.bias.copy_(self.bias)
        return plain.train(self.training)


def kernel_of(conv: nn.Conv2d) -> torch.Tensor:
    """The kernel that a plain or recalibrated convolution convolves with."""
    if not isinstance(conv, RecConv):
        return conv.weight
    return conv.kernel() if conv.computed is None else conv.computed


def recalibrated(layers: list[RecConv]) -> list[torch.Tensor]:
    """W_t = W_b + T(W_b), equation (1), of each layer, shaped like its `weight`.

    T is written as a matrix product, its weights times the patches of the basis, so that all layers of a shape are one
    batched product: one layer's is too small to keep a processor busy, and KRGN has 162.
    """
    alike = defaultdict(list)
    for index, layer in enumerate(layers):
        alike[layer.weight.shape, layer.transform.shape, layer.weight.dtype, layer.weight.device].append(index)
    kernels: dict[int, torch.Tensor] = {}
    for (shape, (n, in_per_group, size, _), _, _), indices in alike.items():
        basis = torch.stack([layers[index].weight.reshape(n, *shape[2:]) for index in indices])
        transforms = torch.stack([layers[index].transform for index in indices])
        patches = F.unfold(basis, size, padding=size // 2)  # (layers, n * size^2, K * K)
        recalibration = torch.bmm(
            transforms.reshape(-1, in_per_group, in_per_group * size**2),
            patches.reshape(-1, in_per_group * size**2, patches.shape[2]),
        )
        kernels |= zip(indices, (basis + recalibration.reshape(basis.shape)).reshape(-1, *shape), strict=True)
    return [kernels[index] for index in range(len(layers))]


def at_once(model: nn.Module) -> nn.Module:
    """Has `model` compute the kernels of all its `RecConv` layers together, when its forward pass begins."""
    model.register_forward_pre_hook(_compute)
    model.register_forward_hook(_forget, always_call=True)
    return model


def _compute(model: nn.Module, _) -> None:
    layers = [module for module in model.modules() if isinstance(module, RecConv)]
    for layer, kernel in zip(layers, recalibrated(layers), strict=True):
        layer.computed = kernel


def _forget(model: nn.Module, *_) -> None:
    # A kernel belongs to one pass: the next one has other weights, and this one's graph is gone after its backward.
    for module in model.modules():
        if isinstance(module, RecConv):
            module.computed = None


def fold(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every `RecConv` is a plain `nn.Conv2d` with the same function.

    The original is not changed. A layer used in several places stays shared in the copy.
    """
    # The memo makes deepcopy use each folded layer where the RecConv stood, so T is never copied and sharing is kept.
    memo = {id(module): module.fold() for module in model.modules() if isinstance(module, RecConv)}
    folded = copy.deepcopy(model, memo)
    for module in folded.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_compute, _forget)]:
                del hooks[key]
    return folded


def is_recalibrated(model: nn.Module) -> bool:
    """Whether any layer of `model` is a `RecConv`."""
    return any(isinstance(module, RecConv) for module in model.modules())


def basis_is_frozen(model: nn.Module) -> bool:
    """Whether `model` has recalibrated layers and none of their basis kernels is trained."""
    bases = [module.weight for module in model.modules() if isinstance(module, RecConv)]
    return bool(bases) and not any(basis.requires_grad for basis in bases)
