"""torch's private interfaces that the project stands on, each behind one named function.

Each docstring says which private name it uses, why, and what to do when that name changes. Checked with torch 2.13, by
`tests/model/test_compat.py`, and with 2.11, where the names were looked up in its sources but not run. This module
imports torch alone.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The class to derive from to see every operator that runs, in a method `__torch_dispatch__`. torch's notes on extending
# torch document it, but it is exported from a private module alone. If it moves: import it from its new place.
DispatchMode = TorchDispatchMode


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts, as operators return them.

    Stands on `torch.utils._pytree.tree_leaves`. If it changes: use the public `torch.utils.pytree` of that version, or
    walk through the lists, tuples and dicts here.
    """
    return (leaf for leaf in tree_leaves(value) if torch.is_tensor(leaf))


def storage_key(storage: torch.UntypedStorage) -> int:
    """A number that a storage shares with no other one while it lives; meta tensors have one too.

    Stands on `UntypedStorage._cdata`, the address of its C++ object: `data_ptr()` is 0 for every meta tensor. If it
    changes: use `data_ptr()`, and count meta tensors by the `id` of the tensor.
    """
    return storage._cdata


def assume_constant(function: Callable) -> Callable:
    """Decorator: `torch.compile` calls the function while it traces and takes its result for a constant.

    Sets `_dynamo_marked_constant`, as the public `torch.compiler.assume_constant_result` does; but that one imports the
    compiler, which takes a second at each start. If it changes: use the public decorator.
    """
    function._dynamo_marked_constant = True
    return function


def convolve(conv: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The convolution `conv` with another weight and bias: its stride, padding and padding mode, dilation and groups.

    Stands on `nn.Conv2d._conv_forward`. If it changes: call `F.conv2d`, after `F.pad` where `padding_mode` is not
    "zeros".
    """
    return conv._conv_forward(x, weight, bias)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether forward hooks or forward pre-hooks are registered on the module itself: its call is then more than its
    `forward`.

    Stands on `nn.Module._forward_hooks` and `_forward_pre_hooks`. If they change: look for their new names, because a
    fused operator would otherwise pass over the hooks without a word.
    """
    return bool(module._forward_hooks or module._forward_pre_hooks)


def kinds_of_hooks(module: nn.Module) -> list[str]:
    """The names of the attributes of a module that hold registered hooks of any kind, for instance "_backward_hooks".

    Stands on the names of `nn.Module`'s attributes, which all end in "_hooks". If they change: list the new ones.
    """
    return [name for name, registered in vars(module).items() if name.endswith("_hooks") and registered]


def remove_forward_hooks(module: nn.Module, functions: Sequence[Callable]) -> None:
    """Removes these functions from the forward hooks and pre-hooks of the module itself.

    The handles that `register_forward_hook` returns would do, but a copy of a module has hooks and no handles. Stands
    on `nn.Module._forward_hooks`, `_forward_pre_hooks` and `_forward_hooks_always_called`. If they change: remove the
    entry from every dict of the module in which the registration puts it.
    """
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in functions]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def own_names(module: nn.Module) -> set[str]:
    """The names of the parameters, buffers and children of the module itself, of those that are None too.

    Stands on `nn.Module._parameters`, `_buffers` and `_modules`: the public `named_parameters` and the like leave out
    None. If they change: use the public ones with `remove_duplicate=False`.
    """
    return {*module._parameters, *module._buffers, *module._modules}


def move_towards(tensors: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], share: torch.Tensor) -> None:
    """tensors += share * (targets - tensors), in place, of all of them in a few kernels.

    Args:
        share: float32 scalar on their device.

    Stands on `torch._foreach_sub`, `_foreach_mul_` and `_foreach_add_`, which torch's own optimizers use. If they
    change: loop over the pairs, which gives the same numbers more slowly.
    """
    moves = torch._foreach_sub(targets, tensors)
    torch._foreach_mul_(moves, share)
    torch._foreach_add_(tensors, moves)


def fused_step_if(optimizer: Optimizer, good: torch.Tensor) -> None:
    """A step of a fused Adam or AdamW where `good`, a boolean scalar on its device, is true; the host does not wait.

    Sets the attributes `grad_scale` and `found_inf`, through which `torch.amp.GradScaler` reports an overflow to the
    fused kernel. If they change: `if good: optimizer.step()`, for which the host waits.
    """
    optimizer.grad_scale, optimizer.found_inf = None, (~good).float()
    optimizer.step()


def end_workers(batches: Iterable) -> None:
    """Ends the processes of a `DataLoader`'s iterator now, if it has any.

    Dropping the iterator is not enough: an exception's traceback may still hold it, and the interpreter's own end would
    wait forever for processes that ignore SIGTERM. Stands on the iterator's `_workers` and `_shutdown_workers`. If they
    change: kill the children that `multiprocessing.active_children()` lists and that the loader has started.
    """
    workers = getattr(batches, "_workers", [])
    if workers:
        batches._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def zip_writer(buffer: io.BytesIO):
    """A writer of torch's zip format, with the alignment that its readers expect: `write_record(name, bytes, length)`
    for each member, then `write_end_of_file()`.

    Stands on `torch._C.PyTorchFileWriter`, with which `torch.save` and `torch.export.save` write. If it changes: see
    how `torch.serialization` opens its writer.
    """
    return torch._C.PyTorchFileWriter(buffer)


def cpu_capabilities() -> set[str]:
    """Names of the instruction sets that torch finds on this CPU: avx2, avx512_bf16, amx_tile, vnni and the like.

    Stands on the public `torch.cpu.get_capabilities()` where torch has it. Versions before 2.12 have private queries,
    `torch.cpu._is_..._supported`, of which a missing one counts as no. Drop those together with torch 2.11.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    queries = {"avx2": "_is_avx2_supported", "avx512_f": "_is_avx512_supported", "avx512_vnni": "_is_vnni_supported"}
    queries |= {"avx512_bf16": "_is_avx512_bf16_supported", "amx_tile": "_is_amx_tile_supported"}
    return {name for name, query in queries.items() if getattr(torch.cpu, query, bool)()}
