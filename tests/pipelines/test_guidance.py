"""Guidance of a user's own under both algorithms: what it sees, what it may change, and how guidances compose."""

import math

import pytest
import tiny
import torch
from diffusers import DDPMScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler
from tiny import seeded

from diffusers_cg import (
    ClassifierGuidance,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    EDMHeunScheduler,
)
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import Guidance, GuidanceSum, classifier_gradient


DDPM, DDIM = ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline
BOTH = pytest.mark.parametrize("kind", [DDPM, DDIM], ids=["ddpm", "ddim"])
TIMESTEPS = [900, 500, 40]
LATENTS = tiny.images(2, seed=5)
LABELS = torch.tensor([0, 3])
GRADIENT = tiny.images(2, seed=7)


@pytest.fixture(scope="module")
def pipes():
    return {kind: tiny.pipeline(kind, conditional=True) for kind in (DDPM, DDIM)}


def draw(pipe, guidance=None, **options):
    """The raw sample from the same noise; unguided but for `guidance`."""
    options = {"timesteps": TIMESTEPS, "classifier_scale": 0, "output_type": "latent", **options}
    return pipe(LABELS, guidance=guidance, latents=LATENTS, generator=seeded(), **options).images


def first_steps(pipe, guidance, **options):
    """What a guidance sees: the step objects, one for each timestep."""
    seen = []

    def watch(step):
        seen.append(step)
        return guidance(step)

    draw(pipe, watch, **options)
    return seen


def gradient(step):
    return 0.5 * GRADIENT


# ------------------------------------------------------------------------------------------------------ what is known


@BOTH
def test_a_guidance_sees_the_whole_step(pipes, kind):
    pipe = pipes[kind]
    steps = first_steps(pipe, gradient)
    assert [int(step.timestep) for step in steps] == TIMESTEPS
    assert [(step.index, step.num_steps) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    step, t = steps[0], TIMESTEPS[0]
    abar = math.prod((1 - DDPMScheduler().betas[: t + 1].double()).tolist())
    assert torch.equal(step.sample, LATENTS) and torch.equal(step.class_labels, LABELS)
    assert step.alpha_prod_t.item() == pytest.approx(abar, rel=1e-5)
    assert step.sigma == pytest.approx(math.sqrt((1 - abar) / abar), rel=1e-5)
    with torch.no_grad():
        noise, _ = pipe.unet(LATENTS, t, class_labels=LABELS).sample.chunk(2, dim=1)
    assert torch.equal(step.noise, noise)
    original = (LATENTS - math.sqrt(1 - abar) * noise) / math.sqrt(abar)
    assert torch.allclose(step.pred_original_sample, original.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    assert step.variance.shape == LATENTS.shape and (step.variance > 0).all()
    asked = step.predict(step.sample, step.timestep, torch.tensor([1, 1]))
    assert not torch.allclose(asked.noise, step.noise, atol=1e-3)


@BOTH
def test_the_variance_is_that_of_the_step(pipes, kind):
    """Of the process with these timesteps, not of the one with all of them."""
    step = first_steps(pipes[kind], gradient)[0]
    pipe = pipes[kind]
    with torch.no_grad():
        whole = pipe.predict(step.sample, TIMESTEPS[0], LABELS)
    assert (step.variance > 2 * whole.variance).all()


@BOTH
def test_the_network_is_asked_once_a_step(pipes, kind):
    pipe = tiny.pipeline(kind, conditional=True)
    passes = tiny.count_forward_passes(pipe.unet)

    def curious(step):
        return step.noise + step.pred_original_sample + step.variance + 0 * step.sigma

    draw(pipe, curious)
    assert len(passes) == len(TIMESTEPS)

    def through_the_unet(step):
        step = step.differentiable()
        return torch.autograd.grad(step.pred_original_sample.sum(), step.sample)[0]

    passes.clear()
    draw(pipe, through_the_unet)
    assert len(passes) == len(TIMESTEPS), "the graph costs no second pass"


@BOTH
def test_gradient_through_the_unet_is_the_slope(kind):
    """Of an energy of the clean image that the network sees, against central differences."""
    pipe = tiny.pipeline(kind, conditional=True)
    taken = []

    def energy(clean_images):
        return clean_images.square().sum(dim=(1, 2, 3)).tanh()

    def guidance(step):
        differentiable = step.differentiable()
        taken.append(torch.autograd.grad(energy(differentiable.pred_original_sample).sum(), differentiable.sample)[0])
        assert torch.equal(step.pred_original_sample, differentiable.pred_original_sample.detach())
        return taken[-1]

    draw(pipe, guidance, timesteps=[100])
    direction, small = tiny.images(2, seed=9), 1e-3

    def at(sample):
        with torch.no_grad():
            return energy(pipe.predict(sample, torch.tensor(100), LABELS).pred_original_sample.double())

    slope = (at(LATENTS + small * direction) - at(LATENTS - small * direction)) / (2 * small)
    assert torch.allclose((taken[0] * direction).sum(dim=(1, 2, 3)).double(), slope, rtol=2e-2, atol=2e-3)


@BOTH
def test_predict_keeps_its_graph_only_where_gradients_are_on(pipes, kind):
    sample = LATENTS.clone().requires_grad_(True)
    prediction = pipes[kind].predict(sample, 500, LABELS)
    assert torch.autograd.grad(prediction.pred_original_sample.sum(), sample)[0].abs().sum() > 0
    with torch.no_grad():
        assert not pipes[kind].predict(sample, 500, LABELS).noise.requires_grad


@BOTH
def test_predict_at_fractional_timesteps(pipes, kind):
    """The network is fed the fraction, and the noise level lies between those of the whole ones."""
    pipe, times = pipes[kind], torch.tensor([500.0, 500.5])
    with torch.no_grad():
        prediction, whole = (pipe.predict(LATENTS, t, LABELS) for t in (times, 500))
        noise, _ = pipe.unet(LATENTS, times, class_labels=LABELS).sample.chunk(2, dim=1)
    assert torch.equal(prediction.noise, noise)
    for name, value in vars(prediction).items():
        assert torch.allclose(value[0], getattr(whole, name)[0], rtol=1e-4, atol=1e-4), name
    abars = DDPMScheduler().alphas_cumprod
    sigma = (((1 - abars) / abars).sqrt()[500:502]).prod().sqrt()
    expected = (1 + sigma**2).sqrt() * LATENTS[1] - sigma * noise[1]
    assert torch.allclose(prediction.pred_original_sample[1], expected.clamp(-1, 1), rtol=1e-3, atol=1e-3)


def test_an_unconditional_unet_is_not_told():
    pipe = tiny.pipeline(DDIM)
    with torch.no_grad():
        assert torch.equal(pipe.predict(LATENTS, 10, LABELS).noise, pipe.predict(LATENTS, 10).noise)


@BOTH
def test_inference_mode_guides_the_same_through_the_unet(pipes, kind):
    def guidance(step):
        step = step.differentiable()
        return torch.autograd.grad(step.pred_original_sample.square().sum(), step.sample)[0]

    expected = draw(pipes[kind], guidance)
    with torch.inference_mode():
        assert torch.equal(draw(pipes[kind], guidance), expected)


# ------------------------------------------------------------------------------------------------------ what may change


class Shifted(Guidance):
    """Adds to the noise, or puts another clean image in place of the network's."""

    def __init__(self, noise=None, original=None):
        self.noise, self.original = noise, original

    def mix(self, step):
        return step.noise if self.noise is None else step.noise + self.noise

    def replace(self, step):
        return step.pred_original_sample if self.original is None else self.original


@BOTH
def test_a_mixed_noise_is_what_the_sampler_goes_by(kind):
    """As if the network had said it."""
    pipe, other = tiny.pipeline(kind, conditional=True), tiny.pipeline(kind, conditional=True)
    shift = 0.3 * GRADIENT
    other.unet.register_forward_hook(
        lambda module, args, output: type(output)(sample=output.sample + torch.cat([shift, 0 * shift], dim=1))
    )
    assert torch.allclose(draw(pipe, Shifted(noise=shift)), draw(other), atol=1e-5)
    seen = first_steps(pipe, gradient)[0]

    def watch(step):
        assert torch.allclose(step.noise, seen.noise + shift, atol=1e-6) or step.index > 0
        return 0 * GRADIENT

    draw(pipe, Shifted(noise=shift) + watch)


@BOTH
def test_a_replaced_clean_image_is_where_sampling_ends(pipes, kind):
    image = tiny.images(2, seed=3).clamp(-1, 1)
    assert torch.allclose(draw(pipes[kind], Shifted(original=image), timesteps=[0]), image, atol=1e-3)
    drawn = draw(pipes[kind], Shifted(original=image), timesteps=[900, 500, 0])
    assert torch.allclose(drawn, image, atol=1e-3)


class KnownHalf(Guidance):
    def replace(self, step):
        return torch.cat([torch.full_like(step.sample[..., :4], 0.25), step.pred_original_sample[..., 4:]], dim=-1)


@BOTH
def test_a_part_of_the_clean_image_may_be_known(pipes, kind):
    drawn = draw(pipes[kind], KnownHalf(), timesteps=[900, 500, 0])
    assert torch.allclose(drawn[..., :4], torch.tensor(0.25), atol=1e-3)
    assert drawn[..., 4:].std() > 0.1


# ------------------------------------------------------------------------------------------------------- how they compose


@BOTH
def test_guidances_add_and_weigh(pipes, kind):
    pipe = pipes[kind]
    classifier = ClassifierGuidance(pipe.classifier, LABELS, 3.0)
    expected = draw(pipe, classifier)
    assert torch.equal(draw(pipe, classifier_scale=3.0), expected)
    assert torch.allclose(draw(pipe, 0.5 * classifier + classifier * 0.5), expected, atol=1e-5)
    both = draw(pipe, classifier + gradient)
    assert torch.equal(both, draw(pipe, gradient, classifier_scale=3.0))
    assert torch.allclose(both, draw(pipe, gradient + classifier), atol=1e-6)
    noise = Shifted(noise=GRADIENT)
    assert torch.allclose(draw(pipe, 0.5 * noise + 0.5 * noise), draw(pipe, noise), atol=1e-5)
    assert torch.allclose(draw(pipe, 0 * noise + 0 * classifier), draw(pipe), atol=1e-6)


@BOTH
def test_weights_and_scales_of_each_image(pipes, kind):
    pipe = pipes[kind]
    once, off = draw(pipe, gradient), draw(pipe)
    weights = torch.tensor([1.0, 0.0])
    for guided in (
        draw(pipe, lambda step: gradient(step) * weights.reshape(2, 1, 1, 1)),
        draw(pipe, Shifted() + weights * Slope()),
    ):
        assert torch.allclose(guided[0], once[0], atol=1e-5) and torch.allclose(guided[1], off[1], atol=1e-5)
    classifier = ClassifierGuidance(pipe.classifier, scale=[3.0, 0.0])
    assert torch.allclose(draw(pipe, classifier)[0], draw(pipe, classifier_scale=3.0)[0], atol=1e-5)
    assert torch.allclose(draw(pipe, classifier)[1], off[1], atol=1e-5)


class Slope(Guidance):
    """[`gradient`] as a class."""

    def __call__(self, step):
        return gradient(step)


@BOTH
def test_a_clamped_guidance_goes_no_farther(pipes, kind):
    """Its gradient is as long as `max_norm` in each image at most, and as it is where it is shorter."""
    pipe, norms = pipes[kind], (0.5 * GRADIENT).flatten(1).norm(dim=1)
    assert torch.allclose(draw(pipe, Slope().clamped(1.01 * norms.max().item())), draw(pipe, gradient), atol=1e-5)
    shortened = draw(pipe, Slope().clamped(1.5))
    expected = draw(pipe, lambda step: 1.5 * gradient(step) / norms.reshape(2, 1, 1, 1))
    assert torch.allclose(shortened, expected, atol=1e-5)
    noise = Shifted(noise=GRADIENT)
    longest = GRADIENT.flatten(1).norm(dim=1).reshape(2, 1, 1, 1)
    assert torch.allclose(
        draw(pipe, noise.clamped(2.0)), draw(pipe, Shifted(noise=2.0 * GRADIENT / longest)), atol=1e-5
    )


class Moved(Guidance):
    """Adds to every x_{t-1}."""

    def shift(self, step):
        return 0.1 * GRADIENT


@BOTH
def test_a_shift_is_added_to_the_sample(pipes, kind):
    pipe = pipes[kind]

    def shifted(pipe, index, timestep, tensors):
        return {"latents": tensors["latents"] + 0.1 * GRADIENT}

    assert torch.equal(draw(pipe, Moved()), draw(pipe, callback_on_step_end=shifted))
    assert torch.allclose(draw(pipe, 0.5 * Moved() + 0.5 * Moved()), draw(pipe, Moved()), atol=1e-5)
    assert torch.equal(draw(pipe, Moved().confined(sigmas=(1e6, 1e7))), draw(pipe))


class Twice(Guidance):
    def recurrences(self, step):
        return 2


def test_a_step_may_be_taken_again(pipes):
    """From a sample with its noise added back, drawn by the call's generator."""
    pipe, generator = pipes[DDIM], seeded()
    sample = LATENTS
    abars = [DDPMScheduler().alphas_cumprod[t] for t in TIMESTEPS]
    for index, t in enumerate(TIMESTEPS):
        last = index == len(TIMESTEPS) - 1
        abar_prev = torch.tensor(1.0) if last else abars[index + 1]
        for again in (True, False):
            with torch.no_grad():
                prediction = pipe.predict(sample, t, LABELS)
            original = prediction.pred_original_sample
            noise = (sample - abars[index].sqrt() * original) / (1 - abars[index]).sqrt()
            sample = abar_prev.sqrt() * original + (1 - abar_prev).sqrt() * noise
            if again:
                alpha = abars[index] / abar_prev
                sample = alpha.sqrt() * sample + (1 - alpha).sqrt() * torch.randn(sample.shape, generator=generator)
    assert torch.allclose(draw(pipe, Twice()), sample, atol=1e-4)
    assert torch.equal(draw(pipe, Twice().confined(sigmas=(1e6, 1e7))), draw(pipe))


@BOTH
def test_the_output_says_what_it_took(pipes, kind):
    pipe = pipes[kind]
    options = {"timesteps": TIMESTEPS, "generator": seeded(), "output_type": "latent"}
    assert pipe(LABELS, classifier_scale=0, **options).evaluations == {"unet": 3, "classifier": 0, "backward": 0}
    assert pipe(LABELS, classifier_scale=1, **options).evaluations == {"unet": 3, "classifier": 3, "backward": 3}
    every_second = ClassifierGuidance(pipe.classifier).confined(every=2) + Twice()
    taken = pipe(LABELS, guidance=every_second, **options).evaluations
    assert taken == {"unet": 6, "classifier": 4, "backward": 4}
    assert isinstance(pipe(LABELS, classifier_scale=0, return_dict=False, **options), tuple)


@BOTH
def test_the_gradient_at_the_mean_is_of_where_the_step_leads(pipes, kind):
    """log p(y | x_{t-1}) at the posterior's mean; at the last step, of a clean image, at timestep 0."""
    pipe = pipes[kind]
    steps = first_steps(pipe, gradient)
    for step, to in zip(steps, [500, 40, 0]):
        abars = torch.cat([torch.ones(1), DDPMScheduler().alphas_cumprod])
        abar, before = abars[int(step.timestep) + 1], abars[to + 1] if step is not steps[-1] else torch.tensor(1.0)
        mean = (
            before.sqrt() * (1 - abar / before) * step.pred_original_sample
            + (abar / before).sqrt() * (1 - before) * step.sample
        ) / (1 - abar)
        assert torch.allclose(step.mean, mean, atol=1e-5)
        expected = 2.0 * classifier_gradient(pipe.classifier, mean, to, LABELS)
        assert torch.allclose(ClassifierGuidance(pipe.classifier, scale=2.0, at_mean=True)(step), expected, atol=1e-4)


@BOTH
def test_confined_guidance_costs_nothing_outside(kind):
    pipe = tiny.pipeline(kind, conditional=True)
    passes = tiny.count_forward_passes(pipe.classifier)
    classifier = ClassifierGuidance(pipe.classifier, LABELS, 3.0)

    def asked(guidance) -> int:
        passes.clear()
        draw(pipe, guidance)
        return len(passes)

    everywhere, nowhere = draw(pipe, classifier), draw(pipe)
    assert torch.equal(draw(pipe, classifier.confined()), everywhere), "a full interval is none, bit for bit"
    assert torch.equal(draw(pipe, classifier.confined(sigmas=(1e6, 1e7))), nowhere), "an empty one changes nothing"
    sigmas = [step.sigma for step in first_steps(pipe, gradient)]
    assert sigmas[0] > sigmas[1] > sigmas[2]
    assert asked(classifier.confined(sigmas=(sigmas[1], sigmas[0]))) == 1
    assert asked(classifier.confined(sigmas=(0, sigmas[1]))) == 2
    assert asked(classifier.confined(sigmas=(1e6, 1e7))) == 0
    assert asked(classifier.confined(every=2)) == 2
    assert asked(classifier.confined(start=0.5)) == 1
    assert asked(classifier.confined(stop=0.5)) == 2
    assert torch.equal(
        draw(pipe, classifier.confined(sigmas=(sigmas[1], sigmas[0])) + Shifted()),
        draw(pipe, classifier.confined(stop=0.2)),
    )


@BOTH
def test_a_confined_change_of_the_prediction(pipes, kind):
    pipe, changed = pipes[kind], Shifted(noise=GRADIENT, original=0 * GRADIENT)
    assert torch.equal(draw(pipe, changed.confined(sigmas=(1e6, 1e7))), draw(pipe))
    assert torch.equal(draw(pipe, changed.confined()), draw(pipe, changed))


@pytest.mark.parametrize(
    "confines",
    [
        *({"start": 0.5, "stop": 0.5}, {"stop": 2}, {"sigmas": (2.0, 1.0)}, {"sigmas": (-1, 1)}, {"sigmas": 5}),
        *({"every": 0}, {"every": 1.5}, {"every": "2"}),
    ],
)
def test_an_interval_that_holds_no_step_is_refused(confines):
    with pytest.raises(InputError, match="A guidance is confined to"):
        Shifted().confined(**confines)


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, KDPM2DiscreteScheduler, EDMHeunScheduler])
def test_every_kth_step_of_second_order_is_guided_whole(kind):
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline, conditional=True)
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    guided = []

    def note(step):
        guided.append(step.index)
        return 0.0

    pipe(LABELS, num_inference_steps=5, guidance=GuidanceSum([note]).confined(every=2), generator=seeded())
    assert guided == [0, 1, 4, 5, 8]


@pytest.mark.parametrize("returned", [None, "gradient", [1.0]])
def test_a_function_that_returns_no_gradient(pipes, returned):
    with pytest.raises(InputError, match="A guidance must return a gradient"):
        draw(pipes[ClassifierGuidedDDIMPipeline], lambda step: returned)


# ----------------------------------------------------------------------------------------------------------- bad input


@BOTH
def test_what_is_no_guidance_is_refused(pipes, kind):
    tiny.check_refused(
        pipes[kind], {"class_labels": LABELS, "guidance": 3.0}, InputError, "`guidance` must be a function of a step"
    )


@BOTH
def test_a_gradient_of_another_shape(pipes, kind):
    with pytest.raises(InputError, match=r"gradient of the sample's shape \(2, 3, 8, 8\), got \(2,\)"):
        draw(pipes[kind], lambda step: torch.zeros(2))


@BOTH
def test_a_scale_beside_a_guidance_needs_a_classifier(kind):
    pipe = tiny.pipeline(kind, with_classifier=False)
    changed = {"class_labels": LABELS, "guidance": gradient, "classifier_scale": 1.0}
    tiny.check_refused(pipe, changed, InputError, "has no classifier")


def test_a_classifier_guides_to_labels_of_the_call_or_its_own():
    pipe = tiny.pipeline(DDIM)
    call = {"class_labels": None, "batch_size": 2, "guidance": ClassifierGuidance(pipe.classifier)}
    tiny.check_refused(pipe, call, InputError, "`class_labels` are missing")
    of_call = draw(pipe, ClassifierGuidance(pipe.classifier))
    assert torch.equal(of_call, draw(pipe, ClassifierGuidance(pipe.classifier, LABELS)))
    assert not torch.allclose(of_call, draw(pipe, ClassifierGuidance(pipe.classifier, 2)), atol=1e-3)


class NotFinite(Guidance):
    """From the second step on: in its gradient, in what it adds to the sample, or in both."""

    def __init__(self, value, gradient=0.0, shift=0.0):
        self.value, self.gradient, self.moved = value, gradient, shift

    def of_step(self, step, factor):
        value = GRADIENT.clone()
        if step.index > 0:
            value[1, 0, 0, 0] = self.value
        return factor * value if factor else 0.0

    def __call__(self, step):
        return self.of_step(step, self.gradient)

    def shift(self, step):
        return self.of_step(step, self.moved)


@BOTH
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_call_or_is_skipped(pipes, kind, value):
    """With step and guidance named; or the image goes on unguided in that step."""
    pipe = pipes[kind]
    for wrong in (NotFinite(value, gradient=0.5), NotFinite(value, shift=0.1)):
        with pytest.raises(InputError, match="gradient of NotFinite is not finite at step 2 of 3, timestep 500"):
            draw(pipe, gradient + (2 * wrong).confined())
        skipped = draw(pipe, wrong.finite())
        assert skipped.isfinite().all()
        finite = NotFinite(GRADIENT[1, 0, 0, 0], gradient=wrong.gradient, shift=wrong.moved)
        assert torch.equal(skipped[0], draw(pipe, finite)[0]), "the other image is guided at every step"
        assert torch.equal(skipped[1], draw(pipe, finite.confined(stop=0.3))[1])

    def own_function(step):
        return torch.full_like(GRADIENT, value)

    with pytest.raises(InputError, match="own_function is not finite at step 1 of 3"):
        draw(pipe, own_function)


@BOTH
def test_a_classifier_that_does_not_fit_is_said_at_the_call(kind):
    """By channels, classes and size, as of the pipeline's own."""
    pipe = tiny.pipeline(kind, conditional=True)
    for changed, said in [
        ({"in_channels": 1}, "reads 1 channels"),
        ({"num_classes": 3}, r"0\.\.2"),
        ({"num_train_timesteps": 400}, "trained with num_train_timesteps=400"),
        ({"sample_size": 16, "attention_resolutions": (8,)}, "reads images of"),
        ({"channel_multipliers": (1, 1, 1, 1, 1), "sample_size": 16, "pool": "adaptive"}, "multiples of 16"),
    ]:
        guidance = ClassifierGuidance(tiny.fresh_classifier(**changed))
        call = {"class_labels": LABELS, "num_inference_steps": 2, "guidance": 2.0 * guidance.confined()}
        tiny.check_refused(pipe, call, InputError, said)
    for weight in ([1.0, 2.0, 3.0], [1.0] * 5):
        call = {
            "class_labels": LABELS,
            "num_inference_steps": 2,
            "guidance": weight * ClassifierGuidance(pipe.classifier),
        }
        tiny.check_refused(pipe, call, InputError, "weight must be one number")
    with pytest.raises(InputError, match="A classifier of noisy images is needed"):
        ClassifierGuidance(None)
    with pytest.raises(InputError, match="`max_norm` must be above 0"):
        ClassifierGuidance(pipe.classifier).clamped(0)
