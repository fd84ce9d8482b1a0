"""upscale.py: every kind of picture, what it keeps, where it writes, how it goes on, and how it fails."""

import io
import json
import re
import signal
import sys
from pathlib import Path

import browser
import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from conftest import assert_one_line, program
from forked import Program
from helpers import launch, randomise
from PIL import Image, ImageCms

import kl
import upscale
from data import resize
from data.encode import FORMS, to_8_bits, write_picture
from data.image import read_image
from data.picture import Picture, read_picture
from data.targets import plan
from evaluation import runner as runners
from evaluation.pictures import bicubic
from evaluation.runner import ImageRunner
from model.checkpoint import pack
from model.edsr import EDSR
from model.krgn import KRGN
from model.tiling import peak_bytes
from runtime.errors import UserError
from runtime.files import save_tensors
from runtime.flags import weights_name

CPU = torch.device("cpu")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def network(**changes) -> KRGN:
    """A small network whose output depends on its input as that of a trained one does: random, and not flat."""
    torch.manual_seed(3)
    return randomise(KRGN(scale=2, n_feats=8, n_resgroups=1, **changes)).eval()


@pytest.fixture
def weights(tmp_path) -> str:
    path = tmp_path / "small.pt"
    save_tensors(path, pack(network(), "KRGN"))
    return str(path)


@pytest.fixture
def crop(photo) -> np.ndarray:
    """uint8 (40, 56, 3)."""
    return np.ascontiguousarray(photo[100:140, 130:186])


@pytest.fixture
def folder(tmp_path, crop) -> Path:
    """A folder with pictures of every kind."""
    made = tmp_path / "pictures"
    (made / "2024/may").mkdir(parents=True)
    image = Image.fromarray(crop)
    image.save(made / "colour.png")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # orientation, and the camera
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 12:00:00"
    image.save(made / "2024/may/phone.jpg", exif=exif, icc_profile=SRGB, quality=95)
    image.convert("L").save(made / "gray.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(made / "palette.gif")
    (made / "deep.png").write_bytes(imagecodecs.png_encode(deep(crop)))
    (made / "deep_gray.png").write_bytes(imagecodecs.png_encode(deep(crop)[..., 0].copy()))
    rgba = np.concatenate((crop, ramp(crop)), axis=-1)
    Image.fromarray(rgba).save(made / "logo.png")
    return made


def deep(pixels: np.ndarray) -> np.ndarray:
    """uint16 whose high bytes are `pixels`, with low bytes of its own."""
    low = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint16)
    return pixels.astype(np.uint16) << 8 | low


def ramp(pixels: np.ndarray) -> np.ndarray:
    """An alpha (H, W, 1) from transparent to opaque."""
    height, width = pixels.shape[:2]
    return np.broadcast_to(np.linspace(0, 255, width).round().astype(np.uint8), (height, width))[..., None].copy()


def run(weights: str, *arguments) -> None:
    upscale.main([*map(str, arguments), "--model", weights, "--cpu"])


def by_hand(pixels: np.ndarray) -> torch.Tensor:
    """The network's output for uint8 or uint16 (H, W, 3), float32 (3, 2H, 2W) in 0..255."""
    largest = np.iinfo(pixels.dtype).max
    image = torch.from_numpy(pixels.astype(np.float64) * (255 / largest)).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        return network()(image.contiguous(memory_format=torch.channels_last))[0].clamp(0, 255)


def decoded(path: Path) -> np.ndarray:
    """A PNG's samples, by another decoder than ours."""
    return imagecodecs.png_decode(path.read_bytes())


# --- what becomes of each kind of picture ---


def test_a_folder_of_every_kind(folder, weights, crop, capsys):
    run(weights, folder)
    out = folder.with_name("pictures_x2")
    made = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert made == sorted(
        ["2024/may/phone_x2.png"]
        + [f"{name}_x2.png" for name in ("colour", "gray", "palette", "deep", "deep_gray", "logo")]
    )
    shapes = {path.stem: (decoded(path).shape, decoded(path).dtype) for path in out.rglob("*.png")}
    assert shapes["colour_x2"] == shapes["palette_x2"] == ((80, 112, 3), np.uint8)
    assert shapes["phone_x2"] == ((112, 80, 3), np.uint8)  # upright
    assert shapes["gray_x2"] == ((80, 112), np.uint8)
    assert shapes["deep_x2"] == ((80, 112, 3), np.uint16)
    assert shapes["deep_gray_x2"] == ((80, 112), np.uint16)
    assert shapes["logo_x2"] == ((80, 112, 4), np.uint8)
    said = capsys.readouterr().out
    assert "7 pictures of 0.02 megapixels enlarged" in said
    assert f"results are in {out}" in said


def test_8_bits_equal_the_demo_of_main(folder, weights, tmp_path):
    """Bit for bit, for what both write alike: 8-bit colours."""
    run(weights, folder)
    experiment = tmp_path / "experiment"
    launch(
        *("--cpu", "--test_only", "--pre_train", weights, "--data_test", "Demo", "--dir_demo", folder),
        *("--dir_experiment", experiment, "--save", "demo"),
    )
    demo, out = experiment / "demo/results-Demo", folder.with_name("pictures_x2")
    for ours, theirs in (("colour", "colour"), ("palette", "palette"), ("2024/may/phone", "2024__may__phone")):
        assert np.array_equal(decoded(out / f"{ours}_x2.png"), decoded(demo / f"{theirs}_x2_SR.png")), ours
    assert np.array_equal(decoded(out / "logo_x2.png")[..., :3], decoded(demo / "logo_x2_SR.png"))
    gray = decoded(demo / "gray_x2_SR.png") @ np.array((0.299, 0.587, 0.114))
    assert np.abs(decoded(out / "gray_x2.png") - gray).max() <= 1  # rounded once instead of twice


def test_16_bits_pass_the_network_unrounded(folder, weights, crop):
    run(weights, folder / "deep.png", folder / "deep_gray.png")
    expected = by_hand(deep(crop)) * 257
    found = decoded(folder / "deep_x2.png").astype(float)
    assert np.abs(found - expected.permute(1, 2, 0).numpy()).max() <= 1
    assert len(np.unique(found.astype(int) & 255)) > 200  # the low bytes are not those of 8 bits
    gray = np.repeat(deep(crop)[..., :1], 3, axis=2)
    luma = (by_hand(gray) * torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(0) * 257
    # Clamping comes after the sum there and before it here.
    assert np.abs(decoded(folder / "deep_gray_x2.png") - luma.numpy()).mean() < 40


def test_alpha_is_enlarged_bicubically(folder, weights, crop):
    run(weights, folder / "logo.png", folder / "colour.png")
    logo = decoded(folder / "logo_x2.png")
    assert np.array_equal(logo[..., 3:], resize.upscale(ramp(crop), 2))
    assert np.array_equal(logo[..., :3], decoded(folder / "colour_x2.png"))


def test_bicubic_in_bands_is_that_of_the_whole(photo):
    tall = np.concatenate([photo, photo[::-1]])  # 600 rows, more than two bands
    assert np.array_equal(bicubic(tall, 3), resize.upscale(tall, 3))
    wide = tall[..., :1].astype(np.uint16) * 257
    expected = np.clip(np.floor(resize.upscale(wide.astype(np.float64), 2) + 0.5), 0, 65535)
    assert np.array_equal(bicubic(wide, 2), expected)


def test_profile_and_exif_are_kept_and_the_orientation_is_reset(folder, weights):
    for form in ("png", "jpg", "webp"):
        run(weights, folder / "2024/may/phone.jpg", "--format", form)
        with Image.open(folder / f"2024/may/phone_x2.{form}") as image:
            exif = image.getexif()
            assert image.size == (80, 112)
            assert 0x0112 not in exif
            assert exif[0x010F] == "Maker"
            assert exif.get_ifd(0x8769)[0x9003] == "2024:05:01 12:00:00"
            assert image.info["icc_profile"] == SRGB


def test_every_orientation(tmp_path, weights, crop):
    """Against Pillow's own transposition of the stored pixels."""
    from PIL import ImageOps

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(crop)
        stored.save(tmp_path / f"o{orientation}.png", exif=exif)
        tifffile.imwrite(
            tmp_path / f"d{orientation}.tif", deep(crop), photometric="rgb", extratags=[(274, 3, 1, orientation, True)]
        )
        with Image.open(tmp_path / f"o{orientation}.png") as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(read_picture(tmp_path / f"o{orientation}.png").pixels, expected)
        assert np.array_equal(read_picture(tmp_path / f"d{orientation}.tif").pixels >> 8, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("alpha", [False, True])
def test_what_is_written_is_read_back(tmp_path, channels, dtype, alpha):
    """PNG and TIFF, by our reader and by another one; with profile and EXIF."""
    rng = np.random.default_rng(1)
    samples = rng.integers(0, np.iinfo(dtype).max, (11, 13, channels + alpha), dtype=dtype, endpoint=True)
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8825)[1] = "N"
    metadata = {"icc_profile": SRGB, "exif": exif.tobytes()}
    picture = Picture(samples[..., :channels], samples[..., channels:] if alpha else None, metadata)
    for form, decode in (
        ("png", imagecodecs.png_decode),
        ("tif", lambda content: tifffile.imread(io.BytesIO(content))),
    ):
        path = tmp_path / f"picture.{form}"
        write_picture(path, picture, form)
        assert np.array_equal(decode(path.read_bytes()).reshape(samples.shape), samples), form
        if form == "tif" and samples.shape[2] == 2 and dtype == np.uint16:
            continue  # Pillow has no such mode
        again = read_picture(path)
        assert np.array_equal(again.pixels, picture.pixels)
        assert (again.alpha is None) == (not alpha)
        assert not alpha or np.array_equal(again.alpha, picture.alpha)
        with Image.open(path) as image:
            assert image.getexif()[0x010F] == "Maker"
            assert image.getexif().get_ifd(0x8825)[1] == "N"
            assert (image.info.get("icc_profile") == SRGB) == (channels == 3)  # it is one of RGB


def test_16_bit_formats_are_read_with_all_bits(tmp_path, crop):
    samples = deep(crop)
    planes = {"contig": samples, "separate": np.moveaxis(samples, -1, 0)}
    for planar, laid in planes.items():
        tifffile.imwrite(tmp_path / "a.tif", laid, photometric="rgb", planarconfig=planar, compression="deflate")
        assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, samples), planar
    tifffile.imwrite(tmp_path / "g.tif", samples[..., 0], photometric="minisblack")
    assert np.array_equal(read_picture(tmp_path / "g.tif").pixels, samples[..., :1])
    height, width = samples.shape[:2]
    (tmp_path / "a.ppm").write_bytes(f"P6 {width} {height} 65535\n".encode() + samples.astype(">u2").tobytes())
    assert np.array_equal(read_picture(tmp_path / "a.ppm").pixels, samples)
    # The high bytes are what every other program of the project reads.
    for name in ("a.tif", "g.tif", "a.ppm"):
        assert np.array_equal(read_picture(tmp_path / name).pixels >> 8, read_image(tmp_path / name))
    assert np.array_equal(to_8_bits(np.array([0, 128, 129, 65535], np.uint16)), [0, 0, 1, 255])


def test_a_network_of_luma(folder, tmp_path):
    """Colour pictures get their chroma bicubically, as in main.py's Demo; 16 bits stay 16 bits."""
    torch.manual_seed(3)
    path = tmp_path / "luma.pt"
    save_tensors(path, pack(network(n_colors=1), "KRGN"))
    run(str(path), folder)
    launch(
        *("--cpu", "--test_only", "--pre_train", path, "--data_test", "Demo", "--dir_demo", folder, "--n_colors", "1"),
        *("--dir_experiment", tmp_path / "experiment", "--save", "demo"),
    )
    demo, out = tmp_path / "experiment/demo/results-Demo", folder.with_name("pictures_x2")
    for name in ("colour", "gray"):
        assert np.array_equal(decoded(out / f"{name}_x2.png"), decoded(demo / f"{name}_x2_SR.png")), name
    found = decoded(out / "deep_x2.png")
    assert found.dtype == np.uint16
    assert np.abs((found / 257) - decoded(out / "colour_x2.png")).mean() < 1.5  # they differ by less than a gray level


# --- tiles and memory ---


@pytest.mark.parametrize("kind", ["KRGN", "EDSR"])
@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_tiles_equal_the_whole_image(kind, ensemble, dtype, crop):
    torch.manual_seed(3)
    model = network() if kind == "KRGN" else EDSR(scale=2, n_feats=8, n_resblocks=2).eval()
    pixels = crop if dtype == torch.uint8 else deep(crop)
    lr = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    shares = []
    settings = {"device": CPU, "scale": 2, "self_ensemble": ensemble}
    with torch.inference_mode():
        whole = ImageRunner(model, **settings).upscale(lr).sr
        tiled = ImageRunner(model, tile=16, progress=shares.append, **settings).upscale(lr).sr
    assert tiled.dtype == dtype
    difference = (whole.int() - tiled.int()).abs().max()
    assert difference <= (1 if dtype == torch.uint8 else 2)
    assert sum(shares) == pytest.approx(1)
    assert len(shares) >= 12


def test_what_does_not_fit_runs_in_tiles_by_itself(folder, weights, monkeypatch, capsys):
    run(weights, folder / "colour.png")
    whole = decoded(folder / "colour_x2.png").astype(int)
    monkeypatch.setattr(runners, "memory_shortage", lambda *_: "needs about 9.0 GiB, 1.0 are free")
    monkeypatch.setattr(runners, "AUTO_TILE", 16)
    run(weights, folder / "colour.png", "--overwrite")
    assert "running tiles of 16 instead" in capsys.readouterr().out
    assert np.abs(decoded(folder / "colour_x2.png") - whole).max() <= 1


def test_tiles_hold_the_output_in_whole_values_alone(photo):
    """Peak memory in tiles is far below that of the output in float32."""
    lr = torch.from_numpy(photo).permute(2, 0, 1).contiguous()
    model = EDSR(scale=4, n_feats=4, n_resblocks=1).eval()
    runner = ImageRunner(model, device=CPU, scale=4, tile=32)
    floats = 4 * 16 * lr.numel()
    with torch.inference_mode():
        assert peak_bytes(runner.upscale, lr) < 0.6 * floats
        assert peak_bytes(ImageRunner(model, device=CPU, scale=4).upscale, lr) > floats


# --- where files go ---


def test_a_stopped_run_goes_on(folder, weights, capsys):
    run(weights, folder)
    out = folder.with_name("pictures_x2")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (out / "gray_x2.png").unlink()
    run(weights, folder)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert before.keys() == after.keys()
    assert [path.name for path in after if after[path] != before[path]] == ["gray_x2.png"]
    assert "6 pictures were already there and skipped" in capsys.readouterr().out
    run(weights, folder, "--overwrite")
    assert all(path.stat().st_mtime_ns > before[path] for path in before)


@pytest.mark.parametrize(("form", "suffix"), [("png", ".png"), ("same", ".png")])
def test_results_beside_the_inputs_are_not_enlarged_again(folder, weights, form, suffix, capsys):
    content = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for _ in range(2):
        run(weights, folder, "--out", folder, "--format", form)
        made = {path for path in folder.rglob("*") if path.is_file()} - content.keys()
        assert len(made) == len(content)
        assert not any("_x2_x2" in path.name for path in made)
    assert {path: path.read_bytes() for path in content} == content
    with pytest.raises(UserError, match=r"_x2\.\w+: would be written over, but is among the pictures"):
        run(weights, folder, "--out", folder, "--format", form, "--overwrite")
    assert {path: path.read_bytes() for path in content} == content


def test_a_folder_for_results_inside_the_input(folder, weights, capsys):
    for _ in range(2):
        run(weights, folder, "--out", folder / "large")
    assert "7 pictures were already there" in capsys.readouterr().out
    assert len(list((folder / "large").rglob("*.png"))) == 7


def test_an_input_is_never_written_over(folder, weights, tmp_path):
    """a.jpg would become a_x2.png, which is a photograph of the user's own."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("a.png", "a_x2.png"):
        (mine / name).write_bytes((folder / "colour.png").read_bytes())
    before = (mine / "a_x2.png").read_bytes()
    with pytest.raises(UserError, match=r"a_x2\.png: would be written over"):
        run(weights, mine / "a.png", mine / "a_x2.png", "--overwrite")
    run(weights, mine / "a.png", mine / "a_x2.png")
    assert (mine / "a_x2.png").read_bytes() == before


def test_equal_names_keep_their_suffixes(tmp_path):
    for name in ("a.png", "a.jpg", "A.JPG", "b.png", "c/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()

    def targets(**values) -> set[str]:
        jobs = plan([tmp_path / "in"], out=None, scale=4, **values).jobs
        return {str(job.target.relative_to(tmp_path / "in_x4")) for job in jobs}

    found = targets(format="png")
    assert found == {"A_JPG_x4.png", "a_jpg_2_x4.png", "a_png_x4.png", "b_x4.png", "c/a_x4.png"}
    assert targets(format="same") == {"A_JPG_x4.jpg", "a_jpg_2_x4.jpg", "a_x4.png", "b_x4.png", "c/a_x4.png"}


def test_same_keeps_the_format(folder, weights, crop):
    tifffile.imwrite(folder / "scan.TIFF", deep(crop), photometric="rgb")
    run(weights, folder, "--format", "same", "--out", folder.parent / "out")
    names = {str(path.relative_to(folder.parent / "out")) for path in (folder.parent / "out").rglob("*.*")}
    assert names >= {"2024/may/phone_x2.jpg", "scan_x2.tiff", "palette_x2.png", "colour_x2.png"}
    with Image.open(folder.parent / "out/2024/may/phone_x2.jpg") as image:
        assert image.format == "JPEG"
    scan = tifffile.imread(folder.parent / "out/scan_x2.tiff")
    assert scan.dtype == np.uint16
    assert scan.shape == (80, 112, 3)


# --- what fails ---


def test_broken_files_are_named_and_the_others_done(folder, weights):
    content = (folder / "2024/may/phone.jpg").read_bytes()
    (folder / "2024/cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("not a picture")
    ran = program("upscale.py", folder, "--model", weights, "--cpu")
    assert_one_line(ran, "2 pictures could not be enlarged", "the others are done")
    assert ran.returncode == 1
    failed = [line for line in ran.stdout.splitlines() if line.startswith("failed: ")]
    assert [re.search(r"(\w+\.\w+): cannot be decoded", line)[1] for line in failed] == ["cut.jpg", "empty.png"]
    assert "HR partner" not in ran.stdout
    assert "1 skipped: notes.txt" in ran.stdout
    assert len(list(folder.with_name("pictures_x2").rglob("*.png"))) == 7
    assert not list(folder.parent.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        ((), ("PHOTO|FOLDER", "python upscale.py photo.jpg"), 2),
        (("nowhere.jpg",), ("nowhere.jpg", "no such picture or folder"), 1),
        (("{folder}", "--model", "KRGN_x5"), ("KRGN_x5", "no such file"), 1),
        (("{folder}", "--tile", "-1"), ("--tile",), 2),
        (("{folder}", "--format", "gif"), ("--format", "png"), 2),
        (("{folder}", "--out", "{folder}/gray.png"), ("--out", "is a file"), 1),
        (("{empty}",), ("empty", "found no pictures"), 1),
    ],
)
def test_mistakes_are_one_line(folder, weights, arguments, words, status):
    (folder.parent / "empty").mkdir()
    named = [word.format(folder=folder, empty=folder.parent / "empty") for word in arguments]
    model = [] if "--model" in named or not named else ["--model", weights]
    ran = program("upscale.py", *named, *model)
    assert_one_line(ran, *words)
    assert ran.returncode == status


def test_a_format_that_cannot_hold_the_picture(folder, weights, capsys, monkeypatch):
    with pytest.raises(UserError, match="1 picture could not be enlarged"):
        run(weights, folder, "--format", "jpg")
    assert "logo.png: is partly transparent, which JPEG cannot hold" in capsys.readouterr().out
    assert len(list(folder.with_name("pictures_x2").rglob("*.jpg"))) == 6
    Image.new("RGB", (1, 8200)).save(folder / "tall.png")
    with pytest.raises(UserError, match="1 picture could not be enlarged"):
        run(weights, folder / "tall.png", "--format", "webp")
    assert f"2x16400 pixels, but WEBP takes {FORMS['webp'].longest} a side" in capsys.readouterr().out


def test_an_output_that_is_not_finite_fails(folder, tmp_path, capsys):
    broken = network()
    with torch.no_grad():
        broken.head_conv.weight.fill_(1e38)  # finite, or the file would be refused
    save_tensors(tmp_path / "broken.pt", pack(broken, "KRGN"))
    with pytest.raises(UserError, match="1 picture could not"):
        run(str(tmp_path / "broken.pt"), folder / "colour.png")
    assert "colour.png: the network's output is not finite" in capsys.readouterr().out
    assert not (folder / "colour_x2.png").exists()


def test_a_full_disk_ends_the_run(folder, weights, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evaluation.upscaling.write_picture", full)
    with pytest.raises(UserError, match=r"_x2\.png: cannot be written \(No space left on device\): .* --out"):
        run(weights, folder)


def test_ctrl_c_ends_with_130_and_the_run_goes_on(tmp_path, weights, photo):
    for number in range(4):
        (tmp_path / "many").mkdir(exist_ok=True)
        Image.fromarray(photo).save(tmp_path / f"many/{number}.png")
    flags = [tmp_path / "many", "--model", weights, "--cpu", "--tile", "64"]
    started = Program("upscale.py", *flags)
    for line in started.stdout:
        if "_x2.png" in line:
            break
    started.send_signal(signal.SIGINT)
    out, err = started.communicate()
    assert started.returncode == 130
    assert err.strip().endswith("interrupted by SIGINT")
    assert "the same command goes on" in out
    done = list((tmp_path / "many_x2").iterdir())
    assert 1 <= len(done) < 4
    assert all(path.suffix == ".png" for path in done)
    before = {path: path.stat().st_mtime_ns for path in done}
    ended = program("upscale.py", *flags)
    assert ended.returncode == 0
    assert len(list((tmp_path / "many_x2").iterdir())) == 4
    assert {path: path.stat().st_mtime_ns for path in done} == before


def test_a_terminal_has_a_bar_instead_of_a_line_for_each_picture(tmp_path, weights, photo, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for number in range(2):
        Image.fromarray(photo[:30, :40]).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(sys, "stderr", Terminal())
    upscale.main([str(tmp_path), "--model", str(weights), "--cpu"])
    assert re.search(r"1/2 images.* of 0\.00 MP \[.* left, .*MP/s\]", sys.stderr.getvalue())
    said = capsys.readouterr().out
    assert "2 pictures of 0.00 megapixels enlarged" in said
    assert " -> " not in said


# --- the page ---


def test_the_page_shows_each_picture_before_and_after(folder, weights, crop):
    (folder / "broken.png").write_bytes(b"x")
    with pytest.raises(UserError, match="1 picture could not"):
        run(weights, folder, "--compare")
    out = folder.with_name("pictures_x2") / "compare"
    data = page_data(out)
    assert not data["scored"]
    assert {image["name"] for image in data["images"]} == {
        *("colour.png", "gray.png", "palette.gif", "deep.png", "deep_gray.png", "logo.png", "phone.jpg")
    }
    colour = next(image for image in data["images"] if image["name"] == "colour.png")
    labels = [view["label"] for view in colour["views"]]
    assert labels == ["bicubic", "small"]
    plain, sr = (read_image(out / view["src"]) for view in colour["views"])
    assert np.array_equal(plain, resize.upscale(crop, 2))
    assert np.array_equal(sr, decoded(folder.with_name("pictures_x2") / "colour_x2.png"))
    # A second run shows what is there already, and replaces the page.
    (folder / "broken.png").unlink()
    (folder / "gray.png").unlink()
    run(weights, folder, "--compare")
    assert len(page_data(out)["images"]) == 6
    assert len(list((out / "images").iterdir())) == 18


def page_data(folder: Path) -> dict:
    text = (folder / "index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_a_foreign_folder_is_left_alone(folder, weights):
    foreign = folder.with_name("pictures_x2") / "compare"
    foreign.mkdir(parents=True)
    (foreign / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="was not made by this program"):
        run(weights, folder, "--compare")
    assert [path.name for path in foreign.iterdir()] == ["mine.txt"]


def test_the_page_in_a_browser(folder, weights, tmp_path):
    found = browser.find()
    if found is None:
        pytest.skip(f"needs a browser: one of {', '.join(browser.PROGRAMS)} (Debian: apt install chromium)")
    run(weights, folder, "--compare")
    with browser.Browser(found, tmp_path / "profile") as opened:
        opened.size(1280, 900)
        opened.open((folder.with_name("pictures_x2") / "compare/index.html").as_uri())
        assert opened.run("document.querySelectorAll('#list li').length") == 7
        assert opened.run("document.querySelectorAll('.crop').length") == 2
        for name in ("order-field", "by-field", "maps-field", "set-field"):
            assert opened.run(f"getComputedStyle(document.getElementById('{name}')).display") == "none", name
        assert opened.run("[...document.getElementById('left').options].map((option) => option.text)") == [
            *("bicubic", "small")
        ]
        assert "dB" not in opened.run("document.body.innerText")
        assert opened.problems == []


# --- programs without flags ---


def test_kl_without_flags(weights, tmp_path, monkeypatch):
    class Defaults:
        def get_default(self, _name: str) -> str:
            return str(tmp_path / "experiment")

    monkeypatch.setattr(kl, "DEFAULT", weights)
    monkeypatch.setattr(kl, "training_parser", Defaults)
    kl.main([])
    assert (tmp_path / "experiment/kernels_small/kl.png").is_file()
    assert weights_name("/x/my_krgn/model/model_best.pt") == "my_krgn"
    assert weights_name("CFGN_x4.pt") == "CFGN_x4"


@pytest.mark.parametrize("name", ["prepare.py", "compare.py", "report.py", "bench.py", "studies.degrade"])
def test_a_command_without_arguments_gives_an_example(name):
    ran = program(name)
    assert_one_line(ran, "are required", "for example: python ")
    assert ran.returncode == 2


def test_main_and_export_without_flags_say_what_to_do():
    assert_one_line(program("export.py"), "python export.py --pre_train KRGN_x4 --out")
