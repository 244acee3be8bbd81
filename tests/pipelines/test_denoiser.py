"""D(x, sigma): in a mixture of Gaussians, where clean images and scores are known; between noise levels and timesteps; in deepinv."""

import exact
import pytest
import tiny
import torch
from diffusers import DDPMScheduler
from exact import MEANS, SPREAD
from tiny import seeded

from diffusers_cg import ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline, Denoiser
from diffusers_cg.errors import InputError


LEVELS = [0.0123, 0.1, 0.7, 3.0, 30.0, 150.0]


def exact_pipeline(**options) -> ClassifierGuidedDDPMPipeline:
    pipe = ClassifierGuidedDDPMPipeline(exact.ExactUNet(**options), exact.PROCESS, exact.ExactClassifier())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return exact_pipeline()


def known_clean_images(x, sigma, class_labels=None):
    """E[x_0 | x_0 + sigma noise = x], or given the class, too."""
    variance = SPREAD**2 + sigma**2
    weights = (-(x[:, None] - MEANS).square().sum(dim=(2, 3, 4)) / (2 * variance)).softmax(dim=1)
    if class_labels is not None:
        weights = torch.nn.functional.one_hot(class_labels, 2).float()
    mean = torch.einsum("bk,kchw->bchw", weights, MEANS)
    return (SPREAD**2 * x + sigma**2 * mean) / variance


def known_log_density(x, sigma):
    squares = (x[:, None] - MEANS).square().sum(dim=(2, 3, 4))
    return (-squares / (2 * (SPREAD**2 + sigma**2))).logsumexp(dim=1)


def noisy(sigma=1.0, number=5):
    return max(sigma, 0.5) * torch.randn(number, 1, 2, 2, generator=seeded())


@pytest.mark.parametrize("sigma", LEVELS)
def test_clean_images_and_scores_are_the_known_ones(pipe, sigma):
    denoise, x = Denoiser(pipe), noisy(sigma).requires_grad_(True)
    clean_images = known_clean_images(x, sigma)
    assert torch.allclose(denoise(x, sigma), clean_images, atol=1e-5 + 5e-7 * sigma)  # of float32
    (score,) = torch.autograd.grad(known_log_density(x, sigma).sum(), x)
    assert torch.allclose(denoise.score(x, sigma), score, rtol=2e-3, atol=1e-3 / sigma)


def test_a_noise_level_and_a_class_of_each_image(pipe):
    sigma, x = torch.tensor([0.1, 0.7, 3.0, 0.7, 30.0]), noisy()
    known = torch.cat([known_clean_images(x[i : i + 1], sigma[i]) for i in range(5)])
    assert torch.allclose(Denoiser(pipe)(x, sigma), known, atol=1e-5)
    labels = torch.tensor([0, 1, 1, 0, 1])
    known = torch.cat([known_clean_images(x[i : i + 1], sigma[i], labels[i : i + 1]) for i in range(5)])
    assert torch.allclose(Denoiser(exact_pipeline(num_class_embeds=2), labels)(x, sigma), known, atol=1e-5)
    guided = Denoiser(pipe, class_labels=0, classifier_scale=1.0)  # whose labels a call may replace
    assert torch.allclose(guided(x, sigma, class_labels=labels), known, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_gradients_are_the_known_ones(pipe, scale):
    x, labels = noisy().requires_grad_(True), torch.tensor([1, 0, 1, 0, 1])
    known = known_clean_images(x, 0.7, labels if scale else None)
    weights = torch.randn(5, 1, 2, 2, generator=seeded(1))
    gradients = [
        torch.autograd.grad((weights * images).sum(), x)[0]
        for images in (known, Denoiser(pipe, labels, classifier_scale=scale)(x, 0.7))
    ]
    assert torch.allclose(*gradients, atol=1e-5)
    with torch.no_grad():
        assert not Denoiser(pipe)(x, 0.7).requires_grad


def test_without_noise_nothing_changes_and_above_all_noise_levels_the_last_one_counts(pipe):
    denoise, x = Denoiser(pipe), noisy()
    assert torch.allclose(denoise(x, 0.0), x, atol=1e-6)
    assert denoise.sigma_to_t(torch.tensor([0.0, 1e4])).tolist() == [0.0, 999.0]
    assert denoise(1e4 * x, 1e4).isfinite().all()


def test_images_in_another_range(pipe):
    """Of [0, 1], noise levels are half as large."""
    x = noisy()
    half = Denoiser(pipe, image_range=(0, 1))
    assert torch.allclose(half((x + 1) / 2, 0.35), (known_clean_images(x, 0.7) + 1) / 2, atol=1e-5)
    assert torch.allclose(half.sigma_to_t(0.35), Denoiser(pipe).sigma_to_t(0.7))
    assert torch.allclose(half.score((x + 1) / 2, 0.35), 2 * Denoiser(pipe).score(x, 0.7), atol=1e-4)


def test_clean_images_are_clipped_where_asked(pipe):
    x = 3 * noisy()
    clipped = Denoiser(pipe, clip=True)(x, 0.2)
    assert torch.allclose(clipped, known_clean_images(x, 0.2).clamp(-1, 1), atol=1e-5) and clipped.abs().max() == 1


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_noise_levels_and_timesteps_lead_to_each_other(schedule):
    scheduler = DDPMScheduler(beta_schedule=schedule, variance_type="fixed_large")
    denoise = Denoiser(ClassifierGuidedDDPMPipeline(exact.ExactUNet(), scheduler))
    timesteps = torch.linspace(0, 999, 57)
    assert torch.allclose(denoise.sigma_to_t(denoise.t_to_sigma(timesteps)), timesteps, atol=1e-3)
    abars = scheduler.alphas_cumprod[[0, 200, 998]]
    assert torch.allclose(denoise.t_to_sigma(torch.tensor([0, 200, 998])), (1 / abars - 1).sqrt(), rtol=2e-3)
    between = (denoise.t_to_sigma(300) * denoise.t_to_sigma(301)).sqrt()
    assert torch.allclose(denoise.t_to_sigma(300.5), between)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_real_network_says_what_the_pipeline_says(prediction_type):
    scheduler = DDPMScheduler(
        variance_type="learned_range", prediction_type=prediction_type, clip_sample=False, timestep_spacing="linspace"
    )
    pipe = tiny.pipeline(ClassifierGuidedDDPMPipeline, conditional=True, scheduler=scheduler)
    denoise, x, labels = Denoiser(pipe, 3), tiny.images(), torch.tensor([3, 3])
    sigma = denoise.t_to_sigma(400.25).item()
    with torch.no_grad():
        seen = pipe.predict(x / (1 + sigma**2) ** 0.5, 400.25, labels).pred_original_sample
        assert torch.allclose(denoise(x, sigma), seen, atol=1e-4)
    assert {name.split(".")[0] for name, _ in denoise.named_parameters()} == {"unet", "classifier"}


def test_bad_input_is_said(pipe):
    conditional = tiny.pipeline(ClassifierGuidedDDPMPipeline, conditional=True, with_classifier=False)
    with pytest.raises(InputError, match="`class_labels` are missing"):
        Denoiser(conditional)(tiny.images(), 1.0)
    with pytest.raises(InputError, match="no classifier"):
        Denoiser(conditional, 1, classifier_scale=1.0)
    with pytest.raises(InputError, match="`sigma` must be at least 0"):
        Denoiser(pipe)(noisy(), -1.0)
    with pytest.raises(InputError, match="`sigma` must be one or one per image, got 2 for a batch of 5"):
        Denoiser(pipe)(noisy(), torch.ones(2))
    with pytest.raises(InputError, match="`class_labels` must be one or one per image, got 2"):
        Denoiser(pipe, [0, 1])(noisy(), 1.0)
    with pytest.raises(InputError, match="`timestep` must lie in"):
        Denoiser(pipe).t_to_sigma(1000)
    with pytest.raises(InputError, match="lowest and the highest"):
        Denoiser(pipe, image_range=(1, 0))
    with pytest.raises(InputError, match="upsampling"):
        Denoiser(tiny.pipeline(ClassifierGuidedSuperResolutionPipeline, low_res_size=4))


# -------------------------------------------------------------------------------------------------------------- deepinv


@pytest.fixture(scope="module")
def deepinv():
    try:
        import deepinv
    except (ImportError, RuntimeError) as error:  # of torchvision, where it was built for another PyTorch
        pytest.skip(f"deepinv cannot be imported: {error}")
    return deepinv


def test_deepinv_takes_its_score_for_a_prior(deepinv, pipe):
    x = ((noisy() + 1) / 2).requires_grad_(True)
    prior = deepinv.optim.ScorePrior(denoiser=Denoiser(pipe, image_range=(0, 1)))
    (score,) = torch.autograd.grad(known_log_density(2 * x - 1, 0.7).sum(), x)
    assert torch.allclose(-prior.grad(x, 0.35), score, atol=1e-3)


@pytest.mark.parametrize("method", ["DDRM", "DiffPIR", "DPS"])
def test_deepinv_fills_what_is_missing_with_it(deepinv, pipe, method):
    """Of the second class but for its last pixel, which that class and not the other has at 0.4."""
    denoise = Denoiser(exact_pipeline(num_class_embeds=2), 1, image_range=(0, 1))
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    noise_model = deepinv.physics.GaussianNoise(0.01)
    physics = deepinv.physics.Inpainting(img_size=(1, 2, 2), mask=mask, noise_model=noise_model)
    torch.manual_seed(0)
    measurement = physics((MEANS[1:].expand(200, -1, -1, -1) + 1) / 2)
    if method == "DDRM":
        restore = deepinv.sampling.DDRM(denoise)
    elif method == "DiffPIR":
        fidelity = deepinv.optim.data_fidelity.L2()
        restore = deepinv.sampling.DiffPIR(denoise, fidelity, sigma=0.01, max_iter=20)
    else:
        restore = deepinv.sampling.DPS(denoise, num_steps=100, weight=30.0)
    restored = 2 * restore(measurement, physics).float() - 1
    assert restored.shape == (200, 1, 2, 2)
    assert (restored - MEANS[1])[..., :1, :].abs().mean() < 0.1  # as measured
    assert (restored.mean(dim=0) - MEANS[1]).abs().max() < 0.15  # in the mean, as the class has it
