"""A page that compares experiments image by image, or the crop comparison that papers print.

    python report.py ../experiment/my_krgn_x4 CFGN=../experiment/cfgn --out ../page
    python report.py ../experiment/my_krgn_x4 CFGN=../experiment/cfgn --out ../page --figure Set14/zebra 180 40 96 64

Input: folders in which `main.py --test_only --save_results --save_gt` left scores-<Set>.json and results-<Set>/. The
images that all of them have are compared, with bicubic, which is made from LR.

Output: index.html and its pictures (`reporting/page.py`), or the figure (`reporting/crop_figure.py`), in one folder.
"""

from pathlib import Path

from reporting.comparison import common_images, read_experiments
from reporting.crop_figure import make_figure
from reporting.output import refuse_foreign
from reporting.page import make_page
from reporting.tables import read_table
from runtime.errors import UserError, run
from runtime.flags import Parser, path_flag


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="report.py",
        description="A page, or a figure, that compares tested experiments.",
        examples=(
            "python report.py ../experiment/my_krgn_x4 --out ../experiment/page",
            "python report.py ../experiment/krgn_test_x4 CFGN=../experiment/cfgn --out ../experiment/page",
            "python report.py ../experiment/krgn_test_x4 --out ../experiment/figures --figure Set14/zebra 200 60 96 64",
        ),
    )
    parser.add_argument(
        "experiments",
        nargs="+",
        metavar="EXPERIMENT",
        help="folder of a test with --save_results --save_gt; NAME=FOLDER shows it under another name",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", type=path_flag, help="folder of the page; an older page is replaced"
    )
    parser.add_argument(
        "--table", metavar="FILE", type=path_flag, help="JSON table of compare.py, shown in place of the means"
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the page (default: the experiments' names)")
    parser.add_argument(
        "--figure",
        nargs=5,
        metavar=("IMAGE", "X", "Y", "W", "H"),
        help="instead of the page, the crop comparison of papers as PNG and PDF: IMAGE or SET/IMAGE, and a box in HR "
        "pixels",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Makes the page or the figure; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    out = Path(args.out)
    refuse_foreign(out)
    experiments = read_experiments(map(named_folder, args.experiments))
    images = common_images(experiments)
    if args.figure:
        make_figure(experiments, images, args.figure, out)
    else:
        make_page(experiments, images, out, table=given_table(args.table), title=args.title)


def named_folder(text: str) -> tuple[str, Path]:
    """Name and folder in FOLDER, which has its own name, or NAME=FOLDER.

    Raises:
        UserError: if the name is empty.
    """
    name, found, folder = text.partition("=")
    if not found or Path(text).is_dir():
        folder = text
        name = Path(folder).resolve().name
    if not name:
        raise UserError(f"{text}: has no name before the =: give NAME=FOLDER")
    return name, Path(path_flag(folder))


def given_table(path: str | None) -> dict | None:
    """The table of --table, if it was given."""
    try:
        return read_table(Path(path)) if path else None
    except UserError as error:
        raise UserError(f"--table {error}") from None


if __name__ == "__main__":
    run(main)
