"""Networks, samplers and losses against numbers that the reference implementation computed (`tests/data`)."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from reference import (
    CASES,
    COMMUNITY,
    COMMUNITY_CASES,
    FORWARD,
    LOSSES,
    SAMPLERS,
    TIMESTEPS,
    reference_classifier,
    reference_facts,
    reference_unet,
    rule_state_dict,
)

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    GaussianDiffusion,
)
from diffusers_cg.diffusion import (
    LossSecondMomentSampler,
    bits_per_dimension,
    prior_term,
    resolve_timesteps,
    training_losses,
    training_scheduler,
)
from diffusers_cg.guidance import classifier_gradient
from diffusers_cg.models.fine_tuning import with_replaced


BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("name", CASES["forward"]["unet"])
@torch.no_grad()
def test_unet(name):
    unet = reference_unet(name)
    class_labels = FORWARD["y"] if unet.config.num_class_embeds else None
    output = unet(FORWARD["x"], FORWARD["t"], class_labels).sample
    assert relative_error(output, FORWARD[f"unet.{name}"]) <= 1e-5


@torch.no_grad()
def test_upsampling_unet():
    unet = reference_unet("fixed_heads")
    output = unet(FORWARD["x"], FORWARD["t"], FORWARD["y"], low_res=FORWARD["superres.low_res"]).sample
    assert relative_error(output, FORWARD["superres.output"]) <= 1e-5


@pytest.mark.parametrize("pool", CASES["forward"]["classifier"])
def test_classifier_and_its_gradient(pool):
    classifier = reference_classifier(pool)
    logits = classifier(FORWARD["x"], FORWARD["t"]).logits
    assert relative_error(logits, FORWARD[f"classifier.{pool}.logits"]) <= 1e-5
    gradient = classifier_gradient(classifier, FORWARD["x"], FORWARD["t"], FORWARD["y"])
    assert relative_error(gradient, FORWARD[f"classifier.{pool}.gradient"]) <= 1e-5


def reference_pipeline(name: str, case: dict):
    """The pipeline of a sampler run, and what its call takes beside the common arguments."""
    classifier = reference_classifier("attention")
    schedule = {"beta_schedule": BETA_SCHEDULES[case["noise_schedule"]], "clip_sample": case["clip_denoised"]}
    variance_type = "learned_range" if case["learned_range"] else "fixed_large"
    ddpm_scheduler = DDPMScheduler(variance_type=variance_type, timestep_spacing="linspace", **schedule)
    if name.startswith("superres"):
        low_res, unet = SAMPLERS[f"{name}.low_res"], reference_unet("fixed_heads")
        # the reference's is noise, beyond the [-1, 1] of an image: shrunk into it, with the weights that it meets enlarged
        bound = low_res.abs().max()
        unet.conv_in.weight.data[:, unet.config.in_channels :] *= bound
        size = {"low_res_size": low_res.shape[-1]}
        pipe = ClassifierGuidedSuperResolutionPipeline(unet, ddpm_scheduler, classifier, **size)
        return pipe, {"image": (low_res / bound + 1) / 2}

    if not case["class_conditional"]:
        unet = reference_unet("unconditional_dropout")
    else:
        unet = reference_unet("new_order_heads_by_width" if case["learned_range"] else "fixed_variance")
    if case["sampler"] == "ddpm":
        return ClassifierGuidedDDPMPipeline(unet, ddpm_scheduler, classifier), {}
    scheduler = DDIMScheduler(timestep_spacing="leading", **schedule)
    return ClassifierGuidedDDIMPipeline(unet, scheduler, classifier), {"eta": case["eta"]}


@pytest.mark.parametrize("name", CASES["samplers"])
def test_sampler_at_every_step(name):
    case = CASES["samplers"][name]
    pipe, options = reference_pipeline(name, case)
    pipe.set_progress_bar_config(disable=True)
    evenly_spaced = "," not in case["timestep_respacing"]
    steps = {"num_inference_steps": len(case["timesteps"])} if evenly_spaced else {"timesteps": case["timesteps"]}
    trace, timesteps = [], []

    def record(pipe, step, timestep, tensors):
        trace.append(tensors["latents"])
        timesteps.append(int(timestep))
        return {}

    sample = pipe(
        class_labels=case["class_labels"],
        classifier_scale=case["classifier_scale"],
        generator=torch.Generator().manual_seed(case["seed"]),
        output_type="latent",
        callback_on_step_end=record,
        **steps,
        **options,
    ).images

    assert timesteps == case["timesteps"]
    assert (sample - SAMPLERS[f"{name}.sample"]).abs().max() <= 1e-4
    if f"{name}.trace" in SAMPLERS:
        assert (torch.stack(trace) - SAMPLERS[f"{name}.trace"]).abs().max() <= 1e-4


def test_ddim_inversion():
    scheduler = DDIMScheduler(timestep_spacing="leading", clip_sample=True)
    pipe = ClassifierGuidedDDIMPipeline(reference_unet("new_order_heads_by_width"), scheduler)
    pipe.set_progress_bar_config(disable=True)
    image = (SAMPLERS["ddim_reverse.image"] + 1) / 2
    latents = pipe.invert(image, class_labels=[4, 9], num_inference_steps=10)
    assert (latents - SAMPLERS["ddim_reverse.latent"]).abs().max() <= 1e-4


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@torch.no_grad()
def test_losses(schedule):
    clean_images, noise, timesteps = LOSSES["x_start"], LOSSES["noise"], LOSSES["t"]
    diffusion = GaussianDiffusion.from_scheduler(
        DDPMScheduler(beta_schedule=BETA_SCHEDULES[schedule], variance_type="learned_range")
    )
    sample = diffusion.q_sample(clean_images, noise, timesteps)
    model_output = reference_unet("new_order_heads_by_width")(sample, timesteps, LOSSES["y"]).sample
    losses = {
        loss_type: training_losses(
            diffusion, model_output, clean_images, noise, sample, timesteps, loss_type=loss_type
        )
        for loss_type in ("hybrid", "rescaled_hybrid", "kl", "rescaled_kl")
    }

    assert relative_error(sample, LOSSES[f"{schedule}.x_t"]) <= 1e-6
    for loss_type, weighting in (("hybrid", "hybrid"), ("rescaled_hybrid", "hybrid_rescaled")):
        for name in ("loss", "mse", "vb"):
            expected = LOSSES[f"{schedule}.{weighting}.{name}"]
            assert torch.allclose(getattr(losses[loss_type], name), expected, rtol=1e-4, atol=0), name
    rescaled_kl = LOSSES[f"{schedule}.rescaled_kl.loss"]
    assert torch.allclose(losses["rescaled_kl"].loss, rescaled_kl, rtol=1e-4, atol=0)
    assert torch.allclose(losses["kl"].loss * 1000, rescaled_kl, rtol=1e-4, atol=0)
    assert relative_error(prior_term(diffusion, clean_images), LOSSES[f"{schedule}.prior_bpd"]) <= 1e-4


def test_loss_second_moment_weights():
    losses = LOSSES["loss_second_moment.losses"]
    sampler = LossSecondMomentSampler(losses.shape[1], history_size=3)
    for row in losses:
        sampler.update(torch.arange(losses.shape[1]), row)
    assert relative_error(sampler.probabilities, LOSSES["loss_second_moment.weights"]) <= 1e-6


def test_variational_bound_over_a_subset_of_timesteps():
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    diffusion = GaussianDiffusion.from_scheduler(scheduler, scheduler.timesteps)
    unet = reference_unet("new_order_heads_by_width")
    bits = bits_per_dimension(
        diffusion,
        lambda sample, timestep: unet(sample, timestep, LOSSES["y"]).sample,
        LOSSES["x_start"],
        generator=torch.Generator().manual_seed(12),
    )
    for name in ("vb", "mse", "xstart_mse"):
        assert relative_error(getattr(bits, name), LOSSES[f"bpd_20_steps_seed12.{name}"]) <= 1e-4, name
    assert relative_error(bits.prior, LOSSES["bpd_20_steps_seed12.prior_bpd"]) <= 1e-4
    assert relative_error(bits.total, LOSSES["bpd_20_steps_seed12.total_bpd"]) <= 1e-4


# ------------------------------------------------------- other processes and predictions, numbers of steps, parts of the process


def community_unet(learned_range=True, **words):
    """The network of the runs without labels or classifier."""
    state_dict = rule_state_dict(COMMUNITY_CASES["shapes"])
    if not learned_range:  # three output channels, of which the rule makes other weights
        shapes = {name: [3, *state_dict[name].shape[1:]] for name in ("out.2.weight", "out.2.bias")}
        state_dict |= rule_state_dict(shapes)
    unet = ADMUNet2DModel.from_single_file(state_dict, **reference_facts(COMMUNITY_CASES["flags"]))
    return with_replaced(unet, **words)[0].eval()


@pytest.mark.parametrize("name", COMMUNITY_CASES["samplers"])
def test_other_processes_predictions_and_numbers_of_steps(name):
    case = COMMUNITY_CASES["samplers"][name]
    process = {
        "num_train_timesteps": case["num_train_timesteps"],
        "beta_schedule": BETA_SCHEDULES[case["noise_schedule"]],
        "prediction_type": case["prediction_type"],
    }
    unet = community_unet(case["learned_range"], rescale_timesteps=case["rescale_timesteps"], **process)
    scheduler = training_scheduler(
        **process, variance_type="learned_range" if case["learned_range"] else "fixed_large"
    )
    kind = ClassifierGuidedDDPMPipeline if case["sampler"] == "ddpm" else ClassifierGuidedDDIMPipeline
    pipe, trace, timesteps, network_times = kind(unet, scheduler), [], [], []
    pipe.set_progress_bar_config(disable=True)
    unet.time_proj.register_forward_pre_hook(lambda module, inputs: network_times.append(inputs[0].tolist()))

    def record(pipe, step, timestep, tensors):
        trace.append(tensors["latents"])
        timesteps.append(int(timestep))
        return {}

    pipe(
        batch_size=2,
        num_inference_steps=len(case["timesteps"]),
        generator=torch.Generator().manual_seed(case["seed"]),
        callback_on_step_end=record,
    )
    assert timesteps == case["timesteps"]
    assert network_times == [[time, time] for time in case["network_times"]]
    assert (torch.stack(trace) - COMMUNITY[f"{name}.trace"]).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("ddpm", DDPMScheduler(timestep_spacing="linspace")), ("ddim", DDIMScheduler(timestep_spacing="leading"))],
    ids=["ddpm", "ddim"],
)
def test_timesteps_of_every_number_of_steps(sampler, scheduler):
    """The reference's where it has some; for any other number, evenly from the last timestep."""
    strides = {}
    for stride in range(999, 0, -1):
        strides[len(range(0, 1000, stride))] = stride  # the smallest, of several that make as many steps
    for number in range(1, 1001):
        timesteps = resolve_timesteps(scheduler, number, None)
        if sampler == "ddim" and number in strides:
            assert timesteps == list(range(0, 1000, strides[number]))[::-1]
        elif number == 1:
            assert timesteps == [0 if sampler == "ddpm" else 999]
        else:
            assert all(abs(t - 999 * (1 - i / (number - 1))) < 0.501 for i, t in enumerate(timesteps)), number
        expected = TIMESTEPS[sampler].get(str(number))
        if expected is not None:
            assert timesteps == sorted(expected, reverse=True)


def test_inversion_of_a_part_of_the_process():
    scheduler = DDIMScheduler(timestep_spacing="leading", clip_sample=True)
    pipe = ClassifierGuidedDDIMPipeline(community_unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    image = (COMMUNITY["ddim_reverse_part.image"] + 1) / 2
    latents = pipe.invert(image, timesteps=[600, 500, 400, 300, 200, 100, 0])
    assert (latents - COMMUNITY["ddim_reverse_part.latent"]).abs().max() <= 1e-4
