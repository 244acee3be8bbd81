"""Flags that several commands have."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from diffusers_cg_cli.settings import Settings


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


class DeviceSettings(Settings):
    device: str | None = None
    """cuda, cpu, ...; a GPU if there is one by default."""


class ModelSettings(DeviceSettings):
    model: str
    """Pipeline that draws from noise: its folder, or Hub name."""


class BatchSettings(ModelSettings):
    seed: NonNegativeInt = 0
    """What all randomness follows from."""

    batch_size: PositiveInt = 8
    """Images at once; changes none of them."""


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
