"""Networks that say the noise, the clean image or v, with or without a variance, of any T: all draw, invert and measure alike."""

import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from tiny import seeded

from diffusers_cg import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    GaussianDiffusion,
)
from diffusers_cg.diffusion import bits_per_dimension, training_losses, training_scheduler
from diffusers_cg.errors import InputError


DDPM, DDIM = ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
IMAGES = tiny.images().clamp(-1, 1)


def said_otherwise(unet, prediction_type):
    """`unet`, which says the noise, made to say the same in another way."""
    abar = training_scheduler().alphas_cumprod

    def translate(module, inputs, output):
        sample, timestep = inputs[:2]
        abar_t = abar[timestep].reshape(-1, 1, 1, 1)
        noise, rest = output.sample.split([3, output.sample.shape[1] - 3], dim=1)
        original = (sample - (1 - abar_t).sqrt() * noise) / abar_t.sqrt()
        v = abar_t.sqrt() * noise - (1 - abar_t).sqrt() * original
        said = {"epsilon": noise, "sample": original, "v_prediction": v}[prediction_type]
        return type(output)(sample=torch.cat([said, rest], dim=1))

    unet.register_forward_hook(translate)
    return unet


def pipeline(kind, prediction_type, learned=True, solver=None, **options):
    variance_type = "learned_range" if learned else "fixed_large"
    scheduler = training_scheduler(prediction_type=prediction_type, variance_type=variance_type)
    if solver is not None:
        scheduler = solver.from_config(scheduler.config)
    pipe = tiny.pipeline(kind, scheduler=scheduler, out_channels=6 if learned else 3, **options)
    said_otherwise(pipe.unet, prediction_type)
    return pipe


def draw(pipe, **options):
    options = {"num_inference_steps": 4, "generator": seeded(), "output_type": "latent", **options}
    return pipe(class_labels=[0, 3], classifier_scale=2.0, **options).images


@pytest.mark.parametrize("learned", [True, False], ids=["learned variance", "fixed variance"])
@pytest.mark.parametrize(
    ("kind", "solver"),
    [(DDPM, None), (DDIM, None), (DDIM, DPMSolverMultistepScheduler), (DDIM, PNDMScheduler)],
    ids=["ddpm", "ddim", "dpm-solver", "pndm"],
)
def test_all_draw_the_same_images(kind, solver, learned):
    expected, *others = (draw(pipeline(kind, name, learned, solver)) for name in PREDICTION_TYPES)
    for images in others:
        assert torch.allclose(images, expected, atol=1e-3)


def test_all_upsample_alike():
    expected, *others = (
        draw(
            pipeline(ClassifierGuidedSuperResolutionPipeline, name, low_res_size=4),
            image=torch.full((2, 3, 4, 4), 0.5),
        )
        for name in PREDICTION_TYPES
    )
    for images in others:
        assert torch.allclose(images, expected, atol=1e-3)


def test_all_invert_alike():
    expected, *others = (
        pipeline(DDIM, name).invert(IMAGES / 2 + 0.5, num_inference_steps=4) for name in PREDICTION_TYPES
    )
    for latents in others:
        assert torch.allclose(latents, expected, atol=1e-3)


@torch.no_grad()
def test_all_measure_alike():
    measured = []
    for name in PREDICTION_TYPES:
        unet = said_otherwise(tiny.unet(), name)
        diffusion = GaussianDiffusion.from_scheduler(training_scheduler(prediction_type=name), [900, 500, 100, 0])
        measured.append(
            bits_per_dimension(diffusion, lambda x, t, unet=unet: unet(x, t).sample, IMAGES, seeded()).total
        )
    for total in measured[1:]:
        assert torch.allclose(total, measured[0], rtol=1e-3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_losses_vanish_where_the_network_says_what_it_should(prediction_type):
    diffusion = GaussianDiffusion.from_scheduler(training_scheduler(prediction_type=prediction_type))
    timesteps, noise = torch.tensor([10, 700]), tiny.images(seed=1)
    sample = diffusion.q_sample(IMAGES, noise, timesteps)
    target = diffusion.target(IMAGES, noise, timesteps)
    variance = torch.full_like(target, -1.0).requires_grad_(True)  # the posterior's
    said = target.clone().requires_grad_(True)
    losses = training_losses(diffusion, torch.cat([said, variance], dim=1), IMAGES, noise, sample, timesteps)
    assert torch.allclose(losses.loss, torch.zeros(2), atol=1e-4)
    off = training_losses(diffusion, torch.cat([said + 0.5, variance], dim=1), IMAGES, noise, sample, timesteps)
    assert torch.allclose(off.mse, torch.full((2,), 0.25))
    of_said, of_variance = torch.autograd.grad(off.vb.sum(), [said, variance])
    assert not of_said.any() and of_variance.any()


# --------------------------------------------------------------------------------------------- what a network states

STATED = {"num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


@pytest.mark.parametrize("word", STATED)
@pytest.mark.parametrize("kind", [DDPM, DDIM], ids=["ddpm", "ddim"])
def test_a_scheduler_that_contradicts_the_unet_is_refused(kind, word):
    unet = tiny.fresh_unet(**STATED)
    pipe = kind(unet, training_scheduler(**STATED))
    contradicting = training_scheduler(**{name: value for name, value in STATED.items() if name != word})
    with pytest.raises(InputError, match=f"The unet was trained with {word}="):
        kind(unet, contradicting)
    pipe.scheduler = contradicting
    tiny.check_refused(pipe, {}, InputError, f"The unet was trained with {word}=")


def test_a_scheduler_that_contradicts_the_classifier_is_refused():
    classifier = tiny.fresh_classifier(num_train_timesteps=500)
    with pytest.raises(InputError, match="The classifier was trained with num_train_timesteps=500"):
        DDIM(tiny.fresh_unet(), training_scheduler(), classifier)
    DDIM(tiny.fresh_unet(), training_scheduler(500), classifier)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_scheduler_whose_betas_are_not_scaled_as_in_training_is_refused(scaled):
    words = {"num_train_timesteps": 500, "beta_schedule": "linear", "scale_betas": scaled}
    other = training_scheduler(**{**words, "scale_betas": not scaled})
    with pytest.raises(InputError, match="The unet was trained with beta_start="):
        DDIM(tiny.fresh_unet(**words), other)
    with pytest.raises(InputError, match="The classifier was trained with beta_start="):
        DDIM(tiny.fresh_unet(), other, tiny.fresh_classifier(**words))
    DDIM(tiny.fresh_unet(**words), training_scheduler(**words), tiny.fresh_classifier(**words))


def test_timesteps_beyond_those_of_training_are_refused():
    pipe = DDIM(tiny.fresh_unet(**STATED), training_scheduler(**STATED))
    tiny.check_refused(
        pipe, {"timesteps": [500, 0]}, InputError, "`timesteps` must decrease strictly from at most 499"
    )


def test_unet_and_classifier_see_rescaled_times():
    words = {"num_train_timesteps": 4000, "rescale_timesteps": True}
    pipe = tiny.pipeline(DDIM, scheduler=training_scheduler(4000))
    pipe.register_modules(unet=tiny.unet(**words), classifier=tiny.classifier(**words))
    seen = []
    for model in (pipe.unet, pipe.classifier):
        model.time_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].item()))
    draw(pipe, num_inference_steps=None, timesteps=[3999, 1001])
    assert seen == [999.75, 999.75, 250.25, 250.25]
    with pytest.raises(InputError, match="`rescale_timesteps` needs `num_train_timesteps`"):
        tiny.fresh_unet(rescale_timesteps=True)


@pytest.mark.parametrize("num_train_timesteps", [10, 100, 500, 1000, 4000])
def test_images_end_as_noise_for_any_number_of_timesteps(num_train_timesteps):
    abar = training_scheduler(num_train_timesteps).alphas_cumprod
    assert 0 < abar[-1] < 1e-4 and abar[0] > 0.9 * (num_train_timesteps > 20)


# ----------------------------------------------------------------------------------------------------------- other sizes


@pytest.mark.parametrize("kind", [DDPM, DDIM], ids=["ddpm", "ddim"])
def test_images_of_other_sizes(kind):
    pipe = tiny.pipeline(kind, scheduler=training_scheduler())
    pipe.classifier = tiny.classifier(pool="adaptive")
    assert draw(pipe, height=16, width=6).shape == (2, 3, 16, 6)
    assert draw(pipe, width=12).shape == (2, 3, 8, 12)
    assert torch.equal(draw(pipe, height=8, width=8), draw(pipe))
    assert draw(pipe, height=16, width=6, latents=tiny.images(size=(16, 6))).shape == (2, 3, 16, 6)
    if kind is DDIM:
        assert pipe.invert(torch.rand(1, 3, 16, 6), num_inference_steps=2, height=16, width=6).shape == (1, 3, 16, 6)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ({"height": 7}, "positive multiples of 2"),
        ({"width": 0}, "positive multiples of 2"),
        ({"height": 16.0}, "positive multiples of 2"),
        ({"height": 16}, "The classifier pools by attention and reads images of"),
    ],
)
def test_sizes_that_networks_cannot_take(size, said):
    pipe = tiny.pipeline(DDIM, scheduler=training_scheduler())
    tiny.check_refused(pipe, {"class_labels": 0, **size}, InputError, said)
    with pytest.raises(InputError, match=said):
        pipe.check_call(class_labels=0, **size)


def test_a_classifier_that_reads_one_size_may_be_left_out():
    pipe = tiny.pipeline(DDIM, scheduler=DDIMScheduler())
    images = pipe(num_inference_steps=2, classifier_scale=0, height=16, output_type="np").images
    assert images.shape == (1, 16, 8, 3)
