import numpy as np
import pytest
from PIL import Image

from diffusers_cg.data.grids import image_grid


RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(color, size=(8, 8)):
    return Image.new("RGB", size, color)


def test_tiles_stand_in_rows_and_columns_on_white_with_gaps():
    grid = image_grid([[plain(RED), plain(BLUE)], [plain(BLUE), plain(RED)]], tile_size=32, gap=6)
    pixels = np.asarray(grid)
    assert (grid.mode, grid.size) == ("RGB", (6 + 2 * 38, 6 + 2 * 38))
    for row, column, color in ((0, 0, RED), (0, 1, BLUE), (1, 0, BLUE), (1, 1, RED)):
        x, y = 6 + column * 38, 6 + row * 38
        assert (pixels[y : y + 32, x : x + 32] == color).all()
    assert (pixels[:, 38:44] == 255).all() and (pixels[38:44] == 255).all()


def test_small_images_are_enlarged_without_blur():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.asarray(image_grid([[image]], tile_size=64, gap=0))[..., 0]
    assert (pixels == image.repeat(4, axis=0).repeat(4, axis=1)).all()


def test_large_images_are_reduced_by_averaging():
    checkered = np.indices((256, 256)).sum(axis=0) % 2 * 255
    pixels = np.asarray(image_grid([[checkered.astype(np.uint8)]], tile_size=64, gap=0))
    assert abs(pixels.astype(int) - 127).max() < 30


def test_images_keep_their_proportions():
    pixels = np.asarray(image_grid([[plain(RED, (16, 8))]], tile_size=32, gap=0))
    assert (pixels[8:24] == RED).all()
    assert (pixels[:8] == 255).all() and (pixels[24:] == 255).all()


@pytest.mark.parametrize(
    "image",
    [
        np.full((8, 8), 51, dtype=np.uint8),
        np.full((8, 8, 1), 51, dtype=np.uint8),
        np.full((8, 8, 3), 51, dtype=np.uint8),
        np.full((8, 8, 1), 0.2, dtype=np.float32),
        Image.new("L", (8, 8), 51),
    ],
    ids=["gray", "one channel", "rgb", "float", "PIL gray"],
)
def test_arrays_and_gray_images(image):
    assert (np.asarray(image_grid([[image]], tile_size=8, gap=0)) == 51).all()


def test_labels_and_title_are_written_beside_the_tiles():
    tiles = [[plain(RED), plain(BLUE)]]
    bare = image_grid(tiles)
    labelled = image_grid(tiles, row_labels=["a long row label"], column_labels=["0", "10"], title="a title")
    assert labelled.width > bare.width and labelled.height > bare.height
    pixels = np.asarray(labelled).astype(int)
    height, width = labelled.height - bare.height, labelled.width - bare.width
    assert (pixels[height:, :width] < 128).any(), "row label"
    assert (pixels[: height // 2] < 128).any(), "title"
    assert (pixels[height // 2 : height] < 128).any(), "column labels"
    assert (pixels[height + 6 :, width + 6 :] == np.asarray(bare)[6:, 6:]).all(), "tiles, below the first gap"


def test_a_long_title_fits():
    assert image_grid([[plain(RED)]], title="a title much wider than one tile").width > 200


def test_rows_may_differ_in_length():
    grid = image_grid([[plain(RED)], [plain(RED), plain(BLUE)]], tile_size=8, gap=0)
    assert np.asarray(grid)[0, 15].tolist() == [255, 255, 255]
