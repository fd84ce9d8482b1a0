"""A table and its notes as text for the terminal, Markdown, CSV, JSON and LaTeX.

A table is a dict {"title", "columns", "rows", "notes"}: the first column names the row; a cell is text, a number, None.
"""

import csv
import io
import json
import math
import os
from pathlib import Path

from errors import UserError
from utility import write_bytes

SUFFIXES = ("md", "csv", "json", "tex")


def write_all(table: dict, stem: str) -> list[Path]:
    """Writes the table as stem.md, .csv, .json and .tex; returns the paths.

    Raises:
        UserError: as `refuse_foreign`.
    """
    refuse_foreign(stem)
    paths = [Path(f"{stem}.{suffix}") for suffix in SUFFIXES]
    for path, form in zip(paths, (as_markdown, as_csv, as_json, as_latex), strict=True):
        write_bytes(path, form(table).encode())
    return paths


def refuse_foreign(stem: str, *more: str) -> None:
    """Makes the table's folder; for programs to call before they measure for minutes.

    Args:
        more: suffixes of what is written beside the table.

    Raises:
        UserError: if there are files of something else in the way, or the folder cannot be written.
    """
    if not os.path.basename(stem):
        raise UserError(f"--out {stem}: is a folder, expected what the files' names begin with, as in {stem}table")
    there = [path for path in (Path(f"{stem}.{suffix}") for suffix in (*SUFFIXES, *more)) if path.exists()]
    if there and not _is_ours(Path(f"{stem}.json")):
        raise UserError(f"{there[0]}: exists and is no table of this program, so it is left alone: give another --out")
    folder = Path(stem).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}): give another --out") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: may not be written: give another --out")


def _is_ours(path: Path) -> bool:
    try:
        return {"title", "columns", "rows", "notes"} <= json.loads(path.read_text()).keys()
    except (OSError, ValueError, AttributeError):
        return False


def shown(value, column: str) -> str:
    """A cell as people read it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if column.endswith("SSIM"):
        return f"{value:.4f}"
    return f"{value:.1f}" if column in ("latency (ms)", "90th percentile (ms)", "memory (MiB)") else f"{value:.2f}"


def cells(table: dict) -> list[list[str]]:
    """The header and all rows as text."""
    columns = table["columns"]
    rows = [[shown(value, column) for value, column in zip(row, columns, strict=True)] for row in table["rows"]]
    return [columns, *rows]


def tabulate(rows: list[list[str]], headers: list[str]) -> str:
    """Aligned columns for the terminal, the first one to the left; a header takes as many lines as it has words."""
    words = [str(header).split() for header in headers]
    depth = max(map(len, words), default=0)
    head = zip(*([""] * (depth - len(column)) + column for column in words), strict=True)
    lines = [[str(cell) for cell in line] for line in (*head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    printed = []
    for line in lines:
        aligned = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        printed.append("  ".join([line[0].ljust(widths[0]), *aligned[1:]]).rstrip())
    printed.insert(depth, "-" * max(map(len, printed), default=0))
    return "\n".join(printed)


def as_text(table: dict) -> str:
    """For the terminal."""
    header, *rows = cells(table)
    return "\n".join([table["title"], tabulate(rows, header), "", *table["notes"]])


def as_markdown(table: dict) -> str:
    """A table and its notes as a list."""
    header, *rows = cells(table)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"### {table['title']}\n\n{body}\n\n" + "\n".join(f"- {note}" for note in table["notes"]) + "\n"


def as_csv(table: dict) -> str:
    """Unrounded numbers, empty cells for what was not measured; no notes."""
    text = io.StringIO()
    csv.writer(text).writerows([table["columns"], *table["rows"]])
    return text.getvalue()


def as_json(table: dict) -> str:
    """The table as it is; a number that is no finite one becomes text."""
    rows = [[str(v) if isinstance(v, float) and not math.isfinite(v) else v for v in row] for row in table["rows"]]
    return json.dumps(table | {"rows": rows}, indent=1)


def as_latex(table: dict) -> str:
    """Rows for a paper's table, best scores bold, with the header and the notes as comments."""
    header, *rows = cells(table)
    best = {}
    for index, column in enumerate(header):
        values = [row[index] for row in table["rows"] if isinstance(row[index], float)]
        if column.endswith(("PSNR", "SSIM")) and values:
            best[index] = max(values)
    lines = [f"% {note}" for note in table["notes"]] + ["% " + " & ".join(header)]
    for row, values in zip(rows, table["rows"], strict=True):
        escaped = [cell.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&") for cell in row]
        marked = [
            rf"\textbf{{{cell}}}" if index in best and values[index] == best[index] else cell or "--"
            for index, cell in enumerate(escaped)
        ]
        lines.append(" & ".join(marked) + r" \\")
    return "\n".join(lines) + "\n"
