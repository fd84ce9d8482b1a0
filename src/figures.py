"""Figures as PNG bytes, drawn by matplotlib without a display."""

import io
import math

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

DPI = 120


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def curves(history: list[dict]) -> bytes:
    """Loss and, where there are scores, PSNR over the epochs.

    Args:
        history: a dict an epoch with "epoch", "loss" and "<Set> PSNR" for each scored set.
    """
    scores = [name for name in (history[0] if history else {}) if name.endswith(" PSNR")]
    figure = Figure(figsize=(10 if scores else 5, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(history) < 40 else None

    axes[0].plot(epochs, [row["loss"] for row in history], color="#0072B2", marker=marker, markersize=4)
    axes[0].set_ylabel("training loss (mean of the epoch)")
    for name in scores:
        values = [row[name] if math.isfinite(row[name]) else math.nan for row in history]
        axes[1].plot(epochs, values, marker=marker, markersize=4, label=name.removesuffix(" PSNR"))
    if scores:
        axes[1].set_ylabel("PSNR of Y (dB)")
        axes[1].legend(frameon=False)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure)
