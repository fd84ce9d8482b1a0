"""prepare.py: published layouts, refused archives, damage, repeated and killed runs, and what main.py then reads."""

import bz2
import gzip
import io
import lzma
import os
import signal
import socket
import tarfile
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from conftest import assert_one_line, program
from forked import Program
from PIL import Image

import prepare
from data import build_test_sets, build_train_set, resize
from data.downloads import layouts
from data.downloads.arrange import Room
from data.image import list_images, read_image, write_png
from option import parse_args
from runtime.errors import UserError


def recognised(source: str, *paths: str, is_archive: bool = False) -> dict[str, tuple]:
    """Path -> (set, whether to test on, name, LR or HR, scale), for the files that were not skipped."""
    images, _ = layouts.recognise(source, [PurePosixPath(path) for path in paths], is_archive=is_archive)
    return {str(image.path): (image.set_name, image.benchmark, image.name, image.lr, image.scale) for image in images}


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        # DIV2K's own zip files, EDSR's tar file, other sets of that shape
        ("DIV2K_train_HR.zip", "DIV2K_train_HR/0001.png", ("DIV2K", False, "0001", False, None)),
        ("DIV2K_valid_HR.zip", "DIV2K_valid_HR/0801.png", ("DIV2K", False, "0801", False, None)),
        ("DIV2K_train_LR_bicubic_X4.zip", "DIV2K_train_LR_bicubic/X4/0001x4.png", ("DIV2K", False, "0001", True, 4)),
        ("DIV2K_valid_LR_bicubic_X3.zip", "DIV2K_valid_LR_bicubic/X3/0801x3.png", ("DIV2K", False, "0801", True, 3)),
        ("DIV2K_train_LR_bicubic_X2 (1).zip", "0001x2.png", ("DIV2K", False, "0001", True, 2)),
        ("div2k_train_hr.zip", "div2k_TRAIN_hr/0001.PNG", ("DIV2K", False, "0001", False, None)),
        ("DIV2K.tar", "DIV2K/DIV2K_train_LR_bicubic/X2/0900x2.png", ("DIV2K", False, "0900", True, 2)),
        ("Flickr2K.tar", "Flickr2K/Flickr2K_LR_bicubic/X2/000001x2.png", ("Flickr2K", False, "000001", True, 2)),
        ("a.zip", "Own/Own_train_HR/cat.png", ("Own", False, "cat", False, None)),
        # EDSR's benchmark tree
        ("benchmark.tar", "benchmark/Set5/HR/baby.png", ("Set5", True, "baby", False, None)),
        ("x.zip", "benchmark/Set5/LR_bicubic/X2/babyx2.png", ("Set5", True, "baby", True, 2)),
        ("benchmark.tar", "benchmark/Mine/LR_bicubic/X3/catx3.png", ("Mine", True, "cat", True, 3)),
        ("benchmark.zip", "set5/HR/baby.png", ("Set5", True, "baby", False, None)),
        # folders as the sets were published
        ("Set14", "baboon.bmp", ("Set14", True, "baboon", False, None)),
        ("Set5.zip", "baby_GT.bmp", ("Set5", True, "baby", False, None)),
        ("testsets", "BSDS100/101085.png", ("B100", True, "101085", False, None)),
        ("Urban100_SR.zip", "Urban100/img_001.png", ("Urban100", True, "img_001", False, None)),
        ("Set5", "images/baby.png", ("Set5", True, "baby", False, None)),
        ("manga109.zip", "Manga109/ARMS.png", ("Manga109", True, "ARMS", False, None)),
        # SelfExSR, RCAN, BasicSR, Hugging Face
        ("Set5", "image_SRF_4/img_001_SRF_4_HR.png", ("Set5", True, "img_001", False, 4)),
        ("Set5", "image_SRF_4/img_001_SRF_4_LR.png", ("Set5", True, "img_001", True, 4)),
        ("RCAN.zip", "HR/Set5/x2/baby_HR_x2.png", ("Set5", True, "baby", False, 2)),
        ("RCAN.zip", "LR/LRBI/Set5/x2/baby_LRBI_x2.png", ("Set5", True, "baby", True, 2)),
        ("Set5", "GTmod12/baby.png", ("Set5", True, "baby", False, None)),
        ("Set5", "LRbicx3/baby.png", ("Set5", True, "baby", True, 3)),
        ("Urban100_LR_x2.tar.gz", "Urban100_LR_x2/img_001.png", ("Urban100", True, "img_001", True, 2)),
        ("Urban100_HR.tar.gz", "Urban100_HR/img_001.png", ("Urban100", True, "img_001", False, None)),
        # anything else
        ("holiday", "2019/beach.jpg", ("holiday", False, "2019__beach", False, None)),
        ("download.zip", "holiday/beach.jpg", ("holiday", False, "beach", False, None)),
        ("holiday.zip", "beach_HR.jpg", ("holiday", False, "beach_HR", False, None)),
        ("holiday", "2019 (1)/beach.jpg", ("holiday", False, "2019 (1)__beach", False, None)),
        ("holiday", "hrvatska/x2/beach.jpg", ("holiday", False, "hrvatska__x2__beach", False, None)),
    ],
)
def test_which_image_a_file_is(source, path, expected):
    name, dot, _ = source.partition(".")
    assert recognised(name, path, is_archive=bool(dot)) == {path: expected}


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("DIV2K.tar", "DIV2K/DIV2K_train_LR_unknown/X2/0001x2.png"),
        ("DIV2K.tar", "DIV2K/DIV2K_test_LR_bicubic/X2/0901x2.png"),
        ("Set5", "image_SRF_4/img_001_SRF_4_SRCNN.png"),
        ("RCAN.zip", "SR/BI/Set5/x4/baby_RCAN_x4.png"),
        ("DIV2K", "X2/0001x2.png"),
        ("DIV2K", "bin/DIV2K_train_HR/0001.png"),
        ("Set5", "readme.txt"),
    ],
)
def test_files_that_are_no_part_of_a_set(source, path):
    assert recognised(source.partition(".")[0], path, is_archive="." in source) == {}


def test_pairs_in_one_folder_are_told_from_their_names():
    """NAME_HR counts as HR only beside NAME_LR; files that are neither are then skipped."""
    found = recognised("mine", "cat_HR.png", "cat_LR.png", "cat_bicubic.png")
    assert found == {
        "cat_HR.png": ("mine", False, "cat", False, None),
        "cat_LR.png": ("mine", False, "cat", True, None),
    }
    found = recognised("Set5", "original/baby.png", "GTmod12/baby.png", "LRbicx2/baby.png")
    assert list(found) == ["GTmod12/baby.png", "LRbicx2/baby.png"]


def test_folders_that_all_images_of_a_known_set_share_are_no_part_of_names():
    found = recognised("Set14", "all/good/a.png", "all/good/old/b.png")
    assert [name for _, _, name, _, _ in found.values()] == ["a", "old__b"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/Set5", "Set5"),
        ("/data/Set5/LR_bicubic/X4", "Set5/LR_bicubic/X4"),
        ("/data/benchmark/Mine/HR", "benchmark/Mine/HR"),
        ("/data/foo/image_SRF_4", "foo/image_SRF_4"),
        ("/Set5/holiday", "holiday"),
        ("/data/DIV2K/DIV2K_train_HR", "DIV2K_train_HR"),
    ],
)
def test_how_much_of_a_folders_path_counts(path, expected):
    assert layouts.context(tuple(path.split("/")[1:])) == expected


# --- whole runs ---


@pytest.fixture
def crops(photo) -> list[np.ndarray]:
    """Six different crops of a photograph: five of 60x64 pixels, one of 61x67."""
    sizes = [(60, 64)] * 5 + [(61, 67)]
    return [photo[40 + 30 * k : 40 + 30 * k + h, 50 * k : 50 * k + w] for k, (h, w) in enumerate(sizes)]


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels)).save(buffer, format=kind, **options)
    return buffer.getvalue()


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def run_prepare(dataset: Path, *arguments) -> None:
    prepare.main(["--dir_data", str(dataset), *map(str, arguments)])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_div2k_of_its_zip_files(tmp_path, crops):
    """Training and validation images are merged; LR images come from the zip file where it has them."""
    dataset = tmp_path / "dataset"
    lr = np.full((30, 32, 3), 7, np.uint8)  # unlike any that would be made
    sources = [
        make_zip(tmp_path / "DIV2K_train_LR_bicubic_X2.zip", {"DIV2K_train_LR_bicubic/X2/0001x2.png": encoded(lr)}),
        make_zip(
            tmp_path / "DIV2K_train_HR.zip",
            {
                "DIV2K_train_HR/": b"",
                **{f"DIV2K_train_HR/000{k}.png": encoded(crops[k]) for k in (1, 2)},
                "__MACOSX/DIV2K_train_HR/._0001.png": b"x",
                "DIV2K_train_HR/.DS_Store": b"x",
            },
        ),
        make_zip(tmp_path / "DIV2K_valid_HR.zip", {"DIV2K_valid_HR/0801.png": encoded(crops[5])}),
    ]
    run_prepare(dataset, *sources, "--scale", "2+4")
    root = dataset / "DIV2K"
    assert [path.name for path in list_images(root / "DIV2K_train_HR")] == ["0001.png", "0002.png", "0801.png"]
    assert (read_image(root / "DIV2K_train_LR_bicubic/X2/0001x2.png") == 7).all()
    made = read_image(root / "DIV2K_train_LR_bicubic/X4/0801x4.png")
    assert np.array_equal(made, resize.downscale(crops[5], 4))
    assert len(list((root / "bin").rglob("*.npy"))) == 9
    before = tree(dataset)
    args = parse_args(
        [
            "--dir_data",
            str(dataset),
            "--scale",
            "2",
            "--patch_size",
            "24",
            "--data_range",
            "1-2/3-3",
            "--data_test",
            "DIV2K",
        ]
    )
    assert [pair.name for pair, _ in build_train_set(args).images] == ["0001", "0002"]
    assert [pair.name for pair in build_test_sets(args)[0].pairs] == ["0801"]
    assert tree(dataset) == before  # nothing was left to be made


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:xz"])
def test_benchmark_sets_of_edsrs_tar_file(tmp_path, crops, kind):
    files = {f"benchmark/Set5/HR/{k}.png": encoded(crops[k]) for k in range(5)}
    files |= {f"benchmark/Set5/LR_bicubic/X2/{k}x2.png": encoded(crops[k][::2, ::2]) for k in range(5)}
    files |= {f"benchmark/Mine/HR/{k}.png": encoded(crops[k]) for k in range(3)}
    run_prepare(tmp_path / "dataset", make_tar(tmp_path / "benchmark.tar", files, kind), "--scale", "2")
    five, mine = build_test_sets(
        parse_args(["--dir_data", str(tmp_path / "dataset"), "--scale", "2", "--data_test", "Set5+Mine"])
    )
    assert np.array_equal(five[3][0].permute(1, 2, 0), crops[3][::2, ::2])
    assert np.array_equal(mine[1][0].permute(1, 2, 0), resize.downscale(crops[1], 2))


def test_a_plain_folder_keeps_its_formats(tmp_path, crops):
    folder = make_folder(tmp_path / "Set14", {"a.bmp": encoded(crops[0], "BMP"), "b.JPG": encoded(crops[1], "JPEG")})
    run_prepare(tmp_path / "dataset", folder, "--scale", "3")
    names = [path.name for path in list_images(tmp_path / "dataset/benchmark/Set14/HR")]
    assert names == ["a.bmp", "b.jpg"]
    assert (tmp_path / "dataset/benchmark/Set14/HR/a.bmp").read_bytes() == (folder / "a.bmp").read_bytes()
    assert len(list_images(tmp_path / "dataset/benchmark/Set14/LR_bicubic/X3")) == 2


def test_hr_images_that_come_cropped_with_each_scale(tmp_path, crops):
    """One image is published with 60x62, 60x63 and 60x60 pixels; the largest is taken, although it is not the first."""
    files, whole = {}, crops[5][:60, :63]
    for scale in (4, 3, 2):
        height, width = (side // scale * scale for side in whole.shape[:2])
        stem = f"image_SRF_{scale}/img_001_SRF_{scale}_"
        files |= {
            f"{stem}HR.png": encoded(whole[:height, :width]),
            f"{stem}LR.png": encoded(resize.downscale(whole, scale)),
            f"{stem}bicubic.png": b"not looked at",
        }
    run_prepare(tmp_path / "dataset", make_folder(tmp_path / "Urban100", files))
    root = tmp_path / "dataset/benchmark/Urban100"
    assert np.array_equal(read_image(root / "HR/img_001.png"), whole)
    assert [len(list_images(root / f"LR_bicubic/X{scale}")) for scale in (2, 3, 4)] == [1, 1, 1]
    # The same once more changes nothing; an HR image of the same name that is no crop of it is named.
    run_prepare(tmp_path / "dataset", tmp_path / "Urban100")
    write_png(tmp_path / "Urban100/image_SRF_3/img_001_SRF_3_HR.png", crops[0])
    with pytest.raises(UserError, match="1 thing is wrong"):
        run_prepare(tmp_path / "dataset", tmp_path / "Urban100")


def test_own_images_become_a_training_set(tmp_path, crops, capsys):
    folder = make_folder(tmp_path / "my photos", {"a.png": encoded(crops[0]), "deep/er/b.png": encoded(crops[1])})
    run_prepare(tmp_path / "dataset", folder, "--scale", "2", "--name", "photos")
    flags = ["--dir_data", str(tmp_path / "dataset"), "--scale", "2", "--patch_size", "24", "--data_train"]
    samples = build_train_set(parse_args([*flags, "photos"]))
    assert [pair.name for pair, _ in samples.images] == ["a", "deep__er__b"]
    assert "main.py --data_train photos" in capsys.readouterr().out
    run_prepare(tmp_path / "dataset", folder, "--scale", "2", "--name", "photos", "--benchmark")
    assert len(list_images(tmp_path / "dataset/benchmark/photos/HR")) == 2


def test_scales_of_pairs_are_measured_where_no_name_says_them(tmp_path, crops, capsys):
    files = {"cat_HR.png": encoded(crops[0]), "cat_LR.png": encoded(crops[0][::3, ::3][:, :21])}
    files |= {"dog_HR.png": encoded(crops[1]), "dog_LR.png": encoded(crops[1][:41, :41])}
    files |= {"owl_HR.png": encoded(crops[1][:20]), "owl_LR.png": encoded(crops[1])}
    files |= {"fox_HR.png": encoded(crops[1]), "fox_LR.png": encoded(crops[1])}
    with pytest.raises(UserError, match="3 things are wrong"):
        run_prepare(tmp_path / "dataset", make_folder(tmp_path / "mine", files), "--scale", "2")
    out = capsys.readouterr().out
    assert "dog_LR.png: 41x41 pixels are not a whole fraction of its HR image's 64x60" in out
    assert "owl_LR.png: 64x60 pixels are not a whole fraction of its HR image's 64x20" in out
    assert "fox_LR.png: 64x60 pixels are not a whole fraction of its HR image's 64x60" in out
    assert [path.name for path in list_images(tmp_path / "dataset/mine/mine_train_LR_bicubic/X3")] == ["catx3.png"]


def test_sets_that_lie_there_already_are_completed_where_they_are(tmp_path, crops):
    """A tree, a folder of own images and a benchmark set: nothing is copied, LR images and decoded copies are made."""
    dataset = make_folder(
        tmp_path / "dataset",
        {
            "Own/a.png": encoded(crops[0]),
            "Own/deep/b.png": encoded(crops[1]),
            "Tree/Tree_HR/c.png": encoded(crops[2]),
            "benchmark/Set5/HR/d.png": encoded(crops[3]),
        },
    )
    before = tree(dataset)
    run_prepare(dataset, dataset / "Own", dataset / "Tree", dataset / "benchmark", "--scale", "2")
    after = tree(dataset)
    assert {name for name in set(after) - set(before) if not name.endswith(".npy")} == {
        "Own/bin/LR_bicubic/X2/ax2.png",
        "Own/bin/LR_bicubic/X2/deep__bx2.png",
        "Tree/Tree_LR_bicubic/X2/cx2.png",
        "benchmark/Set5/LR_bicubic/X2/dx2.png",
    }
    run_prepare(dataset, dataset, "--scale", "2")  # all of them
    assert tree(dataset) == after
    assert {name: after[name] for name in before} == before


# --- once more, and what is there already ---


def test_a_second_start_changes_nothing(tmp_path, crops, capsys):
    source = make_zip(tmp_path / "Set5.zip", {f"Set5/{k}.png": encoded(crops[k]) for k in range(3)})
    run_prepare(tmp_path / "dataset", source)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    run_prepare(tmp_path / "dataset", source)
    assert "0 images copied, 3 were there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_the_same_pixels_in_another_file_are_the_same_image(tmp_path, crops):
    run_prepare(tmp_path / "dataset", make_zip(tmp_path / "Set5.zip", {"a.png": encoded(crops[0])}), "--scale", "2")
    before = tree(tmp_path / "dataset")
    other = {
        "a.png": encoded(crops[0], compress_level=0),
        "LR_bicubic/X2/ax2.bmp": encoded(resize.downscale(crops[0], 2), "BMP"),
    }
    run_prepare(tmp_path / "dataset", make_folder(tmp_path / "Set5", other), "--scale", "2")
    assert tree(tmp_path / "dataset") == before


def test_other_content_is_named_and_nothing_overwritten(tmp_path, crops, capsys):
    there = {f"benchmark/Set5/HR/{name}.bmp": encoded(crops[0], "BMP") for name in "ac"}
    dataset = make_folder(tmp_path / "dataset", there)
    new = {"a.png": encoded(crops[1]), "b.png": encoded(crops[2]), "c.png": encoded(crops[0][:50])}
    source = make_folder(tmp_path / "Set5", new)
    with pytest.raises(UserError, match="2 things are wrong"):
        run_prepare(dataset, source, "--scale", "2")
    out = capsys.readouterr().out
    for name in "ac":
        path = dataset / f"benchmark/Set5/HR/{name}.bmp"
        assert f"{source / name}.png: differs from {path}" in out
        assert path.read_bytes() == there[f"benchmark/Set5/HR/{name}.bmp"]
    assert [path.name for path in list_images(dataset / "benchmark/Set5/HR")] == ["a.bmp", "b.png", "c.bmp"]


def test_lr_images_may_come_first(tmp_path, crops, capsys):
    lr = make_zip(tmp_path / "DIV2K_train_LR_bicubic_X2.zip", {"X2/0001x2.png": encoded(crops[0][::2, ::2])})
    hr = make_zip(tmp_path / "DIV2K_train_HR.zip", {"DIV2K_train_HR/0001.png": encoded(crops[0])})
    with pytest.raises(UserError, match="1 thing is wrong"):
        run_prepare(tmp_path / "dataset", lr, "--scale", "2")
    assert "has 1 LR images, but no HR images" in capsys.readouterr().out
    run_prepare(tmp_path / "dataset", hr, "--scale", "2")
    root = tmp_path / "dataset/DIV2K"
    assert (root / "DIV2K_train_HR/0001.png").exists()
    assert np.array_equal(read_image(root / "DIV2K_train_LR_bicubic/X2/0001x2.png"), crops[0][::2, ::2])


def test_a_dry_run_prints_what_a_run_then_does(tmp_path, crops, capsys):
    files = {f"Set5/HR/{k}.png": encoded(crops[k]) for k in range(3)}
    files |= {"Set5/LR_bicubic/X2/0x2.png": encoded(resize.downscale(crops[0], 2))}
    source, dataset = make_zip(tmp_path / "x.zip", files), tmp_path / "dataset"
    run_prepare(dataset, source, "--scale", "2+3", "--dry_run")
    assert not dataset.exists()
    lines = capsys.readouterr().out.splitlines()
    announced = {line.split(" -> ")[1] for line in lines if line.startswith("copy ")}
    announced |= {line.removeprefix("make ") for line in lines if line.startswith("make ")}
    run_prepare(dataset, source, "--scale", "2+3")
    assert announced == {str(path) for path in list_images(dataset, nested=True)}
    assert f"decode {len(announced)} images into {dataset / 'benchmark/Set5/bin'}" in lines
    capsys.readouterr()
    run_prepare(dataset, source, "--scale", "2+3", "--dry_run")
    out = capsys.readouterr().out
    assert "copy " not in out
    assert "make " not in out
    assert "decode 0 images" in out


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on(tmp_path, photo, signum):
    """Killed while it makes LR images, then started again: the tree equals that of an undisturbed run."""
    hr = {f"{k:02}.png": encoded(photo[k : k + 200, k : k + 300]) for k in range(30)}
    source, dataset = make_zip(tmp_path / "Set5.zip", hr), tmp_path / "dataset"
    process = Program("prepare.py", "--dir_data", dataset, "--n_threads", 1, source)
    made = dataset / "benchmark/Set5/LR_bicubic/X2"
    deadline = time.monotonic() + 60
    while len(list(made.glob("[0-9]*.png"))) < 3:
        assert process.returncode is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signum)
    assert process.wait(60) == (130 if signum == signal.SIGINT else -signum)
    kept = {path: path.stat().st_mtime_ns for path in list_images(dataset, nested=True)}
    assert 30 < len(kept) < 120
    for path in kept:
        read_image(path)
    run_prepare(dataset, source)
    run_prepare(tmp_path / "alone", source)
    whole = {name: content for name, content in tree(dataset).items() if not name.endswith(".tmp")}
    assert whole == tree(tmp_path / "alone")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


# --- what cannot be used ---


def test_damaged_images_do_not_stop_the_others(tmp_path, crops, capsys):
    """In an archive and in the tree: each is named, all others are prepared, and a repaired source fills the gap."""
    dataset, whole = tmp_path / "dataset", {f"Set5/{k}.png": encoded(crops[k]) for k in range(4)}
    damaged = whole | {"Set5/1.png": whole["Set5/1.png"][:300], "Set5/2.png": b"no image"}
    source = make_zip(tmp_path / "Set5.zip", damaged)
    content = source.read_bytes()
    at = content.index(whole["Set5/3.png"]) + 200
    source.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    with pytest.raises(UserError, match="3 things are wrong"):
        run_prepare(dataset, source, "--scale", "2")
    out = capsys.readouterr().out
    assert all(f"wrong: {source}:Set5/{k}.png: cannot be" in out for k in (1, 2, 3))
    assert [path.name for path in list_images(dataset / "benchmark/Set5/HR")] == ["0.png"]
    run_prepare(dataset, make_zip(tmp_path / "Set5.zip", whole), "--scale", "2")
    assert len(list_images(dataset / "benchmark/Set5/LR_bicubic/X2")) == 4

    path = dataset / "benchmark/Set5/HR/2.png"
    path.write_bytes(path.read_bytes()[:300])
    capsys.readouterr()
    with pytest.raises(UserError, match="1 thing is wrong"):
        run_prepare(dataset, dataset / "benchmark/Set5", "--scale", "2+4")
    out = capsys.readouterr().out
    assert f"wrong: {path}: cannot be decoded" in out
    assert "3 HR images, 3 pairs x2, 3 pairs x4; not complete, there are 4 HR images" in out


def test_pairs_that_do_not_fit_are_all_named(tmp_path, crops, capsys):
    files = {f"Set5/HR/{k}.png": encoded(crops[k]) for k in range(3)}
    files |= {f"Set5/LR_bicubic/X2/{k}x2.png": encoded(crops[k][::3, ::3]) for k in (0, 2)}
    files |= {"Set5/HR/small.png": encoded(crops[0][:3]), "Set5/LR_bicubic/X2/alonex2.png": encoded(crops[0])}
    with pytest.raises(UserError, match="4 things are wrong"):
        run_prepare(tmp_path / "dataset", make_folder(tmp_path / "x", files), "--scale", "2+4")
    out = capsys.readouterr().out
    assert "0x2.png: 22x20 pixels do not fit 0.png's 64x60 at x2: expected 32x30" in out
    assert "2x2.png: 22x20 pixels do not fit" in out
    assert "small.png: 64x3 pixels are too few for x4" in out
    assert "1 LR images have no HR image, alone" in out


def link_zip(path: Path, image: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Set5/a.png", image)
        info = zipfile.ZipInfo("Set5/b.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")


def special_tar(path: Path, image: bytes, kind: bytes) -> None:
    make_tar(path, {"Set5/a.png": image}, "w")
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("Set5/b.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path, image: make_zip(path, {"Set5/a.png": image, "../b.png": image}), ("../b.png", "outside")),
        (lambda path, image: make_zip(path, {"Set5/a.png": image, "/tmp/b.png": image}), ("/tmp/b.png", "outside")),
        (lambda path, image: make_zip(path, {"Set5/a.png": image, "c:\\b.png": image}), ("b.png", "outside")),
        (lambda path, image: make_zip(path, {"Set5\\..\\..\\b.png": image}), ("b.png", "outside")),
        (lambda path, image: make_tar(path, {"Set5/a.png": image, "Set5/../../b.png": image}), ("/b.png", "outside")),
        (link_zip, ("Set5/b.png", "link")),
        (lambda path, image: special_tar(path, image, tarfile.SYMTYPE), ("Set5/b.png", "link")),
        (lambda path, image: special_tar(path, image, tarfile.LNKTYPE), ("Set5/b.png", "link")),
        (lambda path, image: special_tar(path, image, tarfile.CHRTYPE), ("Set5/b.png", "device")),
        (lambda path, image: make_tar(path, {"Set5/\udcff.png": image}), ("is not valid UTF-8", "rename")),
        (lambda path, image: path.write_bytes(b"no archive"), (".zip, .tar",)),
        (lambda path, image: path.write_bytes(b""), (".zip, .tar",)),
        (lambda path, image: cut(make_zip(path, {"a.png": image})), ("damaged", "download it again")),
        (lambda path, image: cut(make_tar(path, {"a.png": image}, "w")), ("damaged", "download it again")),
        (lambda path, image: cut(make_tar(path, {"a.png": image})), ("damaged", "download it again")),
        (lambda path, image: make_zip(path, {"a.txt": b""}), ("1 files: not images (*.txt)",)),
        (lambda path, image: path.mkdir(), ("no file at all",)),
        (lambda path, image: None, ("no such file",)),
    ],
)
def test_sources_that_are_refused(tmp_path, crops, make, words):
    """In one line, before anything is written, even from a good source beside them."""
    good = make_zip(tmp_path / "Set14.zip", {"a.png": encoded(crops[0])})
    make(tmp_path / "Set5.archive", encoded(crops[0]))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as raised:
        run_prepare(tmp_path / "dataset", good, tmp_path / "Set5.archive")
    message = str(raised.value)
    assert "Set5.archive" in message
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:xz", "w:bz2"])
def test_an_archive_that_is_cut_between_members_is_refused(tmp_path, crops, kind):
    """With any compression: the last complete member must be followed by the archive's end."""
    path = make_tar(tmp_path / "whole.tar", {f"Set5/{k}.png": encoded(crops[k]) for k in range(6)}, "w")
    with tarfile.open(path) as archive:
        ends = [info.offset for info in archive]
    content = path.read_bytes()
    pack = {"w": bytes, "w:gz": gzip.compress, "w:xz": lzma.compress, "w:bz2": bz2.compress}[kind]
    for end, following in ((ends[3], b""), (ends[3], b"x" * 10240), (ends[3], content[ends[3] : ends[3] + 100])):
        (tmp_path / "Set5.tar").write_bytes(pack(content[:end] + following))
        with pytest.raises(UserError, match=r"Set5\.tar: the archive is damaged or incomplete .* download it again"):
            run_prepare(tmp_path / "dataset", tmp_path / "Set5.tar", "--scale", "2")
    assert not (tmp_path / "dataset").exists()
    (tmp_path / "Set5.tar").write_bytes(pack(content))
    run_prepare(tmp_path / "dataset", tmp_path / "Set5.tar", "--scale", "2")


def test_damage_behind_the_last_member_of_a_compressed_archive_is_seen(tmp_path, crops):
    """gzip's checksum comes last and covers every bit."""
    path = make_tar(tmp_path / "Set5.tar.gz", {"Set5/a.png": encoded(crops[0])})
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(UserError, match="damaged"):
        run_prepare(tmp_path / "dataset", path)


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("second", ["Set5/a.png", "Set5/./a.png", "Set5//a.png"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path, crops, form, second):
    path = tmp_path / f"Set5.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, pixels in (("Set5/a.png", crops[0]), (second, crops[1])):
                archive.writestr(name, encoded(pixels))
    else:
        with tarfile.open(path, "w:gz" if form == "tar.gz" else "w") as archive:
            for name, pixels in (("Set5/a.png", crops[0]), (second, crops[1])):
                info = tarfile.TarInfo(name)
                info.size = len(encoded(pixels))
                archive.addfile(info, io.BytesIO(encoded(pixels)))
    with pytest.raises(UserError, match=r"member Set5/a\.png is in it twice"):
        run_prepare(tmp_path / "dataset", path)
    assert not (tmp_path / "dataset").exists()


def test_large_members_are_not_read_before_their_headers(tmp_path, crops, capsys):
    """200 MB of zeros, and an image followed by 200 MB: both are named, using little memory."""
    path = tmp_path / "Set5.zip"
    much = bytes(200 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("Set5/good.png", encoded(crops[0]))
        archive.writestr("Set5/zeros.png", much)
        archive.writestr("Set5/long.png", encoded(crops[1]) + much)
    del much
    tracemalloc.start()
    with pytest.raises(UserError, match="2 things are wrong"):
        run_prepare(tmp_path / "dataset", path, "--scale", "2")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20
    out = capsys.readouterr().out
    assert "zeros.png: cannot be decoded" in out
    assert "long.png: has 209,7" in out
    assert "too many for its 64x60 pixels" in out
    assert [path.name for path in list_images(tmp_path / "dataset/benchmark/Set5/HR")] == ["good.png"]


def test_what_is_in_memory_at_once_is_bounded():
    """A thread that needs more than is left waits; the only one goes on, whatever it needs."""
    room, inside, most = Room(10), [0], [0]
    lock = threading.Lock()

    def use(count: int) -> None:
        with room.taken(count):
            with lock:
                inside[0] += count
                most[0] = max(most[0], inside[0])
            time.sleep(0.002)
            with lock:
                inside[0] -= count

    threads = [threading.Thread(target=use, args=(4,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most[0] == 8
    use(100)
    assert room.used == 0


def test_a_header_of_a_tar_file_does_not_fill_the_memory(tmp_path, crops):
    """A member's name may be stored in a member of its own, of any declared size."""
    path = tmp_path / "Set5.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("Set5/" + "n" * (2 << 20) + ".png")
        archive.addfile(info, io.BytesIO(b""))
    with pytest.raises(UserError, match="damaged"):
        run_prepare(tmp_path / "dataset", path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_regular_file_is_never_waited_for(tmp_path, crops, kind, capsys, monkeypatch):
    folder = make_folder(tmp_path / "Set5", {"a.png": encoded(crops[0])})
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    for path in (Path("Set5/special.png"), Path("source")):
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))
        else:
            path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"is a {kind}, expected a regular file"):
        run_prepare(tmp_path / "dataset", tmp_path / "source")
    run_prepare(tmp_path / "dataset", folder, "--scale", "2")
    assert f"1 skipped: special.png (a {kind})" in capsys.readouterr().out
    (folder / "b.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="1 thing is wrong"):
        run_prepare(tmp_path / "dataset", folder, "--scale", "2")
    assert "b.png: cannot be read (No such file or directory)" in capsys.readouterr().out


def test_linked_folders_of_a_source_are_read_once(tmp_path, crops, capsys):
    make_folder(tmp_path / "more", {"b.png": encoded(crops[1])})
    folder = make_folder(tmp_path / "Own", {"a.png": encoded(crops[0])})
    (folder / "linked").symlink_to(tmp_path / "more")
    (folder / "loop").symlink_to(folder)
    run_prepare(tmp_path / "dataset", folder, "--scale", "2")
    assert "1 skipped: loop (a link to a folder that is already read)" in capsys.readouterr().out
    images = list_images(tmp_path / "dataset/Own/Own_train_HR")
    assert [path.name for path in images] == ["a.png", "linked__b.png"]


def test_names_with_control_characters_are_escaped(tmp_path, crops, capsys):
    files = {"Set5/\x1b[31mred\nline.png": b"no image", "Set5/a.png": encoded(crops[0])}
    with pytest.raises(UserError):
        run_prepare(tmp_path / "dataset", make_tar(tmp_path / "Set5.tar", files), "--scale", "2")
    out = capsys.readouterr().out
    assert "\\x1b[31mred\\nline.png: cannot be decoded" in out
    assert "\x1b" not in out
    with pytest.raises(UserError, match=r"member \.\./\\x1b\\n points outside"):
        run_prepare(tmp_path / "dataset", make_tar(tmp_path / "Set5.tar", {"../\x1b\n": b""}))
    with pytest.raises(UserError, match="--name NAME"):
        run_prepare(tmp_path / "dataset", make_tar(tmp_path / "HR.tar", {"S\x1bt/a.png": encoded(crops[0])}))


def test_a_member_without_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "Set5.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"content")
    with pytest.raises(UserError, match="its member without a name is not a file"):
        run_prepare(tmp_path / "dataset", tmp_path / "Set5.zip")


def test_lr_images_of_another_degradation_are_not_replaced(tmp_path, crops):
    """If only HR images were arranged, bicubic LR images would be made, and the task would be another one."""
    files = {"DIV2K_train_HR/0001.png": encoded(crops[0])}
    unknown = {"DIV2K_train_LR_unknown/X2/0001x2.png": encoded(crops[0][::2, ::2])}
    with pytest.raises(UserError, match="DIV2K_train_LR_unknown are not bicubic, and there are no others"):
        run_prepare(tmp_path / "dataset", make_zip(tmp_path / "DIV2K.zip", files | unknown), "--scale", "2")
    assert not (tmp_path / "dataset").exists()
    bicubic = {"DIV2K_train_LR_bicubic/X2/0001x2.png": encoded(crops[0][::2, ::2])}
    run_prepare(tmp_path / "dataset", make_zip(tmp_path / "DIV2K.zip", files | unknown | bicubic), "--scale", "2")


def test_scales_are_measured_in_compressed_archives_too(tmp_path, crops, capsys):
    """Pairs in folders whose names do not say LR are refused; pairs with known names are found."""
    small = [resize.downscale(crops[k], 2) for k in range(3)]
    files = {f"mine/gt/{k}.png": encoded(crops[k]) for k in range(3)}
    files |= {f"mine/lq/{k}.png": encoded(small[k]) for k in range(3)}
    run_prepare(tmp_path / "dataset", make_tar(tmp_path / "mine.tar.gz", files), "--scale", "2")
    root = tmp_path / "dataset/mine"
    assert len(list_images(root / "mine_train_HR")) == len(list_images(root / "mine_train_LR_bicubic/X2")) == 3
    assert "LR x2 images: 3 of" in capsys.readouterr().out
    files = {name.replace("gt", "A").replace("lq", "B"): content for name, content in files.items()}
    with pytest.raises(UserError, match="2 times smaller: are they LR images"):
        run_prepare(tmp_path / "dataset", make_tar(tmp_path / "mine.tar.gz", files), "--scale", "2")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("files", "flags", "words"),
    [
        ({"a+b/x.png": b""}, (), ("a+b", "--name NAME")),
        ({"HR/x.png": b""}, (), ("--name NAME",)),
        ({"Set5/x.png": b"", "Set14/x.png": b""}, ("--name", "Both"), ("2 sets, Set14 and Set5",)),
    ],
)
def test_names_that_are_needed(tmp_path, files, flags, words):
    with pytest.raises(UserError) as raised:
        run_prepare(tmp_path / "dataset", make_zip(tmp_path / "HR.zip", files), *flags)
    assert all(word in str(raised.value) for word in words), raised.value
    assert not (tmp_path / "dataset").exists()


def test_mistakes_end_in_one_line(tmp_path, crops, capsys):
    source = make_zip(tmp_path / "Set5.zip", {"a.png": encoded(crops[0])})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/benchmark.*cannot be written"):
        run_prepare(tmp_path / "file", source)
    make_folder(tmp_path / "dataset", {"benchmark/Set5/bin": b"in the way"})
    assert_one_line(program("prepare.py", source, "--dir_data", tmp_path / "dataset"), "bin/HR", "--dir_data")
    for flags in (("--scale", "1+2"), ("--name", "a/b"), ("--n_threads", "0"), ("--benchmark", "--train")):
        with pytest.raises(SystemExit):
            run_prepare(tmp_path / "other", source, *flags)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert flags[0] in error
    assert not (tmp_path / "other").exists()


def test_the_published_sets(tmp_path, shared):
    """Only the HR images of Set5, zipped: the LR images made from them equal the published ones."""
    hr = {f"Set5/{path.name}": path.read_bytes() for path in list_images(shared / "benchmark/Set5/HR")}
    run_prepare(tmp_path, make_zip(tmp_path / "Set5.zip", hr))
    for scale in (2, 3, 4):
        made = list_images(tmp_path / f"benchmark/Set5/LR_bicubic/X{scale}")
        assert len(made) == 5
        for path in made:
            assert np.array_equal(read_image(path), read_image(shared / path.relative_to(tmp_path)))
    # The published files on top: all of them are there already.
    before = tree(tmp_path / "benchmark")
    run_prepare(tmp_path, shared / "benchmark/Set5")
    assert tree(tmp_path / "benchmark") == before
