"""Downloads -> the tree that main.py reads, complete and checked: `python prepare.py --dir_data ../dataset SOURCE...`.

A SOURCE is a folder or an archive, of any layout that `data/layouts.py` knows. Its images are copied into the tree of
the README under --dir_data; then missing LR images are made, all images are decoded into .npy copies, and every pair is
checked. Nothing is overwritten. Each file is written at once or not at all, so the same command goes on where an
interrupted one stopped. What is wrong with single images is named at the end, and the exit status is 1.
"""

import argparse
import errno
import logging
import re
from collections import Counter
from pathlib import Path

import torch

from data import usable_cores
from data.cache import cache_path, convert, is_fresh, open_cached
from data.downloads.arrange import Set, Target, copy_all, is_name, locate, lr_images, plan
from data.downloads.sources import open_source
from data.image import list_images, name_too_long
from data.pairs import Pair, checked, folders_of, make_lr, match
from data.parallel import for_each
from option import Parser, path_flag, whole_number
from option import build_parser as main_parser
from runtime.errors import UserError, printable, run
from runtime.log import start_log

log = logging.getLogger("krgn")

MOST_THREADS = 8  # each holds one image in float64 several times over


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="prepare.py", description="Arrange downloaded images for training and testing.")
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
    parser.add_argument("--name", type=_name, metavar="NAME", help="of the set (default: told from names of folders)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--benchmark", action="store_true", help="what SOURCE holds is to test on, whatever its name")
    kind.add_argument("--train", action="store_true", help="what SOURCE holds is to train on, whatever its name")
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
    for_tests = args.benchmark if args.benchmark or args.train else None
    targets, sets = plan(sources, dir_data, name=args.name, for_tests=for_tests, problems=problems)
    # A compressed tar file can only be read from its beginning to its end.
    n_threads = 1 if any(source.sequential for source in sources) else args.n_threads
    copy_all(targets, n_threads=n_threads, dry_run=args.dry_run, problems=problems)
    if args.dry_run:
        for each in sets:
            preview(each, targets, args.scale)
        log.info("dry run: nothing was written")
    else:
        copied = sum(target.origin is not None for target in targets)
        present = sum(target.present for target in targets)
        log.info("%d images copied, %d were there already", copied, present)
        for each in sets:
            complete(each, args.scale, args.n_threads, problems)
    for problem in problems:
        log.info("wrong: %s", printable(" ".join(problem.split())))
    if problems:
        raise UserError(
            f"{len(problems)} {'things are' if len(problems) > 1 else 'thing is'} wrong, named above: "
            "mend that and give the same command again"
        )


def expanded(source: Path, dir_data: Path) -> list[Path]:
    """The source itself, or each of the sets in it if it is --dir_data, whose folders are sets and no set's parts."""
    if not (source.is_dir() and dir_data.is_dir() and source.samefile(dir_data)):
        return [source]
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and list_images(path, nested=True)]
    return folders or [source]


def preview(each: Set, targets: list[Target], scales: tuple[int, ...]) -> None:
    """Prints what `complete` would make."""
    copied = [target for target in targets if target.each is each and target.origin]
    hr = {*each.hr, *(target.name for target in copied if not target.scale)}
    lr = {*each.lr, *((target.scale, target.name) for target in copied if target.scale)}
    missing = [(scale, name) for scale in scales for name in sorted(hr - each.disputed) if (scale, name) not in lr]
    for scale, name in missing:
        log.info("make %s", each.lr_folder / f"X{scale}" / f"{name}x{scale}.png")
    there = [*each.hr.values(), *(path for (_, name), path in each.lr.items() if name in hr)]
    stale = [path for path in there if not is_fresh(cache_path(each.root, path), path)]
    log.info("decode %d images into %s", len(stale) + len(copied) + len(missing), each.root / "bin")


def complete(each: Set, scales: tuple[int, ...], n_threads: int, problems: list[str]) -> None:
    """Makes a set's missing LR images and decoded copies, checks every pair, and prints how many are good.

    Pairs of other scales than `scales` are checked too where there are any. What is wrong with single images is added
    to `problems`.

    Raises:
        UserError: if the set's folder cannot be written.
    """
    lr = lr_images(each.lr_folder)
    try:
        located = locate(each.root, each.for_tests)
        pairs = {scale: match(located, scale, strict=False) for scale in sorted({*scales, *(scale for scale, _ in lr)})}
    except UserError as error:  # nothing could be used, or two images have one name
        alone = f"{each.root}: has {len(lr)} LR images, but no HR images: prepare those too"
        problems.append(alone if lr and not each.hr_folder.exists() else str(error))
        return

    def named(error: Exception, path: Path) -> str:
        """What is wrong with one image; what is wrong with the disk is raised."""
        if isinstance(error, UserError):
            return str(error)
        if error.errno != errno.ENAMETOOLONG:
            raise error
        return name_too_long(path)

    made: Counter[int] = Counter()
    good: list[int | None] = []  # None for each HR image that can be decoded, and the scale of each good pair

    def decode(path: Path) -> Path:
        cache = cache_path(each.root, path)
        if not is_fresh(cache, path):
            convert(path, cache)
        return cache

    def finish(index: int) -> None:
        try:
            cache = decode(located.hr[index])
        except (UserError, OSError) as error:
            problems.append(named(error, cache_path(each.root, located.hr[index])))
            return
        good.append(None)
        for scale in pairs:
            pair = pairs[scale][index]
            try:
                if not pair.lr.exists():
                    if scale not in scales or pair.name in each.disputed:
                        continue
                    make_lr(pair, open_cached(cache), scale)
                    made[scale] += 1
                checked(pair, scale)
                decode(pair.lr)
                good.append(scale)
            except (UserError, OSError) as error:
                problems.append(named(error, cache_path(each.root, pair.lr)))

    try:
        for_each(finish, list(range(len(located.hr))), n_threads=n_threads, title=each.name)
    except OSError as error:
        path = Path(error.filename or each.root)
        path = path.parent if path.suffix == ".tmp" else path
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): free the disk, change its "
            "permissions or name another folder with --dir_data, and give the same command again"
        ) from None
    for scale in pairs:
        alone = sorted({name for of, name in lr if of == scale} - {pair.name for pair in pairs[scale]})
        if alone:
            problems.append(
                f"{each.lr_folder / f'X{scale}'}: {len(alone)} LR images have no HR image, "
                f"{', '.join(alone[:3])}{' …' if len(alone) > 3 else ''}: prepare those too, or remove the LR images"
            )
    say_lr(each, pairs, made)
    count, total = Counter(good), len(located.hr)
    whole = all(count[scale] == total for scale in (None, *scales))
    log.info(
        "%s: %d HR images%s; %s",
        each.root,
        count[None],
        "".join(f", {count[scale]} pairs x{scale}" for scale in pairs),
        f"every size fits, all are decoded: main.py {'--data_test' if each.for_tests else '--data_train'} {each.name}"
        if whole
        else f"not complete, there are {total} HR images",
    )
    if located.in_tree and not each.for_tests and total > 800 and each.name != "DIV2K":
        log.info("%s: main.py trains on its first 800 images unless --data_range says otherwise", each.root)


def say_lr(each: Set, pairs: dict[int, list[Pair]], made: Counter[int]) -> None:
    """Says which LR images a set has of each scale, where they lie, and how many of them were made now."""
    for scale, of_scale in pairs.items():
        if there := [pair.lr for pair in of_scale if pair.lr.exists()]:
            where = folders_of(there)
            log.info("%s: LR x%d images: %s (%d of them made now)", each.root, scale, where, made[scale])


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
