"""What a call goes by is what the pipeline holds when it is called, whoever put it there; and the call leaves it alone."""

import threading

import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    UNet2DModel,
)
from tiny import seeded

from diffusers_cg import ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.errors import InputError


DDPM, DDIM = ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline
BOTH = pytest.mark.parametrize("kind", [DDPM, DDIM], ids=["ddpm", "ddim"])


def draw(pipe, steps=4, **options):
    options = {"generator": seeded(), "output_type": "latent", **options}
    return pipe([0, 3], num_inference_steps=steps, **options).images


@BOTH
@pytest.mark.parametrize(
    "scheduler",
    [DDPMScheduler(), DDIMScheduler(beta_schedule="squaredcos_cap_v2"), DPMSolverMultistepScheduler()],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_an_assigned_scheduler_is_as_good_as_one_given_to_the_constructor(kind, scheduler):
    given = tiny.pipeline(kind, scheduler=scheduler)
    assigned = tiny.pipeline(kind)
    assigned.scheduler = scheduler
    assert torch.equal(draw(assigned), draw(given))
    assert assigned.scheduler is scheduler


@BOTH
@pytest.mark.parametrize(
    "solver", [HeunDiscreteScheduler, KDPM2DiscreteScheduler]
)  # which have other betas by default
def test_a_scheduler_made_from_the_config_has_the_pipeline_s_betas(kind, solver):
    pipe = tiny.pipeline(kind, scheduler=DDPMScheduler(variance_type="learned_range"))
    assert torch.equal(solver.from_config(pipe.scheduler.config).betas, DDPMScheduler().betas)


@BOTH
def test_an_assigned_scheduler_of_another_family_is_refused_by_name(kind):
    pipe = tiny.pipeline(kind)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler() if kind is DDPM else LCMScheduler()
    tiny.check_refused(pipe, {"class_labels": [0, 3]}, InputError, type(pipe.scheduler).__name__)


@BOTH
def test_an_assigned_classifier_is_checked(kind):
    pipe = tiny.pipeline(kind)
    pipe.classifier = tiny.classifier(sample_size=16, attention_resolutions=(8,))
    tiny.check_refused(pipe, {"class_labels": [0, 3]}, InputError, "do not fit together: the image size")


@BOTH
def test_a_call_leaves_the_scheduler_as_it_was(kind):
    pipe = tiny.pipeline(kind)
    before = pipe.scheduler.timesteps.clone()
    draw(pipe)
    assert torch.equal(pipe.scheduler.timesteps, before)


def test_calls_of_several_threads_do_not_meet():
    """Each has a scheduler of its own, of as many steps as it was asked for."""
    pipe = tiny.pipeline(DDIM, scheduler=DPMSolverMultistepScheduler())
    steps = (3, 5, 8)
    alone, together = {number: draw(pipe, number) for number in steps}, {}
    threads = [
        threading.Thread(target=lambda number=number: together.update({number: draw(pipe, number)}))
        for number in steps
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in steps:
        assert torch.allclose(together[number], alone[number], atol=1e-4)


def test_from_pipe_leads_from_either_pipeline_to_the_other():
    ddpm = tiny.pipeline(DDPM)
    ddim = DDIM.from_pipe(ddpm)
    assert ddim.unet is ddpm.unet and ddim.classifier is ddpm.classifier
    assert isinstance(ddim.scheduler, DDIMScheduler)
    ddim.set_progress_bar_config(disable=True)
    assert torch.equal(draw(ddim), draw(tiny.pipeline(DDIM)))
    assert isinstance(DDPM.from_pipe(ddim).scheduler, DDPMScheduler)


def test_a_classifier_of_another_make_is_refused():
    pipe = tiny.pipeline(DDIM)
    pipe.classifier = torch.nn.Linear(4, 4)
    with pytest.raises(InputError, match="`classifier` must be a NoisyClassifierModel, got Linear"):
        pipe([0, 3])
    with pytest.raises(InputError, match="`classifier` must be a NoisyClassifierModel, got Linear"):
        DDIM(pipe.unet, pipe.scheduler, pipe.classifier)


def test_a_unet_that_states_no_size_is_told_it_by_the_call():
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    pipe = DDPM(UNet2DModel(in_channels=1, out_channels=1, block_out_channels=(32, 32), **blocks), DDPMScheduler())
    tiny.check_refused(pipe, {}, InputError, "pass `height` and `width`")
    images = pipe(num_inference_steps=1, height=8, width=12, output_type="latent").images
    assert images.shape == (1, 1, 8, 12)


def test_numbers_of_numpy_and_torch():
    pipe = tiny.pipeline(DDIM)
    expected = draw(pipe, 2, eta=0.5)
    for eta in (np.float32(0.5), torch.tensor(0.5)):
        images = pipe(
            np.array([0, 3]),
            num_inference_steps=np.int64(2),
            batch_size=np.int64(2),
            eta=eta,
            generator=seeded(),
            output_type="latent",
        ).images
        assert torch.equal(images, expected)


def test_guidance_that_knows_no_classes_needs_no_labels():
    images = [
        tiny.pipeline(DDIM, with_classifier=with_classifier)(
            batch_size=2,
            guidance=lambda step: torch.ones_like(step.sample),
            num_inference_steps=2,
            generator=seeded(),
            output_type="latent",
        ).images
        for with_classifier in (True, False)
    ]
    assert torch.equal(*images)
