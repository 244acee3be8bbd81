"""What the unet and the noisy classifier have in common: ADM's downsampling trunk on diffusers' own blocks."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from diffusers_cg.errors import InputError
from diffusers_cg.models.openai_layout import openai_blocks


ResampleType = Literal["resnet", "conv"]
TimeScaleShift = Literal["scale_shift", "default"]

CPU_ALIGNMENT = 64  # bytes, of what torch allocates
RESCALED_TIMESTEPS = 1000  # what `rescale_timesteps` makes of T, as in the reference


def height_and_width(size: int | Sequence[int]) -> tuple[int, ...]:
    """The two sides of a size that may be given as one number."""
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def level_resolutions(sample_size: int | Sequence[int], num_levels: int) -> list[int]:
    """Shorter side of the feature maps at every level, finest first, in pixels.

    Raises:
        InputError: if a side of `sample_size` cannot be halved `num_levels - 1` times.
    """
    sides = height_and_width(sample_size)
    divisor = 2 ** (num_levels - 1)
    if len(sides) != 2 or any(side < divisor or side % divisor for side in sides):
        raise InputError(
            f"`sample_size` is {sample_size}, but {num_levels} levels (one per entry of `channel_multipliers`) halve "
            f"the image {num_levels - 1} times: height and width must be multiples of {divisor}."
        )
    return [min(sides) // 2**level for level in range(num_levels)]


def level_widths(config: FrozenDict) -> tuple[int, ...]:
    """Channels of every level, finest first."""
    return tuple(int(config.base_channels * multiplier) for multiplier in config.channel_multipliers)


def unet2d_arguments(config: FrozenDict) -> dict[str, Any]:
    """ADM's switches (section 3 of the paper) as arguments of `diffusers.UNet2DModel`.

    Args:
        config (`FrozenDict`): The constructor's arguments, as registered; a classifier's lack those of the way up.
    """
    resolutions = level_resolutions(config.sample_size, len(config.channel_multipliers))
    attends = [side in config.attention_resolutions for side in resolutions]
    if config.resample_type == "resnet":
        down, up = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
    else:
        down, up = "DownBlock2D", "UpBlock2D"
    return {
        "sample_size": config.sample_size,
        "in_channels": config.in_channels + config.get("low_res_channels", 0),
        "out_channels": config.get("out_channels", config.in_channels),
        "time_embedding_dim": 4 * config.base_channels,
        "down_block_types": tuple("AttnDownBlock2D" if yes else down for yes in attends),
        "up_block_types": tuple("AttnUpBlock2D" if yes else up for yes in reversed(attends)),
        "block_out_channels": level_widths(config),
        "layers_per_block": config.layers_per_block,
        "downsample_type": config.resample_type,
        "upsample_type": config.resample_type,
        "dropout": config.dropout,
        "attention_head_dim": config.attention_head_dim,
        "norm_num_groups": config.norm_num_groups,
        "attn_norm_num_groups": config.norm_num_groups,
        "resnet_time_scale_shift": config.resnet_time_scale_shift,
        "num_class_embeds": config.get("num_class_embeds"),
    }


class ADMTrunkMixin(AttentionMixin):
    """The parts of `UNet2DModel` that ADM does differently, and the way down from a noisy sample to its features.

    The host class owns `conv_in`, `time_proj`, `time_embedding`, `down_blocks` and `mid_block`, named and built as
    `UNet2DModel` does.
    """

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As `ModelMixin.from_pretrained`, but from safetensors only, and with the weights laid out as in a new model.

        diffusers unpickles where it finds no safetensors, unless told not to (`use_safetensors=False` still does).
        Mapped from a file, weights lie anywhere, and CPU kernels then round otherwise: images would differ in the last
        bits.
        """
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.lay_out_weights()
        for parameter in model.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % CPU_ALIGNMENT:
                parameter.data = parameter.data.clone()
        return loaded

    def lay_out_weights(self) -> None:
        """Puts weights of convolutions in channels-last, which kernels of CPUs and tensor cores take without copies.

        Not where each group of a normalization is one channel, which is slow in that layout. Results differ in rounding alone.
        """
        if self.config.base_channels > self.config.norm_num_groups:
            nn.Module.to(self, memory_format=torch.channels_last)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers' own, of contiguous weights, since its files on a disk hold no others."""
        nn.Module.to(self, memory_format=torch.contiguous_format)
        super().enable_group_offload(*args, **kwargs)

    def settle_config(self) -> None:
        """Checks the arguments that are registered, and registers the width of heads that they leave open."""
        if self.config.attention_head_dim is None and self.config.num_attention_heads is None:
            self.register_to_config(attention_head_dim=64)  # section 3.1
        check_architecture(self.config)

    def apply_adm_details(self) -> None:
        """What `UNet2DModel` has no argument for: embedding, fresh layers at zero, rescaling, heads by number, layout."""
        # it ties the embedding's width to the first level, which may be narrower than the base (512x512)
        self.time_proj = Timesteps(self.config.base_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(self.config.base_channels, 4 * self.config.base_channels)

        num_heads = self.config.num_attention_heads
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                last = module.conv2
                if self.config.rescale_residual:
                    module.output_scale_factor = math.sqrt(2)
            elif isinstance(module, Attention):
                last = module.to_out[0]
                if self.config.rescale_residual:
                    module.rescale_output_factor = math.sqrt(2)
                if num_heads is not None:  # it knows widths only, one for all levels
                    module.heads = module.sliceable_head_dim = num_heads
                    module.scale = (module.inner_dim // num_heads) ** -0.5
            else:
                continue
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.lay_out_weights()

    def check_sample(self, sample: torch.Tensor) -> None:
        """Raises `InputError` unless `sample` is (B, `in_channels`, H, W) with sides that the levels divide."""
        divisor = 2 ** (len(self.down_blocks) - 1)
        channels = self.config.in_channels
        if sample.ndim != 4 or sample.shape[1] != channels or any(side % divisor for side in sample.shape[2:]):
            raise InputError(
                f"{type(self).__name__} takes a sample of shape (batch, {channels}, height, width) with height and "
                f"width multiples of {divisor}, got {tuple(sample.shape)}."
            )

    def embed_timestep(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """Embedding (B, 4 * base_channels) of the timestep, a number or (B,)."""
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        if self.config.rescale_timesteps:
            timesteps = timesteps.float() * (RESCALED_TIMESTEPS / self.config.num_train_timesteps)
        return self.time_embedding(self.time_proj(timesteps).to(sample.dtype))

    def features(self, *inputs: Any, blocks: str | Sequence[str], **named_inputs: Any) -> dict[str, torch.Tensor]:
        """What blocks give, in one forward pass, with a graph where gradients are on.

            unet.features(sample, timestep, class_labels, blocks=["mid_block", "output_blocks.6"])

        Args:
            inputs, named_inputs: As of a call: `sample`, `timestep` and, of a unet, `class_labels`.
            blocks (`str` or sequence of `str`): Names of modules of this network (`"down_blocks.1"`, `"mid_block"`,
                `"up_blocks.2.resnets.0"`), or OpenAI's names of blocks (`"input_blocks.4"`, `"middle_block"`,
                `"output_blocks.6"`).

        Returns:
            `dict[str, torch.Tensor]`: By the names asked for, features (B, channels, H, W), in the model's dtype.

        Raises:
            InputError: if there is no such block (the sentence names the nearest), or it takes no part.
        """
        modules, features, handles = self.modules_of(blocks), {}, []
        try:
            for name, module in modules.items():

                def keep(module, args, output, name=name):
                    features[name] = (
                        output[0] if isinstance(output, tuple) else output
                    )  # beside features of each layer

                handles.append(module.register_forward_hook(keep))
            with torch.compiler.set_stance("force_eager"):  # compiled graphs do not know of the hooks
                self(*inputs, **named_inputs)
        finally:
            for handle in handles:
                handle.remove()
        idle = [name for name in modules if name not in features]
        if idle:
            raise InputError(f"{type(self).__name__} does not run {idle[0]!r} on such inputs: ask for other blocks.")
        return {name: features[name] for name in modules}

    def modules_of(self, blocks: str | Sequence[str]) -> dict[str, nn.Module]:
        """Our modules by the names of blocks, ours or OpenAI's; see [`features`]."""
        ours = {name: module for name, module in self.named_modules() if name and type(module) is not nn.ModuleList}
        named = {name: ours[key] for name, key in openai_blocks(self).items()} | ours
        found = {}
        for name in [blocks] if isinstance(blocks, str) else blocks:
            if name not in named:
                nearest = get_close_matches(str(name), named, n=1, cutoff=0.0)[0]
                raise InputError(f"{type(self).__name__} has no block {name!r}; the nearest name is {nearest!r}.")
            found[name] = named[name]
        return found

    def encode(self, sample: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Features after the middle block, and those of `conv_in` and of every layer on the way down, in order."""
        sample = self.conv_in(sample)
        residuals = (sample,)
        for block in self.down_blocks:
            sample, block_residuals = block(sample, temb=emb)
            residuals += block_residuals
        return self.mid_block(sample, emb), residuals


def check_architecture(config: FrozenDict) -> None:
    """Raises `InputError` where a constructor's arguments contradict each other; the sentence names the one to change."""
    counts = ("in_channels", "base_channels", "layers_per_block", "norm_num_groups", "attention_head_dim")
    for name in (*counts, "num_attention_heads", "num_class_embeds", "num_classes", "num_train_timesteps"):
        if config.get(name) is not None and config[name] < 1:
            raise InputError(f"`{name}` must be at least 1, got {config[name]}.")
    for name, allowed in (("resample_type", ResampleType), ("resnet_time_scale_shift", TimeScaleShift)):
        if config[name] not in get_args(allowed):
            raise InputError(f"`{name}` must be one of {get_args(allowed)}, got {config[name]!r}.")
    if not 0 <= config.dropout <= 1:
        raise InputError(f"`dropout` must lie between 0 and 1, got {config.dropout}.")
    if len(config.channel_multipliers) == 0:
        raise InputError("`channel_multipliers` is empty: it holds one multiplier per level.")

    resolutions = level_resolutions(config.sample_size, len(config.channel_multipliers))
    unknown = sorted(set(config.attention_resolutions) - set(resolutions))
    if unknown:
        raise InputError(
            f"`attention_resolutions` names {unknown}, but the levels of this network have the resolutions {resolutions}."
        )
    widths = level_widths(config)
    for channels in widths:
        if channels < 1 or channels % config.norm_num_groups:
            raise InputError(
                f"A level has {channels} channels, which {config.norm_num_groups} normalization groups do not "
                "divide: change `base_channels`, `channel_multipliers` or `norm_num_groups`."
            )

    width, number = config.attention_head_dim, config.num_attention_heads
    if width is not None and number is not None:
        raise InputError(
            "Set the attention heads either by width (`attention_head_dim`) or by number (`num_attention_heads`), not "
            f"both: got {width} and {number}."
        )
    attending = {channels for channels, side in zip(widths, resolutions) if side in config.attention_resolutions}
    for channels in sorted({*attending, widths[-1]}):  # the middle block attends at any rate
        if channels % (width or number):
            raise InputError(
                f"An attention layer has {channels} channels, which cannot be split into heads with "
                f"attention_head_dim={width}, num_attention_heads={number}."
            )

    if config.rescale_timesteps and config.num_train_timesteps is None:
        raise InputError("`rescale_timesteps` needs `num_train_timesteps`, the T that timesteps are rescaled from.")

    names = config.class_names
    if names is not None:
        classes = "num_classes" if "num_classes" in config else "num_class_embeds"
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InputError(f"`class_names` must be a list of strings, one per class, got {names!r}.")
        if len(names) != config[classes]:
            raise InputError(f"`class_names` holds {len(names)} names, but `{classes}` is {config[classes]}.")
