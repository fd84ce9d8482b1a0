"""Test sets by keyword, for programs whose command line is not that of main.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from data import build_test_sets
from data.testset import TestSet

Ranges = tuple[tuple[int, int], tuple[int, int]]  # first and last image, from 1, for training and for testing

DIV2K = ((1, 800), (801, 810))


@dataclass(frozen=True, kw_only=True)
class _Flags:
    """The flags of main.py that `build_test_sets` reads."""

    data_test: tuple[str, ...]
    dir_data: str
    scale: int
    n_colors: int
    ext: str
    data_range: Ranges
    given: frozenset[str]
    degradation: str = "bicubic"
    seed: int = 1
    n_threads: int = 6
    test_only: bool = True


def open_test_sets(
    names: Sequence[str],
    *,
    dir_data: str,
    scale: int,
    n_colors: int = 3,
    ext: str = "sep",
    data_range: Ranges | None = None,
) -> list[TestSet]:
    """The sets below `dir_data` with these names, with ground truth and bicubic LR images.

    Args:
        n_colors: 3: RGB; 1: luma Y.
        ext: sep, sep_reset or img, as in main.py.
        data_range: which images of a set in DIV2K's shape are tested; None: those of DIV2K, or a whole folder.

    Raises:
        UserError: if a folder is missing, or an image cannot be used.
    """
    given = frozenset() if data_range is None else frozenset({"data_range"})
    return build_test_sets(
        _Flags(
            data_test=tuple(names),
            dir_data=dir_data,
            scale=scale,
            n_colors=n_colors,
            ext=ext,
            data_range=data_range or DIV2K,
            given=given,
        )
    )
