"""What becomes of pictures in a test: colours of a network for luma, users' own pictures, scores that mean nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import launch
from PIL import ExifTags, Image, ImageCms, ImageOps

import compare
import report
from data import image as files
from data import resize
from data.image import read_image, write_png
from evaluation import pictures
from evaluation.metrics import psnr_ssim, rgb_to_chroma, rgb_to_y
from evaluation.results import read_results
from model.checkpoint import pack
from model.krgn import KRGN
from runtime.files import save_tensors

KEPT = ("--save_results", "--save_gt")


def scores(folder: Path, name: str) -> dict[str, float]:
    return {image: score.psnr for image, score in read_results(folder)[name].by_image.items()}


def luma_test(small_set: Path, *flags) -> Path:
    """Tests a small network for luma; returns the experiment's folder."""
    torch.manual_seed(0)
    save_tensors(small_set / "y.pt", pack(KRGN(scale=2, n_feats=8, n_resgroups=1, n_colors=1), "KRGN"))
    launch("--cpu", "--test_only", "--n_colors", "1", "--scale", "2", "--pre_train", small_set / "y.pt", "--dir_data",
           small_set, "--dir_experiment", small_set / "experiment", "--save", "luma", *flags)  # fmt: skip
    return small_set / "experiment/luma"


def test_a_network_for_luma_gives_coloured_pictures(small_set, photo, monkeypatch):
    """Its Y, and the chroma of LR enlarged bicubically; gray pictures stay gray; Y is scored before it is coloured."""
    for name, pixels in (("colour", photo[100:161, 200:270]), ("gray", photo[100:161, 200:270, :1])):
        write_png(small_set / f"benchmark/Both/HR/{name}.png", pixels)
        write_png(small_set / f"mine/{name}.png", pixels)
    monkeypatch.setattr(pictures, "BAND", 9)
    folder = luma_test(
        small_set, "--data_test", "Both+Demo", "--dir_demo", small_set / "mine", "--save_results", "--save_gt"
    )
    read = lambda of, name, kind: read_image(folder / f"results-{of}/{name}_x2_{kind}.png")  # noqa: E731
    sr, lr, hr = (read("Both", "colour", kind) for kind in ("SR", "LR", "HR"))
    assert sr.shape == hr.shape == (60, 70, 3)
    assert lr.shape == (30, 35, 3)
    there, enlarged = (rgb_to_chroma(torch.tensor(one).permute(2, 0, 1)) for one in (sr, resize.upscale(lr, 2)))
    assert (there - enlarged).abs().mean() < 1  # but where RGB had to be clamped
    assert read("Both", "gray", "SR").shape == (60, 70, 1)
    assert read("Demo", "colour", "SR").shape == (122, 140, 3)
    assert read("Demo", "gray", "SR").shape == (122, 140, 1)
    report.main([str(folder), "--out", str(small_set / "page")])  # the pictures' scores are those of the table
    luma = scores(folder, "Both")
    assert luma["colour"] == pytest.approx(psnr_ssim(*map(to_luma, (sr, hr)), 2)[0], abs=0.5)

    luma_test(small_set, "--data_test", "Both", "--metric_channel", "rgb", "--save_results")
    in_rgb = scores(folder, "Both")
    as_tensors = (torch.tensor(one).permute(2, 0, 1) for one in (sr, hr))
    assert in_rgb["colour"] == pytest.approx(psnr_ssim(*as_tensors, 2, "rgb")[0], abs=1e-9)
    assert in_rgb["colour"] != pytest.approx(luma["colour"], abs=0.01)
    assert in_rgb["gray"] == pytest.approx(luma["gray"], abs=1e-9)


def to_luma(pixels: np.ndarray) -> torch.Tensor:
    return rgb_to_y(torch.tensor(pixels).permute(2, 0, 1)).round().to(torch.uint8)


# --- users' own pictures ---


def turned_exif(orientation: int, form: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "a phone"
    if form == "TIFF":  # Pillow writes no more into one
        return exif.tobytes()
    exif[ExifTags.Base.ImageWidth] = 12
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: "2024:01:02 03:04:05", ExifTags.Base.ExifImageWidth: 12}
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSAltitude: 3.5}
    return exif.tobytes()


def save(path: Path, pixels: np.ndarray, form: str, **more) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
    Image.fromarray(pixels.squeeze()).save(path, form, **options.get(form, {}), **more)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_own_pictures_are_turned_upright_and_data_sets_are_not(tmp_path, photo, form, orientation):
    stored = np.ascontiguousarray(photo[100:112, 200:220])
    path = tmp_path / "picture"
    save(path, stored, form, exif=turned_exif(orientation, form))
    with Image.open(path) as image:  # Pillow's own way, on what lies in the file
        upright = np.asarray(ImageOps.exif_transpose(image))
    pixels, kept = files.read_own(path)
    assert np.array_equal(pixels, upright)
    as_stored = files.read_image(path)
    assert as_stored.shape == stored.shape
    assert np.abs(as_stored.astype(int) - stored).mean() < (6 if form == "JPEG" else 1e-9)
    header = files.read_header(path)
    assert (header.height, header.width, header.orientation) == (12, 20, orientation)
    assert files.read_size(path) == (12, 20)
    files.write_png(tmp_path / "sr.png", pixels, **kept)
    with Image.open(tmp_path / "sr.png") as image:
        exif = image.getexif()
        assert exif[ExifTags.Base.Make] == "a phone"
        if form == "TIFF":
            assert set(exif) == {ExifTags.Base.Make}  # nothing of TIFF's own layout
        else:
            assert exif.get_ifd(ExifTags.IFD.Exif) == {ExifTags.Base.DateTimeOriginal: "2024:01:02 03:04:05"}
            assert exif.get_ifd(ExifTags.IFD.GPSInfo) == {ExifTags.GPS.GPSAltitude: 3.5}
            assert not {ExifTags.Base.Orientation, ExifTags.Base.ImageWidth} & exif.keys()
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(image)), pixels)


def test_damaged_exif_costs_no_picture(tmp_path, photo):
    stored = np.ascontiguousarray(photo[:12, :20])
    for number, exif in enumerate(
        (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    ):
        save(tmp_path / f"{number}.png", stored, "PNG", exif=exif)
        assert np.array_equal(files.read_own(tmp_path / f"{number}.png")[0], stored)
        assert files.read_header(tmp_path / f"{number}.png").orientation == 1


def profile(space: str) -> bytes:
    """Enough of a colour profile to be kept: its header with the colour space, and no tags."""
    return bytes(16) + space.encode().ljust(4) + bytes(112)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_what_a_phone_made_keeps_its_colours_and_its_side(small_set, photo, capsys):
    save(small_set / "mine/phone.jpg", photo[:20, :32], "JPEG", exif=turned_exif(6), icc_profile=SRGB)
    save(small_set / "mine/gray.png", photo[:20, :32, 0], "PNG", icc_profile=profile("GRAY"))
    save(small_set / "benchmark/Real/HR/phone.png", photo[:40, :64], "PNG", exif=turned_exif(6), icc_profile=SRGB)
    save(small_set / "benchmark/Real/HR/other.png", photo[:40, :64], "PNG")
    folder = luma_test(small_set, "--data_test", "Demo+Real", "--dir_demo", small_set / "mine", *KEPT)
    with Image.open(folder / "results-Demo/phone_x2_SR.png") as image:
        assert image.size == (40, 64)
        assert image.info["icc_profile"] == SRGB
        assert image.getexif()[ExifTags.Base.Make] == "a phone"
    with Image.open(folder / "results-Demo/phone_x2_LR.png") as image:
        assert (image.size, image.info["icc_profile"]) == ((20, 32), SRGB)
    with Image.open(folder / "results-Demo/gray_x2_SR.png") as image:
        assert (image.mode, image.info["icc_profile"]) == ("L", profile("GRAY"))
    with Image.open(folder / "results-Real/phone_x2_SR.png") as image:
        assert image.size == (64, 40)
        assert not image.info.keys() & {"icc_profile", "exif"}
    said = capsys.readouterr().out
    assert "Demo: 1 files have an EXIF orientation, which is applied: phone" in said
    assert "Demo: 2 files have a colour profile, which is kept in the results: gray, phone" in said
    assert (
        said.count("Real: 1 files have an EXIF orientation, which is ignored: the stored pixels are taken: phone") == 1
    )
    assert said.count("Real: 1 files have a colour profile, which is ignored: phone") == 1


def test_a_profile_of_other_channels_is_not_kept(tmp_path, photo):
    Image.fromarray(photo[:8, :8]).convert("CMYK").save(tmp_path / "cmyk.jpg", icc_profile=profile("CMYK"))
    pixels, kept = files.read_own(tmp_path / "cmyk.jpg")
    files.write_png(tmp_path / "sr.png", pixels, **kept)
    with Image.open(tmp_path / "sr.png") as image:
        assert "icc_profile" not in image.info


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_said(small_set, photo, form, capsys):
    first, second = (Image.fromarray(photo[top : top + 40, :48]) for top in (0, 100))
    path = small_set / f"benchmark/Moving/HR/a.{form.lower()}"
    path.parent.mkdir(parents=True)
    first.save(path, form, save_all=True, append_images=[second])
    second.save(path.with_name("b.png"))
    launch("--cpu", "--test_only", "--scale", "2", "--pre_train", "KRGN_x2", "--dir_data", small_set,
           "--data_test", "Moving", "--dir_experiment", small_set / "experiment", "--save", "moving")  # fmt: skip
    assert capsys.readouterr().out.count("Moving: 1 files hold several frames, of which the first is taken: a") == 1
    assert np.abs(files.read_image(path).astype(int) - photo[:40, :48]).mean() < 12


def test_other_files_of_several_frames(tmp_path, photo):
    first, second = (Image.fromarray(photo[top : top + 40, :48]) for top in (0, 100))
    for form in ("AVIF", "MPO"):
        first.save(tmp_path / form, form, save_all=True, append_images=[second])
        assert files.read_header(tmp_path / form).frames
        first.save(tmp_path / form, "AVIF")
        assert not files.read_header(tmp_path / form).frames


# --- scores that mean nothing ---


def test_images_that_spoil_a_mean_are_named(small_set, photo, capsys):
    """Bicubic of a blank image is that image, to the last bit."""
    write_png(small_set / "benchmark/Good/HR/cat.png", photo[:40, :48])
    for name, pixels in (("cat", photo[:40, :48]), ("blank", np.full((40, 48, 3), 77, np.uint8))):
        write_png(small_set / f"benchmark/Odd/HR/{name}.png", pixels)
    common = ("--data_test", "Odd+Good", "--dir_data", small_set)
    compare.main([*map(str, ("bicubic", *common, "--scale", "2", "--n_runs", "0", "--out", small_set / "t"))])
    said = capsys.readouterr().out
    assert "Odd x2: PSNR is infinite because SR equals HR, and so is the mean: blank\n" in said
    assert "Odd x2: HR is of one colour, whose score means nothing but changes the mean: blank\n" in said
    launch("--cpu", "--test_only", "--scale", "2", "--pre_train", "KRGN_x2", *common,
           "--dir_experiment", small_set / "experiment", "--save", "odd")  # fmt: skip
    said = capsys.readouterr().out
    assert "Odd x2: HR is of one colour, whose score means nothing but changes the mean: blank\n" in said
    assert said.count("Good x2:") == 1  # its scores alone
