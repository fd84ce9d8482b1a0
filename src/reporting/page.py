"""The page that compares tests image by image: index.html, and the pictures beside it in images/.

index.html holds scores, style and script; its parts are in `page/`. Pictures are files, not data URLs, because those of
a benchmark are tens to hundreds of megabytes, of which a browser then loads what it shows. All paths are relative and
nothing comes from a network, so file:// is enough.
"""

import html
import json
import math
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np

from data import usable_cores
from data.folders import shortened
from data.image import write_out
from data.parallel import for_each
from evaluation.metrics import rgb_to_y
from reporting import figures  # before matplotlib, whose backend it chooses
from reporting.comparison import (
    BICUBIC,
    HR,
    Compared,
    Experiment,
    ImageName,
    best_scores,
    load,
    mean_table,
    printed,
    protocol_lines,
    to_tensor,
)
from reporting.output import list_pictures, listed_pictures
from reporting.tables import as_html, paragraphs
from runtime.errors import printable
from runtime.files import write_bytes

ERROR_MAX = 32  # gray levels of luma at the bright end of an error map; the same in all, so that maps compare
ERROR_MAP = "magma"  # uniform in lightness, so that it reads the same with every kind of colour vision
POINT_WINDOW = 48  # side in HR pixels of the window with the largest error, where a picture's crops begin

_TEMPLATES = Path(__file__).parent / "page"
_SCORES = """\
  <section aria-labelledby="scores-heading">
    <h2 id="scores-heading">Scores</h2>
    $table
    $protocol
  </section>

"""
_NOTE = "Means over the images below, which all the experiments have; the best of each column is bold."


def make_page(
    experiments: list[Experiment],
    images: list[ImageName],
    out: Path,
    *,
    table: dict | None = None,
    title: str | None = None,
) -> None:
    """Writes the page of these images into `out`. index.html comes last; then pictures of an older page are deleted.

    Args:
        table: shown in place of the mean scores.
        title: the heading; None: the experiments' names.
    """
    before, written, entries, scores = listed_pictures(out), set(), {}, {}
    load(experiments, *images[0])  # if a test left no pictures at all, no folder should be begun
    list_pictures(out, before)

    def make(name: ImageName) -> None:
        compared = load(experiments, *name)
        entries[name], files = _write_pictures(compared, *name, experiments[0].results[name[0]].scale, out)
        written.update(files)
        scores[name] = compared.scores

    for_each(make, images, n_threads=usable_cores(), title="images")
    list_pictures(out, before | written)
    # Threads end in any order.
    table = table or mean_table({name: scores[name] for name in images}, title="Mean PSNR and SSIM", notes=[_NOTE])
    title = title or f"Super-resolution: {', '.join(one.name for one in experiments)}"
    page = _rendered(experiments, [entries[name] for name in images], table=table, title=title)
    write_bytes(out / "index.html", page.encode())
    for name in before - written:
        (out / name).unlink(missing_ok=True)
    list_pictures(out, written)
    size = sum((out / name).stat().st_size for name in written) / 2**20
    print(f"{printable(out / 'index.html')}: {len(images)} images, {len(written)} pictures of {size:.1f} MiB beside it")


def _rendered(experiments: list[Experiment], entries: list[dict], *, table: dict, title: str) -> str:
    sets = list(dict.fromkeys(entry["set"] for entry in entries))
    counted = ", ".join(
        f"{name} x{experiments[0].results[name].scale} ({sum(entry['set'] == name for entry in entries)})"
        for name in sets
    )
    scores = Template(_SCORES).substitute(table=as_html(table), protocol=paragraphs(protocol_lines(experiments, sets)))
    facts = {"images": entries, "scored": True, "errorMax": ERROR_MAX, "errorColors": _css_colors()}
    return render(title, f"{len(entries)} images: {counted}", facts, scores=scores)


def render(title: str, lead: str, facts: dict, *, scores: str = "") -> str:
    """The text of index.html.

    Args:
        title, lead: plain text, of the heading and the line below it.
        facts: what the script shows. "images": each with its size, its views, and where its crops begin. "scored":
            whether views have scores and error maps, and the last is HR; then "errorMax" and "errorColors" are the
            legend of the maps.
        scores: HTML of a section above the images.
    """
    return Template((_TEMPLATES / "index.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        lead=html.escape(lead),
        scores=scores,
        style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "page.js").read_text(encoding="utf-8"),
        data=json.dumps(facts, allow_nan=False).replace("<", "\\u003c"),  # in <script> only "<" could end it early
    )


def _write_pictures(compared: Compared, set_name: str, image: str, scale: int, out: Path) -> tuple[dict, set[str]]:
    """Writes an image's pictures and error maps.

    Returns:
        The image's entry in the page's data, and the files' names below `out`.
    """
    written = set()

    def write(kind: str, pixels: np.ndarray) -> str:
        name = f"images/{set_name}/{shortened(image)}_x{scale}_{kind}.png"
        write_out(out / name, pixels)
        written.add(name)
        return quote(name)

    hr, best, views = compared.pictures[HR], best_scores(compared.scores), []
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
    a, b = (to_tensor(image) for image in (sr, hr))
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
