"""Bits per dimension of batches of images under any callable, into a folder."""

import json
import os

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDPMScheduler
from PIL import Image

from diffusers_cg import GaussianDiffusion
from diffusers_cg.diffusion import bits_per_dimension, seeded_generator
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation.bits_per_dimension import bits_per_dimension_to_folder


DIFFUSION = GaussianDiffusion.from_scheduler(
    DDPMScheduler(num_train_timesteps=6, variance_type="learned_range", timestep_spacing="linspace")
)
IMAGES = torch.randint(0, 256, (5, 3, 4, 4), generator=tiny.seeded()).float() / 127.5 - 1
LABELS = torch.arange(5)
NAMES = [f"image {number}" for number in range(5)]


@pytest.fixture(scope="module")
def unet():
    return tiny.unet(num_class_embeds=tiny.NUM_CLASSES, sample_size=4, attention_resolutions=(2,))


def load(numbers):
    return IMAGES[list(numbers)], LABELS[list(numbers)]


@pytest.mark.parametrize("size", [2, 5, "auto"])
def test_every_image_by_its_seed_and_place(unet, tmp_path, size):
    def model(sample, timestep, class_labels):
        return unet(sample, timestep, class_labels=class_labels).sample

    words = {"model_name": "m", "data_name": "d", "batch_size": size}
    means = bits_per_dimension_to_folder(
        tmp_path / "out", DIFFUSION, model, load, NAMES, clip_range=0.9, seed=3, **words
    )
    generators = [seeded_generator(3, number) for number in range(5)]
    expected = bits_per_dimension(DIFFUSION, lambda x, t: model(x, t, LABELS), IMAGES, generators, clip_range=0.9)
    with np.load(tmp_path / "out" / "terms.npz") as terms:
        assert terms["files"].tolist() == NAMES and terms["timesteps"].tolist() == list(range(5, -1, -1))
        for name in ("vb", "mse", "xstart_mse", "prior", "total"):
            np.testing.assert_allclose(terms[name], getattr(expected, name).numpy(), rtol=1e-4, err_msg=name)
    assert json.loads((tmp_path / "out" / "nll.json").read_text()) == {
        "bits_per_dimension": pytest.approx(expected.total.mean().item(), rel=1e-4),
        "standard_error": pytest.approx(expected.total.std().item() / 5**0.5, rel=1e-4),
        "prior": pytest.approx(expected.prior.mean().item(), rel=1e-4),
        **{"num_images": 5, "num_timesteps": 6, "seed": 3, "model": "m", "data": "d", "image_range": None},
    }
    assert (means.num_images, means.model) == (5, "m")
    assert Image.open(tmp_path / "out" / "nll.png").width > 600


def test_a_model_without_labels_and_one_image(tmp_path):
    def model(sample, timestep, class_labels):
        assert class_labels is None
        return torch.zeros(len(sample), 6, 4, 4)

    means = bits_per_dimension_to_folder(tmp_path / "out", DIFFUSION, model, lambda _: (IMAGES[:1], None), NAMES[:1])
    assert (means.standard_error, means.num_images) == (0.0, 1)


@pytest.mark.parametrize(
    ("names", "seed", "said"),
    [([], 0, "There are no images to measure."), (NAMES, -1, "`seed` must be at least 0, got -1.")],
)
def test_refused_before_anything_is_computed(tmp_path, names, seed, said):
    with pytest.raises(InputError, match=said):
        bits_per_dimension_to_folder(tmp_path / "out", DIFFUSION, None, load, names, seed=seed)
    assert os.listdir(tmp_path) == []


def test_only_an_earlier_one_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match=r"This folder has no nll.json and would be replaced whole"):
        bits_per_dimension_to_folder(tmp_path, DIFFUSION, None, load, NAMES)
    assert os.listdir(tmp_path) == ["thesis.tex"]
