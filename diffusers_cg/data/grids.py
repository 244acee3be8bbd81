"""Pictures for people: grids of images with gaps and labels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


BACKGROUND = 255
INK = 40


def image_grid(
    images: Sequence[Sequence[Image.Image | np.ndarray]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    tile_size: int = 64,
    gap: int = 6,
) -> Image.Image:
    """Arranges rows of images on white, enlarged to tiles that can be looked at.

    Args:
        images: Rows of PIL images, or arrays (H, W), (H, W, 1) or (H, W, 3) of uint8 or of floats in [0, 1].
        row_labels, column_labels (sequence of `str`): Written to the left of each row and above each column.
        title (`str`): Written above everything.
        tile_size (`int`): Side of a tile in pixels. An image is scaled to fit, in its own proportions.
        gap (`int`): Pixels between tiles.

    Returns:
        `PIL.Image.Image`: In mode RGB.
    """
    font = ImageFont.load_default(size=14)
    left = gap + max((int(font.getlength(label)) for label in row_labels), default=0) + (gap if row_labels else 0)
    line = 20
    top = gap + line * bool(title) + line * bool(column_labels)
    num_columns = max(len(row) for row in images)
    pitch = tile_size + gap
    width = max(left + num_columns * pitch, int(font.getlength(title)) + 2 * gap)
    canvas = Image.new("RGB", (width, top + len(images) * pitch), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, gap), title, fill=(INK,) * 3, font=font)
    for column, label in enumerate(column_labels):
        x = left + column * pitch + tile_size / 2
        draw.text((x, top - gap // 2), label, fill=(INK,) * 3, font=font, anchor="ms")
    for row, tiles in enumerate(images):
        y = top + row * pitch
        if row < len(row_labels):
            draw.text((gap, y + tile_size / 2), row_labels[row], fill=(INK,) * 3, font=font, anchor="lm")
        for column, tile in enumerate(tiles):
            picture = _fit(tile, tile_size)
            x = left + column * pitch + (tile_size - picture.width) // 2
            canvas.paste(picture, (x, y + (tile_size - picture.height) // 2))
    return canvas


def _fit(image: Image.Image | np.ndarray, tile_size: int) -> Image.Image:
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8:
            array = (array.clip(0, 1) * 255).round().astype(np.uint8)
        image = Image.fromarray(array.squeeze(-1) if array.ndim == 3 and array.shape[-1] == 1 else array)
    scale = tile_size / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
