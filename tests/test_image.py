"""Image file -> pixel_values: every way in, every resizer against its oracle, and files that mean harm."""

import io
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import pytest
from fuzzing import image_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import naive_resize
from PIL import ExifTags, Image, ImageCms, ImageFile

from pg2ref.errors import InputError, UsageError
from pg2ref.inputs import image as image_module
from pg2ref.inputs.image import FORMATS, pixel_values, read_image
from pg2ref.policy import RESIZE_POLICIES

PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])


def bicubic_oracle(pixels, width_px, height_px):
    in_px, out_px = (len(pixels[0]), len(pixels)), (width_px, height_px)
    down_first = naive_resize.pillow_goes_down_first(PILLOW, in_px, out_px)
    return naive_resize.bicubic(pixels, width_px, height_px, down_first)


ORACLES = {
    "bicubic": bicubic_oracle,
    "bilinear": naive_resize.bilinear,
    "bilinear-aa": naive_resize.bilinear_antialias,
    "nearest": naive_resize.nearest_corners,
}
# width, height, side: prime, up, down, one axis as it is, both as they are, one pixel, extreme
SIZES = [
    (13, 17, 7),
    (7, 5, 19),
    (11, 23, 11),
    (23, 11, 11),
    (13, 13, 13),
    (1, 1, 1),
    (1, 1, 5),
    (9, 4, 1),
    (1, 29, 3),
    (401, 1, 7),
    (2, 307, 5),
    (31, 3, 29),
    (37, 41, 14),
    (37, 60, 14),
    (37, 61, 14),
]


def noise(width_px, height_px, channels=3, seed=0):
    """Random levels, half of them at the ends, where cubic kernels overshoot."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(-128, 384, size=(height_px, width_px, channels))
    return np.clip(levels, 0, 255).astype(np.uint8)


def picture(pixels_YXC):
    return Image.fromarray(pixels_YXC)


def to_levels(pixel_values_CYX):
    """The 0..255 that pixel values came from."""
    return np.rint((pixel_values_CYX.transpose(1, 2, 0).astype(np.float64) + 1) * 127.5).astype(int)


def saved(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file


def array_of(source):
    rgb = read_image(source)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


def check_resize(resize, pixels_YXC, side):
    levels = to_levels(pixel_values(picture(pixels_YXC), side, resize))
    np.testing.assert_array_equal(levels, ORACLES[resize](pixels_YXC.tolist(), side, side))


# --- resizing and pixel values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", RESIZE_POLICIES)
@pytest.mark.parametrize(("width", "height", "side"), SIZES)
def test_resize_equals_its_oracle_at_every_pixel(resize, width, height, side):
    check_resize(resize, noise(width, height), side)


@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from(RESIZE_POLICIES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_resize_equals_its_oracle_at_any_small_size(width, height, side, resize, seed):
    check_resize(resize, noise(width, height, seed=seed), side)


@pytest.mark.parametrize("resize", RESIZE_POLICIES)
@pytest.mark.parametrize("level", [0, 1, 127, 200, 254, 255])
def test_a_flat_image_keeps_its_level(resize, level):
    flat = np.full((83, 61, 3), level, np.uint8)
    assert np.unique(to_levels(pixel_values(picture(flat), 29, resize))).tolist() == [level]


def test_policies_differ_from_one_another():
    image = picture(noise(67, 71))
    results = [pixel_values(image, 19, resize) for resize in RESIZE_POLICIES]
    for i, one in enumerate(results):
        assert all(np.mean(one != other) > 0.2 for other in results[i + 1 :])


def test_bilinear_of_a_thin_image_is_quick_and_small():
    long = picture(np.zeros((1, 60_000, 3), np.uint8) + 9)
    tracemalloc.start()
    values = pixel_values(long, 224, "bilinear-aa")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.unique(to_levels(values)).tolist() == [9]
    assert peak < 30 * 2**20  # the other axis first would take 224 * 60,000 * 3 float64, 320 MB


def test_every_level_has_the_value_that_transformers_gives_it():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values = pixel_values(read_image(levels), 16)[1].reshape(256)
    for level in range(256):
        scaled = np.float32(float(level) * (1 / 255))
        assert values[level] == np.float32(np.float32(scaled - np.float32(0.5)) / np.float32(0.5))
    assert (values[0], values[255]) == (-1, 1)
    fused = (np.arange(256, dtype=np.float32) - np.float32(127.5)) / np.float32(127.5)
    assert np.count_nonzero(values != fused) == 128  # torchvision's arithmetic is another


def test_pixel_values_lie_channel_first_red_first():
    pixels = noise(5, 5)
    values = pixel_values(picture(pixels), 5)
    assert values.shape == (3, 5, 5)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert values.flags.writeable
    for y, x, c in np.ndindex(5, 5, 3):
        assert abs(values[c, y, x] - (pixels[y, x, c] / 127.5 - 1)) < 1e-6


def test_pixel_values_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match=r"RGB.*mode L.*read_image"):
        pixel_values(Image.new("L", (3, 3)), 3)
    with pytest.raises(UsageError, match=r"bilinear-aa.*'lanczos'"):
        pixel_values(Image.new("RGB", (3, 3)), 3, "lanczos")
    with pytest.raises(UsageError, match="got 0"):
        pixel_values(Image.new("RGB", (3, 3)), 0)


@pytest.mark.parity
@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.parametrize(("width", "height"), [(97, 61), (640, 427), (224, 31), (5, 7), (224, 224)])
def test_pixel_values_are_those_of_transformers(width, height, side):
    pytest.importorskip("transformers")
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    half = [0.5, 0.5, 0.5]
    size = {"height": side, "width": side}
    processor = SiglipImageProcessorPil(size=size, image_mean=half, image_std=half, resample=3)
    image = picture(noise(width, height, seed=width * side))
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    ours = pixel_values(read_image(image), side)
    assert theirs.dtype == ours.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parity
@pytest.mark.parametrize(("resize", "antialias"), [("bilinear", False), ("bilinear-aa", True)])
@pytest.mark.parametrize(("width", "height"), [(97, 61), (23, 41), (31, 450)])
def test_bilinear_is_that_of_torch_in_float64_truncated(resize, antialias, width, height):
    torch = pytest.importorskip("torch")
    pixels = noise(width, height)
    wide = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float64))
    exact = torch.nn.functional.interpolate(wide, (37, 37), mode="bilinear", antialias=antialias)[0].numpy()
    levels = to_levels(pixel_values(picture(pixels), 37, resize)).transpose(2, 0, 1)
    assert np.all(levels <= exact + 1e-4)
    assert np.all(exact - 1e-4 < levels + 1)


# --- ways in ---------------------------------------------------------------------------------------------------


def test_paths_files_images_and_arrays_give_the_same(tmp_path):
    pixels = noise(13, 7)
    path = tmp_path / "a b.png"
    picture(pixels).save(path)
    with open(path, "rb") as file:
        assert np.array_equal(array_of(file), pixels)
        assert not file.closed
        assert np.array_equal(array_of(file), pixels)  # read from its start, wherever it stood
    unbuffered = open(path, "rb", buffering=0)  # noqa: SIM115
    sources = [str(path), path, io.BytesIO(path.read_bytes()), unbuffered, picture(pixels), pixels]
    for source in sources:
        assert np.array_equal(array_of(source), pixels)
    unbuffered.close()
    assert read_image(path).size == (13, 7)


def test_a_pipe_is_read_to_its_end(tmp_path):
    class Pipe(io.RawIOBase):
        def __init__(self, content):
            self.rest = content

        def readable(self):
            return True

        def read(self, size=-1):
            piece, self.rest = self.rest[:7], self.rest[7:]
            return piece

    pixels = noise(11, 5)
    assert np.array_equal(array_of(Pipe(saved(picture(pixels)).getvalue())), pixels)


def test_arrays_of_every_shape():
    rgba = noise(5, 3, channels=4)
    grey = rgba[:, :, 0]
    assert np.array_equal(array_of(grey), np.stack([grey] * 3, axis=2))
    assert np.array_equal(array_of(grey[:, :, None]), np.stack([grey] * 3, axis=2))
    assert np.array_equal(array_of(rgba[:, :, 2::-1]), rgba[:, :, 2::-1])  # negative strides
    assert np.array_equal(array_of(np.asfortranarray(rgba[:, :, :3])), rgba[:, :, :3])
    assert np.array_equal(array_of(rgba), array_of(picture(rgba)))


def test_what_comes_out_shares_nothing_with_what_went_in():
    pixels = noise(5, 3)
    image = picture(pixels)
    from_image, from_array = read_image(image), read_image(pixels)
    pixels[:] = 0
    image.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(from_image), noise(5, 3))
    assert np.array_equal(np.asarray(from_array), noise(5, 3))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((3, 4, 3)), r"float64.*astype"),
        (np.zeros((3, 4, 3), np.float32), r"uint8.*float32"),
        (np.zeros((3, 4), np.uint16), "uint16"),
        (np.zeros((3, 4), bool), "bool"),
        (np.zeros((3, 4), object), "object"),
        (np.zeros((3, 5, 7), np.uint8), r"\(3, 5, 7\).*channels last"),
        (np.zeros((5, 7, 2), np.uint8), r"\(5, 7, 2\)"),
        (np.zeros((1, 5, 7, 3), np.uint8), "one image at a time"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (np.zeros((), np.uint8), r"\(\)"),
        (np.zeros((0, 7, 3), np.uint8), "7 x 0.*empty"),
        (np.zeros((7, 0), np.uint8), "0 x 7.*empty"),
        (np.zeros((1, 70_000), np.uint8), "70,000 x 1"),
    ],
)
def test_wrong_arrays_are_refused(array, says):
    with pytest.raises(InputError, match=says) as caught:
        read_image(array)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [b"\x89PNG", None, 3, [1, 2], Image])
def test_things_that_are_no_image_source_are_refused(source):
    with pytest.raises(InputError, match=f"expected a path.*got {type(source).__name__}"):
        read_image(source)


# --- modes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("LA", (100, 51), (224, 224, 224)),
        ("La", (20, 51), (224, 224, 224)),  # premultiplied
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("RGBA", (255, 0, 100, 255), (255, 0, 100)),
        ("RGBA", (255, 0, 100, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 100, 51), (255, 204, 224)),
        ("RGBa", (51, 0, 20, 51), (255, 204, 224)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (85, 255, 255), (0, 255, 0)),
        ("I;16", 26_000, (101, 101, 101)),
        ("I;16B", 26_000, (101, 101, 101)),
        ("I;16L", 26_000, (101, 101, 101)),
        ("I;16", 128, (0, 0, 0)),
        ("I;16", 129, (1, 1, 1)),
        ("I;16", 65_535, (255, 255, 255)),
        ("I", 26_000, (101, 101, 101)),
        ("I", 0, (0, 0, 0)),
        ("F", 99.6, (100, 100, 100)),
        ("F", 0.0, (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(mode, pixel, expected):
    image = Image.new(mode, (3, 2), pixel)
    before = image.tobytes()
    out = array_of(image)
    assert out.shape == (2, 3, 3)
    assert np.unique(out.reshape(-1, 3), axis=0).tolist() == [list(expected)]
    assert (image.mode, image.tobytes()) == (mode, before)


def test_lab_becomes_rgb():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    image = ImageCms.applyTransform(Image.new("RGB", (3, 2), (200, 30, 90)), to_lab)
    assert image.mode == "LAB"
    assert np.abs(array_of(image).astype(int) - (200, 30, 90)).max() <= 3


@pytest.mark.parametrize(("mode", "order"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")])
def test_sixteen_bits_are_scaled_to_the_nearest_level(mode, order):
    values = np.linspace(0, 65535, 997).astype(np.uint16)[:, None]
    image = Image.frombytes(mode, (1, 997), values.astype(order).tobytes())
    assert array_of(image)[:, 0, 1].tolist() == [round(int(value) / 257) for value in values[:, 0]]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_files_are_scaled(file_format):
    values = np.arange(0, 65536, 331, dtype=np.uint16)[None]
    file = saved(Image.fromarray(values), file_format)
    assert array_of(file)[0, :, 0].tolist() == [round(int(value) / 257) for value in values[0]]


@pytest.mark.parametrize(
    ("mode", "values", "says"),
    [
        ("I", [0, 65_536], r"0\.\.65535 in mode I, got 0\.\.65536"),
        ("I", [-1, 500], r"got -1\.\.500"),
        ("I", [0, 255], r"got 0\.\.255: scale"),
        ("F", [0, 255.5], r"0\.\.255 in mode F"),
        ("F", [-0.1, 9], r"got -0\.1\.\.9"),
        ("F", [0, 1], r"got 0\.\.1: scale"),
        ("F", [3, np.nan], "nan"),
        ("F", [3, np.inf], "inf"),
    ],
)
def test_numbers_on_another_scale_are_refused(mode, values, says):
    image = Image.fromarray(np.array([values], np.int32 if mode == "I" else np.float32))
    with pytest.raises(InputError, match=says):
        read_image(image)


def paletted(mode="P"):
    image = Image.new("P", (4, 1))
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata([0, 1, 2, 3])
    return image.convert(mode) if mode != "P" else image


def test_palette():
    assert array_of(paletted())[0].tolist() == [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]]
    assert array_of(saved(paletted()))[0].tolist() == [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]]
    assert array_of(paletted("PA"))[0, 1].tolist() == [200, 0, 0]


@pytest.mark.parametrize("transparency", [b"\xff\x33\x00", 2])
@pytest.mark.parametrize("way", ["image", "PNG", "PA"])
def test_palette_with_transparency_lies_over_white(transparency, way):
    image = paletted()
    image.info["transparency"] = transparency
    source = {"PNG": lambda: saved(image, transparency=transparency), "PA": lambda: image.convert("PA")}.get(way)
    source = source() if source else image
    half = [200, 0, 0] if transparency == 2 else [244, 204, 204]  # 200 * 0.2 + 255 * 0.8
    expected = [[10, 20, 30], half, [255, 255, 255], [0, 0, 200]]
    assert array_of(source)[0].tolist() == expected


def test_a_palette_image_of_the_caller_stays_as_it_was():
    image = paletted()
    image.info["transparency"] = b"\xff\x33\x00"
    before = (image.tobytes(), image.getpalette(), dict(image.info), image.palette.mode, image.im.getpalette())
    read_image(image)
    assert before == (image.tobytes(), image.getpalette(), dict(image.info), image.palette.mode, image.im.getpalette())
    assert image.im.getpalettemode() == "RGB"


@pytest.mark.parametrize(
    ("pixels", "key", "expected"),
    [
        (np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8), (1, 2, 3), [[9, 8, 7], [255, 255, 255]]),
        (np.array([[9, 40]], np.uint8), 40, [[9, 9, 9], [255, 255, 255]]),
        (np.array([[2570, 7710]], np.uint16), 7710, [[10, 10, 10], [255, 255, 255]]),
    ],
)
def test_a_png_colour_declared_transparent_becomes_white(pixels, key, expected):
    assert array_of(saved(Image.fromarray(pixels), transparency=key))[0].tolist() == expected


def test_alpha_over_white_is_exact_to_half_a_level():
    alpha, level = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([level, level, level, alpha], axis=2).astype(np.uint8)
    exact = (level * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(array_of(rgba)[:, :, 0] - exact).max() <= 0.51


@pytest.mark.parametrize(
    "file_format", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "TGA", "ICO", "QOI", "JPEG", "JPEG2000", "AVIF"]
)
def test_formats(file_format):
    Image.init()
    if file_format not in Image.SAVE or (file_format == "QOI" and "QOI" not in Image.OPEN):
        pytest.skip("this Pillow does not write it")
    pixels = np.full((16, 16, 3), (250, 120, 10), np.uint8)
    options = {"lossless": True} if file_format == "WEBP" else {"sizes": [(16, 16)]} if file_format == "ICO" else {}
    assert file_format in FORMATS
    assert np.abs(array_of(saved(picture(pixels), file_format, **options)).astype(int) - pixels).max() <= 8


def test_cmyk_jpeg_has_the_colours_it_was_saved_with():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(array_of(saved(image, "JPEG", quality=100)).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_pictures(file_format):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    file = saved(red, file_format, save_all=True, append_images=[blue])
    assert np.abs(array_of(file)[4, 4].astype(int) - (255, 0, 0)).max() <= 3


# --- orientation -----------------------------------------------------------------------------------------------

UPRIGHT = np.array([[1, 2, 3], [4, 5, 6]]) * 40
STORED = {  # EXIF orientation -> how such a camera stores UPRIGHT: where row 0 and column 0 of the file belong
    1: [[1, 2, 3], [4, 5, 6]],  # top, left
    2: [[3, 2, 1], [6, 5, 4]],  # top, right
    3: [[6, 5, 4], [3, 2, 1]],  # bottom, right
    4: [[4, 5, 6], [1, 2, 3]],  # bottom, left
    5: [[1, 4], [2, 5], [3, 6]],  # left, top
    6: [[3, 6], [2, 5], [1, 4]],  # right, top
    7: [[6, 3], [5, 2], [4, 1]],  # right, bottom
    8: [[4, 1], [5, 2], [6, 3]],  # left, bottom
}


def oriented(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(np.kron(np.array(STORED[orientation]) * 40, np.ones((8, 8))).astype(np.uint8))
    return image, exif


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation, file_format):
    image, exif = oriented(orientation)
    options = {"lossless": True} if file_format == "WEBP" else {"quality": 100} if file_format == "JPEG" else {}
    file = saved(image, file_format, exif=exif, **options)
    once = read_image(file)
    for upright in (once, read_image(once), read_image(Image.open(file))):
        assert upright.size == (24, 16)
        assert np.abs(np.asarray(upright)[4::8, 4::8, 0] - UPRIGHT).max() <= 2


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_orientation_holds_in_every_mode(mode):
    levels = np.array([[0, 255, 0], [255, 255, 0]], np.uint8)  # as stored: turn it a quarter right
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = Image.fromarray(levels)
    stored = Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else stored.convert(mode)
    image = Image.open(saved(stored, "TIFF" if mode == "CMYK" else "PNG", exif=exif))
    assert image.mode == mode
    assert array_of(image)[:, :, 0].tolist() == [[255, 0], [255, 255], [0, 0]]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_changes_nothing(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    assert np.array_equal(array_of(saved(picture(noise(5, 3)), exif=exif)), noise(5, 3))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01"]
)
def test_damaged_exif_is_ignored(exif):
    file = saved(Image.new("RGB", (8, 8), (9, 99, 199)), "JPEG", exif=exif, quality=100)
    assert np.abs(array_of(file).astype(int) - (9, 99, 199)).max() <= 3


# --- what cannot be read ---------------------------------------------------------------------------------------


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width_px, height_px):
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(99)))


def refusal(source):
    with pytest.raises(InputError) as caught:
        read_image(source)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    assert "got" in message
    assert len(message) < 400
    return message


def test_missing_file(tmp_path):
    assert "no.png: expected an image file, got: No such file" in refusal(tmp_path / "no.png")
    assert "No such file" in refusal("")


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("url", ["https://example.org/cat.jpg", "http://localhost/cat.jpg", "HTTPS://example.org/a"])
def test_a_url_is_refused_as_one(url: str, kind: type[str] | type[Path]) -> None:
    message = refusal(kind(url))
    assert "got a URL" in message
    assert "download it first, or pipe it" in message
    assert "null byte" in refusal("a\0b")


def test_folder(tmp_path):
    assert "directory" in refusal(tmp_path)


def test_empty_file(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert "empty.png: expected an image, got an empty file" in refusal(path)
    assert "empty" in refusal(io.BytesIO())


def test_not_an_image(tmp_path):
    path = tmp_path / "odd\nname.png"
    path.write_text("Dear image model,\n")
    assert "odd name.png: expected an image (PNG, JPEG" in refusal(path)


def test_eps_would_start_another_program_and_is_not_read():
    eps = saved(Image.new("RGB", (4, 4)), "EPS")
    assert Image.open(eps).format == "EPS"
    assert "got none" in refusal(eps)


def test_text_and_closed_files():
    assert "binary mode" in refusal(io.StringIO("P3 1 1 255 0 0 0"))
    closed = io.BytesIO(b"x")
    closed.close()
    assert "closed" in refusal(closed)
    image = Image.open(saved(Image.new("RGB", (4, 4))))
    image.close()
    assert "closed" in refusal(image)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_truncated_files(file_format):
    content = saved(picture(noise(64, 64)), file_format).getvalue()
    assert array_of(io.BytesIO(content)).shape == (64, 64, 3)
    for part in (0.3, 0.7):
        assert "truncated or damaged" in refusal(io.BytesIO(content[: int(len(content) * part)]))


def test_a_file_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(image_module, "MAX_FILE_BYTES", 3 * 2**20)

    class Endless(io.RawIOBase):
        pieces = 0

        def read(self, size=-1):
            self.pieces += 1
            return bytes(2**20)

    endless = Endless()
    assert "over 3,145,728 bytes" in refusal(endless)
    assert endless.pieces <= 5


@pytest.mark.parametrize(
    ("width", "height"),
    [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (20_000, 9_000), (12_000, 14_914), (1, 178_000_000), (65_536, 1)],
)
def test_bombs_are_refused_from_their_header(width, height, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    tracemalloc.start()
    start_seconds = time.perf_counter()
    message = refusal(io.BytesIO(png_header(width, height)))
    seconds = time.perf_counter() - start_seconds
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "178,956,970 pixels" in message
    assert "got" in message
    assert seconds < 2
    assert peak < 20 * 2**20
    lazy = Image.new("RGB", (1, 1))
    lazy._size = (width, height)
    assert f"{width:,} x {height:,}" in refusal(lazy)


def test_images_that_pillow_warns_of_are_read_without_a_warning(monkeypatch):
    file = saved(picture(noise(15, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert np.array_equal(array_of(file), noise(15, 10))
    assert caught == []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert "pixels at most" in refusal(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(image_module, "MAX_PIXELS", 149)
    assert "got 15 x 10" in refusal(file)


def test_an_icon_larger_than_it_states_is_refused(monkeypatch):
    inner = saved(Image.new("RGB", (300, 200))).getvalue()
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    assert read_image(io.BytesIO(icon)).size == (300, 200)
    monkeypatch.setattr(image_module, "MAX_SIDE_PX", 299)
    assert "300 x 200" in refusal(io.BytesIO(icon))


def test_threads_read_together_and_leave_the_warning_filters_alone():
    file = saved(picture(noise(40, 30))).getvalue()
    filters = list(warnings.filters)
    results = []

    def work():
        for _ in range(20):
            results.append(np.array_equal(array_of(io.BytesIO(file)), noise(40, 30)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80
    assert warnings.filters == filters


def test_no_handle_stays_open(tmp_path):
    path = tmp_path / "a.png"
    picture(noise(5, 3)).save(path)
    (tmp_path / "bad.png").write_bytes(path.read_bytes()[:40])
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("needs /proc")
    before = len(list(handles.iterdir()))
    images = [read_image(path) for _ in range(5)]
    for _ in range(5):
        refusal(tmp_path / "bad.png")
    assert len(list(handles.iterdir())) == before
    assert len(images) == 5


SEEDS = [
    saved(picture(noise(6, 5)), file_format).getvalue()
    for file_format in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "ICO")
] + [saved(Image.fromarray(np.full((4, 4), 999, np.uint16)), "PNG").getvalue(), png_header(9, 9)]


def read_or_refuse(content):
    image = None
    with suppress(InputError):
        image = read_image(io.BytesIO(content))
    assert image is None or (image.mode == "RGB" and min(image.size) > 0)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_read_or_refused(content):
    read_or_refuse(content)


@given(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), st.integers(0)
)
@settings(max_examples=300, deadline=None)
def test_damaged_files_are_read_or_refused(content, changes, cut):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    read_or_refuse(bytes(damaged[: cut if cut % 3 == 0 else None]))


@pytest.mark.parametrize("content", image_inputs.seeds(), ids=lambda content: content[:12].hex())
def test_strips_give_what_the_whole_gives(content, monkeypatch):
    whole = read_image(io.BytesIO(content))
    monkeypatch.setattr(image_module, "STRIP_PIXELS", 3 * whole.width + 1)
    assert np.array_equal(read_image(io.BytesIO(content)), whole)
