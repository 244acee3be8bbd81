"""Images as a start: `image` and `strength` with every kind of scheduler, and `edit`."""

import logging
import math
from copy import deepcopy

import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from exact import (
    MEANS,
    PROCESS,
    SPREAD,
    ExactClassifier,
    ExactUNet,
    distance_to,
    distance_to_class,
    draw_exactly,
    levels,
)
from tiny import seeded

from diffusers_cg import ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline, EDMHeunScheduler
from diffusers_cg.diffusion import resolve_timesteps
from diffusers_cg.errors import InputError


DDPM, DDIM = ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy in diffusers
BOTH = pytest.mark.parametrize("kind", [DDPM, DDIM], ids=["ddpm", "ddim"])
CONFIG = PROCESS.config
KARRAS = {"use_karras_sigmas": True}
DETERMINISTIC = {
    "ddim": DDIMScheduler.from_config(CONFIG),
    "multistep": DPMSolverMultistepScheduler.from_config(CONFIG),
    "multistep karras": DPMSolverMultistepScheduler.from_config(CONFIG, **KARRAS),
    "multistep third order": DPMSolverMultistepScheduler.from_config(CONFIG, solver_order=3),
    "singlestep": DPMSolverSinglestepScheduler.from_config(CONFIG),
    "singlestep third order": DPMSolverSinglestepScheduler.from_config(CONFIG, solver_order=3),
    "deis": DEISMultistepScheduler.from_config(CONFIG),
    "unipc": UniPCMultistepScheduler.from_config(CONFIG),
    "euler": EulerDiscreteScheduler.from_config(CONFIG),
    "heun": HeunDiscreteScheduler.from_config(CONFIG),
    "heun karras": HeunDiscreteScheduler.from_config(CONFIG, **KARRAS),
    "dpm2": KDPM2DiscreteScheduler.from_config(CONFIG),
    "edm": EDMHeunScheduler(clip_sample=False),
    "edm first order": EDMHeunScheduler(clip_sample=False, solver_order=1),
}
STOCHASTIC = {
    "ddpm": PROCESS,
    "sde": DPMSolverMultistepScheduler.from_config(CONFIG, algorithm_type="sde-dpmsolver++"),
    "euler ancestral": EulerAncestralDiscreteScheduler.from_config(CONFIG),
    "dpm2 ancestral": KDPM2AncestralDiscreteScheduler.from_config(CONFIG),
    "edm churn": EDMHeunScheduler(clip_sample=False, s_churn=10),
}
SAMPLERS = DETERMINISTIC | STOCHASTIC
IMAGES = torch.rand(2, 3, 8, 8, generator=seeded(3))


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)


@pytest.fixture(scope="module")
def pipes():
    return {kind: tiny.pipeline(kind) for kind in (DDPM, DDIM)}


@pytest.fixture(scope="module")
def conditional():
    return tiny.pipeline(DDIM, conditional=True)


def draw(pipe, class_labels=(0, 3), **options):
    options = {"num_inference_steps": 4, "output_type": "latent", "generator": seeded(), **options}
    return pipe(class_labels, **options).images


def edit(pipe, image=IMAGES, class_labels=(0, 3), **options):
    options = {"num_inference_steps": 4, "output_type": "latent", "generator": seeded(), **options}
    return pipe.edit(image, class_labels, **options).images


# ------------------------------------------------------------------------------------------------ images as a start


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_of_the_steps_are_taken_from_an_image_at_their_noise_level(name):
    """Of one Gaussian, where the way from x_t to x_0 is known: the image itself, or the distribution it is drawn from."""
    scheduler, part = SAMPLERS[name], []
    order = scheduler.order  # evaluations in a step
    start = torch.tensor([0.9, -0.3, 0.2, -0.8]).reshape(1, 1, 2, 2)
    images, evaluations = draw_exactly(
        None, scheduler, 120 // order, unet=ExactUNet(num_class_embeds=2), image=(start + 1) / 2, strength=0.4,
        number=100 if name in DETERMINISTIC else 1500,
        callback_on_step_end=lambda pipe, step, t, tensors: part.append(t.item()) or {},
    )  # fmt: skip
    whole, steps = resolve_timesteps(deepcopy(scheduler), 120 // order, None), 48 - (order - 1)
    assert part == whole[-steps:] and evaluations["unet"] == steps

    abar, variance = levels(part[0])
    if name in DETERMINISTIC:
        noisy = abar.sqrt() * start + (1 - abar).sqrt() * torch.randn(images.shape, generator=seeded())
        expected = MEANS[1] + (noisy - abar.sqrt() * MEANS[1]) * SPREAD / variance.sqrt()
        assert torch.allclose(images, expected, atol=0.05)
        return
    kept = SPREAD**2 * abar / variance  # of the image, in the mean of p(x_0 | x_t)
    mean = MEANS[1] + kept * (start - MEANS[1])
    spread = (kept**2 * (1 - abar) / abar + SPREAD**2 * (1 - abar) / variance).sqrt()
    assert distance_to(images, mean, spread) < 0.06


@pytest.mark.parametrize("name", ["ddpm", "ddim", "unipc", "heun", "edm churn"])
def test_the_distribution_of_the_images_is_kept(name):
    images = (MEANS[1] + SPREAD * torch.randn(1500, 1, 2, 2, generator=seeded(1))).clamp(-1, 1)
    options = {"unet": ExactUNet(num_class_embeds=2), "num_inference_steps": 60, "strength": 0.4}
    drawn, _ = draw_exactly(None, SAMPLERS[name], image=(images + 1) / 2, **options)
    assert distance_to_class(drawn) < 0.06 and (drawn - images).abs().mean() > 0.1


@BOTH
def test_strength_1_is_the_call_without_images(pipes, kind):
    image = {"image": IMAGES}
    expected = draw(pipes[kind])
    assert torch.equal(draw(pipes[kind], strength=1, **image), expected)
    assert not torch.allclose(draw(pipes[kind], strength=0.75, **image), expected, atol=0.1)
    unguided = {"classifier_scale": 0, **image}
    assert torch.equal(draw(pipes[kind], **unguided), draw(pipes[kind], strength=0.5, **unguided)), "the default"


@BOTH
def test_less_strength_stays_nearer(pipes, kind):
    far = [
        (draw(pipes[kind], image=IMAGES, strength=s, num_inference_steps=20, classifier_scale=0) - 2 * IMAGES + 1)
        .abs()
        .mean()
        for s in (0.05, 0.5)
    ]
    assert far[0] < 0.2 * far[1]


@BOTH
def test_an_image_does_not_depend_on_its_batch(pipes, kind):
    both = draw(pipes[kind], image=IMAGES, generator=[seeded(1), seeded(2)], classifier_scale=9.0)
    for i, label in enumerate((0, 3)):
        alone = draw(pipes[kind], label, image=IMAGES[i], generator=[seeded(i + 1)], classifier_scale=9.0)
        assert torch.allclose(alone[0], both[i], atol=1e-4)


@BOTH
def test_one_image_for_all_labels_and_one_label_for_all_images(pipes, kind):
    pipe = pipes[kind]
    assert torch.equal(draw(pipe, 3, image=IMAGES), draw(pipe, [3, 3], image=IMAGES))
    assert torch.equal(draw(pipe, [0, 3], image=IMAGES[0]), draw(pipe, [0, 3], image=IMAGES[[0, 0]]))
    assert draw(pipe, None, image=IMAGES[0], batch_size=3, classifier_scale=0).shape == (3, 3, 8, 8)


BAD_START = [
    ({"image": IMAGES, "strength": 0}, "`strength` must be a number above 0"),
    ({"image": IMAGES, "strength": 1.01}, "`strength` must be a number above 0"),
    ({"image": IMAGES, "strength": math.nan}, "`strength` must be a number above 0"),
    ({"image": IMAGES, "strength": "half"}, "`strength` must be a number above 0"),
    ({"strength": 0.5}, "`image`, which is missing"),
    ({"image": IMAGES, "latents": IMAGES}, "either `image`.* or `latents`"),
    ({"image": 2 * IMAGES}, r"not in \[0, 1\]"),
    ({"image": IMAGES[..., :4]}, r"must be of shape \(3, 8, 8\)"),
    ({"image": IMAGES, "class_labels": [0, 1, 2]}, "3 labels for a batch of 2"),
    ({"image": IMAGES, "batch_size": 3, "class_labels": 0}, "2 images for a batch of 3"),
]


@BOTH
@pytest.mark.parametrize(("changed", "said"), BAD_START)
def test_bad_input(pipes, kind, changed, said):
    tiny.check_refused(pipes[kind], {"class_labels": [0, 3], **changed}, InputError, said)


@pytest.mark.parametrize("scheduler", [PNDMScheduler, LMSDiscreteScheduler])
def test_what_cannot_start_in_the_middle_is_refused_by_name(scheduler):
    pipe = tiny.pipeline(DDIM, scheduler=scheduler())
    call = {"class_labels": [0, 3], "image": IMAGES, "num_inference_steps": 4}
    tiny.check_refused(pipe, call, InputError, f"{scheduler.__name__} cannot start from an image: use DDIMScheduler")
    options = {"image": IMAGES, "strength": 1.0, "classifier_scale": 0}
    assert draw(pipe, **options).isfinite().all()


# --------------------------------------------------------------------------------------------------------------- edit


def exact_edit(image, conditional=True, **options):
    pipe = DDIM(ExactUNet(num_class_embeds=2 if conditional else None), DETERMINISTIC["ddim"], ExactClassifier())
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 150, "classifier_scale": 0.0, "output_type": "latent", **options}
    return pipe.edit((image + 1) / 2, **options)


@pytest.mark.parametrize(("num_inversion_steps", "strength"), [(None, 0.3), (300, 1.0), (300, 0.3), (None, 0.7)])
def test_edit_in_a_gaussian(num_inversion_steps, strength):
    """The own label reconstructs; another one leads to the image that the two ways from and to the noise level imply."""
    image, taken = MEANS[0] + 0.4 * torch.tensor([1.0, -1.0, 0.5, 0.0]).reshape(1, 1, 2, 2), []
    output = exact_edit(
        image, class_labels=[0, 1], source_labels=0, strength=strength, num_inversion_steps=num_inversion_steps,
        callback_on_step_end=lambda pipe, step, t, tensors: taken.append(t.item()) or {},
    )  # fmt: skip
    abar, variance = levels(taken[0])
    expected = MEANS[1] + image - MEANS[0] + SPREAD * (abar / variance).sqrt() * (MEANS[0] - MEANS[1])
    assert len(taken) == round(150 * strength)
    assert torch.allclose(output.images[0], image[0], atol=0.04)
    assert torch.allclose(output.images[1], expected[0], atol=0.04)
    inversion = len(taken) - 1 if num_inversion_steps is None else 2 * len(taken) - 1
    assert abs(output.evaluations["unet"] - len(taken) - inversion) <= 1


def test_guidance_edits_what_an_unconditional_unet_encoded():
    images, options = MEANS[[0, 0, 1]], {"strength": 0.6, "num_inference_steps": 50}
    edited = exact_edit(images, conditional=False, class_labels=1, classifier_scale=3.0, **options).images
    assert (edited - MEANS[1]).abs().amax(dim=(1, 2, 3)).max() < 0.3
    same = exact_edit(images, conditional=False, class_labels=1, **options).images
    assert torch.allclose(same, images, atol=0.1)


def test_edit_draws_no_noise_and_an_image_does_not_depend_on_its_batch(conditional):
    options = {"source_labels": [1, 2], "classifier_scale": 9.0}
    both = edit(conditional, **options)
    assert torch.equal(both, edit(conditional, generator=seeded(1), **options))
    for i, label in enumerate((0, 3)):
        alone = edit(conditional, IMAGES[i], label, source_labels=i + 1, classifier_scale=9.0)
        assert torch.allclose(alone[0], both[i], atol=1e-4)
    assert not torch.allclose(both, edit(conditional, source_labels=[2, 1], classifier_scale=9.0), atol=1e-3)


BAD_EDIT = [
    *[case for case in BAD_START if "latents" not in case[0] and "image" in case[0]],
    ({"source_labels": None}, "`source_labels` are missing"),
    ({"source_labels": [0, 1, 2]}, "`source_labels` holds 3 labels for a batch of 2"),
    ({"source_labels": 5}, r"`source_labels` must lie in 0..4"),
    ({"class_labels": None}, "`class_labels` are missing"),
    ({"num_inversion_steps": 0}, "must be between 1 and 1000"),
    ({"generator": [torch.Generator()]}, "list of 1 for a batch of 2"),
]


@pytest.mark.parametrize(("changed", "said"), BAD_EDIT)
def test_bad_input_of_edit(conditional, changed, said):
    passes = tiny.count_forward_passes(conditional.unet)
    with pytest.raises(InputError, match=said):
        conditional.edit(**{"image": IMAGES, "class_labels": [0, 3], "source_labels": 0, **changed})
    assert not passes
