"""Damaged and hostile image files, each read as every program reads images: `python tests/fuzz/images.py SEED COUNT`.

An input is right if it gives pixels of uint8 (H, W, 1 or 3) and its header says the same size, or a UserError of one
line; and if nothing is written to the terminal. It is read in a child process with 3 GiB of address space, which is
started anew when an input ends it, or takes longer than PATIENCE.
"""

import io
import json
import os
import random
import resource
import selectors
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

SRC = Path(__file__).resolve().parent.parent.parent / "src"
PATIENCE = 60  # seconds
MEMORY = 3 * 2**30  # bytes
FORMS = [
    *(("png", "PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("jpg", "JPEG", mode, options) for mode in ("L", "RGB", "CMYK") for options in ({}, {"progressive": True})),
    *(("tif", "TIFF", mode, {"compression": name}) for mode in ("L", "RGB", "RGBA", "CMYK", "I;16")
      for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "tiff_lzma")),
    *(("tif", "TIFF", mode, {"compression": name}) for mode, name in (("1", "group4"), ("RGB", "jpeg"), ("LAB", None))),
    *((form.lower(), form, mode, {}) for form in ("BMP", "GIF", "PPM", "TGA", "PCX", "SGI", "ICO", "QOI", "DDS")
      for mode in ("L", "RGB", "P")),
    *(("webp", "WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (True, False)),
    *(("jp2", "JPEG2000", mode, {}) for mode in ("L", "RGB", "RGBA")),
    ("avif", "AVIF", "RGB", {}),
    ("ppm", "PPM", "I;16", {}),
]  # fmt: skip


def seeds() -> list[tuple[str, bytes]]:
    """(suffix, content) of small whole files of many formats, some with EXIF, profiles and several frames."""
    y, x = np.mgrid[:40, :52]
    picture = Image.fromarray(np.stack((4 * x, 6 * y, (x * y) % 256), -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    more = {"exif": exif.tobytes(), "icc_profile": bytes(16) + b"RGB " + bytes(108)}
    found = []
    for suffix, form, mode, options in FORMS:
        for metadata in ({}, more) if form in ("PNG", "JPEG", "WEBP") else ({},):
            image = picture.convert("L" if mode in ("I;16", "LAB") else mode)
            if mode == "I;16":
                image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
            buffer = io.BytesIO()
            try:
                image.save(buffer, form, **options, **metadata)
            except (OSError, ValueError, KeyError):
                continue  # a mode that the format has not
            found.append((suffix, buffer.getvalue()))
    for suffix in ("gif", "png", "webp", "tiff", "avif"):
        buffer = io.BytesIO()
        picture.save(buffer, suffix.upper(), save_all=True, append_images=[picture.rotate(90)] * 2)
        found.append((suffix, buffer.getvalue()))
    return found


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bombs() -> list[tuple[str, bytes]]:
    """Small files that say they are enormous, or become so."""
    signature, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")

    def header(width: int, height: int, kind: int = 2, lace: int = 0) -> bytes:
        return signature + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, lace))

    zeros = zlib.compress(bytes(3 * 2**24))
    small = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    found = [("png", header(side, side) + chunk(b"IDAT", zeros) + end) for side in (2000, 30_000, 2**20, 2**31 - 1)]
    found += [("png", header(2**31 - 1, 1, lace=1) + chunk(b"IDAT", zeros) + end)]
    for kind in (b"zTXt", b"iCCP"):
        found.append(("png", header(8, 8) + chunk(kind, b"x\0\0" + zeros) + small + end))
        found.append(("png", header(8, 8, 6) + chunk(kind, b"x\0\0" + zeros) + small + end))
    found.append(("png", header(8, 8) + struct.pack(">I", 2**31 - 1) + b"tEXt" + b"x" * 100))
    found.append(("png", header(8, 8) + (chunk(b"tEXt", b"x\0" + b"y" * 1000) * 2000) + small + end))
    vp8x = b"VP8X" + struct.pack("<IB3x", 10, 2) + (16_383).to_bytes(3, "little") * 2
    found.append(("webp", b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x))
    for width, height in ((65_535, 65_535), (2**31, 2**31), (2**32 - 1, 1)):
        entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 8)]
        table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        found.append(("tif", struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + table + bytes(4)))
    found.append(("tif", struct.pack("<2sHIHHHII", b"II", 42, 8, 1, 273, 4, 2**32 - 1, 8) + bytes(4)))
    found += [(form, f"{magic}\n{10**5} {10**5}\n255\n".encode()) for form, magic in (("ppm", "P6"), ("ppm", "P3"))]
    found += [("ppm", b"P5\n" + b"9" * 10**6), ("gif", b"GIF89a" + b"\xff" * 400), ("bmp", b"BM" + b"\xff" * 400)]
    found += [("png", b""), ("jpg", b"\xff\xd8"), ("jpg", b"\xff\xd8\xff\xc0" + b"\xff" * 500), ("png", b"text")]
    return found


def mutated(content: bytes, chance: random.Random) -> bytes:
    """`content` with one to four things done to it."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(data), chance.choice((64, 512, 1 << 30)))) if data else 0
        way = chance.choice(("flip", "byte", "cut", "delete", "insert", "number", "copy", "checked"))
        if way == "flip" and data:
            data[at] ^= 1 << chance.randrange(8)
        elif way == "byte" and data:
            data[at] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        elif way == "cut":
            del data[chance.randrange(len(data) + 1) :]
        elif way == "delete":
            del data[at : at + chance.randint(1, 40)]
        elif way == "insert":
            data[at:at] = chance.randbytes(chance.randint(1, 40))
        elif way == "number":
            number = chance.choice((0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1))
            data[at : at + 4] = struct.pack(chance.choice("<>") + "I", number)
        elif way == "copy":
            data[at : at + 30] = data[chance.randrange(len(data) + 1) :][:30]
    return _checksums(bytes(data)) if chance.random() < 0.5 else bytes(data)


def _checksums(data: bytes) -> bytes:
    """A PNG with the checksums that its damaged chunks should have, so that what is in them is read."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = data[:8], 8
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + size]
        out += struct.pack(">I", size) + kind + content
        if at + 12 + size > len(data):
            break
        out += struct.pack(">I", zlib.crc32(kind + content))
        at += 12 + size
    return out


def write_inputs(folder: Path, seed: int, count: int) -> list[Path]:
    """Writes `count` files, the hostile ones first; two more are a pipe and a link to a device without end."""
    chance, whole, paths = random.Random(seed), seeds(), []
    inputs = bombs() + whole
    inputs += [
        (suffix, mutated(content, chance)) for suffix, content in chance.choices(whole, k=max(0, count - len(inputs)))
    ]
    for number, (suffix, content) in enumerate(inputs[:count]):
        paths.append(folder / f"{number:05}.{suffix}")
        paths[-1].write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    return [*paths, folder / "pipe.png", folder / "endless.png"]


def images(seed: int, count: int) -> Counter:
    """Reads `count` inputs made from `seed`; returns and prints how they ended, and names those that ended wrongly."""
    counts = Counter(inputs=0, refused=0, decoded=0, tracebacks=0, hangs=0, crashed=0, noisy=0)
    with tempfile.TemporaryDirectory(prefix="fuzz_images_") as name:
        paths = write_inputs(Path(name), seed, count)
        while counts["inputs"] < len(paths):
            for path, ended, said in batch(paths[counts["inputs"] :]):
                counts["inputs"] += 1
                counts[ended] += 1
                if ended not in ("refused", "decoded"):
                    print(f"{path.name}: {ended}: {said}")
    print("images:", ", ".join(f"{name} {number}" for name, number in counts.items()))
    return counts


def batch(paths: list[Path]):
    """Yields (path, how it ended, what was said) for paths from the first on, until one ends the child process."""
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, __file__, "--child", str(writing), *map(str, paths)],
        pass_fds=[writing],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    done, waiting = 0, b""
    with os.fdopen(reading, "rb", buffering=0) as results, selectors.DefaultSelector() as selector:
        selector.register(results, selectors.EVENT_READ)
        while done < len(paths):
            if b"\n" not in waiting:
                more = results.read(2**16) if selector.select(PATIENCE) else None
                if not more:
                    child.kill()
                    yield paths[done], "hangs" if more is None else "crashed", f"status {child.wait()}"
                    return
                waiting += more
                continue
            line, waiting = waiting.split(b"\n", 1)
            yield paths[done], *json.loads(line)
            done += 1
    child.wait()


def serve(results: int, paths: list[Path]) -> None:
    """The child process: one line of JSON into the pipe `results` for each path."""
    sys.path.insert(0, str(SRC))
    from data.image import read_header, read_image, read_own, read_size
    from runtime.errors import UserError

    np.asarray(Image.new("1", (1, 1)))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryFile() as terminal:
        os.dup2(terminal.fileno(), 1)
        os.dup2(terminal.fileno(), 2)
        for path in paths:
            try:
                size = read_size(path)
                pixels = read_image(path)
                assert pixels.dtype == np.uint8
                assert pixels.ndim == 3
                assert pixels.shape[2] in (1, 3)
                assert pixels.shape[:2] == size == (read_header(path).height, read_header(path).width)
                assert read_own(path)[0].size == pixels.size
                ended, said = "decoded", ""
            except UserError as error:
                ended, said = "refused", str(error)
                if said.count("\n") or path.name not in said:
                    ended = "tracebacks"
            except Exception as error:
                ended, said = "tracebacks", repr(error)
            sys.stdout.flush()
            if os.fstat(1).st_size:
                os.lseek(1, 0, os.SEEK_SET)
                ended, said = "noisy", os.read(1, 300).decode(errors="replace")
                os.ftruncate(1, 0)
                os.lseek(1, 0, os.SEEK_SET)
            os.write(results, (json.dumps([ended, said]) + "\n").encode())


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        serve(int(sys.argv[2]), [Path(text) for text in sys.argv[3:]])
    else:
        counted = images(int(sys.argv[1]), int(sys.argv[2]))
        sys.exit(any(counted[name] for name in ("tracebacks", "hangs", "crashed", "noisy")))
