"""`diffusers-cg sample`: many images from a saved pipeline."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from diffusers_cg_cli.shared import DrawSettings, Scale, SteeredSettings, open_steering


class SampleSettings(SteeredSettings, DrawSettings):
    """Draws images into a folder per class, or into samples.npz, and a grid of some of them into grid.png.

    Stopped and started again it goes on. With `accelerate launch -m diffusers_cg sample ...` several processes share the
    work. With --upsampler the first pipeline draws all images at its low resolution, and then the second one upsamples
    them: one of the two is in memory at a time. --scheduler is that of both. sampling.json holds what the images follow from,
    and what one of them cost.
    """

    output: Path
    """Folder of the samples; an earlier run's goes on."""

    num_samples: PositiveInt = 16
    """Images in all."""

    sampler: Literal["ddpm", "ddim", "solver"] | None = None
    """Algorithm 1 (ddpm, the default) or 2 of the paper, in both stages: 2 by DDIM or a --scheduler, or by the solver that is saved with
    the model."""

    num_inference_steps: PositiveInt | None = None
    """Steps of the first stage; saved with it by default."""

    timesteps: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Its timesteps, decreasing, in place of a number of steps."""

    classifier_scale: Scale | None = None
    """Its scale of the classifier's guidance, 0 for none; saved by default, 0 beside --guidance."""

    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Noise of DDIM's steps, 0 (default) to 1, in both stages."""

    upsampler: str | None = None
    """Upsampling pipeline for the images of the first."""

    upsampler_num_inference_steps: PositiveInt | None = None
    """Steps of the upsampler."""

    upsampler_classifier_scale: Scale | None = None
    """Scale of guidance of the upsampler."""

    upsampler_guidance: Path | None = None
    """YAML file of guidances of the upsampler, as --guidance."""

    low_res_noise: Scale | None = None
    """Noise on what the upsampler gets; see its training."""

    low_res_blur: Scale | None = None
    """Blur of what the upsampler gets, in pixels."""

    png: bool = True
    """Leave a file per image, in a folder per class."""

    npz: bool = False
    """Leave samples.npz, in the layout of the reference."""

    @model_validator(mode="after")
    def _check_upsampler(self) -> "SampleSettings":
        guided = (self.upsampler_num_inference_steps, self.upsampler_classifier_scale, self.upsampler_guidance)
        if self.upsampler is None and any(
            value is not None for value in (*guided, self.low_res_noise, self.low_res_blur)
        ):
            raise ValueError("Flags of the upsampler need one: pass --upsampler, or leave them out")
        return self


def run(settings: SampleSettings) -> None:
    from diffusers_cg.generation import (
        GuidanceFile,
        SampleFolder,
        SavedPipeline,
        cost_in_words,
        generate_to_folder,
        start_processes,
    )
    from diffusers_cg.models import DTYPES

    scheduler, guidance = open_steering(settings)
    sampler = settings.sampler or ("ddpm" if scheduler is None else scheduler.sampler)
    common = {
        "sampler": sampler,
        "scheduler": scheduler,
        "dtype": DTYPES[settings.dtype],
        "eta": settings.eta,
    }
    base = SavedPipeline(
        settings.model,
        num_inference_steps=settings.num_inference_steps,
        classifier_scale=settings.classifier_scale,
        timesteps=settings.timesteps,
        guidance=guidance,
        **common,
    )
    upsampler = None
    if settings.upsampler is not None:
        upsampler = SavedPipeline(
            settings.upsampler,
            num_inference_steps=settings.upsampler_num_inference_steps,
            classifier_scale=settings.upsampler_classifier_scale,
            low_res_noise=settings.low_res_noise,
            low_res_blur=settings.low_res_blur,
            guidance=None if settings.upsampler_guidance is None else GuidanceFile(settings.upsampler_guidance),
            **common,
        )
    generate_to_folder(
        settings.output,
        base,
        upsampler,
        num_samples=settings.num_samples,
        classes=settings.classes,
        random_classes=settings.random_classes,
        seed=settings.seed,
        batch_size=settings.batch_size,
        png=settings.png,
        npz=settings.npz,
        device=settings.device,
    )
    start_processes().print(
        f"{cost_in_words(SampleFolder(settings.output).evaluations)}\nSaved {settings.output}.".lstrip()
    )
