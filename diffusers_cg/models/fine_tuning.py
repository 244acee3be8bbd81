"""Starting a network from one that was trained on other classes, channels or image sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub.errors import HFValidationError

from diffusers_cg.errors import InputError
from diffusers_cg.models.adm_trunk import level_resolutions
from diffusers_cg.models.adm_unet import ADMUNet2DModel
from diffusers_cg.models.hub_formats import is_foreign
from diffusers_cg.models.noisy_classifier import NoisyClassifierModel
from diffusers_cg.models.openai_layout import describe_faults


Model = TypeVar("Model", ADMUNet2DModel, NoisyClassifierModel)

SUBFOLDERS = {ADMUNet2DModel: "unet", NoisyClassifierModel: "classifier"}  # of a pipeline's folder
FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
REPLACEABLE = {
    "sample_size",
    "in_channels",
    "out_channels",
    "low_res_channels",
    "num_class_embeds",
    "num_classes",
    "class_names",
    "dropout",
    "num_train_timesteps",
    "rescale_timesteps",
    "beta_schedule",
    "prediction_type",
    "scale_betas",
    "label_dropout",
}


@dataclass(frozen=True)
class ReplacedParameter:
    """A parameter that could not be taken over.

    Args:
        name (`str`): Its key in the state dictionary.
        before, after (`tuple[int, ...]`, *optional*): Its shape in the pretrained and in the new model; None where that
            has no such parameter.
    """

    name: str
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.name} {self.after} is new"
        if self.after is None:
            return f"{self.name} {self.before} is left out"
        return f"{self.name} {self.after} starts anew" + (f", was {self.before}" if self.before != self.after else "")


def load_pretrained(model_class: type[Model], path: str | Path) -> Model:
    """Loads a network from wherever it may lie, whole.

    Args:
        model_class (`type`): `ADMUNet2DModel` or `NoisyClassifierModel`.
        path (`str` or `Path`): A file of OpenAI's layout, the folder of a model or of a pipeline, or a pipeline's id on
            the Hub.

    Raises:
        InputError, OSError: if there is none, it is of another class, or parameters are missing or left over.
    """
    name, subfolder = model_class.__name__, SUBFOLDERS[model_class]
    if Path(path).is_file():
        return model_class.from_single_file(path)
    if Path(path).suffix in FILE_SUFFIXES:  # else looked for on the Hub
        raise InputError(f"There is no file {path} to start from.")
    where = {} if (Path(path) / "config.json").is_file() else {"subfolder": subfolder}
    try:
        config = model_class.load_config(path, **where)
    except (OSError, HFValidationError) as error:
        raise InputError(
            f"{path} is no {name}: pass a .pt or .safetensors file, a folder with config.json or with {subfolder}/, or "
            "the id of such a pipeline on the Hub."
        ) from error
    if config.get("_class_name") != name and not is_foreign(config):
        raise InputError(f"{path} holds a {config.get('_class_name')}, not a {name}.")
    model, info = model_class.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **where)
    misshapen = {key: (before, after) for key, before, after in info["mismatched_keys"]}
    faults = describe_faults(sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), misshapen)
    if faults:
        raise InputError(f"The weights in {path} do not match its config.json; parameters: {faults}.")
    return model


def _architecture(model: ADMUNet2DModel | NoisyClassifierModel) -> dict:
    """What two models must have in common; levels with attention by number, since their sides go with the image's."""
    config = {key: value for key, value in _arguments(model).items() if key not in REPLACEABLE}
    multipliers = tuple(config["channel_multipliers"])
    sides = level_resolutions(model.config.sample_size, len(multipliers))
    levels = sorted(sides.index(side) for side in config.pop("attention_resolutions"))
    return {**config, "channel_multipliers": multipliers, "levels with attention": levels}


def _arguments(model: ADMUNet2DModel | NoisyClassifierModel) -> dict:
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


@torch.no_grad()
def load_weights(
    model: ADMUNet2DModel | NoisyClassifierModel, pretrained: ADMUNet2DModel | NoisyClassifierModel
) -> list[ReplacedParameter]:
    """Copies into `model`, a new one, all weights of a pretrained one that fit.

    The two may differ in classes, image channels, learned or fixed variance, low-resolution channels, image size,
    dropout and the process. A layer of which one parameter does not fit stays as it was started: the first or last convolution, the
    class embedding, the last layer of a classifier, the positions of its attention pooling.

    Returns:
        `list[ReplacedParameter]`: What was not taken over.

    Raises:
        InputError: if the two differ in anything else.
    """
    if type(model) is not type(pretrained):
        raise InputError(f"A {type(model).__name__} cannot start from a {type(pretrained).__name__}.")
    ours, theirs = _architecture(model), _architecture(pretrained)
    differing = [f"{key}={theirs.get(key)} (here {ours.get(key)})" for key in ours if ours[key] != theirs.get(key)]
    if differing:
        raise InputError(
            f"The pretrained {type(model).__name__} has {', '.join(differing)}: only classes, channels, image size and "
            "dropout may differ, leave the rest as it is there."
        )
    source, target = pretrained.state_dict(), model.state_dict()
    before, after = ({key: tuple(tensor.shape) for key, tensor in state.items()} for state in (source, target))
    names = list(dict.fromkeys([*source, *target]))
    anew = {_layer(name) for name in names if before.get(name) != after.get(name)}
    model.load_state_dict({name: source[name] for name in target if _layer(name) not in anew}, strict=False)
    return [ReplacedParameter(name, before.get(name), after.get(name)) for name in names if _layer(name) in anew]


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def scaled_attention_resolutions(
    model: ADMUNet2DModel | NoisyClassifierModel, sample_size: int | Sequence[int]
) -> tuple[int, ...]:
    """The sides of the levels with attention of `model`, if its images had another size.

    Raises:
        InputError: if the levels do not divide that size.
    """
    num_levels = len(model.config.channel_multipliers)
    sides, new_sides = (level_resolutions(size, num_levels) for size in (model.config.sample_size, sample_size))
    return tuple(new_sides[sides.index(side)] for side in model.config.attention_resolutions)


def with_replaced(model: Model, **changed) -> tuple[Model, list[ReplacedParameter]]:
    """A new model for other classes, channels or sizes, with all weights of `model` that fit, to be trained on.

    Args:
        model (`ADMUNet2DModel` or `NoisyClassifierModel`): The pretrained one; not changed.
        changed: Arguments of its class: `num_class_embeds` or `num_classes`, `class_names`, `in_channels`,
            `out_channels`, `low_res_channels`, `sample_size`, `dropout`; `num_train_timesteps`, `rescale_timesteps`,
            `beta_schedule`, `prediction_type`, `scale_betas`, `label_dropout`, what it is to be trained on with.

    Returns:
        The new model, and the list of [`ReplacedParameter`], whose layers start as in a fresh model.

    Raises:
        InputError: if another argument is given, or they contradict each other.
    """
    replaceable = REPLACEABLE & set(model.config)
    wrong = sorted(set(changed) - replaceable)
    if wrong:
        raise InputError(
            f"{', '.join(wrong)} of a pretrained {type(model).__name__} cannot be changed: only "
            f"{', '.join(sorted(replaceable))} can."
        )
    arguments = _arguments(model)
    if {"num_classes", "num_class_embeds"} & set(changed):
        arguments["class_names"] = None  # they were those of the old classes
    if changed.get("num_class_embeds", 0) is None:
        arguments["label_dropout"] = 0.0
    if "sample_size" in changed:
        arguments["attention_resolutions"] = scaled_attention_resolutions(model, changed["sample_size"])
    new = type(model)(**{**arguments, **changed}).to(model.dtype)
    return new, load_weights(new, model)
