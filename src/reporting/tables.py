"""A table and its notes as text for the terminal, HTML, Markdown, CSV, JSON and LaTeX.

A table is a dict {"title", "columns", "rows", "notes"}. The first column names the row; a cell is text, a number or
None. In HTML and LaTeX the best PSNR and SSIM are bold.
"""

import html
import json
import math
import os
import re
from pathlib import Path

from tabulate import tabulate

from runtime.csvfiles import csv_text
from runtime.errors import UserError, printable
from runtime.files import read_json, write_bytes

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
    """Makes the table's folder; programs call this before they measure for minutes.

    Args:
        more: suffixes of what is written beside the table.

    Raises:
        UserError: if files of something else are in the way, or the folder cannot be written.
    """
    make_folder(stem)
    there = [path for path in (Path(f"{stem}.{suffix}") for suffix in (*SUFFIXES, *more)) if path.exists()]
    if there and not _is_ours(Path(f"{stem}.json")):
        raise UserError(
            f"{there[0]}: exists and is no table of this program, so it is left alone: choose another --out"
        )


def make_folder(stem: str) -> None:
    """Makes the folder of the files whose names begin with `stem`.

    Raises:
        UserError: if `stem` is a folder's name, or the folder cannot be made or written.
    """
    if not os.path.basename(stem):
        raise UserError(f"--out {stem}: is a folder, expected the beginning of the files' names, as in {stem}table")
    folder = Path(stem).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}): choose another --out") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: is not writable: choose another --out")


def _is_ours(path: Path) -> bool:
    try:
        return {"title", "columns", "rows", "notes"} <= read_json(path).keys()
    except (UserError, AttributeError):
        return False


def read_table(path: Path) -> dict:
    """Reads a table that `write_all` wrote as JSON.

    Raises:
        UserError: if the file is missing or has another form.
    """
    table = read_json(path)
    if not _is_table(table):
        raise UserError(
            f'{path}: expected {{"title": text, "columns": [text], "rows": [[text, number or null]], "notes": [text]}} '
            "with a cell for each column, as compare.py writes it"
        )
    return table


def _is_table(table) -> bool:
    def texts(value) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    return (
        isinstance(table, dict)
        and isinstance(table.get("title"), str)
        and texts(table.get("columns"))
        and bool(table["columns"])
        and texts(table.get("notes"))
        and isinstance(table.get("rows"), list)
        and all(isinstance(row, list) and len(row) == len(table["columns"]) for row in table["rows"])
        and all(
            cell is None or isinstance(cell, str | float) or (isinstance(cell, int) and abs(cell) < 2**63)
            for row in table["rows"]
            for cell in row
        )
    )


def shown(value, column: str) -> str:
    """A cell as people read it, with the digits that its column is published with."""
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


def best_cells(columns: list[str], rows: list[list]) -> list[list[bool]]:
    """For each row, which cells hold the largest PSNR or SSIM of their column, as far as printed digits tell.

    Several may be the best; there is none in a column of fewer than two numbers.
    """
    best = []
    for at, column in enumerate(columns):
        numbers = [row[at] for row in rows if isinstance(row[at], float | int) and not math.isnan(row[at])]
        is_score = "PSNR" in column or "SSIM" in column
        best.append(shown(max(numbers), column) if is_score and len(numbers) > 1 else None)
    return [
        [
            not isinstance(cell, str) and shown(cell, column) == mark
            for cell, column, mark in zip(row, columns, best, strict=True)
        ]
        for row in rows
    ]


def _aligned(rows: list[list[str]], header: list[str], form: str) -> str:
    """The package tabulate's drawing, with the first column to the left and the others to the right."""
    alignment = ("left", *["right"] * (len(header) - 1)) if rows else None  # it aligns no columns without rows
    return tabulate(rows, header, tablefmt=form, disable_numparse=True, colalign=alignment)


def as_text(table: dict) -> str:
    """For the terminal; a header takes as many lines as it has words."""
    header, *rows = ([printable(cell) for cell in line] for line in cells(table))
    words = [name.split() for name in header]
    depth = max(map(len, words), default=0)
    lines = ["\n".join([""] * (depth - len(column)) + column) for column in words]
    return "\n".join([printable(table["title"]), _aligned(rows, lines, "simple"), "", *map(printable, table["notes"])])


def as_markdown(table: dict) -> str:
    """A table, and its notes as a list."""
    header, *rows = ([_markdown(cell) for cell in line] for line in cells(table))
    notes = "\n".join(f"- {_markdown(note)}" for note in table["notes"])
    return f"### {_markdown(table['title'])}\n\n{_aligned(rows, header, 'pipe')}\n\n{notes}\n"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, links, code or emphasis, and no end of a cell."""
    return (
        re.sub(r"([\\`*\[\]|<>]|(?<!\w)_|_(?!\w))", r"\\\1", printable(text))
        .replace("\\<", "&lt;")
        .replace("\\>", "&gt;")
    )


def as_html(table: dict) -> str:
    """A table with its title as caption, in a region that scrolls, and its notes as paragraphs."""
    header, *rows = ([html.escape(SIGNS.get(cell, cell)) for cell in line] for line in cells(table))
    title = html.escape(table["title"])
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = []
    for row, best in zip(rows, best_cells(table["columns"], table["rows"]), strict=True):
        marked = [f"<strong>{cell}</strong>" if is_best else cell for cell, is_best in zip(row, best, strict=True)]
        body.append(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in marked[1:])}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>{paragraphs(table['notes'])}"
    )


# How HTML and figures show what is no finite number.
SIGNS = {"inf": "∞", "nan": "n/a"}


def paragraphs(lines: list[str]) -> str:
    """Lines of text as the HTML of notes."""
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in lines)


def as_csv(table: dict) -> str:
    """Numbers that are not rounded, and empty cells for what was not measured; without the notes."""
    return csv_text([table["columns"], *table["rows"]])


def as_json(table: dict) -> str:
    """The table as it is; infinity and NaN become text."""
    rows = [[str(v) if isinstance(v, float) and not math.isfinite(v) else v for v in row] for row in table["rows"]]
    return json.dumps(table | {"rows": rows}, indent=1)


def as_latex(table: dict) -> str:
    """Rows to paste into a paper's own table, with the header and the notes as comments."""
    header, *rows = cells(table)
    lines = [f"% {printable(line)}" for line in (*table["notes"], " & ".join(header))]
    for row, best in zip(rows, best_cells(table["columns"], table["rows"]), strict=True):
        escaped = [_latex(cell) or "--" for cell in row]
        marked = [rf"\textbf{{{cell}}}" if is_best else cell for cell, is_best in zip(escaped, best, strict=True)]
        lines.append(" & ".join(marked) + r" \\")
    return "\n".join(lines) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}"} | {character: f"\\{character}" for character in "_%&#${}"}


def _latex(text: str) -> str:
    """Text that LaTeX prints as it is: no command, group, comment or mathematics."""
    return "".join(_LATEX.get(character, character) for character in printable(text))
