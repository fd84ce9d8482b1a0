"""A training set of subimages: what is cut, what is left out, what is refused."""

import shutil

import numpy as np
import pytest
from conftest import ROOT, assert_one_line, program

import subimages
from data.image import list_images, read_image, write_png
from data.resize import downscale

CROPS = ROOT / "imgs/demo_crops.png"


def test_tiles_cover_the_image_and_have_its_pixels():
    hr = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    tiles = dict(subimages.subimages(hr, [1], tile=48, least=1))
    assert list(tiles) == [f"100_{row}_{column}" for row in range(2) for column in range(3)]
    assert {tile.shape for tile in tiles.values()} == {(48, 48, 3)}
    assert np.array_equal(tiles["100_1_2"], hr[50:98, 100:148])


def test_shrunk_copies_look_like_the_image_and_small_ones_are_left_out():
    hr = read_image(CROPS)[:240, :240]
    tiles = dict(subimages.subimages(hr, [1, 0.5, 0.25], tile=544, least=100))
    assert {name: tile.shape[:2] for name, tile in tiles.items()} == {"100_0_0": (240, 240), "50_0_0": (120, 120)}
    by_bicubic = downscale(hr, 2).astype(float)
    error = np.abs(tiles["50_0_0"] - by_bicubic).mean()
    assert error < 0.2 * np.abs(by_bicubic - by_bicubic.mean()).mean()


def test_an_image_smaller_than_a_tile_is_used_whole_and_less_than_the_smallest_is_not():
    assert [
        tile.shape for _, tile in subimages.subimages(np.zeros((30, 13, 1), np.uint8), [1], tile=480, least=352)
    ] == [(24, 12, 1)]
    assert subimages.subimages(np.zeros((30, 11, 3), np.uint8), [1], tile=480, least=352) == []


def test_the_set_is_written_once(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(CROPS, photos / "crops.png")
    write_png(photos / "gray.png", np.zeros((60, 60, 1), np.uint8))
    flags = [
        "--images",
        str(photos),
        "--out",
        str(tmp_path / "sub"),
        "--sizes",
        "1",
        "0.5",
        "--tile",
        "48",
        "--least",
        "24",
    ]
    subimages.main(flags)
    names = [path.name for path in list_images(tmp_path / "sub")]
    assert f"{len(names):,} subimages of 2 images" in capsys.readouterr().out
    assert "gray_50_0_0.png" in names
    assert len(names) > 10
    assert read_image(tmp_path / "sub/gray_100_0_0.png").shape == (60, 60, 1)
    assert_one_line(program("subimages.py", *flags), "holds images already")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--images", "absent"], "no such folder"),
        (["--images", "empty"], "holds no images"),
        (["--images", "photos", "--sizes", "1", "1.5"], "at most 1"),
        (["--images", "photos", "--out", "photos/sub"], "give a folder beside it"),
        (["--images", "twice"], "several images called a"),
        (["--images", "broken"], "broken.png"),
        (["--images", "photos", "--out", "empty.txt/sub"], "cannot be"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "photos", "twice", "broken"):
        (tmp_path / folder).mkdir()
    for path in ("photos/a.png", "twice/a.png"):
        write_png(tmp_path / path, np.zeros((24, 24, 3), np.uint8))
    shutil.copy(tmp_path / "photos/a.png", tmp_path / "twice/a.bmp")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "broken/broken.png").write_bytes((tmp_path / "photos/a.png").read_bytes()[:50])
    with pytest.raises(subimages.UserError, match=words):
        subimages.main([*(["--out", "out"] if "--out" not in flags else []), *flags])
    assert not (tmp_path / "out").exists()
