"""Step 2 of 9: image file -> `pixel_values_CYX`, the numbers the vision tower reads. Next: inputs/prompt.py.

Two calls: `read_image` makes an upright RGB picture of whatever comes (boxes are scaled back to its `.size`),
and `pixel_values` squeezes that to a square, as in training, and maps 0..255 to -1..1.
"""

import hashlib
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pg2ref.arrays import Array
from pg2ref.errors import InputError, UsageError, shown_path
from pg2ref.policy import RESIZE_POLICIES

Picture: TypeAlias = Image.Image


@dataclass(frozen=True)
class Frame:
    """One picture of a file that holds several, as inputs/video.py reads it."""

    picture: Picture  # upright, in RGB
    path: str
    sha256: str  # of the file
    index: int  # in the file, from 0


ImageSource: TypeAlias = str | os.PathLike[str] | BinaryIO | Image.Image | Array | Frame

MAX_PIXELS = 178_956_970  # where Pillow itself refuses
STRIP_PIXELS = 1 << 22  # converted at a time
MAX_SIDE_PX = 65_535  # as JPEG; resizing goes through image_size * side pixels, however thin the image
MAX_FILE_BYTES = 2**30
URL_STARTS = ("http:/", "https:/")  # one slash: pathlib drops the other
# Pillow reads more, but starts Ghostscript for EPS. HEIF is read where pillow-heif has been registered.
FORMATS = "PNG JPEG MPO GIF BMP WEBP TIFF PPM JPEG2000 AVIF HEIF ICO QOI TGA".split()

_TRANSPOSE = {  # EXIF tag 0x0112: what brings the stored picture upright (Exif 2.32, section 4.6.4)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ZERO_TO_ONE = np.arange(256) * (1 / 255)
_MINUS_ONE_TO_ONE = (_ZERO_TO_ONE.astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
_warning_filters = threading.Lock()  # warnings.catch_warnings swaps the one list of filters of all threads


def pixel_values(image: Image.Image, image_size: int, resize: str = "bicubic") -> Array:
    """An RGB image as `pixel_values_CYX`: float32 in [-1, 1], red first, `image_size` px square.

    `resize` is one of `RESIZE_POLICIES`. "bicubic" is Pillow's own, whose kernel widens where it shrinks, as
    SiglipImageProcessorPil of Transformers 5.23 runs it: the parity target. (Pillow 13 resizes down before
    across where the height shrinks by over twice as many px as the width, older ones almost never; both round
    in between, so versions differ, and Transformers with them.) "bilinear-aa" and "bilinear" are those of
    big_vision (pp/ops_image.py@4a12790: half-pixel centres, with and without a widening kernel, truncated),
    "nearest" that of gemma.cpp (paligemma/image.cc@19cfe14: corner pixel on corner pixel, halves away from
    zero). The bilinear sums are in float64, then rounded to float32; TensorFlow's may be one level off.

    The arithmetic is that of Transformers, bit for bit: times 1/255 in float64, float32, minus 0.5, over 0.5.

    Raises:
        InputError: the image is not RGB; `read_image` makes it so.
        UsageError: no such policy, or no such size.
    """
    if image.mode != "RGB":
        raise InputError(f"expected an RGB image, got mode {image.mode}: pass it through read_image first")
    if image_size < 1 or resize not in RESIZE_POLICIES:
        known = ", ".join(RESIZE_POLICIES)
        raise UsageError(f"expected a size above 0 px and resize {known}, got {image_size} and {resize!r}")
    if resize == "bicubic":
        square_YXC = np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    elif resize == "nearest":
        rows, columns = _nearest(image.height, image_size), _nearest(image.width, image_size)
        square_YXC = np.asarray(image)[rows][:, columns]
    else:
        square_YXC = _resize_bilinear(np.asarray(image), image_size, antialias=resize == "bilinear-aa")
    return np.ascontiguousarray(_MINUS_ONE_TO_ONE[square_YXC].transpose(2, 0, 1))


def _resize_bilinear(pixels_YXC: Array, out_px: int, *, antialias: bool) -> Array:
    """Both axes to `out_px`, the longer one first (little lies between), then truncated to uint8."""
    for axis in (0, 1) if pixels_YXC.shape[0] >= pixels_YXC.shape[1] else (1, 0):
        rows = _resize_rows(np.moveaxis(pixels_YXC, axis, 0), out_px, antialias=antialias)
        pixels_YXC = np.moveaxis(rows, 0, axis)
    return np.clip(pixels_YXC.astype(np.float32), 0, 255).astype(np.uint8)


def _resize_rows(pixels_YXC: Array, out_px: int, *, antialias: bool) -> Array:
    """Each output row is a weighted mean of input rows, its weights falling linearly with the distance.

    They reach zero one input pixel away, or one output pixel away where `antialias` shrinks; those of rows
    inside the image are made to sum to 1, which on enlarging is the same as repeating the edge.
    """
    in_px = pixels_YXC.shape[0]
    scale = in_px / out_px
    reach = max(scale, 1.0) if antialias else 1.0
    out_YXC = np.empty((out_px, *pixels_YXC.shape[1:]))
    for y in range(out_px):
        centre = (y + 0.5) * scale
        first, end = max(math.floor(centre - reach), 0), min(math.ceil(centre + reach), in_px)
        weights = np.maximum(1 - np.abs(np.arange(first, end) + 0.5 - centre) / reach, 0)
        out_YXC[y] = np.einsum("y,yxc->xc", weights / weights.sum(), pixels_YXC[first:end])
    return out_YXC


def _nearest(in_px: int, out_px: int) -> Array:
    """For each output pixel the input pixel: the first and the last of each lie upon one another."""
    step = np.float32(in_px - 1) / np.float32(max(out_px - 1, 1))
    positions = np.arange(out_px, dtype=np.float32) * step
    return np.clip(np.floor(positions.astype(np.float64) + 0.5), 0, in_px - 1).astype(np.intp)


def read_image(source: ImageSource) -> Image.Image:
    """A path, binary file, PIL image, uint8 array or frame as an RGB image, upright, in its original size.

    Where Transformers depends on how an image came in, this does one thing for all of them:

    - EXIF orientation is applied, as in its `load_image`; damaged EXIF and colour profiles are ignored.
    - Anything transparent is laid over white, as in its `convert_to_rgb`.
    - 16-bit grey is value / 257, rounded (Pillow turns all above 255 white); 16-bit colour is its high byte.
    - PIL mode I means 0..65535, as in Pillow's PGM reader; mode F means 0..255, rounded. Other values are
      refused, and images whose largest value is in 1..255 (I) or in 0..1, not 0 (F): another scale was meant.
    - An array is (height, width) or (height, width, channels) with 1, 3 or 4 channels; the fourth is alpha.
    - A file with several images gives its first, a PIL image its current one.

    Files are read from their start, at most `MAX_FILE_BYTES`; the caller's stay open. Images of more than
    `MAX_PIXELS`, or with a side above `MAX_SIDE_PX`, are refused from their header. Any thread may call this. Memory:
    the file, 8 bytes a pixel, 4 more where EXIF turns the picture, and what the format's decoder takes for itself.

    Raises:
        InputError: there is no image, it is damaged, or it is too large.
    """
    if isinstance(source, Frame):
        return source.picture
    if isinstance(source, np.ndarray):
        with pillow_errors("array"):
            return _decode(Image.fromarray(_checked_array(source)), "array")
    if isinstance(source, Image.Image):
        with pillow_errors("PIL image"):
            return _decode(source, "PIL image")
    if not isinstance(source, str | os.PathLike) and not hasattr(source, "read"):
        raise InputError(
            f"expected a path, a binary file, a PIL image or a uint8 array, got {type(source).__name__}: "
            "wrap bytes in io.BytesIO, turn tensors into arrays"
        )
    named = source if isinstance(source, str | os.PathLike) else str(getattr(source, "name", "file object"))
    name = shown_path(os.fsdecode(named))
    content = _read_content(source, name)
    with pillow_errors(name):
        Image.init()
        with Image.open(content, formats=[known for known in FORMATS if known in Image.OPEN]) as image:
            return _decode(image, name)


def _read_content(source: str | os.PathLike[str] | BinaryIO, name: str) -> io.BytesIO:
    """The whole file in memory: pipes work like files, and no handle outlives the call."""
    content = io.BytesIO()
    try:
        with open(source, "rb") if isinstance(source, str | os.PathLike) else nullcontext(source) as file:
            with suppress(AttributeError, OSError):  # a pipe is read from where it is
                file.seek(0)
            while (piece := file.read(2**20)) and content.tell() <= MAX_FILE_BYTES:
                content.write(piece)
    except TypeError:
        raise InputError(f"{name}: expected bytes, got text: open the file in binary mode") from None
    except (OSError, ValueError) as error:
        if str(source).lower().startswith(URL_STARTS):
            raise InputError(
                f"{name}: expected an image file, got a URL, and pg2ref fetches none: download it first, "
                "or pipe it: curl -s URL | pg2ref generate -"
            ) from None
        got = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: expected an image file, got: {got}; check path and permissions") from error
    if not 0 < content.tell() <= MAX_FILE_BYTES:
        got = f"over {MAX_FILE_BYTES:,} bytes" if content.tell() else "an empty file"
        raise InputError(f"{name}: expected an image, got {got}: make it anew, or smaller")
    return content


def file_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checked_array(array: Array) -> Array:
    if array.dtype != np.uint8:
        what_to_do = "scale it to 0..255, round, then .astype(np.uint8)"
        raise InputError(f"array: expected dtype uint8 (0..255), got {array.dtype}: {what_to_do}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(
            f"array: expected shape (height, width) or (height, width, 1, 3 or 4), got {array.shape}: "
            "pass one image at a time, channels last"
        )
    _check_size(array.shape[1], array.shape[0], "array")
    return np.ascontiguousarray(array[:, :, 0] if array.shape[2:] == (1,) else array)


def _check_size(width_px: int, height_px: int, name: str) -> None:
    if width_px < 1 or height_px < 1:
        raise InputError(f"{name}: expected a picture, got {width_px} x {height_px} pixels: it is empty")
    if width_px * height_px > MAX_PIXELS or max(width_px, height_px) > MAX_SIDE_PX:
        raise InputError(
            f"{name}: expected at most {MAX_PIXELS:,} pixels and {MAX_SIDE_PX:,} a side, "
            f"got {width_px:,} x {height_px:,}: shrink or crop it first"
        )


@contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Pillow's many exceptions as InputError, and none of its warnings; one thread at a time."""
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except InputError:
            raise
        except UnidentifiedImageError:
            known = ", ".join(FORMATS[:7])
            raise InputError(f"{name}: expected an image ({known} ...), got none: save it as PNG") from None
        except Image.DecompressionBombError:
            raise InputError(f"{name}: expected {MAX_PIXELS:,} pixels at most, got more: shrink it") from None
        except Exception as error:  # hostile bytes reach every corner of every decoder
            got = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"{name}: expected a whole image, got a truncated or damaged one ({got}): save it again"
            ) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    image.load()
    _check_size(*image.size, name)  # the pictures within an ICO file need not have the size it states
    orientation: Image.Transpose | None = None
    with suppress(Exception):  # a picture with broken EXIF is still a picture
        orientation = _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    rgb = _to_rgb(image, name)
    rgb = rgb if orientation is None else rgb.transpose(orientation)
    rgb.info = {}  # nothing that belonged to the file: its orientation must not be applied twice
    return rgb


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image, made strip by strip: what lies between the two never takes the room of a whole picture."""
    if image.mode[0] in "IF":
        _check_levels(image, name)
    rgb = Image.new("RGB", image.size)
    for strip, top in _strips(image):
        rgb.paste(_strip_to_rgb(strip), (0, top))
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Copies of some rows at a time, with the row that each begins at."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))), top


def _strip_to_rgb(strip: Image.Image) -> Image.Image:
    if strip.mode[0] in "IF":
        return Image.fromarray(_grey_levels(strip)).convert("RGB")
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    rgba = strip.convert("LA").convert("RGBA") if strip.mode == "La" else strip.convert("RGBA")
    white = Image.new("RGBA", strip.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB")


def _values(strip: Image.Image) -> Array:
    """The numbers of modes I;16, I and F."""
    values_YX = np.asarray(strip)
    return values_YX if strip.mode == "F" else values_YX.astype(np.int32)  # Pillow's own before 13 saturates I;16N


def _check_levels(image: Image.Image, name: str) -> None:
    """Raises InputError where the numbers of modes I;16, I and F are on no scale that `read_image` knows."""
    white, smaller_white = (255, 1) if image.mode == "F" else (65535, 255)
    ranges = np.array(
        [(values_YX.min(), values_YX.max()) for values_YX in (_values(strip) for strip, _ in _strips(image))]
    )
    least, most = ranges[:, 0].min(), ranges[:, 1].max()  # NaN if there is one, and then refused
    if not (least >= 0 and most <= white) or (image.mode in "IF" and 0 < most <= smaller_white):
        got = f"{least:g}..{most:g}"
        raise InputError(f"{name}: expected values 0..{white} in mode {image.mode}, got {got}: scale them")


def _grey_levels(strip: Image.Image) -> Array:
    """Modes I;16, I and F as uint8: see `read_image`. A 16-bit PNG may name one value as transparent."""
    values_YX = _values(strip)
    levels_YX = np.rint(values_YX) if strip.mode == "F" else (values_YX + 128) // 257
    transparent_YX = values_YX == strip.info.get("transparency")
    return np.where(transparent_YX, 255, levels_YX).astype(np.uint8)
