"""Guidance by a measurement: against exact posteriors of a Gaussian, to the bit in what is known, and image by image."""

import logging

import pytest
import tiny
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from exact import MEANS, PROCESS, SPREAD, ExactClassifier, ExactUNet, draw_exactly
from tiny import check_refused, seeded

from diffusers_cg import ClassifierGuidance, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import DDNMGuidance, DiffPIRGuidance, DPSGuidance, PiGDMGuidance
from diffusers_cg.restoration import BoxDownsampling, FunctionOperator, GaussianBlur, Grayscale, LinearOperator, Mask


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)


# ----------------------------------------------------------------------------------------- a Gaussian, measured twice

MATRIX = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.3, 0.0, 1.0]])
READINGS = torch.tensor([[0.8, 0.1]])
TWO_READINGS = FunctionOperator(lambda x: x.flatten(1) @ MATRIX.T, lambda y: (y @ MATRIX).reshape(-1, 1, 2, 2))
DDIM = DDIMScheduler.from_config(PROCESS.config)


def draw(guidance, scheduler=PROCESS, steps=100, **options):
    """1,500 images of class 1, N(MEANS[1], SPREAD^2 I), guided."""
    return draw_exactly(guidance, scheduler, steps, unet=ExactUNet(num_class_embeds=2), **options)[0]


def errors(images, noise_std):
    """The largest errors of mean and covariance of images in p(x | READINGS), in spreads of the data, and their squares.

    1,500 images of the distribution itself have errors of up to 0.06 and 0.11.
    """
    mean, covariance = MEANS[1].flatten(), SPREAD**2 * torch.eye(4)
    gain = covariance @ MATRIX.T @ (MATRIX @ covariance @ MATRIX.T + noise_std**2 * torch.eye(2)).inverse()
    mean, covariance = mean + gain @ (READINGS[0] - MATRIX @ mean), covariance - gain @ MATRIX @ covariance
    pixels = images.flatten(1)
    return (
        (pixels.mean(dim=0) - mean).abs().max().item() / SPREAD,
        (pixels.T.cov() - covariance).abs().max().item() / SPREAD**2,
    )


@pytest.mark.parametrize(
    ("scheduler", "steps", "noise_std"), [(PROCESS, 100, 0.1), (PROCESS, 100, 0.25), (DDIM, 200, 0.1)]
)
def test_pigdm_draws_the_posterior(scheduler, steps, noise_std):
    guidance = PiGDMGuidance(TWO_READINGS, READINGS, noise_std, data_std=SPREAD)
    of_mean, of_covariance = errors(draw(guidance, scheduler, steps), noise_std)
    assert of_mean < 0.06 and of_covariance < 0.13


def test_the_bound_fails_wrong_pigdm():
    """Of another r_t, of another noise, or as if the unet were the identity."""
    options = {"noise_std": 0.1, "data_std": SPREAD}
    for changed in ({"data_std": 1.0}, {"noise_std": 0.2}, {"scale": 0.5}):
        assert errors(draw(PiGDMGuidance(TWO_READINGS, READINGS, **options | changed), number=400), 0.1)[0] > 0.18

    def not_through_the_unet(step):
        r2 = 1 / (SPREAD**-2 + step.sigma**-2)
        residual = READINGS - TWO_READINGS.forward(step.pred_original_sample)
        return TWO_READINGS.pseudo_inverse(residual, 0.1**2 / r2) / r2 / step.alpha_prod_t.sqrt()

    assert errors(draw(not_through_the_unet, number=400), 0.1)[0] > 0.18


DPS_SCALE = 0.14  # for the 150 steps and for readings of noise 0.05, of which DPS itself knows nothing


def test_dps_draws_about_the_posterior():
    of_mean, of_covariance = errors(draw(DPSGuidance(TWO_READINGS, READINGS, scale=DPS_SCALE), steps=150), 0.05)
    assert of_mean < 0.15 and of_covariance < 0.15


def test_the_bound_fails_wrong_dps():
    """Of one norm for all images, of a squared norm, or of scales a few times too small or large."""

    class OfTheBatch(DPSGuidance):
        def shift(self, step):
            norms = self.residual(step.pred_original_sample).flatten(1).norm(dim=1)
            return super().shift(step) * (norms / norms.norm()).reshape(-1, 1, 1, 1)

    class Squared(DPSGuidance):
        def shift(self, step):
            norms = self.residual(step.pred_original_sample).flatten(1).norm(dim=1)
            return super().shift(step) * 2 * norms.reshape(-1, 1, 1, 1)

    for wrong in (
        OfTheBatch(TWO_READINGS, READINGS, scale=DPS_SCALE),
        Squared(TWO_READINGS, READINGS, scale=DPS_SCALE),
        DPSGuidance(TWO_READINGS, READINGS, scale=DPS_SCALE / 3),
        DPSGuidance(TWO_READINGS, READINGS, scale=DPS_SCALE * 3),
    ):
        assert max(errors(draw(wrong, steps=150, number=400), 0.05)) > 0.25


def test_ancestral_ddnm_draws_the_posterior_without_noise():
    """Algorithm 1 of the paper; of the noise that the code's steps draw, less is left in the null space."""
    of_mean, of_covariance = errors(draw(DDNMGuidance(TWO_READINGS, READINGS, eta=None)), 0.0)
    assert of_mean < 0.06 and of_covariance < 0.13
    of_mean, of_covariance = errors(draw(DDNMGuidance(TWO_READINGS, READINGS), DDIM), 0.0)
    assert of_mean < 0.06 and 0.2 < of_covariance < 0.5


@pytest.mark.parametrize("noise_std", [0.1, 0.25])
def test_what_ddnm_plus_draws_of_a_noisy_mean(noise_std):
    """It goes by the measurement and its noise alone: the mean of the pixels is that of y, or nearer to the prior's, and its
    spread at most the noise."""
    y, guess = 0.7, MEANS[1].mean().item()
    guidance = DDNMGuidance(BoxDownsampling(2), torch.full((1, 1, 1, 1), y), noise_std)
    means = draw(guidance, DDIM).mean(dim=(1, 2, 3))
    assert guess < means.mean().item() < y
    assert means.std().item() < noise_std


@pytest.mark.parametrize("noise_std", [0.1, 3.0])
def test_the_noise_of_ddnm_plus(pipes, noise_std):
    """Of means of pixels, V d V^T z and none of the network's; of what is left of the pixels, DDNM's."""
    box, steps, eta = BoxDownsampling(2), [], 0.6

    class Recorder(DDNMGuidance):
        def shift(self, step):
            steps.append(step)
            return super().shift(step)

    guidance = Recorder(box, box.forward(IMAGES), noise_std, eta)
    restored(pipes["ddim"], guidance)
    step = steps[0]
    sigma, n = (1 - step.alpha_prod_t_prev).sqrt(), step.alpha_prod_t_prev.sqrt() * noise_std / 0.5
    d = (sigma**2 - n**2).sqrt() if n <= sigma else eta * sigma
    step.generator = [seeded(0), seeded(1)]
    z = step.randn(SHAPE)
    step.generator = [seeded(0), seeded(1)]
    noise = guidance.noise(step)
    assert torch.allclose(box.forward(noise), d * box.forward(z), atol=1e-5)
    plain = sigma * (eta * z + (1 - eta**2) ** 0.5 * step.noise)
    assert torch.allclose(
        noise - box.pseudo_inverse(box.forward(noise)), plain - box.pseudo_inverse(box.forward(plain)), atol=1e-5
    )


def test_classifier_guidance_adds_up():
    """p(x | class, reading) of the mixture by an unconditional unet: PiGDM and the classifier."""
    known = Mask(torch.tensor([[0, 0], [0, 1]]))  # a pixel that says nothing of the class, and is a Gaussian in both
    reading = torch.full((1, 1, 2, 2), 0.9)
    guidance = PiGDMGuidance(known, reading, 0.1, data_std=SPREAD) + ClassifierGuidance(ExactClassifier())
    pixels = draw_exactly(guidance, PROCESS, 100)[0]
    precision = SPREAD**-2 + 0.1**-2
    mean = MEANS[1].clone()
    mean[0, 1, 1] = (MEANS[1, 0, 1, 1] * SPREAD**-2 + 0.9 * 0.1**-2) / precision
    assert (pixels.mean(dim=0) - mean).abs().max() < 0.1 * SPREAD


# ------------------------------------------------------------------------------------------------------- what is known

SHAPE = (2, 3, 8, 8)
KNOWN = tiny.images(1, 1, 8, seed=4)[0, 0] > 0
IMAGES = tiny.images(2, seed=6).mul(0.4).clamp(-1, 1)
METHODS = {"dps": DPSGuidance, "ddnm": DDNMGuidance, "diffpir": DiffPIRGuidance, "pigdm": PiGDMGuidance}


@pytest.fixture(scope="module")
def pipes():
    return {
        kind.algorithm: tiny.pipeline(kind) for kind in (ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline)
    }


def restored(pipe, guidance, batch_size=2, generator=None, **options):
    options = {"classifier_scale": 0, "output_type": "latent", "num_inference_steps": 3, **options}
    generator = generator or [seeded(i) for i in range(batch_size)]
    return pipe(batch_size=batch_size, guidance=guidance, generator=generator, **options).images


@pytest.mark.parametrize(
    ("algorithm", "guidance"),
    [
        ("ddim", DDNMGuidance(Mask(KNOWN), IMAGES)),
        ("ddim", DiffPIRGuidance(Mask(KNOWN), IMAGES)),
        ("ddpm", DDNMGuidance(Mask(KNOWN), IMAGES, eta=None)),
        ("ddim", DDNMGuidance(Mask(KNOWN), IMAGES, eta=None)),
    ],
)
@pytest.mark.parametrize("guided", [False, True])
def test_a_mask_keeps_what_it_knows_to_the_bit(pipes, algorithm, guidance, guided):
    labels = {"class_labels": [0, 3], "classifier_scale": 5.0} if guided else {}
    images = restored(pipes[algorithm], guidance, **labels)
    assert torch.equal(images[..., KNOWN], IMAGES[..., KNOWN])
    assert not torch.allclose(images[..., ~KNOWN], IMAGES[..., ~KNOWN], atol=0.1)
    images = restored(pipes[algorithm], guidance, output_type="pt", **labels)
    assert torch.equal(images[..., KNOWN], (IMAGES / 2 + 0.5)[..., KNOWN])


@pytest.mark.parametrize(
    "operator",
    [
        BoxDownsampling(4),
        Grayscale(),
        GaussianBlur(0.7, rtol=1e-3),
        FunctionOperator(lambda x: x[..., ::2, 1:], image_shape=SHAPE[1:]),
    ],
)
def test_what_was_measured_is_so(pipes, operator):
    y = operator.forward(IMAGES)
    for guidance in (DDNMGuidance(operator, y), DiffPIRGuidance(operator, y)):
        assert torch.allclose(operator.forward(restored(pipes["ddim"], guidance)), y, atol=1e-3)


def test_what_a_mask_hides_does_not_matter(pipes):
    hidden = IMAGES.clone()
    hidden[..., ~KNOWN] = 1e4
    for method, kind in METHODS.items():
        guidances = (kind(Mask(KNOWN), y, 0.1) for y in (IMAGES, hidden))
        one, other = (restored(pipes["ddim"], each, num_inference_steps=2) for each in guidances)
        assert torch.equal(one, other), method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_an_image_is_restored_alone_as_in_a_batch(pipes, method, noise_std):
    """The other image is one whose measurement is far off."""
    operator = BoxDownsampling(2)
    y = operator.forward(IMAGES) * torch.tensor([1.0, 50.0]).reshape(-1, 1, 1, 1)
    both = restored(pipes["ddim"], METHODS[method](operator, y, noise_std))
    alone = restored(pipes["ddim"], METHODS[method](operator, y[:1], noise_std), 1)
    assert torch.allclose(both[:1], alone, atol=2e-3)  # random networks multiply what is rounded


def test_a_guidance_of_a_part_of_the_steps(pipes):
    """Confined to the first ones, it does not put in at the end what it knows; in none of the steps, it does nothing."""
    guidance = DDNMGuidance(Mask(KNOWN), IMAGES, eta=None)
    early = restored(pipes["ddim"], guidance.confined(stop=0.5))
    assert not torch.equal(early[..., KNOWN], IMAGES[..., KNOWN])
    assert torch.equal(restored(pipes["ddim"], guidance.confined(sigmas=(1e4, 1e5))), restored(pipes["ddim"], None))


def test_one_measurement_serves_many_images(pipes):
    operator = BoxDownsampling(2)
    y = operator.forward(IMAGES[:1])
    guidance = DDNMGuidance(operator, y)
    assert torch.equal(
        restored(pipes["ddim"], guidance), restored(pipes["ddim"], DDNMGuidance(operator, y.repeat(2, 1, 1, 1)))
    )
    assert restored(pipes["ddim"], guidance, 3).shape[0] == 3, "the guidance can be used again"


# ----------------------------------------------------------------------------------------------------------- bad input


class WrongAdjoint(LinearOperator):
    def forward(self, images):
        return images[..., ::2]

    def adjoint(self, measurement):
        return measurement.repeat_interleave(2, dim=-1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("operator", "y", "said"),
    [
        (Mask(KNOWN), IMAGES[..., :6], r"must be of shape \(2, 3, 8, 8\)"),
        (Mask(KNOWN), IMAGES.repeat(2, 1, 1, 1), r"got \(4, 3, 8, 8\)"),
        (BoxDownsampling(3), IMAGES, "multiples"),
        (WrongAdjoint(), IMAGES[..., ::2], "The adjoint of WrongAdjoint does not match"),
        (Mask(KNOWN), IMAGES / KNOWN.logical_not(), "not finite"),
    ],
)
def test_a_measurement_that_does_not_fit_is_refused(pipes, method, operator, y, said):
    call = {"batch_size": 2, "guidance": METHODS[method](operator, y), "classifier_scale": 0}
    check_refused(pipes["ddim"], call, InputError, said)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DPSGuidance(lambda x: x, IMAGES), "LinearOperator"),
        (lambda: DPSGuidance(Mask(KNOWN), IMAGES.numpy()), "floating point tensor, got ndarray"),
        (lambda: DPSGuidance(Mask(KNOWN), IMAGES.int()), "floating point tensor, got torch.int32"),
        (lambda: DPSGuidance(Mask(KNOWN), IMAGES, -0.1), "`noise_std` must be"),
        (lambda: PiGDMGuidance(Mask(KNOWN), IMAGES, data_std=0), "`data_std`"),
        (lambda: DDNMGuidance(Mask(KNOWN), IMAGES, eta=1.5), "`eta` of DDNM"),
        (lambda: DDNMGuidance(Mask(KNOWN), IMAGES, 0.1, eta=None), "pass an `eta`"),
        (lambda: DDNMGuidance(WrongAdjoint(), IMAGES, 0.1), "needs the singular values"),
        (lambda: DiffPIRGuidance(Mask(KNOWN), IMAGES, zeta=-1), "`zeta` must lie"),
        (lambda: DiffPIRGuidance(Mask(KNOWN), IMAGES, prior_weight=0), "`prior_weight`"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, said):
    with pytest.raises(InputError, match=said) as refused:
        make()
    assert str(refused.value).endswith(".")


def test_methods_that_say_what_noise_there_is_need_ddim(pipes):
    solver = tiny.pipeline(ClassifierGuidedDDIMPipeline, scheduler=UniPCMultistepScheduler())
    for pipe, method in ((pipes["ddpm"], "ddnm"), (pipes["ddpm"], "diffpir"), (solver, "diffpir"), (solver, "dps")):
        call = {"batch_size": 2, "guidance": METHODS[method](Mask(KNOWN), IMAGES), "classifier_scale": 0}
        check_refused(pipe, call, InputError, "does not stand: use")


def test_ddnm_of_a_noisy_measurement_needs_ddim(pipes):
    with pytest.raises(InputError, match="takes the steps of DDIM: use ClassifierGuidedDDIMPipeline"):
        pipes["ddpm"].restore(IMAGES, Mask(KNOWN), "ddnm", noise_std=0.1)


@pytest.mark.parametrize("method", ["ddnm", "diffpir"])
def test_methods_that_draw_their_own_noise_take_no_eta_of_the_call(method, pipes):
    call = {"batch_size": 2, "guidance": METHODS[method](Mask(KNOWN), IMAGES), "classifier_scale": 0, "eta": 0.5}
    check_refused(pipes["ddim"], call, InputError, "`eta`")
