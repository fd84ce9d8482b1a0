"""Completes a set in the tree: makes missing LR images and decoded copies, and checks every pair."""

import errno
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data.cache import cache_path, convert, is_fresh, open_cached
from data.downloads.arrange import SetPlace, Target, locate, lr_images
from data.folders import Located
from data.image import name_too_long
from data.pairs import Pair, checked, folders_of, make_lr, match
from data.parallel import for_each
from runtime.errors import UserError

log = logging.getLogger("krgn")


def preview(place: SetPlace, targets: list[Target], scales: tuple[int, ...]) -> None:
    """Logs what `complete` would make after the targets are copied."""
    copied = [target for target in targets if target.place is place and target.origin]
    hr = {*place.hr, *(target.name for target in copied if not target.scale)}
    lr = {*place.lr, *((target.scale, target.name) for target in copied if target.scale)}
    missing = [(scale, name) for scale in scales for name in sorted(hr - place.disputed) if (scale, name) not in lr]
    for scale, name in missing:
        log.info("make %s", place.lr_folder / f"X{scale}" / f"{name}x{scale}.png")
    there = [*place.hr.values(), *(path for (_, name), path in place.lr.items() if name in hr)]
    stale = [path for path in there if not is_fresh(cache_path(place.root, path), path)]
    log.info("decode %d images into %s", len(stale) + len(copied) + len(missing), place.root / "bin")


def complete(place: SetPlace, scales: tuple[int, ...], n_threads: int, problems: list[str]) -> None:
    """Makes a set's missing LR images and decoded copies, checks every pair, and logs how many are good.

    Args:
        scales: at which LR images are made. Pairs of other scales are checked too where there are any.
        problems: one line is added for each image that cannot be used.

    Raises:
        UserError: if the set's folder cannot be written.
    """
    lr = lr_images(place.lr_folder)
    try:
        located = locate(place.root, place.benchmark)
        pairs = {scale: match(located, scale, strict=False) for scale in sorted({*scales, *(scale for scale, _ in lr)})}
    except UserError as error:  # nothing could be used, or two images have one name
        alone = f"{place.root}: has {len(lr)} LR images, but no HR images: prepare those too"
        problems.append(alone if lr and not place.hr_folder.exists() else str(error))
        return
    work = _Completion(place, scales, located, pairs, problems)
    try:
        for_each(work.finish, list(range(len(located.hr))), n_threads=n_threads, title=place.name)
    except OSError as error:
        path = Path(error.filename or place.root)
        path = path.parent if path.suffix == ".tmp" else path
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): free the disk, change its "
            "permissions or name another folder with --dir_data, and give the same command again"
        ) from None
    for scale in pairs:
        alone = sorted({name for of, name in lr if of == scale} - {pair.name for pair in pairs[scale]})
        if alone:
            problems.append(
                f"{place.lr_folder / f'X{scale}'}: {len(alone)} LR images have no HR image, "
                f"{', '.join(alone[:3])}{' …' if len(alone) > 3 else ''}: prepare those too, or remove the LR images"
            )
    _log_lr(work)
    _log_counts(work)


@dataclass
class _Completion:
    """The work on one set, image by image, on several threads.

    Args:
        pairs: by scale, each list in the order of `located.hr`.
        problems: one line for each image that cannot be used.
        made: the scale of each LR image that was made.
        decoded: the HR images that can be decoded.
        good: the scale of each pair that is complete and fits.
    """

    place: SetPlace
    scales: tuple[int, ...]
    located: Located
    pairs: dict[int, list[Pair]]
    problems: list[str]
    made: list[int] = field(default_factory=list)
    decoded: list[Path] = field(default_factory=list)
    good: list[int] = field(default_factory=list)

    def finish(self, index: int) -> None:
        """Decodes one HR image, and makes, checks and decodes its LR image of each scale.

        Raises:
            OSError: if the disk cannot be written.
        """
        hr = self.located.hr[index]
        try:
            cache = self._decode(hr)
        except (UserError, OSError) as error:
            self._report(error, hr)
            return
        self.decoded.append(hr)
        for scale in self.pairs:
            pair = self.pairs[scale][index]
            try:
                if not pair.lr.exists():
                    if scale not in self.scales or pair.name in self.place.disputed:
                        continue
                    make_lr(pair, open_cached(cache), scale)
                    self.made.append(scale)
                checked(pair, scale)
                self._decode(pair.lr)
                self.good.append(scale)
            except (UserError, OSError) as error:
                self._report(error, pair.lr)

    def _decode(self, image: Path) -> Path:
        """Makes the decoded copy of an image unless there is one, and returns its path."""
        cache = cache_path(self.place.root, image)
        if not is_fresh(cache, image):
            convert(image, cache)
        return cache

    def _report(self, error: Exception, image: Path) -> None:
        """Notes a problem of one image; raises a problem of the disk again."""
        if isinstance(error, UserError):
            self.problems.append(str(error))
        elif error.errno == errno.ENAMETOOLONG:
            self.problems.append(name_too_long(cache_path(self.place.root, image)))
        else:
            raise error


def _log_lr(work: _Completion) -> None:
    """Logs the LR images of each scale: how many, where, and how many of them were made now."""
    made = Counter(work.made)
    for scale, pairs in work.pairs.items():
        if there := [pair.lr for pair in pairs if pair.lr.exists()]:
            where = folders_of(there)
            log.info("%s: LR x%d images: %s (%d of them made now)", work.place.root, scale, where, made[scale])


def _log_counts(work: _Completion) -> None:
    """Logs how many images and pairs are good, and the flag that uses the set if all are."""
    place, good, total = work.place, Counter(work.good), len(work.located.hr)
    whole = len(work.decoded) == total and all(good[scale] == total for scale in work.scales)
    flag = "--data_test" if place.benchmark else "--data_train"
    log.info(
        "%s: %d HR images%s; %s",
        place.root,
        len(work.decoded),
        "".join(f", {good[scale]} pairs x{scale}" for scale in work.pairs),
        f"every size fits, all are decoded: main.py {flag} {place.name}"
        if whole
        else f"not complete, there are {total} HR images",
    )
    if work.located.in_tree and not place.benchmark and total > 800 and place.name != "DIV2K":
        log.info("%s: main.py trains on its first 800 images unless --data_range says otherwise", place.root)
