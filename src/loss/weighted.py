"""The training loss: a weighted sum of named terms, as --loss writes it ("1*L1+0.1*MSE")."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import l1_loss

from loss.adversarial import Adversarial
from loss.names import ADVERSARIAL, PERCEPTUAL
from loss.perceptual import Perceptual


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


_PIXELWISE = {"L1": nn.L1Loss, "MSE": nn.MSELoss, "Charbonnier": Charbonnier, "FFT": FrequencyL1}


class Loss(nn.Module):
    """The weighted sum of several losses between SR and HR.

    Args:
        terms: (weight, name) of each term, name being one of `names.LOSSES`; at most one is adversarial.
        rgb_range: the images' value range, for the terms that depend on it.
        n_colors, patch_size: of the HR patches, for a discriminator.
        load_vgg19: called for VGG19's state dict if a perceptual term needs it.
        distill: the weight of a last term "teacher", the L1 distance to a teacher's SR; None without a teacher.
    """

    def __init__(
        self,
        terms: tuple[tuple[float, str], ...],
        *,
        rgb_range: float = 255,
        n_colors: int = 3,
        patch_size: int = 192,
        load_vgg19: Callable[[], dict[str, torch.Tensor]] | None = None,
        distill: float | None = None,
    ):
        super().__init__()

        def make(name: str) -> nn.Module:
            if name in PERCEPTUAL:
                return Perceptual(name, rgb_range=rgb_range, load=load_vgg19)
            if name in ADVERSARIAL:
                return Adversarial(name, rgb_range=rgb_range, n_colors=n_colors, patch_size=patch_size)
            return _PIXELWISE[name]()

        self.weights = [weight for weight, _ in terms]
        self.names = [name for _, name in terms]
        self.functions = nn.ModuleList(make(name) for name in self.names)
        self.distill = distill
        if distill is not None:
            self.names.append("teacher")

    @property
    def adversary(self) -> Adversarial | None:
        """The adversarial term, whose discriminator is trained too, if there is one."""
        return next((function for function in self.functions if isinstance(function, Adversarial)), None)

    def forward(self, sr: torch.Tensor, hr: torch.Tensor, taught: torch.Tensor | None = None) -> torch.Tensor:
        """SR, HR and, with a teacher, its SR, (N, C, H, W) each, in 0..rgb_range -> the weighted terms, as `names`.

        Their sum is the loss.
        """
        terms = [weight * term(sr, hr) for weight, term in zip(self.weights, self.functions, strict=True)]
        if self.distill is not None:
            terms.append(self.distill * l1_loss(sr, taught))
        return torch.stack(terms)
