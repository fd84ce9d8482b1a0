"""The fused CFFB against torch's operators: values, gradients, sizes, layouts, torch.compile, and how it is built.

The library is compiled once for this file, by two threads at the same time: about five seconds.
"""

import copy
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from conftest import SRC
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import cffb
from model.cffb import library
from model.krgn import KRGN, PMRB, RCG
from model.recalibration import RecConv, fold

COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory):
    """The library, built anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        patch.delenv("KRGN_FUSED", raising=False)
        for function in (library._loads, library.load):
            function.cache_clear()
        assert cffb.build()
        yield


def test_two_may_build_at_once(tmp_path, monkeypatch):
    """As several processes of a run may: one library is left, and both have it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(
        library, "OPTIONS", ["-O0", *library.OPTIONS[1:]]
    )  # which takes a compiler a fourth of the time
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(library.load.__wrapped__, [torch.float32] * 2))
    assert all(found)
    assert len([path for path in tmp_path.rglob("*cffb*") if path.is_file()]) == 1


def branch(channels, dilation, per_group=1, dtype=torch.float64, conv=nn.Conv2d, **options):
    layer = conv(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels // per_group, **options)
    return nn.Sequential(layer, nn.PReLU(channels)).to(dtype).requires_grad_()


def branches(channels=16, per_group=1, dilation=3, dtype=torch.float64):
    pair = [branch(channels, rate, per_group, dtype) for rate in (1, dilation)]
    for _, act in pair:
        nn.init.uniform_(act.weight, -0.5, 1.5)  # as training may make them
    return pair


def plain(x, near, far, plus=None):
    out = near(x) + far(x)
    return out if plus is None else out + plus


def assert_same(got, expected, tolerance):
    """Within `tolerance` of the expected values' range."""
    assert got.shape == expected.shape
    if expected.numel():
        assert (got - expected).abs().max() <= tolerance * max(1.0, expected.abs().max())


def assert_same_with_gradients(pair, x, plus=None):
    tolerance = 1e-10 if x.dtype == torch.float64 else 1e-4
    assert cffb.fits(x, *pair)
    inputs = [x, *pair[0].parameters(), *pair[1].parameters()] + ([] if plus is None else [plus])
    for tensor in inputs:
        tensor.requires_grad_()
    results = []
    for run in (cffb.cffb, plain):
        y = run(x, *pair, plus=plus)
        torch.manual_seed(1)
        results.append((y, *torch.autograd.grad(y, inputs, torch.randn(y.shape, dtype=y.dtype))))
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected, tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("per_group", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (33, 17), (70, 3)])
def test_equals_the_plain_operators_at_every_size(size, per_group, dtype):
    for dilation in (1, 2, 3, 4):
        pair = branches(32, per_group, dilation, dtype)
        assert_same_with_gradients(pair, torch.randn(1, 32, *size, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels", [16, 17, 24, 50, 64, 128])
def test_equals_the_plain_operators_at_every_number_of_channels(channels, dtype):
    for per_group in (1, 2) if channels % 2 == 0 else (1,):
        x, plus = torch.randn(2, 2, channels, 9, 12, dtype=dtype)
        assert_same_with_gradients(branches(channels, per_group, dtype=dtype), x, plus)


def test_a_batch_and_strips_of_wide_images():
    assert_same_with_gradients(branches(64, dtype=torch.float32), torch.randn(16, 64, 6, 8))
    assert_same_with_gradients(branches(128, dtype=torch.float32), torch.randn(2, 128, 5, 131))


def test_an_empty_batch():
    assert_same_with_gradients(branches(), torch.randn(0, 16, 4, 5, dtype=torch.float64))


def test_any_layout_in_memory():
    pair = branches(16, 2)
    whole = torch.randn(2, 20, 9, 14, dtype=torch.float64)
    for x in (
        whole[:, 2:18],
        whole[:, :16, ::2, 3:],
        whole.to(memory_format=torch.channels_last)[:, 4:, 1:, ::3],
        whole[:, :16].transpose(2, 3),
        whole[:1, :16, :1].expand(3, -1, 5, -1),
    ):
        assert_same_with_gradients(pair, x.detach())
    for conv, _ in pair:
        conv.to(memory_format=torch.channels_last)
    assert_same_with_gradients(pair, whole[:, :16])
    assert cffb.cffb(whole[:, :16], *pair).is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_those_of_finite_differences():
    x, plus = torch.randn(2, 1, 16, 3, 4, dtype=torch.float64)
    for per_group in (1, 2):
        pair = branches(16, per_group, 2)
        names = [(part, name) for part in pair for name, _ in part.named_parameters()]

        def run(x, plus, *parameters, pair=pair, names=names):
            values = [{}, {}]
            for (part, name), value in zip(names, parameters, strict=True):
                values[part is pair[1]][name] = value
            near, far = values
            both = [near["0.weight"], near["0.bias"], near["1.weight"], far["0.weight"], far["0.bias"], far["1.weight"]]
            return torch.ops.krgn.cffb(x, both, [1, 2], plus, True)[0]

        inputs = [x, plus, *(dict(part.named_parameters())[name] for part, name in names)]
        # fast_mode projects on random directions, which is as good a proof here and a hundred times faster.
        assert torch.autograd.gradcheck(run, [tensor.detach().requires_grad_() for tensor in inputs], fast_mode=True)


def test_the_same_bits_for_any_number_of_threads():
    pair = branches(64, dtype=torch.float32)
    x = torch.randn(3, 64, 70, 9, requires_grad=True)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        y = cffb.cffb(x, *pair)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *pair[0].parameters(), *pair[1].parameters()])])
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_not_a_number_passes_through():
    pair = branches()
    x = torch.randn(1, 16, 9, 9, dtype=torch.float64)
    x[0, 3, 4, 4] = torch.nan
    assert torch.equal(cffb.cffb(x, *pair).isnan(), plain(x, *pair).isnan())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64, 13, 9), (3, 17, 1, 7), (2, 32, 5, 1), (1, 16, 1, 1)])
def test_variance_and_mean_of_each_channel(shape, dtype):
    """Also where the mean is a thousand times the deviation, which the mean of squares alone would lose."""
    x = (torch.randn(shape, dtype=dtype) + 1000).requires_grad_()
    wide = x.float() if dtype == torch.bfloat16 else x
    results = []
    for run, given in ((cffb.var_mean, x), (partial(torch.var_mean, dim=(2, 3), correction=0, keepdim=True), wide)):
        variance, mean = run(given)
        weights = torch.linspace(-1, 1, variance.numel(), dtype=wide.dtype).reshape(variance.shape)
        (gradient,) = torch.autograd.grad(((variance + 0.01 * mean) * weights).sum(), x, retain_graph=True)
        results.append((variance, mean / 1000, gradient))
    assert results[0][0].dtype == wide.dtype
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected, {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-3}[dtype])


def test_variance_of_a_flat_map_is_zero_and_differentiable():
    x = torch.full((1, 16, 7, 5), 123.456, requires_grad=True)
    variance, mean = cffb.var_mean(x)
    assert not variance.any()
    assert torch.allclose(mean, x[:, :, :1, :1])
    variance.sum().backward()
    assert x.grad.isfinite().all()


def test_variance_is_an_operator_that_torch_knows():
    x = torch.randn(2, 16, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: cffb.var_mean(x), x)
    torch.library.opcheck(torch.ops.krgn.var_mean.default, (x,))
    assert not torch.equal(cffb.var_mean(x)[0], cffb.var_mean(x[:, :, :2])[0])


def test_it_is_an_operator_that_torch_knows():
    near, far = branches()
    parameters = [tensor.detach().requires_grad_() for part in (near, far) for tensor in part.parameters()]
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64, requires_grad=True)
    for plus in (None, torch.randn_like(x)):
        torch.library.opcheck(torch.ops.krgn.cffb.default, (x, parameters, [1, 3], plus, True))
    detached = [tensor.detach() for tensor in parameters]
    torch.library.opcheck(torch.ops.krgn.cffb_backward.default, (x.detach(), x.detach(), detached, [1, 3]))


def test_torch_compile_keeps_it_whole():
    """One graph without breaks, the operator in it, forward and backward. aot_eager: all but the code generator."""
    network = KRGN(scale=2, n_feats=16, n_resgroups=1, recalibrated=False)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    image = torch.rand(1, 3, 9, 7) * 255
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    results = []
    for run in (compiled, network):
        network.zero_grad()
        y = run(image)
        y.square().mean().backward()
        results.append([y, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(graphs) == 1
    assert sum("krgn.cffb" in str(node.target) for node in graphs[0].graph.nodes) == 3
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected, 1e-4)


def test_exported_networks_have_only_operators_of_torch():
    network = KRGN(scale=2, n_feats=16, n_resgroups=1, recalibrated=False).eval()
    image = (torch.rand(1, 3, 8, 8),)
    assert "krgn.cffb" not in str(torch.export.export(network, image).graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert "krgn::cffb" not in str(torch.jit.trace(network, image).inlined_graph)


@pytest.mark.parametrize("groups", [0, 32])
def test_the_whole_network_and_its_training(groups, monkeypatch):
    """Recalibrated, 64 features: the same image and gradients as with plain operators; folded and in inference mode."""
    network = KRGN(scale=2, n_resgroups=1, groups=groups)
    for module in network.modules():
        if isinstance(module, RecConv):
            nn.init.normal_(module.transform, std=0.02)
    image = torch.rand(2, 3, 11, 6) * 255
    results = []
    for fits in (cffb.fits, lambda *_: False):
        monkeypatch.setattr(cffb, "fits", fits)
        network.zero_grad()
        y = network(image)
        y.square().mean().backward()
        with torch.inference_mode():
            folded = fold(network)(image)
        results.append([y, folded, *(p.grad for p in network.parameters() if p.requires_grad)])
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected, 1e-4)


def test_what_does_not_fit_takes_the_plain_operators():
    x = torch.randn(1, 16, 6, 6, dtype=torch.float64)
    near, far = branches()
    assert cffb.fits(x, near, far)
    others = [
        branch(16, 1, per_group=4),
        branch(16, 1, bias=False),
        branch(16, 1, padding_mode="reflect"),
        nn.Sequential(near[0], nn.PReLU(dtype=torch.float64)),
        nn.Sequential(near[0], nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=2, groups=16), near[1]),
        nn.Sequential(nn.Conv2d(16, 16, 5, padding=2, groups=16), near[1]),
        nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16), near[1]),
        branch(16, 1, dtype=torch.float32),
        nn.Sequential(nn.utils.parametrizations.weight_norm(branch(16, 1)[0]), near[1]),
        near[0],
    ]
    for other in others:
        assert not cffb.fits(x, other, far), other
        assert not cffb.fits(x, far, other), other
    small = RCG(n_feats=8, groups=8, dilation=3, conv=nn.Conv2d).double()
    assert not cffb.fits(x[:, :8], *small.conv_acts)
    assert small(x[:, :8]).isfinite().all()
    assert not cffb.fits(x.half(), near, far)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cffb.fits(x, near, far)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not cffb.fits(x, near, far)


def test_operations_are_counted_as_those_of_plain_operators():
    """Backward twice the forward pass, as usual; torch itself counts too many for convolutions in groups there."""
    x, pair, counts = torch.randn(2, 16, 6, 5, dtype=torch.float64, requires_grad=True), branches(16, 2), []
    for run in (
        lambda: plain(x, *pair),
        lambda: cffb.cffb(x, *pair),
        lambda: cffb.cffb(x, *pair).sum().backward(),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    assert counts == [counts[0], counts[0], 3 * counts[0]]
    assert counts[0] > 0


def test_a_summand_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"got torch\.float64 .*expected the input"):
        cffb.cffb(torch.randn(1, 16, 6, 6, dtype=torch.float64), *branches(), plus=torch.randn(1, 16, 6, 5).double())


def test_hooks_are_called():
    group, seen = RCG(n_feats=16, groups=16, dilation=3, conv=nn.Conv2d), []
    x = torch.randn(1, 16, 6, 6)
    hook = group.conv_acts[2][0].register_forward_hook(lambda *_: seen.append(1))
    group(x)
    assert seen == [1]
    hook.remove()
    assert cffb.fits(x, *group.conv_acts)


@pytest.mark.parametrize("per_group", [1, 2])
@pytest.mark.parametrize(
    ("channels", "size"), [(16, (1, 1)), (24, (7, 5)), (64, (30, 41)), (64, (3, 400)), (128, (9, 90))]
)
def test_a_chain_is_one_cffb_after_the_other_to_the_bit(channels, size, per_group):
    """Where no gradient is wanted, three go through in one pass: strips, images of a batch and threads' rows meet."""
    for dtype, dilation in ((torch.float32, 3), (torch.float64, 2), (torch.bfloat16, 3)):
        chain = [*branches(channels, per_group, dilation, dtype), *branches(channels, per_group, dilation, dtype)]
        chain += branches(channels, per_group, dilation, dtype)
        x = torch.randn(2, channels, *size, dtype=dtype)
        expected = x
        for near, far in zip(chain[::2], chain[1::2], strict=True):
            expected = cffb.cffb(expected, near, far)
        assert torch.equal(cffb.cffb(x, *chain), expected)
        with torch.no_grad():
            if dtype == torch.bfloat16:  # what nobody sees is not rounded: as in float32 all through
                expected = cffb.cffb(x.float(), *(copy.deepcopy(branch).float() for branch in chain)).bfloat16()
            assert torch.equal(cffb.cffb(x, *chain), expected)
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                if dtype != torch.bfloat16:  # there a sum of two rounded values is rounded once more
                    assert torch.equal(cffb.cffb(x, *chain, plus=x), cffb.cffb(x, *chain) + x)
        assert cffb.cffb(x, *chain, plus=x).requires_grad


def test_a_chain_has_a_gradient_where_what_lies_between_is_kept():
    chain = [*branches(), *branches()]
    parameters = [tensor for conv, act in chain for tensor in (conv.weight, conv.bias, act.weight)]
    x = torch.randn(1, 16, 3, 4).double()
    (y,) = torch.ops.krgn.cffb(x, parameters, [1, 3], None, False)
    with pytest.raises(NotImplementedError, match="no gradient"):
        y.sum().backward()
    between, last = torch.ops.krgn.cffb(x, parameters, [1, 3], None, True)
    assert torch.equal(last, y)
    with pytest.raises(NotImplementedError, match="only the last"):
        (between.sum() + last.sum()).backward()


@pytest.mark.parametrize("per_group", [1, 2])
def test_gradients_of_a_chain_are_those_of_one_cffb_after_the_other(per_group):
    for dtype in (torch.float32, torch.bfloat16):
        pairs = [branches(32, per_group, dtype=dtype) for _ in range(3)]
        x = torch.randn(2, 32, 40, 13, dtype=dtype, requires_grad=True)
        chained = cffb.cffb(x, *(part for pair in pairs for part in pair), plus=x)
        single = x
        for number, pair in enumerate(pairs):
            single = cffb.cffb(single, *pair, plus=x if number == 2 else None)
        inputs = [x, *(parameter for pair in pairs for part in pair for parameter in part.parameters())]
        grad = torch.randn_like(chained)
        for got, expected in zip(
            torch.autograd.grad(chained, inputs, grad), torch.autograd.grad(single, inputs, grad), strict=True
        ):
            assert torch.equal(got, expected)


def rounded_as_torch_rounds(wide: torch.Tensor) -> torch.Tensor:
    """float32 -> bfloat16; denormals become zero, as in the processor's instruction."""
    return torch.where(wide.abs() < torch.finfo(torch.float32).tiny, wide * 0, wide).bfloat16()


def test_bfloat16_is_rounded_to_the_nearest():
    """An identity plus a bias: every mantissa that decides about rounding, infinities and denormals."""
    near, far = branches(16, dtype=torch.float32)
    with torch.no_grad():
        for conv, act in (near, far):
            conv.weight.zero_(), conv.bias.zero_(), act.weight.fill_(1)
        near[0].weight[:, :, 1, 1] = 1
        x = torch.tensor([1.0, -3.5, 255.0, 1e30, -1e-30, 2.0**-126, -0.0, 3.3e38]).bfloat16()
        bias = torch.tensor([2.0**-power for power in range(1, 17)])
        for scale in (1.0, -1.0, 1e-30, 1e-41):
            near[0].bias.copy_(bias * scale)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                got = cffb.cffb(x.expand(1, 16, 1, 8), near, far)
            # A product with each of the other taps' zeros is added, which changes nothing here.
            wide = x.float() + near[0].bias.view(1, 16, 1, 1)
            assert torch.equal(got, rounded_as_torch_rounds(wide)), scale
        near[0].bias.fill_(torch.inf)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert cffb.cffb(x.expand(1, 16, 1, 8), near, far).isinf().all()


@pytest.mark.parametrize("per_group", [1, 2])
def test_bfloat16_differs_from_float32_by_its_rounding(per_group):
    """Values and gradients, under autocast, where weights stay float32, and in a network that is bfloat16 itself."""
    x, plus = torch.randn(2, 2, 24, 19, 23).bfloat16()
    pair = [part.bfloat16().float() for part in branches(24, per_group, dtype=torch.float32)]
    parameters = [parameter for part in pair for parameter in part.parameters()]
    wide, added = (tensor.float().requires_grad_() for tensor in (x, plus))
    expected = plain(wide, *pair, added)
    grad = torch.randn_like(expected).bfloat16()
    wanted = torch.autograd.grad(expected, [wide, added, *parameters], grad.float())
    for half in (False, True):
        halves = [tensor.clone().requires_grad_() for tensor in (x, plus)]
        if half:
            pair = [part.bfloat16() for part in pair]
            parameters = [parameter for part in pair for parameter in part.parameters()]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not half):
            assert cffb.fits(halves[0], *pair)
            got = cffb.cffb(halves[0], *pair, plus=halves[1])
        assert got.dtype == torch.bfloat16
        gradients = torch.autograd.grad(got, [*halves, *parameters], grad)
        for one, other in zip((got, *gradients), (expected, *wanted), strict=True):
            assert (one.float() - other).norm() <= 4e-3 * other.norm()
        assert all(
            gradient.dtype == parameter.dtype for gradient, parameter in zip(gradients[2:], parameters, strict=True)
        )


def test_chains_of_unlike_cffbs_are_not_fused():
    x = torch.randn(1, 16, 6, 6, dtype=torch.float64)
    assert cffb.fits(x, *branches(), *branches())
    assert not cffb.fits(x, *branches(), *branches(dilation=2))
    assert not cffb.fits(x, *branches(), *branches(16, 2))


def test_recalibrated_kernels():
    pair = [branch(32, rate, 2, conv=RecConv) for rate in (1, 3)]
    for conv, _ in pair:
        nn.init.normal_(conv.transform, std=0.1)
    assert_same_with_gradients(pair, torch.randn(1, 32, 5, 6, dtype=torch.float64))


def unavailable(monkeypatch, tmp_path) -> str:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    with pytest.raises(cffb.Unavailable) as caught:
        library.load.__wrapped__(torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_can_be_switched_off(monkeypatch, tmp_path):
    monkeypatch.setenv("KRGN_FUSED", "0")
    assert "KRGN_FUSED=0" in unavailable(monkeypatch, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", shutil.which("false"))
    assert shutil.which("false") in unavailable(monkeypatch, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "extensions").write_text("a file")
    assert "cannot be written" in unavailable(monkeypatch, tmp_path)


def in_a_new_process(code: str, **environment) -> str:
    """What some code logs, where no library has been requested."""
    lines = ["import logging, torch", "logging.basicConfig(level=logging.INFO)", "from model import cffb"]
    lines += ["from model.krgn import KRGN", "network = KRGN(scale=2, n_feats=16, n_resgroups=1)", code]
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "KRGN_FUSED")}
    command = [sys.executable, "-c", "\n".join(lines)]
    run = subprocess.run(command, cwd=SRC, env=kept | environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stderr


def test_without_a_request_nothing_is_built(tmp_path):
    code = (
        "x = torch.rand(1, 3, 5, 6)\n"
        "network(x).mean().backward()\n"
        "with torch.inference_mode(): plain = network.double()(x.double())\n"
        "assert not cffb.fits(torch.rand(1, 16, 5, 6).double(), *network.body[0].blocks[0].conv_acts)"
    )
    assert in_a_new_process(code, TORCH_EXTENSIONS_DIR=str(tmp_path)) == ""
    assert not list(tmp_path.iterdir())


def test_a_library_is_built_for_the_dtype_that_was_requested_and_for_no_other(tmp_path):
    code = (
        "from model.cffb import library\n"
        "library.OPTIONS[0] = '-O0'\n"
        "x, branches = torch.rand(1, 16, 5, 6), network.body[0].blocks[0].conv_acts\n"
        "assert cffb.build()\n"
        "assert cffb.fits(x, *branches)\n"
        "assert not cffb.fits(x.double(), *branches.double())"
    )
    log = in_a_new_process(code, TORCH_EXTENSIONS_DIR=str(tmp_path)).splitlines()
    assert len(log) == 2
    assert "fused operators compiled with" in log[0]
    assert "the CPU runs fused operators: " in log[1]
    (library,) = tmp_path.glob("*/*")
    assert library.name.startswith("cffb-float-")


def test_only_three_dtypes_can_be_built():
    with pytest.raises(ValueError, match=r"dtype: got torch\.float16, expected one of torch\.float32, "):
        cffb.build(torch.float16)


def test_without_a_compiler_the_plain_operators_run_with_one_line(tmp_path):
    code = "cffb.build_when_needed()\nassert network(torch.rand(1, 3, 5, 6)).isfinite().all()"
    log = in_a_new_process(code, PATH=str(tmp_path), TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert len(log.splitlines()) == 1
    assert "no C++ compiler" in log
    assert not list(tmp_path.iterdir())


# --- the taps ---


def block_of(n_feats=64, act="lrelu", dtype=torch.float64):
    block = PMRB(n_feats=n_feats, groups=n_feats, dilation=2, act=act, conv=nn.Conv2d).to(dtype).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    return block


@torch.no_grad()
def taps_and_expected(block, size, n=1):
    """Those of the fused operator, and those of plain ones in float32 at least."""
    dtype, n_feats = block.cca.conv_du[0].weight.dtype, block.cca.conv_du[0].in_channels
    maps = [torch.randn(n, channels, *size, dtype=dtype) for channels in (n_feats,) * 3 + (n_feats // 2,)]
    assert cffb.taps_fit(maps[0], block.conv1x1s, block.conv1x1_act)
    got, (mean, variance) = cffb.taps(maps, block.conv1x1s, block.conv1x1_act)
    wide = torch.promote_types(dtype, torch.float32)
    block, maps = copy.deepcopy(block).to(wide), [each.to(wide) for each in maps]
    taps = [conv(each) for conv, each in zip(block.conv1x1s, maps, strict=False)]
    expected = block.conv1x1_act(torch.cat([*taps, maps[3]], dim=1))
    return (got, mean, variance), (expected, *reversed(torch.var_mean(expected, (2, 3), correction=0, keepdim=True)))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.01)]
)
@pytest.mark.parametrize("act", ["lrelu", "relu", "prelu"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (6, 8), (23, 37)])
def test_taps_equal_the_plain_operators(size, act, dtype, tolerance):
    got, expected = taps_and_expected(block_of(act=act, dtype=dtype), size, n=2)
    assert got[0].dtype == dtype
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def test_taps_have_the_same_bits_for_any_number_of_threads():
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        found.append(taps_and_expected(block_of(dtype=torch.float32), (40, 50))[0])
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_where_taps_do_not_fit(monkeypatch):
    block, x = block_of(), torch.randn(1, 64, 4, 4, dtype=torch.float64)
    fit = lambda block, x: cffb.taps_fit(x, block.conv1x1s, block.conv1x1_act)  # noqa: E731
    assert not fit(block, x)  # with gradients
    with torch.no_grad():
        assert fit(block, x)
        assert not fit(block, x[:, :, :0])
        assert not fit(block, x.float())
        assert not fit(block_of(n_feats=20), x[:, :20])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not fit(block, x)
            assert fit(block, x.bfloat16())
        assert not fit(block, x.bfloat16())
        seen = []
        block.conv1x1s[1].register_forward_hook(lambda *_: seen.append(1))
        assert not fit(block, x)
        block(x)
        assert seen


def test_a_block_is_the_same_with_and_without_them(monkeypatch):
    block, x = block_of(), torch.randn(2, 64, 9, 11, dtype=torch.float64)
    with torch.no_grad():
        got = block(x)
        monkeypatch.setattr(cffb, "taps_fit", lambda *_: False)
        assert (got - block(x)).abs().max() < 1e-10


def test_operations_of_taps_are_counted():
    block, x = block_of(), torch.randn(1, 64, 9, 11, dtype=torch.float64)
    counts = []
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, FlopCounterMode(display=False) as counter:
            block(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_buffers_that_do_not_fit_into_memory_are_an_exception_of_python():
    """One that C++ throws would end the process."""
    near, far = branches(dtype=torch.float32)
    parameters = [tensor.detach() for conv, act in (near, far) for tensor in (conv.weight, conv.bias, act.weight)]
    x = torch.rand(1, 16, 5, 7)
    for run in (
        lambda: torch.ops.krgn.cffb(x, parameters, [1, 10**7], None, False),
        lambda: torch.ops.krgn.cffb_backward(x, x, parameters, [1, 10**7]),
    ):
        with pytest.raises(MemoryError, match=r"\(1, 16, 5, 7\): use --tile"):
            run()
