"""A folded network rewritten for other runtimes: the same function, in operators that they have and run fast."""

import copy

import torch
from torch import nn

from model.krgn import CCA, KRGN, RCG, Statistics


def for_deployment(network: nn.Module) -> nn.Module:
    """A copy of a folded network, on the CPU in float32, in convolutions and simple sums.

    Only KRGN is rewritten; other networks are copied as they are.

    - The attention is written as means, products and sums, because ncnn has no operator that does more at once.
    - The mean that is added to the output goes into the bias of the convolution before it. This is exact: only a pixel
      shuffle lies between the two. The mean that is subtracted from the input stays. The first convolution pads with
      zeros after the subtraction, so moving the mean into its bias would be wrong along the borders.
    """
    network = copy.deepcopy(network).eval().float().cpu()
    if not isinstance(network, KRGN):
        return network
    for block in network.body:
        block.cca = PlainCCA(block.cca)
    with torch.no_grad():
        channels = network.add_mean.bias.numel()
        bias = network.upsampler[0].bias
        bias += network.add_mean.bias.repeat_interleave(bias.numel() // channels)
    network.add_mean = nn.Identity()
    return network


def mean_shift_notes(network: nn.Module) -> list[str]:
    """What `for_deployment` does to a network's mean shifts, in words for the report."""
    if not isinstance(network, KRGN):
        return ["mean shifts: left alone"]
    return [
        "mean added to the output: folded into the bias of the last convolution (exact)",
        "mean taken from the input: left alone (the first convolution's zero padding makes it inexact at the borders)",
    ]


class PlainCCA(nn.Module):
    """The function of a `CCA` in operators that every runtime has."""

    def __init__(self, cca: CCA):
        super().__init__()
        self.cca = cca

    def forward(self, x: torch.Tensor, plus: torch.Tensor, statistics: Statistics | None = None) -> torch.Tensor:
        """`statistics` are those of the CPU's fused operator, which a graph does not have: they are taken here."""
        mean = nn.functional.adaptive_avg_pool2d(x, 1)
        variance = nn.functional.adaptive_avg_pool2d((x - mean) * (x - mean), 1)
        return x * self.cca.attention(mean, variance) + plus


def without_prelu(network: nn.Module) -> nn.Module:
    """Replaces every `RCG` of a folded network by a `ReluRCG`, in place; an RCG with a slope above 1 stays."""
    for block in network.body if isinstance(network, KRGN) else ():
        for i, rcg in enumerate(block.blocks):
            if all((prelu.weight <= 1).all() for _, prelu in rcg.conv_acts):
                block.blocks[i] = ReluRCG(rcg)
    return network


class ReluRCG(nn.Module):
    """The function of a folded `RCG` in convolutions, sums and ReLUs alone, for onnxruntime.

    onnxruntime runs PReLU on one core, and in another memory layout than its fast convolutions: the operator and the
    conversions around it took half the time of the whole network. With slopes a <= 1,

        PReLU(c) = a c + ReLU((1 - a) c),

    and both terms are convolutions with scaled kernels. The sums are ordered so that onnxruntime fuses most of them
    into a convolution.
    """

    def __init__(self, rcg: RCG):
        super().__init__()
        self.linear = nn.ModuleList(_scaled(conv, prelu.weight) for conv, prelu in rcg.conv_acts)
        self.positive = nn.ModuleList(_scaled(conv, 1 - prelu.weight) for conv, prelu in rcg.conv_acts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for i in range(0, len(self.linear), 2):
            total = self.linear[i](out) + torch.relu(self.positive[i](out))
            total = self.linear[i + 1](out) + total
            out = torch.relu(self.positive[i + 1](out)) + total
        return out + x


def _scaled(conv: nn.Conv2d, factor: torch.Tensor) -> nn.Conv2d:
    """A copy of a convolution whose output channels are multiplied by `factor`, (C,)."""
    conv = copy.deepcopy(conv)
    with torch.no_grad():
        conv.weight *= factor.view(-1, 1, 1, 1)
        conv.bias *= factor
    return conv
