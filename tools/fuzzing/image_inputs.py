"""Pictures in every format that pg2ref reads, damaged; PNG also in ways that only well-made check sums bring inside."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from fuzzing.mutation import Rng, mutate
from fuzzing.target import MB, Target
from pg2ref.inputs.image import MAX_PIXELS, MAX_SIDE_PX, pixel_values, read_image

TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
SIZES = ((1, 1), (5, 4), (23, 17))
WAYS: tuple[tuple[str, str, dict[str, object]], ...] = (
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("PNG", "L", {"transparency": 3}),
    ("PNG", "RGB", {"transparency": (1, 2, 3)}),
    ("PNG", "P", {"transparency": b"\0\x80\xff"}),
    *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
    (
        "JPEG",
        "RGB",
        {"progressive": True, "exif": TURNED},
    ),
    *(("GIF", mode, {}) for mode in ("L", "P")),
    *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {}),
    *(("TIFF", mode, {}) for mode in ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "I", "F")),
    *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
    *(("PPM", mode, {}) for mode in ("1", "L", "RGB")),
    *(("JPEG2000", mode, {}) for mode in ("L", "RGB", "RGBA")),
    ("AVIF", "RGB", {"speed": 10}),
    ("ICO", "RGBA", {"sizes": [(16, 16)]}),
    *(("QOI", mode, {}) for mode in ("RGB", "RGBA")),
    *(("TGA", mode, {}) for mode in ("L", "RGB", "RGBA")),
    ("MPO", "RGB", {"save_all": True}),
)


@cache
def seeds() -> tuple[bytes, ...]:
    """Small valid files of each way that this Pillow writes."""
    pixels = np.random.default_rng(5)
    found = []
    for file_format, mode, options in WAYS:
        for width, height in SIZES:
            content = io.BytesIO()
            grey_YX = pixels.integers(0, 256, (height, width), np.uint8)
            picture = _in_mode(grey_YX, mode)
            try:
                picture.save(content, file_format, **options)
            except (KeyError, OSError, ValueError):  # this Pillow was built without it
                continue
            found.append(content.getvalue())
    return tuple(found)


def _in_mode(grey_YX: np.ndarray, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(grey_YX.astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return Image.fromarray(grey_YX.astype(np.int32 if mode == "I" else np.float32) * (257 if mode == "I" else 1))
    return Image.fromarray(grey_YX).convert("RGB").convert(mode)


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of these chunks, with right check sums."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        check = zlib.crc32(kind + content)
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check))
    return b"".join(parts)


def random_png(rng: Rng) -> bytes:
    """Every field from its own range and beyond; the pixels rarely of the size that the header states."""
    width, height = rng.choice((0, 1, 5, 17, 70_000, 2**31)), rng.choice((1, 3, 17, 300, 2**31 - 1))
    if rng.random() < 0.8:
        width, height = rng.randrange(1, 40), rng.randrange(1, 40)
    depth, colour = rng.choice((1, 2, 4, 8, 8, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 5))
    header = struct.pack(
        ">IIBBBBB", width, height, depth, colour, rng.choice((0, 0, 0, 1)), 0, rng.choice((0, 0, 1, 2))
    )
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    row_bytes = min(1 + (width * samples * depth + 7) // 8, 4096)
    rows = min(height, 64) + rng.choice((0, 0, 0, -1, 5))
    pixels = b"".join(bytes([rng.choice((0, 0, 1, 2, 3, 4, 9))]) + rng.randbytes(row_bytes - 1) for _ in range(rows))
    chunks = [(b"IHDR", header)]
    extra = [
        (b"PLTE", rng.randbytes(rng.choice((0, 3, 6, 768, 769)))),
        (b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 256)))),
        (b"eXIf", b"MM\0*\0\0\0\x08" + rng.randbytes(rng.randrange(30))),
        (b"iCCP", b"x\0\0" + zlib.compress(rng.randbytes(20))),
        (b"gAMA", rng.randbytes(rng.choice((3, 4)))),
        (b"acTL", rng.randbytes(8)),
        (b"fcTL", rng.randbytes(rng.choice((25, 26)))),
        (b"zTXt", b"k\0\0" + zlib.compress(bytes(2000))),
    ]
    chunks += [rng.choice(extra) for _ in range(rng.choice((0, 0, 1, 2, 4)))]
    chunks += [(b"IDAT", zlib.compress(pixels, 1))] * rng.choice((1, 1, 1, 0, 2))
    return png([*chunks, (b"IEND", b"")])


def large_png(rng: Rng) -> bytes:
    """A picture near the largest that is read, in a few hundred kilobytes: what memory is bounded for."""
    depth, colour = rng.choice(((1, 0), (8, 3), (8, 0), (16, 0), (8, 2), (8, 6), (8, 4)))
    side = int(MAX_PIXELS**0.5)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1 + (side * samples * depth + 7) // 8)
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    palette = [(b"PLTE", bytes(range(6)))] if colour == 3 else []
    transparent = {0: [(b"tRNS", b"\0\0")], 2: [(b"tRNS", bytes(6))], 3: [(b"tRNS", b"\x80")]}.get(colour, [])
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    keyed = transparent if rng.random() < 0.7 else []
    return png([(b"IHDR", header), *palette, *keyed, (b"IDAT", pixels), (b"IEND", b"")])


def make_image(rng: Rng) -> bytes:
    """A valid file as it is, changed, or a PNG made up."""
    how = rng.random()
    if how < 0.02:
        return rng.choice(seeds())
    if how < 0.7:
        return mutate(rng.choice(seeds()), rng, seeds())
    if how < 0.9999:
        return random_png(rng)
    return large_png(rng)


def read_picture(content: bytes, folder: Path) -> None:
    """What comes out can be made into pixel values."""
    path = folder / "picture"
    path.write_bytes(content)
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.width * image.height <= MAX_PIXELS
    assert max(image.size) <= MAX_SIDE_PX
    if image.width * image.height < 1 << 20:
        values_CYX = pixel_values(image, 8, "bicubic")
        assert values_CYX.shape == (3, 8, 8)
        assert abs(values_CYX).max() <= 1


TARGETS = (Target("image", make_image, read_picture, 12 * MAX_PIXELS + 64 * MB),)
