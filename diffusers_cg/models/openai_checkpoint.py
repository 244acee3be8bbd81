"""OpenAI's checkpoints: read safely, recognised by their parameters' names and shapes, and written back."""

import errno
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm.auto import tqdm

from diffusers_cg.errors import InputError
from diffusers_cg.models.openai_layout import from_openai_state_dict, to_openai_state_dict


if TYPE_CHECKING:
    from typing import Self


Shapes = Mapping[str, tuple[int, ...]]

# ------------------------------------------------------------------------------------------------------ released files


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """What OpenAI's repository and the paper say of a released file.

    Args:
        arguments (`dict`): The constructor's arguments, as far as they differ between the released files.
        new_attention_order (`bool`): Whether query, key and value are stacked as wholes.
        beta_schedule (`str`): The noise schedule, by diffusers' name; of no meaning for a classifier.
        ddpm_num_inference_steps (`int`): Steps of the paper's tables.
        ddpm_classifier_scale, ddim_classifier_scale (`float`): Scale of the paper's tables, with that many DDPM steps
            and with 25 DDIM steps (where the paper has none, the former).
        low_res_size (`int`, *optional*): Side of the low-resolution images of an upsampler.
    """

    arguments: dict[str, Any]
    new_attention_order: bool = False
    beta_schedule: str = "linear"
    ddpm_num_inference_steps: int = 250
    ddpm_classifier_scale: float = 1.0
    ddim_classifier_scale: float = 1.0
    low_res_size: int | None = None


def _unet(sample_size: int, **arguments) -> dict[str, Any]:
    heads = {} if "num_attention_heads" in arguments else {"attention_head_dim": 64}
    return {
        "sample_size": sample_size,
        "in_channels": 3,
        "low_res_channels": 0,
        "out_channels": 6,
        "base_channels": 256,
        "layers_per_block": 2,
        "attention_resolutions": (32, 16, 8),
        "resample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": 1000,
        "dropout": 0.0,
        **heads,
        **arguments,
    }


def _classifier(sample_size: int, **arguments) -> dict[str, Any]:
    return {
        "sample_size": sample_size,
        "in_channels": 3,
        "num_classes": 1000,
        "pool": "attention",
        "base_channels": 128,
        "layers_per_block": 2,
        "attention_resolutions": (32, 16, 8),
        "attention_head_dim": 64,
        "resample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "dropout": 0.0,
        **arguments,
    }


_MULTIPLIERS = {
    64: {"channel_multipliers": (1, 2, 3, 4)},
    128: {"channel_multipliers": (1, 1, 2, 3, 4)},
    256: {"channel_multipliers": (1, 1, 2, 2, 4, 4)},
    512: {"channel_multipliers": (0.5, 1, 1, 2, 2, 4, 4)},
}
_LSUN = ReleasedCheckpoint(
    _unet(256, num_class_embeds=None, dropout=0.1, **_MULTIPLIERS[256]), ddpm_num_inference_steps=1000
)

RELEASED_CHECKPOINTS: dict[str, ReleasedCheckpoint] = {
    "64x64_diffusion": ReleasedCheckpoint(
        _unet(64, base_channels=192, layers_per_block=3, dropout=0.1, **_MULTIPLIERS[64]),
        new_attention_order=True,
        beta_schedule="squaredcos_cap_v2",
    ),
    "128x128_diffusion": ReleasedCheckpoint(
        _unet(128, num_attention_heads=4, **_MULTIPLIERS[128]), ddpm_classifier_scale=0.5, ddim_classifier_scale=1.25
    ),
    "256x256_diffusion": ReleasedCheckpoint(_unet(256, **_MULTIPLIERS[256]), ddim_classifier_scale=2.5),
    "256x256_diffusion_uncond": ReleasedCheckpoint(
        _unet(256, num_class_embeds=None, **_MULTIPLIERS[256]), ddpm_classifier_scale=10.0, ddim_classifier_scale=10.0
    ),
    "512x512_diffusion": ReleasedCheckpoint(
        _unet(512, **_MULTIPLIERS[512]), ddpm_classifier_scale=4.0, ddim_classifier_scale=9.0
    ),
    "64_256_upsampler": ReleasedCheckpoint(
        _unet(256, low_res_channels=3, base_channels=192, num_attention_heads=4, **_MULTIPLIERS[256]), low_res_size=64
    ),
    "128_512_upsampler": ReleasedCheckpoint(
        _unet(512, low_res_channels=3, base_channels=192, attention_resolutions=(32, 16), **_MULTIPLIERS[256]),
        low_res_size=128,
    ),
    "lsun_bedroom": _LSUN,
    "lsun_cat": _LSUN,
    "lsun_horse": _LSUN,
    "lsun_horse_nodropout": ReleasedCheckpoint({**_LSUN.arguments, "dropout": 0.0}, ddpm_num_inference_steps=1000),
    "64x64_classifier": ReleasedCheckpoint(_classifier(64, layers_per_block=4, **_MULTIPLIERS[64])),
    "128x128_classifier": ReleasedCheckpoint(_classifier(128, **_MULTIPLIERS[128])),
    "256x256_classifier": ReleasedCheckpoint(_classifier(256, **_MULTIPLIERS[256])),
    "512x512_classifier": ReleasedCheckpoint(_classifier(512, **_MULTIPLIERS[512])),
}
"""The 15 released files, by name without `.pt`. Where several share all shapes, the first is meant."""

# ------------------------------------------------------------------------------------------------------------ reading


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a `.pt` or `.safetensors` file of parameters; nothing in it is executed.

    The tensors of a `.pt` file stay on disk until they are used, so leave it unchanged as long as they are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, holds anything but tensors, or is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is truncated: fetch it again.")
    try:
        if path.suffix == ".safetensors":
            state_dict = load_file(path)
        else:  # torch maps the files that it writes today, not those of before 2020
            state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not a file of tensors alone, and is refused, since reading anything else from it could run "
            "foreign code: save its model's state_dict() with torch.save or safetensors and pass that."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint; it is truncated or another kind of file.") from error
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in state_dict.values()
    ):
        held = f"the entries {_few(state_dict)}" if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise InputError(f"{path} is not a model's state dictionary, which names tensors; it holds {held}.")
    return dict(state_dict)


def _few(names: Iterable, limit: int = 4) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# -------------------------------------------------------------------------------------------------------- recognition


@dataclass(frozen=True)
class Recognised:
    """What names and shapes tell of a network.

    Args:
        kind (`str`): `"unet"` or `"classifier"`.
        arguments (`dict`): Constructor arguments, all but those that the shapes leave open.
        attention_levels (`tuple[int, ...]`): Levels with attention, finest first.
        coarsest_side (`int`, *optional*): Side of the coarsest feature map, where attention pooling tells it.
    """

    kind: str
    arguments: dict[str, Any]
    attention_levels: tuple[int, ...]
    coarsest_side: int | None = field(default=None)

    def arguments_at(self, sample_size: int) -> dict[str, Any]:
        """The arguments for a network of this image size."""
        resolutions = tuple(sample_size // 2**level for level in self.attention_levels)
        return {**self.arguments, "sample_size": sample_size, "attention_resolutions": resolutions}


@dataclass(frozen=True)
class _Level:
    channels: int
    attends: bool


class _Trunk:
    """The blocks on the way down, numbered as in the checkpoint."""

    def __init__(self, shapes: Shapes):
        self.shapes = shapes
        numbers = _block_numbers(shapes, "input_blocks")
        if numbers != set(range(len(numbers))):
            raise InputError(
                "This checkpoint resamples without parameters between its levels (conv_resample=False, "
                "resblock_updown=False), which these models do not have."
            )
        self.num_blocks = len(numbers)
        self.convolutions = [i for i in numbers if f"input_blocks.{i}.0.op.weight" in shapes]
        self.channels = [self._channels(i) for i in range(self.num_blocks)]
        self.attends = [f"input_blocks.{i}.1.qkv.weight" in shapes for i in range(self.num_blocks)]

    def _channels(self, block: int) -> int:
        for name in ("0.out_layers.3.weight", "0.op.weight", "0.weight"):
            if f"input_blocks.{block}.{name}" in self.shapes:
                return self.shapes[f"input_blocks.{block}.{name}"][0]
        raise InputError(f"Block input_blocks.{block} is none of a guided-diffusion network's.")

    def levels(self, layers_per_block: int) -> list[_Level] | None:
        """The levels, if every one of them has so many residual blocks; None if that cannot be."""
        period = layers_per_block + 1  # a level's blocks and the one that resamples after them
        if self.num_blocks % period:
            return None
        resampling = range(period, self.num_blocks, period)
        if self.convolutions and self.convolutions != list(resampling):
            return None
        levels = []
        for first in range(1, self.num_blocks, period):
            blocks = range(first, first + layers_per_block)
            channels = {self.channels[i] for i in (*blocks, first + layers_per_block) if i < self.num_blocks}
            attends = {self.attends[i] for i in blocks}
            if len(channels) > 1 or len(attends) > 1:
                return None
            levels.append(_Level(channels.pop(), attends.pop()))
        return None if any(self.attends[i] for i in resampling) else levels


def recognise(
    shapes: Shapes,
    sample_size: int | None = None,
    layers_per_block: int | None = None,
    low_res_channels: int | None = None,
) -> Recognised:
    """Reads the architecture off the parameters' names and shapes.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shape of every parameter.
        sample_size, layers_per_block, low_res_channels (`int`, *optional*): Facts that settle it where shapes do not.

    Raises:
        ValueError: if these are not the parameters of such a network, or the shapes allow several.
    """
    try:
        return _recognise(shapes, sample_size, layers_per_block, low_res_channels)
    except KeyError as error:
        raise InputError(
            f"This is not a checkpoint of guided-diffusion's networks: {error.args[0]} is missing; it holds {_few(shapes)}."
        ) from error


def _recognise(
    shapes: Shapes, sample_size: int | None, layers_per_block: int | None, low_res_channels: int | None
) -> Recognised:
    base_channels = shapes["time_embed.0.weight"][1]
    trunk = _Trunk(shapes)
    is_unet = any(name.startswith("output_blocks.") for name in shapes)
    head = _recognise_unet(shapes, low_res_channels) if is_unet else _recognise_classifier(shapes)

    coarsest_side = None
    if "out.2.positional_embedding" in shapes:
        coarsest_side = round((shapes["out.2.positional_embedding"][1] - 1) ** 0.5)
    if is_unet:
        layers_per_block, resample_type = _recognise_up_blocks(shapes)
        levels = trunk.levels(layers_per_block)
    else:
        resample_type = "conv" if trunk.convolutions else "resnet"
        layers_per_block, levels = _choose_levels(trunk, coarsest_side, sample_size, layers_per_block)
    if levels is None:
        raise InputError("The blocks of this checkpoint are not arranged in levels as guided-diffusion's are.")

    emb_width, first_width = (
        shapes[f"input_blocks.1.0.{name}"][0] for name in ("emb_layers.1.weight", "out_layers.3.weight")
    )
    multipliers = [level.channels / base_channels for level in levels]
    return Recognised(
        kind="unet" if is_unet else "classifier",
        arguments={
            **head,
            "base_channels": base_channels,
            "channel_multipliers": tuple(int(m) if m == int(m) else m for m in multipliers),
            "layers_per_block": layers_per_block,
            "resample_type": resample_type,
            "resnet_time_scale_shift": "scale_shift" if emb_width == 2 * first_width else "default",
        },
        attention_levels=tuple(i for i, level in enumerate(levels) if level.attends),
        coarsest_side=coarsest_side,
    )


def _recognise_unet(shapes: Shapes, low_res_channels: int | None) -> dict[str, Any]:
    network_in, network_out = shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]
    if low_res_channels is None:
        # (image channels, low-resolution channels), of which the network sees the sum and gives one or two times the first
        fits = [(network_in, 0)] + ([(network_in // 2, network_in // 2)] if network_in % 2 == 0 else [])
        fits = [(image, low_res) for image, low_res in fits if network_out in (image, 2 * image)]
        if (3, 3) in fits:
            fits = [(3, 3)]
        if len(fits) != 1:
            raise InputError(
                f"A unet from {network_in} to {network_out} channels may generate or upsample: pass low_res_channels=0, "
                "or the channels of the low-resolution image."
            )
        low_res_channels = fits[0][1]
    return {
        "in_channels": network_in - low_res_channels,
        "low_res_channels": low_res_channels,
        "out_channels": network_out,
        "num_class_embeds": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
    }


def _recognise_classifier(shapes: Shapes) -> dict[str, Any]:
    for pool, last in (
        ("attention", "out.2.c_proj.weight"),
        ("spatial_v2", "out.3.weight"),
        ("adaptive", "out.3.weight"),
        ("spatial", "out.2.weight"),
    ):
        if last in shapes and (pool != "spatial_v2" or len(shapes["out.0.weight"]) == 2):
            return {
                "in_channels": shapes["input_blocks.0.0.weight"][1],
                "num_classes": shapes[last][0],
                "pool": pool,
            }
    raise InputError(f"This classifier's head is unknown: {_few(name for name in shapes if name.startswith('out.'))}.")


def _recognise_up_blocks(shapes: Shapes) -> tuple[int, str]:
    """Residual blocks per level, and the type of resampling, from the layer that ends each level on the way up."""
    ends = {}
    for name in shapes:
        match = re.fullmatch(r"output_blocks\.(\d+)\.[12]\.(in_layers|conv)\..*", name)
        if match:
            ends[int(match[1])] = "resnet" if match[2] == "in_layers" else "conv"
    if ends:
        return min(ends), ends[min(ends)]
    return max(_block_numbers(shapes, "output_blocks")), "resnet"


def _block_numbers(shapes: Shapes, part: str) -> set[int]:
    matches = (re.match(rf"{part}\.(\d+)\.", name) for name in shapes)
    return {int(match[1]) for match in matches if match}


def _choose_levels(
    trunk: _Trunk, coarsest_side: int | None, sample_size: int | None, layers_per_block: int | None
) -> tuple[int, list[_Level] | None]:
    """Residual blocks per level and the levels, of a network that only goes down, where the shapes may allow several."""
    choices = {n: trunk.levels(n) for n in range(1, trunk.num_blocks) if layers_per_block in (None, n)}
    choices = {n: levels for n, levels in choices.items() if levels is not None}
    if sample_size is not None and coarsest_side is not None:
        choices = {n: levels for n, levels in choices.items() if coarsest_side * 2 ** (len(levels) - 1) == sample_size}
    if len(choices) > 1:
        raise InputError(
            "The shapes of this classifier allow several numbers of residual blocks per level: pass layers_per_block, "
            f"one of {sorted(choices)}."
        )
    return next(iter(choices.items()), (0, None))


def find_released(recognised: Recognised, name: str = "") -> ReleasedCheckpoint | None:
    """The released file of exactly this architecture: the one of this name if several share it, else the first."""
    matches = {}
    for released_name, released in RELEASED_CHECKPOINTS.items():
        arguments = recognised.arguments_at(released.arguments["sample_size"])
        if all(released.arguments.get(key) == value for key, value in arguments.items()):
            matches[released_name] = released
    return matches.get(name) or next(iter(matches.values()), None)


# ------------------------------------------------------------------------------------------------------------- models


class OpenAICheckpointMixin:
    """Loading from and giving back OpenAI's layout, for the unet and the classifier alike."""

    _openai_kind: str

    @classmethod
    @torch.no_grad()
    def from_single_file(
        cls,
        path_or_state_dict: str | Path | Mapping[str, torch.Tensor],
        *,
        sample_size: int | None = None,
        attention_head_dim: int | None = None,
        num_attention_heads: int | None = None,
        new_attention_order: bool | None = None,
        dropout: float | None = None,
        layers_per_block: int | None = None,
        low_res_channels: int | None = None,
        torch_dtype: torch.dtype = torch.float32,
    ) -> "Self":
        """Loads a checkpoint of guided-diffusion or improved-diffusion.

        The architecture is recognised from the parameters' names and shapes. OpenAI's 15 released files need nothing
        else; any other needs those facts that shapes cannot tell, and a sentence says which.

        Args:
            path_or_state_dict (`str`, `Path` or `Mapping[str, torch.Tensor]`): A `.pt` or `.safetensors` file, or what
                it holds. Files of averaged weights (`ema_0.9999_*.pt`) have the same layout.
            sample_size (`int`, *optional*): Side of the image in pixels.
            attention_head_dim, num_attention_heads (`int`, *optional*): Width of every attention head
                (`num_head_channels`), or their number at every level (`num_heads`).
            new_attention_order (`bool`, *optional*): Whether query, key and value are stacked as wholes
                (`use_new_attention_order`) rather than interleaved per head.
            dropout (`float`, *optional*): For training on; that of the released file, or 0.
            layers_per_block, low_res_channels (`int`, *optional*): Where the shapes allow several.
            torch_dtype (`torch.dtype`): Of the model; half-precision files are widened to it.

        Returns:
            The model, in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: if the file cannot be read, is of another kind of network, has parameters
                missing or left over, or needs a fact that was not given.
        """
        if isinstance(path_or_state_dict, Mapping):
            name, state_dict = "", path_or_state_dict
        else:
            name, state_dict = Path(path_or_state_dict).stem, read_state_dict(path_or_state_dict)
        shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
        recognised = recognise(shapes, sample_size, layers_per_block, low_res_channels)
        if recognised.kind != cls._openai_kind:
            raise InputError(
                f"This checkpoint is a {recognised.kind}'s, not a {cls._openai_kind}'s: load it with "
                f"{'ADMUNet2DModel' if recognised.kind == 'unet' else 'NoisyClassifierModel'}.from_single_file."
            )
        released = find_released(recognised, name)
        given = {
            "attention_head_dim": attention_head_dim,
            "num_attention_heads": num_attention_heads,
            "dropout": dropout,
        }
        given = {key: value for key, value in given.items() if value is not None}
        arguments, order = _complete(recognised, released, sample_size, new_attention_order, given)

        with torch.device("meta"):
            model = cls(**arguments)
        with tqdm(total=len(shapes), desc="Converting", unit="tensor", leave=False, delay=1) as progress:
            converted = from_openai_state_dict(model, state_dict, order, torch_dtype, progress)
        model.load_state_dict(converted, assign=True)
        model.register_to_config(_new_attention_order=order)
        return model.eval()

    @torch.no_grad()
    def to_openai_state_dict(self, new_attention_order: bool | None = None) -> dict[str, torch.Tensor]:
        """The parameters in OpenAI's layout, by their names and in their order, in the model's dtype.

        A model that [`from_single_file`] loaded gives back its file's dictionary, bit for bit.

        Args:
            new_attention_order (`bool`, *optional*): How query, key and value are stacked: as in the file that the
                model came from, else interleaved per head, as guided-diffusion assumes unless told otherwise.
        """
        if new_attention_order is None:
            new_attention_order = self.config.get("_new_attention_order", False)
        return to_openai_state_dict(self, new_attention_order)


def _complete(
    recognised: Recognised,
    released: ReleasedCheckpoint | None,
    sample_size: int | None,
    new_attention_order: bool | None,
    given: dict[str, Any],
) -> tuple[dict[str, Any], bool]:
    """All constructor arguments, and the attention's order: from the shapes, the released file, and the user.

    Raises:
        ValueError: if a fact is missing; the sentence says what was found and what to pass.
    """
    known = {} if released is None else dict(released.arguments)
    if "attention_head_dim" in given or "num_attention_heads" in given:
        known.pop("attention_head_dim", None)
        known.pop("num_attention_heads", None)
    known.update(given)

    if sample_size is None:
        sample_size = known.get("sample_size")
    if sample_size is None and recognised.coarsest_side is not None:
        sample_size = recognised.coarsest_side * 2 ** (len(recognised.arguments["channel_multipliers"]) - 1)
    if new_attention_order is None and released is not None:
        new_attention_order = released.new_attention_order
    if known.get("num_attention_heads") == 1:
        new_attention_order = bool(new_attention_order)  # with one head the two orders are the same

    missing = []
    if sample_size is None:
        missing.append("sample_size=")
    if "attention_head_dim" not in known and "num_attention_heads" not in known:
        missing.append("attention_head_dim= (num_head_channels) or num_attention_heads= (num_heads)")
    if new_attention_order is None:
        missing.append("new_attention_order= (use_new_attention_order)")
    if missing:
        found = ", ".join(f"{key}={value}" for key, value in recognised.arguments.items())
        raise InputError(
            f"This {recognised.kind} is none of OpenAI's released ones ({found}), and its shapes do not tell "
            f"everything: pass {'; '.join(missing)}.{_kin(recognised)}"
        )
    return {**known, **recognised.arguments_at(sample_size)}, new_attention_order


def _kin(recognised: Recognised) -> str:
    """What to pass for a fine-tune of the released file that differs in channels or classes alone."""
    own = {"in_channels", "out_channels", "low_res_channels", "num_class_embeds", "num_classes", "sample_size"}
    for name, released in RELEASED_CHECKPOINTS.items():
        size = released.arguments["sample_size"]
        arguments = {k: v for k, v in recognised.arguments_at(size).items() if k not in own}
        if all(released.arguments.get(key) == value for key, value in arguments.items()):
            heads = "num_attention_heads" if "num_attention_heads" in released.arguments else "attention_head_dim"
            return (
                f" If it was fine-tuned from {name}: sample_size={size}, {heads}={released.arguments[heads]}, "
                f"new_attention_order={released.new_attention_order}."
            )
    return ""
