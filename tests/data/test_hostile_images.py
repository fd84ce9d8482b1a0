"""Files that are not images, would block or would exhaust the memory: one line names the file, in every program."""

import logging
import os
import resource
import warnings
import zlib

import pytest
from conftest import assert_one_line, program
from fuzz import images as fuzz
from helpers import launch
from PIL import Image, TiffImagePlugin

from data import opening
from data.cache import open_cached
from data.image import read_header, read_image, read_own, read_size, write_png
from evaluation import runner
from runtime.errors import UserError


def png(width: int, height: int, *between: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    chunks = [(b"IHDR", header), *between, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(fuzz.chunk(*chunk) for chunk in chunks)


# --- not a regular file ---


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_anything_but_a_regular_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "image.png"
    {"pipe": os.mkfifo, "device": lambda at: at.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    for read in (read_image, read_own, read_size, read_header):
        with pytest.raises(UserError, match=r"image\.png: (is a|cannot be read)"):
            read(path)
    if kind == "pipe":
        assert_one_line(
            program("studies.degrade", "--image", path, "--out", tmp_path / "out.png"), "image.png", "a pipe"
        )


def test_a_pipe_where_a_decoded_copy_belongs_is_replaced(small_set, photo):
    cache = small_set / "Small/bin/Small_train_HR/0001.png.npy"
    cache.parent.mkdir(parents=True)
    os.mkfifo(cache)
    with pytest.raises(UserError, match="is a pipe"):
        open_cached(cache)
    launch("--cpu", "--test_only", "--scale", "2", "--pre_train", "KRGN_x2", "--dir_data", small_set,
           "--data_test", "Small", "--data_range", "3-4/1-2",
           "--dir_experiment", small_set / "experiment", "--save", "one")  # fmt: skip
    assert cache.is_file()


def test_too_many_open_files_names_the_file_and_the_limit(tmp_path, photo):
    write_png(tmp_path / "image.png", photo)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, before[1]))
        with pytest.raises(UserError, match=r"image\.png: cannot be read \(.*\): raise the limit .*ulimit -n"):
            read_image(tmp_path / "image.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        os.close(taken[0])


# --- large declared sizes ---


def test_declared_sizes_are_checked_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "available_memory", lambda: 2**30)
    path = tmp_path / "bomb.png"
    path.write_bytes(png(40_000, 40_000))
    with pytest.raises(UserError, match=r"bomb\.png: 40000x40000 pixels need 17\.9 GiB .* 1\.0 are free"):
        read_image(path)
    with open(tmp_path / "long.webp", "wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        file.truncate(2**31)
    with pytest.raises(UserError, match=r"long\.webp: its 2,147,483,648 bytes need 2\.0 GiB"):
        read_image(tmp_path / "long.webp")


def test_text_and_profiles_that_inflate_are_bounded():
    """16 MiB of text, compressed to 16 KiB: the usual PNG is decoded without reading it, other kinds are refused."""
    text = b"x\0\0" + zlib.compress(bytes(2**24))
    for kind in (b"zTXt", b"iCCP"):
        content = png(5, 4, (kind, text), data=bytes(64))
        assert read_image("usual.png", content).shape == (4, 5, 3)
        with pytest.raises(UserError, match=r"interlaced\.png: cannot be decoded"):
            read_image("interlaced.png", content.replace(b"\x08\x02\0\0\0", b"\x08\x02\0\0\1"))


def test_a_valid_picture_of_any_size_is_decoded(tmp_path, photo, monkeypatch):
    """Pillow refuses more than twice its limit on pixels; here the free memory decides."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("large.png", "large.jpg", "large.tif", "large.webp", "large.gif"):
        Image.fromarray(photo).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == photo.shape
        assert read_own(tmp_path / name)[0].shape == photo.shape
    assert Image.MAX_IMAGE_PIXELS == 1000  # of the rest of the process


def test_a_result_that_cannot_fit_is_refused_with_the_numbers(small_set, photo, monkeypatch):
    write_png(small_set / "mine/large.png", photo)
    monkeypatch.setattr(runner, "SURE_TO_FIT", 1000)
    monkeypatch.setattr(runner, "available_memory", lambda: 2**20)
    with pytest.raises(UserError, match=r"large: 451x300 pixels .* need 0\.0 GiB of memory, 0\.0 are free"):
        launch("--cpu", "--test_only", "--scale", "2", "--pre_train", "KRGN_x2", "--data_test", "Demo", "--dir_demo",
               small_set / "mine", "--dir_experiment", small_set / "experiment", "--save", "own")  # fmt: skip


# --- damaged files ---


def test_pixels_that_end_early_are_refused():
    """The compressed stream is complete, but has fewer rows than the header declares."""
    whole = png(5, 4, data=bytes(64))
    assert read_image("whole.png", whole).shape == (4, 5, 3)
    with pytest.raises(UserError, match=r"short\.png: cannot be decoded \(the pixels end 16 bytes early\)"):
        read_image("short.png", png(5, 4, data=bytes(48)))


def test_only_one_line_reaches_the_terminal(tmp_path, photo):
    """libtiff and Pillow would print more; names are escaped."""
    Image.fromarray(photo).save(tmp_path / "a.tif", compression="tiff_adobe_deflate")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"  # where the compressed pixels begin
    name = tmp_path / "bad\n\x1b[31mname.tif"
    name.write_bytes(content)
    run = program("studies.degrade", "--image", name, "--out", tmp_path / "out.png")
    assert_one_line(run, r"bad\n\x1b[31mname.tif: cannot be decoded")
    assert "\x1b" not in run.stderr


def test_settings_of_the_process_come_back(photo):
    before = (warnings.filters[:], logging.getLogger("PIL").level, Image.MAX_IMAGE_PIXELS, TiffImagePlugin.READ_LIBTIFF)
    error = os.fstat(2)
    for _ in range(2):
        with pytest.raises(UserError):
            read_image("a.tif", b"II*\0\x08\0\0\0" + bytes(40))
    assert before == (
        warnings.filters[:],
        logging.getLogger("PIL").level,
        Image.MAX_IMAGE_PIXELS,
        TiffImagePlugin.READ_LIBTIFF,
    )
    assert (os.fstat(2).st_dev, os.fstat(2).st_ino) == (error.st_dev, error.st_ino)


def test_drawings_are_never_run():
    """Pillow would start Ghostscript for it."""
    with pytest.raises(UserError, match="not an image of a known format"):
        read_image("image.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


def test_some_of_the_fuzzing(capsys):
    counts = fuzz.images(seed=11, count=150)
    assert counts["inputs"] == 152
    assert counts["refused"] + counts["decoded"] == 152
    assert min(counts["refused"], counts["decoded"]) > 30


# --- tiny images ---


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1)])
def test_tiny_pictures(small_set, photo, height, width):
    write_png(small_set / "mine/tiny.png", photo[:height, :width])
    own = ("--cpu", "--test_only", "--pre_train", "KRGN_x2", "--data_test", "Demo", "--dir_demo", small_set / "mine",
           "--dir_experiment", small_set / "experiment", "--scale", "2")  # fmt: skip
    for number, more in enumerate(((), ("--chop", "--self_ensemble"), ("--tile", "16"))):
        launch(*own, *more, "--save", f"own{number}")
        result = small_set / f"experiment/own{number}/results-Demo/tiny_x2_SR.png"
        assert read_image(result).shape == (2 * height, 2 * width, 3)
