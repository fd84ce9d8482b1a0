"""The weighted sum of losses."""

import numpy as np
import pytest
import torch

from loss import Charbonnier, FrequencyL1, Loss


def test_weighted_terms():
    sr, hr = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 3.0)
    terms = Loss(((2.0, "L1"), (0.5, "MSE")))(sr, hr)
    assert terms.tolist() == pytest.approx([6.0, 4.5])


def test_terms_have_gradients():
    sr = torch.zeros(1, 1, 2, 2, requires_grad=True)
    Loss(((1.0, "L1"), (1.0, "MSE")))(sr, torch.ones(1, 1, 2, 2)).sum().backward()
    assert (sr.grad < 0).all()


def test_charbonnier_is_a_smooth_l1():
    sr, hr = torch.tensor([0.0, 3.0]), torch.tensor([0.0, -1.0])
    assert Charbonnier(0.5)(sr, hr).item() == pytest.approx((0.5 + (16.25) ** 0.5) / 2)
    sr.requires_grad_()
    Charbonnier()(sr, hr).backward()
    assert sr.grad.isfinite().all()


def test_frequency_loss_against_numpy():
    sr, hr = torch.rand(2, 3, 8, 6), torch.rand(2, 3, 8, 6)
    difference = np.fft.rfft2((sr - hr).numpy(), norm="ortho")
    expected = np.mean([np.abs(difference.real), np.abs(difference.imag)])
    assert FrequencyL1()(sr, hr).item() == pytest.approx(expected, rel=1e-5)
    assert FrequencyL1()(sr, sr).item() == 0
