"""KRGN: "Towards lightweight image super-resolution via re-parameterized kernel recalibration".

The file reads like the paper, from the whole to the parts:

    KRGN  SFE   shallow feature extraction      3x3 conv
          HFT   hierarchical feature transform  a chain of PMRBs, every output kept
          DFF   dense feature fusion            all outputs concatenated -> 1x1 -> 3x3, plus the shallow feature
          UP    upsampling                      3x3 conv -> pixel shuffle
    PMRB  three RCGs, tapped before each and after the last; the taps fused, weighted by CCA, plus the input
    RCG   three CFFBs in a chain, plus the input
    CFFB  two depth-wise 3x3 convs side by side, one dilated, each with its own PReLU, summed
    CCA   contrast-aware channel attention

The convolutions of the CFFBs are the ones whose kernels are recalibrated (`recalibration.py`). With plain kernels
and groups = 32 the network is CFGN, KRGN's predecessor. Parameters have the names of the published state dicts, so
that weights interchange both ways. Features are (N, C, H, W) throughout, C = `n_feats`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from . import cffb
from .common import (
    MeanShift,
    activation,
    autocast_dtype,
    conv1x1_of_parts,
    in_float32,
    leaky_relu,
    range_of_shift,
    upsampler,
)
from .recalibration import RecConv, batch_kernels

TAIL = "upsampler."  # names of the layers that depend on the scale
UNSEEN = {"dilation": 3, "act": "lrelu"}  # hyper-parameters that a state dict does not show, as published


@dataclass(frozen=True, kw_only=True)
class KRGNConfig:
    """The hyper-parameters that a KRGN is rebuilt from.

    Args:
        scale: upscaling factor.
        n_feats: C, the number of feature channels.
        n_resgroups: the number of PMRBs.
        groups: groups of the recalibrated convolutions; 0 means depth-wise (one group per channel), as in the paper's
            text, and becomes `n_feats`; 32 at C = 64 is what its authors' code and CFGN's weights use.
        dilation: dilation of every second convolution.
        act: activation of the taps, one of `names.ACTIVATIONS`.
        n_colors: channels of the image.
        rgb_range: the image's value range, for the mean shift.

    Raises:
        ValueError: if `n_feats` is not divisible by `groups`.
    """

    scale: int = 4
    n_feats: int = 64
    n_resgroups: int = 9
    groups: int = 0
    dilation: int = 3
    act: str = "lrelu"
    n_colors: int = 3
    rgb_range: float = 255

    def __post_init__(self):
        object.__setattr__(self, "groups", self.groups or self.n_feats)
        if self.n_feats % self.groups:
            raise ValueError(f"n_feats: got {self.n_feats}, expected a multiple of groups ({self.groups})")


class KRGN(nn.Module):
    """Kernel recalibration guided network.

    (N, n_colors, H, W) in 0..`rgb_range`, float -> (N, n_colors, scale * H, scale * W), not clamped. Any H, W >= 1.

    Args:
        recalibrated: False makes every kernel plain (the paper's ablation).
        train_basis: False freezes the basis kernels (RefConv's second stage).
        hyperparameters: the fields of `KRGNConfig`, as in KRGN(scale=2, n_feats=32).

    Raises:
        ValueError: as `KRGNConfig`, or if the activation is unknown.
    """

    def __init__(self, *, recalibrated: bool = True, train_basis: bool = True, **hyperparameters: Any):
        super().__init__()
        self.config = config = KRGNConfig(**hyperparameters)
        n_feats, n_colors, rgb_range = config.n_feats, config.n_colors, config.rgb_range
        conv = partial(RecConv, train_basis=train_basis) if recalibrated else nn.Conv2d
        self.sub_mean = MeanShift(n_colors=n_colors, rgb_range=rgb_range, sign=-1)
        self.head_conv = nn.Conv2d(n_colors, n_feats, 3, padding=1)
        self.body = nn.ModuleList(
            PMRB(n_feats=n_feats, groups=config.groups, dilation=config.dilation, act=config.act, conv=conv)
            for _ in range(config.n_resgroups)
        )
        self.features_fusion_module = nn.Sequential(
            nn.Conv2d((config.n_resgroups + 1) * n_feats, n_feats, 1),
            leaky_relu(),
            nn.Conv2d(n_feats, n_feats, 3, padding=1),
        )
        self.upsampler = upsampler(n_feats, n_colors, config.scale)
        self.add_mean = MeanShift(n_colors=n_colors, rgb_range=rgb_range, sign=+1)
        if recalibrated:
            batch_kernels(self)  # faster than each layer by itself

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What checkpoints keep to rebuild the network from."""
        return asdict(self.config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shallow = self.shallow(x)
        dense = conv1x1_of_parts(self.features_fusion_module[0], self.features(shallow))
        return self.tail(dense, shallow)

    def shallow(self, x: torch.Tensor) -> torch.Tensor:
        """SFE. The result has the dtype in which the body runs: that of an autocast, or of its weights."""
        shallow = in_float32(self.head_conv, in_float32(self.sub_mean, x))
        return shallow.to(autocast_dtype(x) or self.head_conv.weight.dtype)

    def features(self, shallow: torch.Tensor) -> Iterator[torch.Tensor]:
        """HFT: the shallow feature, then the output of each PMRB."""
        yield shallow
        out = shallow
        for block in self.body:
            out = block(out)
            yield out

    def tail(self, dense: torch.Tensor, shallow: torch.Tensor) -> torch.Tensor:
        """The rest of DFF after its 1x1 convolution, and UP."""
        last, shuffle = self.upsampler
        return in_float32(self.add_mean, shuffle(in_float32(last, self.features_fusion_module[1:](dense) + shallow)))


class Statistics(NamedTuple):
    """Mean and variance of each channel over H and W: (N, C, 1, 1) each, at least float32."""

    mean: torch.Tensor
    variance: torch.Tensor


class Taps(NamedTuple):
    """The fused taps of a PMRB, (N, C, H, W), and their statistics, or None where these are still to be computed."""

    fused: torch.Tensor
    statistics: Statistics | None


class PMRB(nn.Module):
    """Progressive multi-scale recalibration block.

    The running feature is tapped before each of the three RCGs (1x1 conv -> C/2, activation) and after the last
    (3x3 conv -> C/2, activation). The four taps are concatenated, fused to C channels, weighted by CCA, and the
    block's input is added.
    """

    def __init__(self, *, n_feats: int, groups: int, dilation: int, act: str, conv: Callable[..., nn.Conv2d]):
        super().__init__()
        tap = max(1, n_feats // 2)
        self.blocks = nn.ModuleList(RCG(n_feats=n_feats, groups=groups, dilation=dilation, conv=conv) for _ in range(3))
        self.conv1x1s = nn.ModuleList(nn.Sequential(nn.Conv2d(n_feats, tap, 1), activation(act, tap)) for _ in range(3))
        self.conv3x3 = nn.Sequential(nn.Conv2d(n_feats, tap, 3, padding=1), activation(act, tap))
        self.conv1x1_act = nn.Sequential(nn.Conv2d(4 * tap, n_feats, 1), leaky_relu())
        self.cca = CCA(n_feats=n_feats)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = self.local(x)
        return self.cca(taps.fused, x, taps.statistics) if taps.statistics else self.cca(taps.fused, plus=x)

    def local(self, x: torch.Tensor) -> Taps:
        """The local part of the block: everything before the attention."""
        late = cffb.taps_fit(x, self.conv1x1s, self.conv1x1_act)  # all 1x1 convolutions in one pass over memory
        out, taps = x, []
        for conv1x1, block in zip(self.conv1x1s, self.blocks, strict=True):
            taps.append(out if late else conv1x1(out))
            out = block(out)
        taps.append(self.conv3x3(out))
        if late:
            fused, statistics = cffb.taps(taps, self.conv1x1s, self.conv1x1_act)
            return Taps(fused, Statistics(*statistics))
        return Taps(self.conv1x1_act(torch.cat(taps, dim=1)), None)


class RCG(nn.Module):
    """Residual CFFB group: three CFFBs in a chain, plus the input.

    `conv` makes the convolutions: `RecConv`, or `nn.Conv2d` for plain kernels.
    Published state dicts keep the six branches in one list: even ones have dilation 1, odd ones `dilation`.
    """

    def __init__(self, *, n_feats: int, groups: int, dilation: int, conv: Callable[..., nn.Conv2d]):
        super().__init__()
        self.conv_acts = nn.ModuleList(
            nn.Sequential(
                conv(n_feats, n_feats, 3, padding=rate, dilation=rate, groups=groups), nn.PReLU(n_feats, init=0.05)
            )
            for rate in (1, dilation) * 3
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if cffb.fits(x, *self.conv_acts):
            return cffb.cffb(x, *self.conv_acts, plus=x)  # the same in fewer passes over memory
        out = x
        for near, far in zip(self.conv_acts[::2], self.conv_acts[1::2], strict=True):
            out = near(out) + far(out)  # CFFB
        return out + x


class CCA(nn.Module):
    """Contrast-aware channel attention (IMDN, arXiv 1909.11856): weights each channel by its contrast plus its mean.

    The statistics are global, over H and W, so the output for a tile differs from that part of the whole image's.
    """

    def __init__(self, *, n_feats: int):
        super().__init__()
        squeezed = max(1, n_feats // 8)
        self.conv_du = nn.Sequential(
            nn.Conv2d(n_feats, squeezed, 1), leaky_relu(), nn.Conv2d(squeezed, n_feats, 1), nn.Sigmoid()
        )

    def forward(
        self,
        x: torch.Tensor,
        plus: torch.Tensor | None = None,
        statistics: Statistics | None = None,
    ) -> torch.Tensor:
        """The weighted `x`, plus `plus` if it is given; `statistics` are those of `x` where they are known already."""
        attention = self.attention(*(statistics or self.statistics(x))).to(x.dtype)
        return x * attention if plus is None else torch.addcmul(plus, x, attention)

    @staticmethod
    def statistics(x: torch.Tensor) -> Statistics:
        """Mean and variance of each channel of (N, C, H, W)."""
        variance, mean = cffb.var_mean(x)
        return Statistics(mean, variance)

    def attention(self, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """The weights of the channels, in 0..1, from their statistics, all (N, C, 1, 1)."""
        # Without the epsilon the gradient of the root of zero, on a flat map, is 0 * infinity = NaN.
        contrast = torch.sqrt(variance + 1e-8)
        return self.conv_du((contrast + mean).to(self.conv_du[0].weight.dtype))


NETWORK = KRGN


def structure(state: dict[str, torch.Tensor]) -> dict:
    """The hyper-parameters that can be read off a state dict: all but `UNSEEN`.

    Raises:
        KeyError, IndexError: if `state` is not that of a KRGN.
    """
    n_feats, n_colors = state["head_conv.weight"].shape[:2]
    blocks = {int(found[1]) for name in state if (found := re.match(r"body\.(\d+)\.", name))}
    return {
        "scale": round((state["upsampler.0.weight"].shape[0] / n_colors) ** 0.5),
        "n_feats": n_feats,
        "n_resgroups": max(blocks) + 1 if blocks else 0,
        "groups": n_feats // state["body.0.blocks.0.conv_acts.0.0.weight"].shape[1],
        "n_colors": n_colors,
        "rgb_range": range_of_shift(state),
    }


def kernel_sets(model: KRGN, block: int) -> list[nn.Conv2d]:
    """The 18 recalibrated (or plain) convolutions of PMRB number `block`, counted from 1, in the order of execution."""
    return [branch[0] for group in model.body[block - 1].blocks for branch in group.conv_acts]
