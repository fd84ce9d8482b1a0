"""Training losses: a weighted sum of named terms, as --loss writes it ("1*L1+0.1*MSE")."""

import torch
from torch import nn

TERMS = {"L1": nn.L1Loss, "MSE": nn.MSELoss}


class Loss(nn.Module):
    """The weighted sum of several losses between SR and HR.

    Args:
        terms: (weight, name) of each term, name being one of `TERMS`; values are in the network's range, 0..rgb_range.
    """

    def __init__(self, terms: tuple[tuple[float, str], ...]):
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.names = [name for _, name in terms]
        self.functions = nn.ModuleList(TERMS[name]() for name in self.names)

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) each -> the weighted terms, shape (number of terms,); their sum is the loss."""
        return torch.stack([weight * term(sr, hr) for weight, term in zip(self.weights, self.functions, strict=True)])
