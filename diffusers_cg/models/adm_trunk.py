"""What the unet and the noisy classifier have in common: ADM's downsampling trunk on diffusers' own blocks."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from diffusers_cg.errors import InputError


ResampleType = Literal["resnet", "conv"]
TimeScaleShift = Literal["scale_shift", "default"]

CPU_ALIGNMENT = 64  # bytes, of what torch allocates


def height_and_width(size: int | Sequence[int]) -> tuple[int, ...]:
    """The two sides of a size that may be given as one number."""
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def level_resolutions(sample_size: int | Sequence[int], num_levels: int) -> list[int]:
    """Shorter side of the feature maps at every level, finest first, in pixels.

    Raises:
        ValueError: if a side of `sample_size` cannot be halved `num_levels - 1` times.
    """
    sides = height_and_width(sample_size)
    divisor = 2 ** (num_levels - 1)
    if len(sides) != 2 or any(side < divisor or side % divisor for side in sides):
        raise InputError(
            f"`sample_size` is {sample_size}, but {num_levels} levels (one per entry of `channel_multipliers`) halve "
            f"the image {num_levels - 1} times: height and width must be multiples of {divisor}."
        )
    return [min(sides) // 2**level for level in range(num_levels)]


def unet2d_arguments(
    *,
    sample_size: int | Sequence[int],
    in_channels: int,
    out_channels: int,
    base_channels: int,
    channel_multipliers: Sequence[float],
    layers_per_block: int,
    attention_resolutions: Sequence[int],
    attention_head_dim: int | None,
    num_attention_heads: int | None,
    resample_type: ResampleType,
    resnet_time_scale_shift: TimeScaleShift,
    dropout: float,
    num_class_embeds: int | None,
    norm_num_groups: int,
) -> dict:
    """Translates ADM's switches (section 3 of the paper) into the arguments of `diffusers.UNet2DModel`.

    Raises:
        ValueError: if the switches contradict each other; the sentence names the argument to change.
    """
    for name, value in (
        ("in_channels", in_channels),
        ("base_channels", base_channels),
        ("layers_per_block", layers_per_block),
        ("norm_num_groups", norm_num_groups),
        ("attention_head_dim", attention_head_dim),
        ("num_attention_heads", num_attention_heads),
        ("num_class_embeds", num_class_embeds),
    ):
        if value is not None and value < 1:
            raise InputError(f"`{name}` must be at least 1, got {value}.")
    if len(channel_multipliers) == 0:
        raise InputError("`channel_multipliers` is empty: it holds one multiplier per level.")
    resolutions = level_resolutions(sample_size, len(channel_multipliers))
    block_out_channels = tuple(int(base_channels * multiplier) for multiplier in channel_multipliers)

    unknown = sorted(set(attention_resolutions) - set(resolutions))
    if unknown:
        raise InputError(
            f"`attention_resolutions` names {unknown}, but the levels of this network have the resolutions {resolutions}."
        )
    for name, allowed, value in (
        ("resample_type", ("resnet", "conv"), resample_type),
        ("resnet_time_scale_shift", ("scale_shift", "default"), resnet_time_scale_shift),
    ):
        if value not in allowed:
            raise InputError(f"`{name}` must be one of {allowed}, got {value!r}.")
    for channels in block_out_channels:
        if channels < 1 or channels % norm_num_groups:
            raise InputError(
                f"A level has {channels} channels, which {norm_num_groups} normalization groups do not divide: change "
                "`base_channels`, `channel_multipliers` or `norm_num_groups`."
            )

    attends = [resolution in attention_resolutions for resolution in resolutions]
    attending = {channels for channels, yes in zip(block_out_channels, attends) if yes} | {block_out_channels[-1]}
    divisor = attention_head_dim or num_attention_heads
    for channels in sorted(attending):
        if channels % divisor:
            raise InputError(
                f"An attention layer has {channels} channels, which cannot be split into heads with "
                f"attention_head_dim={attention_head_dim}, num_attention_heads={num_attention_heads}."
            )

    residual = resample_type == "resnet"
    down_plain, up_plain = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    )
    return {
        "sample_size": sample_size,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "time_embedding_dim": 4 * base_channels,
        "down_block_types": tuple("AttnDownBlock2D" if yes else down_plain for yes in attends),
        "up_block_types": tuple("AttnUpBlock2D" if yes else up_plain for yes in reversed(attends)),
        "block_out_channels": block_out_channels,
        "layers_per_block": layers_per_block,
        "downsample_type": resample_type,
        "upsample_type": resample_type,
        "dropout": dropout,
        "attention_head_dim": attention_head_dim,
        "norm_num_groups": norm_num_groups,
        "attn_norm_num_groups": norm_num_groups,
        "resnet_time_scale_shift": resnet_time_scale_shift,
        "num_class_embeds": num_class_embeds,
    }


def resolve_attention_head_dim(attention_head_dim: int | None, num_attention_heads: int | None) -> int | None:
    """Head width to use: 64 (section 3.1 of the paper) unless a width or a number of heads is given.

    Raises:
        ValueError: if both are given.
    """
    if attention_head_dim is not None and num_attention_heads is not None:
        raise InputError(
            "Set the attention heads either by width (`attention_head_dim`) or by number (`num_attention_heads`), not "
            f"both: got {attention_head_dim} and {num_attention_heads}."
        )
    return 64 if attention_head_dim is None and num_attention_heads is None else attention_head_dim


def check_class_names(class_names: Sequence[str] | None, num_classes: int | None, argument: str) -> None:
    """Raises `ValueError` unless there is a name, a `str`, for each of the model's classes, or no names at all."""
    if class_names is None:
        return
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise InputError(f"`class_names` must be a list of strings, one per class, got {class_names!r}.")
    if len(class_names) != num_classes:
        raise InputError(f"`class_names` holds {len(class_names)} names, but `{argument}` is {num_classes}.")


class ADMTrunkMixin(AttentionMixin):
    """The parts of `UNet2DModel` that ADM does differently, and the way down from a noisy sample to its features.

    The host class owns `conv_in`, `time_proj`, `time_embedding`, `class_embedding`, `down_blocks` and `mid_block`,
    named and built as `UNet2DModel` does.
    """

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As `ModelMixin.from_pretrained`, but from safetensors only, and with the weights aligned as in a new model.

        diffusers unpickles where it finds no safetensors, unless told not to (`use_safetensors=False` still does).
        Mapped from a file, weights lie anywhere, and CPU kernels then round otherwise: images would differ in the last
        bits.
        """
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for parameter in model.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % CPU_ALIGNMENT:
                parameter.data = parameter.data.clone()
        return loaded

    def _apply_adm_details(self, base_channels: int, num_attention_heads: int | None, rescale_residual: bool) -> None:
        # UNet2DModel ties the embedding's width to the first level, which may be narrower than the base (512x512).
        self.time_proj = Timesteps(base_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(base_channels, 4 * base_channels)

        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
                if rescale_residual:
                    module.output_scale_factor = math.sqrt(2)
            elif isinstance(module, Attention):
                nn.init.zeros_(module.to_out[0].weight)
                nn.init.zeros_(module.to_out[0].bias)
                if rescale_residual:
                    module.rescale_output_factor = math.sqrt(2)
                if num_attention_heads is not None:
                    # UNet2DModel knows widths only, one for all levels
                    module.heads = module.sliceable_head_dim = num_attention_heads
                    module.scale = (module.inner_dim // num_attention_heads) ** -0.5

    def check_sample(self, sample: torch.Tensor) -> None:
        """Raises `ValueError` unless `sample` is (B, `in_channels`, H, W) with sides that the levels divide."""
        divisor = 2 ** (len(self.down_blocks) - 1)
        channels = self.config.in_channels
        if sample.ndim != 4 or sample.shape[1] != channels or any(side % divisor for side in sample.shape[2:]):
            raise InputError(
                f"{type(self).__name__} takes a sample of shape (batch, {channels}, height, width) with height and "
                f"width multiples of {divisor}, got {tuple(sample.shape)}."
            )

    def embed(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embedding (B, 4 * base_channels) of the timestep, a number or (B,), plus that of the class (B,)."""
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        emb = self.time_embedding(self.time_proj(timesteps).to(dtype=self.dtype))
        if class_labels is not None:
            emb = emb + self.class_embedding(class_labels).to(dtype=self.dtype)
        return emb

    def encode(self, sample: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Features after the middle block, and those of `conv_in` and of every layer on the way down, in order."""
        sample = self.conv_in(sample)
        residuals = (sample,)
        for block in self.down_blocks:
            sample, block_residuals = block(sample, temb=emb)
            residuals += block_residuals
        return self.mid_block(sample, emb), residuals
