"""CSV files that spreadsheets and this framework read: `csv_text` writes, `read_csv` reads."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from runtime.errors import UserError
from runtime.files import read_regular


def csv_text(rows: Iterable[Sequence]) -> str:
    """Rows of text, numbers and None as CSV. `read_csv` gives the text back as it was.

    Text that a spreadsheet would run as a formula is prefixed with an apostrophe, which spreadsheets do not show.
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
    """The rows of a CSV file as `csv_text` writes it: {column: text} each.

    Args:
        needed: columns that must be there.
        most: largest size of the file in bytes.

    Raises:
        UserError: if the file is missing, too large, no regular file or no CSV, if a column is missing or appears
            twice, or if a row has more or fewer cells than there are columns.
    """
    try:
        text = read_regular(path, most).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give a readable file") from None
    except ValueError:
        raise UserError(f"{path}: is not UTF-8 text: give the table as it was written") from None
    before = csv.field_size_limit(most)
    try:
        columns, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV ({error}): give the table as it was written") from None
    finally:
        csv.field_size_limit(before)
    rows = [row for row in rows if row]
    columns = [name.removeprefix("'") for name in columns]
    expected = f"expected a table with {', '.join(needed)}, as it was written"
    if missing := [name for name in needed if columns.count(name) != 1]:
        raise UserError(f"{path}: has no column {missing[0]}, or two: {expected}")
    if uneven := [number for number, row in enumerate(rows, start=2) if len(row) != len(columns)]:
        raise UserError(f"{path}: row {uneven[0]} has more or fewer cells than there are columns: {expected}")
    return [dict(zip(columns, (cell.removeprefix("'") for cell in row), strict=True)) for row in rows]
