"""Figures as the bytes of their files, drawn by matplotlib without a display."""

import io
import logging
import math
import os

# Notebooks export a backend that a program started from them does not have, and matplotlib's import would fail.
os.environ["MPLBACKEND"] = "agg"
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns about folders that it cannot write

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

DPI = 120
PADDING = {"w_pad": 0.08, "h_pad": 0.08}  # inches


def rendered(figure: Figure, form: str = "png", dpi: int = DPI, creator: str | None = None) -> bytes:
    """A figure as the content of a file, "png" or "pdf"; `creator` is named in its metadata."""
    buffer = io.BytesIO()
    figure.get_layout_engine().set(**PADDING)
    metadata = {"Software" if form == "png" else "Creator": creator} if creator else None
    # Publishers refuse Type 3 fonts, matplotlib's default.
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format=form, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def curves(history: list[dict]) -> dict[str, bytes]:
    """Loss and, where there are scores, PSNR over the epochs, as {"png": …, "pdf": …}.

    Args:
        history: a dict per epoch with "epoch", "loss", and "<Set> PSNR" in dB for each set that was scored then. The
            curve of a set joins the epochs in which it was scored.
    """
    scores = [name for name in dict.fromkeys(name for row in history for name in row) if name.endswith(" PSNR")]
    figure = Figure(figsize=(10 if scores else 5, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(history) < 40 else None

    axes[0].plot(epochs, [row["loss"] for row in history], color="#0072B2", marker=marker, markersize=4)
    axes[0].set_ylabel("training loss (mean of the epoch)")
    for name in scores:
        scored = {row["epoch"]: row[name] if math.isfinite(row[name]) else math.nan for row in history if name in row}
        few = "o" if len(scored) < 40 else None
        axes[1].plot(list(scored), list(scored.values()), marker=few, markersize=4, label=name.removesuffix(" PSNR"))
    if scores:
        axes[1].set_ylabel("PSNR of Y (dB)")
        axes[1].legend(frameon=False)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.yaxis.get_major_formatter().set_useOffset(False)  # scores that hardly differ: 29.024, not 0.004 + 2.902e1
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return {form: rendered(figure, form) for form in ("png", "pdf")}


def kernel_matrices(matrices: dict[str, list], blocks: list[int], *, vmax: float) -> bytes:
    """The KRGN paper's Figure 4: divergence matrices, a row per kind of kernel, a column per block, one colour scale.

    Args:
        matrices: row label -> a matrix (n, n) for each block.
        vmax: the divergence at the dark end of the scale.
    """
    n = len(next(iter(matrices.values()))[0])
    figure = Figure(figsize=(2.6 * len(blocks) + 1.2, 2.5 * len(matrices) + 0.5), layout="constrained")
    grid = figure.subplots(len(matrices), len(blocks), squeeze=False)
    ticks = range(0, n, 4)
    for row, (label, row_matrices) in enumerate(matrices.items()):
        for axis, block, matrix in zip(grid[row], blocks, row_matrices, strict=True):
            image = axis.imshow(matrix, cmap="YlGnBu", vmin=0, vmax=vmax, interpolation="nearest")
            axis.set_xticks(ticks, labels=[str(tick) for tick in ticks], rotation=90, fontsize=5)
            axis.set_yticks(ticks, labels=[str(tick) for tick in ticks], fontsize=5)
            if row == 0:
                axis.set_title(f"block {block}", fontsize=9)
        grid[row][0].set_ylabel(f"${label}$", fontsize=11)
    figure.colorbar(image, ax=grid, shrink=0.9, label="KL divergence", extend="max")
    return rendered(figure)


def crops(rows: list[tuple[str, list[tuple[str, np.ndarray]]]]) -> bytes:
    """The same crop of several images side by side, a row for each photograph.

    Args:
        rows: (name of the photograph, [(label, uint8 (H, W, 3)), …]); labels may have several lines.
    """
    columns = len(rows[0][1])
    figure = Figure(figsize=(2.6 * columns, 2.95 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (name, images) in zip(grid, rows, strict=True):
        for axis, (label, pixels) in zip(axes, images, strict=True):
            # No resampling, so that a method's own blur and ringing are seen.
            axis.imshow(pixels, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(label, fontsize=9)
        axes[0].set_ylabel(name, fontsize=9)
    return rendered(figure)


def crop_comparison(
    name: str,
    whole: np.ndarray,
    box: tuple[int, int, int, int],
    crops: list[tuple[str, list[tuple[str, bool]], np.ndarray]],
) -> dict[str, bytes]:
    """The comparison that papers print: an image with a box, and crops of the box in two rows beside it.

    Args:
        name: caption of the whole image.
        whole: uint8 (H, W, 3).
        box: (x, y, width, height) in its pixels.
        crops: (label, [(score, whether it is the best), …], uint8 (height, width, 3)) of each method.

    Returns:
        {"png": …, "pdf": …}.
    """
    x, y, width, height = box
    columns = math.ceil(len(crops) / 2)
    crop_width = 1.5
    rows_height = 2 * (crop_width * height / width + 0.42)  # two lines of text under each crop
    whole_width = min(max(rows_height - 0.25, 1.0) * whole.shape[1] / whole.shape[0], 6.0)
    size = (whole_width + columns * (crop_width + 0.1), rows_height)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(2, columns + 1, width_ratios=[whole_width, *[crop_width] * columns])

    axis = figure.add_subplot(grid[:, 0])
    axis.imshow(whole, interpolation="none")  # "none" puts the pixels themselves into a PDF
    # Two strokes are visible on any background.
    for color, line_width in (("black", 2.4), ("#ffd400", 1.2)):
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=color, linewidth=line_width))
    axis.set_xlabel(name, fontsize=8)
    axes = [axis]

    for at, (label, scores, pixels) in enumerate(crops):
        axis = figure.add_subplot(grid[at // columns, at % columns + 1])
        # PDF viewers smooth what they enlarge; enlarged here, pixels stay squares.
        factor = math.ceil(480 / max(width, height))
        axis.imshow(pixels.repeat(factor, axis=0).repeat(factor, axis=1), interpolation="none")
        printed = " / ".join(rf"$\mathbf{{{text}}}$" if best else text for text, best in scores)
        axis.set_xlabel(label.replace("$", r"\$") + "\n" + printed, fontsize=8)
        axes.append(axis)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    return {form: rendered(figure, form, dpi=300) for form in ("png", "pdf")}


# Okabe and Ito's colours, which colour-blind readers can tell apart; markers and dashes do so in print.
ROW_STYLES = {
    "W_b": {"color": "#0072B2", "marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    "W_t": {"color": "#D55E00", "marker": "s", "linestyle": "-"},
    "W": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
}


def layers(values: dict[str, dict[str, list[float]]], per_block: int) -> bytes:
    """A panel per measure: its value in every layer, a line per kind of kernel.

    Args:
        values: measure -> row label ("W_b", "W_t" or "W") -> a value for each layer in the order of execution.
        per_block: layers in a block; vertical lines separate the blocks.
    """
    figure = Figure(figsize=(10, 2.7 * len(values)), layout="constrained")
    for axis, (measure, rows) in zip(figure.subplots(len(values), 1, squeeze=False)[:, 0], values.items(), strict=True):
        for label, row in rows.items():
            axis.plot(range(1, len(row) + 1), row, label=f"${label}$", linewidth=1, markersize=3, **ROW_STYLES[label])
        n_layers = len(next(iter(rows.values())))
        for end in range(per_block, n_layers, per_block):
            axis.axvline(end + 0.5, color="0.8", linewidth=0.8, zorder=0)
        axis.set_ylabel(measure)
        axis.set_xlim(0.5, n_layers + 0.5)
        axis.set_ylim(0, 1.05 * axis.dataLim.y1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, ncols=len(rows), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    axis.set_xlabel("layer, in the order of execution; a line after each block")
    return rendered(figure)


def growth(epochs: list[float], rows: dict[str, list[float]], xlabel: str) -> bytes:
    """Mean divergence of all layers over the epochs, a line per kind of kernel."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    for label, row in rows.items():
        axis.plot(epochs, row, label=f"${label}$", **ROW_STYLES[label])
    axis.set_xlabel(xlabel)
    axis.set_ylabel("mean KL divergence of all layers")
    axis.set_ylim(0, 1.05 * axis.dataLim.y1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return rendered(figure)


def receptive_field(share: np.ndarray, half: int, radius: int) -> bytes:
    """How much each input pixel moves the middle output pixel, on a logarithmic scale.

    Args:
        share: (H, W) with the sum 1; values below 1e-5 of the largest are drawn as that.
        half: LR pixels from the middle to the side of the square that holds 95 % of the sum.
        radius: LR pixels that local operators reach; what lies beyond is due to the attention.
    """
    figure = Figure(figsize=(5.2, 4.3), layout="constrained")
    axis = figure.subplots()
    middle = share.shape[0] // 2
    low = max(share.max() * 1e-5, share.min())
    image = axis.imshow(
        share.clip(low),
        norm=LogNorm(low, share.max()),
        cmap="cividis",
        extent=(-middle - 0.5, middle + 0.5, middle + 0.5, -middle - 0.5),
        interpolation="nearest",
    )
    for side, style, label in ((half, "-", "95 %"), (radius, "--", "reach of the convolutions")):
        if side < middle:
            box = [-side - 0.5, side + 0.5]
            axis.plot(
                [box[0], box[1], box[1], box[0], box[0]],
                [box[0], box[0], box[1], box[1], box[0]],
                style,
                color="white",
                label=label,
            )
    if axis.lines:
        axis.legend(loc="lower right", fontsize=8, facecolor="black", labelcolor="white", framealpha=0.6)
    axis.set_xlabel("LR pixels from the middle")
    figure.colorbar(image, label="share of the output's gradient")
    return rendered(figure)


def spread(values: dict[str, list[float]], label: str) -> bytes:
    """A row of points per name, one per seed, with their mean as a line."""
    figure = Figure(figsize=(7, 0.5 * len(values) + 1), layout="constrained")
    axis = figure.subplots()
    for row, points in enumerate(values.values()):
        axis.plot(points, [row] * len(points), "o", color="#0072B2", alpha=0.7)
        axis.plot([sum(points) / len(points)] * 2, [row - 0.3, row + 0.3], color="black")
    axis.set_yticks(range(len(values)), labels=list(values))
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    return rendered(figure)
