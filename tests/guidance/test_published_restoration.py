"""Restoration against numbers that the methods' repositories computed; see `tests/data/published_restoration.md`."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from reference import DATA, reference_unet
from safetensors.torch import load_file

from diffusers_cg import ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.guidance import DDNMGuidance, DiffPIRGuidance, DPSGuidance
from diffusers_cg.restoration import Blur, BoxDownsampling, Grayscale, Mask


PUBLISHED = json.loads((DATA / "published_restoration.json").read_text())
CASES, NUMBERS = PUBLISHED["cases"], load_file(DATA / "published_restoration.safetensors")
OPERATORS = {
    "mask": Mask(NUMBERS["mask"]),
    "box": BoxDownsampling(4),
    "gray": Grayscale((0.3333, 0.3334, 0.3333)),
    "blur": Blur(NUMBERS["kernel"]),
}


@pytest.fixture(scope="module")
def unet():
    return reference_unet(PUBLISHED["unet"])


def guidance_of(name, case):
    measurement, operator = NUMBERS[f"{name}.measurement"], OPERATORS[case["operator"]]
    if case["method"] == "dps":
        return DPSGuidance(operator, measurement, scale=case["scale"])
    if case["method"] == "ddnm":
        return DDNMGuidance(operator, measurement, case["noise_std"], case["eta"])
    return DiffPIRGuidance(operator, measurement, case["noise_std"], case["zeta"], prior_weight=case["lambda_"] / 4)


def samples_of(name, unet, guidance=None, start_from=None):
    """The samples after each step of a case, (steps, B, 3, 16, 16), with the draws of its repository; each step starts from the
    one before, or from those given."""
    case, expected = CASES[name], NUMBERS[f"{name}.sample"]
    generator, drawn = torch.Generator().manual_seed(case["seed"]), []
    latents = torch.randn(expected.shape[1:], generator=generator)
    if case["method"] == "dps":
        pipe = ClassifierGuidedDDPMPipeline(unet, DDPMScheduler(variance_type="learned_range"))
        before, after = [], [NUMBERS[f"{name}.measurement"].shape]  # a noisy measurement, which DPS does not use
    else:
        pipe = ClassifierGuidedDDIMPipeline(unet, DDIMScheduler(clip_sample=case["clip"]))
        before, after = (
            [latents.shape] * (2 if case["method"] == "diffpir" else 0),
            [],
        )  # an ancestral step's, and eta's
    pipe.set_progress_bar_config(disable=True)

    def draw(shapes):
        for shape in shapes:
            torch.randn(shape, generator=generator)

    def on_step_end(pipe, index, timestep, tensors):
        drawn.append(tensors["latents"])
        draw(after + before)
        return {} if start_from is None else {"latents": start_from[index]}

    draw(before)
    pipe(
        batch_size=len(latents), timesteps=case["timesteps"], guidance=guidance or guidance_of(name, case), latents=latents,
        generator=generator, classifier_scale=0, output_type="latent", callback_on_step_end=on_step_end,
    )  # fmt: skip
    return torch.stack(drawn)


def largest_difference(actual, expected):
    """As a part of the largest value of each step."""
    return (
        ((actual - expected).abs().amax(dim=(1, 2, 3, 4)) / expected.abs().amax(dim=(1, 2, 3, 4)).clamp(min=1))
        .max()
        .item()
    )


ROTATED = ("ddnm.box_noisy", "ddnm.gray_noisy")  # whose code turns z and the network's noise by V, and not by V V^T


@pytest.mark.parametrize("name", [name for name in CASES if name not in ROTATED])
def test_whole_runs(unet, name):
    """DiffPIR's but for the last step, in which its code leaves x_1 as it is."""
    expected = NUMBERS[f"{name}.sample"]
    assert largest_difference(samples_of(name, unet)[: len(expected)], expected) < 1e-4


@pytest.mark.parametrize("name", ROTATED)
def test_the_clean_images_of_ddnm_plus(unet, name):
    case, corrections = CASES[name], []

    class Recorder(DDNMGuidance):
        def replace(self, step):
            corrections.append(super().replace(step) - step.pred_original_sample)
            return step.pred_original_sample + corrections[-1]

    guidance = Recorder(OPERATORS[case["operator"]], NUMBERS[f"{name}.measurement"], case["noise_std"], case["eta"])
    samples_of(name, unet, guidance, start_from=NUMBERS[f"{name}.sample"])
    assert largest_difference(torch.stack(corrections), NUMBERS[f"{name}.correction"]) < 1e-4


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("dps")])
def test_the_gradients_of_dps(unet, name):
    case, shifts = CASES[name], []

    class Recorder(DPSGuidance):
        def shift(self, step):
            shifts.append(super().shift(step))
            return shifts[-1]

    guidance = Recorder(OPERATORS[case["operator"]], NUMBERS[f"{name}.measurement"], scale=case["scale"])
    samples_of(name, unet, guidance)
    assert largest_difference(torch.stack(shifts), -case["scale"] * NUMBERS[f"{name}.gradient"]) < 1e-4
