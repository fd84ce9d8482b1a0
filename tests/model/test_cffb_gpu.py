"""The fused CFFB's Triton kernels: on a GPU where there is one, and everywhere under Triton's interpreter on the CPU.

Triton chooses between compiler and interpreter when it is imported, so one test runs this file once more by itself.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from model.cffb import cpu, gpu
from model.krgn import KRGN

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
on_device = pytest.mark.filterwarnings("default") if INTERPRETED else pytest.mark.gpu

SIZES = [
    (16, 1, 3, (5, 7), 1),
    (16, 2, 2, (3, 19), 1),
    (24, 2, 4, (4, 5), 1),
    (80, 1, 3, (3, 3), 1),
    (17, 1, 1, (1, 2), 3),
]


@pytest.mark.skipif(INTERPRETED, reason="is what runs this")
def test_the_kernels_under_tritons_interpreter():
    pytest.importorskip("triton", reason="needs Triton: pip install triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent.parent.parent
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert run.stdout.splitlines()[0].count(".") == len(SIZES) + 4, run.stdout


def example(channels, per_group, dilation, size, n, dtype):
    """(x, plus, grad, parameters) on the CPU, and the plain operators' function of (x, plus, parameters)."""
    torch.manual_seed(0)
    groups = channels // per_group
    shapes = [(channels, per_group, 3, 3), (channels,), (channels,)] * 2
    x, plus, grad = (torch.randn(n, channels, *size, dtype=dtype) for _ in range(3))
    parameters = [torch.randn(shape, dtype=dtype) * 0.5 for shape in shapes]

    def plain(x, plus, parameters):
        out = plus
        for rate, (weight, bias, slope) in zip((1, dilation), (parameters[:3], parameters[3:]), strict=True):
            convolved = nn.functional.conv2d(x, weight, bias, padding=rate, dilation=rate, groups=groups)
            out = out + nn.functional.prelu(convolved, slope)
        return out

    return x, plus, grad, parameters, plain


def operators(x, plus, grad, parameters, dilations) -> list[torch.Tensor]:
    """What the kernels give for these CPU tensors, on the CPU again."""
    if INTERPRETED:
        from model.cffb import triton as kernels

        x, plus, parameters = cpu.laid_out(x, plus, parameters)
        grad = cpu.laid_out(x, grad, [])[1]
        found = kernels.forward(x, parameters, dilations, plus)
        return found + kernels.backward(grad, x, parameters, dilations)
    x, plus, grad, *parameters = (tensor.to(DEVICE) for tensor in (x, plus, grad, *parameters))
    found = torch.ops.krgn.cffb(x, parameters, dilations, plus, False)
    return [tensor.cpu() for tensor in found + torch.ops.krgn.cffb_backward(grad, x, parameters, dilations)]


def fused_forward(x, plus, parameters, dilations) -> torch.Tensor:
    if INTERPRETED:
        from model.cffb import triton as kernels

        x, plus, parameters = cpu.laid_out(x, plus, parameters)
        return kernels.forward(x, parameters, dilations, plus)[-1]
    x, plus, *parameters = (tensor.to(DEVICE) for tensor in (x, plus, *parameters))
    return torch.ops.krgn.cffb(x, parameters, dilations, plus, False)[0].cpu()


@on_device
@pytest.mark.parametrize("dtype", [torch.float64] if INTERPRETED else [torch.float64, torch.float32])
@pytest.mark.parametrize(("channels", "per_group", "dilation", "size", "n"), SIZES)
def test_equals_the_plain_operators(channels, per_group, dilation, size, n, dtype):
    x, plus, grad, parameters, plain = example(channels, per_group, dilation, size, n, dtype)
    inputs = [x, *parameters]
    for tensor in inputs:
        tensor.requires_grad_()
    y = plain(x, plus, parameters)
    expected = [y, *torch.autograd.grad(y, inputs, grad)]
    got = operators(*(tensor.detach() for tensor in (x, plus, grad)), [p.detach() for p in parameters], [1, dilation])
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == dtype
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        assert (one - other).abs().max() <= tolerance * max(1, other.abs().max())


@on_device
def test_a_chain_and_dilations_the_other_way_round():
    x, plus, grad, parameters, _ = example(16, 1, 3, (4, 5), 1, torch.float32)
    dilations, expected = [3, 1], x
    for last in (False, True):
        expected = operators(expected, plus if last else torch.zeros_like(x), grad, parameters, dilations)[0]
    chain = fused_forward(x, plus, [*parameters, *parameters], dilations)
    assert torch.equal(chain, expected)


@on_device
def test_half_precision_sums_in_float32():
    """The only error is the rounding of what comes out, by half a unit of 1/128, or a whole one in the interpreter."""
    x, plus, grad, parameters, plain = example(16, 1, 3, (5, 6), 1, torch.float32)
    x, plus, grad = (tensor.bfloat16() for tensor in (x, plus, grad))
    got = operators(x, plus, grad, parameters, [1, 3])
    expected = plain(x.float(), plus.float(), parameters)
    assert got[0].dtype == torch.bfloat16
    assert [tensor.dtype for tensor in got[2:]] == [torch.float32] * 6
    assert ((got[0].float() - expected).abs() <= expected.abs() / 128 + 1e-6).all()


@on_device
def test_not_a_number_passes_through_and_stays_in_its_image():
    x, plus, grad, parameters, plain = example(16, 1, 3, (4, 6), 2, torch.float32)
    x[0, 3, 3, 5] = torch.nan
    got = operators(x, plus, grad, parameters, [1, 3])[0]
    assert torch.equal(got.isnan(), plain(x, plus, parameters).isnan())
    assert not got[1].isnan().any()


@on_device
def test_an_empty_batch():
    x, plus, grad, parameters, _ = example(16, 1, 3, (4, 5), 0, torch.float32)
    got = operators(x, plus, grad, parameters, [1, 3])
    assert got[0].shape == x.shape
    assert not any(tensor.any() for tensor in got)


# --- what needs a GPU's compiler, but no GPU ---

MAPS = ("x", "plus", "y", "grad", "before", "near_before", "far_before", "grad_x")
WHOLE = ("dilation", "near_dilation", "far_dilation", "n_pixels", "height", "width", "n_channels")


@pytest.mark.skipif(INTERPRETED, reason="needs Triton's compiler")
@pytest.mark.parametrize(("capability", "per_group"), [(80, 1), (89, 2), (90, 1)])
def test_the_kernels_compile_for_gpus_without_spilling_registers(capability, per_group, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton", reason="needs Triton: pip install triton")
    from triton.backends.compiler import GPUTarget

    from model.cffb import triton as kernels

    assemblers = sorted((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("ptxas*"))
    if not assemblers:
        pytest.skip("this Triton has no ptxas")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    parameters = [torch.empty(64, per_group, 3, 3)]
    for kernel, block in (
        (kernels._forward, kernels.FORWARD),
        (kernels._before_activation, kernels.BACKWARD),
        (kernels._to_input, kernels.FORWARD),
    ):
        compiled_in = kernels._launch(block, torch.empty(1, 64, 9, 9), parameters).options | {"add": True}
        options = {"num_warps": compiled_in.pop("num_warps")}
        constants = {name: value for name, value in compiled_in.items() if name in kernel.arg_names}
        kinds = dict.fromkeys(WHOLE, "i32") | dict.fromkeys(MAPS, "*bf16")
        signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        (tmp_path / "kernel.ptx").write_text(compiled.asm["ptx"])
        name = "sm_90a" if capability == 90 else f"sm_{capability}"
        flags = ["-v", f"--gpu-name={name}", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
        runs = [subprocess.run([tool, *flags], capture_output=True, text=True) for tool in assemblers]
        reports = [run.stderr for run in runs if not run.returncode]  # each assembler knows other versions of PTX
        assert reports, runs[0].stderr
        assert "0 bytes spill stores, 0 bytes spill loads" in reports[0], (kernel.fn.__name__, reports[0])


# --- what only a GPU shows ---


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [0, 32])
def test_a_network_on_the_gpu_is_that_on_the_cpu(groups):
    torch.manual_seed(0)
    network, x = KRGN(scale=2, n_resgroups=2, groups=groups).double(), torch.rand(2, 3, 19, 23).double() * 255
    assert gpu.available()
    grads = []
    for device in ("cpu", "cuda"):
        network.zero_grad()
        y = network.to(device)(x.to(device))
        y.square().mean().backward()
        grads.append([y.detach().cpu()] + [p.grad.cpu() for p in network.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        assert (one - other).abs().max() <= 1e-9 * max(1, other.abs().max())


@pytest.mark.gpu
def test_autocast_and_compile_run_the_kernels():
    torch.manual_seed(0)
    network, x = KRGN(scale=2, n_resgroups=1).cuda(), torch.rand(1, 3, 16, 24, device="cuda") * 255
    assert gpu.available()
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            half = network(x)
        fast = torch.compile(network)(x)
    assert (half - expected).abs().max() <= 0.05 * expected.abs().max()
    assert (fast - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.gpu
def test_the_comparison_that_comes_before_the_first_use():
    assert gpu.largest_difference("cuda") < 1e-4
