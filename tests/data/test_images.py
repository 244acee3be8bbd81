"""One image: what is in the file is what comes out, whatever the mode, the metadata and the size."""

import io
import os
import struct
import warnings

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from diffusers_cg.data import find_bad_images, open_folder, open_images, readable_images
from diffusers_cg.data.images import convert_channels, load_image, look_at_image, resize_and_crop, to_8_bits
from diffusers_cg.errors import InputError
from diffusers_cg.pipelines.image_inputs import images_to_tensor
from diffusers_cg.training.data import TrainingImages


RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))  # 0..252


def image_fault(content, image_range=None):
    return look_at_image(content, image_range)[0]


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------------- values

FILES = {
    "uint8": encoded(RAMP),
    "int32 TIFF": encoded(RAMP.astype(np.int32), "TIFF"),
    "uint16 PNG": encoded(RAMP.astype(np.uint16)),  # as PIL writes int32, too
    "uint16 TIFF, big-endian": encoded(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
    "float TIFF": encoded(RAMP.astype(np.float32), "TIFF"),
    "float TIFF, 0..1": encoded(RAMP.astype(np.float32) / 255, "TIFF"),
    "16 bits PNG": encoded(RAMP.astype(np.uint16) * 257),
    "16 bits PNG, by the upper byte": encoded(RAMP.astype(np.uint16) * 256 + 9),
    "16 bits PGM": encoded(RAMP.astype(np.uint16) * 257, "PPM"),
    "16 bits in int32 TIFF": encoded(RAMP.astype(np.int32) * 257, "TIFF"),
    "16 bits TIFF, big-endian": encoded(Image.fromarray((RAMP.astype(np.uint16) * 257).astype(">u2")), "TIFF"),
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", FILES)
def test_a_mode_is_not_a_range(name, channels):
    assert image_fault(FILES[name]) is None
    image = np.asarray(load_image(FILES[name], channels)).reshape(64, 64, channels)
    assert all(np.array_equal(image[..., channel], RAMP) for channel in range(min(channels, 3)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
def test_arrays_that_datasets_wrote_are_trained_on_and_evaluated_as_they_are(dtype):
    written = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(RAMP.astype(np.int32 if dtype == np.int64 else dtype))] * 2, "label": [0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    images = open_images(written, "required")
    assert np.array_equal(next(images.batches(2)), np.stack([RAMP[..., None]] * 2))
    seen = TrainingImages(images, 64, 1)[0]["clean_images"]
    assert np.array_equal(((seen[0] + 1) * 127.5).round(), RAMP)


def test_arrays_that_are_cast_to_images():
    cast = datasets.Dataset.from_dict({"image": [RAMP.tolist()]}).cast_column("image", datasets.Image())
    assert np.array_equal(next(open_images(cast).batches(1))[0, ..., 0], RAMP)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[0, 1000]], dtype=np.int32), "values of 0..1000 in mode I are neither in 0..255 nor in 0..65535"),
        (
            np.array([[0, 4095]], dtype=np.uint16),
            "values of 0..4095 in mode I;16 are neither in 0..255 nor in 0..65535",
        ),
        (np.array([[-5, 100]], dtype=np.int32), "values of -5..100 in mode I are"),
        (np.array([[0, 70000]], dtype=np.int32), "values of 0..70000 in mode I are"),
        (np.array([[-1, 1]], dtype=np.float32), "values of -1..1 in mode F are neither in 0..255 nor in 0..1"),
        (np.array([[0, 3.5]], dtype=np.float32), "values of 0..3.5 in mode F are"),
        (np.array([[0, 1e-3]], dtype=np.float32), "values of 0..0.001 in mode F are"),
        (np.array([[0, np.nan]], dtype=np.float32), "it holds values that are not finite"),
    ],
)
def test_a_range_that_is_not_clear_is_refused_and_can_be_stated(values, said):
    content = encoded(values, "TIFF")
    assert said in image_fault(content)
    with pytest.raises(InputError, match="^the scan cannot be read as an image: it") as raised:
        load_image(content, 1, "the scan")
    assert said in str(raised.value) and "\n" not in str(raised.value)
    if "finite" not in said:
        low, high = values[0].tolist()
        assert image_fault(content, (low, high)) is None
        assert np.asarray(load_image(content, 1, image_range=(low, high))).tolist() == [[0, 255]]
        assert np.asarray(load_image(content, 1, image_range=(high, low))).tolist() == [[255, 0]]
    with pytest.raises(InputError):
        load_image(content, 1, image_range=(3, 3))


def test_a_stated_range_clips_and_does_not_touch_8_bits():
    content = encoded(np.array([[-1000, 0, 51, 255, 3000]], dtype=np.int32), "TIFF")
    assert np.asarray(load_image(content, 1, image_range=(0, 255))).tolist() == [[0, 0, 51, 255, 255]]
    assert np.array_equal(load_image(FILES["uint8"], 1, image_range=(0, 1)), RAMP)


def test_16_bits_as_the_sentence_of_a_pipeline_advises():
    image = Image.open(io.BytesIO(FILES["16 bits PNG"]))
    with pytest.raises(InputError) as raised:
        images_to_tensor(image, (3, 64, 64))
    advised = str(raised.value).partition(": pass ")[2].rstrip(".")
    assert advised == 'diffusers_cg.data.images.to_8_bits(image).convert("RGB")'
    assert np.array_equal(np.asarray(to_8_bits(image).convert("RGB"))[..., 1], RAMP)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float32])
def test_black_stays_black(dtype):
    assert not np.asarray(load_image(encoded(np.zeros((4, 4), dtype), "TIFF"), 1)).any()


# ------------------------------------------------------------------------------------------------------------- metadata

LEFT_IS_TOP = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
BITS_AS_TEXT = (0x0102, 2, 4, b"ab\0\0")  # what PIL reads, and cannot write
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def exif_of(*entries):
    table = b"".join(struct.pack("<HHL", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + table + bytes(4)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_stray_value_in_exif_costs_nothing(format):
    content = encoded(PICTURE, format, exif=exif_of(LEFT_IS_TOP, BITS_AS_TEXT))
    stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert image_fault(content) is None
    assert np.array_equal(load_image(content, 3), np.rot90(stored, -1))


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0rubbish", exif_of((0x0112, 2, 4, b"top\0"))],
)
def test_an_orientation_that_cannot_be_read_is_ignored(exif):
    content = encoded(PICTURE, "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert image_fault(content) is None
        assert np.array_equal(load_image(content, 3), np.asarray(Image.open(io.BytesIO(content))))


def test_metadata_behind_the_pixels_of_a_png_that_cannot_be_read():
    content = encoded(PICTURE)
    end = content.index(b"IEND") - 4
    chunk = struct.pack(">L", 2) + b"pHYs" + b"ab" + bytes(4)  # too short for its two numbers
    assert np.array_equal(load_image(content[:end] + chunk + content[end:], 3), PICTURE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation):
    content = encoded(PICTURE, exif=exif_of((0x0112, 3, 1, struct.pack("<HH", orientation, 0))))
    turned = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.swapaxes(0, 1),
        6: np.rot90(PICTURE, -1),
        7: PICTURE[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(PICTURE),
    }
    assert np.array_equal(load_image(content, 3), turned[orientation])


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.fixture
def faulty_format():
    """A format of files whose decoder raises what is put into the list."""
    errors = []

    class FaultyFile(ImageFile.ImageFile):
        format = "FAULTY"

        def _open(self):
            self._size, self._mode = (4, 4), "RGB"

        def load(self):
            raise errors[0]

    Image.init()
    Image.register_open("FAULTY", FaultyFile, lambda prefix: prefix.startswith(b"FAULTY"))
    yield errors
    del Image.OPEN["FAULTY"]
    Image.ID.remove("FAULTY")


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires 4 bytes"),
        TypeError("'NoneType' is not subscriptable"),
        IndexError("index out of range"),
        AttributeError("no attribute 'tile'"),
        KeyError("compression"),
        ZeroDivisionError("division by zero"),
        OverflowError("too large"),
        AssertionError(),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_codecs_raise_is_a_fault_of_the_file(tmp_path, faulty_format, error):
    faulty_format.append(error)
    for place in ("a/bad.png", "a/good.png", "b/good.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"FAULTY" if "bad" in place else encoded(PICTURE))
    images = open_folder(tmp_path, "required")
    (fault,) = find_bad_images(images).values()
    assert fault.startswith("too large for the memory" if isinstance(error, MemoryError) else "damaged")
    assert len(readable_images(images, skip_bad_images=True)) == 2
    with pytest.raises(InputError, match="bad.png cannot be read as an image: .*[^:. ][.]$"):
        images[0].load(3)
    with pytest.raises(InputError, match="bad.png"):
        list(open_images(tmp_path).batches(3))


def test_a_file_that_is_not_there_is_not_damaged(tmp_path):
    assert image_fault(tmp_path / "gone.png") == "not readable: No such file or directory"


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "F", "I", "I;16", "I;16B"],
)
def test_what_has_3_channels_has_1_and_4(mode):
    """For the check asks for 3 alone."""
    image = Image.new(mode, (4, 4))
    assert [convert_channels(image, channels).mode for channels in (1, 3, 4)] == ["L", "RGB", "RGBA"]


# --------------------------------------------------------------------------------------------------------------- limits


def text_of(size):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * size, zip=True)
    return text


@pytest.mark.parametrize(
    "options", [{"icc_profile": bytes(1_500_000)}, {"pnginfo": text_of(1_500_000)}], ids=["colour profile", "text"]
)
def test_large_metadata(tmp_path, options):
    content = encoded(PICTURE, **options)
    assert image_fault(content) is None
    assert np.array_equal(load_image(content, 3), PICTURE)
    (tmp_path / "large.png").write_bytes(content)
    assert np.array_equal(next(open_images(tmp_path).batches(1))[0], PICTURE)


def test_pictures_of_more_pixels_than_pil_allows_others(monkeypatch, tmp_path):
    """And what it allows others stays as it is."""
    limits = ((Image, "MAX_IMAGE_PIXELS"), (PngImagePlugin, "MAX_TEXT_MEMORY"), (PngImagePlugin, "MAX_TEXT_CHUNK"))
    for module, name in limits:
        monkeypatch.setattr(module, name, 10)
    content = encoded(PICTURE, pnginfo=text_of(100))
    (tmp_path / "large.png").write_bytes(content)
    assert image_fault(content) is None
    assert np.array_equal(load_image(content, 3), PICTURE)
    assert np.array_equal(next(open_images(tmp_path).batches(1))[0], PICTURE)
    assert image_fault(b"not an image") == "not an image"
    assert [getattr(module, name) for module, name in limits] == [10, 10, 10]


# ---------------------------------------------------------------------------------------------------------------- names


def test_names_that_are_not_utf_8(tmp_path):
    for place in (b"caf\xe9/1.png", b"caf\xe9/caf\xe9.png", b"th\xc3\xa9/1.png"):
        path = os.path.join(os.fsencode(tmp_path), place)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(encoded(PICTURE))
    images = open_folder(tmp_path, "required")
    assert images.class_names == ["caf\\xe9", "thé"]
    assert images[1].name == f"{tmp_path}/caf\\xe9/caf\\xe9.png"
    assert all(np.array_equal(stored.load(3), PICTURE) for stored in images)
    with open(images[1].content, "wb"):
        pass
    with pytest.raises(InputError) as raised:
        readable_images(images)
    assert "/caf\\xe9.png (not an image)" in str(raised.value).encode("utf-8").decode()
    alone = open_images(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9")))
    assert alone.source == f"{tmp_path}/caf\\xe9"


# ----------------------------------------------------------------------------------------------------------------- crops


def enlarged_then_cut(image, resolution, center_crop, rng):
    """What `resize_and_crop` is defined to be."""
    short_side = resolution if center_crop else int(rng.integers(resolution, int(resolution / 0.8) + 1))
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = short_side / min(image.size)
    image = image.resize([max(resolution, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    spare = (image.width - resolution, image.height - resolution)
    left, top = (side // 2 for side in spare) if center_crop else (int(rng.integers(side + 1)) for side in spare)
    return image.crop((left, top, left + resolution, top + resolution))


@pytest.mark.parametrize("center_crop", [True, False])
def test_strips_are_cropped_before_they_are_enlarged(center_crop):
    rng = np.random.default_rng(0)
    for size, most in (
        *(
            ((width, height), 0)
            for width in (1, 7, 32, 33, 70, 150)
            for height in (5, 16, 64, 97)
            if width < 16 * height
        ),
        ((1, 90), 1),
        ((100, 3), 1),
        ((700, 40), 0),  # made smaller
    ):
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        for seed in range(3):
            cut = resize_and_crop(image, 32, center_crop, np.random.default_rng(seed))
            expected = enlarged_then_cut(image, 32, center_crop, np.random.default_rng(seed))
            difference = np.abs(np.asarray(cut, dtype=int) - np.asarray(expected, dtype=int))
            assert cut.size == (32, 32) and difference.max() <= most


def test_a_strip_takes_little_memory():
    strip = Image.new("RGB", (1, 6000), "white")
    Image.core.reset_stats()
    assert resize_and_crop(strip, 128, center_crop=True).getextrema() == ((255, 255),) * 3
    taken = Image.core.get_stats()["allocated_blocks"] * Image.core.get_block_size()
    assert taken < 200e6  # enlarged as a whole it has 128 x 768,000 x 4 bytes
