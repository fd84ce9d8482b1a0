"""The weighted sum of losses."""

import pytest
import torch

from loss import Loss


def test_weighted_terms():
    sr, hr = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 3.0)
    terms = Loss(((2.0, "L1"), (0.5, "MSE")))(sr, hr)
    assert terms.tolist() == pytest.approx([6.0, 4.5])


def test_terms_have_gradients():
    sr = torch.zeros(1, 1, 2, 2, requires_grad=True)
    Loss(((1.0, "L1"), (1.0, "MSE")))(sr, torch.ones(1, 1, 2, 2)).sum().backward()
    assert (sr.grad < 0).all()
