"""A page that compares experiments image by image, or the crop comparison that papers print.

    python report.py ../experiment/my_krgn_x4 CFGN=../experiment/cfgn --out ../page
    python report.py ../experiment/my_krgn_x4 CFGN=../experiment/cfgn --out ../page --figure Set14/zebra 180 40 96 64

Goes in: folders in which `main.py --test_only --save_results --save_gt` left scores-<Set>.csv, results-<Set>/ and
log.txt. Compared are the images that all of them have, and bicubic, which is made here from LR.

Comes out, in one folder: index.html, which holds scores, style and script (src/page/), and the pictures beside it in
images/. They are files, not data URLs, because a benchmark's pictures are tens to hundreds of megabytes, of which a
browser then loads what it shows. Paths are relative and nothing comes from a network, so file:// will do.
"""

import html
import json
import math
import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np
import torch

from data import resize, usable_cores
from data.folders import shortened
from data.image import read_image, write_png
from data.parallel import for_each
from evaluation.metrics import LUMA_NETWORK, protocol, psnr_ssim, rgb_to_y
from reporting import figures  # before matplotlib, whose backend it chooses
from reporting.tables import read_csv
from runtime.errors import UserError, printable, run
from runtime.files import read_json, read_regular, write_bytes
from runtime.flags import Parser, path_flag, whole_number

BICUBIC, HR = "bicubic", "HR"
ERROR_MAX = 32  # gray levels of luma at the bright end of an error map; the same in all, so that maps compare
ERROR_MAP = "magma"  # uniform in lightness, so that it reads the same with every kind of colour vision
POINT_WINDOW = 48  # side in pixels of the window with the largest error, where a picture's crops begin

_TEMPLATES = Path(__file__).parent / "page"
_MARKER = ".report"
MOST_LOG = 256 * 2**20  # bytes
_AGAIN = "run main.py --test_only with --save_results --save_gt"

Score = tuple[float, float]  # PSNR in dB, SSIM


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="report.py", description="A page, or a figure, that compares tested experiments.")
    parser.add_argument(
        "experiments",
        nargs="+",
        metavar="EXPERIMENT",
        help="folder of a test with --save_results --save_gt; NAME=FOLDER shows it under another name",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", type=path_flag, help="folder of the page; one made before is renewed"
    )
    parser.add_argument(
        "--table", metavar="FILE", type=path_flag, help="table that compare.py wrote as JSON, in place of the means"
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the page (default: the experiments' names)")
    parser.add_argument(
        "--figure",
        nargs=5,
        metavar=("IMAGE", "X", "Y", "W", "H"),
        help="no page, but the crop comparison of papers as PNG and PDF: IMAGE or SET/IMAGE, and a box in HR pixels",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Makes the page or the figure; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    out = Path(args.out)
    refuse_foreign(out)
    tested = read_all(args.experiments)
    images = common_images(tested)
    if args.figure:
        make_figure(tested, images, args.figure, out)
    else:
        table = read_table(Path(args.table)) if args.table else None
        make_page(tested, images, out, table=table, title=args.title)


# --- what goes in ---


@dataclass(frozen=True)
class Tested:
    """An experiment that was tested: {set: {image: score}}, and what log.txt says of how each set was scored."""

    name: str
    folder: Path
    scores: dict[str, dict[str, Score]]
    protocols: dict[str, str]
    scales: dict[str, int | None]  # None where nothing tells

    def path(self, set_name: str, image: str, kind: str) -> Path:
        """Where main.py wrote an image of the test; `kind` is SR, LR or HR."""
        return self.folder / f"results-{set_name}" / f"{image}_x{self.scales[set_name]}_{kind}.png"


@dataclass(frozen=True)
class Compared:
    """One image: `pictures` is {label: uint8 (H, W, C)} of bicubic, each method and HR; `scores` leaves out HR."""

    lr: np.ndarray
    pictures: dict[str, np.ndarray]
    scores: dict[str, Score]


def read_all(texts: list[str]) -> list[Tested]:
    """The experiments of the command line, FOLDER or NAME=FOLDER.

    Raises:
        UserError: if one was not tested, or two have one name.
    """
    tested = []
    for text in texts:
        name, found, folder = text.partition("=")
        if not found or Path(text).is_dir():
            folder = text
            name = Path(folder).resolve().name
        tested.append(_read_tested(name, Path(path_flag(folder))))
    names = [BICUBIC, HR, *(one.name for one in tested)]
    for name in names:
        if names.count(name) > 1 or not name:
            raise UserError(
                f"two columns would be called {name!r}: give the experiment another name, NAME=FOLDER"
                if name
                else f"{texts[names.index(name) - 2]}: has no name before the =: give NAME=FOLDER"
            )
    return tested


def _read_tested(name: str, folder: Path) -> Tested:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder: name one below experiment/ that main.py tested into")
    paths = sorted(folder.glob("scores-*.csv"), key=_natural)
    if not paths:
        raise UserError(f"{folder}: has no scores-<Set>.csv: {_AGAIN} --save {folder.name}")
    log_file = folder / "log.txt"
    log_text = read_regular(log_file, MOST_LOG).decode(errors="replace") if log_file.is_file() else ""
    scores, protocols, scales = {}, {}, {}
    for path in paths:
        set_name = path.stem.removeprefix("scores-")
        scores[set_name] = _read_scores(path)
        said, scale = _from_log(log_text, set_name)
        protocols[set_name] = said
        scales[set_name] = scale or _scale_of_files(folder, set_name)
    return Tested(name, folder, scores, protocols, scales)


def _natural(path: Path) -> list:
    """A key that puts Set5 before Set14."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.stem)]


def _read_scores(path: Path) -> dict[str, Score]:
    try:
        rows = read_csv(path, ("image", "PSNR", "SSIM"))
        return {row["image"]: (float(row["PSNR"]), float(row["SSIM"])) for row in rows}
    except ValueError:
        raise UserError(f"{path}: has a score that is no number: {_AGAIN}") from None
    except UserError as error:
        raise UserError(f"{error}: {_AGAIN}") from None


def _from_log(text: str, set_name: str) -> tuple[str, int | None]:
    """Protocol and scale of the set's last test, from the line that evaluate.test wrote into log.txt."""
    line = rf" {re.escape(set_name)} x(\d+): PSNR \S+ dB, SSIM [^(]+ \((.*); \d+ images, \S+ s\)$"
    found = re.findall(line, text, flags=re.M)
    return (found[-1][1], int(found[-1][0])) if found else ("not recorded in log.txt", None)


def _scale_of_files(folder: Path, set_name: str) -> int | None:
    """The scale of the set's SR images; None if there are none, or of several scales."""
    names = [path.name for path in folder.glob(f"results-{set_name}/*_SR.png")]
    scales = {int(found[1]) for name in names if (found := re.search(r"_x(\d+)_SR\.png$", name))}
    return scales.pop() if len(scales) == 1 else None


def common_images(tested: list[Tested]) -> list[tuple[str, str]]:
    """(set, image) of every image that all experiments scored, in the order of the first one's tables.

    Raises:
        UserError: if there is none, or a set was tested at different scales.
    """
    everybody = [{(name, image) for name, rows in one.scores.items() for image in rows} for one in tested]
    common = set.intersection(*everybody)
    if not common:
        have = "; ".join(f"{one.name}: {', '.join(one.scores)}" for one in tested)
        raise UserError(f"no image was scored in all experiments ({have}): test them on one set with --data_test")
    left_out = set.union(*everybody) - common
    if left_out:
        names = sorted("/".join(image) for image in left_out)
        few = printable(", ".join(names[:8]))
        print(f"left out, as not every experiment has them: {few}{' …' * (len(names) > 8)}")
    for name in sorted({name for name, _ in common}):
        for one in tested:
            if one.scales[name] is None:
                raise UserError(
                    f"{one.folder}: holds neither SR images of {name} at one scale, nor a log.txt that says which one "
                    f"was tested: {_AGAIN}"
                )
        scales = {one.scales[name] for one in tested}
        if len(scales) > 1:
            have = ", ".join(f"{one.name} x{one.scales[name]}" for one in tested)
            raise UserError(f"{name} was tested at different scales ({have}): compare experiments of one scale")
    return [
        image for name, rows in tested[0].scores.items() for image in ((name, row) for row in rows) if image in common
    ]


def load(tested: list[Tested], set_name: str, image: str) -> Compared:
    """Reads the pictures of one image, makes bicubic, and checks that all of them belong together.

    Raises:
        UserError: if a file is missing, sizes differ, experiments had different LR or HR, or a score in the table is
            not that of the picture.
    """
    scale = tested[0].scales[set_name]
    truth = {}
    for kind in ("LR", HR):
        paths = [path for one in tested if (path := one.path(set_name, image, kind)).is_file()]
        if not paths:
            raise UserError(f"{tested[0].path(set_name, image, kind)}: is missing: {_AGAIN}")
        truth[kind] = read_image(paths[0])
        for path in paths[1:]:
            if not np.array_equal(truth[kind], read_image(path)):
                raise UserError(
                    f"{paths[0]} and {path} differ: compare experiments that were tested on the same images"
                )
    lr, hr = truth["LR"], truth[HR]
    pictures = {BICUBIC: resize.upscale(lr, scale)}
    for one in tested:
        path = one.path(set_name, image, "SR")
        if not path.is_file():
            raise UserError(f"{path}: is missing: {_AGAIN}")
        pictures[one.name] = read_image(path)
    for label, picture in pictures.items():
        if picture.shape != hr.shape:
            raise UserError(
                f"{set_name}/{image}: {label} has {_size(picture)} pixels and HR {_size(hr)}, must be equal: {_AGAIN}"
            )

    scores = {BICUBIC: psnr_ssim(_tensor(pictures[BICUBIC]), _tensor(hr), scale)}
    for one in tested:
        scores[one.name] = one.scores[set_name][image]
        seen = psnr_ssim(_tensor(pictures[one.name]), _tensor(hr), scale)
        _check_score(one, set_name, image, seen, gray=hr.shape[2] == 1)
    return Compared(lr, pictures | {HR: hr}, scores)


def _check_score(one: Tested, set_name: str, image: str, seen: Score, *, gray: bool) -> None:
    """A table of one test beside the pictures of another would mislead: they must agree in every printed digit."""
    if not one.protocols[set_name].startswith(protocol("y")):
        return  # scored in another way, so there is nothing to compare it with
    # A network of luma is scored before its picture is turned to RGB, which rounds and clamps its colours.
    converted = LUMA_NETWORK in one.protocols[set_name] and not gray
    tolerances = (0.5, 0.005) if converted else (0.005, 0.00005)
    for said, found, tolerance in zip(one.scores[set_name][image], seen, tolerances, strict=True):
        if math.isfinite(said) and not abs(said - found) < tolerance:
            raise UserError(
                f"{one.folder}/scores-{set_name}.csv: says {said:.4f} for {image}, but the score of "
                f"{one.path(set_name, image, 'SR')} is {found:.4f}: they are of different tests: {_AGAIN} again"
            )


def read_table(path: Path) -> dict:
    """A table that compare.py wrote: {"title", "columns", "rows", "notes"}.

    Raises:
        UserError: if the file is missing or has another form.
    """
    try:
        table = read_json(path)
    except UserError as error:
        raise UserError(f"--table {error}: give the one that compare.py wrote") from None
    if not _is_table(table):
        raise UserError(
            f'--table {path}: expected {{"title": text, "columns": [text], "rows": [[text, number or null]], '
            f'"notes": [text]}} with a cell for each column, as compare.py writes it'
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


# --- the page ---


def make_page(
    tested: list[Tested],
    images: list[tuple[str, str]],
    out: Path,
    *,
    table: dict | None = None,
    title: str | None = None,
) -> None:
    """Writes the page of these images into `out`. index.html comes last; then pictures of an older page go."""
    before, written, entries, scores = _listed(out), set(), {}, {}
    load(tested, *images[0])  # where a test left no pictures at all, no folder should be begun
    _list(out, before)

    def make(name: tuple[str, str]) -> None:
        compared = load(tested, *name)
        entries[name], files = _write_pictures(compared, *name, tested[0].scales[name[0]], out)
        written.update(files)
        scores[name] = compared.scores

    for_each(make, images, n_threads=usable_cores(), title="images")
    scores = {name: scores[name] for name in images}  # threads end in any order
    _list(out, before | written)

    sets = list(dict.fromkeys(name for name, _ in images))
    counted = ", ".join(
        f"{name} x{tested[0].scales[name]} ({sum(name == other for other, _ in images)})" for name in sets
    )
    facts = {"images": [entries[name] for name in images], "errorMax": ERROR_MAX, "errorColors": _css_colors()}
    page = Template((_TEMPLATES / "index.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title or f"Super-resolution: {', '.join(one.name for one in tested)}"),
        lead=html.escape(f"{len(images)} images: {counted}"),
        table=render_table(table or mean_table(scores)),
        protocol=_paragraphs(protocol_lines(tested, sets)),
        style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "page.js").read_text(encoding="utf-8"),
        data=json.dumps(facts, allow_nan=False).replace("<", "\\u003c"),  # in <script> only "<" could end it early
    )
    write_bytes(out / "index.html", page.encode())
    for name in before - written:
        (out / name).unlink(missing_ok=True)
    _list(out, written)
    size = sum((out / name).stat().st_size for name in written) / 2**20
    print(f"{printable(out / 'index.html')}: {len(images)} images, {len(written)} pictures of {size:.1f} MiB beside it")


def _write_pictures(compared: Compared, set_name: str, image: str, scale: int, out: Path) -> tuple[dict, set[str]]:
    """Writes an image's pictures and error maps; returns what the page says of it, and the files' names below `out`."""
    written = set()

    def write(kind: str, pixels: np.ndarray) -> str:
        name = f"images/{set_name}/{shortened(image)}_x{scale}_{kind}.png"
        try:
            write_png(out / name, pixels)
        except OSError as error:
            raise UserError(f"{out / name}: cannot be written ({error.strerror}): name another --out") from None
        written.add(name)
        return quote(name)

    hr, best, views = compared.pictures[HR], emphasised(compared.scores), []
    for number, (label, pixels) in enumerate(compared.pictures.items()):
        # Methods are numbered in file names: their own names may hold what file systems do not take.
        kind = label if label in (BICUBIC, HR) else f"method{number}"
        view = {"label": label, "src": write(kind, pixels)}
        if label != HR:
            score = compared.scores[label]
            view["map"] = write(f"{kind}_error", error_picture(luma_error(pixels, hr)))
            # JSON has no infinity; the page only sorts by these numbers.
            view["scores"] = [None if math.isnan(value) else min(value, 1e9) for value in score]
            view["texts"], view["best"] = printed(score), best[label]
        views.append(view)
    first_method = list(compared.scores)[1]
    entry = {
        "set": set_name,
        "name": image,
        "scale": scale,
        "width": hr.shape[1],
        "height": hr.shape[0],
        "point": worst_point(luma_error(compared.pictures[first_method], hr)),
        "thumb": write("LR", compared.lr),
        "views": views,
    }
    return entry, written


def luma_error(sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """|SR - HR| of luma Y as float64 (H, W), in gray levels of 0..255; both images uint8 (H, W, 1 or 3)."""
    a, b = (_tensor(image) for image in (sr, hr))
    a, b = ((rgb_to_y(image) if image.shape[0] == 3 else image.double())[0] for image in (a, b))
    return (a - b).abs().numpy()


def error_picture(error: np.ndarray) -> np.ndarray:
    """An error (H, W) in gray levels as colours, uint8 (H, W, 3): 0 is dark, ERROR_MAX and more bright."""
    colors = (figures.matplotlib.colormaps[ERROR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return colors[(error / ERROR_MAX * 255).round().clip(0, 255).astype(int)]


def _css_colors() -> str:
    """The colours of the error maps as the stops of a CSS gradient."""
    stops = (figures.matplotlib.colormaps[ERROR_MAP](np.linspace(0, 1, 12))[:, :3] * 255).round().astype(int)
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in stops)


def worst_point(error: np.ndarray) -> tuple[int, int]:
    """(x, y) of the middle of the window of POINT_WINDOW pixels, or of the image's side, with the largest error."""
    height, width = (min(POINT_WINDOW, side) for side in error.shape)
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    y, x = np.unravel_index(windows.argmax(), windows.shape)
    return int(x) + width // 2, int(y) + height // 2


def protocol_lines(tested: list[Tested], sets: list[str]) -> list[str]:
    """How the scores were taken: one line if all were taken in one way, else a line for each way."""
    ways = {}
    for one in tested:
        for name in sets:
            ways.setdefault(one.protocols[name], {}).setdefault(one.name, []).append(name)
    if len(ways) == 1:
        lines = [f"Protocol: {next(iter(ways))}."]
    else:
        lines = ["The methods were not all scored in one way:"]
        for way, methods in ways.items():
            who = "; ".join(f"{method} on {', '.join(on)}" for method, on in methods.items())
            lines.append(f"{who}: {way}.")
    return [*lines, f"Bicubic is made from the LR image, in colour, and scored here: {protocol('y')}."]


def mean_table(scores: dict[tuple[str, str], dict[str, Score]]) -> dict:
    """Mean PSNR and SSIM of each method on each set, in the form of compare.py's tables.

    Args:
        scores: {(set, image): {method: score}}.
    """
    rows, columns = {method: [method] for method in next(iter(scores.values()))}, ["method"]
    for name in dict.fromkeys(name for name, _ in scores):
        columns += [f"{name} PSNR (dB)", f"{name} SSIM"]
        for method, row in rows.items():
            row += np.mean([of[method] for (other, _), of in scores.items() if other == name], axis=0).tolist()
    notes = ["Means over the images below, which all the experiments have; the best of each column is bold."]
    return {"title": "Mean PSNR and SSIM", "columns": columns, "rows": list(rows.values()), "notes": notes}


def render_table(table: dict) -> str:
    """HTML of a table in compare.py's form; the largest number of each column of PSNR or SSIM is bold."""
    columns = table["columns"]
    best = [_largest(name, [row[at] for row in table["rows"]]) for at, name in enumerate(columns)]
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    body = []
    for row in table["rows"]:
        texts = [html.escape(_cell(value, name)) for value, name in zip(row, columns, strict=True)]
        cells = [f"<strong>{text}</strong>" if text == mark else text for text, mark in zip(texts, best, strict=True)]
        body.append(f'<tr><th scope="row">{texts[0]}</th>{"".join(f"<td>{cell}</td>" for cell in cells[1:])}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(table["title"])}">'
        f"<table><caption>{html.escape(table['title'])}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>{_paragraphs(table['notes'])}"
    )


def _cell(value: str | float | None, column: str) -> str:
    """A value as text, with the digits that its column is published with."""
    if value is None or isinstance(value, str):
        return value or ""
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else "∞"
    if isinstance(value, int):
        return f"{value:,}"
    digits = 4 if "SSIM" in column else 2 if "PSNR" in column or abs(value) >= 10 else 3
    return f"{value:,.{digits}f}"


def _largest(column: str, values: list) -> str | None:
    numbers = [value for value in values if isinstance(value, float | int) and not math.isnan(value)]
    return _cell(max(numbers), column) if ("PSNR" in column or "SSIM" in column) and len(numbers) > 1 else None


def _paragraphs(lines: list[str]) -> str:
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in lines)


# --- the figure ---


def make_figure(tested: list[Tested], images: list[tuple[str, str]], request: list[str], out: Path) -> None:
    """Writes figure_<set>_<image>_<x>_<y>_<w>_<h>.png and .pdf into `out`.

    Args:
        request: the five words of --figure.

    Raises:
        UserError: if there is no such image, or the box does not lie in it.
    """
    set_name, image = _find(images, request[0])
    try:
        x, y, width, height = map(whole_number(-(2**31)), request[1:])
    except ArgumentTypeError:
        raise UserError(
            f"--figure {' '.join(request)}: expected IMAGE X Y W H, four whole numbers of HR pixels"
        ) from None
    compared = load(tested, set_name, image)
    hr = compared.pictures[HR]
    if min(x, y) < 0 or min(width, height) < 1 or x + width > hr.shape[1] or y + height > hr.shape[0]:
        raise UserError(
            f"--figure {' '.join(request)}: the box X Y W H does not lie within {set_name}/{image}, "
            f"which has {_size(hr)} pixels (width x height)"
        )
    best, crops = emphasised(compared.scores), []
    for label in (HR, *compared.scores):
        texts = printed(compared.scores[label]) if label != HR else ["PSNR", "SSIM"]
        crop = _rgb(compared.pictures[label])[y : y + height, x : x + width]
        crops.append((label, list(zip(texts, best.get(label, (False, False)), strict=True)), crop))
    whole = f"{image} ({set_name} x{tested[0].scales[set_name]})"
    drawn = figures.crop_comparison(whole, _rgb(hr), (x, y, width, height), crops)
    names = {form: f"figure_{set_name}_{image}_{x}_{y}_{width}_{height}.{form}" for form in drawn}
    _list(out, _listed(out))
    for form, content in drawn.items():
        write_bytes(out / names[form], content)
        print(printable(out / names[form]))


def _find(images: list[tuple[str, str]], text: str) -> tuple[str, str]:
    found = [(name, image) for name, image in images if text in (image, f"{name}/{image}")]
    if len(found) == 1:
        return found[0]
    if found:
        choice = " or ".join("/".join(image) for image in found)
        raise UserError(f"--figure {text}: several sets have this image: give {choice}")
    have = ", ".join("/".join(image) for image in images[:8]) + " …" * (len(images) > 8)
    raise UserError(f"--figure {text}: no image of this name is in all experiments; they have {have}")


# --- what both share ---


def printed(score: Score) -> list[str]:
    """PSNR and SSIM in the digits of publications."""
    return [_cell(value, column) for value, column in zip(score, ("PSNR", "SSIM"), strict=True)]


def emphasised(scores: dict[str, Score]) -> dict[str, tuple[bool, bool]]:
    """Whose PSNR and whose SSIM is the best, as far as printed digits tell: several may be."""
    best = [_largest(column, [score[at] for score in scores.values()]) for at, column in enumerate(("PSNR", "SSIM"))]
    return {
        label: tuple(text == mark for text, mark in zip(printed(score), best, strict=True))
        for label, score in scores.items()
    }


def refuse_foreign(out: Path) -> None:
    """UserError if `out` holds anything and is not this program's folder."""
    if out.is_dir() and (not any(out.iterdir()) or (out / _MARKER).is_file()):
        return
    if out.exists():
        raise UserError(f"--out {out}: was not made by this program, so it is left alone: name another folder")


def _listed(out: Path) -> set[str]:
    """The pictures that this program wrote into `out`, as its marker lists them, and nothing outside out/images."""
    marker = out / _MARKER
    lines = marker.read_text(encoding="utf-8", errors="replace").splitlines() if marker.is_file() else []
    return {line for line in lines if line.startswith("images/") and ".." not in Path(line).parts}


def _list(out: Path, names: set[str]) -> None:
    says = "This folder was made by report.py, which may replace or delete index.html, figures and these pictures:"
    write_bytes(out / _MARKER, "\n".join([says, *sorted(names), ""]).encode())


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


if __name__ == "__main__":
    run(main)
