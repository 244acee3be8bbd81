"""Traces of JPEG in pixels: found in photographs that went through it, and nowhere else."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from tiny_extractor import Thumbnails

from diffusers_cg.evaluation import evaluate
from diffusers_cg.evaluation.jpeg_traces import has_jpeg_traces


RESAMPLING = ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")
DIGITS = (load_digits().images[:64] / 16 * 255).astype(np.uint8)
# decoded from JPEG: downscaling removes its grid
PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]


def photos(count, size, seed=0):
    rng, images = np.random.default_rng(seed), []
    for number in range(count):
        photo = PHOTOS[number % len(PHOTOS)]
        scale = rng.uniform(0.62, 0.7) if size > 64 else rng.uniform(0.36, 0.4)
        photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
        left, top = (int(rng.integers(side - size + 1)) for side in photo.size)
        images.append(np.asarray(photo.crop((left, top, left + size, top + size))))
    return np.stack(images)


def resized(images, size, resampling):
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), resampling)) for image in images])


def as_jpeg(images, quality, **options):
    decoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, **options)
        decoded.append(np.asarray(Image.open(file)))
    return np.stack(decoded)


@pytest.mark.parametrize(("count", "size"), [(16, 64), (4, 256)])
def test_photographs_from_jpeg(count, size):
    images = photos(count, size)
    assert not has_jpeg_traces(images)
    for quality in (25, 50, 75, 95):
        assert has_jpeg_traces(as_jpeg(images, quality)), quality
    assert has_jpeg_traces(as_jpeg(images, 90, subsampling=0))


def test_gray_photographs():
    gray = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in photos(16, 64)])
    assert not has_jpeg_traces(gray[..., None])
    assert has_jpeg_traces(as_jpeg(gray, 90)[..., None])


@pytest.mark.parametrize("size", [16, 24, 32, 64, 128])
@pytest.mark.parametrize("resampling", RESAMPLING)
def test_upscaled_digits(size, resampling):
    assert not has_jpeg_traces(resized(DIGITS, size, Image.Resampling[resampling])[..., None])


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("resampling", RESAMPLING)
def test_upscaled_photographs(size, resampling):
    small = resized(photos(32, 64), size, Image.Resampling.BOX)
    assert not has_jpeg_traces(resized(small, 64, Image.Resampling[resampling]))


def gradients(levels):
    down, right = np.mgrid[:64, :64] / 63
    planes = np.stack([angle * down + (1 - angle) * right for angle in np.linspace(0, 1, 64)])
    return (np.floor(planes * levels) * (255 // levels)).astype(np.uint8)[..., None]


def tiles(number, count=64):
    rng = np.random.default_rng(0)
    pieces, places = rng.integers(0, 256, (number, 8, 8)), rng.integers(number, size=(count, 8, 8))
    return pieces[places].transpose(0, 1, 3, 2, 4).reshape(count, 64, 64, 1).astype(np.uint8)


CLEAN = {
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8),
    "noise of 4 levels": lambda: np.random.default_rng(0).integers(0, 4, (64, 64, 64, 1), dtype=np.uint8) * 85,
    "noise of 2 levels": lambda: np.random.default_rng(0).integers(0, 2, (64, 64, 64, 1), dtype=np.uint8) * 255,
    "gradients": lambda: gradients(255),
    "gradients of 8 levels": lambda: gradients(8),
    "4 tiles": lambda: tiles(4),
    "100 tiles": lambda: tiles(100),
    "constant": lambda: np.full((8, 64, 64, 3), 77, dtype=np.uint8),
    "8 colors": lambda: np.stack(
        [np.asarray(Image.fromarray(image).quantize(8).convert("RGB")) for image in photos(32, 64)]
    ),
    "6 bits": lambda: photos(32, 64) // 4 * 4,
    "JPEG, resized": lambda: resized(as_jpeg(photos(16, 128), 75), 64, Image.Resampling.BICUBIC),
    "too small for two grids": lambda: as_jpeg(photos(64, 64), 75)[:, :8, :8],
}


@pytest.mark.parametrize("name", CLEAN)
def test_other_images(name):
    assert not has_jpeg_traces(CLEAN[name]())


def test_warning_of_an_evaluation():
    clean, lossy = photos(16, 64), as_jpeg(photos(16, 64), 90)

    def warned(samples, reference):
        warnings = evaluate(samples, reference, Thumbnails()).warnings
        return [warning.split(" bear")[0] for warning in warnings if "JPEG" in warning]

    assert warned(clean, clean) == []
    assert warned(lossy, clean) == ["Pixels of the samples"]
    assert warned(clean, lossy) == ["Pixels of the reference"]
