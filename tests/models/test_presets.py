"""The paper's table: a row for each released file, and what OpenAI's flags and the paper say of it."""

import pytest
from reference import MANIFESTS

from diffusers_cg.models.openai_recognition import find_preset, recognise
from diffusers_cg.models.presets import PRESETS


def test_there_is_a_manifest_for_every_released_file():
    assert len(MANIFESTS) == 15
    assert MANIFESTS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", [name for name, manifest in MANIFESTS.items() if manifest["kind"] != "classifier"])
def test_schedule_and_dropout_of_a_released_file(name):
    manifest = MANIFESTS[name]
    shapes = {key: tuple(shape) for key, shape in manifest["shapes"].items()}
    released = find_preset(recognise(shapes), name)
    assert released is PRESETS[name]
    assert released.beta_schedule == {"cosine": "squaredcos_cap_v2", "linear": "linear"}[manifest["noise_schedule"]]
    assert released.architecture["dropout"] == manifest["flags"].get("dropout", 0.0)


def test_five_files_of_the_same_shapes_are_told_apart_by_their_name_alone():
    shapes = {key: tuple(shape) for key, shape in MANIFESTS["lsun_cat"]["shapes"].items()}
    assert find_preset(recognise(shapes)) is PRESETS["256x256_diffusion_uncond"]
    assert find_preset(recognise(shapes), "lsun_cat").ddpm_num_inference_steps == 1000


@pytest.mark.parametrize(
    ("name", "schedule", "ddpm_steps", "ddpm_scale", "ddim_scale"),
    [
        ("64x64_diffusion", "squaredcos_cap_v2", 250, 1.0, 1.0),
        ("128x128_diffusion", "linear", 250, 0.5, 1.25),
        ("256x256_diffusion", "linear", 250, 1.0, 2.5),
        ("256x256_diffusion_uncond", "linear", 250, 10.0, 10.0),
        ("512x512_diffusion", "linear", 250, 4.0, 9.0),
        ("lsun_cat", "linear", 1000, 1.0, 1.0),
    ],
)
def test_the_paper_s_defaults(name, schedule, ddpm_steps, ddpm_scale, ddim_scale):
    released = PRESETS[name]
    assert released.beta_schedule == schedule
    assert released.ddpm_num_inference_steps == ddpm_steps
    assert (released.ddpm_classifier_scale, released.ddim_classifier_scale) == (ddpm_scale, ddim_scale)
