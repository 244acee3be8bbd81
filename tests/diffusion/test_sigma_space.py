"""Schedulers in sigma space, x_0 + sigma noise, on networks of kept variance: levels, steps, randomness, files."""

import math

import exact
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from exact import ABARS, MEANS, PROCESS, SPREAD, ExactUNet, draw_exactly
from tiny import seeded

from diffusers_cg import ClassifierGuidedDDIMPipeline, EDMHeunScheduler
from diffusers_cg.diffusion import GaussianDiffusion, resolve_timesteps
from diffusers_cg.diffusion.sigma_space import IN_SIGMA, sigmas_of
from diffusers_cg.errors import InputError


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy in diffusers
CONFIG = PROCESS.config
EVERY_KIND = pytest.mark.parametrize("kind", IN_SIGMA, ids=lambda kind: kind.__name__)
SIGMAS = (1 / ABARS.double() - 1).sqrt()


@EVERY_KIND
def test_networks_are_asked_at_the_timestep_of_each_noise_level(kind):
    """By its logarithm, from the largest level down; the last one is that of the first timestep, if not more."""
    scheduler = kind.from_config(CONFIG)
    timesteps = resolve_timesteps(scheduler, 12, None)
    diffusion = GaussianDiffusion.from_scheduler(scheduler)
    levels = 1 / diffusion.coefficient("abar", torch.tensor(timesteps), torch.empty(0)).double() - 1
    assert torch.allclose(levels.sqrt(), sigmas_of(scheduler, diffusion), rtol=1e-3)
    assert timesteps[0] > 900 and timesteps[-1] < 50
    assert len(timesteps) == (2 * 12 - 1 if scheduler.order == 2 else 12)


@EVERY_KIND
def test_all_randomness_is_the_generators(kind):
    scheduler = kind.from_config(CONFIG, **({"s_churn": 5.0} if kind is EDMHeunScheduler else {}))
    first, again, other = (draw_exactly(None, scheduler, 5, number=4, generator=seeded(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@EVERY_KIND
def test_samples_that_callbacks_see_keep_variance(kind):
    """Of unit variance at first, whatever the scheduler's own."""
    spreads = []

    def on_step_end(pipe, index, timestep, tensors):
        spreads.append(tensors["latents"].std().item())
        return {}

    draw_exactly(None, kind.from_config(CONFIG), 12, number=100, callback_on_step_end=on_step_end)
    assert 0.8 < spreads[0] < 1.2 and all(0.3 < spread < 1.3 for spread in spreads)


@EVERY_KIND
def test_timesteps_of_ones_own_are_refused(kind):
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline, scheduler=kind())
    call = {"class_labels": [0, 3], "timesteps": [900, 500]}
    tiny.check_refused(pipe, call, InputError, f"{kind.__name__} takes noise levels in place of `timesteps`")


def test_a_scheduler_without_a_training_process_is_refused_by_name():
    with pytest.raises(InputError, match="EDMEulerScheduler"):
        ClassifierGuidedDDIMPipeline(ExactUNet(), EDMEulerScheduler())


# ------------------------------------------------------------------------------------------------------ Heun with churn


def of_one_class(scheduler, steps, **options):
    """(images, what they should be): of one class the path of x through all noise levels is known."""
    unet = ExactUNet(num_class_embeds=2)
    latents = torch.randn(400, 1, 2, 2, generator=seeded())
    images, evaluations = draw_exactly(None, scheduler, steps, number=400, unet=unet, latents=latents, **options)
    first = scheduler.config.get("sigma_max") or SIGMAS[-1].item()
    begin = math.sqrt(first**2 + 1) * latents
    return images, MEANS[1] + (begin - MEANS[1]) * SPREAD / math.sqrt(SPREAD**2 + first**2), evaluations


def test_heuns_steps_are_of_second_order_and_eulers_of_first():
    errors = {}
    for order in (1, 2):
        for steps in (20, 40):
            scheduler = EDMHeunScheduler(clip_sample=False, solver_order=order)
            images, expected, evaluations = of_one_class(scheduler, steps)
            errors[order, steps] = (images - expected).abs().mean()
            assert evaluations["unet"] == (steps if order == 1 else 2 * steps - 1)
    assert 1.6 < errors[1, 20] / errors[1, 40] < 2.5 and 3.2 < errors[2, 20] / errors[2, 40] < 6
    assert errors[2, 40] < 0.3 * errors[1, 40]


def test_first_order_without_churn_is_eulers_scheduler():
    """At the same noise levels, Karras's."""
    low, high = SIGMAS[0].item(), SIGMAS[-1].item()
    own = EDMHeunScheduler(clip_sample=False, solver_order=1, sigma_min=low, sigma_max=high)
    theirs = EulerDiscreteScheduler.from_config(CONFIG, use_karras_sigmas=True)
    drawn = [draw_exactly(None, scheduler, 12, number=8)[0] for scheduler in (own, theirs)]
    assert torch.allclose(*drawn, atol=1e-3)


def test_churn_raises_the_level_and_keeps_the_distribution():
    churning = EDMHeunScheduler(clip_sample=False, s_churn=40.0, s_tmin=0.05, s_tmax=50.0)
    churning.set_timesteps(64)
    for (raised, reached), (_, level) in zip(churning.steps[1:], churning.steps):
        gamma = min(40 / 64, math.sqrt(2) - 1) if 0.05 <= level <= 50 else 0.0
        assert raised == pytest.approx(min(level * (1 + gamma), SIGMAS[-1].item())) and reached < raised
    images = draw_exactly(None, churning, 64, number=1500, unet=ExactUNet(num_class_embeds=2))[0]
    assert exact.distance_to_class(images) < 0.06
    noisier = EDMHeunScheduler(clip_sample=False, s_churn=40.0, s_noise=1.5)
    images = draw_exactly(None, noisier, 64, number=1500, unet=ExactUNet(num_class_embeds=2))[0]
    assert exact.distance_to_class(images) > 0.09


def test_it_is_saved_with_its_pipeline(tmp_path):
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline, scheduler=EDMHeunScheduler(s_churn=7.0, solver_order=1))
    pipe.save_pretrained(tmp_path)
    loaded = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is EDMHeunScheduler and loaded.scheduler.config.s_churn == 7.0
    drawn = [one([0, 3], num_inference_steps=3, generator=seeded(), output_type="pt").images for one in (pipe, loaded)]
    assert torch.equal(*drawn)


def test_it_takes_the_process_of_another_scheduler():
    scheduler = EDMHeunScheduler.from_config(
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False).config
    )
    assert torch.equal(scheduler.betas, DDPMScheduler(beta_schedule="squaredcos_cap_v2").betas)
    assert not scheduler.config.clip_sample
    scheduler.set_timesteps(10)
    assert scheduler.sigmas[0].item() == pytest.approx(80.0), "not the 2e4 at which the cosine schedule ends"
    with pytest.raises(InputError, match="`solver_order` must be 1 or 2"):
        EDMHeunScheduler(solver_order=3)


def test_euler_without_noise_is_ddim_in_sigma():
    """The same step, x_0 and noise held: at the timesteps of DDIM."""
    euler = EulerDiscreteScheduler.from_config(CONFIG, timestep_spacing="linspace")
    ddim = DDIMScheduler.from_config(CONFIG)
    euler_images = draw_exactly(None, euler, 10, number=8)[0]
    ddim_images = draw_exactly(None, ddim, 10, number=8)[0]
    assert torch.allclose(euler_images, ddim_images, atol=0.1)
