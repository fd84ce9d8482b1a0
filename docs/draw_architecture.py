"""Draws imgs/architecture.svg and imgs/architecture.png: the network, its blocks, the recalibrated kernel and its fold.

    python docs/draw_architecture.py

Lengths are in pixels of a picture that is 900 pixels wide, y pointing down. Both files have an opaque light background,
so that they can be read on a dark page. A second run writes the same files.
"""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

WIDTH, HEIGHT = 900, 884
INK, MUTED, PAPER, PANEL = "#1f2933", "#5b6773", "#ffffff", "#f5f7fa"
IMAGE, PLAIN, BLOCK, RECALIBRATED = "#e4e7eb", "#dbeafe", "#dcf2e4", "#fde3c0"
ARROW = {"arrowstyle": "-|>,head_width=0.22,head_length=0.45", "color": INK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}


def _times(words: str) -> str:
    """3x3 with a multiplication sign."""
    return re.sub(r"(?<=\d)x(?=\d)", "\N{MULTIPLICATION SIGN}", words)


class Drawing:
    """Boxes, lines and text on one set of axes."""

    def __init__(self, axes: Axes):
        self.axes = axes

    def text(self, x, y, words, size=8.5, color=INK, align="center", **style):
        style |= {"size": size, "color": color, "ha": align, "va": "center", "linespacing": 1.25, "zorder": 5}
        return self.axes.text(x, y, _times(words), **style)

    def panel(self, x, y, width, height, title, note):
        """A background with a title in its upper left corner and a note beside the title."""
        style = FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=8", fc=PANEL, ec="#d5dbe1", lw=0.8)
        self.axes.add_patch(style)
        words = self.text(x + 12, y + 17, title, 10.5, align="left", weight="bold")
        self.axes.annotate(
            _times(note), (1, 0), (7, 2), xycoords=words, textcoords="offset points", size=8.5, color=MUTED
        )

    def box(self, x, y, width, height, words, color, size=8.5):
        """A box around the point (x, y)."""
        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(
            FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=4", fc=color, ec=INK, zorder=3)
        )
        self.text(x, y, words, size)

    def line(self, *points):
        self.axes.plot(*zip(*points, strict=True), color=INK, lw=1.2, solid_joinstyle="round", solid_capstyle="butt")

    def arrow(self, *points):
        """A line through the points with an arrow's head at the last one."""
        if len(points) > 2:
            self.line(*points[:-1])
        self.axes.annotate("", points[-1], points[-2], arrowprops=ARROW)

    def dot(self, x, y):
        """A place where a line branches."""
        self.axes.add_patch(Circle((x, y), 2.4, color=INK, zorder=4))

    def plus(self, x, y):
        """A sum."""
        self.axes.add_patch(Circle((x, y), 9, fc=PAPER, ec=INK, lw=1.2, zorder=3))
        self.line((x - 5, y), (x + 5, y))
        self.line((x, y - 5), (x, y + 5))
        for stroke in self.axes.lines[-2:]:
            stroke.set_zorder(4)

    def kernel(self, x, y, values, cell=9):
        """A 3x3 kernel around the point (x, y); values in 0..1, 1 is dark."""
        shades = mpl.colormaps["YlGnBu"](0.08 + 0.8 * values)
        for row, column in np.ndindex(3, 3):
            corner = (x + (column - 1.5) * cell, y + (row - 1.5) * cell)
            self.axes.add_patch(Rectangle(corner, cell, cell, fc=shades[row, column], ec=PAPER, lw=0.6, zorder=3))
        self.axes.add_patch(
            Rectangle((x - 1.5 * cell, y - 1.5 * cell), 3 * cell, 3 * cell, fc="none", ec=INK, zorder=4)
        )


def network(draw: Drawing) -> None:
    """The whole network: SFE, the chain of PMRBs, DFF, upsampling."""
    draw.panel(
        8,
        8,
        884,
        204,
        "KRGN",
        "C = 64 feature channels; the DIV2K mean is subtracted at the start and added at the end",
    )
    y, over, under = 122, 66, 190
    draw.box(40, y, 42, 42, "LR", IMAGE)
    draw.box(118, y, 70, 50, "SFE\n3x3 conv", PLAIN)
    for x, number in ((225, "1"), (325, "2"), (470, "9")):
        draw.box(x, y, 68, 50, f"PMRB {number}", BLOCK)
    draw.box(585, y, 116, 74, "DFF\nconcat, 1x1 conv\nLeakyReLU\n3x3 conv", PLAIN)
    draw.plus(672, y)
    draw.box(752, y, 102, 50, "upsampling\n3x3 conv\npixel shuffle", PLAIN)
    draw.box(855, y, 50, 50, "SR", IMAGE)
    draw.arrow((61, y), (83, y))
    for start, end in ((153, 191), (259, 291), (504, 527), (643, 663), (681, 701), (803, 830)):
        draw.arrow((start, y), (end, y))
    draw.line((359, y), (382, y))
    draw.text(395, y - 2, "…", 14)
    draw.arrow((408, y), (436, y))
    for x in (169, 273, 370, 416):
        draw.dot(x, y)
        draw.line((x, y), (x, over))
    draw.arrow((169, over), (585, over), (585, y - 37))
    draw.text(371, over - 13, "the SFE output and the output of every PMRB", 8.5, MUTED)
    draw.arrow((169, y), (169, under), (672, under), (672, y + 9))
    draw.text(347, y + 44, "HFT: a chain of 9 PMRBs", 8.5, MUTED)
    draw.text(455, under - 10, "skip", 8.5, MUTED)


def pmrb(draw: Drawing) -> None:
    """A PMRB: three RCGs, four taps, their fusion, the attention."""
    draw.panel(8, 220, 884, 208, "PMRB", "progressive multi-scale recalibration block")
    y, over, tap, fusion = 300, 256, 352, 401
    draw.arrow((22, y), (130, y))
    for x, end in ((165, 278), (313, 426), (461, None)):
        draw.box(x, y, 70, 42, "RCG", BLOCK)
        if end:
            draw.arrow((x + 35, y), (end, y))
    draw.line((496, y), (535, y))
    for x in (92, 239, 387, 535):
        last = x == 535
        if not last:
            draw.dot(x, y)
        draw.arrow((x, y), (x, tap - 18))
        draw.box(x, tap, 120, 36, f"{'3x3' if last else '1x1'} conv C → C/2\nLeakyReLU", PLAIN)
        draw.arrow((x, tap + 18), (x, fusion - 14))
    draw.box(313.5, fusion, 563, 28, "concat, 1x1 conv 2C → C, LeakyReLU", PLAIN)
    draw.arrow((595, fusion), (640, fusion))
    draw.box(685, fusion, 90, 40, "CCA\nattention", PLAIN)
    draw.arrow((730, fusion), (831, fusion))
    draw.plus(840, fusion)
    draw.arrow((849, fusion), (878, fusion))
    draw.dot(44, y)
    draw.arrow((44, y), (44, over), (840, over), (840, fusion - 9))
    draw.text(618, 292, "CCA, contrast-aware", 8.5, MUTED, "left")
    draw.text(618, 307, "channel attention: std + mean", 8.5, MUTED, "left")
    draw.text(618, 322, "of each channel → 1x1 conv", 8.5, MUTED, "left")
    draw.text(618, 337, "C → C/8, LeakyReLU, 1x1 conv", 8.5, MUTED, "left")
    draw.text(618, 352, "C/8 → C, sigmoid → a factor", 8.5, MUTED, "left")


def rcg_and_cffb(draw: Drawing) -> None:
    """An RCG, three CFFBs and a skip, and a CFFB, two convolutions side by side."""
    draw.panel(8, 436, 388, 154, "RCG", "residual CFFB group")
    y, over = 530, 482
    draw.arrow((22, y), (68, y))
    for x, end in ((101, 154), (187, 240), (273, 325)):
        draw.box(x, y, 66, 42, "CFFB", RECALIBRATED)
        draw.arrow((x + 33, y), (end, y))
    draw.plus(334, y)
    draw.arrow((343, y), (384, y))
    draw.dot(44, y)
    draw.arrow((44, y), (44, over), (334, over), (334, y - 9))

    draw.panel(404, 436, 488, 154, "CFFB", "two 3x3 convolutions on the same input, summed")
    draw.line((418, y), (450, y))
    draw.dot(450, y)
    for branch, dilation in ((496, 1), (563, 3)):
        draw.arrow((450, y), (450, branch), (486, branch))
        words = f"depth-wise 3x3 conv\nrecalibrated, dilation {dilation}"
        draw.box(566, branch, 160, 40, words, RECALIBRATED)
        draw.arrow((646, branch), (684, branch))
        draw.box(721, branch, 74, 40, "PReLU", PLAIN)
        draw.arrow((758, branch), (810, branch), (810, y - 9 if branch < y else y + 9))
    draw.plus(810, y)
    draw.arrow((819, y), (878, y))


def kernels(draw: Drawing) -> None:
    """The recalibrated kernel of equation (1), and its fold."""
    draw.panel(
        8, 598, 884, 278, "Recalibrated kernel", "each channel's kernel is computed from the kernels of all channels"
    )
    rng = np.random.default_rng(5)
    rows = (682, 726, 800)
    basis = [np.clip(0.42 + 0.10 * rng.standard_normal((3, 3)), 0, 1) for _ in rows]
    change = [np.clip(0.45 + 0.35 * rng.standard_normal((3, 3)), 0, 1) for _ in rows]
    columns = {"basis": 70, "change": 270, "sum": 385}
    for y, own, new in zip(rows, basis, change, strict=True):
        for other in rows:
            draw.axes.plot(
                (columns["basis"] + 18, columns["change"] - 18), (other, y), color="#d9822b", lw=0.9, alpha=0.75
            )
        draw.kernel(columns["basis"], y, own)
        draw.kernel(columns["change"], y, new)
        draw.kernel(columns["sum"], y, np.clip(0.35 * own + 0.65 * new, 0, 1))
    for x in columns.values():
        draw.text(x, 764, "⋮", 13)
    draw.box(170, 741, 74, 46, "T\n3x3 conv", RECALIBRATED)
    draw.text(columns["basis"], 648, "basis $W_b$", 9.5)
    draw.text(columns["change"], 648, "$T(W_b)$", 9.5)
    draw.text(columns["sum"], 648, "$W_t$", 9.5)
    draw.text(327, 730, "$+\\,W_b$", 9.5)
    draw.arrow((300, 746), (356, 746))
    draw.text(228, 842, "$W_t = W_b + T(W_b)$", 11)
    draw.text(228, 862, "T is a convolution over the kernels, without bias, zero at the start", 8.5, MUTED)

    draw.line((448, 640), (448, 862))
    draw.axes.lines[-1].set(color="#d5dbe1", lw=1)
    for y, title, note, words, color in (
        (
            690,
            "in training",
            "x4: 6,499,984 parameters",
            "conv with $W_t$,\ncomputed at each step\nfrom $W_b$ and T",
            RECALIBRATED,
        ),
        (815, "deployed", "x4: 528,016 parameters", "plain conv with\nthe constant kernel $W_t$", PLAIN),
    ):
        draw.text(478, y - 6, title, 9.5, align="left", weight="bold")
        draw.text(478, y + 11, note, 8, MUTED, "left")
        draw.arrow((650, y), (682, y))
        draw.box(764, y, 164, 60, words, color)
        draw.arrow((846, y), (870, y))
        draw.text(641, y, "x", 9.5, style="italic")
        draw.text(879, y, "y", 9.5, style="italic")
    draw.arrow((764, 720), (764, 785))
    draw.text(752, 752, "fold: the same function", 8.5, align="right", weight="bold")


def main() -> None:
    style = {
        "font.family": "DejaVu Sans",
        "mathtext.fontset": "dejavusans",
        "svg.hashsalt": "krgn",
        "svg.fonttype": "path",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), facecolor=PAPER)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
        axes.axis("off")
        draw = Drawing(axes)
        for part in (network, pmrb, rcg_and_cffb, kernels):
            part(draw)
        images = Path(__file__).resolve().parent.parent / "imgs"
        figure.savefig(images / "architecture.svg", metadata={"Date": None})
        figure.savefig(images / "architecture.png", dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main()
