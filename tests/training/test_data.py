"""Folders of images, from the files to the batches of a training."""

import os
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_cg.data import open_folder
from diffusers_cg.diffusion import UniformSampler
from diffusers_cg.training import export_digits
from diffusers_cg.training.data import EndlessSampler, TrainingImages, training_loader
from diffusers_cg.training.loop import draw_timesteps_and_noise


def save_image(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    image.save(path, **options)


def one_image(tmp_path, pixels, resolution=16, channels=3, suffix=".png", save_options=None, **options):
    """`TrainingImages` whose item 0 is the given image."""
    save_image(tmp_path / "a" / f"image{suffix}", pixels, **save_options or {})
    save_image(tmp_path / "b" / "other.png", np.zeros((4, 4)))
    return TrainingImages(open_folder(tmp_path, "required"), resolution, channels, **options)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------- export_digits.py


def test_digits_are_written_in_full_at_their_own_size(digits):
    for split, count in (("train", 1437), ("test", 360)):
        assert sorted(folder.name for folder in (digits / split).iterdir()) == [str(label) for label in range(10)]
        images = [Image.open(file) for file in (digits / split).rglob("*.png")]
        assert len(images) == count
        assert {(image.mode, image.size) for image in images} == {("L", (8, 8))}
        assert max(image.getextrema()[1] for image in images) == 255


def test_exporting_digits_again_replaces_the_folder_with_the_same_files(digits, tmp_path):
    output = tmp_path / "digits"
    save_image(output / "train" / "old class" / "old.png", np.zeros((4, 4)))
    export_digits.main(export_digits.parse_args(["--output_dir", str(output)]))
    assert contents(output) == contents(digits)
    assert os.listdir(tmp_path) == ["digits"]


# ------------------------------------------------------------------------------------------------------------ channels


WHITE, ORANGE = (255, 255, 255), (255, 128, 0)
PALETTE = Image.new("P", (16, 16), 1)
PALETTE.putpalette([0, 0, 0, *ORANGE])
MODES = {
    "L": (Image.new("L", (16, 16), 100), {}, (100, 100, 100, 255)),
    "1": (Image.new("1", (16, 16), 1), {}, (255, 255, 255, 255)),
    "RGB": (Image.new("RGB", (16, 16), ORANGE), {}, (*ORANGE, 255)),
    "P": (PALETTE, {}, (*ORANGE, 255)),
    "P, transparent": (PALETTE, {"transparency": 1}, (*ORANGE, 0)),
    "P, not transparent": (PALETTE, {"transparency": 0}, (*ORANGE, 255)),
    "RGB, transparent": (Image.new("RGB", (16, 16), ORANGE), {"transparency": ORANGE}, (*ORANGE, 0)),
    "L, transparent": (Image.new("L", (16, 16), 100), {"transparency": 100}, (100, 100, 100, 0)),
    "LA": (Image.new("LA", (16, 16), (0, 51)), {}, (0, 0, 0, 51)),
    "RGBA": (Image.new("RGBA", (16, 16), (*ORANGE, 51)), {}, (*ORANGE, 51)),
    "I;16": (Image.fromarray(np.full((16, 16), 100 * 256 + 7, dtype=np.uint16)), {}, (100, 100, 100, 255)),
    "CMYK": (Image.new("CMYK", (16, 16), (0, 0, 0, 155)), {"suffix": ".tif"}, (100, 100, 100, 255)),
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_channels_of_the_model(tmp_path, mode, channels):
    image, options, (*color, alpha) = MODES[mode]
    options = dict(options)
    images = one_image(tmp_path, image, 16, channels, options.pop("suffix", ".png"), options)
    clean_images = images[0]["clean_images"]

    on_white = [round((value * alpha + 255 * (255 - alpha)) / 255) for value in color]
    red, green, blue = on_white
    expected = {1: [0.299 * red + 0.587 * green + 0.114 * blue], 3: on_white, 4: [*color, alpha]}[channels]
    assert clean_images.shape == (channels, 16, 16)
    actual = (clean_images + 1) * 127.5
    assert (actual - torch.tensor(expected).view(-1, 1, 1)).abs().max() <= 1.01  # rounding of 8 bits


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left of the stored picture is the top
    pixels = np.zeros((16, 16))
    pixels[:, :8] = 255
    clean_images = one_image(tmp_path, pixels, save_options={"exif": exif})[0]["clean_images"]
    assert (clean_images[:, :8] == 1).all()
    assert (clean_images[:, 8:] == -1).all()


def test_values_fill_minus_one_to_one(tmp_path):
    pixels = np.arange(256).reshape(16, 16)
    item = one_image(tmp_path, pixels, channels=1)[0]
    assert item["clean_images"].dtype == torch.float32
    assert torch.allclose(item["clean_images"][0], torch.from_numpy(pixels / 127.5 - 1).float(), atol=1e-6)
    assert (item["clean_images"].min(), item["clean_images"].max()) == (-1, 1)
    assert item["class_labels"] == 0


# ------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("size", [(96, 32), (32, 96), (300, 100), (17, 51), (12, 4), (3, 9), (1601, 533)], ids=str)
def test_centre_crop_shows_the_whole_shorter_side_and_the_middle_of_the_longer(tmp_path, size):
    pixels = np.zeros(size[::-1])  # three squares: black, white, black
    third = max(size) // 3
    if size[0] > size[1]:
        pixels[:, third : 2 * third] = 255
    else:
        pixels[third : 2 * third] = 255
    clean_images = one_image(tmp_path, pixels, center_crop=True)[0]["clean_images"]
    assert clean_images.shape == (3, 16, 16)
    assert clean_images.mean() > 0.8
    assert clean_images[:, 4:12, 4:12].min() > 0.8


def test_centre_crop_of_a_square_keeps_its_corners(tmp_path):
    pixels = np.zeros((64, 64))
    pixels[:4, :4] = pixels[-4:, -4:] = 255
    clean_images = one_image(tmp_path, pixels, channels=1)[0]["clean_images"][0]
    assert clean_images[0, 0] > 0.5 and clean_images[-1, -1] > 0.5
    assert clean_images[0, -1] < -0.9 and clean_images[-1, 0] < -0.9


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (8, 8)], ids=str)
def test_random_crop_is_a_part_of_an_image_up_to_a_quarter_larger(tmp_path, size):
    width, height = size
    ramp = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    images = one_image(tmp_path, ramp, channels=1, center_crop=False)
    crops = torch.stack([images[0, draw]["clean_images"][0] for draw in range(150)])
    assert crops.shape == (150, 16, 16)

    row = (crops[:, 8] + 1) / 2 * (width - 1)  # column of the original, per pixel
    step = (row[:, 12] - row[:, 3]) / 9
    short_sides = height / step
    assert 15 <= short_sides.min() <= 17 and 19 <= short_sides.max() <= 21.5
    starts = row[:, 8] / (width - 1)  # where the middle of the crop lies in the original
    reach = 0.5 * 16 / 20 * height / width
    assert starts.min() < reach + 0.06 and starts.max() > 1 - reach - 0.06
    assert crops[:, 8].unique(dim=0).shape[0] > 10
    assert torch.equal(crops[7], images[0, 7]["clean_images"][0])


def test_flip_mirrors_about_every_other_draw(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16))
    images = one_image(tmp_path, pixels, channels=1, random_flip=True)
    original = torch.from_numpy(pixels / 127.5 - 1).float()[None]
    flipped = Counter()
    for draw in range(100):
        clean_images = images[0, draw]["clean_images"]
        if torch.allclose(clean_images, original.flip(-1), atol=1e-6):
            flipped["yes"] += 1
        elif torch.allclose(clean_images, original, atol=1e-6):
            flipped["no"] += 1
    assert flipped.total() == 100
    assert 30 <= flipped["yes"] <= 70


# ----------------------------------------------------------------------------------------------- order and randomness


def test_every_epoch_is_another_permutation():
    items = list(islice(EndlessSampler(10, seed=0), 40))
    assert [draw for _, draw in items] == list(range(40))
    epochs = [tuple(index for index, _ in items[first : first + 10]) for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 4
    assert [index for index, _ in islice(EndlessSampler(10, seed=1), 10)] != list(epochs[0])


@pytest.mark.parametrize("first_draw", [1, 9, 10, 11, 37])
def test_order_can_be_resumed_at_any_draw(first_draw):
    whole = list(islice(EndlessSampler(10, seed=3), 60))
    assert list(islice(EndlessSampler(10, seed=3, first_draw=first_draw), 20)) == whole[first_draw : first_draw + 20]


def test_a_draw_has_the_same_image_timestep_and_noise_in_any_batch(few_digits):
    images = TrainingImages(open_folder(few_digits, "required"), 16, 1, center_crop=False, random_flip=True, seed=5)

    def per_draw(batch_size, first_draw, num_workers=0):
        loader = training_loader(images, batch_size, first_draw, num_workers)
        found = {}
        for batch in islice(loader, 48 // batch_size):
            timesteps, _, noise = draw_timesteps_and_noise(
                batch["draws"], batch["clean_images"], UniformSampler(1000), seed=5
            )
            for row in zip(batch["draws"].tolist(), batch["clean_images"], batch["class_labels"], timesteps, noise):
                found[row[0]] = row[1:]
        return found

    torch.manual_seed(0)
    whole = per_draw(batch_size=8, first_draw=0)
    torch.manual_seed(1)
    for other in (per_draw(batch_size=3, first_draw=17), per_draw(batch_size=16, first_draw=0, num_workers=2)):
        common = whole.keys() & other.keys()
        assert len(common) >= 31
        for draw in common:
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(whole[draw], other[draw])), draw


def test_timesteps_are_uniform_and_noise_is_standard_normal():
    like = torch.empty(2000, 1, 8, 8)
    timesteps, _, noise = draw_timesteps_and_noise(range(2000), like, UniformSampler(10), seed=0)
    assert timesteps.dtype == torch.int64
    assert timesteps.bincount(minlength=10).float().sub(200).abs().max() < 60
    assert noise.shape == like.shape
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert len(noise.flatten(1).unique(dim=0)) == 2000
    assert not torch.equal(noise, draw_timesteps_and_noise(range(2000), like, UniformSampler(10), seed=1)[2])
