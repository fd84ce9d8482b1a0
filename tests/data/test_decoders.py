"""Every decoder against an independent one, for many formats, bit depths, layouts and compressions."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from data.image import read_image, read_size
from runtime.errors import UserError

RANDOM = np.random.default_rng(0)
DEEP = RANDOM.integers(0, 65536, (37, 45, 5), dtype=np.uint16)  # sides that no tile and no byte divides


def expected(samples: np.ndarray, bits: int, channels: int, *, white_is_zero: bool = False) -> np.ndarray:
    """Samples (H, W, C) of `bits` bits as uint8: few bits are spread over 0..255, of 16 the high byte is taken."""
    values = samples[..., : 3 if channels >= 3 else 1].astype(np.int64)
    values = 2**bits - 1 - values if white_is_zero else values
    return (values >> 8 if bits == 16 else values * (255 // (2**bits - 1))).astype(np.uint8)


def tiff(samples: np.ndarray, photometric: str, channels: int, **layout) -> bytes:
    extra = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, photometric=photometric, **extra, **layout)
    return buffer.getvalue()


KINDS = [("minisblack", 1), ("miniswhite", 1), ("rgb", 3), ("rgb", 4)]
COMPRESSIONS = [(None, None), ("lzw", None), ("lzw", 2), ("deflate", 2), ("packbits", None), ("lzma", None)]
COMPRESSIONS += [("zstd", None), ("jpeg", None)]


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_tiff(byteorder, bits, planar, tile):
    compared = 0
    for photometric, channels in KINDS:
        for compression, predictor in COMPRESSIONS:
            if compression == "jpeg" and (bits == 16 or channels != 1):  # of colours, two decoders round differently
                continue
            samples = (DEEP >> (16 - bits)).astype(f"{byteorder}u{bits // 8}")[..., :channels]
            samples = samples[..., 0] if channels == 1 else samples
            if channels > 1 and planar == "separate":
                samples = np.moveaxis(samples, -1, 0)
            layout = {"planarconfig": planar if channels > 1 else None, "tile": tile, "byteorder": byteorder}
            layout |= {"compression": compression, "predictor": predictor, "rowsperstrip": None if tile else 7}
            content = tiff(np.ascontiguousarray(samples), photometric, channels, **layout)
            other = tifffile.imread(io.BytesIO(content))
            if channels > 1 and planar == "separate":
                other = np.moveaxis(other, 0, -1)
            other = other.reshape(37, 45, channels)
            try:
                pixels = read_image("image.tif", content)
            except UserError:
                assert photometric == "miniswhite"
                assert bits == 16  # with the high byte first, Pillow has no such mode
                assert byteorder == ">"
                continue
            white = photometric == "miniswhite"
            assert np.array_equal(pixels, expected(other, bits, channels, white_is_zero=white)), (channels, compression)
            compared += 1
    assert compared >= 21


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiff_of_few_bits(bits, photometric):
    samples = (DEEP[..., 0] >> (16 - bits)).astype(np.uint8)
    content = packed_tiff(samples, bits, photometric == "miniswhite")
    assert np.array_equal(tifffile.imread(io.BytesIO(content)), samples)
    pixels = read_image("image.tif", content)
    assert np.array_equal(pixels, expected(samples[..., None], bits, 1, white_is_zero=photometric == "miniswhite"))


def packed_tiff(samples: np.ndarray, bits: int, white_is_zero: bool) -> bytes:
    """A gray TIFF of 1, 2, 4 or 12 bits a pixel; each row begins at a whole byte."""
    planes = [(samples >> bit) & 1 for bit in reversed(range(bits))]
    rows = np.packbits(np.stack(planes, -1).reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()
    tags = {256: samples.shape[1], 257: len(samples), 258: bits, 259: 1, 262: 0 if white_is_zero else 1}
    tags |= {273: 8, 277: 1, 278: len(samples), 279: len(rows)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(rows)) + rows + struct.pack("<H", len(tags)) + directory + bytes(4)


def test_tiff_of_12_bits():
    samples = DEEP[:, :44, 0] >> 4
    assert np.array_equal(read_image("image.tif", packed_tiff(samples, 12, False))[..., 0], samples >> 4)


def test_palettes():
    indices = (DEEP[..., 0] >> 8).astype(np.uint8)
    colours = RANDOM.integers(0, 65536, (3, 256), dtype=np.uint16)
    content = tiff(indices, "palette", 1, colormap=colours)
    assert np.array_equal(read_image("image.tif", content), (colours >> 8).T[tifffile.imread(io.BytesIO(content))])
    image = Image.fromarray(indices)
    image.putpalette((colours >> 8).astype(np.uint8).T.tobytes())
    for form in ("PNG", "GIF", "BMP"):
        buffer = io.BytesIO()
        image.save(buffer, form, **({"transparency": 7} if form != "BMP" else {}))
        assert np.array_equal(read_image("image", buffer.getvalue()), (colours >> 8).T[indices]), form


def test_cmyk_is_converted_without_a_profile():
    samples = (DEEP[..., :4] >> 8).astype(np.uint8)
    naive = np.asarray(Image.fromarray(samples, "CMYK").convert("RGB"))
    for planar in ("contig", "separate"):
        laid = samples if planar == "contig" else np.ascontiguousarray(np.moveaxis(samples, -1, 0))
        content = tiff(laid, "separated", 0, planarconfig=planar)
        assert np.array_equal(read_image("image.tif", content), naive)
    ink = 255 - samples.astype(int)
    assert np.abs(naive - ink[..., :3] * ink[..., 3:] / 255).max() <= 1


def test_lab_becomes_srgb(photo):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(photo), srgb, lab, outputMode="LAB")
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    assert np.abs(read_image("image.tif", buffer.getvalue()).astype(int) - photo).mean() < 1.5


def test_jpeg_in_ycbcr_against_another_decoder(photo):
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=90, subsampling=0)
    other = imagecodecs.jpeg8_decode(buffer.getvalue())
    assert np.abs(read_image("image.jpg", buffer.getvalue()).astype(int) - other).max() <= 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_png(channels, bits):
    samples = np.ascontiguousarray((DEEP >> (16 - bits)).astype(f"u{bits // 8}")[..., :channels])
    content = imagecodecs.png_encode(samples[..., 0] if channels == 1 else samples)
    other = imagecodecs.png_decode(content).reshape(37, 45, channels)
    assert np.array_equal(read_image("image.png", content), expected(other, bits, channels))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["BMP", "PCX", "SGI", "TGA", "WEBP", "QOI", "DDS", "JPEG2000", "ICO", "PNG", "TIFF"])
def test_formats_without_loss(form, mode):
    image = Image.fromarray((DEEP[..., :4] >> 8).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    options = {"WEBP": {"lossless": True, "exact": True}, "ICO": {"sizes": [image.size]}}
    try:
        image.save(buffer, form, **options.get(form, {}))
    except (OSError, ValueError):
        pytest.skip(f"Pillow writes no {form} of this mode")
    shown = np.asarray(image).reshape(37, 45, -1)[..., :3]
    pixels = read_image("image", buffer.getvalue())
    assert np.array_equal(np.broadcast_to(pixels, (37, 45, 3)), np.broadcast_to(shown, (37, 45, 3)))
    assert read_size("image", buffer.getvalue()) == (37, 45)


def pnm(magic: str, largest: int, samples: np.ndarray, plain: bool) -> bytes:
    header = f"{magic}\n# a comment\n{samples.shape[1]} {samples.shape[0]}\n{largest}\n".encode()
    return header + (" ".join(map(str, samples.ravel())).encode() if plain else samples.astype(">u2").tobytes())


@pytest.mark.parametrize(("magic", "channels"), [("P2", 1), ("P3", 3), ("P5", 1), ("P6", 3)])
def test_the_high_byte_is_taken_in_every_deep_format(magic, channels):
    samples = DEEP[..., :channels]
    plain = magic in ("P2", "P3")
    assert np.array_equal(read_image("image.ppm", pnm(magic, 65535, samples, plain)), samples >> 8)
    assert np.array_equal(read_image("image.ppm", pnm(magic, 1023, samples >> 6, plain)), samples >> 8)
    with pytest.raises(UserError, match=r"image\.ppm: cannot be decoded"):
        read_image("image.ppm", pnm(magic, 65535, samples[:-1], plain).replace(b"45 36", b"45 37"))


def test_other_deep_formats():
    header = struct.pack(">hBBHHHHii", 474, 0, 2, 3, 45, 37, 3, 0, 65535).ljust(512, b"\0")
    planes = np.moveaxis(DEEP[::-1, :, :3], 2, 0).astype(">u2").tobytes()
    assert np.array_equal(read_image("image.sgi", header + planes), DEEP[..., :3] >> 8)
    gray = imagecodecs.jpeg2k_encode(np.ascontiguousarray(DEEP[..., 0]), codecformat="jp2", reversible=True, level=0)
    assert np.array_equal(read_image("image.jp2", gray), DEEP[..., :1] >> 8)
    colours = np.ascontiguousarray(DEEP[..., :3])
    with pytest.raises(UserError, match="more than 8 bits a colour"):
        read_image("image.jp2", imagecodecs.jpeg2k_encode(colours, codecformat="jp2", reversible=True, level=0))


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("int8", "signed"),
        ("int16", "signed"),
        ("uint32", "expected 0 to 65535"),
        ("int32", "expected 0 to 65535"),
        ("float32", "floating-point"),
        ("float64", "known format"),
    ],
)
def test_other_numbers_are_refused(dtype, words):
    values = RANDOM.random((8, 9)) * 2**20 if dtype.startswith("float") else DEEP[:8, :9, 0].astype(np.int64) * 99
    with pytest.raises(UserError, match=words):
        read_image("image.tif", tiff(values.astype(dtype), "minisblack", 1))
