r"""Guidance by a measurement y = A x + noise of the image, A a linear operator: restoration, a method a class.

All are drawn towards p(x | y) and differ in how. With x_0 = x_0(x_t) the clean image that the network sees, A^+ the pseudo-inverse,
and abar' the abar of the next step, of whose noise DDNM and DiffPIR say themselves what it is, in place of DDIM's:

| method | x_0 is replaced by | and x_{t-1} is |
| --- | --- | --- |
| DPS | | shifted by -scale grad_{x_t} \|y - A x_0\| |
| DDNM | x_0 + A^+ (y - A x_0) | sqrt(abar') x_0 + sqrt(1 - abar') (sqrt(1 - eta^2) eps + eta z), eps the network's |
| DiffPIR | argmin_x \|y - A x\|^2 + rho_t \|x - x_0\|^2 | sqrt(abar') x_0 + sqrt(1 - abar') (sqrt(1 - zeta) eps + sqrt(zeta) z), eps of the new x_0 |
| PiGDM | | guided by the gradient (A dx_0/dx_t)^T (r_t^2 A A^T + noise_std^2 I)^-1 (y - A x_0) |
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real

import torch
from diffusers import DDIMScheduler

from diffusers_cg.diffusion import is_ancestral
from diffusers_cg.errors import InputError
from diffusers_cg.guidance.clean_image_guidance import gradient_of
from diffusers_cg.guidance.guidance import Guidance, check_per_image, per_image
from diffusers_cg.guidance.guided_step import GuidedCall, GuidedStep
from diffusers_cg.restoration import LinearOperator, SpectralOperator, check_adjoint


class RestorationGuidance(Guidance):
    """Base of guidances by a measurement.

    Args:
        operator ([`LinearOperator`]): A.
        measurement (`torch.Tensor`): y, (B, ...) or, one for all images, (1, ...): of images in [-1, 1].
        noise_std (`float`): Standard deviation of the noise in the measurement, in its own units: of an image in [-1, 1], twice
            that of one in [0, 1].

    Raises:
        InputError: if one of them cannot be meant.
    """

    def __init__(self, operator: LinearOperator, measurement: torch.Tensor, noise_std: float = 0.0):
        if not isinstance(operator, LinearOperator):
            raise InputError(
                f"`operator` must be a LinearOperator of diffusers_cg.restoration, got {operator!r}: make a function of images "
                "one by FunctionOperator."
            )
        if not isinstance(measurement, torch.Tensor) or not measurement.is_floating_point():
            kind = measurement.dtype if isinstance(measurement, torch.Tensor) else type(measurement).__name__
            raise InputError(f"`measurement` must be a floating point tensor, got {kind}.")
        if isinstance(noise_std, bool) or not isinstance(noise_std, Real) or not 0 <= noise_std < float("inf"):
            raise InputError(f"`noise_std` must be a finite number of at least 0, got {noise_std!r}.")
        self.operator = operator
        self.measurement = measurement.detach().float()
        self.noise_std = float(noise_std)

    def check(self, call: GuidedCall) -> None:
        with torch.no_grad():
            images = torch.zeros(call.shape, device=self.measurement.device)
            expected, given = self.operator.forward(images).shape, self.measurement.shape
            if given[1:] != expected[1:] or given[0] not in (1, expected[0]):
                raise InputError(
                    f"`measurement` must be of shape {tuple(expected)}, what {self.operator.name} makes of images "
                    f"{tuple(call.shape)}, got {tuple(given)}."
                )
            check_adjoint(self.operator, call.shape, images.device)
            if not bool(self.measured(images).isfinite().all()):
                raise InputError("`measurement` holds values that are not finite.")

    def measured(self, images: torch.Tensor) -> torch.Tensor:
        """y, one for each of the images, and where they are."""
        measurement = self.measurement.to(images.device)
        return self.operator.observed(measurement.expand(len(images), *measurement.shape[1:]))

    def residual(self, clean_images: torch.Tensor) -> torch.Tensor:
        """y - A x_0, of the measurement's shape."""
        return self.measured(clean_images) - self.operator.forward(clean_images)


class DPSGuidance(RestorationGuidance):
    r"""*Diffusion Posterior Sampling for General Noisy Inverse Problems* (Chung et al., 2023), Algorithm 1:

        x_{t-1} <- step(x_t) - scale grad_{x_t} |y - A x_0(x_t)|          through the unet

    that is, the gradient of |y - A x_0|^2 with step size scale / (2 |y - A x_0|), the norm of each image by itself (their code
    takes one norm for a batch). What noise there is goes into `scale`, which they choose by task for 1,000 ancestral steps: 0.3
    for downsampling and blur, 0.5 for random masks; fewer steps need more. It only needs A to be differentiable.

    Args:
        operator, measurement, noise_std: as in [`RestorationGuidance`]; `noise_std` changes nothing here.
        scale (`float` or one per image): zeta' of the paper.
    """

    def __init__(
        self,
        operator: LinearOperator,
        measurement: torch.Tensor,
        noise_std: float = 0.0,
        scale: float | Sequence[float] | torch.Tensor = 0.3,
    ):
        super().__init__(operator, measurement, noise_std)
        self.scale = per_image("`scale`", scale)

    def check(self, call: GuidedCall) -> None:
        super().check(call)
        check_per_image("`scale`", self.scale, call)
        if not (is_ancestral(call.scheduler) or isinstance(call.scheduler, DDIMScheduler)):
            raise refused(self, call, "shifts samples", "a DDIMScheduler or a DDPMScheduler")

    def shift(self, step: GuidedStep) -> torch.Tensor:
        through = step.differentiable()
        distance = self.residual(through.pred_original_sample).flatten(1).norm(dim=1)  # (B,)
        return -self.scale.to(step.sample) * gradient_of(distance, through.sample, step)


class PiGDMGuidance(RestorationGuidance):
    r"""*Pseudoinverse-Guided Diffusion Models for Inverse Problems* (Song et al., 2023), eq. 7: with p(x_0 | x_t) taken for
    N(x_0(x_t), r_t^2 I), the gradient of log p(y | x_t) is a vector-Jacobian product,

        (A dx_0/dx_t)^T (r_t^2 A A^T + noise_std^2 I)^-1 (y - A x_0),      r_t^2 = s^2 sigma_t^2 / (s^2 + sigma_t^2)

    exact where data are N(mu, s^2 I). Without noise it is (dx_0/dx_t)^T A^+ (y - A x_0) / r_t^2. It goes where a classifier's gradient
    goes: into the noise of Algorithm 2, or the mean of Algorithm 1. The authors' code adds it to x_{t-1} with weights of its own,
    sqrt(abar_t abar') r_t^2.

    Args:
        operator, measurement, noise_std: as in [`RestorationGuidance`].
        scale (`float` or one per image): 1 as derived.
        data_std (`float`): s, of the data; the paper's is 1, with which r_t^2 = 1 - abar_t.
    """

    def __init__(
        self,
        operator: LinearOperator,
        measurement: torch.Tensor,
        noise_std: float = 0.0,
        scale: float | Sequence[float] | torch.Tensor = 1.0,
        data_std: float = 1.0,
    ):
        super().__init__(operator, measurement, noise_std)
        if not data_std > 0:
            raise InputError(f"`data_std` must be above 0, got {data_std!r}.")
        self.scale = per_image("`scale`", scale)
        self.data_std = data_std

    def check(self, call: GuidedCall) -> None:
        super().check(call)
        check_per_image("`scale`", self.scale, call)

    def __call__(self, step: GuidedStep) -> torch.Tensor:
        r2 = 1 / (self.data_std**-2 + step.sigma**-2)
        through = step.differentiable()
        clean_images = through.pred_original_sample
        with torch.set_grad_enabled(step.keeps_graph):  # A^T (r^2 A A^T + noise_std^2 I)^-1 (y - A x_0)
            direction = self.operator.pseudo_inverse(self.residual(clean_images), self.noise_std**2 / r2) / r2
        step.cost["backward"] += 1  # of the clean image alone: the direction is constant in it
        (gradient,) = torch.autograd.grad(clean_images, through.sample, direction, create_graph=step.keeps_graph)
        return self.scale.to(step.sample) * gradient


class NoisedAgain(RestorationGuidance, ABC):
    """Base of the methods that replace x_0 and say which noise x_{t-1} has, in place of DDIM's; a subclass gives [`noise`].

    What is known without noise, the final images have it, as exactly as [`LinearOperator.proximal`] does.
    """

    @abstractmethod
    def noise(self, step: GuidedStep) -> torch.Tensor | None:
        """x_{t-1} - sqrt(abar') x_0, (B, C, H, W); None where it is to be the scheduler's."""

    def check(self, call: GuidedCall) -> None:
        super().check(call)
        if not isinstance(call.scheduler, DDIMScheduler):
            raise refused(
                self, call, "draws the noise of DDIM's steps", "ClassifierGuidedDDIMPipeline with a DDIMScheduler"
            )
        if call.eta > 0:
            raise InputError(
                f"{self.name} draws the noise of its steps by itself: leave out the call's `eta`, got {call.eta:g}, and pass it "
                "what it takes in its place (`eta` of DDNM, `zeta` of DiffPIR)."
            )

    def shift(self, step: GuidedStep) -> torch.Tensor | float:
        noise = self.noise(step)
        return 0.0 if noise is None else noise - (1 - step.alpha_prod_t_prev).sqrt() * implied_noise(step)

    def conclude(self, step: GuidedStep, images: torch.Tensor) -> torch.Tensor:
        return images if self.noise_std > 0 else self.operator.proximal(images, self.measured(images))


class DDNMGuidance(NoisedAgain):
    r"""*Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model* (Wang et al., 2023), eq. 13, and with noise its
    DDNM+, eq. 17 and 51, for the singular values s of A = U S V^T:

        x_0 <- x_0 + V lambda V^T A^+ (y - A x_0)
        x_{t-1} = sqrt(abar') x_0 + V d V^T z + V e V^T eps,               eps the network's noise, z drawn

    With sigma' = sqrt(1 - abar') and n = sqrt(abar') noise_std / s, the noise that the measurement brings along:

    | | lambda | d | e |
    | --- | --- | --- | --- |
    | no noise, or s = 0 | 1 | eta sigma' | sqrt(1 - eta^2) sigma' |
    | n <= sigma' | 1 | sqrt(sigma'^2 - n^2) | 0 |
    | n > sigma' | sqrt(1 - eta^2) sigma' / n | eta sigma' | 0 |

    This is the authors' code. With `eta=None` and no noise it is Algorithm 1 of the paper, where the scheduler draws the noise:
    the ancestral one, or any.

    Args:
        operator, measurement, noise_std: as in [`RestorationGuidance`]; noise needs an operator that knows its singular values.
        eta (`float`, *optional*): How much of the noise is drawn anew, in [0, 1], in place of the call's `eta`. None leaves
            it to the scheduler.
    """

    def __init__(
        self,
        operator: LinearOperator,
        measurement: torch.Tensor,
        noise_std: float = 0.0,
        eta: float | None = 0.85,
    ):
        super().__init__(operator, measurement, noise_std)
        if eta is not None and not 0 <= eta <= 1:
            raise InputError(f"`eta` of DDNM must lie in [0, 1] or be None, got {eta!r}.")
        if noise_std > 0 and not isinstance(operator, SpectralOperator):
            raise InputError(
                f"DDNM of a noisy measurement needs the singular values of its operator, which {operator.name} does not know: use "
                "DiffPIR or PiGDM."
            )
        if noise_std > 0 and eta is None:
            raise InputError("DDNM of a noisy measurement draws its own noise: pass an `eta` in [0, 1].")
        self.eta = eta

    def check(self, call: GuidedCall) -> None:
        return RestorationGuidance.check(self, call) if self.eta is None else super().check(call)

    def replace(self, step: GuidedStep) -> torch.Tensor:
        if self.noise_std == 0:
            return self.operator.proximal(step.pred_original_sample, self.measured(step.sample))
        sigma = (1 - step.alpha_prod_t_prev).sqrt()

        def lambda_over_s2(s2: torch.Tensor) -> torch.Tensor:
            n = self.brought_along(s2, step)
            lambdas = torch.where(n > sigma, (1 - self.eta**2) ** 0.5 * sigma / n, 1.0)
            return self.operator.where_measured(s2, lambdas / s2)

        residual = self.residual(step.pred_original_sample)
        return step.pred_original_sample + self.operator.adjoint(self.operator.spectral(residual, lambda_over_s2))

    def noise(self, step: GuidedStep) -> torch.Tensor | None:
        if self.eta is None:
            return None
        sigma = (1 - step.alpha_prod_t_prev).sqrt()
        drawn, kept = self.eta * sigma, (1 - self.eta**2) ** 0.5 * sigma  # d and e where s = 0
        z, eps = step.randn(step.sample.shape), step.noise
        noise = drawn * z + kept * eps
        if self.noise_std == 0:
            return noise

        def d_beyond(s2: torch.Tensor) -> torch.Tensor:
            n = self.brought_along(s2, step)
            d = torch.where(n > sigma, drawn, (sigma**2 - n**2).clamp(min=0).sqrt())
            return self.operator.where_measured(s2, (d - drawn) / s2)

        def e_beyond(s2: torch.Tensor) -> torch.Tensor:
            return self.operator.where_measured(s2, -kept / s2)

        # V g V^T x = g(0) x + A^T f(A A^T) A x  with f(s^2) = (g(s) - g(0)) / s^2
        of_z, of_eps = (
            self.operator.adjoint(self.operator.spectral(self.operator.forward(each), beyond))
            for each, beyond in ((z, d_beyond), (eps, e_beyond))
        )
        return noise + of_z + of_eps

    def brought_along(self, s2: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        """n, of the squared singular values."""
        return step.alpha_prod_t_prev.sqrt() * self.noise_std / s2.sqrt()


class DiffPIRGuidance(NoisedAgain):
    r"""*Denoising Diffusion Models for Plug-and-Play Image Restoration* (Zhu et al., 2023), Algorithm 1:

        x_0 <- argmin_x |y - A x|^2 + rho_t |x - x_0|^2                    rho_t = lambda noise_std^2 / sigma_t^2
        x_{t-1} = sqrt(abar') x_0 + sqrt(1 - abar') (sqrt(1 - zeta) eps + sqrt(zeta) z)

    sigma_t^2 = (1 - abar_t) / abar_t, eps the noise that x_t and the new x_0 imply, z drawn. Their code leaves out the first line in the
    last step.

    Args:
        operator, measurement, noise_std: as in [`RestorationGuidance`].
        zeta (`float`): How much of the noise is drawn anew, in [0, 1]; theirs are 0.1 for blur, 0.25 for downsampling and 1 for masks.
        prior_weight (`float`): lambda. Their code counts the noise in [0, 1], so that its lambda_ is four times this one.
    """

    def __init__(
        self,
        operator: LinearOperator,
        measurement: torch.Tensor,
        noise_std: float = 0.0,
        zeta: float = 0.25,
        prior_weight: float = 1.0,
    ):
        super().__init__(operator, measurement, noise_std)
        if not (0 <= zeta <= 1 and prior_weight > 0):
            raise InputError(
                f"`zeta` must lie in [0, 1] and `prior_weight` be above 0, got {zeta!r} and {prior_weight!r}."
            )
        self.zeta = zeta
        self.prior_weight = prior_weight

    def replace(self, step: GuidedStep) -> torch.Tensor:
        rho = self.prior_weight * self.noise_std**2 / step.sigma**2
        return self.operator.proximal(step.pred_original_sample, self.measured(step.sample), rho)

    def noise(self, step: GuidedStep) -> torch.Tensor:
        drawn = self.zeta**0.5 * step.randn(step.sample.shape)
        return (1 - step.alpha_prod_t_prev).sqrt() * ((1 - self.zeta) ** 0.5 * implied_noise(step) + drawn)


def implied_noise(step: GuidedStep) -> torch.Tensor:
    """eps, what x_t and the clean image of the step imply, (B, C, H, W)."""
    return step.diffusion.predict_noise(step.pred_original_sample, step.sample, step.timestep)


def refused(guidance: Guidance, call: GuidedCall, does: str, instead: str) -> InputError:
    return InputError(
        f"{guidance.name} {does}, which a {type(call.scheduler).__name__} does not stand: use {instead}."
    )
