"""PNG beside Pillow: a fast decoder of the usual kind, a fast reader of headers, a check for missing pixels."""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from data.opening import check_room

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_BYTES = 33  # the signature and the IHDR chunk

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Adam7's seven passes: the first column, the step between columns, the first row, the step between rows.
_ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


class PngHeader(NamedTuple):
    """The IHDR chunk."""

    width: int
    height: int
    bits: int  # a channel
    colour_type: int
    interlaced: int


def png_header(content: bytes) -> PngHeader | None:
    """The header at the beginning of `content`; None if that is not a complete PNG header with a valid checksum.

    Pillow takes longer for it, which matters for sets of 100,000 images.
    """
    chunk = content[12:29]
    if content[:8] != SIGNATURE or chunk[:4] != b"IHDR" or content[29:33] != zlib.crc32(chunk).to_bytes(4, "big"):
        return None
    return PngHeader(*struct.unpack(">IIBBxxB", chunk[4:]))


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of the chunks after the header, up to the end or to the first thing that is not a chunk."""
    file.seek(HEADER_BYTES)
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        yield head[4:], file.read(int.from_bytes(head[:4], "big"))
        file.seek(4, os.SEEK_CUR)


def decode_usual(file: BinaryIO) -> np.ndarray | None:
    """Decodes the usual PNG, 8 bits of gray or RGB, not interlaced, with imagecodecs: uint8 (H, W) or (H, W, 3).

    Making the decoded copies of photographs (--ext sep_reset) takes half the time that it takes with Pillow and
    `check_complete`, which Pillow needs.

    Returns:
        None for any other file, and for a broken one: Pillow reports what is wrong with it.

    Raises:
        ValueError: if the image does not fit into memory.
    """
    header = png_header(file.read(HEADER_BYTES))
    if header is None or header.bits != 8 or header.colour_type not in (0, 2) or header.interlaced:
        return None
    check_room(file, header.width, header.height)
    import imagecodecs  # loads its libraries, which not every run needs

    try:
        # Of its two PNG decoders this one prints nothing.
        pixels = imagecodecs.spng_decode(file.read())
    except Exception:  # its own errors, errors of text chunks, a build without this decoder
        return None
    return pixels if pixels.dtype == np.uint8 and pixels.shape[2:] == (3,) * (header.colour_type == 2) else None


def check_complete(file: BinaryIO) -> None:
    """Checks that the compressed pixels of a PNG are all there; other files pass. Pillow leaves missing rows black.

    Raises:
        ValueError: if they end early, or if the image does not fit into memory.
    """
    file.seek(0)
    header = png_header(file.read(HEADER_BYTES))
    if header is None:
        return
    check_room(file, header.width, header.height)
    missing = _pixel_bytes(header)
    inflate = zlib.decompressobj()
    for kind, content in png_chunks(file):
        while kind == b"IDAT" and content and not inflate.eof and missing > 0:
            missing -= len(inflate.decompress(content, 2**20))
            content = inflate.unconsumed_tail
    if missing > 0:
        raise ValueError(f"the pixels end {missing:,} bytes early")


def _pixel_bytes(header: PngHeader) -> int:
    """Bytes of the decompressed pixels: each row has one more, its filter."""
    bits = header.bits * _CHANNELS.get(header.colour_type, 0)
    total = 0
    for left, across, top, down in _ADAM7 if header.interlaced else [(0, 1, 0, 1)]:
        columns, rows = len(range(left, header.width, across)), len(range(top, header.height, down))
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total
