"""Downloads -> the tree that main.py reads, complete and checked: `python prepare.py --dir_data ../dataset SOURCE...`.

A SOURCE is a folder or an archive, of any layout that `data/layouts.py` knows. Its images are copied into the tree of
the README under --dir_data; then missing LR images are made, all images are decoded into .npy copies, and every pair is
checked. Nothing is overwritten. Each file is written at once or not at all, so the same command goes on where an
interrupted one stopped. What is wrong with single images is named at the end, and the exit status is 1.
"""

import argparse
import logging
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from data import benchmark, div2k, layouts, usable_cores
from data import image as files
from data.sources import Member, Source, open_source
from data.srdata import checked, make_lr, match, name_of
from errors import UserError, run
from option import Parser, whole_number
from option import build_parser as main_parser
from utility import start_log, write_bytes

log = logging.getLogger("krgn")

MOST_THREADS = 8  # each holds one image in float64 several times over


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="prepare.py", description="Arrange downloaded images for training and testing.")
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder of images or an archive (.zip, .tar, .tar.gz): DIV2K, benchmark sets, images of your own",
    )
    parser.add_argument(
        "--dir_data",
        default=main_parser().get_default("dir_data"),
        metavar="DIR",
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
    sources = [open_source(Path(path)) for path in args.sources]
    problems: list[str] = []
    targets, sets = plan(sources, args, problems)
    arrange(targets, sources, args, problems)
    if args.dry_run:
        for each in sets:
            preview(each, targets, args.scale)
        log.info("dry run: nothing was written")
    else:
        copied = sum(target.copied for target in targets)
        present = sum(target.present for target in targets)
        log.info("%d images copied, %d were there already", copied, present)
        for each in sets:
            complete(each, args.scale, args.n_threads, problems)
    for problem in problems:
        log.info("wrong: %s", " ".join(problem.split()))
    if problems:
        raise UserError(
            f"{len(problems)} of these steps or files are wrong, named above: mend them and give the same command again"
        )


# --- what goes where ---


@dataclass(frozen=True)
class Set:
    """A set's place in the tree, and the images that it has already: name -> file, and for LR (scale, name) -> file."""

    name: str
    for_tests: bool
    root: Path
    hr_folder: Path
    lr_folder: Path
    hr: dict[str, Path]
    lr: dict[tuple[int, str], Path]


@dataclass
class Target:
    """One image of the tree, and the files that are to become it: one as a rule, several if HR comes with each scale.

    Args:
        path: of the file; without suffix as long as there is none.
        present: whether it was there before.
        each, name: the set, and the image's name in it.
        scale: of an LR image, None for HR.
        copied: whether it was copied, or would have been in a dry run.
    """

    path: Path
    present: bool
    each: Set
    name: str
    scale: int | None
    candidates: list[tuple[Member, layouts.Image]] = field(default_factory=list)
    copied: bool = False


def locate(root: Path, for_tests: bool) -> div2k.Located:
    """The files of a set, as main.py finds them."""
    return benchmark.locate(root) if for_tests else div2k.locate(root)


def place(dir_data: Path, name: str, for_tests: bool) -> Set:
    """Where the set lies or is to lie. A folder that main.py reads already keeps its shape."""
    root = dir_data / "benchmark" / name if for_tests else dir_data / name
    try:
        located = locate(root, for_tests)
        hr_folder, lr_folder = located.base, located.lr_folder
        hr = {name_of(path, located.base): path for path in located.hr}
    except UserError:  # nothing there yet
        stem = "" if for_tests else f"{name}_train_"
        hr_folder, lr_folder, hr = root / f"{stem}HR", root / f"{stem}LR_bicubic", {}
    return Set(name, for_tests, root, hr_folder, lr_folder, hr, lr_images(lr_folder))


def lr_images(lr_folder: Path) -> dict[tuple[int, str], Path]:
    """(scale, name) -> file, in the folders X2, X3, …"""
    found = {}
    for path in sorted(lr_folder.glob("X[2-9]/*")):
        scale = int(path.parent.name[1:])
        if path.suffix.lower() in files.SUFFIXES and not path.name.startswith("."):
            found[scale, path.stem.removesuffix(f"x{scale}")] = path
    return found


def plan(sources: list[Source], args, problems: list[str]) -> tuple[list[Target], list[Set]]:
    """Every image's place in the tree, with a line in the log for what each source holds.

    Raises:
        UserError: for a source without images, or whose set has no name that main.py could be given.
    """
    found = [pair for source in sources for pair in recognised(source, args)]
    sets = {key: place(Path(args.dir_data), *key) for key in dict.fromkeys(_set_of(image) for _, image in found)}
    if args.name and len(sets) > 1:
        raise UserError(f"--name {args.name}: SOURCE holds sets to train on and to test on: add --benchmark or --train")
    hr = {(*_set_of(image), image.name): member for member, image in found if not image.lr}
    targets: dict[tuple, Target] = {}
    for member, image in found:
        each, scale = sets[_set_of(image)], None
        if image.lr:
            try:
                scale = image.scale or measured_scale(member, each, image.name, hr.get((*_set_of(image), image.name)))
            except UserError as error:
                problems.append(str(error))
                continue
        key = (each.root, scale, image.name)
        if key not in targets:
            there = each.lr.get((scale, image.name)) if scale else each.hr.get(image.name)
            new = each.lr_folder / f"X{scale}" / f"{image.name}x{scale}" if scale else each.hr_folder / image.name
            targets[key] = Target(there or new, there is not None, each, image.name, scale)
        targets[key].candidates.append((member, image))
    return list(targets.values()), list(sets.values())


def _set_of(image: layouts.Image) -> tuple[str, bool]:
    return image.set_name, image.benchmark


def recognised(source: Source, args) -> list[tuple[Member, layouts.Image]]:
    """The images of a source, under the name and of the kind that the user wants, with lines in the log."""
    name = source.name if source.is_archive else layouts.context(source.path.resolve().parts[1:])
    members = {member.path: member for member in source.members}
    images, passed_over = layouts.recognise(name, list(members), is_archive=source.is_archive)
    if not images:
        counts = "; ".join(f"{count} {reason}" for reason, count in passed_over.most_common(3)) or "it is empty"
        raise UserError(
            f"{source.path}: holds no images that can be used ({counts}): give the folder or archive of the images"
        )
    names = sorted({image.set_name for image in images})
    if args.name and len(names) > 1:
        raise UserError(
            f"--name {args.name}: {source.path} holds {len(names)} sets, {' and '.join(names)}: "
            "give the folder of one of them, or drop --name"
        )
    wanted = [
        replace(
            image,
            set_name=args.name or image.set_name,
            benchmark=args.benchmark or (image.benchmark and not args.train),
        )
        for image in images
    ]
    for (set_name, for_tests, lr), count in Counter((*_set_of(image), image.lr) for image in wanted).items():
        if not is_name(set_name):
            raise UserError(
                f"{source.path}: what is in it needs a name that --data_train can be given, "
                f"not {set_name!r}: add --name NAME"
            )
        kind = "to test on" if for_tests else "to train on"
        log.info("%s: %d %s images of %s, %s", source.path, count, "LR" if lr else "HR", set_name, kind)
    for reason, count in passed_over.items():
        log.info("%s: passed over %d %s", source.path, count, reason)
    return [(members[image.path], image) for image in wanted]


def measured_scale(lr: Member, each: Set, name: str, hr: Member | None) -> int:
    """The scale of an LR image whose path does not say it, from its size and that of its HR image.

    Raises:
        UserError: if there is no HR image, or no scale fits.
    """
    if hr is None and name not in each.hr:
        raise UserError(f"{lr.label}: is an LR image, but not said of which scale: put it in a folder X2, X3 or X4")
    height, width = files.read_size(lr.label, lr.read())
    size = files.read_size(hr.label, hr.read()) if hr else files.read_size(each.hr[name])
    scale = round(size[0] / height)
    if scale < 2 or (size[0] // scale, size[1] // scale) != (height, width):
        raise UserError(
            f"{lr.label}: {width}x{height} pixels are no whole fraction of its HR image's {size[1]}x{size[0]}: "
            "leave it out, and it is made from HR"
        )
    return scale


# --- copying ---


def arrange(targets: list[Target], sources: list[Source], args, problems: list[str]) -> None:
    """Copies what is not there yet. What cannot be used is added to `problems` and left out."""

    def settle(target: Target) -> None:
        chosen = choose(target, problems)
        if chosen is not None:
            member, content = chosen
            target.path = target.path.with_name(target.path.name + member.path.suffix.lower())
            if not args.dry_run:
                write_bytes(target.path, content)
            target.copied = True

    n_threads = 1 if any(source.sequential for source in sources) else args.n_threads
    files.for_each(settle, targets, n_threads=n_threads, title="reading" if args.dry_run else "copying")
    for target in targets if args.dry_run else ():
        if target.copied:
            log.info("copy %s -> %s", target.candidates[0][0].label, target.path)
        elif target.present:
            log.info("keep %s", target.path)


def choose(target: Target, problems: list[str]) -> tuple[Member, bytes] | None:
    """The file to copy, out of those that are to become one image; None if it is there already or cannot be used.

    All must hold the same pixels. HR images that were published for one scale may be cropped to a multiple of it: the
    largest is taken then, and the others must be its upper left part.
    """
    if target.present and len(target.candidates) == 1:
        member = target.candidates[0][0]
        try:
            if member.read() == target.path.read_bytes():
                return None
        except UserError as error:
            problems.append(str(error))
            return None
    decoded = []
    for member, image in target.candidates:
        try:
            content = member.read()
            decoded.append((files.read_image(member.label, content), member, image, content))
        except UserError as error:
            problems.append(str(error))
    decoded.sort(key=lambda one: -one[0].size)
    if not decoded:
        return None
    kept, label = decoded[0][0], decoded[0][1].label
    if target.present:
        try:
            kept, label = files.read_image(target.path), str(target.path)
        except UserError as error:
            problems.append(str(error))
            return None
    for pixels, member, image, _ in decoded:
        height, width = pixels.shape[:2]
        part = kept[:height, :width] if image.scale and not image.lr else kept
        if part.shape[:2] != pixels.shape[:2] or not (part == pixels).all():  # gray equals the same gray as RGB
            problems.append(
                f"{member.label}: differs from {label}, which has its place: remove the wrong one of the two"
            )
    return None if target.present else (decoded[0][1], decoded[0][3])


# --- what is made of the images, and the check ---


def preview(each: Set, targets: list[Target], scales: tuple[int, ...]) -> None:
    """Prints what `complete` would make."""
    copied = [target for target in targets if target.each is each and target.copied]
    hr = {*each.hr, *(target.name for target in copied if not target.scale)}
    lr = {*each.lr, *((target.scale, target.name) for target in copied if target.scale)}
    for scale in scales:
        for name in sorted(hr):
            if (scale, name) not in lr:
                log.info("make %s", each.lr_folder / f"X{scale}" / f"{name}x{scale}.png")
                lr.add((scale, name))
    decoded = len(hr) + sum(name in hr for _, name in lr)
    log.info("decode %d images into %s, those that are not there", decoded, each.root / "bin")


def complete(each: Set, scales: tuple[int, ...], n_threads: int, problems: list[str]) -> None:
    """Makes a set's missing LR images and decoded copies, checks every pair, and prints how many are good.

    Pairs of other scales than `scales` are checked too where there are any. What is wrong with single images is added
    to `problems`.

    Raises:
        UserError: if the set's folder cannot be written.
    """
    try:
        located = locate(each.root, each.for_tests)
        lr = lr_images(located.lr_folder)
        pairs = {
            scale: match(located.hr, located.lr_folder, scale, located.base)
            for scale in sorted({*scales, *(scale for scale, _ in lr)})
        }
    except UserError as error:  # LR images alone, or two images of one name
        problems.append(str(error))
        return
    good: list[int | None] = []  # None for each HR image that can be decoded, and the scale of each good pair

    def decode(path: Path) -> Path:
        cache = files.cache_path(each.root, path)
        if not files.is_fresh(cache, path):
            files.convert(path, cache)
        return cache

    def finish(index: int) -> None:
        try:
            cache = decode(located.hr[index])
        except UserError as error:
            problems.append(str(error))
            return
        good.append(None)
        for scale in pairs:
            pair = pairs[scale][index]
            try:
                if not pair.lr.exists():
                    if scale not in scales:
                        continue
                    make_lr(pair, files.open_cached(cache), scale)
                checked(pair, scale)
                decode(pair.lr)
                good.append(scale)
            except UserError as error:
                problems.append(str(error))

    try:
        files.for_each(finish, list(range(len(located.hr))), n_threads=n_threads, title=each.name)
    except OSError as error:
        raise UserError(
            f"{error.filename or each.root}: cannot be written ({error.strerror}): free the disk, change its "
            "permissions or name another folder with --dir_data, and give the same command again"
        ) from None
    for scale in pairs:
        alone = sorted({name for of, name in lr if of == scale} - {pair.name for pair in pairs[scale]})
        if alone:
            problems.append(
                f"{located.lr_folder / f'X{scale}'}: {len(alone)} LR images have no HR image, "
                f"{', '.join(alone[:3])}{' …' if len(alone) > 3 else ''}: prepare those too, or remove the LR images"
            )
    count, total = Counter(good), len(located.hr)
    log.info(
        "%s: %s HR images%s: sizes fit, all decoded; %s",
        each.root,
        total if count[None] == total else f"{count[None]} of {total}",
        "".join(f", {count[scale]} pairs x{scale}" for scale in pairs),
        f"--data_test {each.name}" if each.for_tests else f"--data_train {each.name}",
    )
    if located.in_tree and not each.for_tests and total > 800 and each.name != "DIV2K":
        log.info("%s: main.py trains on its first 800 images unless --data_range says otherwise", each.root)


# --- flags ---


def _scales(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[2-9](\+[2-9])*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected scales joined by +, as in 2+3+4")
    return tuple(sorted({int(part) for part in text.split("+")}))


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a plain name without / + and *, as in Photos")
    return text


def is_name(text: str) -> bool:
    """Whether main.py's --data_train and --data_test would take this as the name of a set."""
    return bool(re.fullmatch(r"[^/\\\s.+*][^/\\\n+*]*", text)) and text not in ("benchmark", "Demo")


if __name__ == "__main__":
    run(main)
