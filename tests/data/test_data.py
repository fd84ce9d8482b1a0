"""Image files, decoded copies and samples: formats, damage, the same batches for any number of workers."""

import errno
import itertools
import logging
import os
import pickle
import struct
import zlib
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from PIL import Image, features

from data import TrainSet, build_test_sets, build_train_set, patches, resize, train_batches
from data import image as files
from data.cache import cache_path
from data.color import to_tensor
from data.folders import Located
from data.pairs import ImageSet, cached, pair_up
from data.png import decode_usual
from evaluation.metrics import rgb_to_y
from option import parse_args
from runtime.errors import UserError

RANDOM = np.random.default_rng(0)


def png16(path: Path, pixels: np.ndarray, colour_type: int) -> None:
    """A 16-bit PNG, which Pillow cannot write for colours."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", None), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("P", None), ("1", None), ("CMYK", 4)]
)
def test_every_kind_of_image(tmp_path, mode, channels):
    values = RANDOM.integers(0, 256, (6, 5) if channels is None else (6, 5, channels), dtype=np.uint8)
    if mode == "P":
        image = Image.fromarray(values, "P")
        image.putpalette(RANDOM.integers(0, 256, 768, dtype=np.uint8).tobytes())
        expected = np.asarray(image.getpalette(), np.uint8).reshape(-1, 3)[values]
    elif mode == "1":
        image, expected = Image.fromarray(values > 127), (values > 127)[..., None] * 255
    elif mode == "CMYK":
        image = Image.fromarray(values, mode)
        expected = np.asarray(image.convert("RGB"))
    else:
        image, expected = Image.fromarray(values, mode), values.reshape(6, 5, -1)[..., : 1 if mode[0] == "L" else 3]
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    pixels = files.read_image(path)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)
    assert files.read_size(path) == (6, 5)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_the_high_byte_of_16_bits_is_taken(tmp_path, colour_type, channels):
    values = RANDOM.integers(0, 65536, (4, 3, channels), dtype=np.uint16)
    png16(tmp_path / "deep.png", values, colour_type)
    assert np.array_equal(files.read_image(tmp_path / "deep.png"), values[..., :3] >> 8)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "float"])
def test_broken_files_are_named_in_one_line(tmp_path, photo, damage):
    path = tmp_path / "broken.png"
    files.write_png(path, photo)
    whole = path.read_bytes()
    if damage == "float":
        path = tmp_path / "broken.tif"
        Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    else:
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"no image at all"}[damage])
    with pytest.raises(UserError) as raised:
        files.read_image(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_colours_and_gray_become_what_the_network_takes():
    gray, colour = (RANDOM.integers(0, 256, (4, 3, c), dtype=np.uint8) for c in (1, 3))
    assert to_tensor(gray, 3).shape == (3, 4, 3)
    assert torch.equal(to_tensor(gray, 3)[2], torch.from_numpy(gray[..., 0]))
    luma = rgb_to_y(torch.from_numpy(colour).permute(2, 0, 1)).round()
    assert torch.equal(to_tensor(colour, 1).double(), luma)
    assert torch.equal(to_tensor(gray, 1)[0], torch.from_numpy(gray[..., 0]))


# --- LR images and pairs ---


def located(small_set: Path) -> Located:
    folder = small_set / "Small/Small_train_HR"
    return Located(files.list_images(folder), small_set / "Small/Small_train_LR_bicubic", folder)


def test_missing_lr_images_are_made_once(small_set, caplog):
    found = located(small_set)
    pairs = pair_up(found, 2, n_threads=2)
    assert [pair.name for pair in pairs] == ["0001", "0002", "0003", "0004", "0005", "0006"]
    made = pairs[0].lr
    assert made == found.lr_folder / "X2/0001x2.png"
    assert np.array_equal(files.read_image(made), resize.downscale(files.read_image(found.hr[0]), 2))
    before = made.stat().st_mtime_ns
    pair_up(found, 2, n_threads=2)
    assert made.stat().st_mtime_ns == before


def test_hr_that_is_no_multiple_of_the_scale_is_cropped(small_set):
    options = parse_args(test_flags(small_set, "--scale", "7"))
    lr, hr, _ = build_test_sets(options)[0][0]
    assert lr.shape == (3, 60 // 7, 64 // 7)
    assert hr.shape == (3, 60 // 7 * 7, 64 // 7 * 7)


def test_a_pair_that_does_not_fit_is_named(small_set):
    found = located(small_set)
    files.write_png(found.lr_folder / "X2/0003x2.png", np.zeros((10, 11, 3), np.uint8))
    with pytest.raises(
        UserError, match=r"0003x2\.png: 11x10 pixels do not fit 0003\.png's 64x60 at x2: expected 32x30"
    ):
        pair_up(found, 2, n_threads=1)


def test_existing_lr_images_may_have_another_format(small_set):
    found = located(small_set)
    (found.lr_folder / "X2").mkdir(parents=True)
    Image.new("RGB", (32, 30), (1, 2, 3)).save(found.lr_folder / "X2/0002x2.bmp")
    assert pair_up(found, 2, n_threads=1)[1].lr.name == "0002x2.bmp"


# --- decoded copies ---


def image_set(small_set: Path) -> tuple[ImageSet, Path]:
    return ImageSet("Small", pair_up(located(small_set), 2, n_threads=1)), small_set / "Small"


def test_decoded_copies_are_made_again_when_outdated(small_set):
    original, root = image_set(small_set)
    copy = cached(original, root, reset=False, n_threads=2)
    path = original.pairs[0].hr
    cache = cache_path(root, path)
    assert cache == root / "bin/Small_train_HR/0001.png.npy"
    assert np.array_equal(copy.open(path), files.read_image(path))
    assert not copy.open(path).flags.writeable

    before = cache.stat().st_mtime_ns
    cached(original, root, reset=False, n_threads=2)
    assert cache.stat().st_mtime_ns == before

    for value, shift in ((9, 10**9), (8, -(10**9))):  # replaced by a newer image, and by an older one from an archive
        files.write_png(path, np.full((60, 64, 3), value, np.uint8))
        os.utime(path, ns=(before + shift, before + shift))
        assert (cached(original, root, reset=False, n_threads=2).open(path) == value).all()

    np.save(cache, np.zeros((60, 64, 3), np.uint8))
    os.utime(cache, ns=(before - 10**9, before - 10**9))
    assert (cached(original, root, reset=False, n_threads=2).open(path) == 0).all()
    assert (cached(original, root, reset=True, n_threads=2).open(path) == 8).all()


@pytest.mark.parametrize("damage", ["truncated", "of another size"])
def test_wrong_copies_are_made_again(small_set, damage):
    """A copy cut off by a full disk, or of an image that was later replaced by an older file of another size."""
    original, root = image_set(small_set)
    path = original.pairs[0].hr
    cached(original, root, reset=False, n_threads=1)
    cache = cache_path(root, path)
    if damage == "truncated":
        cache.write_bytes(cache.read_bytes()[:300])
    else:
        np.save(cache, np.zeros((5, 6, 3), np.uint8))
    os.utime(cache, ns=(path.stat().st_mtime_ns,) * 2)
    assert np.array_equal(cached(original, root, reset=False, n_threads=1).open(path), files.read_image(path))


def test_a_conversion_that_fails_leaves_nothing_behind(small_set):
    original, root = image_set(small_set)
    path = original.pairs[2].hr
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"0003\.png"):
        cached(original, root, reset=False, n_threads=2)
    assert not cache_path(root, path).exists()
    assert not list((root / "bin").rglob("*.tmp"))


def _convert_all(small_set: Path) -> None:
    original, root = image_set(small_set)
    for _ in range(5):
        cached(original, root, reset=True, n_threads=2)


def test_several_processes_may_convert_at_once(small_set):
    original, root = image_set(small_set)
    processes = [forked.process(_convert_all, small_set) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    copy = cached(original, root, reset=False, n_threads=1)
    for pair in original.pairs:
        assert np.array_equal(copy.open(pair.hr), files.read_image(pair.hr))
    assert not list((root / "bin").rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncated", "pickle"])
def test_damaged_copies_are_refused_by_name(small_set, damage):
    original, root = image_set(small_set)
    copy = cached(original, root, reset=False, n_threads=1)
    cache = cache_path(root, original.pairs[0].hr)
    if damage == "truncated":
        cache.write_bytes(cache.read_bytes()[:300])
    else:
        np.save(cache, np.array([{"code": "could run"}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"0001\.png\.npy.*--ext sep_reset"):
        copy.open(original.pairs[0].hr)


def test_a_folder_that_cannot_be_written_is_decoded_each_time(small_set, caplog):
    original, root = image_set(small_set)
    (root / "bin").write_text("a file where the folder should be")
    copy = cached(original, root, reset=False, n_threads=1)
    assert copy.cache_root is None
    assert copy.open(original.pairs[0].hr).shape == (60, 64, 3)


# --- samples ---


def test_flags(small_set: Path, *flags: str) -> list[str]:
    return ["--dir_data", str(small_set), "--data_train", "Small", "--data_test", "Small", "--data_range", "1-4/5-6",
            "--patch_size", "24", "--test_only", "--pre_train", "-", *flags]  # fmt: skip


test_flags.__test__ = False


def train_set(small_set: Path, *flags: str) -> TrainSet:
    return build_train_set(parse_args(test_flags(small_set, "--scale", "2", *flags)))


def test_patches_are_aligned(small_set):
    """Shrinking an HR patch gives the LR patch, away from its borders, in every one of the eight views."""
    samples = train_set(small_set)
    views = set()
    for k in range(40):
        lr, hr, _ = samples[k]
        assert lr.shape == (3, 12, 12)
        assert hr.shape == (3, 24, 24)
        assert lr.dtype == hr.dtype == torch.uint8
        shrunk = resize.downscale(hr.permute(1, 2, 0).numpy(), 2)
        # Rounding after each pass makes the recipe differ by one level at most when the axes are exchanged.
        inner = np.abs(shrunk.astype(int) - lr.permute(1, 2, 0).numpy())[3:-3, 3:-3]
        assert inner.max() <= 1
        views.add(lr.numpy().tobytes())
    assert len(views) == 40


def test_augmentation_reaches_all_eight_views(small_set, photo):
    """Each image is exactly as large as a patch, so only the view is random."""
    for path in located(small_set).hr:
        files.write_png(path, photo[100:124, 100:124])
    samples = train_set(small_set)
    assert len({samples[k][1].numpy().tobytes() for k in range(200)}) == 8
    plain = train_set(small_set, "--no_augment")
    assert torch.equal(plain[0][1], to_tensor(photo[100:124, 100:124], 3))


def test_each_pass_takes_every_image_once(small_set):
    samples = train_set(small_set)
    passes = [[samples[k][2] for k in range(4 * turn, 4 * turn + 4)] for turn in range(6)]
    assert all(sorted(names) == ["0001", "0002", "0003", "0004"] for names in passes)
    assert len({tuple(names) for names in passes}) > 1


def test_sets_with_weights(small_set, photo):
    """Three quarters of the patches come from the set of one image, whatever the other holds; all images are used."""
    files.write_png(small_set / "Own/Own_train_HR/own.png", photo[:40, :50])
    flags = ["--dir_data", str(small_set), "--scale", "2", "--patch_size", "24"]
    samples = build_train_set(parse_args([*flags, "--data_train", "3*Own+1*Small"]))
    names = [samples[k][2] for k in range(400)]
    assert names.count("own") == pytest.approx(300, abs=40)
    assert set(names) == {"own", "0001", "0002", "0003", "0004", "0005", "0006"}
    assert [samples[k][2] for k in range(400)] == names


def test_the_same_batches_for_any_number_of_workers(small_set):
    def first_batches(n_threads: int, first: int = 0, count: int = 5) -> list:
        batches = train_batches(train_set(small_set), batch_size=3, n_threads=n_threads, first=first)
        taken = list(itertools.islice(batches, count))
        batches.close()
        return taken

    expected = first_batches(0)
    for got in (first_batches(1), first_batches(2), first_batches(0, 0, 2) + first_batches(2, 2, 3)):
        for (lr_a, hr_a, names_a, _), (lr_b, hr_b, names_b, _) in zip(expected, got, strict=True):
            assert torch.equal(lr_a, lr_b)
            assert torch.equal(hr_a, hr_b)
            assert list(names_a) == list(names_b)
    other = build_train_set(parse_args(test_flags(small_set, "--scale", "2", "--seed", "2")))
    assert not torch.equal(other[0][0], expected[0][0][0])


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("transparent", [False, True])
def test_the_fast_decoder_and_pillow_agree(tmp_path, photo, mode, transparent):
    """A colour that is declared transparent stays a colour."""
    image = Image.fromarray(np.ascontiguousarray(photo)).convert(mode)
    options = {"transparency": image.getpixel((3, 4))} if transparent else {}
    image.save(tmp_path / "image.png", **options)
    with open(tmp_path / "image.png", "rb") as file:
        assert transparent or decode_usual(file) is not None
    expected = np.asarray(image).reshape(*photo.shape[:2], -1)
    assert np.array_equal(files.read_image(tmp_path / "image.png"), expected)
    assert np.array_equal(files.read_image("image.png", (tmp_path / "image.png").read_bytes()), expected)


def test_a_batch_is_one_block_that_crosses_to_the_parent_once(small_set):
    samples = train_set(small_set)
    block, names = samples.__getitems__(range(5, 8))
    assert (block.dtype, block.dim()) == (torch.uint8, 1)
    for position, (lr, hr) in enumerate(zip(*samples.unpack(block, names)[:2], strict=True)):
        assert torch.equal(lr, samples[5 + position][0])
        assert torch.equal(hr, samples[5 + position][1])
        assert names[position] == samples[5 + position][2]
    batches = train_batches(samples, batch_size=3, n_threads=1)
    lr, hr, *_ = next(batches)
    batches.close()
    assert lr.untyped_storage().data_ptr() == hr.untyped_storage().data_ptr()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc, which Linux has")
def test_maps_stay_and_are_bounded_and_no_file_stays_open(small_set, monkeypatch):
    def mapped() -> int:
        return len({line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/bin/" in line})

    before, handles = mapped(), len(os.listdir("/proc/self/fd"))
    samples = train_set(small_set)
    expected = [samples[k][1] for k in range(12)]
    assert mapped() - before == 8  # LR and HR of four images
    assert len(os.listdir("/proc/self/fd")) <= handles
    assert len(pickle.dumps(samples)) < 10_000  # maps are not pickled for a worker that is spawned

    monkeypatch.setattr(patches, "MAPS", 3)
    few = train_set(small_set)
    del samples
    assert all(torch.equal(few[k][1], hr) for k, hr in enumerate(expected))
    assert mapped() - before == 3


def test_a_worker_reports_a_broken_image_in_one_line(small_set):
    samples = train_set(small_set, "--ext", "img")
    path = samples.images[1][0].hr
    path.write_bytes(path.read_bytes()[:500])
    batches = train_batches(samples, batch_size=4, n_threads=1)
    with pytest.raises(UserError) as raised:
        next(batches)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


# --- sets that cannot be used ---


def test_an_image_smaller_than_a_patch(small_set):
    with pytest.raises(UserError, match=r"0001\.png: 64x60 pixels are smaller than a patch of 62: lower --patch_size"):
        build_train_set(parse_args([*test_flags(small_set), "--scale", "2", "--patch_size", "62"]))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--data_train", "Nothing"), ("Nothing_train_HR", "--dir_data")),
        (("--data_train", "Empty"), ("no images",)),
        (("--data_train", "Bare"), ("no images", "Bare_train_HR")),
        (("--data_range", "1-7/5-6"), ("1-7", "6 images")),
        (("--data_range", "9-12/5-6"), ("9-12", "6 images")),
    ],
)
def test_missing_training_sets(small_set, flags, words):
    (small_set / "Empty/Empty_train_HR").mkdir(parents=True)
    (small_set / "Bare").mkdir()
    with pytest.raises(UserError) as raised:
        build_train_set(parse_args(test_flags(small_set, "--scale", "2", *flags)))
    assert all(word in str(raised.value) for word in words), raised.value


def test_the_default_range_takes_what_a_small_set_has(small_set):
    flags = ["--dir_data", str(small_set), "--data_train", "Small", "--patch_size", "24", "--scale", "2"]
    assert len(build_train_set(parse_args(flags))) == 6


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--data_test", "Set99"), ("Set99", "benchmark")),
        (("--data_test", "Set5,Set14"), ("Set5,Set14", "joined by +")),
        (("--data_test", "Demo", "--dir_demo", "no/such/folder"), ("no/such/folder", "--dir_demo")),
        (("--data_test", "NoHR"), ("NoHR", "HR")),
        (("--data_range", "1-4/6-7"), ("6-7", "6 images")),
    ],
)
def test_missing_test_sets(small_set, flags, words):
    (small_set / "benchmark/NoHR").mkdir(parents=True)
    with pytest.raises(UserError) as raised:
        build_test_sets(parse_args(test_flags(small_set, "--scale", "2", *flags)))
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_folder_of_own_images(small_set, photo):
    """Any names, nested, in two formats: used whole; files made from the set lie in bin/ and are not part of it."""
    for name in ("a.png", "deep/er/b.png", "deep/a.png"):
        files.write_png(small_set / "Own" / name, photo[:40, :50])
    Image.fromarray(np.array(photo[:48, :44])).save(small_set / "Own/c.bmp")
    flags = ["--dir_data", str(small_set), "--data_train", "Own", "--patch_size", "24", "--scale", "2"]
    for _ in range(2):
        samples = build_train_set(parse_args(flags))
        assert [pair.name for pair, _ in samples.images] == ["a", "c", "deep__a", "deep__er__b"]
    assert samples[0][1].shape == (3, 24, 24)
    assert (small_set / "Own/bin/LR_bicubic/X2/deep__er__bx2.png").exists()
    assert sorted(path.name for path in (small_set / "Own").iterdir()) == ["a.png", "bin", "c.bmp", "deep"]
    assert len(build_train_set(parse_args([*flags, "--data_range", "2-3/1-1"]))) == 2

    # It is also tested whole, but images that are trained on are not used for validation.
    (tested,) = build_test_sets(parse_args([*flags, "--data_test", "Own", "--test_only", "--pre_train", "x.pt"]))
    assert len(tested) == 4
    with pytest.raises(UserError, match="all of its 4 images are trained on: give --data_range"):
        build_test_sets(parse_args([*flags, "--data_test", "Own"]))


def test_two_images_of_one_name(small_set, photo):
    files.write_png(small_set / "Own/a.png", photo[:40, :50])
    Image.fromarray(np.array(photo[:40, :50])).save(small_set / "Own/a.bmp")
    with pytest.raises(UserError, match="have one name"):
        build_train_set(parse_args(["--dir_data", str(small_set), "--data_train", "Own", "--patch_size", "24"]))


def test_other_trees(small_set, photo):
    """Benchmark folders, HR and LR_bicubic directly in the set's folder, and a user's own images."""
    files.write_png(small_set / "benchmark/Mine/HR/cat.png", photo[:41, :53])
    files.write_png(small_set / "Own/HR/cat.png", photo[:40, :52])
    flags = test_flags(small_set, "--scale", "4", "--data_range", "1-1/1-1", "--dir_demo", str(small_set / "Own/HR"))
    mine, own, demo = build_test_sets(parse_args([*flags, "--data_test", "Mine+Own+Demo"]))
    assert mine[0][0].shape == (3, 10, 13)
    assert (small_set / "benchmark/Mine/LR_bicubic/X4/catx4.png").exists()
    assert own[0][1].shape == (3, 40, 52)
    lr, hr, name = demo[0]
    assert (lr.shape, hr, name) == ((3, 40, 52), None, "cat")
    assert not demo.scored


# --- what lies in a folder ---


def own(dataset: Path, name: str = "Own", *flags: str) -> TrainSet:
    return build_train_set(
        parse_args(["--dir_data", str(dataset), "--data_train", name, "--patch_size", "24", "--scale", "2", *flags])
    )


def demo_set(folder: Path):
    return build_test_sets(parse_args(["--data_test", "Demo", "--dir_demo", str(folder), "--scale", "2"]))[0]


@pytest.fixture
def logged(caplog):
    logger = logging.getLogger("krgn")
    caplog.set_level(logging.INFO, "krgn")
    before, logger.propagate = logger.propagate, True
    yield caplog
    logger.propagate = before


SAVED = [".png", ".jfif", ".jpe", ".JPG", ".jp2", ".tga", ".bmp", ".webp", ".tiff", ".ppm", ".pcx", ".sgi", ".qoi"]


@pytest.mark.parametrize("suffix", [*SAVED, pytest.param(".avif", marks=pytest.mark.skipif(
    not features.check("avif"), reason="this Pillow has no AVIF"))])  # fmt: skip
def test_what_pillow_reads_is_read(tmp_path, photo, suffix):
    path = tmp_path / f"Own/a{suffix}"
    path.parent.mkdir()
    Image.fromarray(np.array(photo[:40, :50])).save(path)
    assert [pair.hr for pair, _ in own(tmp_path).images] == [path]
    assert [pair.lr for pair in demo_set(tmp_path / "Own").pairs][:1] == [path]


def test_other_files_are_skipped_and_named(tmp_path, photo, logged):
    files.write_png(tmp_path / "Own/deep/a.png", photo[:40, :50])
    for name in ("b.pdf", "notes.txt", "c.h5", "d.eps", "e.heic", "\x1b[31m\nf.txt"):
        (tmp_path / "Own" / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "Own/pipe.png")
    assert len(demo_set(tmp_path / "Own").pairs) == 1
    assert len(own(tmp_path)) == 1
    for record in logged.records[:2]:
        if "skipped" in record.getMessage():
            assert "7 skipped" in record.getMessage()
            assert "pipe.png (a pipe)" in record.getMessage()
            assert "e.heic" in record.getMessage()
            assert "\n" not in record.getMessage()
            assert "\x1b" not in record.getMessage()
    assert logged.text.count("7 skipped") == 2


def test_links_are_followed_once_and_loops_named(tmp_path, photo, logged):
    for number in range(3):
        files.write_png(tmp_path / f"elsewhere/more/{number}.png", photo[number : number + 40, :50])
    files.write_png(tmp_path / "elsewhere/single.png", photo[50:90, :50])
    folder = tmp_path / "Own"
    files.write_png(folder / "here/0.png", photo[60:100, :50])
    (folder / "a").symlink_to(tmp_path / "elsewhere/more")
    (folder / "again").symlink_to(tmp_path / "elsewhere/more")
    (folder / "one.png").symlink_to(tmp_path / "elsewhere/single.png")
    (folder / "here/up").symlink_to(folder)
    (folder / "here/above").symlink_to(tmp_path)
    names = ["a__0", "a__1", "a__2", "here__0", "one"]
    assert [pair.name for pair, _ in own(tmp_path).images] == names
    assert sorted(pair.name for pair in demo_set(folder).pairs if "bin" not in pair.name) == names
    assert "again, above, up (a link to a folder that is already read)" in logged.text.replace(
        "above, again", "again, above"
    )


@pytest.mark.parametrize("place", ["Own/a.png", "Own/Own_train_HR/a.png", "benchmark/Own/HR/a.png"])
def test_a_broken_link_is_named(tmp_path, photo, place):
    files.write_png(tmp_path / place.replace("a.png", "b.png"), photo[:40, :50])
    (tmp_path / place).symlink_to(tmp_path / "nothing.png")
    with pytest.raises(UserError, match=r"a\.png: is a broken link"):
        build_test_sets(parse_args(test_flags(tmp_path, "--data_test", "Own", "--data_range", "1-1/1-1")))
    (tmp_path / place).unlink()
    (tmp_path / place).symlink_to(tmp_path / place)
    with pytest.raises(UserError, match=r"a\.png: is a broken link"):
        build_test_sets(parse_args(test_flags(tmp_path, "--data_test", "Own", "--data_range", "1-1/1-1")))


def test_a_folder_that_may_not_be_read(tmp_path, photo, monkeypatch):
    """The superuser may read everything, so the system's error is simulated."""
    files.write_png(tmp_path / "Own/closed/a.png", photo[:40, :50])
    scandir = os.scandir

    def closed(folder):
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    for act in (lambda: own(tmp_path), lambda: demo_set(tmp_path / "Own")):
        with pytest.raises(UserError, match=r"closed: cannot be read \(Permission denied\)"):
            act()


@pytest.mark.parametrize("place", ["Own/{}", "Own/Own_train_HR/{}", "Own/deep/{}", "benchmark/Own/HR/{}"])
@pytest.mark.parametrize("name", [b"caf\xe9.png", b"caf\xe9/a.png"])
def test_names_that_are_not_utf8_are_refused_at_once(tmp_path, photo, place, name):
    path = Path(os.fsdecode(os.fsencode(tmp_path / place.format("x")).replace(b"/x", b"/" + name)))
    try:
        files.write_png(path, photo[:40, :50])
    except OSError:
        pytest.skip("this disk takes no such names")
    for flags in (
        ("--data_test", "Own", "--data_range", "1-1/1-1"),
        ("--data_test", "Demo", "--dir_demo", str(tmp_path)),
    ):
        with pytest.raises(UserError, match=r"caf\\udce9.*is not valid UTF-8: rename it") as raised:
            build_test_sets(parse_args(test_flags(tmp_path, *flags)))
        str(raised.value).encode()
    assert not list(tmp_path.rglob("*.npy"))


def test_results_of_own_images_have_names_of_their_own(tmp_path, photo):
    """Unique even on a disk that ignores case, and the same names every time."""
    names = ["same.jpg", "same.png", "same.PNG", "Same.bmp", "deep/same.png", "deep__same.png", "same_png.png", "b.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.array(photo[:20, :20])).save(tmp_path / name)
    long = "ä" * 120
    files.write_png(tmp_path / f"{long}/1.png", photo[:20, :20])
    files.write_png(tmp_path / f"{long}/2.png", photo[:20, :20])
    pairs = demo_set(tmp_path).pairs
    found = [pair.name for pair in pairs]
    assert len(pairs) == 10
    assert len({name.casefold() for name in found}) == 10
    assert {"b", "same_jpg", "same_png", "Same_bmp", "deep__same_png"} <= set(found)
    assert max(len(name.encode()) for name in found) <= 200
    assert [pair.name for pair in demo_set(tmp_path).pairs] == found


def test_names_that_are_too_long_are_reported(tmp_path, photo):
    name = "n" * 250
    files.write_png(tmp_path / "Own/short.png", photo[:40, :50])
    (tmp_path / "Own/short.png").rename(tmp_path / f"Own/{name}.png")
    with pytest.raises(UserError, match=r"x2\.png: this name of 256 bytes is too long .* shorten the name"):
        own(tmp_path)
