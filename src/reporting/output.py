"""The folder that report.py writes into: it replaces and deletes only what it wrote there itself."""

from pathlib import Path

from runtime.errors import UserError
from runtime.files import write_bytes

_MARKER = ".report"
_HEADER = "This folder was made by report.py, which may replace or delete index.html, figures and these pictures:"


def refuse_foreign(out: Path) -> None:
    """UserError if `out` holds anything and is not this program's folder."""
    if out.is_dir() and (not any(out.iterdir()) or (out / _MARKER).is_file()):
        return
    if out.exists():
        raise UserError(f"--out {out}: was not made by this program, so it is left alone: choose another folder")


def listed_pictures(out: Path) -> set[str]:
    """The pictures that this program wrote into `out`, as its marker lists them; nothing outside `out`/images."""
    marker = out / _MARKER
    lines = marker.read_text(encoding="utf-8", errors="replace").splitlines() if marker.is_file() else []
    return {line for line in lines if line.startswith("images/") and ".." not in Path(line).parts}


def list_pictures(out: Path, names: set[str]) -> None:
    """Writes the marker with these pictures; makes the folder."""
    write_bytes(out / _MARKER, "\n".join([_HEADER, *sorted(names), ""]).encode())
