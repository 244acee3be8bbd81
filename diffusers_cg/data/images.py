"""One image: read from wherever it is kept, converted, cropped, and taken to tensors and back to 8 bits."""

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin

from diffusers_cg.errors import InputError, import_extra


Content = str | Path | bytes | np.ndarray
"""What an image is read from: a file by its path or URL, the bytes of one, or pixels (H, W) or (H, W, C)."""
ImageRange = tuple[float, float]
"""The values of black and white."""

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# what PIL's decoders raise on damaged files
DECODING_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    RuntimeError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
)
# the limits that PIL sets to what others may send it: on size, and on a PNG's text and colour profile
LIMITS = (
    (Image, "MAX_IMAGE_PIXELS", None),
    (PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 30),
    (PngImagePlugin, "MAX_TEXT_MEMORY", 1 << 40),
)
LONGEST_STRIP = 16  # times as long as wide: more is cropped before it is enlarged
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# -------------------------------------------------------------------------------------------------------------- reading


def read_bytes(content: str | Path | bytes) -> bytes:
    """The bytes of an image file."""
    if isinstance(content, bytes):
        return content
    if "://" in str(content):
        with import_extra("fsspec", "data").open(content, "rb") as file:
            return file.read()
    return Path(content).read_bytes()


@contextmanager
def open_image(content: Content) -> Iterator[Image.Image]:
    """PIL's image of what it is kept in (an array of 8 bits, or a file, which is not decoded yet). Raises one of
    `DECODING_ERRORS` where it is none.
    """
    if isinstance(content, np.ndarray):
        yield Image.fromarray(content.squeeze(-1) if content.ndim == 3 and content.shape[-1] == 1 else content)
        return
    if isinstance(content, bytes) or "://" in str(content):
        content = io.BytesIO(read_bytes(content))
    with _no_limits, Image.open(content) as image:
        yield image


class _NoLimits:
    """PIL without its `LIMITS` for as long as one thread or more is inside: those of the process are as they were after."""

    def __init__(self):
        self.lock = threading.Lock()
        self.num_inside = 0
        self.kept = []

    def __enter__(self) -> None:
        with self.lock:
            if self.num_inside == 0:
                self.kept = [getattr(module, name) for module, name, _ in LIMITS]
                for module, name, limit in LIMITS:
                    setattr(module, name, limit)
            self.num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.num_inside -= 1
            if self.num_inside == 0:
                for (module, name, _), limit in zip(LIMITS, self.kept):
                    setattr(module, name, limit)


_no_limits = _NoLimits()


def load_image(
    content: Content, channels: int, name: str | None = None, image_range: ImageRange | None = None
) -> Image.Image:
    """Decodes an image, turns it upright, and converts it by [`convert_channels`].

    Raises:
        InputError: if it cannot be read as an image; the sentence calls it `name`, or else by its path.
    """
    try:
        return _load(content, channels, image_range)
    except DECODING_ERRORS as error:
        raise InputError(f"{name or content} cannot be read as an image: {describe_fault(error)}.") from error


def image_fault(content: Content, image_range: ImageRange | None = None) -> str | None:
    """Why [`load_image`] cannot read something; None if it can. (What has 3 channels can have 1 or 4.)"""
    return look_at_image(content, image_range)[0]


def look_at_image(content: Content, image_range: ImageRange | None = None) -> tuple[str | None, bool]:
    """The [`image_fault`] of something, and whether all its pixels come out in one colour."""
    try:
        extrema = _load(content, 3, image_range).getextrema()
    except DECODING_ERRORS as error:
        return describe_fault(error), False
    return None, all(low == high for low, high in extrema)


def _load(content: Content, channels: int, image_range: ImageRange | None) -> Image.Image:
    if isinstance(content, np.ndarray):
        content = values_to_8_bits(_checked_layout(content), image_range)
    elif content == b"":
        raise InputError("there is no image (of a webdataset: none with the suffix of the others)")
    with open_image(content) as image:
        try:
            image.load()
        except DECODING_ERRORS as error:
            if isinstance(error, OSError) or image.tile:
                raise
            # all pixels are there: what cannot be read is metadata behind them
        return convert_channels(turn_upright(image), channels, image_range)


def _checked_layout(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[-1] not in PIL_MODES):
        hint = ", with channels last" if pixels.ndim == 3 and pixels.shape[0] in PIL_MODES else ""
        raise InputError(
            f"it is an array of shape {pixels.shape}, not (H, W) or (H, W, C) of 1, 3 or 4 channels{hint}"
        )
    return pixels


def turn_upright(image: Image.Image) -> Image.Image:
    """An image as it was seen, by its EXIF orientation; one that cannot be read is ignored."""
    try:
        method = TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation))
    except DECODING_ERRORS:
        method = None
    return image if method is None else image.transpose(method)


def describe_fault(error: Exception) -> str:
    """What one of `DECODING_ERRORS` says of an image."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, InputError):  # of `to_8_bits`
        return str(error)
    if isinstance(error, MemoryError):
        return "too large for the memory that is left"
    if isinstance(error, OSError) and error.strerror:
        return f"not readable: {error.strerror}"
    said = str(error).rstrip(".")
    return f"damaged: {said}" if said else f"damaged ({type(error).__name__})"


# ----------------------------------------------------------------------------------------------------------- converting


def convert_channels(image: Image.Image, channels: int, image_range: ImageRange | None = None) -> Image.Image:
    """Converts an image of any mode to 1 (gray), 3 (RGB) or 4 (RGBA) channels of 8 bits; transparency is laid on white.

    Args:
        image (`PIL.Image.Image`): Any.
        channels (`int`): 1, 3 or 4.
        image_range (`ImageRange`, *optional*): The values of black and white where they are stored in more than 8
            bits; what lies beyond is clipped. By default as [`to_8_bits`] finds it.
    """
    if image.mode.startswith(("I", "F")):
        image = to_8_bits(image, image_range)
    if image.mode == "LAB":  # which PIL makes RGB of alone
        image = image.convert("RGB")
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if channels != 4 and image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(PIL_MODES[channels])


def to_8_bits(image: Image.Image, image_range: ImageRange | None = None) -> Image.Image:
    """A gray image whose values are integers of 16 or 32 bits (modes I, I;16, ...) or floating point (F), in mode L.

    The mode is not the range. Whole numbers in 0..255 are values of 8 bits, kept as they are; other floating point is in
    [0, 1], and other integers are in 0..65535.

    Raises:
        InputError: if values are in none of these ranges, or in so small a part of one that all would be black.
    """
    return Image.fromarray(values_to_8_bits(np.asarray(image), image_range, f"in mode {image.mode}"))


def values_to_8_bits(values: np.ndarray, image_range: ImageRange | None = None, kind: str | None = None) -> np.ndarray:
    """The pixels of one or several images as uint8, of whatever shape, by the rule of [`to_8_bits`]; uint8 stays as it is.

    Args:
        values (`np.ndarray`): Integers, floating point or booleans.
        image_range (`ImageRange`, *optional*): The values of black and white.
        kind (`str`, *optional*): What a sentence calls them; by default by their dtype.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "uifb":
        raise InputError(f"it holds values of dtype {values.dtype}, which are no numbers")
    if values.dtype.kind == "b":
        image_range = image_range or (0, 1)
    low, high = values.min(), values.max()
    is_float = values.dtype.kind == "f"
    if is_float and not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("it holds values that are not finite")
    if image_range is not None:
        black, white = image_range
        if black == white:
            raise InputError(f"`image_range` must be two values, of black and white, got {black:g} twice")
        scaled = np.rint((values.astype(np.float64) - black) * (255 / (white - black)))
    elif is_float and low >= 0 and 1 / 16 <= high <= 1:
        scaled = np.rint(values * 255.0)
    elif low >= 0 and high <= 255 and (not is_float or np.array_equal(values, np.rint(values))):
        scaled = values
    elif not is_float and low >= 0 and 1 << 12 <= high < 1 << 16:
        scaled = values.astype(np.uint16) >> 8
    else:
        understood = "0..1 (with values above 1/16)" if is_float else "0..65535 (with values above 4095)"
        raise InputError(
            f"its range is not clear, since values of {low:g}..{high:g} {kind or f'of dtype {values.dtype}'} are neither in "
            f"0..255 nor in {understood}: say which are black and white, as in --image_range {low:g} {high:g} "
            "(`image_range` in Python)"
        )
    return scaled.clip(0, 255).astype(np.uint8)


def resize_and_crop(
    image: Image.Image, resolution: int, center_crop: bool, rng: np.random.Generator | None = None
) -> Image.Image:
    """Square crop as the reference makes it: halved by box filter while twice too large, then bicubic, then cut.

    A random crop, which needs `rng`, first draws the shorter side from [resolution, resolution / 0.8].
    """
    short_side = resolution if center_crop else int(rng.integers(resolution, int(resolution / 0.8) + 1))
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = short_side / min(image.size)
    size = tuple(max(resolution, round(side * scale)) for side in image.size)
    spare = [side - resolution for side in size]
    left, top = (side // 2 for side in spare) if center_crop else (int(rng.integers(side + 1)) for side in spare)
    box = (left, top, left + resolution, top + resolution)
    if scale > 1 and max(size) > LONGEST_STRIP * min(size):  # enlarged as a whole it might take gigabytes
        box = [edge * own / side for edge, own, side in zip(box, 2 * image.size, 2 * size)]
        return image.resize((resolution, resolution), Image.Resampling.BICUBIC, box)
    return image.resize(size, Image.Resampling.BICUBIC).crop(box)


def downscale(image: Image.Image, side: int) -> Image.Image:
    """The low-resolution version of a square image, in 8 bits as a user would have it.

    Every pixel is the mean of those that it covers (box filter) where `side` divides the image's, as for the paper's
    upsamplers; otherwise the filter is PIL's bicubic one, widened so that nothing aliases.
    """
    resample = Image.Resampling.BICUBIC if image.width % side else Image.Resampling.BOX
    return image.resize((side, side), resample)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An image of 8 bits as (C, H, W) float32 in [-1, 1]."""
    pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1)


def to_uint8(sample: torch.Tensor) -> np.ndarray:
    """Images (B, C, H, W) in [-1, 1] as (B, H, W, C) uint8: truncated, not rounded, as the paper's were."""
    return ((sample + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
