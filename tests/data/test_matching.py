"""Which LR images a set is trained and tested with: the user's own wherever they lie, or one line that says why not.
LR images are made only where there are no others. main.py and prepare.py follow the same rule."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare
from data import build_test_sets, build_train_set
from data.image import read_image, write_png
from data.roles import unmark
from option import parse_args
from runtime.errors import UserError

NAMES = ("0001", "0002", "0003")


@pytest.fixture(autouse=True)
def _log(caplog):
    logger = logging.getLogger("krgn")
    caplog.set_level(logging.INFO, "krgn")
    before, logger.propagate = logger.propagate, True
    yield
    logger.propagate = before


def make(root: Path, *patterns: str, height: int = 30, value: int = 7, names=NAMES) -> None:
    """Writes images named by the patterns, {n} standing for each name; `value` tells LR images from HR images."""
    for pattern in patterns:
        for number, name in enumerate(names):
            path = root / pattern.format(n=name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((height, height + 2, 3), value + number, np.uint8)).save(path)


def make_hr(root: Path, *patterns: str, names=NAMES) -> None:
    make(root, *patterns, height=60, value=100, names=names)
    for pattern in patterns:  # 60x64, twice 30x32
        for name in names:
            path = root / pattern.format(n=name)
            Image.open(path).resize((64, 60)).save(path)


def trained(dataset: Path, name: str = "Own", *flags: str):
    return build_train_set(
        parse_args(["--dir_data", str(dataset), "--data_train", name, "--scale", "2", "--patch_size", "24", *flags])
    )


def sets_to_test(dataset: Path, name: str, *flags: str):
    testing = ["--dir_data", str(dataset), "--data_test", name, "--scale", "2", "--test_only", "--pre_train", "-"]
    return build_test_sets(parse_args([*testing, *flags]))


def lr_values(samples) -> list[int]:
    """The first value of each LR image: it tells the user's images from those made from HR."""
    return [int(read_image(pair.lr)[0, 0, 0]) for pair, _ in samples.images]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".npy"}


TREE = [
    "X2/{n}.png",
    "X2/{n}x2.png",
    "x2/{n}x2.png",
    "X2/{n}_x2.png",
    "x2/{n}.bmp",
    "LR_bicubic/{n}x2.png",
    "LR_bicubic/{n}.png",
    "LR_bicubic/X2/{n}.png",
    "LR_bicubic/x2/{n}x2.png",
    "LR_bicubic/X2/{n}_x2.png",
    "LR_bicubic_X2/{n}x2.png",
    "Own_train_LR_bicubic/X2/{n}.png",
    "Own_train_LR_bicubic/x2/{n}x2.png",
    "Own_train_LR_bicubic/{n}x2.png",
    "Own_train_LR_bicubic_X2/{n}x2.png",
    "Own_train_LR_bicubic_X2/X2/{n}x2.png",
    "Own_train_LR_unknown/X2/{n}x2.png",
    "Own_train_LR_mild/{n}x2m.png",
    "Own_train_LR_difficult/{n}x2d.png",
    "Own_train_LR_wild/X2/{n}x2w1.png",
    "Own_train_LR/{n}.png",
    "Own_train_LR/X2/{n}x2.png",
    "Own_LR_bicubic/X2/{n}x2.png",
    "own_TRAIN_lr/{n}.PNG",
    "Own_valid_LR_bicubic/X2/{n}x2.png",
    "LR/{n}.png",
    "LR/x2/{n}_LR.png",
    "LR/LRBI/Own/x2/{n}_LRBI_x2.png",
    "LRBI/x2/{n}_LRBI_x2.png",
    "LRbicx2/{n}.png",
    "LRx2/{n}.png",
    "LQ/{n}.png",
    "trainL/{n}.png",
    "trainLR/{n}.png",
    "low_resolution/{n}.png",
    "LowRes/{n}.png",
    "image_SRF_2/{n}_SRF_2_LR.png",
    "input/{n}.png",
    "bicubic/X2/{n}.png",
    "{n}x2.png",
    "{n}_LR.png",
]


@pytest.mark.parametrize("pattern", TREE)
@pytest.mark.parametrize("hr", ["Own_train_HR/{n}.png", "HR/{n}.png"])
def test_lr_images_beside_an_hr_folder_are_used(tmp_path, pattern, hr, caplog):
    make_hr(tmp_path / "Own", hr)
    make(tmp_path / "Own", pattern)
    before = files_below(tmp_path)
    samples = trained(tmp_path)
    assert lr_values(samples) == [7, 8, 9]
    assert [pair.name for pair, _ in samples.images] == list(NAMES)
    assert files_below(tmp_path) == before
    folder = (tmp_path / "Own" / pattern.format(n="x")).parent
    assert f"LR x2 images: 3 of {folder}" in caplog.text
    (tested,) = sets_to_test(tmp_path, "Own", "--data_range", "1-1/2-3")
    assert [int(tested[k][0][0, 0, 0]) for k in range(2)] == [8, 9]


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("HR/{n}.png", "LR/x2/{n}.png"),
        ("HR/{n}.png", "x2/{n}.png"),
        ("HR/{n}_HR.png", "LR/{n}_LR2.png"),
        ("GTmod12/{n}.png", "LRbicx2/{n}.png"),
        ("gt/{n}.png", "lq/{n}.png"),
        ("HR/{n}_HR_x2.png", "LRBI/{n}_LRBI_x2.png"),
    ],
)
def test_lr_images_of_a_benchmark_set_are_used(tmp_path, hr, lr, caplog):
    make_hr(tmp_path / "benchmark/Mine", hr)
    make(tmp_path / "benchmark/Mine", lr)
    before = files_below(tmp_path)
    (tested,) = sets_to_test(tmp_path, "Mine")
    assert [int(tested[k][0][0, 0, 0]) for k in range(3)] == [7, 8, 9]
    assert files_below(tmp_path) == before
    assert "LR x2 images: 3 of" in caplog.text


PAIRS = [
    ("{n}_HR.png", "{n}_LR2.png"),
    ("{n}_HR.png", "{n}_LRx2.png"),
    ("{n}-hr.png", "{n}-lr.png"),
    ("HR_{n}.png", "LR_{n}.png"),
    ("{n}_gt.png", "{n}_lq.png"),
    ("{n}.png", "{n}_LR.png"),
    ("{n}.png", "{n}x2.png"),
    ("{n}.png", "X2/{n}.png"),
    ("{n}.png", "x2/{n}x2.png"),
    ("{n}.png", "LR/{n}.png"),
    ("{n}.png", "LR_bicubic/X2/{n}x2.png"),
    ("high_resolution/{n}.png", "low_resolution/{n}.png"),
    ("High Resolution/{n}.png", "Low Resolution/{n}.png"),
    ("highres/{n}.png", "lowres/{n}.png"),
    ("high/{n}.png", "low/{n}.png"),
    ("GT/{n}.png", "LQ/{n}.png"),
    ("gt/{n}.png", "lq/{n}.png"),
    ("hr/{n}.png", "lr/{n}.png"),
    ("HQ/{n}.png", "LQ/{n}.png"),
    ("trainH/{n}.png", "trainL/{n}.png"),
    ("train/trainH/{n}.png", "train/trainL/{n}.png"),
    ("train_HR/{n}.png", "train_LR/{n}.png"),
    ("HR_train/{n}.png", "LR_train/{n}.png"),
    ("train/HR/{n}.png", "train/LR/{n}.png"),
    ("sharp/{n}.png", "blur/{n}.png"),
    ("target/{n}.png", "input/{n}.png"),
    ("original/{n}.png", "downsampled_x2/{n}.png"),
    ("Own_train_HR_sub/{n}_s001.png", "Own_train_LR_bicubic/X2_sub/{n}_s001.png"),
    ("Canon/Train/2/Canon_{n}_HR.png", "Canon/Train/2/Canon_{n}_LR2.png"),
    ("image_SRF_2/img_{n}_SRF_2_HR.png", "image_SRF_2/img_{n}_SRF_2_LR.png"),
    ("HR/Own/x2/{n}_HR_x2.png", "LR/LRBI/Own/x2/{n}_LRBI_x2.png"),
    ("ground-truth/{n}.png", "low-quality/{n}.png"),
    ("clean/a/{n}.png", "noisy/a/{n}.png"),
    ("{n}_sharp.png", "{n}_blur.png"),
    ("{n}HR.png", "{n}LR.png"),
    ("HR/{n}HR.png", "LR/{n}LR.png"),
    ("HR/{n}.png", "LR/X2_sub/{n}.png"),
    ("HR/{n}.png", "LR/bicubic_x2/{n}.png"),
    ("HR/{n}.png", "LR/{n}_lowres.png"),
    ("train/gt/{n}.png", "train/lq/{n}.png"),
    ("train/train_sharp/000/{n}.png", "train/train_sharp_bicubic/X2/000/{n}.png"),
]


@pytest.mark.parametrize(("hr", "lr"), PAIRS)
def test_pairs_are_told_from_one_another(tmp_path, hr, lr):
    """main.py trains on three pairs, not on six HR images; prepare.py makes a set of the same three."""
    make_hr(tmp_path / "data/Own", hr)
    make(tmp_path / "data/Own", lr)
    before = files_below(tmp_path)
    samples = trained(tmp_path / "data")
    assert lr_values(samples) == [7, 8, 9]
    assert files_below(tmp_path) == before

    prepare.main(["--dir_data", str(tmp_path / "dataset"), str(tmp_path / "data/Own"), "--scale", "2", "--train"])
    (root,) = (tmp_path / "dataset").iterdir()
    assert len(list(root.glob("*_train_HR/*"))) == 3
    assert lr_values(trained(tmp_path / "dataset", root.name)) == [7, 8, 9]
    if root.name != "Own":  # Own/train/HR is a set called train
        return
    # Again, in place: nothing is made beside it.
    prepare.main(["--dir_data", str(tmp_path / "data"), str(tmp_path / "data/Own"), "--scale", "2", "--train"])
    assert files_below(tmp_path / "data") == {name.removeprefix("data/") for name in before}


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("big/{n}.png", "tiny/{n}.png"),
        ("A/{n}.png", "B/{n}.png"),
        ("{n}_b.png", "{n}_s.png"),
        ("full-{n}.png", "half-{n}.png"),
        ("a{n}b.png", "a{n}c.png"),
        ("Own_train_HR/{n}.png", "Own_train_HR_x2/{n}.png"),
        ("HR/{n}.png", "mini/{n}.png"),
        ("Own_train_HR/{n}.png", "foo/{n}x2.png"),
    ],
)
def test_images_that_look_like_pairs_are_refused(tmp_path, hr, lr):
    make_hr(tmp_path / "data/Own", hr)
    make(tmp_path / "data/Own", lr)
    before = files_below(tmp_path)
    for act in (
        lambda: trained(tmp_path / "data"),
        lambda: prepare.main(["--dir_data", str(tmp_path / "dataset"), str(tmp_path / "data/Own"), "--scale", "2"]),
    ):
        with pytest.raises(UserError, match="LR image"):
            act()
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("hr", "lr", "words"),
    [
        ("HR/{n}.png", "LR/other_{n}.png", "have no HR image"),
        ("HR/{n}.png", "LR_bicubic/X2/img{n}x2.png", "have no HR image"),
        ("HR/{n}.png", "LR_mild/X2/{n}.png|LR_wild/X2/{n}.png", "2 kinds of LR x2 images"),
        ("HR/{n}.png", "LR_wild/X2/{n}x2w1.png|LR_wild/X2/{n}x2w2.png", "2 LR x2 images of"),
        ("HR/{n}.png", "LR/{n}.npy", "not an image"),
    ],
)
def test_lr_images_that_are_not_understood_are_named(tmp_path, hr, lr, words):
    make_hr(tmp_path / "Own", hr)
    for pattern in lr.split("|"):
        if pattern.endswith("npy"):
            (tmp_path / "Own/LR").mkdir()
            (tmp_path / "Own/LR/0001.npy").write_bytes(b"x")
        else:
            make(tmp_path / "Own", pattern)
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=words) as raised:
        trained(tmp_path)
    assert "\n" not in str(raised.value)
    assert files_below(tmp_path) == before


def test_lr_images_of_some_hr_images(tmp_path):
    """A mistake in the user's own folder; where LR images are made, a killed run may have left some."""
    make_hr(tmp_path / "Own", "HR/{n}.png")
    make(tmp_path / "Own", "LR/{n}.png", names=NAMES[:2])
    with pytest.raises(UserError, match=r"2 of 3 HR images, none of .*0003"):
        trained(tmp_path)
    (tmp_path / "Own/LR").rename(tmp_path / "Own/LR_bicubic")
    with pytest.raises(UserError, match=r"2 of 3 HR images, none of .*0003"):
        trained(tmp_path)
    for name in NAMES[:2]:
        (tmp_path / "Own/LR_bicubic/X2").mkdir(exist_ok=True)
        (tmp_path / f"Own/LR_bicubic/{name}.png").rename(tmp_path / f"Own/LR_bicubic/X2/{name}x2.png")
    assert lr_values(trained(tmp_path))[:2] == [7, 8]
    assert (tmp_path / "Own/LR_bicubic/X2/0003x2.png").exists()


def test_bicubic_lr_images_come_first_and_others_are_logged(tmp_path, caplog):
    make_hr(tmp_path / "Own", "Own_train_HR/{n}.png")
    make(tmp_path / "Own", "Own_train_LR_bicubic/X2/{n}x2.png")
    make(tmp_path / "Own", "Own_train_LR_unknown/X2/{n}x2.png", value=50)
    assert lr_values(trained(tmp_path)) == [7, 8, 9]
    assert f"{tmp_path / 'Own/Own_train_LR_unknown/X2'}: LR x2 images there are not used" in caplog.text


def test_nothing_is_made_for_images_whose_lr_images_are_not_understood(tmp_path, capsys):
    """prepare.py names them and makes no others for them; the other images are completed."""
    make_hr(tmp_path / "Own", "HR/{n}.png")
    make(tmp_path / "Own", "LR/{n}.png", height=23, names=NAMES[:1])
    with pytest.raises(UserError, match="1 thing is wrong"):
        prepare.main(["--dir_data", str(tmp_path / "dataset"), str(tmp_path / "Own"), "--scale", "2"])
    made = tmp_path / "dataset/Own/Own_train_LR_bicubic/X2"
    assert sorted(path.name for path in made.iterdir()) == ["0002x2.png", "0003x2.png"]
    assert "0001.png: 25x23 pixels are not a whole fraction" in capsys.readouterr().out


def test_lr_images_of_another_scale_do_not_keep_any_from_being_made(tmp_path):
    make_hr(tmp_path / "Own", "Own_train_HR/{n}.png")
    make(tmp_path / "Own", "Own_train_LR_bicubic/X4/{n}x4.png", height=15)
    trained(tmp_path)
    assert len(list((tmp_path / "Own/Own_train_LR_bicubic/X2").iterdir())) == 3
    # Where no name says the scale, the user is asked.
    make_hr(tmp_path / "Two", "HR/{n}.png")
    for name in NAMES:
        write_png(tmp_path / f"Two/LR/{name}.png", np.zeros((15, 16, 3), np.uint8))
    with pytest.raises(UserError, match="is LR x4 by its size, not x2: give --scale 4"):
        trained(tmp_path, "Two")
    assert lr_values(trained(tmp_path, "Two", "--scale", "4")) == [0, 0, 0]


def test_folders_of_own_images_may_have_any_names(tmp_path):
    """Words that mean LR or HR elsewhere are plain names where there is no pair."""
    names = [
        "x2/a.png",
        "low/b.png",
        "input/c.png",
        "2019/d_low.png",
        "hrvatska/e_x2.png",
        "original/f.png",
        "g_HR.png",
    ]
    for name in names:
        make(tmp_path / "Own", name, height=50, names=[""])
    samples = trained(tmp_path)
    assert [pair.name for pair, _ in samples.images] == sorted(
        name.removesuffix(".png").replace("/", "__") for name in names
    )
    assert all(pair.lr.parent == tmp_path / "Own/bin/LR_bicubic/X2" for pair, _ in samples.images)


def test_a_set_that_is_the_hr_folder_alone(tmp_path):
    make_hr(tmp_path, "DIV2K_train_HR/{n}.png", "other/{n}.png")
    make(tmp_path, "DIV2K_train_LR_bicubic/X2/{n}x2.png")
    with pytest.raises(UserError, match=rf"--dir_data {tmp_path.parent} and {tmp_path.name} as the set"):
        trained(tmp_path, "DIV2K_train_HR")
    trained(tmp_path, "other")


def test_a_set_of_lr_images_only_is_refused(tmp_path):
    make(tmp_path / "Own", "LR/{n}.png")
    with pytest.raises(UserError, match="found 3 LR images"):
        trained(tmp_path)


@pytest.mark.parametrize("place", ["Own_train_LR_bicubic/X2", "LR", "X2"])
@pytest.mark.parametrize("kind", ["empty", "pipe", "broken", "HR"])
def test_lr_folders_without_lr_images(tmp_path, place, kind):
    """One line each, and nothing is written, except where LR images are made anyway."""
    make_hr(tmp_path / "Own", "Own_train_HR/{n}.png")
    folder = tmp_path / "Own" / place
    folder.parent.mkdir(exist_ok=True)
    if kind == "HR":
        folder.symlink_to(tmp_path / "Own/Own_train_HR")
    else:
        folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "0001x2.png")
    elif kind == "broken":
        (folder / "0001x2.png").symlink_to(tmp_path / "nothing.png")
    before = {str(path) for path in tmp_path.rglob("*")}
    if kind == "empty" and "bicubic" in place:
        assert len(trained(tmp_path)) == 3
        return
    with pytest.raises(UserError) as raised:
        trained(tmp_path)
    assert str(folder) in str(raised.value)
    assert {str(path) for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("baby_LRBI_x4", ("baby", True, True, 4)),
        ("img_001_SRF_2_HR", ("img_001", False, True, 2)),
        ("a_LR4", ("a", True, True, 4)),
        ("0001x4m", ("0001", None, False, 4)),
        ("a@2x", ("a", None, False, None)),
        ("LR_7", ("7", True, True, None)),
        ("color", ("color", None, False, None)),
        ("hrvatska", ("hrvatska", None, False, None)),
    ],
)
def test_marks_of_names(stem, expected):
    if stem == "a@2x":
        expected = ("a", None, False, 2)
    assert unmark(stem) == expected
