"""Four quadrants and self-ensemble, on every kind of size."""

import pytest
import torch
import torch.nn.functional as F

from model import inference
from model.inference import CHOP_MARGIN, chop, self_ensemble
from model.krgn import KRGN
from runtime.errors import says_out_of_memory


def local(image: torch.Tensor) -> torch.Tensor:
    """A x3 upscaler that sees 5 pixels to each side, less than the margin: quadrants must not change it."""
    blurred = F.avg_pool2d(image, 11, stride=1, padding=5, count_include_pad=False)
    return F.interpolate(blurred, scale_factor=3, mode="nearest")


SIZES = [(1, 1), (2, 7), (19, 20), (21, 33), (40, 64), (25, 9)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_chop_of_a_local_function_is_that_function(height, width):
    image = torch.rand(2, 3, height, width)
    assert torch.allclose(chop(local, image, 3), local(image), atol=1e-6)


def test_chop_runs_four_quadrants_with_the_margin():
    """The published protocol: windows of half the side plus 10 pixels, pasted at the middle."""
    seen = []

    def network(images):
        seen.extend(images.split(1))  # small ones may come as one batch
        return images

    image = torch.arange(45 * 64, dtype=torch.float32).view(1, 1, 45, 64)
    assert torch.equal(chop(network, image, 1), image)
    assert [tuple(part.shape[-2:]) for part in seen] == [(22 + CHOP_MARGIN, 32 + CHOP_MARGIN)] * 4
    corners = [(part[0, 0, 0, 0].item(), part[0, 0, -1, -1].item()) for part in seen]
    at = lambda row, column: float(row * 64 + column)  # noqa: E731
    assert corners == [
        (at(0, 0), at(31, 41)),
        (at(0, 22), at(31, 63)),
        (at(13, 0), at(44, 41)),
        (at(13, 22), at(44, 63)),
    ]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("scale", [2, 3])
def test_every_size_with_the_network(height, width, scale):
    network = KRGN(scale=scale, n_feats=8, n_resgroups=1).eval()
    image = torch.rand(1, 3, height, width) * 255
    with torch.no_grad():
        for out in (chop(network, image, scale), self_ensemble(network, image)):
            assert out.shape == (1, 3, scale * height, scale * width)
            assert out.isfinite().all()


def test_small_images_run_as_one_batch_and_large_ones_alone(monkeypatch):
    sizes = []

    def network(images):
        sizes.append(tuple(images.shape))
        return images

    image = torch.rand(1, 1, 30, 50)
    assert torch.equal(chop(network, image, 1), image)
    assert torch.allclose(self_ensemble(network, image), image)
    assert sizes == [(4, 1, 25, 35), (4, 1, 30, 50), (4, 1, 50, 30)]
    sizes.clear()
    self_ensemble(network, image, batched=False)
    assert [size[0] for size in sizes] == [1] * 8
    sizes.clear()
    monkeypatch.setattr(inference, "BATCHED", 4 * 25 * 35 - 1)
    assert torch.equal(chop(network, image, 1), image)
    assert sizes == [(1, 1, 25, 35)] * 4


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_a_batch_that_does_not_fit_runs_one_by_one(error):
    def network(images):
        if len(images) > 1:
            raise error
        return images

    image = torch.rand(1, 1, 30, 50)
    assert torch.equal(chop(network, image, 1), image)
    assert torch.allclose(self_ensemble(network, image), image)

    def broken(images):
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes"):
        chop(broken, image, 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_there_was_no_memory(error, expected):
    assert says_out_of_memory(error) is expected


def test_self_ensemble_is_the_mean_of_eight_views():
    network = KRGN(scale=2, n_feats=8, n_resgroups=1).double().eval()
    image = torch.rand(1, 3, 6, 9, dtype=torch.float64) * 255
    with torch.no_grad():
        expected = torch.zeros(1, 3, 12, 18, dtype=torch.float64)
        for transpose in (False, True):
            for dims in ((), (2,), (3,), (2, 3)):
                view = image.flip(dims)
                out = network(view.transpose(2, 3)).transpose(2, 3) if transpose else network(view)
                expected += out.flip(dims) / 8
        assert torch.allclose(self_ensemble(network, image), expected, atol=1e-9)
        # An averaged output no longer depends on how the image lies.
        turned = self_ensemble(network, image.rot90(1, (2, 3))).rot90(-1, (2, 3))
        assert torch.allclose(turned, expected, atol=1e-9)
