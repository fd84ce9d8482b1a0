"""A table and its notes as text for the terminal, Markdown, CSV, JSON and LaTeX.

A table is a dict {"title", "columns", "rows", "notes"}: the first column names the row; a cell is text, a number, None.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from runtime.errors import UserError, printable
from runtime.files import read_json, read_regular, write_bytes

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
        return {"title", "columns", "rows", "notes"} <= read_json(path).keys()
    except (UserError, AttributeError):
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
    words = [printable(header).split() for header in headers]
    depth = max(map(len, words), default=0)
    head = zip(*([""] * (depth - len(column)) + column for column in words), strict=True)
    lines = [[printable(cell) for cell in line] for line in (*head, *rows)]
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
    return "\n".join([printable(table["title"]), tabulate(rows, header), "", *map(printable, table["notes"])])


def as_markdown(table: dict) -> str:
    """A table and its notes as a list."""
    header, *rows = cells(table)
    rows = [[_markdown(cell) for cell in row] for row in rows]
    lines = [[_markdown(name) for name in header], ["---"] + ["---:"] * (len(header) - 1), *rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"- {_markdown(note)}" for note in table["notes"])
    return f"### {_markdown(table['title'])}\n\n{body}\n\n{notes}\n"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, links, code or emphasis, and no end of a cell."""
    return (
        re.sub(r"([\\`*\[\]|<>]|(?<!\w)_|_(?!\w))", r"\\\1", printable(text))
        .replace("\\<", "&lt;")
        .replace("\\>", "&gt;")
    )


def as_csv(table: dict) -> str:
    """Unrounded numbers, empty cells for what was not measured; no notes."""
    return csv_text([table["columns"], *table["rows"]])


def csv_text(rows: Iterable[Sequence]) -> str:
    """Rows of text, numbers and None as CSV. `read_csv` gives the text back as it was.

    Text that a spreadsheet would take for a formula, and run, begins with an apostrophe, which spreadsheets take away.
    """
    text = io.StringIO()
    csv.writer(text).writerows([_inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def _inert(text: str) -> str:
    if text.lstrip()[:1] not in _FORMULA and text[:1] not in ("\t", "\r", "\n"):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text  # a number


_FORMULA = tuple("=+-@'\uff1d\uff0b\uff0d\uff20")  # the last four are full width


def read_csv(path: Path, needed: Sequence[str], *, most: int = 64 * 2**20) -> list[dict[str, str]]:
    """The rows of a CSV file as `csv_text` writes it, by their columns' names.

    Args:
        needed: columns that must be there.
        most: bytes of the file.

    Raises:
        UserError: if the file is missing, too large, no regular file or no CSV, or if a column is missing or there
            twice, or a row has more or fewer cells than there are columns.
    """
    try:
        text = read_regular(path, most).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give a file that may be read") from None
    except ValueError:
        raise UserError(f"{path}: is no text in UTF-8: give the table as it was written") from None
    before = csv.field_size_limit(most)
    try:
        columns, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV ({error}): give the table as it was written") from None
    finally:
        csv.field_size_limit(before)
    rows = [row for row in rows if row]
    columns = [name.removeprefix("'") for name in columns]
    said = f"expected a table with {', '.join(needed)}, as it was written"
    if missing := [name for name in needed if columns.count(name) != 1]:
        raise UserError(f"{path}: has no column {missing[0]}, or two: {said}")
    if uneven := [number for number, row in enumerate(rows, start=2) if len(row) != len(columns)]:
        raise UserError(f"{path}: row {uneven[0]} has another number of cells than there are columns: {said}")
    return [dict(zip(columns, (cell.removeprefix("'") for cell in row), strict=True)) for row in rows]


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
    lines = [f"% {printable(line)}" for line in (*table["notes"], " & ".join(header))]
    for row, values in zip(rows, table["rows"], strict=True):
        escaped = [_latex(cell) for cell in row]
        marked = [
            rf"\textbf{{{cell}}}" if index in best and values[index] == best[index] else cell or "--"
            for index, cell in enumerate(escaped)
        ]
        lines.append(" & ".join(marked) + r" \\")
    return "\n".join(lines) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}"} | {character: f"\\{character}" for character in "_%&#${}"}


def _latex(text: str) -> str:
    """Text that LaTeX prints as it is: no command, group, comment or mathematics."""
    return "".join(_LATEX.get(character, character) for character in printable(text))
