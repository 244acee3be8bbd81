"""Both pipelines from outside: what a call takes, returns, refuses, and what a saved folder holds."""

import io
import json
import math

import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UnCLIPScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from processes import run_function
from tiny import seeded

from diffusers_cg import DIGITS, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline, GaussianDiffusion
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import ClassifierGuidance


DDPM, DDIM = ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline
BOTH = pytest.mark.parametrize("kind", [DDPM, DDIM], ids=["ddpm", "ddim"])
STEPS = 3


def draw(pipe, class_labels=(0, 3), *, seed=0, **options):
    """The raw sample."""
    options = {"num_inference_steps": STEPS, "output_type": "latent", "generator": seeded(seed), **options}
    if options.get("timesteps") is not None:
        del options["num_inference_steps"]
    return pipe(class_labels, **options).images


@pytest.fixture(scope="module")
def pipes():
    """One pipeline of each kind for the tests that do not change it: unconditional, guided by a classifier."""
    return {kind: tiny.pipeline(kind) for kind in (DDPM, DDIM)}


@pytest.fixture(scope="module")
def conditional_pipes():
    return {kind: tiny.pipeline(kind, conditional=True) for kind in (DDPM, DDIM)}


# ------------------------------------------------------------------------------------------------------------- labels


@BOTH
def test_labels_of_any_form(conditional_pipes, kind):
    pipe = conditional_pipes[kind]
    expected = draw(pipe, [3, 3])
    for labels in ((3, 3), torch.tensor([3, 3]), torch.tensor([3, 3], dtype=torch.uint8), np.array([3, 3])):
        assert torch.equal(draw(pipe, labels), expected)
    for label in (3, torch.tensor(3), np.int64(3)):
        assert torch.equal(draw(pipe, label, batch_size=2), expected)
    assert draw(pipe, 3).shape == (1, 3, 8, 8)
    assert not torch.allclose(draw(pipe, [3, 4])[1], expected[1])
    assert torch.allclose(draw(pipe, [3, 4])[0], expected[0], atol=1e-4)


@BOTH
def test_inference_mode_draws_the_same(conditional_pipes, kind):
    pipe = conditional_pipes[kind]
    expected = draw(pipe, [3, 3], classifier_scale=2.0)
    with torch.inference_mode():
        assert torch.equal(draw(pipe, [3, 3], classifier_scale=2.0), expected)


@BOTH
def test_no_labels_where_nobody_needs_them(pipes, kind):
    unguided = draw(pipes[kind], None, batch_size=2, classifier_scale=0)
    assert unguided.shape == (2, 3, 8, 8)
    assert torch.equal(draw(pipes[kind], [0, 3], classifier_scale=0), unguided)
    without_classifier = tiny.pipeline(kind, with_classifier=False)
    assert torch.equal(draw(without_classifier, None, batch_size=2), unguided), "the scale is 0 by default"
    assert draw(without_classifier, None).shape == (1, 3, 8, 8)


@BOTH
def test_labels_reach_unet_and_guidance(conditional_pipes, kind):
    pipe, seen = conditional_pipes[kind], []

    def guidance(step):
        seen.append((step.sample.dtype, int(step.timestep), step.class_labels.tolist()))
        return torch.zeros_like(step.sample)

    zero = draw(pipe, [0, 3], guidance=guidance, timesteps=[900, 500, 4])
    assert seen == [(torch.float32, t, [0, 3]) for t in (900, 500, 4)]
    assert torch.equal(zero, draw(pipe, [0, 3], classifier_scale=0, timesteps=[900, 500, 4]))
    assert not torch.allclose(zero, draw(pipe, [1, 2], classifier_scale=0, timesteps=[900, 500, 4]))


# ------------------------------------------------------------------------------------------------- guidance and scale


@BOTH
def test_scale_of_any_form(pipes, kind):
    pipe = pipes[kind]
    expected = draw(pipe, classifier_scale=5.0)
    for scale in (5, [5.0], [5.0, 5.0], (5, 5), torch.tensor(5.0), torch.tensor([5.0, 5.0]), np.array([5.0, 5.0])):
        assert torch.equal(draw(pipe, classifier_scale=scale), expected)
    assert torch.equal(draw(pipe, torch.tensor(3), batch_size=2, classifier_scale=[5.0, 5.0])[1], expected[1])


@BOTH
def test_scale_per_image(pipes, kind):
    pipe = pipes[kind]
    unguided, guided = (draw(pipe, classifier_scale=scale) for scale in (0, 20.0))
    mixed = draw(pipe, classifier_scale=[0, 20.0])
    assert torch.equal(mixed[0], unguided[0])
    assert torch.equal(mixed[1], guided[1])
    assert not torch.allclose(unguided[1], guided[1], atol=1e-3)
    assert torch.equal(draw(pipe, classifier_scale=[0, 0.0]), unguided)


@BOTH
def test_guidance_of_ones_own_without_a_classifier(kind):
    pipe = tiny.pipeline(kind, with_classifier=False)
    shifted = draw(pipe, guidance=lambda step: torch.ones_like(step.sample))
    assert (shifted.mean() > draw(pipe, classifier_scale=0).mean() + 0.1).all()
    without_labels = draw(pipe, None, batch_size=2, guidance=lambda step: torch.ones_like(step.sample))
    assert torch.equal(shifted, without_labels)


@BOTH
def test_guidance_of_ones_own_beside_the_classifier(pipes, kind):
    """In its place unless a scale is passed; then both."""
    pipe = pipes[kind]
    classifier, ones = ClassifierGuidance(pipe.classifier, [0, 3], 5.0), lambda step: torch.ones_like(step.sample)
    assert torch.equal(draw(pipe, guidance=classifier), draw(pipe, classifier_scale=5.0))
    assert torch.equal(draw(pipe, guidance=ones), draw(tiny.pipeline(kind, with_classifier=False), guidance=ones))
    both = draw(pipe, guidance=ones, classifier_scale=5.0)
    assert torch.equal(both, draw(pipe, guidance=classifier + ones))
    assert not torch.allclose(both, draw(pipe, classifier_scale=5.0), atol=1e-2)


TIMESTEPS, SCALE = [700, 300], 1.7
ABAR = {t: math.prod((1 - DDPMScheduler().betas[: t + 1].double()).tolist()) for t in TIMESTEPS}
GRADIENT = tiny.images(2, seed=7)


def first_step(pipe, timesteps=TIMESTEPS, **options):
    """x_T, the network's word on it, and the first sample after it, all in float64, guided by `GRADIENT`."""
    latents, trace = tiny.images(2, seed=5), []

    def record(pipe, step, timestep, tensors):
        trace.append(tensors["latents"].double())
        return {}

    draw(
        pipe,
        latents=latents,
        timesteps=timesteps,
        guidance=lambda step: SCALE * GRADIENT,
        callback_on_step_end=record,
        **options,
    )
    with torch.no_grad():
        output = pipe.unet(latents, timesteps[0]).sample.double()
    return latents.double(), *output.chunk(2, dim=1), trace[0]


def predicted_image(sample, noise, abar):
    original = (sample - math.sqrt(1 - abar) * noise) / math.sqrt(abar)
    assert (original.abs() > 1).any()
    return original.clamp(-1, 1)


def test_a_step_of_algorithm_1(pipes):
    """mean + scale Sigma g + noise."""
    sample, noise, raw, actual = first_step(pipes[DDPM])
    abar, abar_next = (ABAR[t] for t in TIMESTEPS)
    beta = 1 - abar / abar_next
    posterior_variance = beta * (1 - abar_next) / (1 - abar)
    mean = math.sqrt(abar_next) * beta / (1 - abar) * predicted_image(sample, noise, abar)
    mean = mean + math.sqrt(1 - beta) * (1 - abar_next) / (1 - abar) * sample
    share = (raw + 1) / 2
    variance = (share * math.log(beta) + (1 - share) * math.log(posterior_variance)).exp()
    expected = mean + SCALE * variance * GRADIENT + variance.sqrt() * torch.randn(sample.shape, generator=seeded())
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_last_step_of_algorithm_1_adds_no_noise(pipes):
    sample, noise, _, actual = first_step(pipes[DDPM], timesteps=[300])
    expected = predicted_image(sample, noise, ABAR[300]) + SCALE * (1 - ABAR[300]) * GRADIENT
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_a_step_of_algorithm_2(pipes, eta):
    """DDIM on eps - sqrt(1 - abar_t) scale g, where eps follows from the clipped image."""
    sample, noise, _, actual = first_step(pipes[DDIM], eta=eta)
    abar, abar_next = (ABAR[t] for t in TIMESTEPS)
    noise = (sample - math.sqrt(abar) * predicted_image(sample, noise, abar)) / math.sqrt(1 - abar)
    noise = noise - math.sqrt(1 - abar) * SCALE * GRADIENT
    original = (sample - math.sqrt(1 - abar) * noise) / math.sqrt(abar)
    std = eta * math.sqrt((1 - abar_next) / (1 - abar) * (1 - abar / abar_next))
    expected = math.sqrt(abar_next) * original + math.sqrt(1 - abar_next - std**2) * noise
    expected = expected + std * torch.randn(sample.shape, generator=seeded())
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def bright_or_dark():
    """A classifier of noisy images that learnt to tell dark images (0) from bright ones (1)."""
    torch.manual_seed(0)
    classifier = tiny.fresh_classifier(num_classes=2, pool="adaptive")
    diffusion = GaussianDiffusion(DDPMScheduler().betas)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    for _ in range(40):
        labels, timesteps = torch.randint(2, (16,)), torch.randint(1000, (16,))
        images = (labels * 2.0 - 1)[:, None, None, None].expand(-1, 3, 8, 8)
        logits = classifier(diffusion.q_sample(images, torch.randn(images.shape), timesteps), timesteps).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return classifier.eval()


@BOTH
def test_guidance_raises_the_probability_of_the_class(bright_or_dark, kind):
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace")
    pipe = kind(tiny.fresh_unet(), scheduler, bright_or_dark)
    pipe.set_progress_bar_config(disable=True)
    labels = torch.tensor([0, 1] * 8)

    def probability(scale):
        sample = draw(pipe, labels, classifier_scale=scale, num_inference_steps=6)
        with torch.no_grad():
            return bright_or_dark(sample, 0).logits.softmax(dim=-1)[torch.arange(16), labels].mean().item()

    unguided, guided = probability(0), probability(10.0)
    assert unguided < 0.7 and guided > 0.9


# ----------------------------------------------------------------------------------------------------------- timesteps


@BOTH
def test_timesteps_in_any_spacing(pipes, kind):
    pipe, seen = pipes[kind], []

    def record(pipe, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return {}

    expected = draw(pipe, timesteps=[990, 981, 20, 3], callback_on_step_end=record)
    assert seen == [(0, 990), (1, 981), (2, 20), (3, 3)]
    assert pipe.num_timesteps == 4
    for timesteps in ((990, 981, 20, 3), torch.tensor([990, 981, 20, 3]), np.array([990, 981, 20, 3])):
        assert torch.equal(draw(pipe, timesteps=timesteps), expected)
    evenly = {DDPM: [999, 500, 0], DDIM: [668, 334, 0]}[kind]
    assert torch.equal(draw(pipe, num_inference_steps=3), draw(pipe, timesteps=evenly))
    assert draw(pipe, timesteps=[0]).isfinite().all()


def test_eta(pipes):
    without, some, much = (draw(pipes[DDIM], eta=eta) for eta in (0.0, 0.5, 1.0))
    assert not torch.allclose(without, some, atol=1e-2) and not torch.allclose(some, much, atol=1e-2)
    latents = tiny.images()
    assert torch.equal(draw(pipes[DDIM], latents=latents, seed=1), draw(pipes[DDIM], latents=latents, seed=2))
    assert not torch.allclose(
        draw(pipes[DDIM], latents=latents, seed=1, eta=1), draw(pipes[DDIM], latents=latents, seed=2, eta=1), atol=1e-2
    )


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler(),
        DPMSolverMultistepScheduler(variance_type="learned_range"),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        UniPCMultistepScheduler(),
    ],
    ids=["dpm-solver", "dpm-solver of a learned variance", "sde", "unipc"],
)
def test_other_schedulers_on_guided_noise(pipes, scheduler):
    pipe = tiny.pipeline(DDIM, scheduler=scheduler)
    assert pipe.scheduler is scheduler
    options = {"num_inference_steps": 5}
    guided = draw(pipe, guidance=lambda step: GRADIENT, **options)
    unguided = draw(pipe, classifier_scale=0, **options)
    assert guided.isfinite().all()
    assert (guided - unguided)[GRADIENT > 1].mean() > 0.1 and (guided - unguided)[GRADIENT < -1].mean() < -0.1
    assert torch.equal(draw(pipe, guidance=lambda step: GRADIENT, **options), guided)


def test_a_first_step_that_blows_guidance_up_is_warned_of(caplog):
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    for spacing, scale, warned in (("linspace", 1.0, True), ("linspace", 0.0, False), ("leading", 1.0, False)):
        pipe = tiny.pipeline(DDIM, scheduler=DDIMScheduler(timestep_spacing=spacing, **cosine))
        caplog.clear()
        draw(pipe, classifier_scale=scale)
        assert ("timestep_spacing='leading'" in caplog.text) == warned


def test_stock_unet():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        num_class_embeds=tiny.NUM_CLASSES,
    )
    for kind in (DDPM, DDIM):
        pipe = kind(unet.eval(), DDPMScheduler(), tiny.classifier())
        pipe.set_progress_bar_config(disable=True)
        sample = draw(pipe, [0, 3])
        assert sample.isfinite().all()
        assert not torch.allclose(sample, draw(pipe, [1, 4]), atol=1e-3)


# ------------------------------------------------------------------------------------------------- noise and batches


@BOTH
def test_generator_and_latents(pipes, kind):
    pipe = pipes[kind]
    assert torch.equal(draw(pipe, seed=1), draw(pipe, seed=1))
    assert not torch.allclose(draw(pipe, seed=1), draw(pipe, seed=2), atol=1e-2)
    torch.manual_seed(1)
    assert torch.equal(draw(pipe, generator=None), draw(pipe, seed=1))

    generator = seeded(1)
    latents = torch.randn(2, 3, 8, 8, generator=generator)
    kept = latents.clone()
    assert torch.equal(draw(pipe, latents=latents, generator=generator), draw(pipe, seed=1))
    assert torch.equal(latents, kept)
    assert draw(pipe, latents=latents.double()).dtype == torch.float32


@pytest.mark.parametrize("kind, options", [(DDPM, {}), (DDIM, {}), (DDIM, {"eta": 1.0})], ids=["ddpm", "ddim", "eta"])
def test_image_with_its_own_generator_does_not_depend_on_the_batch(conditional_pipes, kind, options):
    pipe, labels, scales = conditional_pipes[kind], [0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]
    generators = [seeded(seed) for seed in range(8)]
    together = draw(pipe, labels, classifier_scale=scales, generator=generators, **options)
    for k in (0, 3, 7):
        for generator in (seeded(k), [seeded(k)]):
            alone = draw(pipe, labels[k], classifier_scale=scales[k], generator=generator, **options)
            assert (alone[0] - together[k]).abs().max() <= 1e-4


# -------------------------------------------------------------------------------------------------------------- output


@BOTH
@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA"), (5, None)])
def test_output_types(kind, channels, mode):
    pipe = tiny.pipeline(kind, in_channels=channels, out_channels=2 * channels, sample_size=(8, 16))
    latents = draw(pipe, classifier_scale=100.0)
    assert latents.dtype == torch.float32 and latents.shape == (2, channels, 8, 16)
    assert latents.abs().max() > 1, "not clipped"

    pt, array = (draw(pipe, classifier_scale=100.0, output_type=output_type) for output_type in ("pt", "np"))
    assert torch.equal(pt, (latents / 2 + 0.5).clamp(0, 1))
    assert isinstance(array, np.ndarray) and np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    if mode is not None:
        images = pipe([0, 3], STEPS, classifier_scale=100.0, generator=seeded()).images
        assert [(image.mode, image.size) for image in images] == [(mode, (16, 8))] * 2
        pixels = np.stack([np.asarray(image).reshape(8, 16, channels) for image in images])
        assert np.array_equal(pixels, (array * 255).round().astype(np.uint8))


@BOTH
def test_dictionary_or_tuple(pipes, kind):
    (images,) = pipes[kind]([0, 3], STEPS, generator=seeded(), output_type="latent", return_dict=False)
    assert torch.equal(images, draw(pipes[kind]))


@BOTH
def test_callback_sees_and_may_replace_the_sample(pipes, kind):
    pipe, calls = pipes[kind], []

    def callback(given, step, timestep, tensors):
        assert given is pipe
        calls.append((step, tensors["latents"].shape))
        return {"latents": torch.full_like(tensors["latents"], 0.25)} if step == STEPS - 1 else None

    assert (draw(pipe, callback_on_step_end=callback) == 0.25).all()
    assert calls == [(step, (2, 3, 8, 8)) for step in range(STEPS)]

    def nothing(given, step, timestep, tensors):
        assert tensors == {}
        return {}

    options = {"callback_on_step_end": nothing, "callback_on_step_end_tensor_inputs": []}
    assert torch.equal(draw(pipe, **options), draw(pipe))


@BOTH
def test_callback_may_interrupt(pipes, kind):
    pipe, trace = pipes[kind], []

    def interrupt(pipe, step, timestep, tensors):
        trace.append(tensors["latents"])
        pipe._interrupt = step == 1
        return {}

    assert torch.equal(draw(pipe, num_inference_steps=5, callback_on_step_end=interrupt), trace[1])
    assert len(trace) == 2
    assert draw(pipe).isfinite().all() and not pipe.interrupt


@BOTH
def test_progress_bar_counts_the_steps(kind):
    pipe, shown = tiny.pipeline(kind), io.StringIO()
    pipe.set_progress_bar_config(file=shown)
    draw(pipe, timesteps=[900, 400, 20, 10])
    assert "4/4" in shown.getvalue()


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, dtype):
    pipe = tiny.pipeline(kind, conditional=True).to(dtype)
    assert pipe.unet.dtype == pipe.classifier.dtype == dtype
    sample = draw(pipe, num_inference_steps=6)
    assert sample.dtype == torch.float32 and sample.isfinite().all()
    expected = draw(tiny.pipeline(kind, conditional=True), num_inference_steps=6)
    assert (sample - expected).abs().mean() < 0.1


# --------------------------------------------------------------------------------------------------------- saved files


def load_and_draw(folder, file):
    torch.save([draw(kind.from_pretrained(folder), classifier_scale=2.0) for kind in (DDPM, DDIM)], file)


def test_another_process_draws_the_same_from_the_saved_folder(tmp_path):
    pipes = [tiny.pipeline(kind, conditional=True) for kind in (DDPM, DDIM)]
    pipes[0].save_pretrained(tmp_path / "pipe")
    ended = run_function(load_and_draw, tmp_path / "pipe", tmp_path / "drawn", log=tmp_path / "log")
    assert ended.status == 0, ended.output
    for pipe, drawn in zip(pipes, torch.load(tmp_path / "drawn")):
        assert torch.equal(draw(pipe, classifier_scale=2.0), drawn)

    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["_class_name"] == DDPM.__name__
    assert index["unet"] == ["diffusers_cg", "ADMUNet2DModel"]
    assert index["classifier"] == ["diffusers_cg", "NoisyClassifierModel"]


@BOTH
def test_saved_defaults_are_used(tmp_path, kind):
    defaults = {
        "ddpm_num_inference_steps": 2,
        "ddpm_classifier_scale": 3.0,
        "ddim_num_inference_steps": 4,
        "ddim_classifier_scale": 5.0,
    }
    pipe = tiny.pipeline(kind)
    kind(**pipe.components, **defaults).save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    actual = loaded([0, 3], output_type="latent", generator=seeded()).images
    steps, scale = (2, 3.0) if kind is DDPM else (4, 5.0)
    assert loaded.num_timesteps == steps
    assert torch.equal(actual, draw(pipe, num_inference_steps=steps, classifier_scale=scale))


@BOTH
@pytest.mark.parametrize("variance_type", ["learned_range", "fixed_large"])
def test_one_folder_serves_both_pipelines(tmp_path, kind, variance_type):
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type=variance_type, timestep_spacing="linspace"
    )
    tiny.pipeline(kind, scheduler=scheduler).save_pretrained(tmp_path)
    for loaded_kind in (DDPM, DDIM):
        loaded = loaded_kind.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(draw(loaded), draw(tiny.pipeline(loaded_kind, scheduler=scheduler)))


@BOTH
def test_folder_without_a_classifier(tmp_path, kind):
    pipe = tiny.pipeline(kind, with_classifier=False)
    pipe.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.classifier is None
    assert torch.equal(draw(loaded, None), draw(pipe, None))


# ----------------------------------------------------------------------------------------------------------- bad input


def check_refused(pipe, changed, error, said):
    tiny.check_refused(pipe, {"class_labels": [0, 3], **changed}, error, said)


REFUSED = {
    "label out of range": ({"class_labels": [0, 5]}, ValueError, r"`class_labels` must lie in 0\.\.4, got \[0, 5\]"),
    "negative label": ({"class_labels": -1}, ValueError, r"`class_labels` must lie in 0\.\.4"),
    "fractional label": ({"class_labels": [0, 1.5]}, InputError, "`class_labels` must be whole numbers"),
    "float label": ({"class_labels": 2.0}, InputError, "`class_labels` must be whole numbers"),
    "bool label": ({"class_labels": True}, InputError, "`class_labels` must be whole numbers"),
    "bool labels": (
        {"class_labels": torch.tensor([True, False])},
        InputError,
        "must be whole numbers, got torch.bool",
    ),
    "text label": ({"class_labels": "cat"}, InputError, "`class_labels` must be whole numbers, got 'cat'"),
    "text labels": ({"class_labels": ["cat", "dog"]}, InputError, "`class_labels` must be whole numbers"),
    "label missing in between": ({"class_labels": [0, None]}, InputError, "`class_labels` must be whole numbers"),
    "ragged labels": ({"class_labels": [[0], [1, 2]]}, InputError, "`class_labels` must be whole numbers"),
    "nested labels": (
        {"class_labels": [[0], [1]]},
        ValueError,
        r"one label or a flat list of them, got shape \(2, 1\)",
    ),
    "no labels": ({"class_labels": []}, InputError, "`class_labels` must be"),
    "missing labels": ({"class_labels": None}, ValueError, r"`class_labels` are missing: guidance \(.*\) needs one"),
    "other number of labels": ({"batch_size": 3}, ValueError, "holds 2 labels for a batch of 3"),
    "no images": ({"class_labels": 0, "batch_size": 0}, ValueError, "`batch_size` must be a positive whole number"),
    "fractional batch": ({"class_labels": 0, "batch_size": 1.5}, ValueError, "`batch_size` must be a positive whole"),
    "no steps": ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be between 1 and 1000.*got 0"),
    "negative steps": ({"num_inference_steps": -3}, ValueError, "`num_inference_steps` must be between 1 and 1000"),
    "too many steps": ({"num_inference_steps": 1001}, ValueError, "`num_inference_steps` must be between 1 and 1000"),
    "fractional steps": ({"num_inference_steps": 2.5}, ValueError, "must be a whole number, got 2.5"),
    "steps as text": ({"num_inference_steps": "3"}, ValueError, "must be a whole number, got '3'"),
    "steps and timesteps": ({"num_inference_steps": 3, "timesteps": [3]}, ValueError, "either .* or `timesteps`"),
    "unsorted timesteps": ({"timesteps": [1, 5]}, ValueError, "`timesteps` must decrease strictly"),
    "timesteps twice": ({"timesteps": [5, 5]}, ValueError, "`timesteps` must decrease strictly"),
    "timesteps too high": ({"timesteps": [1000, 5]}, ValueError, "`timesteps` must decrease .* from at most 999"),
    "negative timesteps": ({"timesteps": [5, -1]}, ValueError, "`timesteps` must decrease .* to at least 0"),
    "no timesteps": ({"timesteps": []}, ValueError, r"`timesteps` must decrease strictly.*got \[\]"),
    "fractional timesteps": ({"timesteps": [5.5, 1]}, ValueError, "`timesteps` must be whole numbers"),
    "one number as timesteps": ({"timesteps": 5}, InputError, "`timesteps` must be"),
    "negative scale": ({"classifier_scale": -1}, ValueError, "must be finite and at least 0"),
    "one negative scale": ({"classifier_scale": [1, -1]}, ValueError, "must be finite and at least 0"),
    "NaN scale": ({"classifier_scale": math.nan}, ValueError, "must be finite and at least 0"),
    "infinite scale": ({"classifier_scale": math.inf}, ValueError, "must be finite and at least 0"),
    "scale as text": ({"classifier_scale": "high"}, InputError, "`classifier_scale` must be a number"),
    "other number of scales": ({"classifier_scale": [1, 2, 3]}, ValueError, r"one number or one per image \(2\)"),
    "nested scales": ({"classifier_scale": [[1], [2]]}, ValueError, r"one number or one per image \(2\)"),
    "other latents": (
        {"latents": torch.zeros(1, 3, 8, 8)},
        ValueError,
        r"`latents` must be of shape \(2, 3, 8, 8\), got \(1, 3, 8, 8\)",
    ),
    "other number of generators": ({"generator": [seeded()] * 3}, ValueError, "list of 3 for a batch of 2"),
    "seed as generator": (
        {"generator": 7},
        InputError,
        "`generator` must be a torch.Generator or a list of them, got 7",
    ),
    "latents as array": (
        {"latents": np.zeros((2, 3, 8, 8))},
        InputError,
        "`latents` must be a torch.Tensor, got ndarray",
    ),
    "unknown output": ({"output_type": "png"}, ValueError, r"`output_type` must be one of .*got 'png'"),
    "unknown callback tensors": (
        {"callback_on_step_end": lambda *_: {}, "callback_on_step_end_tensor_inputs": ["latents", "noise"]},
        ValueError,
        r"`callback_on_step_end_tensor_inputs` must be among \['latents'\], got \['noise'\]",
    ),
}


@BOTH
@pytest.mark.parametrize("changed, error, said", REFUSED.values(), ids=REFUSED)
def test_refused(pipes, kind, changed, error, said):
    check_refused(pipes[kind], changed, error, said)


@BOTH
def test_labels_missing_for_the_unet(conditional_pipes, kind):
    changed = {"class_labels": None, "classifier_scale": 0}
    check_refused(
        conditional_pipes[kind], changed, ValueError, "`class_labels` are missing: the class-conditional unet"
    )


@BOTH
def test_a_unet_trained_with_label_dropout_draws_without_labels(conditional_pipes, kind):
    plain = tiny.pipeline(kind)
    plain.unet.load_state_dict(conditional_pipes[kind].unet.state_dict(), strict=False)
    pipe = tiny.pipeline(kind)
    pipe.unet = tiny.unet(num_class_embeds=tiny.NUM_CLASSES, label_dropout=0.1)
    call = {"batch_size": 2, "classifier_scale": 0}
    assert torch.equal(draw(pipe, None, **call), draw(plain, None, **call))
    assert torch.equal(draw(pipe, [3, 3]), draw(conditional_pipes[kind], [3, 3]))
    check_refused(pipe, {"class_labels": None}, InputError, r"`class_labels` are missing: guidance \(.*\) needs one")


@BOTH
def test_scale_without_a_classifier(kind):
    pipe = tiny.pipeline(kind, with_classifier=False)
    check_refused(pipe, {"classifier_scale": 1.0}, ValueError, "has no classifier: pass `classifier_scale=0`")


@BOTH
def test_no_pil_images_of_five_channels(kind):
    pipe = tiny.pipeline(kind, in_channels=5, out_channels=10)
    check_refused(pipe, {}, ValueError, 'PIL has no images of 5 channels: pass `output_type="np"`')


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range(pipes, eta):
    check_refused(pipes[DDIM], {"eta": eta}, ValueError, rf"`eta` must lie in \[0, 1\], got {eta}")


def test_timesteps_for_a_scheduler_that_takes_none():
    pipe = tiny.pipeline(DDIM, scheduler=UniPCMultistepScheduler())
    check_refused(pipe, {"timesteps": [900, 10]}, ValueError, "takes no `timesteps` of its own")


NAMES = ["ant", "bee", "crane", "dog", "crane"]


@pytest.mark.parametrize(
    "of_unet, of_classifier",
    [
        ({"num_class_embeds": 5, "class_names": NAMES}, {}),
        ({}, {"class_names": NAMES}),
        ({"num_class_embeds": 5, "class_names": NAMES}, {"class_names": NAMES}),
    ],
    ids=["of the unet", "of the classifier", "of both"],
)
def test_classes_by_name(tmp_path, of_unet, of_classifier):
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace")
    pipe = DDIM(tiny.unet(**of_unet), scheduler, tiny.classifier(**of_classifier))
    pipe.save_pretrained(tmp_path)
    pipe = DDIM.from_pretrained(tmp_path)
    assert pipe.class_names == NAMES
    assert pipe.get_label_ids(["dog", "ant", "dog"]) == [3, 0, 3]
    assert pipe.get_label_ids("bee") == [1]
    with pytest.raises(ValueError, match=r"^There is no class 'bees'; the nearest of the 5 is 'bee'\.$"):
        pipe.get_label_ids(["ant", "bees"])
    with pytest.raises(ValueError, match=r"^'crane' is the name of classes \[2, 4\]: pass the number of the one"):
        pipe.get_label_ids(["crane"])


def test_classes_without_names():
    pipe = tiny.pipeline(DDIM)
    assert pipe.class_names is None
    with pytest.raises(ValueError, match="have no names: pass their numbers as `class_labels`"):
        pipe.get_label_ids(["ant"])


def test_the_digits_that_ship_are_named():
    for folder in (DIGITS, DIGITS / "low_res"):
        pipe = DDIM.from_pretrained(folder)
        assert pipe.unet.config.class_names == pipe.classifier.config.class_names == list("0123456789")
        assert pipe.get_label_ids(["3", "7"]) == [3, 7]


@BOTH
@pytest.mark.parametrize(
    "of_unet, of_classifier, said",
    [
        ({"in_channels": 1, "out_channels": 2}, {}, "the channels of the unet is 1, that of the classifier 3"),
        (
            {},
            {"sample_size": 16, "attention_resolutions": (8,)},
            r"the image size of the unet is \(8, 8\), that of the classifier \(16, 16\)",
        ),
        ({"sample_size": (8, 16)}, {"sample_size": (16, 8)}, "image size"),
        ({"num_class_embeds": 7}, {}, "the number of classes of the unet is 7, that of the classifier 5"),
        (
            {"num_class_embeds": 5, "class_names": list("abcde")},
            {"class_names": list("abxde")},
            "the name of class 2 of the unet is c, that of the classifier x",
        ),
    ],
    ids=["channels", "size", "orientation", "classes", "names"],
)
def test_unet_and_classifier_that_do_not_fit(kind, of_unet, of_classifier, said):
    unet, classifier = tiny.fresh_unet(**of_unet), tiny.fresh_classifier(**of_classifier)
    with pytest.raises(ValueError, match=f"do not fit together: .*{said}"):
        kind(unet, DDPMScheduler(), classifier)


@pytest.mark.parametrize(
    "kind, scheduler, said",
    [
        (DDIM, LCMScheduler(), "LCMScheduler .*use DDIMScheduler"),
        (DDIM, FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler"),
        (DDPM, FlowMatchEulerDiscreteScheduler(), "A scheduler with betas is needed"),
        (DDPM, DDPMScheduler(prediction_type="flow_prediction"), "`prediction_type` must be one of"),
        (DDIM, DDIMScheduler(rescale_betas_zero_snr=True), "Nothing is left of the image at timestep 999"),
        (DDIM, UnCLIPScheduler(), "UnCLIPScheduler cannot step on guided noise"),
        (DDPM, UnCLIPScheduler(), "The noise schedule of UnCLIPScheduler is one of its own"),
        (DDPM, DDPMScheduler(variance_type="learned"), "`variance_type` must be one of"),
        (
            DDPM,
            DDPMScheduler(variance_type="learned_range"),
            "expects a learned variance, but the unet has as many output",
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_schedulers_that_do_not_fit(kind, scheduler, said):
    with pytest.raises(ValueError, match=said):
        kind(tiny.fresh_unet(out_channels=3), scheduler)


# -------------------------------------------------------------------------------------------------------- inversion


def test_inversion_leads_back_to_the_image(conditional_pipes):
    pipe = conditional_pipes[DDIM]
    image = pipe([0, 3], num_inference_steps=8, generator=seeded(), output_type="pt", classifier_scale=0.0).images

    def error(steps):
        latents = pipe.invert(image, class_labels=[0, 3], num_inference_steps=steps)
        assert latents.shape == image.shape and latents.dtype == torch.float32
        options = {"num_inference_steps": steps, "classifier_scale": 0.0, "output_type": "pt"}
        return (pipe([0, 3], latents=latents, **options).images - image).abs().mean()

    assert error(64) < 0.5 * error(8)


def test_inversion_takes_images_of_any_form(pipes):
    pipe = pipes[DDIM]
    pil = pipe(batch_size=2, num_inference_steps=2, classifier_scale=0.0, generator=seeded()).images
    array = np.stack([np.asarray(image) for image in pil]).astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    expected = pipe.invert(tensor, num_inference_steps=STEPS)
    for image in (pil, array):
        assert torch.allclose(pipe.invert(image, num_inference_steps=STEPS), expected, atol=1e-6)
    assert torch.equal(pipe.invert(pil[0], timesteps=[900, 10]), pipe.invert(pil[:1], timesteps=[900, 10]))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(1, 3, 16, 8), "`image` must be of shape"),
        (torch.zeros(1, 1, 8, 8), "`image` must be of shape"),
        (torch.full((1, 3, 8, 8), 1.5), "not in \\[0, 1\\]"),
        (torch.full((1, 3, 8, 8), math.nan), "not in \\[0, 1\\]"),
    ],
)
def test_inversion_of_what_is_no_image_of_the_model(pipes, image, said):
    with pytest.raises(ValueError, match=said):
        pipes[DDIM].invert(image, num_inference_steps=STEPS)
