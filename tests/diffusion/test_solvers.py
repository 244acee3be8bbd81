"""The timesteps of schedulers that step on guided noise, for any number of steps, and which those are."""

import logging

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    SASolverScheduler,
)

from diffusers_cg import DIGITS, ClassifierGuidedDDIMPipeline
from diffusers_cg.diffusion import resolve_timesteps, to_ddim_scheduler, training_scheduler
from diffusers_cg.diffusion.schedulers import SOLVERS
from diffusers_cg.diffusion.sigma_space import IN_SIGMA
from diffusers_cg.errors import InputError


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)  # the single-step solver warns of every odd number


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)
def test_every_number_of_steps_starts_from_noise(solver, spacing):
    config = training_scheduler().config
    for number in [*range(4, 40), *range(41, 1000, 149), 223, 501, 600, 999, 1000]:  # PNDM takes no fewer than 4
        timesteps = resolve_timesteps(solver.from_config(config, timestep_spacing=spacing), number, None)
        assert len(timesteps) >= number
        assert timesteps == sorted(timesteps, reverse=True) and timesteps[-1] >= 0
        assert 1000 - max(100, 2001 / number) <= timesteps[0] + 1 <= 1000, number


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("solver", IN_SIGMA[:-1], ids=lambda solver: solver.__name__)
def test_so_it_does_in_sigma(solver, spacing):
    config = training_scheduler().config
    for number in (1, 7, 150):
        timesteps = resolve_timesteps(solver.from_config(config, timestep_spacing=spacing), number, None)
        assert 1000 - max(100, 2001 / max(number, 4)) <= timesteps[0] + 1 <= 1000.5, number


def test_steps_that_have_no_timestep_are_refused():
    with pytest.raises(InputError, match="so few steps: take more"):
        resolve_timesteps(KDPM2AncestralDiscreteScheduler.from_config(training_scheduler().config), 2, None)


@pytest.mark.parametrize("solver", [DDIMScheduler, DPMSolverMultistepScheduler, *IN_SIGMA[:-1]])
def test_one_step_starts_from_noise(solver):
    scheduler = solver.from_config(training_scheduler().config, timestep_spacing="leading")
    assert resolve_timesteps(scheduler, 1, None)[0] > 980


@pytest.mark.parametrize(
    ("scheduler", "number"),
    [
        (DDIMScheduler(timestep_spacing="trailing"), 61),
        (DDIMScheduler(steps_offset=1), 1000),
        (DDPMScheduler(timestep_spacing="leading"), 600),
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), 25),
    ],
    ids=["trailing", "offset", "leading", "karras"],
)
def test_timesteps_that_the_scheduler_chooses_are_of_the_training(scheduler, number):
    timesteps = resolve_timesteps(scheduler, number, None)
    assert len(timesteps) == number and 980 < timesteps[0] <= 999 and timesteps[-1] >= 0


@pytest.fixture(scope="module")
def ddim_digits():
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(DIGITS, solver=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SPACINGS = [(solver, spacing) for solver in SOLVERS[1:-1] for spacing in ("timestep", "karras")]


@pytest.mark.parametrize(("solver", "spacing"), [*SPACINGS, (SOLVERS[1], "exponential")])
def test_levels_spaced_on_the_cosine_schedule_start_where_there_is_signal(solver, spacing, ddim_digits):
    words = {} if spacing == "timestep" else {f"use_{spacing}_sigmas": True}
    pipe = ClassifierGuidedDDIMPipeline(
        ddim_digits.unet, solver.from_config(ddim_digits.scheduler.config, **words), ddim_digits.classifier
    )
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(10)
    generator = torch.Generator().manual_seed(0)
    images = pipe(
        labels, num_inference_steps=7, classifier_scale=1.0, generator=generator, output_type="latent"
    ).images
    guessed = pipe.classifier(images, torch.zeros(10, dtype=torch.int64)).logits.argmax(dim=1)
    assert (guessed == labels).sum() >= 9 and images.abs().quantile(0.9) <= 1.1


@pytest.mark.parametrize("kind", [LCMScheduler, SASolverScheduler])
def test_schedulers_that_would_draw_something_else_are_refused_by_name(kind):
    with pytest.raises(InputError, match=kind.__name__):
        to_ddim_scheduler(kind())
