"""Downloads -> the tree that main.py reads, complete and checked: `python prepare.py --dir_data ../dataset SOURCE...`.

A SOURCE is a folder or an archive, in any layout that `data/downloads/layouts.py` knows. Its images are copied into the
tree of `docs/data.md` under --dir_data. Then missing LR images are made, all images are decoded into .npy copies, and
every pair is checked. Nothing is overwritten. Files are written atomically, so the same command continues where an
interrupted one stopped. Problems of single images are listed at the end, and the exit status is then 1.
"""

import argparse
import logging
import re
from pathlib import Path

import torch

from data import usable_cores
from data.downloads.arrange import copy_all, is_name, plan
from data.downloads.complete import complete, preview
from data.downloads.sources import open_source
from data.image import list_images
from option import build_parser as main_parser
from runtime.errors import UserError, printable, run
from runtime.flags import Parser, path_flag, whole_number
from runtime.log import start_log

log = logging.getLogger("krgn")

MOST_THREADS = 8  # each holds one image in float64 several times over


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="prepare.py",
        description="Arrange downloaded images for training and testing.",
        examples=(
            "python prepare.py ~/Pictures/photos --dry_run",
            "python prepare.py --dir_data ../dataset ~/Downloads/DIV2K_train_HR.zip ~/Downloads/benchmark.tar",
            "python prepare.py --dir_data ../dataset ~/Pictures/flowers --name Flowers --train --scale 2+4",
            "python prepare.py --dir_data ../dataset ../dataset --dry_run",
        ),
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        type=path_flag,
        help="a folder of images or an archive (.zip, .tar, .tar.gz): DIV2K, benchmark sets, images of your own",
    )
    parser.add_argument(
        "--dir_data",
        default=main_parser().get_default("dir_data"),
        metavar="DIR",
        type=path_flag,
        help="folder of the data sets, as main.py takes it (default: dataset/ beside src/)",
    )
    parser.add_argument(
        "--scale",
        type=_scales,
        default=(2, 3, 4),
        metavar="S+S",
        help="scales at which missing LR images are made (default 2+3+4)",
    )
    parser.add_argument("--name", type=_name, metavar="NAME", help="name of the set (default: from names of folders)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--benchmark", action="store_true", help="SOURCE holds sets to test on, whatever their names")
    kind.add_argument("--train", action="store_true", help="SOURCE holds sets to train on, whatever their names")
    parser.add_argument(
        "--n_threads",
        type=whole_number(1),
        default=min(usable_cores(), MOST_THREADS),
        metavar="N",
        help=f"images that are worked on at once (default: the number of cores, at most {MOST_THREADS})",
    )
    parser.add_argument("--dry_run", action="store_true", help="read everything, print every step, write nothing")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Prepares the sets; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    start_log()
    if args.n_threads > 1:
        torch.set_num_threads(1)  # the images are what runs in parallel
    dir_data = Path(args.dir_data)
    sources = [open_source(path) for given in args.sources for path in expanded(Path(given), dir_data)]
    problems: list[str] = []
    benchmark = args.benchmark if args.benchmark or args.train else None
    targets, places = plan(sources, dir_data, name=args.name, benchmark=benchmark, problems=problems)
    # A compressed tar file can only be read from its beginning to its end.
    n_threads = 1 if any(source.sequential for source in sources) else args.n_threads
    copy_all(targets, n_threads=n_threads, dry_run=args.dry_run, problems=problems)
    if args.dry_run:
        for place in places:
            preview(place, targets, args.scale)
        log.info("dry run: nothing was written")
    else:
        copied = sum(target.origin is not None for target in targets)
        present = sum(target.present for target in targets)
        log.info("%d images copied, %d were there already", copied, present)
        for place in places:
            complete(place, args.scale, args.n_threads, problems)
    for problem in problems:
        log.info("wrong: %s", printable(" ".join(problem.split())))
    if problems:
        raise UserError(
            f"{len(problems)} {'things are' if len(problems) > 1 else 'thing is'} wrong, named above: "
            "fix that and give the same command again"
        )


def expanded(source: Path, dir_data: Path) -> list[Path]:
    """The source itself; for --dir_data its folders, because each of them is a set and not a part of one."""
    if not (source.is_dir() and dir_data.is_dir() and source.samefile(dir_data)):
        return [source]
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and list_images(path, nested=True)]
    return folders or [source]


def _scales(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[2-9](\+[2-9])*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected scales joined by +, as in 2+3+4")
    return tuple(sorted({int(part) for part in text.split("+")}))


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a plain name without / + and *, as in Photos")
    return text


if __name__ == "__main__":
    run(main)
