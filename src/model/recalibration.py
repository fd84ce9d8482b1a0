"""Kernel recalibration: convolutions whose kernels are computed from one another, and how they fold away.

KRGN, "Towards lightweight image super-resolution via re-parameterized kernel recalibration", takes the kernel
transform from RefConv (arXiv 2310.10563): for a basis kernel W_b,

    W_t = W_b + T(W_b)                                                                             (1)

where T is a convolution over the kernels themselves, so that each kernel depends on the kernels of the other
channels. After training W_t is a constant: a plain convolution with that kernel is the same function (`fold`).

`recalibrate` applies the method to any network of torch modules, `fold` takes it out again. Nothing here depends on a
particular network.
"""

import copy
from collections import defaultdict
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .compat import convolve, kinds_of_hooks, own_names, remove_forward_hooks


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
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        transform_size: int = 3,
        train_basis: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
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

        self.computed: torch.Tensor | None = None  # W_t while a network with `batch_kernels` runs

    def kernel(self) -> torch.Tensor:
        """W_t of equation (1), shaped like `weight`; differentiable in the basis and in the transform."""
        return compute_kernels([self])[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolve(self, x, kernel_of(self), self.bias)

    @classmethod
    def over(cls, conv: nn.Conv2d, *, transform_size: int = 3, train_basis: bool = True) -> "RecConv":
        """A new layer over a copy of `conv`'s kernel, with T = 0: the same function, bit for bit."""
        layer = cls(**_settings(conv), transform_size=transform_size, train_basis=train_basis)
        layer.weight, layer.bias = copy.deepcopy(conv.weight), copy.deepcopy(conv.bias)
        if not train_basis:
            layer.weight.requires_grad_(False)
        layer.transform = nn.Parameter(torch.zeros_like(layer.transform, device=conv.weight.device))
        return layer.train(conv.training)

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """A new plain convolution with the kernel W_t and a copy of the bias: the same function."""
        plain = nn.Conv2d(**_settings(self))
        plain.weight = nn.Parameter(self.kernel())
        plain.bias = None if self.bias is None else nn.Parameter(self.bias.clone())
        return plain.train(self.training)

    fuse = fold  # timm's `reparameterize_model` calls it by this name


def _settings(conv: nn.Conv2d) -> dict[str, Any]:
    """The constructor's arguments for a layer like `conv`, without storage for parameters that are set afterwards."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    settings = {name: getattr(conv, name) for name in names}
    return settings | {"bias": conv.bias is not None, "device": "meta", "dtype": conv.weight.dtype}


def kernel_of(conv: nn.Conv2d) -> torch.Tensor:
    """The kernel that a plain or recalibrated convolution convolves with."""
    if not isinstance(conv, RecConv):
        return conv.weight
    return conv.kernel() if conv.computed is None else conv.computed


def compute_kernels(layers: list[RecConv]) -> list[torch.Tensor]:
    """W_t = W_b + T(W_b), equation (1), of each layer, shaped like its `weight`.

    T is written as a matrix product, its weights times the patches of the basis, so that all layers of a shape share
    one batched product: that of a single layer is too small to keep a processor busy, and KRGN has 162 of them. Where
    T's groups have one channel (dense convolutions) the product would be one of single rows; there T is one convolution
    for all layers.
    """
    alike = defaultdict(list)
    for index, layer in enumerate(layers):
        weight = layer.weight
        alike[weight.shape, weight.stride(), layer.transform.shape, weight.dtype, weight.device].append(index)
    kernels: dict[int, torch.Tensor] = {}
    for (shape, stride, (n, in_per_group, size, _), _, device), indices in alike.items():
        basis = torch.stack([layers[index].weight.reshape(n, *shape[2:]) for index in indices])
        transforms = torch.stack([layers[index].transform for index in indices])
        # Kernels are trained as they are folded, whatever the precision around them; "meta" has no autocast.
        with torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False):
            if in_per_group == 1:
                image = basis.reshape(1, -1, *shape[2:])
                recalibration = F.conv2d(image, transforms.flatten(0, 1), padding=size // 2, groups=image.shape[1])
            else:
                patches = F.unfold(basis, size, padding=size // 2)  # (layers, n * size^2, K * K)
                patches = patches.reshape(-1, in_per_group * size**2, patches.shape[2]).transpose(1, 2).contiguous()
                transforms = transforms.reshape(-1, in_per_group, in_per_group * size**2)
                recalibration = _Products.apply(transforms, patches)
        together = (basis + recalibration.reshape(basis.shape)).reshape(-1, *shape)
        if stride[1] == 1 and stride[3] == shape[1]:
            # Channels last, like the basis: torch may choose an algorithm that rounds differently for another layout.
            channels_last = together.movedim(2, -1).flatten()
            together = channels_last.reshape(-1, shape[0], *shape[2:], shape[1]).movedim(-1, 2)
        kernels |= zip(indices, together, strict=True)
    return [kernels[index] for index in range(len(layers))]


class _Products(torch.autograd.Function):
    """(B, outputs, inputs), (B, K * K, inputs) -> (B, outputs, K * K): transforms times patches, as by `torch.bmm`.

    With so few patches this order of the factors takes a CPU half the time, and a third for the patches' gradient.
    """

    @staticmethod
    def forward(transforms: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        return torch.bmm(patches, transforms.transpose(1, 2)).transpose(1, 2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        transforms, patches = ctx.saved_tensors
        return torch.bmm(grad, patches), torch.bmm(grad.transpose(1, 2), transforms)


def batch_kernels(model: nn.Module) -> nn.Module:
    """Makes `model` compute the kernels of all its `RecConv` layers together when its forward pass begins.

    They are dropped when it ends. A model that uses `torch.utils.checkpoint` runs parts again in the backward pass, and
    cannot be used this way: call `unbatch_kernels` on it.

    Returns:
        `model`, changed in place.
    """
    model.register_forward_pre_hook(_compute)
    model.register_forward_hook(_forget, always_call=True)
    return model


def _compute(model: nn.Module, _: object) -> None:
    layers = [module for module in model.modules() if isinstance(module, RecConv)]
    for layer, kernel in zip(layers, compute_kernels(layers), strict=True):
        layer.computed = kernel


def _forget(model: nn.Module, *_: object) -> None:
    # A kernel belongs to one pass: the next has other weights, and backward frees the graph of this one.
    for module in model.modules():
        if isinstance(module, RecConv):
            module.computed = None


Chooser = Callable[[str, nn.Module], bool]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def recalibrate(
    model: nn.Module, where: str | Chooser | None = None, *, train_basis: bool = True, transform_size: int = 3
) -> nn.Module:
    """A copy of `model` with `RecConv` layers over the kernels of chosen convolutions: the same function at first.

    Outputs equal those of `model` bit for bit until T is trained. Parameters keep their names, values, devices and
    dtypes; each chosen layer gets a new one, `<name>.transform`. The original is not changed, a layer used in several
    places stays shared in the copy, and layers that are recalibrated already stay as they are. `fold` undoes it. All
    kernels are computed together (`batch_kernels`).

    Args:
        where: which convolutions: a pattern for their names as in `named_modules`, for instance "body.*" (`fnmatch`,
            so * matches dots too), or a predicate (name, module) -> bool, called for each convolution. None: every
            grouped or depth-wise `nn.Conv2d` with a kernel above 1x1, except subclasses with a forward of their own.
        train_basis: False freezes the inherited kernels, as RefConv (arXiv 2310.10563) does with those of a trained
            network; True leaves them as trainable as they were.
        transform_size: side of T's kernels, odd.

    Raises:
        ValueError: if nothing is chosen, or a chosen layer has something that a `RecConv` cannot keep: a kernel shared
            with another module, hooks, parametrizations, or parameters and buffers beside kernel and bias.
        TypeError: if a chosen layer is not an `nn.Conv2d` (Conv1d, Conv3d, transposed) or is of a subclass, or `where`
            is none of the above.
    """
    layers = {
        id(conv): RecConv.over(conv, transform_size=transform_size, train_basis=train_basis)
        for conv in _chosen(model, where)
    }
    # With this memo deepcopy puts each new layer wherever the convolution stood, so sharing is kept.
    return batch_kernels(unbatch_kernels(copy.deepcopy(model, layers)))


def _chosen(model: nn.Module, where: str | Chooser | None) -> list[nn.Conv2d]:
    """The convolutions that `recalibrate` replaces; it documents the arguments and errors."""
    choose, wanted = _chooser(where)
    # A layer in several places has several names; any of them chooses it.
    found: list[str] = []
    chosen: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _CONVOLUTIONS):
            found.append(f"{name or 'the model itself'} ({type(module).__name__})")
            if choose(name, module):
                chosen.setdefault(module, name or "the model itself")
    if not chosen:
        nothing = f"nothing to recalibrate in this {type(model).__name__}: it has no"
        if not found:
            raise ValueError(f"{nothing} convolution")
        there = f"{', '.join(found[:3])}{', …' if len(found) > 3 else ''}"
        raise ValueError(f"{nothing} {wanted}; its convolutions are {there}: choose some of them with `where`")
    owners: dict[int, set[nn.Module]] = defaultdict(set)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].add(module)
    fresh = [module for module in chosen if not isinstance(module, RecConv)]
    shared = {
        module: any(len(owners[id(parameter)]) > 1 for parameter in module.parameters(recurse=False))
        for module in fresh
    }
    return [_checked(chosen[module], module, shared[module]) for module in fresh]


def _chooser(where: str | Chooser | None) -> tuple[Chooser, str]:
    """The predicate that `where` means, and what it looks for, in words."""
    if where is None:
        return _grouped, "grouped or depth-wise nn.Conv2d with a kernel above 1x1"
    if isinstance(where, str):
        return (lambda name, _: fnmatchcase(name, where)), f"convolution whose name matches {where!r}"
    if callable(where):
        return where, "convolution for which `where` is true"
    raise TypeError(f"where: got {where!r}, expected a name pattern or a predicate (name, module) -> bool")


def _grouped(_: str, module: nn.Module) -> bool:
    own_forward = type(module) not in (nn.Conv2d, RecConv) and not is_parametrized(module)
    return isinstance(module, nn.Conv2d) and not own_forward and module.groups > 1 and max(module.kernel_size) > 1


def _checked(name: str, module: nn.Module, sharing: bool) -> nn.Conv2d:
    """`module`; raises TypeError or ValueError if a `RecConv` in its place would not be the same function."""
    kind = type(module).__name__
    fix = "leave it out with `where`"
    if not isinstance(module, nn.Conv2d):
        raise TypeError(f"{name}: is a {kind}, but only nn.Conv2d can be recalibrated: {fix}")
    if is_parametrized(module):
        raise ValueError(f"{name}: has parametrizations, which would be lost: remove them first, or {fix}")
    if type(module) is not nn.Conv2d:
        raise TypeError(f"{name}: is a {kind}, a subclass of nn.Conv2d whose forward would be lost: {fix}")
    hooks = kinds_of_hooks(module)
    if hooks:
        raise ValueError(f"{name}: has hooks ({', '.join(hooks)}), which would be lost: remove them first, or {fix}")
    own = own_names(module) - {"weight", "bias"}
    if own:
        raise ValueError(f"{name}: has {', '.join(sorted(own))} beside weight and bias, which would be lost: {fix}")
    if sharing:
        raise ValueError(f"{name}: shares its weight or bias with another module, and only one would change: {fix}")
    return module


def fold(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every `RecConv` is a plain `nn.Conv2d`: the same function, to rounding.

    The original is not changed. A layer used in several places stays shared in the copy. Also called `fuse`.
    """
    # With this memo deepcopy puts each folded layer wherever the RecConv stood: sharing is kept, and T is not copied.
    memo = {id(module): module.fold() for module in model.modules() if isinstance(module, RecConv)}
    return unbatch_kernels(copy.deepcopy(model, memo))


fuse = fold  # the name that other packages use


def unbatch_kernels(model: nn.Module) -> nn.Module:
    """Undoes `batch_kernels` in `model` and its parts: each layer computes its own kernel when it runs.

    Returns:
        `model`, changed in place.
    """
    for module in model.modules():
        remove_forward_hooks(module, (_compute, _forget))
    return model


def is_recalibrated(model: nn.Module) -> bool:
    """Whether any layer of `model` is a `RecConv`."""
    return any(isinstance(module, RecConv) for module in model.modules())


def basis_is_frozen(model: nn.Module) -> bool:
    """Whether `model` has recalibrated layers and none of their basis kernels is trained."""
    bases = [module.weight for module in model.modules() if isinstance(module, RecConv)]
    return bool(bases) and not any(basis.requires_grad for basis in bases)
