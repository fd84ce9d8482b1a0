"""Muon: which weights are matrices, how they move, and that what it remembers goes through a state file."""

import copy

import pytest
import torch
from torch import nn

from model.krgn import KRGN
from model.recalibration import RecConv
from model.weights import load_tensors
from runtime.files import save_tensors
from train.muon import Muon, orthogonalised
from train.statecheck import Misfit, same_optimizer


def network():
    torch.manual_seed(0)
    return KRGN(scale=2, n_feats=8, n_resgroups=1).to(memory_format=torch.channels_last)


def steps(net, optimizer, *seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()


def test_orthogonalised_against_the_singular_value_decomposition():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        given = torch.linspace(0.2, 1, 16).expand(shape[0], 16)
        got = orthogonalised(u * given[:, None] @ v * 100)
        values = torch.linalg.svdvals(got)
        assert values.min() > 0.65
        assert values.max() < 1.25
        # The singular vectors are those of the input.
        assert torch.allclose(
            u.mT @ got @ v.mT, torch.diag_embed((u.mT @ got @ v.mT).diagonal(dim1=1, dim2=2)), atol=1e-4
        )
    assert orthogonalised(torch.zeros(1, 4, 8)).abs().max() == 0


def test_dense_weights_are_matrices_and_all_others_move_as_by_adamw():
    net = network()
    reference = copy.deepcopy(net)
    optimizer = Muon(net, lr=1e-2, weight_decay=0.1)
    trained = [parameter for parameter in reference.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1, fused=True)
    steps(net, optimizer, 1, 2)
    steps(reference, adamw, 1, 2)
    others = dict(reference.named_parameters())
    matrices = [name for name, parameter in net.named_parameters() if optimizer.is_matrix(parameter)]
    dense = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and not isinstance(m, RecConv)]
    assert matrices == [f"{name}.weight" for name in dense if not name.endswith("_mean")]
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, others[name]) == (name not in matrices)


def test_a_matrix_moves_along_its_orthogonalised_momentum():
    layer = nn.Linear(12, 6, bias=False)
    start = layer.weight.detach().clone()
    optimizer = Muon(layer, lr=0.1, weight_decay=0.5)
    gradient = torch.randn(6, 12)
    layer.weight.grad = gradient.clone()
    optimizer.step()
    # Of one gradient the momentum is a multiple, and its length does not matter.
    expected = start * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 12**0.5 * orthogonalised(gradient[None])[0]
    assert torch.allclose(layer.weight, expected, atol=1e-6)


def test_frozen_weights_and_weights_without_gradient_stay():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    net[0].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    optimizer = Muon(net, lr=0.1)
    net[2](torch.ones(1, 4, 2, 2)).sum().backward()
    optimizer.step()
    moved = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ["2.weight", "2.bias"]


def test_it_goes_on_exactly_from_a_state_file(tmp_path):
    net = network()
    optimizer = Muon(net, lr=1e-2)
    steps(net, optimizer, 1, 2)
    save_tensors(tmp_path / "state.pt", {"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    saved = load_tensors(tmp_path / "state.pt")
    resumed = network()
    resumed.load_state_dict(saved["model"])
    other = Muon(resumed, lr=1e-2)
    same_optimizer("optimizer", saved["optimizer"], other)
    other.load_state_dict(saved["optimizer"])
    steps(net, optimizer, 3, 4)
    steps(resumed, other, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters(), strict=True))

    saved["optimizer"]["state"][0] = saved["optimizer"]["state"][len(optimizer.param_groups[0]["params"])]
    with pytest.raises(Misfit, match="optimizer 0 has"):
        same_optimizer("optimizer", saved["optimizer"], other)
