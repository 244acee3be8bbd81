"""Whether samples drawn while a network trains look as the images do, and what to try where they do not."""

import math
from dataclasses import dataclass

import torch

from diffusers_cg.training.config import UNetSettings


CHANNELS = {1: ("brightness",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "opacity")}
# of what training still has to do, and of the chance that a few images are not like the rest, nothing is said
SAMPLING_ERRORS = 3.0
LEAST_SHIFT = 0.1  # of a mean, where values span [-1, 1]
MOST_NOISE = 1.2  # times the images' own
MOST_CONTRAST = 1.4
MOST_OF_START = 0.05


@dataclass(frozen=True)
class Look:
    """Of images: each channel's mean, the standard error of that, the spread of its values, and the noise.

    Noise is the spread of what a pixel differs from the mean of its four neighbours: of pictures it is small, and speckles
    raise it at once. All are of values in [-1, 1].
    """

    mean: list[float]
    mean_error: list[float]
    spread: list[float]
    noise: float

    @classmethod
    def of(cls, images: torch.Tensor) -> "Look":
        """Of images (N, C, H, W) in [-1, 1]."""
        means = images.mean(dim=(2, 3))  # (N, C)
        inner = images[:, :, 1:-1, 1:-1]
        neighbours = (
            images[:, :, :-2, 1:-1] + images[:, :, 2:, 1:-1] + images[:, :, 1:-1, :-2] + images[:, :, 1:-1, 2:]
        )
        return cls(
            mean=means.mean(dim=0).tolist(),
            mean_error=(means.std(dim=0, correction=0) / len(images) ** 0.5).tolist(),
            spread=images.std(dim=(0, 2, 3), correction=0).tolist(),
            noise=(inner - neighbours / 4).std(correction=0).item() if inner.numel() else 0.0,
        )

    def logs(self, name: str) -> dict[str, float]:
        """The numbers to log, as `NAME/mean_red` and so on."""
        channels = CHANNELS[len(self.mean)]
        means = {f"{name}/mean_{channel}": value for channel, value in zip(channels, self.mean)}
        spreads = {f"{name}/spread_{channel}": value for channel, value in zip(channels, self.spread)}
        return {**means, **spreads, f"{name}/noise": self.noise}


def average_logs(settings: UNetSettings, steps: int) -> dict[str, float]:
    """Of the average after so many steps: its decay, and the share in it of the weights that it began with.

    (Those after the first step, which it takes as they are.)
    """
    decays = torch.full((max(steps - 1, 0),), settings.ema_max_decay[0], dtype=torch.float64)
    if settings.ema_warmup:
        step = torch.arange(1, steps, dtype=torch.float64)
        rising = 1 - (1 + step / settings.ema_inv_gamma) ** -settings.ema_power
        decays = torch.minimum(rising.clamp(min=0), decays)
    return {"average/decay": decays[-1].item() if steps > 1 else 0.0, "average/start": decays.prod().item()}


def diagnose(settings: UNetSettings, steps: int, samples: Look, images: Look) -> str | None:
    """One sentence on what is off with samples drawn after so many steps, and what to try; None where nothing is."""
    faults, remedies = [], {}  # ordered, each once
    start = average_logs(settings, steps)["average/start"] if settings.use_ema and steps > 1 else 0.0
    if start > MOST_OF_START:
        faults.append(f"{start:.0%} of the averaged weights that draw them are still those of the start")
        forgetting = (
            f"--ema_max_decay {1 - 5 / steps:.{math.ceil(math.log10(steps))}f}"  # e ** -5 of the start is left
        )
        remedies[forgetting if settings.ema_warmup else "--ema_warmup"] = None
    noise = samples.noise / images.noise if images.noise else 1.0
    if noise > MOST_NOISE:
        faults.append(
            f"they are noisy (pixels differ {noise:.1f} times as much from their neighbours as in the images)"
        )
        if settings.prediction_type == "epsilon":
            # the clean image is seen through what is left of it, so that errors of the noise are many times its own
            remedies[
                "a new training with --prediction_type v_prediction (it learns the noisiest timesteps in fewer steps)"
            ] = None
        remedies["more steps"] = None
    shifts = {
        name: sample - image
        for name, sample, image, *errors in zip(
            CHANNELS[len(images.mean)], samples.mean, images.mean, samples.mean_error, images.mean_error
        )
        if abs(sample - image) > max(LEAST_SHIFT, SAMPLING_ERRORS * sum(error**2 for error in errors) ** 0.5)
    }
    if shifts:
        off = ", ".join(f"{name} {shift:+.2f}" for name, shift in shifts.items())
        faults.append(f"their colours are off the images' ({off} of a range of 2)")
        remedies["more steps"] = None
        if noise <= MOST_NOISE:  # which has a mean of its own
            remedies |= dict.fromkeys(("a larger --total_batch_size", "a lower --learning_rate"))
    contrast = sum(samples.spread) / sum(images.spread) if any(images.spread) else 1.0
    if not shifts and not 1 / MOST_CONTRAST < contrast < MOST_CONTRAST:
        faults.append(f"they have {contrast:.1f} times the contrast of the images")
        remedies["more steps"] = None
    if not faults:
        return None
    return f"Samples after {steps} steps do not look like the images: {' and '.join(faults)}; try {' or '.join(remedies)}."
