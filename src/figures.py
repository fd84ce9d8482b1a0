"""Figures as the bytes of their files, drawn by matplotlib without a display."""

import io
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

DPI = 120


def rendered(figure: Figure, form: str = "png", dpi: int = DPI) -> bytes:
    """A figure as the bytes of a file, "png" or "pdf"."""
    buffer = io.BytesIO()
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    # Publishers refuse matplotlib's default, Type 3 fonts.
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format=form, dpi=dpi)
    return buffer.getvalue()


def curves(history: list[dict]) -> dict[str, bytes]:
    """Loss and, where there are scores, PSNR over the epochs, as {"png": …, "pdf": …}.

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
    return {form: rendered(figure, form) for form in ("png", "pdf")}


def kernel_matrices(matrices: dict[str, list], blocks: list[int], *, vmax: float) -> bytes:
    """Figure 4: a row of divergence matrices for each kind of kernel, a column for each block, one colour scale.

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
            # Pixels as they are, so that a method's blur or ringing is what is seen, not the figure's own resampling.
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
    """The comparison that papers print: an image with a box, beside it the box in two rows, as {"png": …, "pdf": …}.

    Args:
        name: what stands under the whole image.
        whole: uint8 (H, W, 3).
        box: (x, y, width, height) in its pixels.
        crops: (label, [(score, whether it is the best), …], uint8 (height, width, 3)) of each method.
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
    # Two strokes are seen on any ground.
    for color, line_width in (("black", 2.4), ("#ffd400", 1.2)):
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=color, linewidth=line_width))
    axis.set_xlabel(name, fontsize=8)
    axes = [axis]

    for at, (label, scores, pixels) in enumerate(crops):
        axis = figure.add_subplot(grid[at // columns, at % columns + 1])
        # Viewers of PDF smooth what they enlarge; pixels that are large already stay squares.
        factor = math.ceil(480 / max(width, height))
        axis.imshow(pixels.repeat(factor, axis=0).repeat(factor, axis=1), interpolation="none")
        said = " / ".join(rf"$\mathbf{{{text}}}$" if best else text for text, best in scores)
        axis.set_xlabel(label.replace("$", r"\$") + "\n" + said, fontsize=8)
        axes.append(axis)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    return {form: rendered(figure, form, dpi=300) for form in ("png", "pdf")}
