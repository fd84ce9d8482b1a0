"""The field's picture: PSNR against latency, against mult-adds and against parameters, drawn from a table.

The table is that of compare.py (`tables.py`), fresh or read back from its JSON. Rows whose names end in " (published)"
are what publications print; all others were measured.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from reporting.figures import DPI, PADDING, rendered
from reporting.labels import Box, place_labels
from runtime.errors import UserError, printable
from runtime.files import read_regular, write_bytes

FORMS = ("png", "pdf")
CREATOR = "compare.py of the KRGN framework"  # in the files' metadata: whose they are
PUBLISHED = " (published)"

_SIZE, _LONGEST, _MARGIN = 9, 26, 3  # of labels: font size, characters, free points around them
_MEASURED = {"marker": "o", "color": "#0072B2", "markersize": 7}
_PRINTED = {"marker": "D", "color": "#D55E00", "markersize": 6, "markerfacecolor": "none"}


def _plain(value: float, _position: int | None = None) -> str:
    return f"{value:,.6g}"


def _count(value: float, _position: int | None = None) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}K" if value >= 1e3 else f"{value:g}"


class Cost(NamedTuple):
    """A cost as a panel shows it: the table's column, the axis's label and the form of its ticks."""

    column: str
    label: str
    ticks: Callable[[float, int | None], str]


COSTS = (
    Cost("latency (ms)", "latency (ms)", _plain),
    Cost("mult-adds (G)", "mult-adds (G)", _plain),
    Cost("parameters (deployed)", "parameters, deployed", _count),
)


class Point(NamedTuple):
    """A row of the table in one panel; PSNR in dB."""

    name: str
    cost: float
    psnr: float
    published: bool


def points(table: dict, set_name: str, column: str) -> list[Point]:
    """The rows that have a PSNR on the set and a cost in the column.

    Raises:
        UserError: if the table has no PSNR on this set.
    """
    columns, wanted = table["columns"], f"{set_name} PSNR"
    if wanted not in columns:
        there = ", ".join(name.removesuffix(" PSNR") for name in columns if name.endswith(" PSNR")) or "none"
        raise UserError(f"--plot {set_name}: the table has no PSNR on it, only on: {there}: name one of these sets")
    found = []
    for row in table["rows"] if column in columns else []:
        name, cost, psnr = (row[columns.index(title)] for title in (columns[0], column, wanted))
        numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (cost, psnr))
        if numbers and cost > 0:
            label = str(name).removesuffix(PUBLISHED)
            found.append(Point(label, cost, psnr, published=str(name).endswith(PUBLISHED)))
    return found


def tradeoff(table: dict, set_name: str) -> dict[str, bytes]:
    """The figure of a table as {"png": …, "pdf": …}, with a panel for each cost that a row has.

    Raises:
        UserError: if no row has a PSNR on the set and a cost.
    """
    panels = [(cost, found) for cost in COSTS if (found := points(table, set_name, cost.column))]
    if not panels:
        raise UserError(
            f"--plot {set_name}: no row has a PSNR on {set_name} and a cost: add networks, or --published, to the table"
        )
    figure = Figure(figsize=(10 / 3 * max(len(panels), 2), 4.2), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(**PADDING)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (cost, found) in zip(axes, panels, strict=True):
        _draw_points(axis, cost, found)
    lowest, highest = (f(point.psnr for _, found in panels for point in found) for f in (min, max))
    room = max(0.12 * (highest - lowest), 0.1)
    axes[0].set_ylim(lowest - room, highest + room)
    axes[0].set_ylabel(f"PSNR on {set_name}, {printable(table['title'])} (dB)", parse_math=False)
    _draw_legend(figure, [point for _, found in panels for point in found], _costless(table, set_name))
    figure.draw_without_rendering()  # labels are placed where the layout has put the points
    for axis, (_, found) in zip(axes, panels, strict=True):
        _draw_labels(axis, found)
    return {form: rendered(figure, form, creator=CREATOR) for form in FORMS}


def _draw_points(axis: Axes, cost: Cost, found: list[Point]) -> None:
    for point in found:
        style = _PRINTED if point.published else _MEASURED
        axis.plot(point.cost, point.psnr, linestyle="none", zorder=3, **style)
    low, high = (f(point.cost for point in found) for f in (min, max))
    room = max(1.5, (high / low) ** 0.2, (4 / (high / low)) ** 0.5)
    axis.set_xscale("log")
    axis.set_xlim(low / room, high * room)
    decades = math.log10(high / low * room**2)
    axis.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 3, 5) if decades < 1.2 else (1, 2, 5) if decades < 1.8 else (1,))
    )
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(cost.ticks))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(cost.label)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_legend(figure: Figure, found: list[Point], costless: list[str]) -> None:
    handles = []
    for published, style, label in ((False, _MEASURED, "measured here"), (True, _PRINTED, "as published")):
        if any(point.published == published for point in found):
            handles.append(Line2D([], [], linestyle="none", label=label, **style))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=_SIZE)
    if costless:
        note = Line2D([], [], linestyle="none", label=f"without a cost: {', '.join(costless)}")
        look = {"frameon": False, "fontsize": _SIZE, "labelcolor": "0.35", "handlelength": 0, "handletextpad": 0}
        (text,) = figure.legend(handles=[note], loc="outside upper right", **look).get_texts()
        text.set_parse_math(False)


def _costless(table: dict, set_name: str) -> list[str]:
    """What bicubic scores: measured rows with a PSNR and no cost at all."""
    columns = table["columns"]
    costs = [columns.index(cost.column) for cost in COSTS if cost.column in columns]
    rows = [row for row in table["rows"] if not str(row[0]).endswith(PUBLISHED)]
    scored = [(row[0], row[columns.index(f"{set_name} PSNR")]) for row in rows if all(row[at] is None for at in costs)]
    return [f"{_short(str(name))} {psnr:.2f} dB" for name, psnr in scored if isinstance(psnr, float)]


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _draw_labels(axis: Axes, found: list[Point]) -> None:
    """Names beside the points, placed in typographic points."""
    unit = 72 / axis.figure.dpi
    frame = axis.get_window_extent()
    area = Box(frame.x0 * unit, frame.y0 * unit, frame.x1 * unit, frame.y1 * unit)
    texts = []
    for point in found:
        style = _PRINTED if point.published else _MEASURED
        text = axis.annotate(
            _short(point.name),
            (point.cost, point.psnr),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SIZE,
            color=style["color"],
            parse_math=False,
            zorder=4,
        )
        text.set_in_layout(False)
        texts.append(text)
    at = axis.transData.transform([(point.cost, point.psnr) for point in found]) * unit
    extents = [text.get_window_extent() for text in texts]
    sizes = [(extent.width * unit + _MARGIN, extent.height * unit) for extent in extents]
    for text, point, place, start in zip(texts, found, place_labels(at.tolist(), sizes, area), at, strict=True):
        text.set_position((place.dx, place.dy))
        if place.joined:
            _draw_line(axis, text, start / unit, "#D55E00" if point.published else "#0072B2")


def _draw_line(axis: Axes, text, start, color: str) -> None:
    """A thin line from a point, in pixels, to the nearest edge of its label."""
    extent = text.get_window_extent()
    end = (min(max(start[0], extent.x0), extent.x1), min(max(start[1], extent.y0), extent.y1))
    (x0, y0), (x1, y1) = axis.transData.inverted().transform([start, end])
    axis.plot([x0, x1], [y0, y1], color=color, linewidth=0.7, alpha=0.6, zorder=2, scalex=False, scaley=False)


# --- files ---


def figure_paths(stem: str, set_name: str) -> list[Path]:
    """The files of a figure: stem-<Set>.png and .pdf."""
    return [Path(f"{stem}-{set_name}.{form}") for form in FORMS]


def refuse_foreign_figures(stem: str, set_names: tuple[str, ...]) -> None:
    """UserError if a file that this program did not draw is in the way of a figure."""
    for path in (path for set_name in set_names for path in figure_paths(stem, set_name)):
        if path.exists() and not _is_ours(path):
            raise UserError(
                f"{path}: exists and was not drawn by compare.py, so it is left alone: choose another --out"
            )


def _is_ours(path: Path) -> bool:
    try:
        return CREATOR.encode() in read_regular(path, 2**26)
    except (OSError, UserError):
        return False


def write_figures(table: dict, stem: str, set_names: tuple[str, ...]) -> list[Path]:
    """Draws a figure for each set beside the table; returns the files.

    Raises:
        UserError: as `tradeoff` and `refuse_foreign_figures`; then no figure is written.
    """
    refuse_foreign_figures(stem, set_names)
    figures = {set_name: tradeoff(table, set_name) for set_name in set_names}
    paths = []
    for set_name, contents in figures.items():
        for path in figure_paths(stem, set_name):
            write_bytes(path, contents[path.suffix[1:]])
            paths.append(path)
    return paths
