"""Closed forms of a discrete Gaussian diffusion: q(x_t|x_0), q(x_{t-1}|x_t,x_0) and p(x_{t-1}|x_t)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from diffusers import SchedulerMixin

from diffusers_cg.errors import InputError


VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]

# between whole timesteps: tables that follow from their logarithm, and from sigma = sqrt(1 / abar - 1)
VARIANCES = {"posterior_variance": "posterior_log_variance", "large_variance": "large_log_variance"}
OF_SIGMA = {
    "abar": lambda sigma: 1 / (1 + sigma**2),
    "sqrt_abar": lambda sigma: (1 + sigma**2) ** -0.5,
    "sqrt_one_minus_abar": lambda sigma: sigma * (1 + sigma**2) ** -0.5,
    "sqrt_recip_abar": lambda sigma: (1 + sigma**2) ** 0.5,
}


@dataclass
class Gaussian:
    """A diagonal Gaussian; every field is (B, C, H, W) or broadcasts to it, float32.

    `log_variance` is finite also where `variance` is zero (see [`GaussianDiffusion`]).
    """

    mean: torch.Tensor
    variance: torch.Tensor
    log_variance: torch.Tensor


@dataclass
class Prediction:
    """What a network sees in a noisy image x_t; every field is (B, C, H, W) or broadcasts to it, float32.

    Args:
        noise (`torch.Tensor`): eps, as the network says it.
        pred_original_sample (`torch.Tensor`): The clean image x_0, as the network says it; clipped if that was asked for.
        variance, log_variance (`torch.Tensor`): Sigma of p(x_{t-1} | x_t), learned or fixed.
    """

    noise: torch.Tensor
    pred_original_sample: torch.Tensor
    variance: torch.Tensor
    log_variance: torch.Tensor


class GaussianDiffusion:
    r"""The forward process and its reversal, for all timesteps or for any subset of them.

    "t - 1" below means the next smaller timestep of the subset, and the clean image after the smallest one. Images are
    (B, C, H, W) in [-1, 1]; a `timestep` is an `int`, a 0-d tensor or one per image (B,), and always one of the
    original timesteps in [0, T), as the networks see them. Every coefficient is computed in float64 and cast last.

    At the smallest timestep the posterior has no variance. Where its logarithm is needed there, that of the next
    timestep stands in (*Improved DDPM*, section 3.1), both as the lower end of the learned range and for
    `"fixed_large"`.

    Args:
        betas (`torch.Tensor`): Variances of the training process, (T,).
        timesteps (sequence of `int`, *optional*): Decreasing subset to sample with; all T by default.
        variance_type (`str`): Variance of p, by diffusers' names: `"fixed_small"` (the posterior's), `"fixed_large"`
            (beta), or `"learned_range"` (eq. 15 of *Improved DDPM*; the model outputs 2C channels). The `_log`
            variants describe the same distributions.
        prediction_type (`str`): What networks say of x_t, by diffusers' names: `"epsilon"` (the noise), `"sample"` (x_0),
            or `"v_prediction"` (sqrt(abar_t) eps - sqrt(1 - abar_t) x_0).

    Attributes:
        clip_range (`float`, *optional*): Bound on the absolute value of clean images that samplers predict: that of the
            scheduler which the process is of, by its `clip_sample` and `clip_sample_range`. Methods clip where it is
            passed to them.

    Raises:
        InputError: if the timesteps are empty, out of range or not decreasing, the variance or prediction type is another,
            or nothing is left of the image at a timestep.
    """

    def __init__(
        self,
        betas: torch.Tensor,
        timesteps: Sequence[int] | None = None,
        variance_type: VarianceType = "learned_range",
        prediction_type: PredictionType = "epsilon",
    ):
        num_train_timesteps = len(betas)
        if variance_type not in get_args(VarianceType):
            raise InputError(f"`variance_type` must be one of {get_args(VarianceType)}, got {variance_type!r}.")
        if prediction_type not in get_args(PredictionType):
            raise InputError(f"`prediction_type` must be one of {get_args(PredictionType)}, got {prediction_type!r}.")
        timesteps = range(num_train_timesteps - 1, -1, -1) if timesteps is None else [int(t) for t in timesteps]
        check_timesteps(timesteps, num_train_timesteps)

        self.num_train_timesteps = num_train_timesteps
        self.timesteps = torch.tensor(timesteps, dtype=torch.int64)
        self.variance_type = variance_type
        self.prediction_type = prediction_type
        self.clip_range = None

        kept = self.timesteps.flip(0)  # increasing, so that table index 0 is the last step of sampling
        abar = torch.cumprod(1 - betas.double().cpu(), dim=0)[kept]
        if abar[-1] == 0:
            raise InputError(
                f"Nothing is left of the image at timestep {timesteps[0]} (rescale_betas_zero_snr), and guidance needs some: "
                "give the scheduler rescale_betas_zero_snr=False, or start at a smaller timestep."
            )
        abar_prev = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        abar_next = torch.cat([abar[1:], torch.zeros(1, dtype=torch.float64)])
        beta = 1 - abar / abar_prev
        posterior_variance = beta * (1 - abar_prev) / (1 - abar)
        # one step has no next timestep: its range is the single point log beta
        stand_in = posterior_variance[1:2] if len(kept) > 1 else beta[:1]
        posterior_log_variance = torch.cat([stand_in, posterior_variance[1:]]).log()
        large_variance = torch.cat([stand_in, beta[1:]])

        self.alphas_cumprod = abar
        self.betas = beta
        self._index = torch.full((num_train_timesteps,), -1, dtype=torch.int64)
        self._index[kept] = torch.arange(len(kept))
        self._tables = {
            "abar": abar,
            "sqrt_abar": abar.sqrt(),
            "sqrt_one_minus_abar": (1 - abar).sqrt(),
            "sqrt_abar_next": abar_next.sqrt(),
            "sqrt_one_minus_abar_next": (1 - abar_next).sqrt(),
            "one_minus_abar": 1 - abar,
            "log_one_minus_abar": (1 - abar).log(),
            "sqrt_recip_abar": (1 / abar).sqrt(),
            "sqrt_recip_abar_minus_one": (1 / abar - 1).sqrt(),
            "log_beta": beta.log(),
            "posterior_variance": posterior_variance,
            "posterior_log_variance": posterior_log_variance,
            "posterior_coeff_original": beta * abar_prev.sqrt() / (1 - abar),
            "posterior_coeff_sample": (1 - abar_prev) * (abar / abar_prev).sqrt() / (1 - abar),
            "large_variance": large_variance,
            "large_log_variance": large_variance.log(),
        }
        # index -1, of a timestep outside the subset, must not find a neighbour's value
        nan = torch.tensor([torch.nan], dtype=torch.float64)
        self._tables = {name: torch.cat([table, nan]) for name, table in self._tables.items()}

    @classmethod
    def from_scheduler(cls, scheduler: SchedulerMixin, timesteps: Sequence[int] | None = None) -> "GaussianDiffusion":
        """The process of a diffusers scheduler that keeps variance (DDPM, DDIM, DPM-Solver, UniPC, ...).

        Raises:
            InputError: if the scheduler has no betas, or its model predicts something else.
        """
        if not hasattr(scheduler, "betas"):
            raise InputError(f"A scheduler with betas is needed, got {type(scheduler).__name__}.")
        process = cls(
            scheduler.betas,
            timesteps,
            scheduler.config.get("variance_type") or "fixed_small",
            scheduler.config.get("prediction_type", "epsilon"),
        )
        if scheduler.config.get("clip_sample", False):
            process.clip_range = scheduler.config.get("clip_sample_range", 1.0)
        return process

    def coefficient(self, name: str, timestep: torch.Tensor | float | int, like: torch.Tensor) -> torch.Tensor:
        """Entry of a table at each timestep, shaped to broadcast over `like` (B, C, H, W), float32.

        NaN at a timestep that is not in the subset. Between whole timesteps, the logarithm of sigma_t and those of
        variances are linear in t.
        """
        timestep = torch.as_tensor(timestep)
        if timestep.is_floating_point():
            return self._coefficient_between(name, timestep, like)
        if self._index.device != timestep.device:
            self._index = self._index.to(timestep.device)
        table = self._tables[name]
        if table.device != timestep.device or table.dtype != torch.float32:
            table = self._tables[name] = table.float().to(timestep.device)
        values = table[self._index[timestep]].to(like.device)
        return values.reshape(-1, *(1,) * (like.ndim - 1))

    def _coefficient_between(self, name: str, timestep: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if name in VARIANCES:
            return self._coefficient_between(VARIANCES[name], timestep, like).exp()
        if name in OF_SIGMA:
            return OF_SIGMA[name](self._coefficient_between("sqrt_recip_abar_minus_one", timestep, like))
        below, above = (self.coefficient(name, t.long(), like) for t in (timestep.floor(), timestep.ceil()))
        weight = timestep.frac().to(below).reshape(-1, *(1,) * (like.ndim - 1))
        if name == "sqrt_recip_abar_minus_one":
            return torch.lerp(below.log(), above.log(), weight).exp()
        return torch.lerp(below, above, weight)

    # ------------------------------------------------------------------------------------------------ forward process

    def q_sample(self, clean_images: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor | int) -> torch.Tensor:
        """Draws x_t from q(x_t | x_0) with the given standard normal `noise` of the images' shape."""
        return (
            self.coefficient("sqrt_abar", timestep, noise) * clean_images
            + self.coefficient("sqrt_one_minus_abar", timestep, noise) * noise
        )

    def q_mean_variance(self, clean_images: torch.Tensor, timestep: torch.Tensor | int) -> Gaussian:
        """q(x_t | x_0)."""
        return Gaussian(
            mean=self.coefficient("sqrt_abar", timestep, clean_images) * clean_images,
            variance=self.coefficient("one_minus_abar", timestep, clean_images),
            log_variance=self.coefficient("log_one_minus_abar", timestep, clean_images),
        )

    def q_posterior(self, clean_images: torch.Tensor, sample: torch.Tensor, timestep: torch.Tensor | int) -> Gaussian:
        """q(x_{t-1} | x_t, x_0), eq. 6 and 7 of DDPM, for the sample x_t."""
        return Gaussian(
            mean=self.coefficient("posterior_coeff_original", timestep, sample) * clean_images
            + self.coefficient("posterior_coeff_sample", timestep, sample) * sample,
            variance=self.coefficient("posterior_variance", timestep, sample),
            log_variance=self.coefficient("posterior_log_variance", timestep, sample),
        )

    def target(self, clean_images: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor | int) -> torch.Tensor:
        """What a network is trained to say of x_t, (B, C, H, W), by its prediction type."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean_images
        return (
            self.coefficient("sqrt_abar", timestep, noise) * noise
            - self.coefficient("sqrt_one_minus_abar", timestep, noise) * clean_images
        )

    # ------------------------------------------------------------------------------------------------ reverse process

    def noise_and_original(
        self, target: torch.Tensor, sample: torch.Tensor, timestep: torch.Tensor | float | int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The noise and the clean image that make up the sample x_t, of which the network says `target`."""
        if self.prediction_type == "epsilon":
            return target, self.predict_original(target, sample, timestep)
        if self.prediction_type == "sample":
            return self.predict_noise(target, sample, timestep), target
        sqrt_abar = self.coefficient("sqrt_abar", timestep, sample)
        sqrt_one_minus_abar = self.coefficient("sqrt_one_minus_abar", timestep, sample)
        return sqrt_abar * target + sqrt_one_minus_abar * sample, sqrt_abar * sample - sqrt_one_minus_abar * target

    def predict_original(
        self,
        noise: torch.Tensor,
        sample: torch.Tensor,
        timestep: torch.Tensor | int,
        clip_range: float | None = None,
    ) -> torch.Tensor:
        """The clean image that the sample x_t and the noise in it imply, clipped to [-`clip_range`, `clip_range`]."""
        original = (
            self.coefficient("sqrt_recip_abar", timestep, sample) * sample
            - self.coefficient("sqrt_recip_abar_minus_one", timestep, sample) * noise
        )
        return original if clip_range is None else original.clamp(-clip_range, clip_range)

    def predict_noise(
        self, pred_original_sample: torch.Tensor, sample: torch.Tensor, timestep: torch.Tensor | int
    ) -> torch.Tensor:
        """The noise that the sample x_t and its clean image imply; the inverse of [`predict_original`] unless that clipped."""
        return (
            self.coefficient("sqrt_recip_abar", timestep, sample) * sample - pred_original_sample
        ) / self.coefficient("sqrt_recip_abar_minus_one", timestep, sample)

    def predict(
        self,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        clip_range: float | None = None,
    ) -> Prediction:
        """What the network's output says of the sample x_t.

        Args:
            model_output (`torch.Tensor`): The noise, clean image or v by the prediction type, (B, C, H, W), followed by the
                raw variance for `"learned_range"`: (B, 2C, H, W). Without a learned variance a second half is ignored.
            sample (`torch.Tensor`): x_t, (B, C, H, W).
            timestep (`torch.Tensor`, `float` or `int`): One for all or one per image; fractional ones only if the
                process has all timesteps.
            clip_range (`float`, *optional*): Bound on the absolute value of the predicted clean image.

        Raises:
            InputError: if a learned variance is asked for and the output has no second half.
        """
        target, predicted_variance = split_model_output(model_output, sample)
        noise, pred_original_sample = self.noise_and_original(target, sample, timestep)
        if clip_range is not None:
            pred_original_sample = pred_original_sample.clamp(-clip_range, clip_range)

        if self.variance_type == "learned_range":  # eq. 15 of Improved DDPM
            if predicted_variance is None:
                raise InputError(
                    "The learned variance needs twice as many output channels as the sample has, got "
                    f"{model_output.shape[1]} for {sample.shape[1]}: use variance_type='fixed_small' or 'fixed_large'."
                )
            weight = (predicted_variance + 1) / 2
            log_beta = self.coefficient("log_beta", timestep, sample)
            log_variance = weight * log_beta + (1 - weight) * self.coefficient(
                "posterior_log_variance", timestep, sample
            )
            variance = log_variance.exp()
        else:
            kind = "large" if self.variance_type.startswith("fixed_large") else "posterior"
            variance = self.coefficient(f"{kind}_variance", timestep, sample)
            log_variance = self.coefficient(f"{kind}_log_variance", timestep, sample)
        return Prediction(noise, pred_original_sample, variance, log_variance)

    def p(self, prediction: Prediction, sample: torch.Tensor, timestep: torch.Tensor | int) -> Gaussian:
        """p(x_{t-1} | x_t): the posterior's mean for the predicted clean image, and the predicted variance."""
        mean = self.q_posterior(prediction.pred_original_sample, sample, timestep).mean
        return Gaussian(mean, prediction.variance, prediction.log_variance)

    def p_mean_variance(
        self,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        timestep: torch.Tensor | int,
        clip_range: float | None = None,
    ) -> Gaussian:
        """[`p`] from the network's output, for which see [`predict`]."""
        return self.p(self.predict(model_output, sample, timestep, clip_range), sample, timestep)


def check_timesteps(timesteps: Sequence[int], num_train_timesteps: int) -> None:
    """Raises `ValueError` unless the timesteps decrease strictly inside [0, `num_train_timesteps`)."""
    in_range = len(timesteps) > 0 and timesteps[0] < num_train_timesteps and timesteps[-1] >= 0
    if not in_range or any(later >= earlier for earlier, later in zip(timesteps, timesteps[1:])):
        raise InputError(
            f"`timesteps` must decrease strictly from at most {num_train_timesteps - 1} to at least 0, got "
            f"{list(timesteps)}."
        )


def split_model_output(model_output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the network says of the sample, (B, C, H, W), and, where it learns it, the raw variance of the same shape."""
    channels = sample.shape[1]
    if model_output.shape[1] == 2 * channels:
        return tuple(model_output.split(channels, dim=1))
    return model_output, None
