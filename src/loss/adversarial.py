"""Adversarial losses: a discriminator that learns to tell SR from HR, and how well the network deceives it.

- GAN: SRGAN, arXiv 1609.04802; the standard loss, with the network's part in its non-saturating form.
- RGAN: ESRGAN's relativistic average, arXiv 1809.00219: is HR more real than the mean SR, and SR than the mean HR?
- WGAN_GP: the Wasserstein distance with a penalty on the discriminator's gradient, arXiv 1704.00028.
"""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

PENALTY = 10  # lambda of WGAN-GP's paper


class Discriminator(nn.Module):
    """SRGAN's: eight 3x3 convolutions, every second one halving the side, then two dense layers.

    (N, n_colors, P, P) in -1..1 -> (N, 1), unbounded: above 0 means HR. The features of patches beyond 96 pixels are
    pooled to the 6x6 of SRGAN's patches, or the dense layer would have 75 million weights at 192.

    Args:
        normalised: with batch normalisation, always by the batch's own statistics.
    """

    def __init__(self, *, n_colors: int, patch_size: int, normalised: bool):
        super().__init__()
        layers, channels, side = [], n_colors, patch_size
        for width, stride in ((64, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2)):
            normalise = normalised and bool(layers)
            layers.append(nn.Conv2d(channels, width, 3, stride, padding=1, bias=not normalise))
            layers += [nn.BatchNorm2d(width, track_running_stats=False)] * normalise + [nn.LeakyReLU(0.2)]
            channels, side = width, -(-side // stride)
        side = min(side, 6)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(side))
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * side**2, 1024), nn.LeakyReLU(0.2), nn.Linear(1024, 1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))


class Adversarial(nn.Module):
    """The two sides of one of `names.ADVERSARIAL`: `forward` is the network's loss, `critic_loss` the discriminator's.

    Args:
        rgb_range: the images' value range.
        patch_size: side of HR patches, at least 32.
    """

    def __init__(self, kind: str, *, n_colors: int, rgb_range: float, patch_size: int):
        super().__init__()
        self.kind, self.rgb_range = kind, rgb_range
        # The gradient penalty is one of each image, which normalising over the batch would mix.
        normalised = kind != "WGAN_GP"
        self.discriminator = Discriminator(n_colors=n_colors, patch_size=patch_size, normalised=normalised)

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        """The network's loss. (N, C, P, P) each -> a scalar; the discriminator gets no gradient."""
        self.discriminator.requires_grad_(False)
        fake = self._judge(sr)
        if self.kind == "WGAN_GP":
            return -fake.mean()
        if self.kind == "GAN":
            return _cross_entropy(fake, real=True)
        real = self._judge(hr)
        return _cross_entropy(fake - real.mean(), real=True) + _cross_entropy(real - fake.mean(), real=False)

    def critic_loss(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        """The discriminator's loss. (N, C, P, P) each -> a scalar; the network gets no gradient."""
        self.discriminator.requires_grad_(True)
        sr = sr.detach()
        fake, real = self._judge(sr), self._judge(hr)
        if self.kind == "WGAN_GP":
            return fake.mean() - real.mean() + PENALTY * self._gradient_penalty(sr, hr)
        if self.kind == "GAN":
            return _cross_entropy(real, real=True) + _cross_entropy(fake, real=False)
        return _cross_entropy(real - fake.mean(), real=True) + _cross_entropy(fake - real.mean(), real=False)

    def _judge(self, images: torch.Tensor) -> torch.Tensor:
        return self.discriminator(images * (2 / self.rgb_range) - 1)

    def _gradient_penalty(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        """Mean of (|gradient| - 1)^2 at random points between SR and HR, in the discriminator's range."""
        weight = torch.rand(len(sr), 1, 1, 1, device=sr.device)
        between = (weight * hr + (1 - weight) * sr) * (2 / self.rgb_range) - 1
        between.requires_grad_()
        (gradient,) = torch.autograd.grad(self.discriminator(between).sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def _cross_entropy(logits: torch.Tensor, *, real: bool) -> torch.Tensor:
    """The cross-entropy of the discriminator's logits with "real", or with "fake"."""
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
