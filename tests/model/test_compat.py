"""torch's private interfaces do what `model.compat` says of them: what to look at first after an update of torch."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from model import compat


class Counted(compat.DispatchMode):
    def __init__(self):
        super().__init__()
        self.returned = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.returned += compat.tensors_in(out)
        return out


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_operators_tensors_are_seen_with_a_key_of_their_storage(device):
    with Counted() as counted:
        first = torch.ones(2, 3, device=device)
        view = first.view(6)
        other = torch.zeros(6, device=device)
    keys = [compat.storage_key(tensor.untyped_storage()) for tensor in (first, view, other)]
    assert keys[0] == keys[1] != keys[2]
    assert {compat.storage_key(tensor.untyped_storage()) for tensor in counted.returned} == set(keys)


def test_tensors_in_nested_results():
    a, b = torch.zeros(1), torch.ones(1)
    assert [id(tensor) for tensor in compat.tensors_in({"a": [a, 3, None], "b": (b, "text")})] == [id(a), id(b)]


def test_a_constant_is_asked_for_once_and_breaks_no_graph():
    calls = []

    @compat.assume_constant
    def answer() -> bool:
        calls.append(1)
        return True

    compiled = torch.compile(lambda x: x + 1 if answer() else x, backend="eager", fullgraph=True)
    for _ in range(2):
        assert compiled(torch.zeros(1)) == 1
    assert len(calls) == 1


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_a_convolution_with_another_kernel(padding_mode):
    conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, stride=2, padding_mode=padding_mode)
    x, weight, bias = torch.randn(1, 4, 9, 9), torch.randn(4, 2, 3, 3), torch.randn(4)
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect" if padding_mode == "reflect" else "constant")
    expected = F.conv2d(padded, weight, bias, stride=2, dilation=2, groups=2)
    assert torch.allclose(compat.convolve(conv, x, weight, bias), expected, atol=1e-6)


def test_hooks_are_found_and_forward_hooks_removed():
    layer, seen = nn.Conv2d(1, 1, 1), []
    before, after, other = lambda *_: seen.append("before"), lambda *_: seen.append("after"), lambda *_: None
    assert not compat.has_forward_hooks(layer)
    assert compat.kinds_of_hooks(layer) == []
    layer.register_full_backward_hook(other)
    assert not compat.has_forward_hooks(layer)
    assert compat.kinds_of_hooks(layer) == ["_backward_hooks"]
    layer.register_forward_pre_hook(before)
    assert compat.has_forward_hooks(layer)
    layer.register_forward_hook(after, always_call=True)
    kept = layer.register_forward_hook(other)
    twin = copy.deepcopy(layer)
    compat.remove_forward_hooks(twin, (before, after))
    twin(torch.zeros(1, 1, 1, 1))
    assert seen == []
    assert compat.has_forward_hooks(twin)  # the other one
    layer(torch.zeros(1, 1, 1, 1))
    assert seen == ["before", "after"]
    compat.remove_forward_hooks(layer, (before, after))
    kept.remove()
    assert not compat.has_forward_hooks(layer)


def test_names_of_a_modules_own_parts():
    layer = nn.Conv2d(1, 1, 1, bias=False)
    layer.register_buffer("extra", None)
    layer.child = nn.Identity()
    assert compat.own_names(layer) == {"weight", "bias", "extra", "child"}


def test_moves_are_those_of_a_loop():
    tensors, targets = [[torch.randn(size) for size in (3, 5)] for _ in range(2)]
    expected = [tensor + 0.25 * (target - tensor) for tensor, target in zip(tensors, targets, strict=True)]
    compat.move_towards(tensors, targets, torch.tensor(0.25))
    assert all(torch.equal(*pair) for pair in zip(tensors, expected, strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_a_step_that_is_not_good_changes_nothing(optimizer):
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), torch.nan)
    fused = optimizer([weight], lr=0.1, fused=True)
    compat.fused_step_if(fused, torch.tensor(False))
    assert torch.equal(weight, torch.ones(3))
    weight.grad = torch.ones(3)
    compat.fused_step_if(fused, torch.tensor(True))
    assert (weight < 0.95).all()
    assert fused.state[weight]["step"] == 1


def test_a_loaders_processes_are_ended():
    batches = iter(DataLoader(range(1000), num_workers=2))
    next(batches)
    workers = list(batches._workers)
    assert len(workers) == 2
    compat.end_workers(batches)
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()
    compat.end_workers(iter(DataLoader(range(3))))  # has none


def test_torch_reads_what_the_zip_writer_wrote():
    buffer, content = io.BytesIO(), b"some bytes"
    writer = compat.zip_writer(buffer)
    writer.write_record("member", content, len(content))
    writer.write_end_of_file()
    buffer.seek(0)
    assert torch._C.PyTorchFileReader(buffer).get_record("member") == content


def test_capabilities_are_those_of_this_processor():
    found = compat.cpu_capabilities()
    assert all(type(name) is str for name in found)
    assert ("avx2" in found) == (torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"))
