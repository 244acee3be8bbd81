"""The diffusion arithmetic against its definitions, and against diffusers' schedulers where those are right."""

import math
from copy import deepcopy

import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from diffusers_cg import GaussianDiffusion
from diffusers_cg.diffusion import (
    prior_term,
    resolve_timesteps,
    scheduler_on_guided_noise,
    split_model_output,
    to_ddim_scheduler,
    to_ddpm_scheduler,
    training_losses,
    training_scheduler,
    variational_bound_term,
)
from diffusers_cg.errors import InputError


BETAS = {schedule: DDPMScheduler(beta_schedule=schedule).betas for schedule in ("linear", "squaredcos_cap_v2")}
SUBSETS = {"all": None, "some": [999, 640, 630, 200, 3, 1], "few": [800, 400]}
CLEAN, NOISE, OUTPUT = (tiny.images(3, channels=channels, seed=seed) for seed, channels in enumerate((3, 3, 6)))
CLEAN = CLEAN.clamp(-1, 1)

schedules = pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS)
subsets = pytest.mark.parametrize("subset", SUBSETS.values(), ids=SUBSETS)


def alphas_cumprod(betas) -> list[float]:
    """By the definition, in float64."""
    products = [1.0]
    for beta in betas.tolist():
        products.append(products[-1] * (1 - beta))
    return products[1:]


def visited(diffusion) -> list[tuple[int, int | None]]:
    """Some (timestep, next timestep), the last among them."""
    timesteps = diffusion.timesteps.tolist()
    pairs = list(zip(timesteps, [*timesteps[1:], None]))
    return pairs[:-3:250] + pairs[-3:]


def close(actual, expected):
    return torch.allclose(actual.double(), torch.as_tensor(expected).double(), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- forward process


@schedules
@subsets
def test_forward_process(betas, subset):
    diffusion, abar = GaussianDiffusion(betas, subset), alphas_cumprod(betas)
    for t, _ in visited(diffusion):
        q = diffusion.q_mean_variance(CLEAN, t)
        assert close(q.mean, math.sqrt(abar[t]) * CLEAN.double())
        assert torch.allclose(q.variance.double(), torch.tensor(1 - abar[t]).double(), rtol=1e-6, atol=0)
        assert torch.allclose(q.log_variance, q.variance.log(), rtol=1e-5, atol=1e-6)
        expected = math.sqrt(abar[t]) * CLEAN.double() + math.sqrt(1 - abar[t]) * NOISE.double()
        assert close(diffusion.q_sample(CLEAN, NOISE, t), expected)


@schedules
@subsets
def test_posterior_by_bayes_rule(betas, subset):
    """The product of N(x_{t-1}; q given x_0) and N(x_t; q given x_{t-1}), normalized, in float64."""
    diffusion, abar = GaussianDiffusion(betas, subset), alphas_cumprod(betas)
    sample = NOISE.double()
    for t, previous in visited(diffusion)[:-1]:
        alpha = abar[t] / abar[previous]
        precision = alpha / (1 - alpha) + 1 / (1 - abar[previous])
        mean = math.sqrt(alpha) / (1 - alpha) * sample
        mean = (mean + math.sqrt(abar[previous]) / (1 - abar[previous]) * CLEAN.double()) / precision
        posterior = diffusion.q_posterior(CLEAN, NOISE, t)
        assert close(posterior.mean, mean)
        assert torch.allclose(posterior.variance.double(), torch.tensor(1 / precision).double(), rtol=1e-5, atol=0)
        assert close(posterior.log_variance, -math.log(precision))


@subsets
def test_the_last_step_ends_at_the_clean_image(subset):
    diffusion = GaussianDiffusion(BETAS["linear"], subset)
    second, last = diffusion.timesteps[-2:].tolist()
    posterior = diffusion.q_posterior(CLEAN, NOISE, last)
    assert close(posterior.mean, CLEAN)
    assert posterior.variance.item() == 0
    assert torch.equal(posterior.log_variance, diffusion.q_posterior(CLEAN, NOISE, second).log_variance)


# ---------------------------------------------------------------------------------------------------- reverse process


@schedules
@subsets
def test_ends_of_the_learned_range(betas, subset):
    diffusion, abar = GaussianDiffusion(betas, subset), alphas_cumprod(betas)
    for t, previous in visited(diffusion):
        beta = 1 - abar[t] / (1.0 if previous is None else abar[previous])
        ends = {-1: diffusion.q_posterior(CLEAN, NOISE, t).log_variance, 1: torch.tensor(math.log(beta))}
        middle = (ends[-1] + ends[1]) / 2
        for raw, expected in (*ends.items(), (0, middle)):
            p = diffusion.p_mean_variance(torch.cat([NOISE, torch.full_like(NOISE, raw)], dim=1), NOISE, t)
            assert close(p.log_variance, expected.expand_as(NOISE))
            assert torch.allclose(p.variance, p.log_variance.exp())


@subsets
def test_fixed_variances(subset):
    small, small_log, large, large_log = (
        GaussianDiffusion(BETAS["linear"], subset, variance_type=f"fixed_{name}")
        for name in ("small", "small_log", "large", "large_log")
    )
    for t, previous in visited(small):
        posterior = small.q_posterior(CLEAN, NOISE, t)
        for diffusion in (small, small_log):
            p = diffusion.p_mean_variance(NOISE, NOISE, t)
            assert torch.equal(p.variance, posterior.variance)
            assert torch.equal(p.log_variance, posterior.log_variance)
        for diffusion in (large, large_log):
            p = diffusion.p_mean_variance(NOISE, NOISE, t)
            at = diffusion.timesteps.flip(0) == t
            expected = posterior.log_variance.exp() if previous is None else diffusion.betas[at].float()
            assert torch.allclose(p.variance, expected, rtol=1e-5, atol=0)
            assert torch.allclose(p.log_variance, expected.log(), rtol=1e-5, atol=1e-6)


def test_mean_is_the_posterior_of_the_predicted_image():
    diffusion = GaussianDiffusion(BETAS["linear"])
    for clip_range in (None, 0.5):
        p = diffusion.p_mean_variance(OUTPUT, NOISE, 400, clip_range=clip_range)
        original = diffusion.predict_original(OUTPUT[:, :3], NOISE, 400)
        assert (original.abs() > 0.5).any()
        if clip_range is not None:
            original = original.clamp(-0.5, 0.5)
        assert torch.equal(diffusion.predict(OUTPUT, NOISE, 400, clip_range).pred_original_sample, original)
        assert torch.equal(p.mean, diffusion.q_posterior(original, NOISE, 400).mean)


@schedules
def test_noise_and_clean_image_follow_from_each_other(betas):
    diffusion = GaussianDiffusion(betas)
    for t in (0, 1, 10, 500, 990):
        sample = diffusion.q_sample(CLEAN, NOISE, t)
        assert torch.allclose(diffusion.predict_original(NOISE, sample, t), CLEAN, atol=1e-3)
        assert torch.allclose(diffusion.predict_noise(CLEAN, sample, t), NOISE, atol=1e-3)
        original = diffusion.predict_original(OUTPUT[:, :3], sample, t)
        assert torch.allclose(diffusion.predict_noise(original, sample, t), OUTPUT[:, :3], atol=1e-3)


def test_a_subset_is_the_process_of_its_respaced_betas():
    subset = SUBSETS["some"]
    kept = GaussianDiffusion(BETAS["linear"], subset)
    abar = torch.tensor(alphas_cumprod(BETAS["linear"]), dtype=torch.float64)[sorted(subset)]
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    assert torch.allclose(kept.betas, betas, rtol=1e-12, atol=0)
    assert torch.allclose(kept.alphas_cumprod, abar, rtol=1e-12, atol=0)

    respaced = GaussianDiffusion(betas)
    for index, t in enumerate(sorted(subset)):
        p, expected = kept.p_mean_variance(OUTPUT, NOISE, t), respaced.p_mean_variance(OUTPUT, NOISE, index)
        for name in ("mean", "variance", "log_variance"):
            assert torch.allclose(getattr(p, name), getattr(expected, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variance_type", ["learned_range", "fixed_small", "fixed_large"])
def test_timestep_per_image(variance_type):
    diffusion = GaussianDiffusion(BETAS["linear"], SUBSETS["some"], variance_type=variance_type)
    timesteps = torch.tensor([640, 1, 999])
    p = diffusion.p_mean_variance(OUTPUT, NOISE, timesteps, clip_range=1.0)
    for i, t in enumerate(timesteps.tolist()):
        alone = diffusion.p_mean_variance(OUTPUT[i : i + 1], NOISE[i : i + 1], t, clip_range=1.0)
        assert torch.equal(p.mean[i], alone.mean[0])
        assert torch.equal(p.variance[i], alone.variance[0])
    assert torch.equal(
        diffusion.q_sample(CLEAN, NOISE, torch.tensor(200)), diffusion.q_sample(CLEAN, NOISE, torch.tensor([200] * 3))
    )


def test_second_half_of_the_output():
    assert split_model_output(NOISE, NOISE) == (NOISE, None)
    predicted_noise, predicted_variance = split_model_output(OUTPUT, NOISE)
    assert torch.equal(torch.cat([predicted_noise, predicted_variance], dim=1), OUTPUT)
    fixed = GaussianDiffusion(BETAS["linear"], variance_type="fixed_small")
    ignored, given = (fixed.p_mean_variance(output, NOISE, 400) for output in (OUTPUT, OUTPUT[:, :3]))
    assert torch.equal(ignored.mean, given.mean) and torch.equal(ignored.variance, given.variance)
    with pytest.raises(ValueError, match="twice as many output channels as the sample has, got 3 for 3"):
        GaussianDiffusion(BETAS["linear"]).p_mean_variance(NOISE, NOISE, 400)


def test_a_timestep_outside_the_subset_gives_no_other_one_s_numbers():
    diffusion = GaussianDiffusion(torch.linspace(1e-4, 0.02, 10), timesteps=[9, 5, 0])
    noise = torch.ones(2, 1, 2, 2)
    assert diffusion.q_sample(noise, noise, 5).isfinite().all()
    for timestep in (4, torch.tensor([5, 4])):
        assert diffusion.q_sample(noise, noise, timestep)[-1].isnan().all()


# ------------------------------------------------------------------------------------------------------ refused input


@pytest.mark.parametrize("timesteps", [[], [1000], [-1], [5, -1], [1, 2], [2, 2], [9, 3, 4]], ids=str)
def test_refused_timesteps(timesteps):
    for refuse in (
        lambda: GaussianDiffusion(BETAS["linear"], timesteps),
        lambda: resolve_timesteps(DDPMScheduler(), None, timesteps),
        lambda: resolve_timesteps(DDIMScheduler(), None, timesteps),
    ):
        with pytest.raises(ValueError, match="`timesteps` must decrease strictly from at most 999 to at least 0, got"):
            refuse()


@pytest.mark.parametrize("variance_type", ["learned", "fixed", "", None])
def test_refused_variance_types(variance_type):
    with pytest.raises(ValueError, match="`variance_type` must be one of"):
        GaussianDiffusion(BETAS["linear"], variance_type=variance_type)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(prediction_type="flow_prediction"),
        FlowMatchEulerDiscreteScheduler(),
        DDPMScheduler(rescale_betas_zero_snr=True),
    ],
    ids=["another prediction", "flow matching", "no signal at the last timestep"],
)
def test_refused_processes(scheduler):
    with pytest.raises(InputError):
        GaussianDiffusion.from_scheduler(scheduler)


# ------------------------------------------------------------------------------------------------------------- losses


def losses_of(model_output, timesteps, **options):
    diffusion = GaussianDiffusion(BETAS["linear"])
    sample = diffusion.q_sample(CLEAN, NOISE, timesteps)
    return training_losses(diffusion, model_output, CLEAN, NOISE, sample, timesteps, **options)


def test_gradient_of_the_bound_reaches_the_variance_alone():
    model_output = OUTPUT.clone().requires_grad_(True)
    losses = losses_of(model_output, torch.tensor([0, 5, 999]))
    gradients = [
        torch.autograd.grad(loss.sum(), model_output, retain_graph=True)[0]
        for loss in (losses.loss, losses.mse, losses.vb)
    ]
    of_loss, of_mse, of_vb = (gradient.chunk(2, dim=1) for gradient in gradients)
    assert not of_vb[0].any() and not of_mse[1].any()
    assert of_vb[1].flatten(1).any(dim=1).all()
    assert torch.equal(of_loss[0], of_mse[0])
    assert torch.allclose(of_loss[1], 0.001 * 1000 * of_vb[1])


def test_the_loss_is_the_noise_error_plus_the_bound_over_all_timesteps():
    timesteps = torch.tensor([0, 5, 999])
    losses = losses_of(OUTPUT, timesteps, lambda_vlb=0.01)
    assert torch.allclose(losses.mse, (OUTPUT[:, :3] - NOISE).square().mean(dim=(1, 2, 3)))
    assert torch.allclose(losses.loss, losses.mse + 0.01 * 1000 * losses.vb)
    assert losses.loss.shape == losses.vb.shape == (3,)
    reduced = losses_of(OUTPUT.bfloat16(), timesteps)
    assert reduced.loss.dtype == torch.float32


def test_fixed_variance_has_no_bound():
    losses = losses_of(OUTPUT[:, :3], torch.tensor([0, 5, 999]))
    assert losses.vb is None
    assert torch.equal(losses.loss, losses.mse)


def test_bound_of_the_true_noise_with_the_posterior_variance_is_zero():
    diffusion = GaussianDiffusion(BETAS["linear"])
    timesteps = torch.tensor([1, 50, 999])
    sample = diffusion.q_sample(CLEAN, NOISE, timesteps)
    perfect = torch.cat([NOISE, torch.full_like(NOISE, -1)], dim=1)
    term = variational_bound_term(diffusion, perfect, CLEAN, sample, timesteps)
    assert term.abs().max() < 1e-4
    shifted = torch.cat([NOISE + 0.1, torch.full_like(NOISE, -1)], dim=1)
    posterior = diffusion.q_posterior(CLEAN, sample, timesteps)
    difference = diffusion.p_mean_variance(shifted, sample, timesteps).mean - posterior.mean
    expected = (difference.square() / posterior.variance / 2).mean(dim=(1, 2, 3)) / math.log(2)
    assert torch.allclose(
        variational_bound_term(diffusion, shifted, CLEAN, sample, timesteps), expected, rtol=1e-2, atol=1e-4
    )


@pytest.mark.parametrize("subset", [None, [600, 300]], ids=["all", "subset"])
def test_likelihoods_of_all_pixel_values_sum_to_one(subset):
    diffusion = GaussianDiffusion(BETAS["linear"], subset)
    last = diffusion.timesteps[-1].item()
    every_value = torch.linspace(-1, 1, 256).reshape(256, 1, 1, 1)
    for noise, raw in ((0.3, 0.5), (-1.5, 1.0)):
        model_output = torch.tensor([noise, raw]).reshape(1, 2, 1, 1).expand(256, -1, -1, -1)
        sample = torch.full_like(every_value, 0.25)
        bits = variational_bound_term(diffusion, model_output, every_value, sample, torch.full((256,), last))
        assert torch.exp2(-bits).sum() == pytest.approx(1, abs=1e-4)


def test_prior_term():
    diffusion = GaussianDiffusion(BETAS["linear"], [500, 20])
    abar = alphas_cumprod(BETAS["linear"])[500]
    expected = 0.5 * (abar * CLEAN.square() - abar - math.log(1 - abar)).mean(dim=(1, 2, 3)) / math.log(2)
    assert torch.allclose(prior_term(diffusion, CLEAN), expected, rtol=1e-4)


# -------------------------------------------------------------------------------------------- diffusers' schedulers


@pytest.mark.parametrize("variance_type", ["learned_range", "fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("clip_sample", [True, False])
@schedules
def test_a_step_of_ddpm(betas, variance_type, clip_sample):
    scheduler = DDPMScheduler(trained_betas=betas.numpy(), variance_type=variance_type, clip_sample=clip_sample)
    scheduler.set_timesteps(timesteps=[990, 640, 630, 20, 0])
    diffusion = GaussianDiffusion.from_scheduler(scheduler, scheduler.timesteps)
    model_output = OUTPUT if variance_type == "learned_range" else OUTPUT[:, :3]
    for t in scheduler.timesteps[:-1]:
        expected = scheduler.step(model_output, t, CLEAN, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(CLEAN.shape, generator=torch.Generator().manual_seed(0))
        p = diffusion.p_mean_variance(model_output, CLEAN, t, clip_range=1.0 if clip_sample else None)
        sample = p.mean + (0.5 * p.log_variance).exp() * noise
        assert torch.allclose(sample, expected.prev_sample, rtol=1e-4, atol=1e-4)
        original = diffusion.predict(model_output, CLEAN, t, 1.0 if clip_sample else None).pred_original_sample
        assert torch.allclose(original, expected.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_of_ddim(eta):
    """Equal spacing, where the stock scheduler is exact: clipping it does is ours on the noise of the clipped image."""
    stock = DDIMScheduler(timestep_spacing="leading")
    timesteps = resolve_timesteps(stock, 5, None)
    diffusion = GaussianDiffusion.from_scheduler(stock, timesteps)
    scheduler = scheduler_on_guided_noise(deepcopy(stock), diffusion)
    assert stock.config.clip_sample and not scheduler.config.clip_sample
    for t, index in zip(timesteps, scheduler.timesteps):
        original = diffusion.predict_original(OUTPUT[:, :3], CLEAN, t).clamp(-1, 1)
        noise = diffusion.predict_noise(original, CLEAN, t)
        options = {"eta": eta, "generator": torch.Generator().manual_seed(0)}
        sample = scheduler.step(noise, index, CLEAN, **options).prev_sample
        options["generator"].manual_seed(0)
        expected = stock.step(OUTPUT[:, :3], t, CLEAN, use_clipped_model_output=True, **options).prev_sample
        assert torch.allclose(sample, expected, rtol=1e-4, atol=1e-4)


def test_a_step_of_ddim_between_unequal_timesteps():
    stock = DDIMScheduler()
    diffusion = GaussianDiffusion.from_scheduler(stock, resolve_timesteps(stock, None, [900, 250, 10]))
    abar = alphas_cumprod(stock.betas)
    scheduler = scheduler_on_guided_noise(stock, diffusion)
    for index, abar_t, abar_previous in zip(
        scheduler.timesteps, (abar[900], abar[250], abar[10]), (abar[250], abar[10], 1.0)
    ):
        original = (CLEAN - math.sqrt(1 - abar_t) * NOISE) / math.sqrt(abar_t)
        expected = math.sqrt(abar_previous) * original + math.sqrt(1 - abar_previous) * NOISE
        assert torch.allclose(scheduler.step(NOISE, index, CLEAN).prev_sample, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "scheduler, expected",
    [
        (DDPMScheduler(timestep_spacing="linspace"), [999, 666, 333, 0]),
        (DDIMScheduler(timestep_spacing="leading"), [750, 500, 250, 0]),
        (UniPCMultistepScheduler(timestep_spacing="trailing"), [999, 749, 499, 249]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_timesteps_as_the_scheduler_spaces_them(scheduler, expected):
    assert resolve_timesteps(scheduler, 4, None) == expected
    assert scheduler.timesteps.tolist() == expected


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_timesteps_of_ones_own(kind):
    scheduler = kind()
    assert resolve_timesteps(scheduler, None, torch.tensor([900, 250, 10])) == [900, 250, 10]
    assert scheduler.timesteps.tolist() == [900, 250, 10]


def test_scheduler_that_takes_no_timesteps():
    with pytest.raises(ValueError, match="UniPCMultistepScheduler takes no `timesteps` of its own"):
        resolve_timesteps(UniPCMultistepScheduler(), None, [900, 250, 10])


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, "4", True, None])
def test_refused_numbers_of_steps(steps):
    with pytest.raises(ValueError, match=f"`num_inference_steps` must be .*got {steps!r}"):
        resolve_timesteps(DDPMScheduler(), steps, None)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "sigmoid"])
def test_betas_are_scaled_to_the_number_of_steps_and_stay_below_1(schedule):
    usual = training_scheduler(1000, schedule).betas
    for num_steps in (*range(1, 26), 500, 4000):
        betas = training_scheduler(num_steps, schedule).betas
        assert ((betas > 0) & (betas < 1)).all()
        if num_steps > 20:
            assert torch.allclose(betas[[0, -1]], usual[[0, -1]] * 1000 / num_steps)
    unscaled = training_scheduler(500, schedule, scale_betas=False).betas
    assert torch.allclose(unscaled[[0, -1]], usual[[0, -1]])


def test_conversion_to_ddim():
    ddpm = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False, variance_type="learned_range")
    ddim = to_ddim_scheduler(ddpm)
    assert type(ddim) is DDIMScheduler
    assert torch.equal(ddim.betas, ddpm.betas)
    assert not ddim.config.clip_sample and ddim.config.timestep_spacing == "leading"
    for scheduler in (ddim, DPMSolverMultistepScheduler(), UniPCMultistepScheduler()):
        assert to_ddim_scheduler(scheduler) is scheduler


@pytest.mark.parametrize("kind", [LCMScheduler, FlowMatchEulerDiscreteScheduler])
def test_schedulers_of_other_processes_are_refused(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} .*use DDIMScheduler"):
        to_ddim_scheduler(kind())


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_conversion_to_ddpm(kind):
    scheduler = kind(beta_schedule="squaredcos_cap_v2")
    for learned_variance, variance_type in ((True, "learned_range"), (False, "fixed_small")):
        ddpm = to_ddpm_scheduler(scheduler, learned_variance)
        assert type(ddpm) is DDPMScheduler
        assert torch.allclose(ddpm.betas, scheduler.betas)
        assert ddpm.config.variance_type == variance_type and ddpm.config.timestep_spacing == "linspace"


@pytest.mark.parametrize("variance_type", ["learned_range", "fixed_large"])
def test_variance_type_survives_ddim(variance_type):
    """The one that the scheduler states goes before what the unet could give."""
    ddpm = DDPMScheduler(variance_type=variance_type)
    assert to_ddpm_scheduler(ddpm, learned_variance=True) is ddpm
    back = to_ddpm_scheduler(to_ddim_scheduler(ddpm), learned_variance=True)
    assert back.config.variance_type == variance_type


def test_a_learned_variance_needs_a_unet_that_gives_one():
    with pytest.raises(InputError, match="expects a learned variance"):
        to_ddpm_scheduler(DDPMScheduler(variance_type="learned_range"), learned_variance=False)
    assert to_ddpm_scheduler(DDPMScheduler(), learned_variance=False).config.variance_type == "fixed_small"


# ------------------------------------------------------------------------------------------------ fractional timesteps


@pytest.mark.parametrize("variance_type", ["learned_range", "fixed_small", "fixed_large"])
def test_between_whole_timesteps(variance_type):
    """Whole numbers as floats give what integers do; halfway, sigma and variances are the geometric means."""
    diffusion = GaussianDiffusion(BETAS["linear"], variance_type=variance_type)
    output = OUTPUT if variance_type == "learned_range" else OUTPUT[:, :3]
    whole, same = (diffusion.predict(output, NOISE, t, clip_range=1.0) for t in (400, 400.0))
    for name, value in vars(whole).items():
        assert torch.allclose(value, getattr(same, name), rtol=1e-5, atol=1e-6), name

    def sigma(t):
        return diffusion.coefficient("sqrt_recip_abar_minus_one", t, NOISE)

    assert torch.allclose(sigma(400.5), (sigma(400) * sigma(401)).sqrt(), rtol=1e-5)
    t = torch.tensor([0.5, 400.25, 998.75])[: len(NOISE)]
    abar = diffusion.coefficient("abar", t, NOISE)
    assert torch.allclose(diffusion.coefficient("sqrt_recip_abar", t, NOISE), abar.rsqrt(), rtol=1e-5)
    below, between, above = (diffusion.predict(output, NOISE, t) for t in (400, 400.5, 401))
    mean = (below.log_variance + above.log_variance) / 2
    assert torch.allclose(between.log_variance, mean, rtol=1e-5, atol=1e-5)
    assert torch.allclose(between.variance, mean.exp(), rtol=1e-4)
    original = diffusion.predict_original(output[:, :3], NOISE, t)
    assert torch.allclose(diffusion.predict_noise(original, NOISE, t), output[:, :3], rtol=1e-3, atol=1e-4)
