"""Training losses: a weighted sum of named terms, as --loss writes it ("1*L1+0.1*MSE")."""

import torch
from torch import nn


class Charbonnier(nn.Module):
    """Mean of sqrt((sr - hr)^2 + epsilon^2), a smooth L1 (LapSRN, arXiv 1704.03915); epsilon in the network's range."""

    def __init__(self, epsilon: float = 1e-3):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        return torch.sqrt((sr - hr).square() + self.epsilon**2).mean()


class FrequencyL1(nn.Module):
    """L1 between the 2-D Fourier transforms, real and imaginary parts apart (MIMO-UNet, arXiv 2108.05054).

    The transforms are orthonormal, so that the loss is of the size of L1 whatever the patch.
    """

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        difference = torch.fft.rfft2(sr.float() - hr.float(), norm="ortho")
        return torch.view_as_real(difference).abs().mean()


TERMS = {"L1": nn.L1Loss, "MSE": nn.MSELoss, "Charbonnier": Charbonnier, "FFT": FrequencyL1}


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
