"""Flags that several commands have."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from diffusers_cg_cli.settings import Settings


if TYPE_CHECKING:
    from diffusers_cg.generation import GuidanceFile, SchedulerChoice
    from diffusers_cg.pipelines import ClassifierGuidedPipeline


Dtype = Literal["fp32", "fp16", "bf16"]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Side = PositiveInt  # of an image, in pixels


def _number_if_it_is_one(word: int | str) -> int | str:
    return int(word) if isinstance(word, str) and word.lstrip("-").isdecimal() else word


Class = Annotated[NonNegativeInt | str, BeforeValidator(_number_if_it_is_one)]  # its label or its name


def _check_range(values: list[float]) -> list[float]:
    if values[0] == values[1]:
        raise ValueError(f"black and white must be two values, got {values[0]:g} twice")
    return values


ImageRange = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2), AfterValidator(_check_range)]


class ImageSettings(Settings):
    image_range: ImageRange | None = None
    """The values of black and white in images of more than 8 bits: 0 65535, say, or 0 1."""

    split: str | None = None
    """Of a dataset: train, validation, ...; the only one by default."""

    config_name: str | None = None
    """Configuration of a dataset that has several."""

    image_column: str | None = None
    """Of a dataset; its only column of images by default."""


class DeviceSettings(Settings):
    device: str | None = None
    """cuda, cpu, ...; a GPU if there is one by default."""


class ModelSettings(DeviceSettings):
    model: str
    """Pipeline that draws from noise: its folder, or Hub name."""


class BatchSettings(ModelSettings):
    seed: NonNegativeInt = 0
    """What all randomness follows from."""

    batch_size: PositiveInt | Literal["auto"] = 8
    """Images at once, which changes none of them; auto: as many, up to 512, as the memory of a GPU takes, and 8 on a CPU."""


class GuidedSettings(ModelSettings):
    guidance: Path | None = None
    """YAML file of guidances, in place of the classifier's: `- guidance: NAME`, arguments, weight, start, stop, sigmas, every,
    max_norm."""


class SteeredSettings(GuidedSettings):
    scheduler: Annotated[list[str], Field(min_length=1)] | None = None
    """Class of diffusers, or EDMHeunScheduler, whose steps are taken on guided noise, then its options: EDMHeunScheduler
    s_churn=40."""


class DrawSettings(BatchSettings):
    classes: Annotated[list[Class], Field(min_length=1)] | None = None
    """Labels (whatever is a number) or names; all of the model's by default, if it needs any."""

    random_classes: bool = False
    """Draw each image's class, instead of as many of each."""

    dtype: Dtype = "fp32"
    """Precision of the networks."""


def exclusive(one: str, other: str) -> Any:
    """A validator of settings: of two flags that say the opposite, one at most."""

    def check(settings: Settings) -> Settings:
        if getattr(settings, one) and getattr(settings, other):
            raise ValueError(f"--{one} and --{other} say the opposite: pass one of them")
        return settings

    return model_validator(mode="after")(check)


def open_steering(settings: SteeredSettings) -> "tuple[SchedulerChoice | None, GuidanceFile | None]":
    """The scheduler and the guidance that flags name."""
    from diffusers_cg.generation import SchedulerChoice

    scheduler = None if settings.scheduler is None else SchedulerChoice.parse(settings.scheduler)
    return scheduler, open_guidance(settings)


def open_guidance(settings: GuidedSettings) -> "GuidanceFile | None":
    """The guidance that a flag names."""
    from diffusers_cg.generation import GuidanceFile

    return None if settings.guidance is None else GuidanceFile(settings.guidance)


def side_of_squares(pipe: "ClassifierGuidedPipeline") -> int:
    """Side of the model's images, to which others are resized and cropped as for training.

    Raises:
        InputError: if they are not square.
    """
    from diffusers_cg.errors import InputError

    _, height, width = pipe.sample_shape
    if height != width:
        raise InputError(f"Images are cropped to squares, but those of this model are {width}x{height}.")
    return height
