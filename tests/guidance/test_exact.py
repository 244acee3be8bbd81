"""Guided samples of a mixture of Gaussians, whose scores and posteriors are known, against the distribution they should have."""

import logging

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from exact import (
    MEANS,
    PROCESS,
    SPREAD,
    ExactClassifier,
    distance_to,
    distance_to_class,
    draw_exactly,
    levels,
)

from diffusers_cg import ClassifierGuidance, EDMHeunScheduler
from diffusers_cg.guidance import EnergyGuidance, Guidance, TrainingFreeGuidance, classifier_gradient


BOUND = 0.06  # 0.05 is the noise of 1,500 samples, the rest the error of the steps
CONFIG = PROCESS.config
SAMPLERS = {
    "ddpm": (PROCESS, 100),
    "ddim": (DDIMScheduler.from_config(CONFIG), 60),
    "multistep": (DPMSolverMultistepScheduler.from_config(CONFIG, use_karras_sigmas=True), 20),
    "euler": (EulerDiscreteScheduler.from_config(CONFIG, use_karras_sigmas=True), 40),
    "heun": (HeunDiscreteScheduler.from_config(CONFIG, use_karras_sigmas=True), 25),
    "ancestral": (EulerAncestralDiscreteScheduler.from_config(CONFIG), 100),
    "edm": (EDMHeunScheduler(clip_sample=False), 20),
    "edm churn": (EDMHeunScheduler(clip_sample=False, s_churn=10), 32),
    "edm first order": (EDMHeunScheduler(clip_sample=False, s_churn=10, solver_order=1), 64),
}
EVERY_SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)


def guided(guidance, sampler, **options):
    scheduler, steps = SAMPLERS[sampler]
    return draw_exactly(guidance, scheduler, steps, **options)[0]


# --------------------------------------------------------------------------------------------------- noisy classifiers


@EVERY_SAMPLER
def test_the_noisy_classifier_at_scale_1_draws_the_class(sampler):
    assert distance_to_class(guided(ClassifierGuidance(ExactClassifier()), sampler)) < BOUND


class Wrong(Guidance):
    """Classifier guidance with a mistake that is easily made."""

    def __init__(self, mistake):
        self.mistake = mistake
        self.classifier = ExactClassifier()

    def __call__(self, step):
        sample, timestep, factor = step.sample, step.timestep, 1.0
        if self.mistake == "noise level for noise":
            factor = (step.sigma**2 + 1) ** 0.5
        if self.mistake == "timestep of the next step":
            timestep = step.timesteps[min(step.index + 5, step.num_steps - 1)]
        if self.mistake == "noise for variance":
            factor = (1 - step.alpha_prod_t).sqrt() / step.variance.sqrt().clamp(min=1e-3)
        if self.mistake == "variance for noise":
            factor = step.variance / (1 - step.alpha_prod_t).sqrt()
        return factor * classifier_gradient(self.classifier, sample, timestep, step.class_labels)


@pytest.mark.parametrize(
    ("mistake", "sampler"),
    [
        ("noise for variance", "ddpm"),
        ("variance for noise", "ddim"),
        ("noise level for noise", "euler"),
        ("noise level for noise", "edm"),
        ("timestep of the next step", "multistep"),
    ],
)
def test_the_bound_fails_a_wrong_rule(mistake, sampler):
    assert distance_to_class(guided(Wrong(mistake), sampler)) > 2 * BOUND


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_another_scale_draws_something_else(sampler):
    for scale in (0.25, 4.0):
        assert distance_to_class(guided(scale * ClassifierGuidance(ExactClassifier()), sampler)) > 1.5 * BOUND


def test_the_gradient_at_the_mean_draws_the_class():
    """Algorithm 1 as section 4.1 derives it: log p(y | x_{t-1}) at the mean of x_{t-1}."""
    assert distance_to_class(guided(ClassifierGuidance(ExactClassifier(), at_mean=True), "ddpm")) < BOUND


# -------------------------------------------------------------------------------------------------------- clean images

READING, ERROR = 0.9, 0.25


def reading_energy(clean_images, timestep, knows_x0=False):
    """-log p(y | x_t), y = READING a measurement of the last pixel, N(x_0, ERROR^2): of what is expected of x_0 at x_t.

    That pixel is N(0.4, SPREAD^2) in either class, so that given x_t it is a Gaussian about the predicted clean image.
    """
    abar, variance = levels(timestep)
    uncertainty = (not knows_x0) * SPREAD**2 * (1 - abar) / variance
    return (clean_images[:, 0, 1, 1] - READING).square() / (2 * (ERROR**2 + uncertainty)).reshape(-1)


def distance_to_reading(images):
    """From p(x | y) in the last pixel, a product of Gaussians."""
    precision = SPREAD**-2 + ERROR**-2
    mean = (MEANS[0, 0, 1, 1] * SPREAD**-2 + READING * ERROR**-2) / precision
    return distance_to(images[..., 1:, 1:], mean, precision**-0.5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "multistep", "heun", "ancestral", "edm churn"])
def test_clean_image_guidance_at_scale_1_draws_what_was_measured(sampler):
    images = guided(EnergyGuidance(reading_energy), sampler)
    assert distance_to_reading(images) < BOUND
    assert abs((images[:, 0, 0, 0] > 0).float().mean() - 0.5) < 0.05, "the other pixels are those of either class"


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "multistep", "edm churn"])
def test_the_bound_fails_wrong_clean_image_guidance(sampler):
    """Where the predicted image is taken for the image itself, or the unet for the identity."""
    certain = EnergyGuidance(lambda clean_images, t: reading_energy(clean_images, t, knows_x0=True))
    assert distance_to_reading(guided(certain, sampler)) > 1.5 * BOUND
    assert distance_to_reading(guided(EnergyGuidance(reading_energy, through_unet=False), sampler)) > 1.5 * BOUND


def test_training_free_guidance_pulls_towards_what_was_measured():
    free = TrainingFreeGuidance(
        lambda clean_images: -reading_energy(clean_images, 0), rho=0.02, mu=0.002, num_recurrences=2
    )
    images, evaluations = draw_exactly(free, DDIMScheduler.from_config(CONFIG), 20)
    assert images[:, 0, 1, 1].mean() > 0.6
    assert evaluations == {"unet": 40, "classifier": 0, "backward": 80}
