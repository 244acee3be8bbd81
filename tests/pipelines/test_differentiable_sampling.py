"""Sampling and purification as functions with a gradient."""

import exact
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tiny import seeded

from diffusers_cg import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import AutoGuidance, CleanClassifierGuidance, EnergyGuidance, PiGDMGuidance
from diffusers_cg.restoration import Mask


KINDS = [ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.algorithm)
SCHEDULER = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace", clip_sample=False)
LATENTS, WEIGHTS = tiny.images(), tiny.images(seed=1)


def energy(clean_images):
    return clean_images.square().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def pipes():
    """Nothing clipped, so that images are smooth functions of latents."""
    return {kind: tiny.pipeline(kind, scheduler=SCHEDULER) for kind in KINDS}


def draw(pipe, latents, generator=None, **options):
    eta = {"eta": 0.5} if pipe.algorithm == "ddim" else {}
    options = {"num_inference_steps": 2, "classifier_scale": 3.0, "output_type": "latent", **eta, **options}
    return pipe([0, 3], latents=latents, generator=generator or seeded(), **options).images


def gradient(pipe, checkpointing=True, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, gradient of their product with `WEIGHTS` in the latents), both (2, 3, 8, 8)."""
    latents = LATENTS.clone().requires_grad_(True)
    with pipe.differentiable(checkpointing):
        images = draw(pipe, latents, **options)
    return images.detach(), torch.autograd.grad((images * WEIGHTS).sum(), latents)[0]


def slope(function, where, direction, distance=0.01) -> float:
    """Central difference along a direction of length 1."""
    with torch.no_grad():
        ahead, behind = (function(where + sign * distance * direction).double() for sign in (1, -1))
    return ((ahead - behind) / (2 * distance)).item()


def along(shape) -> torch.Tensor:
    direction = torch.randn(shape, generator=seeded(2))
    return direction / direction.norm()


@EVERY_KIND
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_checkpointed_gradients_are_those_through_all_steps(pipes, kind, scale):
    pipe = pipes[kind]
    plain = draw(pipe, LATENTS, classifier_scale=scale)
    assert not plain.requires_grad
    (images, checkpointed), (whole_images, whole) = (
        gradient(pipe, each, classifier_scale=scale) for each in (True, False)
    )
    assert torch.equal(images, plain) and torch.allclose(whole_images, plain, atol=1e-4)
    # attention that is derived twice rounds otherwise, so guided images differ in the last bits
    assert torch.allclose(checkpointed, whole, rtol=1e-4, atol=1e-5 * whole.abs().max())
    assert scale or torch.equal(checkpointed, whole)


@pytest.mark.parametrize(
    ("algorithm", "guide"),
    [
        ("ddpm", "none"),
        ("ddpm", "classifier"),
        ("ddpm", "energy, recurring"),
        ("ddim", "none"),
        ("ddim", "classifier"),
        ("ddim", "energy"),
        ("ddim", "pigdm"),
    ],
)
def test_gradients_are_slopes(pipes, algorithm, guide):
    """Of guided sampling, too, whose own gradients are derived once more."""
    kind = next(kind for kind in KINDS if kind.algorithm == algorithm)
    options = {"classifier_scale": 100.0 if guide == "classifier" else 0.0}
    if guide.startswith("energy"):
        options["guidance"] = EnergyGuidance(energy, scale=30.0)
    if guide.endswith("recurring"):
        options["guidance"].recurrences = lambda step: 2
    if guide == "pigdm":
        known = Mask((torch.arange(8) < 4).expand(8, 8))
        options["guidance"] = PiGDMGuidance(known, known.forward(tiny.images(seed=3)))
    direction = along(LATENTS.shape)
    measured = slope(
        lambda latents: (draw(pipes[kind], latents, **options).double() * WEIGHTS).sum(), LATENTS, direction
    )
    _, found = gradient(pipes[kind], **options)
    assert (found * direction).sum().item() == pytest.approx(measured, rel=0.01)
    if guide != "none":
        _, unguided = gradient(pipes[kind], classifier_scale=0.0)
        assert (found - unguided).norm() > 0.05 * unguided.norm()


@EVERY_KIND
@pytest.mark.parametrize("source", ["one", "one per image", "PyTorch's own"])
def test_steps_that_are_taken_again_draw_the_same_noise(pipes, kind, source):
    """And leave the generators as they find them."""
    found, states = [], []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        generator = {"one": seeded(), "one per image": [seeded(1), seeded(2)], "PyTorch's own": None}[source]
        latents = LATENTS.clone().requires_grad_(True)
        with pipes[kind].differentiable(checkpointing):
            eta = {"eta": 1.0} if kind.algorithm == "ddim" else {}
            images = pipes[kind](
                [0, 3], 2, classifier_scale=0.0, latents=latents, generator=generator, output_type="pt", **eta
            ).images
        torch.randn(3)  # what else is drawn before the backward pass
        (images * WEIGHTS).sum().backward()
        found.append(latents.grad)
        last = generator[1] if isinstance(generator, list) else generator
        states.append(torch.randn(4, generator=last))
    assert found[0].abs().max() > 0 and torch.equal(*found) and torch.equal(*states)


def test_memory_holds_one_sample_of_each_step(pipes):
    kept, pipe, latents = [], pipes[ClassifierGuidedDDIMPipeline], LATENTS.clone().requires_grad_(True)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    )
    with hooks, pipe.differentiable():
        draw(pipe, latents, classifier_scale=0.0, num_inference_steps=4)
    # and the last one, to see whether it is finite
    assert [each.shape for each in kept] == [LATENTS.shape] * (4 + 1)


def test_it_goes_to_latents_alone_and_ends_with_the_block(pipes):
    pipe = pipes[ClassifierGuidedDDPMPipeline]
    weak = tiny.unet(base_channels=8)
    for model in (pipe.unet, pipe.classifier, weak):
        model.requires_grad_(True).train()
    latents = LATENTS.clone().requires_grad_(True)
    for checkpointing in (True, False):
        with pipe.differentiable(checkpointing):
            draw(pipe, latents, guidance=AutoGuidance(weak, 1.5)).sum().backward()
            with torch.no_grad():
                assert not draw(pipe, latents).requires_grad
            assert not draw(pipe, LATENTS).requires_grad
    parameters = [*pipe.unet.parameters(), *pipe.classifier.parameters(), *weak.parameters()]
    assert all(each.requires_grad and each.grad is None for each in parameters) and pipe.unet.training
    for model in (pipe.unet, pipe.classifier):
        model.eval()
    assert not draw(pipe, latents).requires_grad and not pipe.is_differentiable


def test_dropout_drops_nothing():
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline, scheduler=SCHEDULER, dropout=0.5)
    expected = gradient(pipe, classifier_scale=0.0)
    pipe.unet.train()
    assert all(torch.equal(*pair) for pair in zip(gradient(pipe, classifier_scale=0.0), expected))


def test_with_gradient_checkpointing_of_the_networks_too(pipes):
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline, scheduler=SCHEDULER)
    _, expected = gradient(pipe)
    pipe.unet.enable_gradient_checkpointing()
    pipe.classifier.enable_gradient_checkpointing()
    _, found = gradient(pipe)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
    with pytest.raises(InputError, match="leave `checkpointing` on"):
        gradient(pipe, checkpointing=False)


def constant(step):
    return torch.ones_like(step.sample)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output_type": "pil"}, 'returns tensors: pass `output_type="pt"` or "latent"'),
        ({"guidance": constant}, "gradient of constant has no graph back to the sample"),
        ({"guidance": CleanClassifierGuidance(lambda x: x.mean(dim=(2, 3)) ** 2, [0, 1], sine=0.3)}, "saw before"),
    ],
)
def test_what_has_no_gradient_is_said(pipes, options, said):
    with pytest.raises(InputError, match=said):
        gradient(pipes[ClassifierGuidedDDIMPipeline], **options)


def test_an_upsampler_has_a_gradient_in_its_latents_alone():
    pipe = tiny.pipeline(ClassifierGuidedSuperResolutionPipeline, scheduler=SCHEDULER, low_res_size=4)
    low_res, latents = torch.rand(2, 3, 4, 4, generator=seeded()), LATENTS.clone().requires_grad_(True)
    options = {"class_labels": [0, 3], "num_inference_steps": 2, "classifier_scale": 0.0, "output_type": "latent"}
    with pipe.differentiable():
        pipe(low_res, latents=latents, generator=seeded(), **options).images.sum().backward()
        with pytest.raises(InputError, match="not in `image`"):
            pipe(low_res.requires_grad_(True), latents=latents, **options)
    assert latents.grad.abs().max() > 0


# --------------------------------------------------------------------------------------------------------- purification


def exact_pipeline(kind):
    scheduler = (
        exact.PROCESS if kind is ClassifierGuidedDDPMPipeline else DDIMScheduler.from_config(exact.PROCESS.config)
    )
    pipe = kind(exact.ExactUNet(), scheduler, exact.ExactClassifier())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@EVERY_KIND
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_gradient_of_purification_is_its_slope(kind, scale):
    pipe = exact_pipeline(kind)
    image = torch.rand(4, 1, 2, 2, generator=seeded()) * 0.4 + 0.3
    weights = torch.randn(4, 1, 2, 2, generator=seeded(1))

    def purified(image):
        labels = [0, 1, 1, 0] if scale else None
        images = pipe.purify(image, 0.3, labels, num_inference_steps=20, classifier_scale=scale, generator=seeded())
        return (weights * images.double()).sum()

    image.requires_grad_(True)
    (found,) = torch.autograd.grad(purified(image), image)
    direction = along(image.shape)
    assert found.abs().max() > 0.01
    measured = slope(purified, image.detach(), direction)
    assert (found * direction).sum().item() == pytest.approx(measured, rel=0.01, abs=1e-4)


@EVERY_KIND
def test_what_is_unlikely_is_purified_away(kind):
    """Images that are all brighter than those of the data come closer to them."""
    pipe, means = exact_pipeline(kind), exact.MEANS.repeat(200, 1, 1, 1)
    image = ((means + 1) / 2 + 0.3).clamp(0, 1)
    distances = []
    for strength in (0.02, 0.4):  # the least is one step
        purified = pipe.purify(image, strength, num_inference_steps=50, generator=seeded())
        assert not purified.requires_grad and purified.min() >= 0 and purified.max() <= 1
        distances.append((2 * purified - 1 - means).square().mean().sqrt().item())
    assert distances[1] < 0.9 * distances[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strength": 0.0}, "`strength` must be a number above 0"),
        ({"strength": 1.1}, "`strength` must be a number above 0"),
        ({"image": LATENTS.double().numpy()}, "`image` must be a torch.Tensor"),
        ({"image": LATENTS}, "not in \\[0, 1\\]"),
        ({"class_labels": [0]}, "`class_labels` holds 1 labels for a batch of 2"),
        ({"classifier_scale": 1.0}, "`class_labels` are missing"),
    ],
)
def test_what_cannot_be_purified_is_said(pipes, options, said):
    generator = seeded()
    before = generator.get_state()
    with pytest.raises(InputError, match=said):
        pipes[ClassifierGuidedDDPMPipeline].purify(
            **{"image": torch.full((2, 3, 8, 8), 0.5), "strength": 0.5, "generator": generator, **options}
        )
    assert torch.equal(generator.get_state(), before)
