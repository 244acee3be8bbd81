"""What names and shapes of its parameters tell of a network of OpenAI's, and which of the table's it may be."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers_cg.errors import InputError
from diffusers_cg.models.adm_trunk import height_and_width
from diffusers_cg.models.presets import LAYOUTS, PRESETS, Layout
from diffusers_cg.models.weight_files import list_few


OTHERS = {
    r"^down_blocks\.": "has diffusers' names: load its folder, config.json and all, with from_pretrained",
    r"transformer_blocks\.": "is a latent diffusion's, whose attention looks at a text: load it with diffusers",
    r"encoder_kv\.": "is GLIDE's, whose attention looks at a text: load it with glide-text2im",
    r"(^|\.)enc\.\d+x\d+_": "has EDM's names and preconditioning: sample it with NVlabs/edm",
    r"^downs\.\d+\.": "has denoising_diffusion_pytorch's names: sample it with that",
}
"""Names by which other projects' networks are told, and what to do with them."""


@dataclass(frozen=True)
class Recognised:
    """What names and shapes tell of a network.

    Args:
        kind (`str`): `"unet"` or `"classifier"`.
        arguments (`dict`): Constructor arguments, all but those that the shapes leave open.
        attention_levels (`tuple[int, ...]`): Levels with attention, by number, finest first.
        coarsest_pixels (`int`, *optional*): Those of the coarsest feature map, where attention pooling tells their number.
    """

    kind: str
    arguments: dict[str, Any]
    attention_levels: tuple[int, ...]
    coarsest_pixels: int | None = None

    @property
    def sample_size(self) -> int | None:
        """Side of the image, where attention pooling tells it; of square ones."""
        if self.coarsest_pixels is None:
            return None
        return square_side(self.coarsest_pixels, len(self.arguments["channel_multipliers"]))

    def arguments_at(self, sample_size: int | Sequence[int]) -> dict[str, Any]:
        """The arguments for a network of this image size."""
        resolutions = tuple(min(height_and_width(sample_size)) // 2**level for level in self.attention_levels)
        return {**self.arguments, "sample_size": sample_size, "attention_resolutions": resolutions}


class Shapes(dict[str, tuple[int, ...]]):
    """Shape of every parameter, by its name."""

    def __missing__(self, name: str) -> None:
        raise InputError(
            f"This is not a checkpoint of guided-diffusion's networks: {name} is missing; it holds {list_few(self)}."
        )

    def check_project(self) -> None:
        """Raises `InputError` for a network of another project that is known by its names."""
        for pattern, what in OTHERS.items():
            found = next((name for name in self if re.search(pattern, name)), None)
            if found is not None:
                raise InputError(
                    f"This is not a checkpoint of guided-diffusion's networks: one with a parameter {found} {what}."
                )

    def numbers(self, part: str) -> set[int]:
        """Numbers of the blocks of a part: `input_blocks` or `output_blocks`."""
        matches = (re.match(rf"{part}\.(\d+)\.", name) for name in self)
        return {int(match[1]) for match in matches if match}


def recognise(
    shapes: Mapping[str, tuple[int, ...]],
    sample_size: int | Sequence[int] | None = None,
    layers_per_block: int | None = None,
    low_res_channels: int | None = None,
) -> Recognised:
    """Reads the architecture off the parameters' names and shapes.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shape of every parameter.
        sample_size, layers_per_block, low_res_channels (*optional*): Facts that settle it where shapes do not.

    Raises:
        InputError: if these are not the parameters of such a network, or the shapes allow several.
    """
    shapes = Shapes(shapes)
    shapes.check_project()
    base_channels = shapes["time_embed.0.weight"][1]
    blocks = _blocks_down(shapes)
    coarsest_pixels = None
    if shapes.numbers("output_blocks"):
        kind, own = "unet", _unet_arguments(shapes, low_res_channels)
        layers_per_block, resample_type = _resampling_of_the_way_up(shapes)
        levels = _levels(blocks, layers_per_block)
    else:
        kind, own = "classifier", _classifier_arguments(shapes)
        resample_type = "conv" if any(block.convolves for block in blocks) else "resnet"
        if own["pool"] == "attention":  # whose positions are the coarsest map's, and one more
            coarsest_pixels = shapes["out.2.positional_embedding"][1] - 1
        layers_per_block, levels = _choose_levels(blocks, layers_per_block, coarsest_pixels, sample_size)
    if levels is None:
        raise InputError("The blocks of this checkpoint are not arranged in levels as guided-diffusion's are.")

    adagn = shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * levels[0].channels  # a scale and a shift
    multipliers = [level.channels / base_channels for level in levels]
    return Recognised(
        kind,
        arguments={
            **own,
            "base_channels": base_channels,
            "channel_multipliers": tuple(int(m) if m == int(m) else m for m in multipliers),
            "layers_per_block": layers_per_block,
            "resample_type": resample_type,
            "resnet_time_scale_shift": "scale_shift" if adagn else "default",
        },
        attention_levels=tuple(i for i, level in enumerate(levels) if level.attends),
        coarsest_pixels=coarsest_pixels,
    )


def find_layouts(recognised: Recognised) -> dict[str, Layout]:
    """The table's rows of exactly these shapes, by name."""
    return {name: layout for name, layout in LAYOUTS.items() if _agree(recognised, layout)}


def find_origin(recognised: Recognised) -> str | None:
    """Name of the paper's network that this may be a fine-tune of, which differs in channels or classes alone."""
    replaceable = ("in_channels", "out_channels", "low_res_channels", "num_class_embeds", "num_classes")
    return next((name for name, preset in PRESETS.items() if _agree(recognised, preset, but=replaceable)), None)


def _agree(recognised: Recognised, layout: Layout, but: tuple[str, ...] = ()) -> bool:
    """What a row does not state agrees with anything."""
    stated = layout.architecture
    found = recognised.arguments_at(stated["sample_size"])
    return recognised.kind == layout.kind and all(
        _in_order(name, stated[name]) == _in_order(name, value)
        for name, value in found.items()
        if name in stated and name not in but
    )


def _in_order(name: str, value: Any) -> Any:
    return sorted(value) if name == "attention_resolutions" else value


# ------------------------------------------------------------------------------------------------- the two ends


def _unet_arguments(shapes: Shapes, low_res_channels: int | None) -> dict[str, Any]:
    network_in, network_out = shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]
    if low_res_channels is None:
        # it sees image and low-resolution image of as many channels, and gives one or two times the former
        fits = [0] if network_in % 2 else [0, network_in // 2]
        fits = [low_res for low_res in fits if network_out in (network_in - low_res, 2 * (network_in - low_res))]
        if 3 in fits:  # color images
            fits = [3]
        if len(fits) != 1:
            raise InputError(
                f"A unet from {network_in} to {network_out} channels may generate or upsample: pass low_res_channels=0, "
                "or the channels of the low-resolution image."
            )
        (low_res_channels,) = fits
    return {
        "in_channels": network_in - low_res_channels,
        "low_res_channels": low_res_channels,
        "out_channels": network_out,
        "num_class_embeds": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
    }


def _classifier_arguments(shapes: Shapes) -> dict[str, Any]:
    if "out.2.c_proj.weight" in shapes:
        pool, last = "attention", "out.2.c_proj.weight"
    elif "out.3.weight" in shapes:  # out.0 is a linear layer, or the normalization of a feature map
        pool, last = "spatial_v2" if len(shapes["out.0.weight"]) == 2 else "adaptive", "out.3.weight"
    elif "out.2.weight" in shapes:
        pool, last = "spatial", "out.2.weight"
    else:
        head = list_few(name for name in shapes if name.startswith("out."))
        raise InputError(f"This classifier's head is unknown: {head}.")
    return {"in_channels": shapes["input_blocks.0.0.weight"][1], "num_classes": shapes[last][0], "pool": pool}


# ------------------------------------------------------------------------------------- levels of the way down


@dataclass(frozen=True)
class _Block:
    """A block on the way down.

    Args:
        channels (`int`): Its width.
        attends (`bool`): Whether attention follows.
        convolves (`bool`): Whether it is a mere convolution that halves the image.
    """

    channels: int
    attends: bool
    convolves: bool


def _blocks_down(shapes: Shapes) -> list[_Block]:
    """The blocks after the first convolution, in order."""
    numbers = shapes.numbers("input_blocks")
    if numbers != set(range(len(numbers))):
        raise InputError(
            "This checkpoint resamples without parameters between its levels (conv_resample=False, "
            "resblock_updown=False), which these models do not have."
        )
    blocks = []
    for number in range(1, len(numbers)):
        block = f"input_blocks.{number}"
        convolves = f"{block}.0.op.weight" in shapes
        channels = shapes[f"{block}.0.op.weight" if convolves else f"{block}.0.out_layers.3.weight"][0]
        blocks.append(_Block(channels, f"{block}.1.qkv.weight" in shapes, convolves))
    return blocks


def _levels(blocks: list[_Block], layers_per_block: int) -> list[_Block] | None:
    """A block of each level, if every one of them has so many alike; None if that cannot be.

    Each level but the last ends in one more block, which halves the image.
    """
    period = layers_per_block + 1
    if (len(blocks) + 1) % period:
        return None
    levels, halving = [], []
    for first in range(0, len(blocks), period):
        level, *others = blocks[first : first + layers_per_block]
        if level.convolves or any(other != level for other in others):
            return None
        levels.append(level)
        halving += blocks[first + layers_per_block : first + period]
    alike = all(end.channels == level.channels and not end.attends for end, level in zip(halving, levels))
    return levels if alike and len({end.convolves for end in halving}) <= 1 else None


def _resampling_of_the_way_up(shapes: Shapes) -> tuple[int, str]:
    """Residual blocks per level, and how it is resampled, from the layer that ends the first level on the way up."""
    for number in sorted(shapes.numbers("output_blocks")):
        for name in shapes:
            match = re.fullmatch(rf"output_blocks\.{number}\.[12]\.(in_layers|conv)\..*", name)
            if match:
                return number, "resnet" if match[1] == "in_layers" else "conv"
    return max(shapes.numbers("output_blocks")), "resnet"  # a single level


def square_side(coarsest_pixels: int, num_levels: int) -> int:
    """Side of the square image whose coarsest feature map has so many pixels."""
    return math.isqrt(coarsest_pixels) * 2 ** (num_levels - 1)


def _choose_levels(
    blocks: list[_Block],
    layers_per_block: int | None,
    coarsest_pixels: int | None,
    sample_size: int | Sequence[int] | None,
) -> tuple[int, list[_Block] | None]:
    """Residual blocks per level, and the levels, of a classifier, whose shapes may allow several."""
    choices = {number: _levels(blocks, number) for number in range(1, len(blocks) + 1)}
    choices = {number: levels for number, levels in choices.items() if levels is not None}
    if layers_per_block is not None:
        choices = {number: levels for number, levels in choices.items() if number == layers_per_block}
    if sample_size is not None and coarsest_pixels is not None:
        pixels = math.prod(height_and_width(sample_size))
        fitting = {n: levels for n, levels in choices.items() if coarsest_pixels * 4 ** (len(levels) - 1) == pixels}
        if choices and not fitting:
            sides = sorted({square_side(coarsest_pixels, len(levels)) for levels in choices.values()})
            raise InputError(
                f"This classifier's attention pooling reads images of {' or '.join(map(str, sides))}, "
                f"not of sample_size={sample_size}: leave that out."
            )
        choices = fitting
    if len(choices) > 1:
        raise InputError(
            "The shapes of this classifier allow several numbers of residual blocks per level: pass layers_per_block, "
            f"one of {sorted(choices)}."
        )
    return next(iter(choices.items()), (0, None))
